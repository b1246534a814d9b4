"""Log-mel spectrogram of a recording of any length, for a picture.

Shapes: K columns.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from espnet2_sslam.audio import read_blocks
from espnet2_sslam.features import kaldi_fbank
from espnet2_sslam.units import FRAME_LENGTH, FRAME_SHIFT, NUM_MEL_BINS, SAMPLE_RATE

MAX_COLUMNS = 2_000  # more than a picture has pixels
DECIBEL = 10 / np.log(10)  # of the natural logarithm of a power
DYNAMIC_RANGE = 80.0  # dB that are drawn below the loudest point
SILENCE = float(torch.finfo(torch.float32).eps)  # least power of a mel band


class Spectrogram(NamedTuple):
    """Power of the mel bands over time (128, K) in dB; seconds of its columns."""

    level: np.ndarray
    edges: np.ndarray  # (K + 1,)


def read_spectrogram(path: str | Path) -> Spectrogram:
    """Log-mel spectrogram of an audio file of any length, in dB below its maximum.

    Long recordings are drawn with fewer columns, each the mean power of its frames.

    Raises:
        AudioError: See `read_blocks`.
    """
    columns, frames, samples = _Columns(), 0, 0
    rest = np.zeros(0, np.float32)
    for block in read_blocks(path):
        samples += len(block)
        wave = np.concatenate([rest, block])
        count = (len(wave) - FRAME_LENGTH) // FRAME_SHIFT + 1
        if count < 1:
            rest = wave
            continue
        rest = wave[count * FRAME_SHIFT :]
        fbank, _ = kaldi_fbank(torch.from_numpy(wave)[None])
        columns.add(fbank[0, :count].double().exp().numpy())
        frames += count
    power = columns.means()
    loudest = power.max()
    if loudest < 4 * SILENCE:  # nothing but silence: dark, not a maximum
        loudest = SILENCE * 10 ** (DYNAMIC_RANGE / 10)
    level = DECIBEL * np.log(power.T / loudest)
    width = columns.size * FRAME_SHIFT / SAMPLE_RATE
    edges = np.arange(len(power) + 1) * width
    edges[-1] = samples / SAMPLE_RATE
    return Spectrogram(level, edges)


class _Columns:
    """Means of ever more frames per column, so that there are never too many."""

    def __init__(self):
        self.size = 1  # frames of a column
        self._sums = np.zeros((0, NUM_MEL_BINS))
        self._counts = np.zeros(0)

    def add(self, frames: np.ndarray) -> None:
        """Append frames (n, 128)."""
        if len(self._counts) and self._counts[-1] < self.size:  # fill the last one up
            space = int(self.size - self._counts[-1])
            self._sums[-1] += frames[:space].sum(0)
            self._counts[-1] += len(frames[:space])
            frames = frames[space:]
        sums, counts = _grouped(frames, np.ones(len(frames)), self.size)
        self._sums = np.concatenate([self._sums, sums])
        self._counts = np.concatenate([self._counts, counts])
        while len(self._counts) > MAX_COLUMNS:
            self.size *= 2
            self._sums, self._counts = _grouped(self._sums, self._counts, 2)

    def means(self) -> np.ndarray:
        """The columns (K, 128)."""
        return self._sums / self._counts[:, None]


def _grouped(sums: np.ndarray, counts: np.ndarray, size: int):
    """Sums and counts of `size` neighbours each."""
    if len(counts) == 0:
        return sums, counts
    first = np.arange(0, len(counts), size)
    return np.add.reduceat(sums, first), np.add.reduceat(counts, first)
