"""Results of many files, kept on the disk until the output is whole.

A command writes OUTPUT.part/: `job.json` (the options), `data.bin` (arrays one after
the other) and `index.jsonl` (a line per file: which one, where its arrays are, their
checksum). Data go before the line that names them, so a process that is killed at any
moment leaves whole results only; what a crashed machine has mangled is found by its
checksum. The same command continues there. A result belongs to its file by name, path,
size and time of change, never by its position.
"""

import json
import math
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from espnet2_sslam import store
from espnet2_sslam.audio import AudioInput
from espnet2_sslam.inference.stream import FileResult

FORMAT_VERSION = 1
TIMES, VALUES = np.dtype("<f8"), np.dtype("<f4")


class Rows(NamedTuple):
    """One file's result: starts and ends in seconds (W,), values (W, ...)."""

    name: str
    starts: np.ndarray
    ends: np.ndarray
    values: np.ndarray


class StoredRows:
    """Results in the order of the output, read one by one, as often as needed.

    Args:
        path: The file of arrays.
        names: Of the files.
        places: Where the arrays of each begin, and the shape of its values.
    """

    def __init__(
        self,
        path: Path,
        names: list[str],
        places: list[tuple[int, tuple[int, ...]]],
    ):
        self.names, self.shapes = names, [shape for _, shape in places]
        self._path, self._places = path, places

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Rows]:
        with open(self._path, "rb") as data:
            for name, place in zip(self.names, self._places, strict=True):
                yield Rows(name, *_read_arrays(data, *place))


class ResultFolder:
    """The results of a job so far. Use it in a `with` block.

    Args:
        output: The file that the job makes; the folder lies beside it.
        job: What the results depend on (command, model, options), as JSON.
        items: The files; `todo` are those that have no result yet, or have changed.
        restart: Throw away what another run has left.

    `failures` is for those that could not be used, by name.

    Raises:
        ValueError: What is there belongs to other options, or is in use.
        OSError: The folder cannot be written.
    """

    def __init__(
        self,
        output: Path,
        job: Mapping[str, Any],
        items: Sequence[AudioInput],
        restart: bool = False,
    ):
        self.output = Path(output)
        self.folder = self.output.with_name(self.output.name + ".part")
        self.job = json.loads(json.dumps({"format_version": FORMAT_VERSION, **job}))
        self.restart = restart
        self.items, self.todo = items, []
        self.failures: dict[str, str] = {}
        self._index = store.Journal(self.folder / "index.jsonl")
        self._records: dict[str, dict[str, Any]] = {}  # whole results, by name
        self._stamps: dict[str, list[int] | None] = {}  # of the files to do

    def __enter__(self) -> "ResultFolder":
        in_use = (
            f"{self.folder} is in use: another process is writing {self.output}; wait "
            "for it or choose another output"
        )
        with ExitStack() as stack:
            stack.enter_context(store.lock(self.folder / "lock", in_use))
            self._recover()
            for item in self.items:
                stamp = _stamp(item.path)
                record = self._records.get(item.name, {})
                if (record.get("path"), record.get("stamp")) != (item.path, stamp):
                    self._records.pop(item.name, None)
                    self._stamps[item.name] = stamp
                    self.todo.append(item)
            self._data = stack.enter_context(open(self.folder / "data.bin", "ab"))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        # On a full disk even closing fails; what the index names is whole all the same.
        with suppress(OSError):
            self._index.close()
        with suppress(OSError):
            self._stack.close()
        if not self._records:
            shutil.rmtree(self.folder, ignore_errors=True)

    def __len__(self) -> int:
        return len(self._records)

    def add(self, item: AudioInput, result: FileResult) -> None:
        """Keep the result of one of `todo`."""
        arrays = [
            np.ascontiguousarray(result.starts, TIMES),
            np.ascontiguousarray(result.ends, TIMES),
            np.ascontiguousarray(result.values, VALUES),
        ]
        record = {
            "name": item.name,
            "path": item.path,
            "stamp": self._stamps.pop(item.name),
            "offset": self._data.tell(),
            "shape": list(arrays[2].shape),
            "crc": _checksum(arrays),
        }
        with self._named():
            for array in arrays:
                self._data.write(array.tobytes())
            self._data.flush()
            self._index.append(record)
        self._records[item.name] = record

    def rows(self, items: Sequence[AudioInput]) -> StoredRows:
        """The results of those files that have one, in this order."""
        names = [item.name for item in items if item.name in self._records]
        places = [_place(self._records[name]) for name in names]
        return StoredRows(self.folder / "data.bin", names, places)

    def discard(self) -> None:
        """Forget everything: the output is whole, and all files are in it."""
        self._records.clear()

    def _recover(self) -> None:
        """Take over what is there, or begin with nothing."""
        index, data = self.folder / "index.jsonl", self.folder / "data.bin"
        records = [] if self.restart else [record for _, record in self._index]
        if records:
            old = json.loads((self.folder / "job.json").read_text(encoding="utf-8"))
            if old != self.job:
                raise ValueError(
                    f"{self.folder} holds results of other options "
                    f"({_changes(old, self.job)}): give those to continue, --restart "
                    "to begin anew, or another output"
                )
        else:
            index.unlink(missing_ok=True)
            data.unlink(missing_ok=True)
            with self._named():
                store.write_json(self.folder / "job.json", self.job)
        if data.exists():
            with open(data, "rb") as file:
                for record in records:  # of two of a file the later one counts
                    if _checksum(_read_arrays(file, *_place(record))) == record["crc"]:
                        self._records[record["name"]] = record

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Name the folder in the error of a full disk."""
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.folder)) from error


def _place(record: Mapping[str, Any]) -> tuple[int, tuple[int, ...]]:
    """Where a result's arrays begin, and the shape of its values."""
    return record["offset"], tuple(record["shape"])


def _read_arrays(
    data: IO[bytes], offset: int, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Starts, ends and values of a result; shorter ones where the data end early."""
    data.seek(offset)
    size = math.prod(shape)
    starts = np.fromfile(data, TIMES, shape[0])
    ends = np.fromfile(data, TIMES, shape[0])
    values = np.fromfile(data, VALUES, size)
    return starts, ends, values.reshape(shape) if len(values) == size else values


def _checksum(arrays: Sequence[np.ndarray]) -> int:
    """CRC-32 over the bytes of the arrays."""
    crc = 0
    for array in arrays:
        crc = zlib.crc32(array.tobytes(), crc)
    return crc


def _stamp(path: str) -> list[int] | None:
    """Size and time of change of a file; None if it is not there."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """What differs between two records; of a checksum the beginning is enough."""

    def brief(value: Any) -> str:
        text = str(value)
        return text if len(text) <= 16 else f"{text[:12]}..."

    return ", ".join(
        f"{key}: {brief(old.get(key))} there, {brief(new.get(key))} now"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    )
