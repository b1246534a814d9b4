"""Fetch one file over HTTP, going on after breaks (requests does the transfers)."""

import json
import logging
import re
import shutil
import time
from pathlib import Path

import requests
import urllib3

from espnet2_sslam.corpus import write_atomically

TRIES = 5  # without a new byte between them
WAIT = 2.0  # seconds before the second try, twice as long before each further one
TIMEOUT = (20, 60)  # seconds to connect, and between two pieces
PIECE = 1 << 20  # bytes
RETRY = (408, 425, 429, 500, 502, 503, 504)  # statuses that may go away


def fetch(url: str, part: Path, size: int | None = None) -> bool:
    """Write the content of `url` to `part`, going on with what is there.

    Args:
        url: http or https.
        part: The file; a broken transfer leaves its beginning and `<part>.json`.
        size: Its bytes, where they are known.

    Returns:
        Whether a part of an earlier call was used.

    Raises:
        ValueError: The server refuses, or keeps breaking off.
        OSError: The disk is full.
    """
    resumed = part.is_file() and part.stat().st_size > 0
    tries = 0
    while True:
        before = _size(part)
        problem = _transfer(url, part, size)
        if problem is None:
            _state_file(part).unlink(missing_ok=True)
            return resumed
        tries = tries + 1 if _size(part) <= before else 1
        if tries >= TRIES:
            raise ValueError(
                f"{url} cannot be fetched: {problem}; {_size(part)} bytes are kept in "
                f"{part}: run again to go on"
            )
        logging.warning("%s: %s; trying again", url, problem)
        time.sleep(WAIT * 2 ** (tries - 1))


def _size(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0


def _state_file(part: Path) -> Path:
    """Where the version that a part is of is noted."""
    return part.with_name(part.name + ".json")


def _read_state(part: Path) -> dict:
    try:
        return json.loads(_state_file(part).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _transfer(url: str, part: Path, size: int | None) -> str | None:
    """One request; None when the file is whole, else what went wrong."""
    start = _size(part)
    headers = {"Accept-Encoding": "identity"}
    state = _read_state(part)
    if start:
        headers["Range"] = f"bytes={start}-"
        if state.get("version"):
            headers["If-Range"] = state["version"]
    try:
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
            if answer.status_code == 416 and start:
                return _after_the_end(answer, part, size)
            if answer.status_code in RETRY:
                return f"the server answers {answer.status_code}"
            if answer.status_code not in (200, 206):
                raise ValueError(
                    f"{url} cannot be fetched: the server answers "
                    f"{answer.status_code} {answer.reason}"
                )
            start, total = _plan(answer, start)
            if size is not None and total not in (None, size):
                raise ValueError(
                    f"{url} has {total} bytes, {size} are expected: it is not the file "
                    "that was meant"
                )
            return _write(answer, part, start, total if size is None else size)
    except requests.exceptions.InvalidURL as error:
        raise ValueError(f"{url} cannot be fetched: {error}") from None
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        return f"{type(error).__name__} after {_size(part)} bytes"


def _plan(answer: requests.Response, start: int) -> tuple:
    """Where the answer's bytes begin, and the size of the whole file or None."""
    if answer.status_code == 206:
        form = r"bytes (\d+)-\d+/(\d+|\*)"
        found = re.fullmatch(form, answer.headers.get("Content-Range", ""))
        if found and int(found.group(1)) == start:
            total = found.group(2)
            return start, None if total == "*" else int(total)
        raise requests.exceptions.ContentDecodingError("a range that was not asked for")
    length = answer.headers.get("Content-Length")
    return 0, int(length) if length else None


def _after_the_end(answer, part: Path, size: int | None) -> str | None:
    """The server has nothing behind what is here: whole, or of another file."""
    found = re.fullmatch(r"bytes \*/(\d+)", answer.headers.get("Content-Range", ""))
    total = size if size is not None else int(found.group(1)) if found else None
    if total == _size(part):
        return None
    part.unlink()
    return "what was here is longer than the server's file, it is fetched anew"


def _write(answer, part: Path, start: int, total: int | None) -> str | None:
    """Write the answer's bytes behind the first `start` ones."""
    left = None if total is None else total - start
    free = shutil.disk_usage(part.parent).free
    if left is not None and left > free:
        raise ValueError(
            f"{left} bytes are to come, {free} are free in {part.parent}: make room"
        )
    version = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
    if version and version.startswith("W/"):
        version = None  # a weak one does not vouch for the bytes
    write_atomically(_state_file(part), json.dumps({"version": version}))
    with open(part, "r+b" if start else "wb") as file:
        file.seek(start)
        file.truncate()
        # What has come is written at once, so that a break loses none of it.
        while piece := answer.raw.read1(PIECE):
            file.write(piece)
    if total is not None and _size(part) != total:
        return f"{_size(part)} of {total} bytes came"
    return None
