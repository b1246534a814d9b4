"""What is known of a repository in Hugging Face's cache: listings and checked files."""

import hashlib
import json
import logging
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

COMMIT = re.compile(r"[0-9a-f]{40}")
FILE = "espnet2_sslam.json"  # beside the repository's snapshots
MAIN = "main"


class Listed(NamedTuple):
    """A file of a commit and its hashes, where they are known."""

    name: str
    sha256: str | None = None
    git_sha1: str | None = None


class Record:
    """Listings by commit, commits by name, and hashes of files that were read.

    A file is read again when its size or time of change is another one. Where the
    cache is read-only, nothing is remembered.

    Args:
        storage: The repository's folder in the cache.
    """

    def __init__(self, storage: Path):
        self.path = storage / FILE
        self.content: dict[str, dict[str, Any]] = {
            "commits": {},
            "refs": {},
            "digests": {},
        }
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return
        if isinstance(found, dict):
            for key in self.content:
                if isinstance(found.get(key), dict):
                    self.content[key] = found[key]

    def listing(self, commit: str) -> dict[str, Listed]:
        """Files of a commit; empty if it was never listed."""
        files = self.content["commits"].get(commit) or {}
        return {name: Listed(name, *hashes) for name, hashes in files.items()}

    def commit(self, revision: str | None) -> str | None:
        """The commit that a branch or tag was when it was last looked up."""
        return self.content["refs"].get(revision or MAIN)

    def remember(
        self, revision: str | None, commit: str, files: dict[str, list]
    ) -> None:
        """Keep a listing: {name: [sha256 or None, git's sha1 or None]}."""
        inside = {k: v for k, v in files.items() if ".." not in k.split("/")}
        self.content["commits"][commit] = inside
        self.content["refs"][revision or MAIN] = commit
        self._write()

    def digest(self, path: Path, kind: str) -> str:
        """Hash of a file: "sha256", or git's "sha1"; from the record if it is there."""
        status = path.stat()
        state = [status.st_size, status.st_mtime_ns]
        known = self.content["digests"].setdefault(str(path), {})
        if known.get("state") != state:
            known.clear()
            known["state"] = state
        if kind not in known:
            known[kind] = _sha256(path) if kind == "sha256" else _git_sha1(path)
            self._write()
        return known[kind]

    def _write(self) -> None:
        partial = self.path.with_name(f".{FILE}.{os.getpid()}.tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(self.content, indent=1), encoding="utf-8")
            os.replace(partial, self.path)
        except OSError as error:
            logging.debug("%s was not written: %s", self.path, error)
            partial.unlink(missing_ok=True)


def expected_hash(path: Path, listed: Listed) -> tuple[str | None, str]:
    """The hash that a file must have, and its kind; (None, "") if nobody knows.

    Without a listing the cache's own name tells it: Hugging Face names a file there
    by its SHA-256, or by git's SHA-1 where it is small.
    """
    if listed.sha256:
        return listed.sha256, "sha256"
    if listed.git_sha1:
        return listed.git_sha1, "sha1"
    name = Path(os.readlink(path)).name if path.is_symlink() else ""
    if re.fullmatch(r"[0-9a-f]{64}", name):
        return name, "sha256"
    return (name, "sha1") if COMMIT.fullmatch(name) else (None, "")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _git_sha1(path: Path) -> str:
    """The id that git gives to the file's content."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode())
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
