"""Many files through a job: read ahead, batched by length, results in order."""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from espnet2_sslam.inference.jobs import Done
from espnet2_sslam.inference.reader import Reader, ReadFile
from espnet2_sslam.inference.result import FileResult
from espnet2_sslam.inference.windows import Piece
from espnet2_sslam.units import SAMPLE_RATE

LOOK_AHEAD = 4  # batches that are gathered and sorted by length
MAX_PADDING = 0.08  # of the samples of a batch
MAX_FILES = 4096  # that wait for their results


class _Item(NamedTuple):
    """A piece in the queue, its place among its file's, and its cost."""

    file: "_Pending"
    place: int
    piece: Piece
    cost: int


class _Pending:
    """A file with pieces that are not computed yet."""

    def __init__(self, file: ReadFile):
        self.file = file
        self.done: list[Done | None] = []
        self.missing = 0
        self.read = False

    def is_complete(self) -> bool:
        return self.read and (self.missing == 0 or self.file.error is not None)


def run_job(
    job: Any,
    sources: Iterable[Any],
    *,
    rate: float | None = None,
    batch_seconds: float,
    num_threads: int,
) -> Iterator[FileResult]:
    """Results of files in their order, each once; closing the iterator ends it all.

    Args:
        job: See jobs.py.
        sources: See `sources.source_blocks`.
        rate: Of arrays without a rate of their own.
        batch_seconds: Audio per batch, padding included (a single piece may be longer).
        num_threads: Files read at the same time.
    """
    limit = int(batch_seconds * SAMPLE_RATE)
    reader = Reader(
        sources,
        job.layout.pieces,
        rate=rate,
        num_threads=num_threads,
        max_samples=LOOK_AHEAD * limit,
    )
    files: deque = deque()  # of _Pending, in order
    queue: list[_Item] = []
    gathered = 0
    try:
        for file, piece in reader:
            if not files or files[-1].file is not file:
                files.append(_Pending(file))
            pending = files[-1]
            if piece is None:
                pending.read = True
            else:
                cost = job.backbone.cost(len(piece.samples))
                queue.append(_Item(pending, len(pending.done), piece, cost))
                pending.done.append(None)
                pending.missing += 1
                gathered += cost
            if gathered >= LOOK_AHEAD * limit or len(files) > MAX_FILES:
                for batch in make_batches(queue, limit):
                    _run_batch(job, batch)
                    yield from _complete(job, files)
                queue, gathered = [], 0
            yield from _complete(job, files)
        for batch in make_batches(queue, limit):
            _run_batch(job, batch)
            yield from _complete(job, files)
        if reader.failure is not None:
            raise reader.failure
    finally:
        reader.close()


def make_batches(items: list[_Item], limit: int) -> Iterator[list[_Item]]:
    """Batches of similar cost, the longest first, with little padding.

    Args:
        items: With a `cost` each.
        limit: Bound of the batch size times its longest cost.
    """
    batch: list[_Item] = []
    real = 0
    for item in sorted(items, key=lambda item: -item.cost):
        if batch:
            padded = (len(batch) + 1) * batch[0].cost
            too_long = padded > limit
            if too_long or padded - real - item.cost > MAX_PADDING * padded:
                yield batch
                batch, real = [], 0
        batch.append(item)
        real += item.cost
    if batch:
        yield batch


def _run_batch(job: Any, batch: list[_Item]) -> None:
    """Compute the pieces of a batch, but for those of files that failed meanwhile."""
    batch = [item for item in batch if item.file.file.error is None]
    if not batch:
        return
    with torch.inference_mode():
        values = job.run([item.piece.samples for item in batch])
    for item, value in zip(batch, values):
        item.file.done[item.place] = Done(item.piece.row, item.piece.start, value)
        item.file.missing -= 1


def _complete(job: Any, files: deque) -> Iterator[FileResult]:
    """The results of the first files, as far as they are complete."""
    while files and files[0].is_complete():
        pending = files.popleft()
        file: ReadFile = pending.file
        if file.error is not None:
            yield FileResult(file.index, file.name, file.error)
            continue
        with torch.inference_mode():
            starts, ends, values = job.finish(pending.done, file.total)
        arrays: dict[str, np.ndarray] = dict(starts=starts, ends=ends, values=values)
        duration = file.total / SAMPLE_RATE
        yield FileResult(file.index, file.name, None, **arrays, duration=duration)


def reader_threads(device: torch.device) -> int:
    """Files to read at the same time: few beside a busy CPU, more for a GPU."""
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    return max(2, min(16, cores // 8 if device.type == "cpu" else cores))
