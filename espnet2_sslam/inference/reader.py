"""Files are read and cut by threads, ahead of the model, within a bound of samples."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from espnet2_sslam.audio import AudioError
from espnet2_sslam.inference.sources import source_blocks, source_name
from espnet2_sslam.inference.windows import Piece

MAX_FILES_AHEAD = 1024  # read or failed, and not yet taken
JOIN_SECONDS = 5.0  # for a thread to finish the block it is decoding


class ReadFile:
    """A file on its way through the reader."""

    def __init__(self, index: int, source: Any):
        self.index, self.source = index, source
        self.name = source_name(source, index)
        self.pieces: deque = deque()
        self.finished = False
        self.total = 0  # samples
        self.error: str | None = None  # one line: the file cannot be used
        self.failure: BaseException | None = None  # a mistake of ours


class Closed(Exception):
    """The reader was closed while a thread was at work."""


class Reader:
    """Pieces of many files in the files' order, read by several threads.

    Args:
        sources: See `sources.source_blocks`; a thread takes the next one only when
            there is room for it.
        cut: Blocks of samples -> pieces, as of a layout.
        rate: Of arrays without a rate of their own.
        num_threads: Files read at the same time.
        max_samples: Bound of the samples that wait for the model (and at least one
            piece of the file that is next).

    `failure` is what ended `sources` before its end, if anything.
    """

    def __init__(
        self,
        sources: Iterable[Any],
        cut: Callable[[Iterable], Iterator[Piece]],
        *,
        rate: float | None,
        num_threads: int,
        max_samples: int,
    ):
        self._sources, self._cut, self._rate = iter(sources), cut, rate
        self._max_samples = max_samples
        self._changed = threading.Condition()
        self._turn = threading.Lock()  # one thread at a time takes a source
        self._files: deque = deque()  # taken by a thread, in order
        self._waiting = 0  # samples of all pieces in `_files`
        self._count = 0
        self._exhausted = self._closed = False
        self.failure: BaseException | None = None
        self._threads: list[threading.Thread] = [
            threading.Thread(target=self._work, name=f"sslam-reader-{n}", daemon=True)
            for n in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()

    def __iter__(self) -> Iterator[tuple[ReadFile, Piece | None]]:
        """(file, piece) for each piece, and (file, None) where a file is finished."""
        while True:
            with self._changed:
                self._changed.wait_for(self._ready)
                if not self._files:
                    return
                file, piece = self._files[0], None
                if file.pieces:
                    piece = file.pieces.popleft()
                    self._waiting -= len(piece.samples)
                else:
                    self._files.popleft()
                self._changed.notify_all()
            if piece is None and file.failure is not None:
                raise file.failure
            yield file, piece

    def close(self) -> None:
        """Stop the threads; what is read by then is thrown away."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(JOIN_SECONDS)

    def _ready(self) -> bool:
        if not self._files:
            return self._exhausted
        return bool(self._files[0].pieces) or self._files[0].finished

    def _work(self) -> None:
        """A thread: file after file."""
        while (file := self._next_file()) is not None:
            try:
                self._read(file)
            except Closed:
                return
            except AudioError as error:
                file.error = " ".join(error.reason.split())
            except (OSError, ValueError) as error:
                file.error = f"unreadable: {' '.join(str(error).split())}"
            except BaseException as error:
                file.failure = error
            with self._changed:
                file.finished = True
                self._changed.notify_all()

    def _next_file(self) -> ReadFile | None:
        with self._turn:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._closed or self._exhausted or self._has_room()
                )
                if self._closed or self._exhausted:
                    return None
            file, failure = None, None
            try:
                file = ReadFile(self._count, next(self._sources))
            except StopIteration:
                pass
            except BaseException as error:
                failure = error
            with self._changed:
                if file is None:
                    self._exhausted, self.failure = True, failure
                else:
                    self._count += 1
                    self._files.append(file)
                self._changed.notify_all()
            return file

    def _has_room(self) -> bool:
        room = self._waiting < self._max_samples
        return not self._files or room and len(self._files) < MAX_FILES_AHEAD

    def _read(self, file: ReadFile) -> None:
        """Read one file to its end and hand over its pieces."""

        def counted():
            for block in source_blocks(file.source, file.name, self._rate):
                if self._closed:
                    raise Closed
                file.total += len(block)
                yield block

        blocks = counted()
        for piece in self._cut(blocks):
            self._put(file, piece)
        for _ in blocks:  # what the layout does not need must be sound as well
            pass
        file.source = None

    def _put(self, file: ReadFile, piece: Piece) -> None:
        size = len(piece.samples)
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed
                or self._waiting + size <= self._max_samples
                or file is self._files[0]
                and not file.pieces
            )
            if self._closed:
                raise Closed
            file.pieces.append(piece)
            self._waiting += size
            self._changed.notify_all()
