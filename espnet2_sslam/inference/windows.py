"""How a recording is cut: pieces for the encoder, and the rows that come of them.

A layout reads blocks of samples once, with the memory of one piece, and yields pieces:
each is one pass of the encoder and belongs to a row. `span` gives a row's beginning and
end. All numbers are samples at 16 kHz.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from espnet2_sslam.units import FRAME_LENGTH, FRAME_SHIFT, PATCH_SIZE, SAMPLE_RATE

STEP = PATCH_SIZE * FRAME_SHIFT  # samples of a time patch: 160 ms
OVERHANG = FRAME_LENGTH - FRAME_SHIFT  # the last frame reaches this far beyond


def pass_samples(frames: int) -> int:
    """Samples that give exactly `frames` frames."""
    return frames * FRAME_SHIFT + OVERHANG


class Piece(NamedTuple):
    """Samples of one pass; the row they belong to; where in the file they begin."""

    samples: np.ndarray
    row: int
    start: int


class Window(NamedTuple):
    """Samples from `start` on; the file's length if its end is known by now."""

    samples: np.ndarray
    start: int
    total: int | None


def cut_windows(
    blocks: Iterable[np.ndarray], starts: Iterable[int], size: int
) -> Iterator[Window]:
    """Windows of `size` samples at ascending starts, until a start is beyond the end.

    Windows that reach over an end of the recording are shorter. `total` is known for
    every window that touches the end of the recording.
    """
    blocks = iter(blocks)
    buffer, first, ended = np.zeros(0, np.float32), 0, False
    for start in starts:
        while not ended and first + len(buffer) <= start + size:
            block = next(blocks, None)
            if block is None:
                ended = True
                break
            used = min(max(start - first, 0), len(buffer))
            buffer, first = np.concatenate([buffer[used:], block]), first + used
        total = first + len(buffer) if ended else None
        if ended and start >= total:
            return
        samples = buffer[max(start - first, 0) : start + size - first].copy()
        yield Window(samples, start, total)


class WholeClip:
    """The whole recording is one row, in passes as the encoder chunks it.

    Args:
        frames: Frames of a pass.
        first_only: A model of fixed clip length: no more than the first pass counts.
    """

    def __init__(self, frames: int, first_only: bool = False):
        self.frames, self.first_only = frames, first_only

    def pieces(self, blocks: Iterable[np.ndarray]) -> Iterator[Piece]:
        """One piece per pass; they overlap by what frames need beyond their shift."""
        hop = self.frames * FRAME_SHIFT
        starts = range(0, hop if self.first_only else 1 << 62, hop)
        for window in cut_windows(blocks, starts, pass_samples(self.frames)):
            if len(window.samples) >= FRAME_LENGTH:
                yield Piece(window.samples, 0, window.start)

    def span(self, row: int, total: int) -> tuple[int, int]:
        """Beginning and end of a row."""
        return 0, self.frames * FRAME_SHIFT if self.cuts(total) else total

    def cuts(self, total: int) -> bool:
        """Whether a recording of `total` samples is longer than what counts of it."""
        return self.first_only and total >= pass_samples(self.frames) + FRAME_SHIFT


class Chunks:
    """A row per window of `size` samples every `hop` samples.

    The last window may be shorter (not below 25 ms); there is none that begins where
    an earlier one has reached the end already.

    Args:
        size, hop: Samples; a hop above the size leaves gaps.
        frames, first_only: See `WholeClip`.
    """

    def __init__(self, size: int, hop: int, frames: int, first_only: bool = False):
        self.size, self.hop = size, hop
        self.clip = WholeClip(frames, first_only)

    def pieces(self, blocks: Iterable[np.ndarray]) -> Iterator[Piece]:
        """The passes of each window."""
        starts = range(0, 1 << 62, self.hop)
        for row, window in enumerate(cut_windows(blocks, starts, self.size)):
            for piece in self.clip.pieces([window.samples]):
                yield Piece(piece.samples, row, window.start + piece.start)
            if window.total is not None and window.start + self.size >= window.total:
                return

    def span(self, row: int, total: int) -> tuple[int, int]:
        """Beginning and end of a row."""
        start = row * self.hop
        end = min(start + self.size, total)
        return start, start + self.clip.span(0, end - start)[1]

    def cuts(self, total: int) -> bool:
        """Whether windows of a recording are longer than what counts of them."""
        return self.clip.cuts(min(self.size, total))


class Steps:
    """Rows of 160 ms / `parts`, each in the middle of what is read for it.

    Args:
        parts: How many rows share a time patch of 160 ms.
    """

    def __init__(self, parts: int):
        self.parts = parts

    def rows(self, total: int) -> int:
        """Number of rows that cover the frames of `total` samples."""
        frames = (total - OVERHANG) // FRAME_SHIFT
        return -(-frames * self.parts // PATCH_SIZE)

    def span(self, row: int, total: int) -> tuple[float, float]:
        """Beginning and end of a row; the last one ends with the recording."""
        end = (row + 1) * STEP / self.parts
        return row * STEP / self.parts, total if row + 1 == self.rows(total) else end

    def cuts(self, total: int) -> bool:
        """Everything counts."""
        return False


class CentredWindows(Steps):
    """A window of `size` samples around the middle of every row, scored as a clip.

    At the ends of the recording the windows are shorter.
    """

    def __init__(self, size: int, parts: int):
        super().__init__(parts)
        self.size = size

    def pieces(self, blocks: Iterable[np.ndarray]) -> Iterator[Piece]:
        """One piece per row."""
        for row, window in enumerate(cut_windows(blocks, self._starts(), self.size)):
            if window.total is not None and row >= self.rows(window.total):
                return
            yield Piece(window.samples, row, window.start)

    def _starts(self) -> Iterator[int]:
        row = 0
        while True:
            yield round((row + 0.5) * STEP / self.parts - self.size / 2)
            row += 1


class ShiftedPasses(Steps):
    """Passes over the recording, shifted against each other by a row's length.

    Pass j gives the rows j, j + parts, ...; the time patch of a row lies around the
    row's middle. Long recordings are read in chunks of `frames` frames that share
    `context` time patches on each side with their neighbours.

    A piece's `row` is the first row taken of it, after `skip(row)` time patches.
    Its last `context` rows give way to those of the next chunk, where there is one.
    """

    def __init__(self, frames: int, context: int, parts: int):
        super().__init__(parts)
        self.frames, self.context = frames, context
        self.kept = frames // PATCH_SIZE - 2 * context  # time patches of a middle chunk

    def pieces(self, blocks: Iterable[np.ndarray]) -> Iterator[Piece]:
        """The chunks of all passes, by their beginning."""
        ended = set()
        windows = cut_windows(blocks, self._starts(), pass_samples(self.frames))
        for number, window in enumerate(windows):
            chunk, shift = divmod(number, self.parts)
            if shift in ended:
                continue
            stop = window.start + pass_samples(self.frames)
            if window.total is not None and stop >= window.total:
                ended.add(shift)
            samples = np.pad(window.samples, (max(0, -window.start), 0))
            first = chunk * self.kept + (self.context if chunk else 0)
            row = first * self.parts + shift
            if window.total is None or row < self.rows(window.total):
                yield Piece(samples, row, window.start)
            if len(ended) == self.parts:
                return

    def skip(self, row: int) -> int:
        """Time patches of a piece before its first row."""
        return 0 if row < self.parts else self.context

    def _starts(self) -> Iterator[int]:
        chunk = 0
        while True:
            for shift in range(self.parts):
                offset = (shift + 0.5) * STEP / self.parts - STEP / 2
                yield chunk * self.kept * STEP + round(offset)
            chunk += 1


def seconds(samples) -> np.ndarray:
    """Samples as seconds, float64."""
    return np.asarray(samples, np.float64) / SAMPLE_RATE
