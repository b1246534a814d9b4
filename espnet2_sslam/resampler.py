"""Samples at any rate -> samples at 16 kHz, block by block, in bounded memory.

`sinc` is the filter that SSLAM's and EAT's authors use, torchaudio's default: a sinc
cut by a Hann window. It falls slowly around 8 kHz, so that the features of audio at 32,
44.1 or 48 kHz equal theirs only when this very filter made them. `soxr` is steeper: the
two highest mel bins lose up to 3.8 nats, the ten below gain up to 0.7.

torch is not needed: lists of two million clips are formatted without its 650 MiB.
"""

import math
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from espnet2_sslam.units import SAMPLE_RATE

MIN_RATE, MAX_RATE = 1_000, 1_000_000  # Hz; beyond, a header is damaged or means kHz
ZERO_CROSSINGS = 6  # torchaudio's lowpass_filter_width
ROLLOFF = 0.99  # of the lower of both Nyquist frequencies
PHASES = 64  # outputs that share one matrix
TABLE_BYTES = 64 << 20  # matrices beyond are not kept but made again


def resampled(
    blocks: Iterator[np.ndarray], rate: float, resampler: str = "sinc"
) -> Iterator[np.ndarray]:
    """The same audio at 16 kHz.

    Args:
        blocks: Mono float32 samples (n,) at `rate`.
        rate: Hz. A rate that is no whole number is rounded to a fraction of 16 kHz with
            a denominator of at most 16,000, less than 0.3 ppm away.
        resampler: "sinc" or "soxr".

    Yields:
        Blocks (m,), in all ceil(N * 16000 / rate) samples with "sinc".

    Source: torchaudio.functional.resample with its defaults, as used in
        cwx-worst-one/EAT@06c1c34, EAT/data/raw_audio_dataset.py.
    """
    if rate == SAMPLE_RATE:
        yield from blocks
    elif resampler == "soxr":
        yield from _soxr(blocks, rate)
    else:
        yield from _Sinc(rate).run(blocks)


def _soxr(blocks: Iterator[np.ndarray], rate: float) -> Iterator[np.ndarray]:
    try:
        import soxr
    except ImportError:
        raise ValueError(
            "the resampler soxr is not installed: pip install soxr"
        ) from None
    stream = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32")
    for block in blocks:
        yield stream.resample_chunk(np.ascontiguousarray(block))
    yield stream.resample_chunk(np.zeros(0, np.float32), last=True)


class _Sinc:
    """Every `outputs` output samples are products of one window of inputs.

    With the rates' fraction inputs/outputs in lowest terms, the same products come
    again every `inputs` samples. torchaudio keeps them as one table of outputs x
    (window + inputs), gigabytes at 44,101 Hz, mostly zeros; here `PHASES` neighbouring
    outputs share a matrix that holds only the inputs near them.
    """

    def __init__(self, rate: float):
        ratio = Fraction(rate / SAMPLE_RATE).limit_denominator(SAMPLE_RATE)
        # Several periods at a time where one has few outputs.
        periods = -(-PHASES // ratio.denominator)
        self.inputs = ratio.numerator * periods
        self.outputs = ratio.denominator * periods
        self.ratio = ratio
        self.cutoff = min(1.0, float(ratio)) * ROLLOFF / float(ratio)  # per input
        # Inputs on each side of an output that its window covers.
        self.width = math.ceil(ZERO_CROSSINGS / self.cutoff)
        self.starts = range(0, self.outputs, PHASES)
        span = math.ceil(PHASES * ratio) + 2 * self.width + 2
        keep = self.outputs * span * 4 <= TABLE_BYTES
        self.matrices = {start: self._matrix(start) for start in self.starts if keep}

    def _matrix(self, start: int) -> tuple[int, np.ndarray]:
        """First input and weights (inputs, outputs) of the outputs from `start` on."""
        outputs = np.arange(start, min(start + PHASES, self.outputs))
        period, phase = np.divmod(outputs, self.ratio.denominator)
        # torchaudio rounds the phases to float32, which is 1e-5 of a loud sample.
        phase = (phase / self.ratio.denominator).astype(np.float32).astype(np.float64)
        centres = (period + phase) * self.ratio.numerator
        first = int(centres[0]) - self.width
        inputs = np.arange(first, int(centres[-1]) + self.width + 2)
        time = (inputs[:, None] - centres) * self.cutoff
        window = np.cos(np.clip(time / ZERO_CROSSINGS, -1, 1) * (np.pi / 2)) ** 2
        weights = np.sinc(time) * window * self.cutoff
        return first, weights.astype(np.float32)

    def run(self, blocks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """Blocks (m,) of the outputs."""
        margin = self.width + 1
        buffer = np.zeros(margin, np.float32)  # silence before the first sample
        received = given = 0
        for block in blocks:
            received += len(block)
            buffer = np.concatenate([buffer, block])
            windows = (len(buffer) - 2 * margin) // self.inputs
            if windows > 0:
                yield self._apply(buffer, windows)
                given += windows * self.outputs
                buffer = buffer[windows * self.inputs :]
        rest = math.ceil(received / self.ratio) - given
        windows = -(-rest // self.outputs)
        end = np.zeros(windows * self.inputs + 2 * margin - len(buffer), np.float32)
        yield self._apply(np.concatenate([buffer, end]), windows)[:rest]

    def _apply(self, buffer: np.ndarray, windows: int) -> np.ndarray:
        """Outputs of so many windows, the first of which begins at the margin."""
        output = np.empty((windows, self.outputs), np.float32)
        for start in self.starts:
            first, weights = self.matrices.get(start) or self._matrix(start)
            begin = first + self.width + 1
            rows = sliding_window_view(buffer[begin:], len(weights))
            rows = rows[:: self.inputs][:windows]
            output[:, start : start + weights.shape[1]] = rows @ weights
        return output.reshape(-1)
