"""Sampling weights of clips: rare classes are drawn more often."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

WEIGHT_FILE = "weights"


def label_weights(counts: Mapping[str, int]) -> dict[str, float]:
    """1000 / (count + 0.01) for each label.

    Source: the formula published with AST and AudioMAE (dataset/audioset,
    gen_weight.py); the weights that SSLAM's authors used are not public.
    """
    return {label: 1000.0 / (count + 0.01) for label, count in counts.items()}


def class_balanced_weights(labels: Sequence[Sequence[str]]) -> np.ndarray:
    """Return for each clip the sum of `label_weights` over its labels, (N,) float64."""
    weight = label_weights(count_labels(labels))
    return np.array([sum(weight[name] for name in names) for names in labels])


def count_labels(labels: Iterable[Iterable[str]]) -> Counter:
    """In how many clips each label is."""
    counts: Counter = Counter()
    for names in labels:
        counts.update(names)
    return counts
