"""Frame scores become events with the right onset and offset."""

import numpy as np
import pytest

from espnet2_sslam.inference import Event, class_thresholds, event_table, find_events

STEP = 0.16
STARTS = STEP * np.arange(50)


def _find(column, starts=STARTS, length=STEP, **options):
    """(onset, offset) of the events of one class."""
    scores = np.asarray(column, np.float32)[:, None]
    starts = starts[: len(scores)]
    events = find_events(scores, starts, starts + length, ["a"], **options)
    return [(event.onset, event.offset) for event in events]


@pytest.mark.parametrize(
    "column, options, steps",
    [
        ([], {"median": 1.0}, []),
        ([0, 0, 0], {}, []),
        ([1, 1, 1], {}, [(0, 3)]),
        ([1, 0, 1], {}, [(0, 1), (2, 3)]),
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
def test_events_are_the_steps_above_the_threshold(column, options, steps):
    spans = [(first * STEP, after * STEP) for first, after in steps]
    assert _find(column, **options) == [pytest.approx(span) for span in spans]


def test_overlapping_windows_give_one_event():
    assert _find([0, 1, 1, 0, 1], np.arange(5) * 0.5, 1.0) == [(0.5, 3.0)]


def test_each_class_has_its_threshold_and_the_others_the_common_one():
    scores = np.array([[0.4, 0.4, 0.4]], np.float32)
    limits = {"b": 0.3, "": 0.45}
    events = find_events(scores, [0.0], [0.1], ["a", "b", "c"], threshold=limits)
    # to the real end of a last, short step
    assert events == [Event(0.0, 0.1, "b", pytest.approx(0.4))]
    assert list(class_thresholds({"b": 0.3}, ["a", "b"])) == [0.5, 0.3]


@pytest.mark.parametrize("steps", [3, 5, 21])
def test_events_are_those_of_scores_after_a_median_filter(steps):
    scipy = pytest.importorskip("scipy.ndimage")
    scores = np.random.default_rng(0).random((50, 3)).astype(np.float32)
    filtered = scipy.median_filter(scores, (steps, 1), mode="nearest")
    times = STARTS, STARTS + STEP, ["a", "b", "c"]
    events = find_events(scores, *times, median=steps * STEP)
    assert events == find_events(filtered, *times) and events
    lengths = {"b": steps * STEP, "c": STEP}
    expected = find_events(np.c_[scores[:, 0], filtered[:, 1], scores[:, 2]], *times)
    assert find_events(scores, *times, median=lengths) == expected


@pytest.mark.parametrize("options", [{}, {"median": 3 * STEP}, {"merge_gap": 2 * STEP}])
def test_an_event_is_there_at_every_threshold_up_to_its_confidence(options):
    scores = np.random.default_rng(1).random((3000, 1)).astype(np.float32)
    starts = STEP * np.arange(3000)
    times = scores, starts, starts + STEP, ["a"]
    events = find_events(*times, **options, threshold=0.6)
    assert len(events) > 100 and min(event.confidence for event in events) >= 0.6
    for limit in (0.7, 0.8, 0.9):
        kept = find_events(*times, **options, threshold=limit)
        for event in events:
            inside = [
                other.confidence
                for other in kept
                if event.onset <= other.onset and other.offset <= event.offset
            ]
            there = event.confidence >= limit
            assert max(inside, default=None) == (event.confidence if there else None)


def test_a_row_has_seconds_with_three_decimals_between_tabs():
    events = [Event(0.16, 10.0004, "Rain, light", 0.12346), Event(0, 1, "a\tb\nc", 1)]
    lines = event_table([("a b.wav", events), ("silence.wav", [])])
    assert list(lines) == [
        "filename\tonset\toffset\tevent_label\tconfidence",
        "a b.wav\t0.160\t10.000\tRain, light\t0.1235",
        "a b.wav\t0.000\t1.000\ta b c\t1.0000",
    ]


@pytest.mark.parametrize(
    "options, words",
    [
        ({"threshold": {"Cat": 0.5}}, "no such class, it has a$"),
        ({"threshold": {"A": 0.5}}, "did you mean a?"),
        ({"median": {"b": 0.5}}, "median for b: .* no such class"),
        ({"median": {"a": -0.5}}, "must be 0 or more"),
        ({"threshold": 1.5}, "0..1"),
        ({"median": -1.0}, "must be 0 or more"),
        ({"merge_gap": float("nan")}, "must be 0 or more"),
        ({"starts": STARTS[:1]}, "need scores of shape"),
    ],
)
def test_wrong_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        _find([1, 0], **options)
