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


def fetch(url: str, part: Path) -> bool:
    """Write the content of `url` to `part` with curl, going on with what is there.

    curl's own --retry would begin anew where this call began, not where it broke off.

    Returns:
        Whether a part of an earlier call was used.
    """

    def size() -> int:
        return part.stat().st_size if part.is_file() else 0

    resumed, tries = size() > 0, 0
    while True:
        before = size()
        words = ["--write-out", "%{http_code}", "--output", part, url]
        run = command("curl", *CURL, *words)
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
        tries = tries + 1 if size() <= before else 1
        if tries >= TRIES:
            raise ValueError(
                f"{text}; {size()} bytes are kept in {part}: run again to go on"
            )
        logging.warning("%s; trying again", text)
        time.sleep(WAIT * 2 ** (tries - 1))


def check(path: Path, source: dict, known: dict) -> str:
    """How a file differs from what is published, or was seen before; "" if it does not.

    The hash is then kept in `known`.
    """
    name, size = source["name"], path.stat().st_size
    if source.get("size", size) != size:
        return f"{name} has {size} bytes, {source['size']} are expected"
    kind = "md5" if "md5" in source and "sha256" not in source else "sha256"
    expected, origin = source.get(kind), source.get("hash_source", "its publisher")
    if expected is None:
        expected, origin = known.get("sha256"), "the first download"
    with open(path, "rb") as file:
        actual = hashlib.file_digest(file, kind).hexdigest()
    if expected not in (None, actual):
        text = f"{name} has {kind} {actual}, {expected} is expected ({origin})"
        if not source.get("may_change"):
            return text
        logging.warning("%s; its server makes it anew, so it is used", text)
    known.update({kind: actual, "url": source["url"]})
    return ""


def get(source: dict, path: Path, known: dict) -> None:
    """Fetch the file of a source if it is not there, and check it."""
    if path.is_file():
        if problem := check(path, source, known):
            raise ValueError(f"{problem}: delete {path} and run again")
        return
    part = path.with_name(path.name + ".part")
    resumed = fetch(source["url"], part)
    problem = check(part, source, known)
    if problem and resumed:
        # The beginning may be of another version: once more from the start.
        logging.warning("%s: it is fetched again", problem)
        part.unlink()
        fetch(source["url"], part)
        problem = check(part, source, known)
    if problem:
        part.unlink()
        raise ValueError(
            f"{problem}: what was fetched is removed; run again, or see whether the "
            "source has a new version"
        )
    part.rename(path)


def unpack_once(source: dict, path: Path, known: dict) -> None:
    """Unpack an archive, unless that was done with a file of the same hash."""
    digest = known.get("sha256") or known["md5"]
    if known.get("unpacked") == digest:
        return
    logging.info("unpacking %s", path)
    joined = path.with_name(f".{path.name}.joined.zip")
    try:
        if "parts" in source:  # .z01, .z02, ..., .zip
            run = command("zip", "-q", "-s", "0", path, "--out", joined)
            if run.returncode:
                raise ValueError(f"{path} cannot be joined: {last_line(run)}")
        archive = joined if "parts" in source else path
        unpack(archive, path.parent, source.get("into"))
    finally:
        joined.unlink(missing_ok=True)
    known["unpacked"] = digest


def command(program: str, *words) -> subprocess.CompletedProcess:
    """Run a program that must be installed."""
    if shutil.which(program) is None:
        raise ValueError(f"{program} is needed for this: install it")
    words = [program, *map(str, words)]
    return subprocess.run(words, capture_output=True, text=True, errors="replace")


def last_line(run: subprocess.CompletedProcess) -> str:
    """What a program that failed says last."""
    lines = (run.stdout + "\n" + run.stderr).strip().splitlines()
    return lines[-1] if lines else f"exit status {run.returncode}"


def download(args) -> None:
    """Fetch, check, unpack and explain one corpus."""
    table = yaml.safe_load(args.sources.read_text(encoding="utf-8"))
    if args.corpus not in table:
        raise ValueError(
            f"--corpus {args.corpus} is not known here, but {', '.join(table)}"
        )
    entry = table[args.corpus]
    sources = [
        source
        for source in entry["files"]
        if any(fnmatch.fnmatch(source["name"], pattern) for pattern in args.files)
    ]
    if entry["files"] and not sources:
        names = ", ".join(source["name"] for source in entry["files"])
        raise ValueError(f"--files {' '.join(args.files)} fits none of {names}")
    if sources:
        folder = (args.target or Path("downloads") / args.corpus).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        record = folder / RECORD
        known = json.loads(record.read_text("utf-8")) if record.is_file() else {}
        for work in (get, unpack_once):
            for source in sources:
                path = folder / source["name"]
                of_file = known.setdefault(path.name, {})
                if work is get or (args.unpack == "true" and is_archive(path.name)):
                    work(source, path, of_file)
                    write_json(record, known)
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
