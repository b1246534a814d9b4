"""Many files through a job: read ahead, batched by length, results in order."""

import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from espnet2_sslam.audio import AudioError, source_blocks, source_name
from espnet2_sslam.inference.jobs import Done, Job, Layout, Piece
from espnet2_sslam.units import SAMPLE_RATE

LOOK_AHEAD = 4  # batches that are gathered and sorted by length
MAX_PADDING = 0.08  # of the samples of a batch
MAX_FILES = 4096  # that wait for their results
MAX_FILES_AHEAD = 1024  # read or failed, and not yet taken


@dataclass(frozen=True)
class FileResult:
    """The rows of one file, or the reason why there are none.

    W rows (clips, windows or time steps), D channels, L layers, C classes.

    Args:
        index: Place of the file in the list that was given, from 0.
        name: Its path, or what stands for it ("audio 3" for an array).
        error: One line with the reason if the file cannot be used; then the arrays
            are None.
        starts, ends: Seconds at which each row begins and ends (W,).
        values: Embeddings (W, D), with layer="all" (W, L, D), or scores in 0..1
            (W, C); float32.
        duration: Seconds of audio in the file.
    """

    index: int
    name: str
    error: str | None = None
    starts: np.ndarray = None  # type: ignore[assignment]  # None beside an error
    ends: np.ndarray = None  # type: ignore[assignment]
    values: np.ndarray = None  # type: ignore[assignment]
    duration: float | None = None

    @property
    def problem(self) -> str | None:
        """Why the result cannot be used: the error, or values that are not finite."""
        if self.values is not None and not np.isfinite(self.values).all():
            return (
                "not finite: the model gives NaN or infinity, see --dtype and the model"
            )
        return self.error


class Closed(Exception):
    """The reading was given up while a thread was at work."""


class OpenFile:
    """A file that is read part by part, and what is computed of it."""

    def __init__(self, index: int, source: Any, rate: float | None, layout: Layout):
        self.index, self.name = index, source_name(source, index)
        self.total = 0  # samples
        self.error: str | None = None  # one line: the file cannot be used
        self.failure: BaseException | None = None  # a mistake of ours
        self.finished = self.closed = False
        self.future: Future[list[Piece]]
        self.computed: list[Done | None] = []  # a place per piece
        self.missing = 0
        self._pieces = self._read(source, rate, layout)

    def advance(self, quota: int) -> list[Piece]:
        """Read on until there are `quota` samples of pieces, or the file ends."""
        pieces, samples = [], 0
        try:
            for piece in self._pieces:
                pieces.append(piece)
                samples += len(piece.samples)
                if samples >= quota:
                    return pieces
        except Closed:
            pass
        except AudioError as error:
            self.error = " ".join(error.reason.split())
        except (OSError, ValueError) as error:
            self.error = f"unreadable: {' '.join(str(error).split())}"
        except BaseException as error:
            self.failure = error
        self.finished = True
        return pieces

    def _read(self, source: Any, rate: float | None, layout: Layout) -> Iterator[Piece]:
        def counted() -> Iterator[np.ndarray]:
            for block in source_blocks(source, self.name, rate):
                if self.closed:
                    raise Closed
                self.total += len(block)
                yield block

        blocks = counted()
        yield from layout.pieces(blocks)
        for _ in blocks:  # what the layout does not need must be sound as well
            pass


class ReadAhead:
    """Pieces of files in the files' order, read by threads ahead of the model.

    A thread reads one part of a file at a time and never waits, so that nothing can
    lock up, however long the files are: a file's next part is read when its last one
    is taken, and a new file is begun while there is room.

    Args:
        sources: Audio, see `source_blocks`; the next one is taken when there is room.
        layout: Cuts them.
        rate: Of arrays without a rate of their own.
        num_threads: Parts that are read at the same time.
        max_samples: Bound of the samples that wait for the model (and as much again
            in the threads' hands).
    """

    def __init__(
        self,
        sources: Iterable[Any],
        layout: Layout,
        rate: float | None,
        num_threads: int,
        max_samples: int,
    ):
        self._sources, self._layout, self._rate = iter(sources), layout, rate
        self._num_threads, self._max_samples = num_threads, max_samples
        self._quota = max(1, max_samples // num_threads)
        self._pool = ThreadPoolExecutor(num_threads, "sslam-reader")
        self._lock = threading.RLock()  # `_read` may run in the thread that submits
        self._files: deque[OpenFile] = deque()  # begun and not taken to the end
        self._reading = self._waiting = self._count = 0  # parts, samples, files
        self._ended = False  # nothing new is begun
        self._beginning = False
        self.failure: Exception | None = None  # what ended `sources` before its end

    def __iter__(self) -> Iterator[tuple[OpenFile, Piece | None]]:
        """(file, piece) for each piece, and (file, None) where a file is finished."""
        self._begin_more()
        while self._files:
            with self._lock:
                file = self._files[0]
                future = file.future
            pieces = future.result()
            with self._lock:
                finished = file.finished
                self._waiting -= sum(len(piece.samples) for piece in pieces)
                if finished:
                    self._files.popleft()
                else:  # at once, so that it is read while the model works
                    self._submit(file)
                self._begin_more()
            if file.failure is not None:
                raise file.failure
            for piece in pieces:
                yield file, piece
            if finished:
                yield file, None

    def close(self) -> None:
        """Stop the threads; what is read by then is thrown away."""
        with self._lock:
            self._ended = True
            for file in self._files:
                file.closed = True
        self._pool.shutdown(cancel_futures=True)

    def _begin_more(self) -> None:
        """Begin files while there are free threads and room, and one in any case."""
        with self._lock:
            if self._beginning:  # in the loop below: a part was read at once
                return
            self._beginning = True
            while not self._ended and (self._has_room() or not self._files):
                try:
                    source = next(self._sources)
                except StopIteration:
                    self._ended = True
                except Exception as error:  # for when the files before are out
                    self._ended, self.failure = True, error
                else:
                    file = OpenFile(self._count, source, self._rate, self._layout)
                    self._count += 1
                    self._files.append(file)
                    self._submit(file)
            self._beginning = False

    def _has_room(self) -> bool:
        return (
            self._reading < self._num_threads
            and self._waiting < self._max_samples
            and len(self._files) < MAX_FILES_AHEAD
        )

    def _submit(self, file: OpenFile) -> None:
        """Read the next part of a file."""
        try:
            file.future = self._pool.submit(file.advance, self._quota)
        except RuntimeError:  # the interpreter ends with an iterator still open
            self._ended = True
            return
        self._reading += 1
        file.future.add_done_callback(self._read)

    def _read(self, future: Future[list[Piece]]) -> None:
        """Count a part that was read; the thread that has read it begins more."""
        with self._lock:
            self._reading -= 1
            if not future.cancelled():
                self._waiting += sum(len(piece.samples) for piece in future.result())
                self._begin_more()


class Item(NamedTuple):
    """A piece in the queue, its place among its file's, and its cost."""

    file: OpenFile
    place: int
    piece: Piece
    cost: int


def stream(
    job: Job,
    sources: Iterable[Any],
    *,
    rate: float | None,
    batch_seconds: float,
    num_threads: int,
) -> Iterator[FileResult]:
    """Results of files in their order, each once; closing the iterator ends it all.

    Args:
        job: What is computed.
        sources: Audio, see `audio.source_blocks`.
        rate: Of arrays without a rate of their own.
        batch_seconds: Audio per batch, padding included (a single piece may be longer).
        num_threads: Files read at the same time.
    """
    limit = int(batch_seconds * SAMPLE_RATE)
    reader = ReadAhead(sources, job.layout, rate, num_threads, LOOK_AHEAD * limit)
    files: deque[OpenFile] = deque()
    queue: list[Item] = []
    gathered = 0
    try:
        for file, piece in reader:
            if not files or files[-1] is not file:
                files.append(file)
            if piece is not None:
                cost = job.backbone.cost(len(piece.samples))
                queue.append(Item(file, len(file.computed), piece, cost))
                file.computed.append(None)
                file.missing += 1
                gathered += cost
            if gathered >= LOOK_AHEAD * limit or len(files) > MAX_FILES:
                for batch in make_batches(queue, limit):
                    _run_batch(job, batch)
                    yield from _complete(job, files, file, piece is None)
                queue, gathered = [], 0
            yield from _complete(job, files, file, piece is None)
        for batch in make_batches(queue, limit):
            _run_batch(job, batch)
            yield from _complete(job, files, None, True)
        if reader.failure is not None:
            raise reader.failure
    finally:
        reader.close()


def make_batches(items: list[Item], limit: int) -> Iterator[list[Item]]:
    """Batches of similar cost, the longest first, with little padding.

    Args:
        items: Pieces.
        limit: Bound of the batch size times its longest cost.
    """
    batch: list[Item] = []
    real = 0
    for item in sorted(items, key=lambda item: -item.cost):
        if batch:
            padded = (len(batch) + 1) * batch[0].cost
            if padded > limit or padded - real - item.cost > MAX_PADDING * padded:
                yield batch
                batch, real = [], 0
        batch.append(item)
        real += item.cost
    if batch:
        yield batch


def _run_batch(job: Job, batch: list[Item]) -> None:
    """Compute the pieces of a batch, but for those of files that failed meanwhile."""
    batch = [item for item in batch if item.file.error is None]
    if not batch:
        return
    with torch.inference_mode():
        values = job.run([item.piece.samples for item in batch])
    for item, value in zip(batch, values, strict=True):
        item.file.computed[item.place] = Done(item.piece.row, item.piece.start, value)
        item.file.missing -= 1


def _complete(
    job: Job, files: deque[OpenFile], current: OpenFile | None, ended: bool
) -> Iterator[FileResult]:
    """The results of the first files, as far as they are complete.

    Args:
        files: Those without a result yet.
        current: The file whose pieces are being taken; what its thread has read
            already may not be in its `computed` yet.
        ended: Whether all of it was taken.
    """
    while files and (files[0] is not current or ended):
        file = files[0]
        if file.error is None and file.missing:
            return
        files.popleft()
        if file.error is not None:
            yield FileResult(file.index, file.name, file.error)
            continue
        with torch.inference_mode():
            parts = [part for part in file.computed if part is not None]
            starts, ends, values = job.finish(parts, file.total)
        duration = file.total / SAMPLE_RATE
        yield FileResult(file.index, file.name, None, starts, ends, values, duration)


def reader_threads(device: torch.device) -> int:
    """Files to read at the same time: few beside a busy CPU, more for a GPU."""
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    return max(2, min(16, cores // 8 if device.type == "cpu" else cores))
