"""Scores over time -> events with onset and offset.

Shapes: T time steps, C classes.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

Threshold = float | Mapping[str, float]


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

    Source: the order (filter, threshold) of the DESED baseline, DCASE/DESED_task.
    """
    scores = np.asarray(scores)
    if scores.shape != (len(starts), len(classes)) or len(starts) != len(ends):
        raise ValueError(
            f"need scores of shape (steps, {len(classes)} classes) with a start and an "
            f"end per step, got {scores.shape}, {len(starts)} starts, {len(ends)} ends"
        )
    if not all(value >= 0 for value in (median, min_duration, merge_gap)):
        raise ValueError(
            "median, min_duration and merge_gap must be 0 or more seconds, got "
            f"{median}, {min_duration}, {merge_gap}"
        )
    # In the scores' own precision: a float32 score of 0.7 reaches 0.7.
    limits = class_thresholds(threshold, classes).astype(scores.dtype)
    if len(starts) == 0:
        return []
    active = _majority(scores >= limits, starts, median)
    events = []
    for index in np.flatnonzero(active.any(0)).tolist():
        edges = np.flatnonzero(np.diff(np.r_[0, active[:, index].astype(np.int8), 0]))
        spans: list[tuple[float, float]] = []
        for first, after in edges.reshape(-1, 2):
            onset, offset = float(starts[first]), float(ends[after - 1])
            if spans and onset - spans[-1][1] <= merge_gap + 1e-6:
                spans[-1] = spans[-1][0], max(offset, spans[-1][1])
            else:
                spans.append((onset, offset))
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
    if unknown := sorted(set(threshold) - {*classes, ""}):
        raise ValueError(
            f"threshold for {', '.join(unknown)}: the model has no such class, it has "
            f"{', '.join(classes[:5])}{', ...' if len(classes) > 5 else ''}"
        )
    if wrong := [value for value in threshold.values() if not 0 <= value <= 1]:
        raise ValueError(f"a threshold must be in 0..1, got {wrong[0]}")
    values = [threshold.get(name, threshold.get("", 0.5)) for name in classes]
    return np.asarray(values, dtype=np.float64)


def _majority(active: np.ndarray, starts: np.ndarray, seconds: float) -> np.ndarray:
    """Whether most of the steps of equal length around each step are active (T, C).

    A median of odd length reaches a threshold where most of its scores do.
    """
    if seconds == 0 or len(starts) < 2:
        return active
    shift = (starts[-1] - starts[0]) / (len(starts) - 1)
    half = round(float(seconds / shift - 1) / 2)  # steps on each side of the middle
    half = min(max(half, 0), len(starts))
    padded = np.pad(active, ((half, half), (0, 0)), mode="edge")
    sums = np.cumsum(np.pad(padded, ((1, 0), (0, 0))), axis=0, dtype=np.int32)
    return sums[2 * half + 1 :] - sums[: -2 * half - 1] > half
