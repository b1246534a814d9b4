"""Scores of a classifier, on cases small enough to check by hand."""

import sys

import numpy as np
import pytest

from espnet2_sslam import metrics

TARGETS = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 0]])
SCORES = np.array([[0.9, 0.1, 0.2], [0.8, 0.3, 0.1], [0.7, 0.2, 0.3], [0.1, 0.4, 0.0]])


def test_average_precision_follows_the_ranking_of_each_class():
    values = metrics.average_precisions(TARGETS, SCORES)
    assert values[0] == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert values[1] == pytest.approx(1 / 2)


def test_class_without_positives_is_left_out():
    assert np.isnan(metrics.average_precisions(TARGETS, SCORES)[2])
    assert metrics.mean_average_precision(TARGETS, SCORES) == pytest.approx(2 / 3)
    assert np.isnan(metrics.mean_average_precision(np.zeros((3, 2)), np.ones((3, 2))))


def test_accuracy_counts_clips_whose_best_class_is_right():
    assert metrics.accuracy(np.eye(3)[[0, 1, 2, 2]], np.eye(3)[[0, 1, 2, 0]]) == 0.75


def test_auc_and_d_prime_of_chance_and_of_perfect_ranking():
    targets = np.array([[0], [0], [1], [1]])
    perfect = np.array([[0.1], [0.2], [0.3], [0.4]])
    assert metrics.roc_auc(targets, perfect) == 1.0
    assert metrics.d_prime(0.5) == pytest.approx(0.0)
    assert metrics.d_prime(0.9) == pytest.approx(1.812, abs=1e-3)


def test_auc_leaves_out_classes_that_every_clip_carries():
    targets = np.array([[0, 1], [1, 1]])
    scores = np.array([[0.1, 0.5], [0.9, 0.5]])
    assert metrics.roc_auc(targets, scores) == 1.0


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    clips = metrics.ClipScores()
    clips.add("abcd", SCORES, TARGETS)
    with pytest.raises(ValueError, match=r"pip install 'espnet2_sslam\[recipe\]'"):
        clips.summary(lambda part: [part], single_label=False)
