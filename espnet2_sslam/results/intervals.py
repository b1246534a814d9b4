"""95 % bootstrap intervals over clips, fast enough for AudioSet.

scikit-learn for every class of every draw would take an hour for a thousand draws of
AudioSet's test set. Here a draw is a vector of how often each clip was drawn, and each
class is sorted once. The definition is the same.
"""

import numpy as np

PERCENTILES = (2.5, 97.5)


class ResampledPrecision:
    """Macro mAP of a drawn set of clips, given as counts.

    Args:
        targets: (N, C) of 0 and 1.
        scores: (N, C), finite.
    """

    def __init__(self, targets: np.ndarray, scores: np.ndarray):
        self.classes = [
            _Ranking(targets[:, c] > 0, scores[:, c])
            for c in range(targets.shape[1])
            if targets[:, c].any()
        ]

    def __call__(self, counts: np.ndarray) -> float:
        """Return the mean over classes with a positive clip in the draw, else NaN."""
        values = [ranking.average_precision(counts) for ranking in self.classes]
        values = [value for value in values if value is not None]
        return float(np.mean(values)) if values else float("nan")


class _Ranking:
    """The clips of one class from the highest score to the lowest."""

    def __init__(self, positive: np.ndarray, scores: np.ndarray):
        self.order = np.argsort(-scores, kind="stable")
        ranked = scores[self.order]
        self.places = np.flatnonzero(positive[self.order])  # of the positive clips
        # Clips of equal score come together: the last place of each one's group.
        ends = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
        self.ends = ends[np.searchsorted(ends, self.places)]
        self.last_hit = np.searchsorted(self.places, self.ends, side="right") - 1

    def average_precision(self, counts: np.ndarray) -> float | None:
        """Return the average precision, None without a positive clip in the draw."""
        drawn = counts[self.order]
        hits = drawn[self.places]
        if not hits.any():
            return None
        above = np.cumsum(drawn)[self.ends]
        precision = np.cumsum(hits)[self.last_hit] / np.maximum(above, 1)
        return float((hits * precision).sum() / hits.sum())


def bootstrap(
    targets: np.ndarray,
    scores: np.ndarray,
    *,
    resamples: int,
    seed: int,
    accuracy: bool = False,
) -> dict[str, list[float]]:
    """Return {metric: [low, high]}, the 95 % intervals over clips drawn anew.

    Args:
        targets, scores: (N, C).
        resamples: Draws of N clips with replacement.
        seed: Of the draws.
        accuracy: Also of the share of clips whose best class is a target.

    Raises:
        ValueError: fewer than 2 resamples.
    """
    if resamples < 2:
        raise ValueError(f"resamples must be at least 2, got {resamples}: use 1000")
    generator = np.random.default_rng(seed)
    precision = ResampledPrecision(targets, scores)
    right = targets[np.arange(len(scores)), scores.argmax(axis=1)]
    draws: dict[str, list[float]] = {
        "mAP": [],
        **({"accuracy": []} if accuracy else {}),
    }
    for _ in range(resamples):
        rows = generator.integers(len(targets), size=len(targets))
        counts = np.bincount(rows, minlength=len(targets))
        draws["mAP"].append(precision(counts))
        if accuracy:
            draws["accuracy"].append(float(counts @ right) / len(targets))
    return {
        name: [float(x) for x in np.nanpercentile(values, PERCENTILES)]
        for name, values in draws.items()
    }
