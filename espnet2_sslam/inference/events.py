"""Scores over time -> events with onset and offset, and their DESED-style table.

Shapes: T time steps, C classes.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Union

import numpy as np
from scipy.ndimage import median_filter

HEADER = ("filename", "onset", "offset", "event_label")  # of DESED's metadata
Threshold = Union[float, Mapping[str, float]]


class Event(NamedTuple):
    """A sound from onset to offset, in seconds."""

    onset: float
    offset: float
    label: str


def find_events(
    scores: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
    classes: Sequence[str],
    *,
    threshold: Threshold = 0.5,
    median: float = 0.0,
    min_duration: float = 0.0,
    merge_gap: float = 0.0,
) -> list[Event]:
    """Turn frame-level scores into events, in the order of their onsets.

    Four steps, class by class: median filter over time; keep the steps whose score
    reaches the threshold; join events of a class with a short gap between them; drop
    short events.

    Args:
        scores: (T, C) in 0..1.
        starts, ends: Seconds at which each step begins and ends (T,), ascending.
        classes: Names of the C classes.
        threshold: Least score of an event; of all classes, or by name, where "" is
            that of the classes not named (0.5 by default).
        median: Length of the median filter in seconds, rounded to an odd number of
            steps; 0: no filter. The first and the last score are repeated beyond the
            ends.
        min_duration: Drop events shorter than this, in seconds.
        merge_gap: Join events with a gap of at most this, in seconds; events that
            touch are always one.

    Raises:
        ValueError: Shapes that do not belong together, a threshold of an unknown
            class, or a negative length.

    Source: the order (filter, threshold) of the DESED baseline, DCASE/DESED_task; a
    median filter of odd length gives the same before and after thresholding.
    """
    scores = np.asarray(scores)
    if scores.shape != (len(starts), len(classes)) or len(starts) != len(ends):
        raise ValueError(
            f"need scores of shape (steps, {len(classes)} classes) with a start and an "
            f"end per step, got {scores.shape}, {len(starts)} starts, {len(ends)} ends"
        )
    for name, value in (
        ("median", median),
        ("min_duration", min_duration),
        ("merge_gap", merge_gap),
    ):
        if not value >= 0:
            raise ValueError(f"{name} must be 0 or more seconds, got {value}")
    limits = class_thresholds(threshold, classes)
    if len(starts) == 0:
        return []
    # In the scores' own precision: a float32 score of 0.7 reaches 0.7.
    active = smooth(scores, _steps(median, starts)) >= limits.astype(scores.dtype)
    events = []
    for index in np.flatnonzero(active.any(0)):
        spans = _merged(_runs(active[:, index], starts, ends), merge_gap)
        # A tolerance: 0.48 as a difference of two times is a bit below 0.48.
        events += [
            Event(onset, offset, classes[index])
            for onset, offset in spans
            if offset - onset >= min_duration - 1e-6
        ]
    return sorted(events)


def class_thresholds(threshold: Threshold, classes: Sequence[str]) -> np.ndarray:
    """The threshold of each class (C,), see `find_events`.

    Raises:
        ValueError: A class that the model does not know, or a value outside 0..1.
    """
    if not isinstance(threshold, Mapping):
        threshold = {"": threshold}
    unknown = sorted(set(threshold) - set(classes) - {""})
    if unknown:
        raise ValueError(
            f"threshold for {', '.join(unknown)}: the model has no such class, it has "
            f"{', '.join(classes[:5])}{', ...' if len(classes) > 5 else ''}"
        )
    values = [threshold.get(name, threshold.get("", 0.5)) for name in classes]
    for value in threshold.values():
        if not 0 <= value <= 1:
            raise ValueError(f"a threshold must be in 0..1, got {value}")
    return np.asarray(values, dtype=np.float64)


def smooth(scores: np.ndarray, steps: int) -> np.ndarray:
    """Median filter over `steps` (odd) steps of time; (T, C) -> (T, C)."""
    return median_filter(scores, (steps, 1), mode="nearest") if steps > 1 else scores


def _steps(seconds: float, starts: np.ndarray) -> int:
    """The odd number of steps nearest to a length; the steps are of equal length."""
    if seconds == 0 or len(starts) < 2:
        return 1
    shift = (starts[-1] - starts[0]) / (len(starts) - 1)
    half = int(round((seconds / shift - 1) / 2))
    return 2 * min(max(half, 0), len(starts)) + 1


def _runs(
    active: np.ndarray, starts: np.ndarray, ends: np.ndarray
) -> list[tuple[float, float]]:
    """(onset, offset) of each unbroken run of active steps (T,)."""
    edges = np.flatnonzero(np.diff(np.r_[0, active.astype(np.int8), 0]))
    return [
        (float(starts[first]), float(ends[last - 1]))
        for first, last in edges.reshape(-1, 2)
    ]


def _merged(spans: list[tuple[float, float]], gap: float) -> list[tuple[float, float]]:
    """Join neighbours that are at most `gap` seconds apart, or overlap."""
    merged: list[tuple[float, float]] = []
    for onset, offset in spans:
        if merged and onset - merged[-1][1] <= gap + 1e-6:
            merged[-1] = merged[-1][0], max(offset, merged[-1][1])
        else:
            merged.append((onset, offset))
    return merged


def event_lines(name: str, events: Iterable[Event]) -> list[str]:
    """A file's rows of the table: tabs between, seconds with three decimals.

    A file without events has no row, as in DESED's predictions.
    """
    return [
        "\t".join((_cell(name), f"{onset:.3f}", f"{offset:.3f}", _cell(label)))
        for onset, offset, label in events
    ]


def _cell(text: str) -> str:
    """Text without what separates cells and rows."""
    return " ".join(text.split()) if any(c in text for c in "\t\n\r") else text
