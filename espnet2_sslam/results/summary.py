"""Numbers over folds and seeds, and what they allow to say."""

from dataclasses import dataclass

import numpy as np

from espnet2_sslam.results.runs import Key, Scores, in_order


@dataclass(frozen=True)
class Cell:
    """A model's score on a test split: one value per complete seed.

    A seed's value is the mean over its folds. `incomplete` are the seeds that lack a
    fold or everything; they are in no average.
    """

    seeds: tuple[int, ...]
    values: tuple[float, ...]
    incomplete: tuple[int, ...]

    @property
    def mean(self) -> float:
        """Mean over the seeds, NaN without a complete seed."""
        return float(np.mean(self.values)) if self.values else float("nan")

    @property
    def spread(self) -> float | None:
        """Standard deviation over the seeds (n - 1), None with fewer than two."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else None


def summarise(
    scores: Scores,
    tag: str,
    model: str,
    data_set: str,
    split: str,
    checkpoint: str,
    metric: str,
) -> Cell:
    """Average a metric over folds, seed by seed."""

    def wanted(key: Key) -> bool:
        here = (key.tag, key.model, key.data_set, key.split, key.checkpoint)
        return here == (tag, model, data_set, split, checkpoint)

    by_seed: dict[int, list[float]] = {}
    for key, metrics in scores.found.items():
        if wanted(key):
            by_seed.setdefault(key.seed, []).append(metrics[metric])
    incomplete = {key.seed for key in scores.missing if wanted(key)}
    seeds = tuple(sorted(set(by_seed) - incomplete))
    values = tuple(float(np.mean(by_seed[seed])) for seed in seeds)
    return Cell(seeds, values, tuple(sorted(incomplete)))


def compare(name: str, ours: Cell, other_name: str, other: Cell, where: str) -> str:
    """Say in one sentence how two models differ, no stronger than the numbers allow.

    Two models differ clearly when their intervals mean +- spread do not overlap.
    """
    if not ours.values or not other.values:
        return f"{where}: {name} and {other_name} cannot be compared, runs are missing."
    difference = ours.mean - other.mean
    verb = "above" if difference >= 0 else "below"
    start = (
        f"{where}: {name} is {100 * abs(difference):.1f} points {verb} {other_name} "
        f"({100 * ours.mean:.1f} against {100 * other.mean:.1f})"
    )
    if ours.spread is None or other.spread is None:
        return f"{start}; with one seed nothing can be said about chance."
    spread = ours.spread + other.spread
    paired = _paired(ours, other)
    if abs(difference) > spread:
        return (
            f"{start}, more than both spreads of the seeds together "
            f"({100 * ours.spread:.1f} and {100 * other.spread:.1f}){paired}."
        )
    return (
        f"{start}, within both spreads of the seeds together "
        f"({100 * ours.spread:.1f} and {100 * other.spread:.1f}): "
        f"no clear difference{paired}."
    )


def per_class(
    scores: Scores, tag: str, model: str, data_set: str, split: str, checkpoint: str
) -> dict[str, Cell]:
    """Return {class: AP over folds and seeds}; classes never with a positive are empty.

    A fold in which a class has no positive clip does not count for that class.
    """
    by_class: dict[str, dict[int, list[float]]] = {}
    here = (tag, model, data_set, split, checkpoint)
    for key, metrics in scores.found.items():
        if (key.tag, key.model, key.data_set, key.split, key.checkpoint) != here:
            continue
        for label, value in metrics["per_class"].items():
            seeds = by_class.setdefault(label, {})
            if value is not None:
                seeds.setdefault(key.seed, []).append(value)
    return {
        label: Cell(
            tuple(sorted(seeds)),
            tuple(float(np.mean(seeds[seed])) for seed in sorted(seeds)),
            (),
        )
        for label, seeds in by_class.items()
    }


def models_present(scores: Scores, tag: str) -> list[str]:
    """Return the models of which a score or a missing score is known, in order."""
    keys = [*scores.found, *scores.missing]
    return in_order(key.model for key in keys if key.tag == tag)


def _paired(ours: Cell, other: Cell) -> str:
    """Say for how many seeds the sign of the difference is the same."""
    pairs = dict(zip(other.seeds, other.values))
    signs = [
        value > pairs[seed]
        for seed, value in zip(ours.seeds, ours.values)
        if seed in pairs
    ]
    if len(signs) < 2:
        return ""
    weak = " (two seeds are weak evidence)" if len(signs) == 2 else ""
    return f"; higher for {sum(signs)} of {len(signs)} seeds{weak}"
