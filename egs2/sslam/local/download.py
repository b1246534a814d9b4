#!/usr/bin/env python3
"""Fetch the files of a corpus that may be fetched, and say where the rest comes from.

Broken downloads go on where they stopped. Size and hash are checked: those that are
published are in local/download.yaml, of others the first one seen is kept in
.downloads.json. Archives are unpacked below --target and refused when a path or link
leads out of it. Run it again at any time: what is there and sound is not fetched again.
"""

import argparse
import hashlib
import json
import logging
import shutil
import subprocess
import time
from fnmatch import fnmatch
from pathlib import Path

import yaml

from espnet2_sslam.bin.cli import run_main
from espnet2_sslam.store import write_json
from espnet2_sslam.unpack import is_archive, unpack

SOURCES = Path(__file__).with_name("download.yaml")
RECORD = ".downloads.json"
TRIES = 5  # without a new byte between them
WAIT = 2.0  # seconds before the second try, twice as long before each further one
CURL = ["curl", "--fail", "--location", "--silent", "--show-error"]
STALLED = ["--connect-timeout", "20", "--speed-limit", "1", "--speed-time", "60"]
NO_RANGE, REFUSED, CANNOT_WRITE = 33, 22, 23  # exit statuses of curl
MAY_GO_AWAY = {"408", "425", "429", "500", "502", "503", "504"}  # HTTP statuses


class Target:
    """A folder of downloads, with what is known about each of its files."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / RECORD
        self.known: dict[str, dict] = {}
        if path.is_file():
            self.known = json.loads(path.read_text(encoding="utf-8"))

    def remember(self, name: str, **values) -> None:
        """Note something about a file, on disk at once."""
        self.known.setdefault(name, {}).update(values)
        write_json(self.folder / RECORD, self.known)

    def get(self, source: dict) -> Path:
        """The file of a source, fetched if it is not there, and sound.

        Raises:
            ValueError: It cannot be had, or is not what it should be.
        """
        path = self.folder / source["name"]
        if path.is_file():
            if not self._is_unchanged(path):
                self._check(path, source, f"delete {path} and run again")
                self._seen(path)
            logging.info("%s is there", path)
            return path
        part = path.with_name(path.name + ".part")
        resumed = fetch(source["url"], part)
        try:
            self._check_part(part, source)
        except ValueError:
            if not resumed:
                raise
            # The beginning may be of another version: once more from the start.
            logging.warning("%s is not sound: it is fetched again", path)
            fetch(source["url"], part)
            self._check_part(part, source)
        part.rename(path)
        self._seen(path)
        return path

    def _is_unchanged(self, path: Path) -> bool:
        """Whether a file is as it was when it was last checked."""
        stat = path.stat()
        return self.known.get(path.name, {}).get("stat") == [
            stat.st_size,
            stat.st_mtime_ns,
        ]

    def _seen(self, path: Path) -> None:
        stat = path.stat()
        self.remember(path.name, stat=[stat.st_size, stat.st_mtime_ns])

    def _check_part(self, part: Path, source: dict) -> None:
        """Check what was fetched; remove it if it is wrong."""
        try:
            self._check(
                part,
                source,
                "what was fetched is removed; run again, or see "
                "whether the source has a new version",
            )
        except ValueError:
            part.unlink()
            raise

    def _check(self, path: Path, source: dict, remedy: str) -> None:
        """Compare size and hash with what is published, or was seen before.

        Raises:
            ValueError: They differ.
        """
        name = source["name"]
        size = source.get("size")
        if size is not None and path.stat().st_size != size:
            raise ValueError(
                f"{name} has {path.stat().st_size} bytes, {size} are expected: {remedy}"
            )
        kind = next((kind for kind in ("sha256", "md5") if kind in source), None)
        recorded = self.known.get(name, {}).get("sha256")
        wanted, where = source.get(kind), source.get("hash_source", "its publisher")
        if kind is None:
            kind, wanted, where = "sha256", recorded, "the first download"
        found = file_hash(path, kind)
        if wanted is not None and found != wanted:
            text = f"{name} has {kind} {found}, {wanted} is expected ({where})"
            if not source.get("may_change"):
                raise ValueError(f"{text}: {remedy}")
            logging.warning("%s; its server makes it anew, so it is used", text)
        if wanted is None:
            logging.info("%s: no hash is published, %s is kept for later", name, found)
        self.remember(
            name, sha256=found if kind == "sha256" else None, url=source["url"]
        )


def fetch(url: str, part: Path) -> bool:
    """Write the content of `url` to `part` with curl, going on with what is there.

    curl's own --retry would begin anew where this call began, not where it broke off.

    Returns:
        Whether a part of an earlier call was used.

    Raises:
        ValueError: The server refuses or keeps breaking off, or the disk is full.
    """
    if shutil.which("curl") is None:
        raise ValueError("downloads need the program curl: install it and run again")
    resumed = size_of(part) > 0
    tries = 0
    while True:
        before = size_of(part)
        words = ["--continue-at", "-", "--write-out", "%{http_code}", "--output"]
        run = subprocess.run(
            [*CURL, *STALLED, *words, str(part), url], capture_output=True, text=True
        )
        status, code = run.returncode, run.stdout[-3:]
        if status == 0:
            part.touch()  # an empty file leaves none
            return resumed
        problem = run.stderr.strip().splitlines()[-1:] or [f"curl ends with {status}"]
        text = f"{url} cannot be fetched: {problem[0]}"
        if before and (status == NO_RANGE or code == "416"):
            part.unlink()  # no ranges, or the file is another by now
        elif status == CANNOT_WRITE or (status == REFUSED and code not in MAY_GO_AWAY):
            raise ValueError(text)
        tries = tries + 1 if size_of(part) <= before else 1
        if tries >= TRIES:
            raise ValueError(
                f"{text}; {size_of(part)} bytes are kept in {part}: run again to go on"
            )
        logging.warning("%s; trying again", text)
        time.sleep(WAIT * 2 ** (tries - 1))


def size_of(path: Path) -> int:
    """Bytes of a file, 0 if it is not there."""
    return path.stat().st_size if path.is_file() else 0


def file_hash(path: Path, kind: str) -> str:
    """Hash of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


def unpack_once(target: Target, source: dict) -> None:
    """Unpack an archive, unless that was done with this very file.

    Raises:
        ValueError: It is not safe, or its folder is there already.
    """
    path = target.folder / source["name"]
    known = target.known.get(path.name, {})
    if known.get("unpacked") == known.get("stat"):
        logging.info("%s is unpacked", path)
        return
    archive = path
    if "parts" in source:
        archive = join_parts(path)
    logging.info("unpacking %s", path)
    try:
        unpack(archive, target.folder, source.get("into"))
    finally:
        if archive != path:
            archive.unlink(missing_ok=True)
    target.remember(path.name, unpacked=known.get("stat"))


def join_parts(path: Path) -> Path:
    """One archive made of a zip in several parts (.z01, .z02, ..., .zip).

    Raises:
        ValueError: There is no `zip`, or it fails.
    """
    if shutil.which("zip") is None:
        raise ValueError(
            f"{path} is a zip in parts, which the program `zip` (Info-ZIP) joins: "
            "install it and run again"
        )
    whole = path.with_name(f".{path.name}.joined.zip")
    command = ["zip", "-q", "-s", "0", str(path), "--out", str(whole)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        whole.unlink(missing_ok=True)
        reason = (result.stdout + result.stderr).strip().splitlines()
        raise ValueError(f"{path} cannot be joined: {reason[-1] if reason else 'zip'}")
    return whole


def choose(sources: list[dict], patterns: list[str]) -> list[dict]:
    """The sources whose names fit one of the patterns.

    Raises:
        ValueError: None does.
    """
    chosen = [s for s in sources if any(fnmatch(s["name"], p) for p in patterns)]
    if sources and not chosen:
        names = ", ".join(source["name"] for source in sources)
        raise ValueError(f"--files {' '.join(patterns)} fits none of {names}")
    return chosen


def download(args) -> None:
    """Fetch, check, unpack and explain one corpus."""
    table = yaml.safe_load(args.sources.read_text(encoding="utf-8"))
    if args.corpus not in table:
        raise ValueError(
            f"--corpus {args.corpus} is not known here, but {', '.join(table)}"
        )
    entry = table[args.corpus]
    sources = choose(entry["files"], args.files)
    folder = (args.target or Path("downloads") / args.corpus).resolve()
    if sources:
        target = Target(folder)
        for source in sources:
            target.get(source)
        for source in sources if args.unpack == "true" else ():
            if is_archive(source["name"]):
                unpack_once(target, source)
        place = (folder / entry["corpus_dir"]).resolve()
        print(f"{args.corpus}: use --corpus_dir {place}")
        if "licence" in entry:
            print(f"licence: {entry['licence']}")
    print(entry.get("explain", "").rstrip() or "done")


def get_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    parser = argparse.ArgumentParser(
        prog="local/download.sh",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--corpus", required=True, help="name, as of run.sh --corpus")
    add("--target", type=Path, help="folder to fill [downloads/<corpus>]")
    add("--files", nargs="+", default=["*"], help="patterns, as *v0.02* [all files]")
    add("--unpack", choices=("true", "false"), default="true", help="[true]")
    add("--sources", type=Path, default=SOURCES, help="other table, as for a mirror")
    return parser


def main(argv=None) -> None:
    """Entry point."""
    args = get_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    download(args)


if __name__ == "__main__":
    run_main(main)
