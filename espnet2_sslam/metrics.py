"""Scores of a classifier over a whole set of clips; scikit-learn computes them.

Everywhere `targets` and `scores` are (N, C) arrays: one row per clip, one column per
class, targets 0 or 1. A class without a positive clip has no average precision: it is
left out of every mean, and the caller reports it.

scikit-learn is imported where a score is computed: a model needs none of it.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np


def average_precisions(targets: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return the average precision of each class (C,), NaN without a positive clip.

    The definition is scikit-learn's (no interpolation), the one of the authors
    (cwx-worst-one/EAT@06c1c34, evaluation/eval.py).

    Raises:
        ValueError: Arrays of different shapes, other targets than 0 and 1, scores that
            are not finite, or no scikit-learn.
    """
    return _per_class("average_precision_score", *_checked(targets, scores))


def mean_average_precision(targets: np.ndarray, scores: np.ndarray) -> float:
    """Return the macro mAP: the mean over the classes that have a positive clip.

    NaN if no class has one. The authors' mean (nanmean over scikit-learn's values,
    SSLAM's fine-tuning task) without their value 0 for sets below 100 clips.
    """
    return _nanmean(average_precisions(targets, scores))


def accuracy(targets: np.ndarray, scores: np.ndarray) -> float:
    """Return the share of clips whose best class is a target of the clip, in [0, 1]."""
    targets, scores = _checked(targets, scores)
    return float(targets[np.arange(len(scores)), scores.argmax(axis=1)].mean())


def roc_auc(targets: np.ndarray, scores: np.ndarray) -> float:
    """Return the macro ROC area over the classes that have both kinds of clip."""
    targets, scores = _checked(targets, scores)
    both = targets.min(axis=0) != targets.max(axis=0)
    return _nanmean(_per_class("roc_auc_score", targets[:, both], scores[:, both]))


def d_prime(auc: float) -> float:
    """Return sqrt(2) times the normal quantile of an area under the ROC curve."""
    from scipy.special import ndtri

    return float(np.sqrt(2.0) * ndtri(auc))


class ClipScores:
    """Scores (C,) and targets (C,) of clips, kept by clip id: each counts once."""

    def __init__(self) -> None:
        self.clips: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def add(self, ids: Iterable[str], scores: np.ndarray, targets: np.ndarray) -> None:
        """Keep a batch: scores and targets (B, C)."""
        pairs = zip(scores, targets, strict=True)
        self.clips.update(zip(ids, pairs, strict=True))

    def summary(
        self, gather: Callable[[Any], list[Any]], *, single_label: bool
    ) -> dict[str, float]:
        """Score the clips of all ranks together.

        Args:
            gather: Object of this rank -> list of the objects of all ranks.
            single_label: Whether each clip has one class: accuracy means something.

        Returns:
            mAP, num_clips and, for single labels, accuracy.

        Raises:
            ValueError: No clip carries a label.
        """
        clips: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for part in gather(self.clips):
            clips.update(part)
        if not any(targets.any() for _, targets in clips.values()):
            raise ValueError(
                f"none of the {len(clips)} validation clips has a label: check the "
                "validation set's text file"
            )
        scores, targets = (
            np.stack(arrays) for arrays in zip(*clips.values(), strict=True)
        )
        stats = {"mAP": mean_average_precision(targets, scores)}
        if single_label:
            stats["accuracy"] = accuracy(targets, scores)
        return {**stats, "num_clips": float(len(clips))}


def _per_class(name: str, targets: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return scikit-learn's score per class, NaN where no clip is positive."""
    try:
        from sklearn import metrics
    except ImportError as error:
        raise ValueError(
            "scores need scikit-learn: pip install scikit-learn"
        ) from error
    score, values = getattr(metrics, name), np.full(targets.shape[1], np.nan)
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
