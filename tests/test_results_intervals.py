"""Bootstrap intervals: the same numbers as scikit-learn on the drawn clips."""

import time

import numpy as np
import pytest

from espnet2_sslam.metrics import accuracy, mean_average_precision
from espnet2_sslam.results import ResampledPrecision, bootstrap


def case(clips=60, classes=5, ties=True, seed=0):
    rng = np.random.default_rng(seed)
    targets = (rng.random((clips, classes)) < 0.3).astype(int)
    targets[:, -1] = 0  # a class without a positive clip
    targets[:, -2] = 0
    targets[3, -2] = 1  # one that some draws miss
    scores = rng.random((clips, classes)) + 0.3 * targets
    return targets, np.round(scores, 1) if ties else scores


@pytest.mark.parametrize("ties", [True, False])
def test_each_draw_is_scored_as_scikit_learn_scores_the_drawn_clips(ties):
    targets, scores = case(ties=ties)
    precision = ResampledPrecision(targets, scores)
    rng = np.random.default_rng(1)
    for _ in range(50):
        rows = rng.integers(len(targets), size=len(targets))
        counts = np.bincount(rows, minlength=len(targets))
        expected = mean_average_precision(targets[rows], scores[rows])
        assert precision(counts) == pytest.approx(expected, rel=1e-12)


def test_intervals_equal_the_slow_ones_and_repeat_with_the_seed():
    targets, scores = case()
    found = bootstrap(targets, scores, resamples=100, seed=3, accuracy=True)
    for name, metric in ("mAP", mean_average_precision), ("accuracy", accuracy):
        rng = np.random.default_rng(3)
        draws = [rng.integers(len(targets), size=len(targets)) for _ in range(100)]
        values = [metric(targets[rows], scores[rows]) for rows in draws]
        assert found[name] == pytest.approx(np.percentile(values, (2.5, 97.5)))
    assert found == bootstrap(targets, scores, resamples=100, seed=3, accuracy=True)
    assert found != bootstrap(targets, scores, resamples=100, seed=4, accuracy=True)


def test_a_set_without_positives_has_no_precision():
    precision = ResampledPrecision(np.zeros((3, 2)), np.zeros((3, 2)))
    assert np.isnan(precision(np.ones(3, dtype=int)))


def test_one_draw_is_refused():
    with pytest.raises(ValueError, match="at least 2, got 1"):
        bootstrap(*case(), resamples=1, seed=0)


@pytest.mark.slow
def test_a_draw_of_audioset_takes_no_minute_as_with_scikit_learn():
    targets, scores = case(18_886, 527, ties=False)
    precision = ResampledPrecision(targets, scores)
    counts = np.bincount(np.random.default_rng(0).integers(18_886, size=18_886))
    counts = np.pad(counts, (0, 18_886 - len(counts)))
    start = time.perf_counter()
    precision(counts)
    assert time.perf_counter() - start < 2
