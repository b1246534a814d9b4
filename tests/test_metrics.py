"""Scores of a classifier, on cases small enough to check by hand."""

import sys

import numpy as np
import pytest

from espnet2_sslam import metrics


def test_auc_leaves_out_classes_that_every_clip_carries():
    targets = np.array([[0, 1], [1, 1]])
    scores = np.array([[0.1, 0.5], [0.9, 0.5]])
    assert metrics.roc_auc(targets, scores) == 1.0
    assert metrics.d_prime(0.9) == pytest.approx(1.812, abs=1e-3)


def test_no_positive_at_all_gives_nan_and_not_zero():
    assert np.isnan(metrics.mean_average_precision(np.zeros((3, 2)), np.ones((3, 2))))


def test_without_scikit_learn_the_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    clips = metrics.ClipScores()
    clips.add("ab", np.zeros((2, 3)), np.eye(3)[:2])
    with pytest.raises(ValueError, match="pip install scikit-learn"):
        clips.summary(lambda part: [part], single_label=False)
