"""Scores over time -> events with onset and offset.

Shapes: T time steps, C classes.
"""

import difflib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

ByClass = float | Mapping[str, float]
BLOCK = 1024  # steps whose medians are taken at once


class Event(NamedTuple):
    """A sound from onset to offset, in seconds.

    It is there at every threshold up to its confidence, in 0..1: the highest score of
    its time steps, after the median filter.
    """

    onset: float
    offset: float
    label: str
    confidence: float


def find_events(
    scores: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
    classes: Sequence[str],
    *,
    threshold: ByClass = 0.5,
    median: ByClass = 0.0,
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
            steps; 0: no filter. Of all classes, or by name (0 for those not named).
            The first and the last score are repeated beyond the ends.
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
    if not all(value >= 0 for value in (min_duration, merge_gap)):
        raise ValueError(
            "min_duration and merge_gap must be 0 or more seconds, got "
            f"{min_duration}, {merge_gap}"
        )
    # In the scores' own precision: a float32 score of 0.7 reaches 0.7.
    limits = class_thresholds(threshold, classes).astype(scores.dtype)
    lengths = _by_class("median", median, classes, 0.0, "0 or more seconds", np.inf)
    if len(starts) == 0:
        return []
    halves = _half_windows(lengths, starts)
    active = _majority(scores >= limits, halves)
    events = []
    for index in np.flatnonzero(active.any(0)).tolist():
        column = active[:, index]
        edges = np.flatnonzero(np.diff(np.r_[0, column.astype(np.int8), 0]))
        peaks = _peaks(scores[:, index], halves[index], column, edges)
        spans: list[Event] = []
        for (first, after), peak in zip(edges.reshape(-1, 2), peaks, strict=True):
            onset, offset = float(starts[first]), float(ends[after - 1])
            if spans and onset - spans[-1].offset <= merge_gap + 1e-6:
                last = spans.pop()
                onset, offset = last.onset, max(offset, last.offset)
                peak = max(peak, last.confidence)
            spans.append(Event(onset, offset, classes[index], peak))
        # A tolerance: 0.48 as a difference of two times is a bit below 0.48.
        events += [e for e in spans if e.offset - e.onset >= min_duration - 1e-6]
    return sorted(events)


def class_thresholds(threshold: ByClass, classes: Sequence[str]) -> np.ndarray:
    """The threshold of each class (C,), see `find_events`.

    Raises:
        ValueError: A class that the model does not know, or a value outside 0..1.
    """
    return _by_class("threshold", threshold, classes, 0.5, "in 0..1", 1.0)


def _by_class(
    name: str,
    values: ByClass,
    classes: Sequence[str],
    default: float,
    range: str,
    highest: float,
) -> np.ndarray:
    """A value of each class (C,), from one number or from numbers by name."""
    if not isinstance(values, Mapping):
        values = {"": values}
    if unknown := sorted(set(values) - {*classes, ""}):
        folded = {label.lower(): label for label in classes}
        near = difflib.get_close_matches(unknown[0].lower(), folded, 1)
        hint = f"; did you mean {folded[near[0]]}?" if near else ""
        raise ValueError(
            f"{name} for {', '.join(unknown)}: the model has no such class, it has "
            f"{', '.join(classes[:5])}{', ...' if len(classes) > 5 else ''}{hint}"
        )
    if wrong := [value for value in values.values() if not 0 <= value <= highest]:
        raise ValueError(f"a {name} must be {range}, got {wrong[0]}")
    numbers = [values.get(label, values.get("", default)) for label in classes]
    return np.asarray(numbers, dtype=np.float64)


def _half_windows(seconds: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Steps on each side of the middle of a median filter, of each class (C,)."""
    if len(starts) < 2:
        return np.zeros(len(seconds), int)
    shift = (starts[-1] - starts[0]) / (len(starts) - 1)
    return np.round((seconds / shift - 1) / 2).clip(0, len(starts)).astype(int)


def _majority(active: np.ndarray, halves: np.ndarray) -> np.ndarray:
    """Whether most of the steps of equal length around each step are active (T, C).

    A median of odd length reaches a threshold where most of its scores do.
    """
    result = active.copy()
    for half in np.unique(halves[halves > 0]).tolist():
        columns = np.flatnonzero(halves == half)
        padded = np.pad(active[:, columns], ((half, half), (0, 0)), mode="edge")
        sums = np.cumsum(np.pad(padded, ((1, 0), (0, 0))), axis=0, dtype=np.int32)
        result[:, columns] = sums[2 * half + 1 :] - sums[: -2 * half - 1] > half
    return result


def _peaks(
    scores: np.ndarray, half: int, active: np.ndarray, edges: np.ndarray
) -> list[float]:
    """The highest filtered score of one class in each run of its active steps.

    Args:
        scores, active: (T,).
        edges: First step of each run and the one after its last (2 N,).
    """
    filtered, inside = scores.copy(), np.flatnonzero(active)
    if half:
        padded = np.pad(scores, half, mode="edge")
        windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1)
        for steps in np.split(inside, range(BLOCK, len(inside), BLOCK)):
            filtered[steps] = np.partition(windows[steps], half)[:, half]
    # pieces between edges: runs and, from each second edge on, what lies between
    return np.maximum.reduceat(filtered, edges[edges < len(scores)])[::2].tolist()
