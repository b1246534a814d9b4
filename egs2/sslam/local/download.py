#!/usr/bin/env python3
"""Fetch the files of a corpus that may be fetched, and say where the rest comes from.

Broken downloads go on where they stopped. Size and hash are checked: those that are
published are in local/download.yaml, of others the first one seen is kept in
.downloads.json. Archives are unpacked below --target and refused when a path or link
leads out of it. Run it again at any time: what is there and sound is not fetched again.
"""

import argparse
import fnmatch
import hashlib
import json
import logging
import shutil
import subprocess
import time
from pathlib import Path

import yaml

from espnet2_sslam.bin.cli import run_main
from espnet2_sslam.store import write_json
from espnet2_sslam.unpack import is_archive, unpack

SOURCES = Path(__file__).with_name("download.yaml")
RECORD = ".downloads.json"
TRIES = 5  # without a new byte between them
WAIT = 2.0  # seconds before the second try, twice as long before each further one
CURL = ["--fail", "--location", "--silent", "--show-error", "--continue-at", "-"]
CURL += ["--connect-timeout", "20", "--speed-limit", "1", "--speed-time", "60"]
NO_RANGE, REFUSED, CANNOT_WRITE = 33, 22, 23  # exit statuses of curl
MAY_GO_AWAY = {"408", "425", "429", "500", "502", "503", "504"}  # HTTP statuses


class Target:
    """A folder of downloads, with what is known about each of its files."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / RECORD
        text = path.read_text(encoding="utf-8") if path.is_file() else "{}"
        self.known: dict[str, dict] = json.loads(text)

    def remember(self, name: str, **values) -> None:
        """Note something about a file, on disk at once."""
        self.known.setdefault(name, {}).update(values)
        write_json(self.folder / RECORD, self.known)

    def get(self, source: dict) -> None:
        """Fetch the file of a source if it is not there, and check it.

        Raises:
            ValueError: It cannot be had, or is not what it should be.
        """
        path = self.folder / source["name"]
        if not path.is_file():
            part = path.with_name(path.name + ".part")
            resumed = fetch(source["url"], part)
            problem = self.check(part, source)
            if problem and resumed:
                # The beginning may be of another version: once more from the start.
                logging.warning("%s: it is fetched again", problem)
                part.unlink()
                fetch(source["url"], part)
                problem = self.check(part, source)
            if problem:
                part.unlink()
                raise ValueError(
                    f"{problem}: what was fetched is removed; run again, or see "
                    "whether the source has a new version"
                )
            part.rename(path)
        elif self.known.get(path.name, {}).get("stat") != size_and_time(path):
            problem = self.check(path, source)
            if problem:
                raise ValueError(f"{problem}: delete {path} and run again")
        self.remember(path.name, stat=size_and_time(path))
        logging.info("%s is there", path)

    def check(self, path: Path, source: dict) -> str | None:
        """Compare size and hash with what is published, or was seen before.

        Returns:
            How they differ; None if they do not, and then the hash is kept.
        """
        name, size, bytes_ = source["name"], source.get("size"), path.stat().st_size
        if size not in (None, bytes_):
            return f"{name} has {bytes_} bytes, {size} are expected"
        kind = "md5" if "md5" in source and "sha256" not in source else "sha256"
        expected, origin = source.get(kind), source.get("hash_source", "its publisher")
        if expected is None:
            origin = "the first download"
            expected = self.known.get(name, {}).get("sha256")
        with open(path, "rb") as file:
            actual = hashlib.file_digest(file, kind).hexdigest()
        if expected is None:
            logging.info("%s: no hash is published, %s is kept for later", name, actual)
        elif actual != expected:
            text = f"{name} has {kind} {actual}, {expected} is expected ({origin})"
            if not source.get("may_change"):
                return text
            logging.warning("%s; its server makes it anew, so it is used", text)
        kept = actual if kind == "sha256" else None
        self.remember(name, sha256=kept, url=source["url"])
        return None

    def unpack(self, source: dict) -> None:
        """Unpack an archive, unless that was done with this very file.

        Raises:
            ValueError: It is not safe, or its folder is there already.
        """
        path = self.folder / source["name"]
        known = self.known[path.name]
        if known.get("unpacked") == known["stat"]:
            logging.info("%s is unpacked", path)
            return
        logging.info("unpacking %s", path)
        archive = path
        if "parts" in source:  # .z01, .z02, ..., .zip
            archive = path.with_name(f".{path.name}.joined.zip")
        try:
            if archive != path:
                run = command("zip", "-q", "-s", "0", path, "--out", archive)
                if run.returncode:
                    raise ValueError(f"{path} cannot be joined: {last_line(run)}")
            unpack(archive, self.folder, source.get("into"))
        finally:
            if archive != path:
                archive.unlink(missing_ok=True)
        self.remember(path.name, unpacked=known["stat"])


def fetch(url: str, part: Path) -> bool:
    """Write the content of `url` to `part` with curl, going on with what is there.

    curl's own --retry would begin anew where this call began, not where it broke off.

    Returns:
        Whether a part of an earlier call was used.

    Raises:
        ValueError: The server refuses or keeps breaking off, or the disk is full.
    """
    resumed = size_of(part) > 0
    tries = 0
    while True:
        before = size_of(part)
        run = command(
            "curl", *CURL, "--write-out", "%{http_code}", "--output", part, url
        )
        if run.returncode == 0:
            part.touch()  # an empty file leaves none
            return resumed
        http_status = run.stdout[-3:]
        text = f"{url} cannot be fetched: {last_line(run)}"
        if before and (run.returncode == NO_RANGE or http_status == "416"):
            part.unlink()  # no ranges, or the file is another by now
        elif run.returncode == CANNOT_WRITE or (
            run.returncode == REFUSED and http_status not in MAY_GO_AWAY
        ):
            raise ValueError(text)
        tries = tries + 1 if size_of(part) <= before else 1
        if tries >= TRIES:
            raise ValueError(
                f"{text}; {size_of(part)} bytes are kept in {part}: run again to go on"
            )
        logging.warning("%s; trying again", text)
        time.sleep(WAIT * 2 ** (tries - 1))


def command(program: str, *words) -> subprocess.CompletedProcess:
    """Run a program that must be installed.

    Raises:
        ValueError: It is not.
    """
    if shutil.which(program) is None:
        raise ValueError(f"the program {program} is needed: install it and run again")
    return subprocess.run([program, *words], capture_output=True, text=True)


def last_line(run: subprocess.CompletedProcess) -> str:
    """What a program that failed says last."""
    lines = (run.stdout + "\n" + run.stderr).strip().splitlines()
    return lines[-1] if lines else f"exit status {run.returncode}"


def size_of(path: Path) -> int:
    """Bytes of a file, 0 if it is not there."""
    return path.stat().st_size if path.is_file() else 0


def size_and_time(path: Path) -> list[int]:
    """What tells a file from one that was changed since."""
    return [path.stat().st_size, path.stat().st_mtime_ns]


def download(args) -> None:
    """Fetch, check, unpack and explain one corpus."""
    table = yaml.safe_load(args.sources.read_text(encoding="utf-8"))
    if args.corpus not in table:
        raise ValueError(
            f"--corpus {args.corpus} is not known here, but {', '.join(table)}"
        )
    entry = table[args.corpus]
    files = {source["name"]: source for source in entry["files"]}
    chosen = {name for pattern in args.files for name in fnmatch.filter(files, pattern)}
    sources = [source for name, source in files.items() if name in chosen]
    if files and not sources:
        patterns = " ".join(args.files)
        raise ValueError(f"--files {patterns} fits none of {', '.join(files)}")
    if sources:
        folder = (args.target or Path("downloads") / args.corpus).resolve()
        target = Target(folder)
        for source in sources:
            target.get(source)
        for source in sources if args.unpack == "true" else ():
            if is_archive(source["name"]):
                target.unpack(source)
        print(f"{args.corpus}: use --corpus_dir {folder / entry['corpus_dir']}")
        if "licence" in entry:
            print(f"licence: {entry['licence']}")
    print(entry.get("explain", "").rstrip() or "done")


def main(argv=None) -> None:
    """Entry point."""
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
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    download(parser.parse_args(argv))


if __name__ == "__main__":
    run_main(main)
