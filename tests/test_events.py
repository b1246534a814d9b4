"""Frame scores become events with the right onset and offset."""

import numpy as np
import pytest

from espnet2_sslam.inference import Event, class_thresholds, event_table, find_events

STEP = 0.16


def _grid(steps, step=STEP, total=None):
    """Starts and ends of steps; the last may be cut."""
    starts = np.arange(steps) * step
    ends = starts + step
    if total is not None:
        ends[-1] = total
    return starts, ends


def _find(column, **options):
    """(first, after last) step of the events of one class."""
    scores = np.asarray(column, np.float32)[:, None]
    events = find_events(scores, *_grid(len(scores)), ["a"], **options)
    return [(round(e.onset / STEP), round(e.offset / STEP)) for e in events]


def test_an_event_lasts_from_its_first_to_its_last_step_and_keeps_the_real_end():
    scores = np.array([[0.1], [0.6], [0.9], [0.2], [0.8]], np.float32)
    events = find_events(scores, *_grid(5, total=0.7), ["Dog"])
    assert events[0] == Event(pytest.approx(0.16), pytest.approx(0.48), "Dog")
    assert events[1] == Event(pytest.approx(0.64), pytest.approx(0.70), "Dog")


@pytest.mark.parametrize(
    "column, options, spans",
    [
        ([], {"median": 1.0}, []),
        ([0, 0, 0], {}, []),
        ([1, 1, 1], {}, [(0, 3)]),
        ([1, 0, 1], {}, [(0, 1), (2, 3)]),
        ([1], {}, [(0, 1)]),
        ([0.7, 0.69], {"threshold": 0.7}, [(0, 1)]),  # 0.7 in float32 as well
        # Short gaps are joined before short events are dropped
        ([1, 0, 1, 0, 0, 0, 1], {"min_duration": 2 * STEP}, []),
        (
            [1, 0, 1, 0, 0, 0, 1],
            {"merge_gap": STEP, "min_duration": 2 * STEP},
            [(0, 3)],
        ),
        ([1, 0, 1, 0, 0, 0, 1], {"merge_gap": 3 * STEP}, [(0, 7)]),
        # An event of exactly the least duration stays
        ([0] * 30 + [1, 1, 1], {"min_duration": 3 * STEP}, [(30, 33)]),
    ],
)
def test_events_are_the_steps_above_the_threshold(column, options, spans):
    assert _find(column, **options) == spans


def test_each_class_has_its_threshold_and_the_others_the_common_one():
    scores = np.array([[0.4, 0.4, 0.4]], np.float32)
    found = find_events(
        scores, *_grid(1), ["a", "b", "c"], threshold={"b": 0.3, "": 0.45}
    )
    assert [event.label for event in found] == ["b"]
    assert list(class_thresholds({"b": 0.3}, ["a", "b"])) == [0.5, 0.3]


@pytest.mark.parametrize("steps", [3, 5, 21])
def test_events_are_those_of_scores_after_a_median_filter(steps):
    scipy = pytest.importorskip("scipy.ndimage")
    scores = np.random.default_rng(0).random((50, 3)).astype(np.float32)
    filtered = scipy.median_filter(scores, (steps, 1), mode="nearest")
    names = ["a", "b", "c"]
    found = find_events(scores, *_grid(50), names, median=steps * STEP)
    assert found == find_events(filtered, *_grid(50), names)


def test_overlapping_windows_give_one_event():
    starts = np.arange(5) * 0.5
    scores = np.array([0, 1, 1, 0, 1], np.float32)[:, None]
    events = find_events(scores, starts, starts + 1.0, ["a"])
    assert events == [(0.5, 3.0, "a")]


def test_a_row_has_seconds_with_three_decimals_between_tabs():
    events = [Event(0.16, 10.0004, "Rain, light"), Event(0, 1, "a\tb\nc")]
    lines = event_table([("a b.wav", events), ("silence.wav", [])])
    assert list(lines) == [
        "filename\tonset\toffset\tevent_label",
        "a b.wav\t0.160\t10.000\tRain, light",
        "a b.wav\t0.000\t1.000\ta b c",
    ]


@pytest.mark.parametrize(
    "options, words",
    [
        ({"threshold": {"Cat": 0.5}}, "no such class"),
        ({"threshold": 1.5}, "0..1"),
        ({"threshold": {"a": -1}}, "0..1"),
        ({"median": -1.0}, "median must be 0 or more"),
        ({"merge_gap": float("nan")}, "merge_gap"),
    ],
)
def test_wrong_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        _find([1, 0], **options)
    with pytest.raises(ValueError, match=r"2 classes.*\(3, 1\)"):
        find_events(np.zeros((3, 1)), *_grid(3), ["a", "b"])
