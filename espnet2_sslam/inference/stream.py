"""Many files through a job: read ahead, batched by length, results in order."""

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from espnet2_sslam.audio import AudioError, source_blocks, source_name
from espnet2_sslam.inference.jobs import Job, Piece
from espnet2_sslam.units import SAMPLE_RATE

LOOK_AHEAD = 4  # batches that are gathered and sorted by length
Item = tuple[int, "OpenFile", int]  # what a piece costs, its file, its place there
BLOCK = 60 * SAMPLE_RATE  # samples of silence at a time
MAX_PADDING = 0.08  # of the samples of a batch
EVEN = 8  # see make_batches
MAX_FILES = 4096  # that wait for their results
MAX_FILES_AHEAD = 1024  # read or failed, and not yet taken


@dataclass(frozen=True)
class Finished:
    """Stands in a list for a file whose result is there already.

    It has its part in the batches, so that all others are computed as in one run: the
    last digits of a result depend on the sizes of its batch.
    """

    num_samples: int


@dataclass(frozen=True)
class First:
    """Stands in a list for a source whose pieces share no batch with those before."""

    source: Any


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
                "not finite: the model gives NaN or infinity, see dtype and the model"
            )
        return self.error


class OpenFile:
    """A file that is read part by part, and what is computed of it.

    `finished`: read to its end; `taken`: all its pieces are with the model.
    """

    def __init__(self, index: int, source: Any, rate: float | None, job: Job):
        self.first = isinstance(source, First)
        source = source.source if isinstance(source, First) else source
        self.index, self.name = index, source_name(source, index)
        self.total = 0  # samples
        self.error: str | None = None  # one line: the file cannot be used
        self.known = isinstance(source, Finished)
        self.finished = self.taken = self.closed = False
        self.part: Future[list[Piece]]  # that is being read
        self.problem: str | None = None  # `error`, as soon as the reader knows it
        self.rows: list[int] = []  # of the pieces
        self.values: list[Any] = []  # of the pieces, until then their samples
        self.missing = 0
        self._resampler = job.backbone.encoder.config.resampler
        self._pieces = job.windows.pieces(self._blocks(source, rate))

    def read(self, quota: int) -> list[Piece]:
        """Read on until there are `quota` samples of pieces, or the file ends."""
        pieces, samples = [], 0
        try:
            for piece in self._pieces:
                pieces.append(piece)
                samples += len(piece.samples)
                if samples >= quota:
                    return pieces
        except AudioError as error:
            self.problem = " ".join(error.reason.split())
        except (OSError, ValueError) as error:
            self.problem = f"unreadable: {' '.join(str(error).split())}"
        self.finished = True
        return pieces

    def _blocks(self, source: Any, rate: float | None) -> Iterator[np.ndarray]:
        blocks: Iterable[np.ndarray]
        if isinstance(source, Finished):  # only its length counts
            blocks = _silence(source.num_samples)
        else:
            blocks = source_blocks(source, self.name, rate, self._resampler)
        for block in blocks:
            if self.closed:  # nobody waits for the rest
                return
            self.total += len(block)
            yield block


class ReadAhead:
    """Pieces of files in the files' order, read by threads ahead of the model.

    A thread reads one part of a file at a time and never waits, so that nothing can
    lock up, however long the files are: a file's next part is read when its last one
    is taken, and a new file is begun while there is room. At most `max_samples` wait
    for the model, and as much again is in the threads' hands.
    """

    def __init__(
        self,
        sources: Iterable[Any],
        job: Job,
        rate: float | None,
        num_threads: int,
        max_samples: int,
    ):
        self._sources, self._job, self._rate = enumerate(sources), job, rate
        self._num_threads, self._max_samples = num_threads, max_samples
        self._pool = ThreadPoolExecutor(num_threads, "sslam-reader")
        self._lock = threading.Lock()
        self._files: deque[OpenFile] = deque()  # begun and not taken to the end
        self._reading = self._waiting = 0  # parts, samples
        self._ended = False  # nothing new is begun
        self.list_error: Exception | None = None  # what ended `sources` too early

    def __iter__(self) -> Iterator[tuple[OpenFile, list[Piece]]]:
        """Each part of each file; the last one of a file sets its `taken`."""
        with self._lock:
            self._begin_files()
        while self._files:
            file = self._files[0]
            pieces = file.part.result()
            with self._lock:
                self._waiting -= _num_samples(pieces)
                if file.finished:
                    self._files.popleft()
                    # here, not when a thread finds it: batches depend on it
                    file.taken, file.error = True, file.problem
                else:  # at once, so that it is read while the model works
                    self._submit(file)
                self._begin_files()
            yield file, pieces

    def close(self, at_exit: Callable[[], bool] = sys.is_finalizing) -> None:
        """Stop the threads; what is read by then is thrown away."""
        if at_exit():  # the threads are gone, and what ends them is, too
            return
        with self._lock:
            self._ended = True
            for file in self._files:
                file.closed = True
        self._pool.shutdown(cancel_futures=True)

    def _begin_files(self) -> None:
        """Begin files while there are free threads and room, and one in any case."""
        while not self._ended:
            room = (
                self._reading < self._num_threads
                and self._waiting < self._max_samples
                and len(self._files) < MAX_FILES_AHEAD
            )
            if self._files and not room:
                return
            try:
                index, source = next(self._sources)
            except StopIteration:
                self._ended = True
            except Exception as error:  # for when the files before are out
                self._ended, self.list_error = True, error
            else:
                file = OpenFile(index, source, self._rate, self._job)
                self._files.append(file)
                self._submit(file)

    def _submit(self, file: OpenFile) -> None:
        """Let a thread read the next part of a file."""
        try:
            file.part = self._pool.submit(self._read_part, file)
            self._reading += 1
        except RuntimeError:  # the interpreter ends with an iterator still open
            self._ended = True

    def _read_part(self, file: OpenFile) -> list[Piece]:
        """In a thread: read a part, and begin more."""
        pieces: list[Piece] = []
        try:
            pieces = file.read(max(1, self._max_samples // self._num_threads))
        finally:
            with self._lock:
                self._reading -= 1
                self._waiting += _num_samples(pieces)
                self._begin_files()
        return pieces


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
        sources: Audio, see `audio.source_blocks`; no result comes of a `Finished`.
        rate: Of arrays without a rate of their own.
        batch_seconds: Audio per batch, padding included (a single piece may be longer).
        num_threads: Files read at the same time.
    """
    limit = int(batch_seconds * SAMPLE_RATE)
    room = LOOK_AHEAD * limit
    files: deque[OpenFile] = deque()  # without a result yet
    running: deque[Callable[[], None]] = deque()  # batches that the device works on
    even = EVEN if job.backbone.bucketed else 1
    with closing(ReadAhead(sources, job, rate, num_threads, room)) as reader:
        for items in _gather(reader, job, files, room):
            for batch in make_batches(items, limit, even):
                running.append(_begin_batch(job, batch))
                if len(running) > job.backbone.ahead:
                    running.popleft()()
                yield from _complete(job, files)
        for finish in running:
            finish()
        yield from _complete(job, files)
        if reader.list_error is not None:
            raise reader.list_error


def _gather(
    reader: ReadAhead, job: Job, files: deque[OpenFile], room: int
) -> Iterator[list[Item]]:
    """Pieces to compute together; their files go to the end of `files`."""
    items: list[Item] = []
    gathered = 0
    for file, pieces in reader:
        if not files or files[-1] is not file:
            if file.first and items:
                yield items
                items, gathered = [], 0
            files.append(file)
        for piece in pieces:
            cost = job.backbone.cost(len(piece.samples))
            items.append((cost, file, len(file.rows)))
            gathered += cost
            file.rows.append(piece.row)
            file.values.append(piece.samples)
            file.missing += 1
        if gathered >= room or len(files) > MAX_FILES:
            yield items
            items, gathered = [], 0
    yield items


def make_batches(items: list[Item], limit: int, even: int = 1) -> Iterator[list[Item]]:
    """Batches of similar cost, the longest first, with little padding.

    Without items there is one empty batch.

    Args:
        items: In any order.
        limit: Bounds the batch size times its longest cost.
        even: Batches of more items than this have a multiple of it, so that there are
            few sizes.
    """
    batch: list[Item] = []
    real = 0
    for item in sorted(items, key=lambda item: -item[0]):
        while batch:
            padded = (len(batch) + 1) * batch[0][0]
            if padded <= limit and padded - real - item[0] <= MAX_PADDING * padded:
                break
            size = len(batch) // even * even or len(batch)
            yield batch[:size]
            batch = batch[size:]
            real = sum(cost for cost, *_ in batch)
        batch.append(item)
        real += item[0]
    size = len(batch) // even * even or len(batch)
    yield batch[:size]
    if size < len(batch):
        yield batch[size:]


def _begin_batch(job: Job, batch: list[Item]) -> Callable[[], None]:
    """Compute the pieces of a batch, but for those of files that failed meanwhile.

    What is returned waits for the values and gives them to their files.
    """
    places = [(file, place) for _, file, place in batch if file.error is None]
    if not places:
        return lambda: None
    pending = None
    if not all(file.known for file, _ in places):
        with torch.inference_mode():
            pending = job.run([file.values[place] for file, place in places])

    def finish() -> None:
        values = pending() if pending else [None] * len(places)
        for (file, place), value in zip(places, values, strict=True):
            file.values[place] = value
            file.missing -= 1

    return finish


def _complete(job: Job, files: deque[OpenFile]) -> Iterator[FileResult]:
    """The results of the first files, as far as they are complete."""
    while files and files[0].taken and (files[0].error or not files[0].missing):
        file = files.popleft()
        if file.known:
            continue
        if file.error is not None:
            yield FileResult(file.index, file.name, file.error)
            continue
        with torch.inference_mode():
            rows = job.finish(file.rows, file.values, file.total)
        yield FileResult(
            file.index, file.name, None, *rows, duration=file.total / SAMPLE_RATE
        )


def _silence(num_samples: int) -> Iterator[np.ndarray]:
    """Blocks of silence."""
    for start in range(0, num_samples, BLOCK):
        yield np.zeros(min(BLOCK, num_samples - start), np.float32)


def _num_samples(pieces: list[Piece]) -> int:
    return sum(len(piece.samples) for piece in pieces)


def reader_threads(device: torch.device) -> int:
    """Files to read at the same time: few beside a busy CPU, more for a GPU."""
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    return max(2, min(16, cores // 8 if device.type == "cpu" else cores))
