"""Scores of a whole validation set, exact under any batching and number of ranks."""

from typing import Any, Callable, Dict, Iterable, List, Tuple

import numpy as np


class ClipScores:
    """Scores (C,) and targets (C,) of clips, kept by clip id: each counts once."""

    def __init__(self) -> None:
        self.clips: Dict[str, Tuple[np.ndarray, np.ndarray]] = {}

    def add(self, ids: Iterable[str], scores: np.ndarray, targets: np.ndarray) -> None:
        """Keep a batch: scores and targets (B, C)."""
        self.clips.update(zip(ids, zip(scores, targets)))

    def summary(
        self, gather: Callable[[Any], List[Any]], *, accuracy: bool
    ) -> Dict[str, float]:
        """Score the clips of all ranks together.

        Args:
            gather: Object of this rank -> list of the objects of all ranks.
            accuracy: Whether each clip has one class, so that accuracy means something.

        Returns:
            mAP, num_clips and, if asked for, accuracy.

        Raises:
            ValueError: No clip carries a label.
        """
        # Here, because inference does not need it and scikit-learn takes 2 s to import.
        from espnet2_sslam import metrics

        clips: Dict[str, Tuple[np.ndarray, np.ndarray]] = {}
        for part in gather(self.clips):
            clips.update(part)
        if not any(targets.any() for _, targets in clips.values()):
            raise ValueError(
                f"none of the {len(clips)} validation clips has a label: check the "
                "validation set's text file"
            )
        scores, targets = (np.stack(arrays) for arrays in zip(*clips.values()))
        stats = {"mAP": metrics.mean_average_precision(targets, scores)}
        if accuracy:
            stats["accuracy"] = metrics.accuracy(targets, scores)
        return {**stats, "num_clips": float(len(clips))}
