"""Results of many files, kept on the disk until the output is whole.

A command writes OUTPUT.part/: `job.json` (the options), `data.bin` (arrays one after
the other) and `index.jsonl` (a line per file: which one, where its arrays are, their
checksum). Data go before the line that names them, so a process that is killed at any
moment leaves whole results only; what a crashed machine has mangled is found by its
checksum. The same command continues there. A result belongs to its file by name, path,
size and time of change, never by its position.
"""

import hashlib
import json
import math
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch

from espnet2_sslam import store
from espnet2_sslam.audio import AudioInput
from espnet2_sslam.inference.stream import FileResult, Finished, First
from espnet2_sslam.units import SAMPLE_RATE

FORMAT_VERSION = 2
# A shard has a 64th of the bytes of all files, within these limits: whoever computes it
# is busy for a while, and there are enough of them for many to share in.
SHARD_BYTES = (16 << 20, 256 << 20)
SHARD_FILES = 1024
TIMES, VALUES = np.dtype("<f8"), np.dtype("<f4")


class Rows(NamedTuple):
    """One file's result: starts and ends in seconds (W,), values (W, ...)."""

    name: str
    starts: np.ndarray
    ends: np.ndarray
    values: np.ndarray


class Shard(NamedTuple):
    """A run of the list of files, from the place `first`, that is batched by itself."""

    first: int
    sources: list[str | Finished]

    @property
    def files(self) -> list[tuple[int, str]]:
        """What is to do: places in the shard, and paths."""
        return [(i, s) for i, s in enumerate(self.sources) if isinstance(s, str)]


class StoredRows:
    """Results in the order of the output, read one by one, as often as needed.

    Args:
        path: The file of arrays.
        records: Lines of the index.
    """

    def __init__(self, path: Path, records: list[dict[str, Any]]):
        self._path, self._records = path, records
        self.names = [record["name"] for record in records]
        self.shapes = [tuple(record["shape"]) for record in records]

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Rows]:
        with open(self._path, "rb") as data:
            for record, shape in zip(self._records, self.shapes, strict=True):
                content, width = _read(data, record), shape[0] * TIMES.itemsize
                yield Rows(
                    record["name"],
                    np.frombuffer(content[:width], TIMES),
                    np.frombuffer(content[width : 2 * width], TIMES),
                    np.frombuffer(content[2 * width :], VALUES).reshape(shape),
                )


class ResultFolder:
    """The results of a job so far. Use it in a `with` block.

    Args:
        output: The file that the job makes; the folder lies beside it.
        job: What the results depend on (command, model, options), as JSON.
        items: The files; `todo` are those that have no result yet, or have changed.
        restart: Throw away what another run has left.

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
            records = self._recover()
            self._data = stack.enter_context(open(self.folder / "data.bin", "a+b"))
            for record in records:  # of two of a file the later one counts
                if zlib.crc32(_read(self._data, record)) == record["crc"]:
                    self._records[record["name"]] = record
            for item in self.items:
                stamp = _stamp(item.path)
                record = self._records.get(item.name, {})
                if (record.get("path"), record.get("stamp")) != (item.path, stamp):
                    self._records.pop(item.name, None)
                    self._stamps[item.name] = stamp
                    self.todo.append(item)
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
        values = np.asarray(result.values, VALUES)
        times = [np.asarray(each, TIMES) for each in (result.starts, result.ends)]
        content = b"".join(array.tobytes() for array in (*times, values))
        try:
            record = {
                "name": item.name,
                "path": item.path,
                "stamp": self._stamps.pop(item.name),
                "offset": self._data.seek(0, os.SEEK_END),
                "shape": list(values.shape),
                "samples": round((result.duration or 0) * SAMPLE_RATE),
                "crc": zlib.crc32(content),
            }
            self._data.write(content)
            self._data.flush()
            self._index.append(record)
        except OSError as error:  # a full disk: it does not say where
            raise OSError(error.errno, error.strerror, str(self.folder)) from error
        self._records[item.name] = record

    def shards(self) -> list[Shard]:
        """What to compute: the paths of `todo`, among what stands for the others.

        Where shards end depends on the list and the sizes of its files only.
        """
        sources: list[str | Finished] = []
        sizes = []
        for item in self.items:
            if record := self._records.get(item.name):
                sources.append(Finished(record["samples"]))
                stamp = record["stamp"]
            else:
                sources.append(item.path)
                stamp = self._stamps[item.name]
            sizes.append(stamp[0] if stamp else 0)
        least, most = SHARD_BYTES
        limit, size, cuts = min(max(sum(sizes) // 64, least), most), 0, [0]
        for place, each in enumerate(sizes):
            if size >= limit or place - cuts[-1] >= SHARD_FILES:
                cuts.append(place)
                size = 0
            size += each
        ends = pairwise([*cuts, len(sources)])
        return [Shard(start, sources[start:end]) for start, end in ends]

    def sources(self) -> Iterator[str | Finished | First]:
        """All shards, one after the other."""
        for _, (source, *others) in self.shards():
            yield First(source)
            yield from others

    def rows(self, items: Sequence[AudioInput]) -> StoredRows:
        """The results of those files that have one, in this order."""
        names = [item.name for item in items if item.name in self._records]
        records = [self._records[name] for name in names]
        return StoredRows(self.folder / "data.bin", records)

    def discard(self) -> None:
        """Forget everything: the output is whole, and all files are in it."""
        self._records.clear()

    def _recover(self) -> list[dict[str, Any]]:
        """The records of a stopped run of this job; without any, begin with nothing."""
        path = self.folder / "job.json"
        records = [] if self.restart else [record for _, record in self._index]
        if not records:
            for name in ("index.jsonl", "data.bin"):
                (self.folder / name).unlink(missing_ok=True)
            store.write_json(path, self.job)
        elif (old := json.loads(path.read_text(encoding="utf-8"))) != self.job:
            changes = ", ".join(
                f"{key}: {str(old.get(key))[:16]} there, "
                f"{str(self.job.get(key))[:16]} now"  # of a checksum the beginning
                for key in sorted({*old, *self.job})
                if old.get(key) != self.job.get(key)
            )
            raise ValueError(
                f"{self.folder} holds results of other options ({changes}): give those "
                "to continue, --restart to begin anew, or another output"
            )
        return records


def weights_sha256(model: torch.nn.Module) -> str:
    """What tells the weights of a model from all others."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def _read(data: IO[bytes], record: Mapping[str, Any]) -> bytes:
    """Starts, ends and values of a result; fewer bytes where the data end early."""
    data.seek(record["offset"])
    num_rows, num_values = record["shape"][0], math.prod(record["shape"])
    return data.read(2 * num_rows * TIMES.itemsize + num_values * VALUES.itemsize)


def _stamp(path: str) -> list[int] | None:
    """Size and time of change of a file; None if it is not there."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]
