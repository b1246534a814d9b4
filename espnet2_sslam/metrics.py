"""Scores of a classifier over a whole set of clips; scikit-learn computes them.

Everywhere `targets` and `scores` are (N, C) arrays: one row per clip, one column per
class, targets 0 or 1. A class without a positive clip has no average precision: it is
left out of every mean, and the caller reports it (`classes_without_positives`).
"""

from typing import Callable, NamedTuple

import numpy as np
from scipy.special import ndtri
from sklearn.metrics import average_precision_score, roc_auc_score


class Interval(NamedTuple):
    """A value on the whole set and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


def average_precisions(targets: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return the average precision of each class (C,), NaN without a positive clip.

    Raises ValueError for arrays of different shapes, other targets than 0 and 1, and
    scores that are not finite. The definition is scikit-learn's (no interpolation), the
    one of the authors (cwx-worst-one/EAT@06c1c34, evaluation/eval.py).
    """
    return _per_class(average_precision_score, *_checked(targets, scores))


def mean_average_precision(targets: np.ndarray, scores: np.ndarray) -> float:
    """Return the macro mAP: the mean over the classes that have a positive clip.

    NaN if no class has one. The authors' mean (nanmean over scikit-learn's values,
    SSLAM's fine-tuning task) without their value 0 for sets below 100 clips.
    """
    return _nanmean(average_precisions(targets, scores))


def classes_without_positives(targets: np.ndarray) -> np.ndarray:
    """Return the indices of the classes that no clip of `targets` (N, C) carries."""
    return np.flatnonzero(np.asarray(targets).sum(axis=0) == 0)


def accuracy(targets: np.ndarray, scores: np.ndarray) -> float:
    """Return the share of clips whose best class is a target of the clip, in [0, 1]."""
    targets, scores = _checked(targets, scores)
    return float(targets[np.arange(len(scores)), scores.argmax(axis=1)].mean())


def roc_auc(targets: np.ndarray, scores: np.ndarray) -> float:
    """Return the macro ROC area over the classes that have both kinds of clip."""
    targets, scores = _checked(targets, scores)
    both = targets.min(axis=0) != targets.max(axis=0)
    return _nanmean(_per_class(roc_auc_score, targets[:, both], scores[:, both]))


def d_prime(auc: float) -> float:
    """Return sqrt(2) times the normal quantile of an area under the ROC curve."""
    return float(np.sqrt(2.0) * ndtri(auc))


def bootstrap_interval(
    metric: Callable[[np.ndarray, np.ndarray], float],
    targets: np.ndarray,
    scores: np.ndarray,
    generator: np.random.Generator,
    *,
    resamples: int = 1000,
) -> Interval:
    """Return `metric` with its 95 % percentile interval over resampled clips.

    Clips are drawn with replacement; classes that lose all positives in a draw are
    left out of that draw's mean. Raises ValueError for fewer than 2 resamples.
    """
    if resamples < 2:
        raise ValueError(f"resamples must be at least 2, got {resamples}: use 1000")
    targets, scores = _checked(targets, scores)
    draws = []
    for _ in range(resamples):
        rows = generator.integers(len(targets), size=len(targets))
        draws.append(metric(targets[rows], scores[rows]))
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return Interval(metric(targets, scores), float(low), float(high))


def _per_class(score: Callable, targets: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return score(targets, scores) per class, NaN where no clip is positive."""
    values = np.full(targets.shape[1], np.nan)
    for index in np.flatnonzero(targets.any(axis=0)):
        values[index] = score(targets[:, index], scores[:, index])
    return values


def _nanmean(values: np.ndarray) -> float:
    """Return the mean of the values that are not NaN, NaN if there are none."""
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def _checked(targets: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both as arrays after checking what a caller can get wrong."""
    targets, scores = np.asarray(targets), np.asarray(scores)
    if targets.ndim != 2 or targets.shape != scores.shape or not len(targets):
        raise ValueError(
            "targets and scores must have the same shape (clips, classes) with at "
            f"least one clip, got {targets.shape} and {scores.shape}"
        )
    if not np.isin(targets, (0, 1)).all():
        raise ValueError("targets must be 0 or 1: give labels before any mixup")
    if not np.isfinite(scores).all():
        raise ValueError(
            f"the scores of {int((~np.isfinite(scores)).any(axis=1).sum())} clips are "
            "not finite: look for NaN in the model's weights and in the audio"
        )
    return targets.astype(np.int64), scores
