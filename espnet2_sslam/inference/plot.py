"""The picture of a recording: log-mel spectrogram, and its labels over time above it.

Shapes: T rows of scores, C classes, L labels that are drawn, K columns. matplotlib, of
the extra `plot`, is imported when something is drawn.
"""

import importlib.util
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from espnet2_sslam import store
from espnet2_sslam.audio import source_blocks, source_name
from espnet2_sslam.features import kaldi_fbank
from espnet2_sslam.units import (
    FRAME_LENGTH,
    FRAME_SHIFT,
    LOWEST_FREQUENCY,
    NUM_MEL_BINS,
    SAMPLE_RATE,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURES = (".png", ".svg", ".pdf")
SHORT = 300.0  # seconds up to which a column of labels is a time step
CHUNK = 10.0  # seconds of a window beyond
LABEL_COLUMNS = 500  # fewer than a picture has pixels, so that none is lost
MAX_COLUMNS = 2_000  # of a spectrogram: more than a picture has pixels
DECIBEL = 10 / np.log(10)  # of the natural logarithm of a power
DYNAMIC_RANGE = 80.0  # dB that are drawn below the loudest point
SILENCE = float(torch.finfo(torch.float32).eps)  # least power of a mel band
FREQUENCIES = (125, 250, 500, 1000, 2000, 4000, 8000)  # Hz, with a tick
LABEL_WIDTH = 28  # characters of a line
TIME_STEPS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800)
TIME_STEPS += (3600, 7200, 14400, 43200, 86400)
STYLE: Any = {
    "figure.dpi": 120,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "espnet2_sslam",  # the same picture has the same bytes
}


class Spectrogram(NamedTuple):
    """Power of the mel bands over time (128, K) in dB; seconds of its columns."""

    level: np.ndarray
    edges: np.ndarray  # (K + 1,)


class Timeline(NamedTuple):
    """Labels, their highest scores (L,), and their scores on a grid over time (K, L).

    Columns of the grid without a score are NaN.
    """

    labels: list[str]
    peaks: np.ndarray
    scores: np.ndarray


def check_picture(path: str | Path | None) -> None:
    """Refuse a picture that could not be drawn or written, before work.

    Raises:
        ValueError: matplotlib is not there, or the suffix is another one.
    """
    if path is not None and Path(path).suffix.lower() not in PICTURES:
        raise ValueError(f"{path}: need a picture with suffix {', '.join(PICTURES)}")
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("a picture needs matplotlib: pip install matplotlib")


def read_spectrogram(audio: Any) -> Spectrogram:
    """Log-mel spectrogram of audio of any kind and length, in dB below its maximum.

    Long recordings are drawn with fewer columns, each the mean power of its frames.

    Raises:
        AudioError: See `source_blocks`.
    """
    size, frames, samples = 1, 0, 0  # frames of a column; read so far
    sums = np.zeros((MAX_COLUMNS, NUM_MEL_BINS))
    rest = np.zeros(0, np.float32)
    for block in source_blocks(audio, source_name(audio, 0), None):
        samples += len(block)
        wave = np.concatenate([rest, block])
        count = max(0, (len(wave) - FRAME_LENGTH) // FRAME_SHIFT + 1)
        rest = wave[count * FRAME_SHIFT :]
        if count == 0:
            continue
        fbank, _ = kaldi_fbank(torch.from_numpy(wave)[None])
        while frames + count > size * MAX_COLUMNS:  # two columns become one
            size *= 2
            sums = np.concatenate([sums[::2] + sums[1::2], np.zeros_like(sums[::2])])
        columns = np.arange(frames, frames + count) // size
        np.add.at(sums, columns, fbank[0, :count].double().exp().numpy())
        frames += count
    edges = np.append(np.arange(0, frames, size), frames)
    power = sums[: len(edges) - 1] / np.diff(edges)[:, None]
    loudest = power.max()
    if loudest < 4 * SILENCE:  # nothing but silence: dark, not a maximum
        loudest = SILENCE * 10 ** (DYNAMIC_RANGE / 10)
    times = edges * FRAME_SHIFT / SAMPLE_RATE
    times[-1] = samples / SAMPLE_RATE
    return Spectrogram(DECIBEL * np.log(power.T / loudest), times)


def make_timeline(
    scores: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
    classes: Sequence[str],
    top_k: int,
    end: float,
    labels: Sequence[str] = (),
) -> Timeline:
    """Choose labels and condense their scores to what can be seen.

    Where rows overlap the nearest one is drawn; of several rows in one column the
    highest score is shown, so that no short sound is lost.

    Args:
        scores: (T, C).
        starts, ends: Seconds of each row (T,).
        classes: Names of the C classes.
        top_k: How many labels, those with the highest score anywhere.
        end: Length of the recording in seconds.
        labels: These labels instead.

    Raises:
        ValueError: One of `labels` that is not among the classes.
    """
    peaks = scores.max(0)
    best = np.argsort(-peaks, kind="stable")[:top_k]
    if unknown := [name for name in labels if name not in classes]:
        raise ValueError(f"the model has no label {', '.join(unknown)}")
    if labels:
        best = np.array([list(classes).index(name) for name in labels])
    left, right = starts.copy(), ends.copy()
    middle = (ends[:-1] + starts[1:]) / 2  # where two rows that overlap meet
    left[1:], right[:-1] = np.maximum(left[1:], middle), np.minimum(right[:-1], middle)
    width = end / LABEL_COLUMNS
    first = np.minimum((left / width + 1e-6).astype(int), LABEL_COLUMNS - 1)
    after = np.ceil(right / width - 1e-6).astype(int).clip(first + 1, LABEL_COLUMNS)
    grid = np.full((LABEL_COLUMNS, len(best)), np.nan)
    for offset in range(int((after - first).max())):
        reaches = first + offset < after
        np.fmax.at(grid, first[reaches] + offset, scores[reaches][:, best])
    names = [str(classes[index]) for index in best]
    return Timeline(names, peaks[best], grid)


def draw_timeline(
    spectrogram: Spectrogram,
    timeline: Timeline | None,
    title: str,
    note: str = "",
) -> "Figure":
    """Draw the spectrogram, above it the labels, if there are any.

    `note` says what a score is of, or why there are no labels.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [] if timeline is None else [_two_lines(name) for name in timeline.labels]
    remark = f" ({note})" if note else ""
    height = max(0.5, sum(0.32 + 0.16 * name.count("\n") for name in names))  # inches
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 3.6 + (height + 0.5 if timeline else 0)))
        FigureCanvasAgg(figure)
        if timeline is None:
            lower: Any = figure.subplots()
        else:
            heights = [height + 0.1, 2.6]
            upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=heights)
            _draw_labels(figure, upper, timeline, names, float(spectrogram.edges[-1]))
            upper.set_title(f"labels with their highest scores{remark}")
            remark = ""
        _draw_spectrogram(figure, lower, spectrogram)
        lower.set_title(f"log-mel spectrogram{remark}")
        figure.suptitle(_literal(title), fontsize=11, x=0.01, ha="left")
    return figure


def _draw_labels(
    figure: "Figure", axis: Any, timeline: Timeline, names: list[str], end: float
) -> None:
    """A row per label, dark where its score is high, grey where there is none."""
    extent = (0, end, len(names), 0)
    style = {"cmap": "Blues", "vmin": 0, "vmax": 1, "interpolation": "nearest"}
    image = axis.imshow(timeline.scores.T, aspect="auto", extent=extent, **style)
    axis.set_facecolor("#dddddd")
    peaks = zip(names, timeline.peaks, strict=True)
    texts = [f"{_literal(name)}  {peak:.2f}" for name, peak in peaks]
    axis.set_yticks(np.arange(len(names)) + 0.5, texts)
    axis.tick_params(axis="y", length=0)
    axis.tick_params(axis="x", labelbottom=False)
    axis.set_ylabel("label")
    axis.hlines(range(1, len(names)), 0, end, color="#bbbbbb", lw=0.6)
    figure.colorbar(image, ax=axis, label="score", ticks=[0, 0.5, 1], pad=0.01)


def _draw_spectrogram(figure: "Figure", axis: Any, spectrogram: Spectrogram) -> None:
    """Time to the right, low frequencies below."""
    level, edges = spectrogram
    end = edges[-1]
    right = max(end, level.shape[1] * (edges[1] - edges[0]))  # the last may be cut
    extent = (0, right, 0, NUM_MEL_BINS)
    style = {"cmap": "magma", "vmin": -DYNAMIC_RANGE, "vmax": 0}
    image = axis.imshow(level, origin="lower", aspect="auto", extent=extent, **style)
    axis.set_xlim(0, end)
    names = [f"{f // 1000}k" if f >= 1000 else str(f) for f in FREQUENCIES]
    axis.set_yticks([mel_position(f) for f in FREQUENCIES], names)
    axis.set_ylabel("frequency (Hz)")
    ticks, texts, unit = time_ticks(end)
    axis.set_xticks(ticks, texts)
    axis.set_xlabel(f"time ({unit})")
    figure.colorbar(image, ax=axis, label="level (dB, maximum = 0)", pad=0.01)


def mel_position(frequency: float) -> float:
    """Where a frequency in Hz lies on the axis of mel bins, 0..128.

    Kaldi's filters: centres evenly spaced in mel between 20 Hz and 8 kHz.
    """
    hertz = np.array([LOWEST_FREQUENCY, frequency, SAMPLE_RATE / 2])
    low, value, high = 1127 * np.log1p(hertz / 700)
    position = (value - low) / (high - low) * (NUM_MEL_BINS + 1) - 0.5
    return float(np.clip(position, 0, NUM_MEL_BINS))


def time_ticks(end: float) -> tuple[np.ndarray, list[str], str]:
    """Places of the ticks in seconds, their texts, and the unit for the label."""
    step = next((s for s in TIME_STEPS if end / s <= 10), TIME_STEPS[-1])
    places = np.arange(0, end + step / 1000, step)
    if end < 120:
        return places, [f"{place:g}" for place in places.round(6)], "s"
    size, unit = (60, "min:s") if end < 3600 else (3600, "h:min")
    parts = [divmod(round(place), size) for place in places]
    return places, [f"{big}:{rest * 60 // size:02d}" for big, rest in parts], unit


def save_picture(figure: "Figure", path: str | Path) -> None:
    """Write PNG, SVG or PDF by the suffix, whole or not at all."""
    import matplotlib

    kind = Path(path).suffix[1:].lower()
    # No dates: the same picture has the same bytes.
    dates = {"png": {"Software": None}, "svg": {"Date": None}}
    metadata: dict[str, Any] = dates.get(kind, {"CreationDate": None})
    with store.writing(path, "wb") as stream, matplotlib.rc_context(STYLE):
        figure.savefig(stream, format=kind, metadata=metadata)


def _two_lines(label: str) -> str:
    """A label in at most two lines; what is longer ends in an ellipsis."""
    lines = textwrap.wrap(label, LABEL_WIDTH, max_lines=2, placeholder=" …")
    return "\n".join(lines)


def _literal(text: str) -> str:
    """Text that matplotlib shows as it is: without its mathematics."""
    return text.encode("utf-8", "backslashreplace").decode().replace("$", r"\$")
