"""Finished results of a long job, kept on the disk until the output is whole.

A job writes OUTPUT.part/: `job.json` (the options), `data.bin` (arrays one after the
other) and `index.jsonl` (a line per file: which one, where its arrays are, their
checksum). Data go before the line that names them, so a process that is killed at any
moment leaves whole results only; what a crashed machine has mangled is found by its
checksum. The same command continues there. A result belongs to its file by name, path,
size and time of change, never by its position.
"""

import fcntl
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Optional

import numpy as np

from espnet2_sslam.inference.files import AudioInput
from espnet2_sslam.inference.rows import (
    TIMES,
    VALUES,
    Place,
    StoredRows,
    checksum,
    read_arrays,
)

FORMAT_VERSION = 1
SUFFIX = ".part"
Stamp = Optional[list[int]]  # size in bytes, time of change in ns


class Journal:
    """The results of a job so far. Use it in a `with` block.

    Args:
        output: The file that the job makes; the journal lies beside it.
        job: What the results depend on (command, model, options), as JSON.
        restart: Throw away what another run has left.

    Raises:
        ValueError: What is there belongs to other options, or is in use.
        OSError: The folder cannot be written.
    """

    def __init__(self, output: Path, job: Mapping[str, Any], restart: bool = False):
        self.output = Path(output)
        self.folder = self.output.with_name(self.output.name + SUFFIX)
        self.job = json.loads(json.dumps({"format_version": FORMAT_VERSION, **job}))
        self.restart = restart
        self._index: dict[str, Place] = {}
        self._before: dict[str, tuple[str, Stamp]] = {}  # of an earlier run
        self._stamps: dict[str, Stamp] = {}  # of the files to do
        self._files: dict[str, io.IOBase] = {}
        self._owned = False

    def __enter__(self) -> "Journal":
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._open("lock", "ab")
            self._lock()
            self._begin()
            self._owned = True
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception) -> None:
        while self._files:
            _, file = self._files.popitem()
            try:
                file.close()
            except OSError:  # a full disk: what is in the index is whole all the same
                pass
        if self._owned and not self._index:
            shutil.rmtree(self.folder, ignore_errors=True)
        self._owned = False

    def __len__(self) -> int:
        return len(self._index)

    def pending(self, items: Sequence[AudioInput]) -> list[AudioInput]:
        """Return the files that are to do; the others are there and have not changed.

        To be called once, before anything is added.
        """
        todo = []
        for item in items:
            stamp = _stamp(item.path)
            if self._before.get(item.name) != (item.path, stamp):
                self._index.pop(item.name, None)
                self._stamps[item.name] = stamp
                todo.append(item)
        self._before.clear()
        return todo

    def add(
        self,
        item: AudioInput,
        starts: np.ndarray,
        ends: np.ndarray,
        values: np.ndarray,
    ) -> None:
        """Keep the result of a file that `pending` has returned."""
        arrays = [
            np.ascontiguousarray(starts, TIMES),
            np.ascontiguousarray(ends, TIMES),
            np.ascontiguousarray(values, VALUES),
        ]
        data, index = self._files["data.bin"], self._files["index.jsonl"]
        entry = {
            "name": item.name,
            "path": item.path,
            "stamp": self._stamps.pop(item.name),
            "offset": data.tell(),
            "shape": list(arrays[2].shape),
            "crc": checksum(arrays),
        }
        with self._full_disk():
            for array in arrays:
                data.write(memoryview(array).cast("B") if array.size else b"")
            data.flush()
            index.write(json.dumps(entry).encode() + b"\n")
            index.flush()
        self._index[item.name] = Place(entry["offset"], arrays[2].shape)

    def rows(self, items: Sequence[AudioInput]) -> "StoredRows":
        """Return the results of those files that have one, in this order."""
        names = [item.name for item in items if item.name in self._index]
        places = [self._index[name] for name in names]
        return StoredRows(self.folder / "data.bin", names, places)

    def discard(self) -> None:
        """Remove the journal: the output is whole, and all files are in it."""
        self._index.clear()
        self.__exit__()

    def _open(self, name: str, mode: str) -> None:
        self._files[name] = open(self.folder / name, mode)

    def _lock(self) -> None:
        """Refuse to share the folder with a running process."""
        try:
            fcntl.flock(self._files["lock"], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{self.folder} is in use: another process is writing {self.output}; "
                "wait for it or choose another output"
            ) from None
        except OSError:  # a file system without locks
            pass

    def _begin(self) -> None:
        """Take over what is there, or begin with nothing."""
        record = self.folder / "job.json"
        index = self.folder / "index.jsonl"
        if self.restart or not index.exists() or index.stat().st_size == 0:
            record.unlink(missing_ok=True)
        old = _read_json(record)
        if old is not None and old != self.job:
            raise ValueError(
                f"{self.folder} holds results of other options "
                f"({_changes(old, self.job)}): give those to continue, --restart to "
                "begin anew, or another output"
            )
        size = 0
        if old is None:
            index.unlink(missing_ok=True)
            with self._full_disk():
                record.write_text(json.dumps(self.job, indent=2) + "\n")
        else:
            size = self._recover()
        for name in ("data.bin", "index.jsonl"):
            self._open(name, "ab")
        # Results are appended after the last whole one.
        self._files["data.bin"].truncate(size)
        self._files["data.bin"].seek(size)

    def _recover(self) -> int:
        """Read the index; return where the last whole result ends."""
        path, data_path = self.folder / "index.jsonl", self.folder / "data.bin"
        end = kept = 0
        if not path.exists() or not data_path.exists():
            path.unlink(missing_ok=True)
            return 0
        with open(path, "rb") as lines, open(data_path, "rb") as data:
            for line in lines:
                entry = _parsed(line)
                if entry is None:
                    break
                place = Place(entry["offset"], tuple(entry["shape"]))
                if checksum(read_arrays(data, place)) != entry["crc"]:
                    break
                name = entry["name"]
                self._index[name] = place
                self._before[name] = entry["path"], entry["stamp"]
                end, kept = data.tell(), kept + len(line)
        os.truncate(path, kept)
        return end

    @contextmanager
    def _full_disk(self) -> Iterator[None]:
        """Name the folder in the error of a full disk."""
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.folder)) from error


def _stamp(path: str) -> Stamp:
    """Size and time of change of a file; None if it is not there."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def _parsed(line: bytes) -> dict[str, Any] | None:
    """A line of the index, None if it is not whole."""
    try:
        return json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None


def _read_json(path: Path) -> dict[str, Any] | None:
    """A JSON file's content; None if it is missing or was not finished."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """What differs between two records, in words."""
    words = []
    for key in sorted({*old, *new}):
        if old.get(key) != new.get(key):
            words.append(
                f"{key}: {_brief(old.get(key))} there, {_brief(new.get(key))} now"
            )
    return ", ".join(words)


def _brief(value: Any) -> str:
    """A value as text; of a checksum the beginning."""
    text = str(value)
    return text if len(text) <= 16 else f"{text[:12]}..."
