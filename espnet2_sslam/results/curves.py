"""A finished fine-tuning against the authors' curve of the same benchmark.

The authors publish one run each, so their spread is not known. The band around their
curve is made of two parts:

- everything that the curve passes between update / 1.15 and 1.15 * update, which allows
  for epochs of another length and for a rise that is a little earlier or later;
- a tolerance beyond that: 1 point of mAP, and 3 % of the loss. Re-runs of the released
  weights by others (BAT, arXiv 2602.16305) end 0.6 to 0.9 points below the authors'
  on AudioSet-20K, and up to 0.3 apart. (On AudioSet-2M they end 2.4 points below, with
  half of the updates: no spread of seeds, and the band does not cover it.)
"""

from dataclasses import dataclass

import numpy as np

from espnet2_sslam.results import paper
from espnet2_sslam.results.runs import History

SHIFT = 1.15
TOLERANCE = {"mAP": 0.01, "valid_loss": 0.03}  # absolute; share of the value
OURS = {"mAP": ("valid", "mAP"), "valid_loss": ("valid", "loss")}


@dataclass(frozen=True)
class Comparison:
    """One measure of a run at its own updates, where the authors have a curve."""

    measure: str
    updates: np.ndarray
    values: np.ndarray
    authors: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @property
    def outside(self) -> np.ndarray:
        """True where the run lies outside the band."""
        return (self.values < self.low) | (self.values > self.high)


def authors_curve(benchmark: str, kind: str) -> dict:
    """Return the authors' curves of a benchmark.

    Raises:
        ValueError: They published none; the message lists those that there are.
    """
    curves = paper.authors_curves()
    if (benchmark, kind) not in curves:
        names = ", ".join(f"{name} ({kind})" for name, kind in curves)
        raise ValueError(
            f"there is no curve of the authors for {benchmark} ({kind}), only for "
            f"{names}"
        )
    return curves[benchmark, kind]


def band(curve: dict, measure: str, updates: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return (authors, low, high) at these updates; see the module for the band."""
    steps, values = (np.array(curve[measure][k], float) for k in ("updates", "values"))
    low, high = [], []
    for update in updates:
        near = values[(steps >= update / SHIFT) & (steps <= update * SHIFT)]
        ends = np.interp([update / SHIFT, update, update * SHIFT], steps, values)
        low.append(min(*near, *ends))
        high.append(max(*near, *ends))
    low, high = np.array(low), np.array(high)
    beyond = TOLERANCE[measure]
    if measure == "mAP":
        return np.interp(updates, steps, values), low - beyond, high + beyond
    return np.interp(updates, steps, values), low * (1 - beyond), high * (1 + beyond)


def compare_run(history: History, curve: dict) -> list[Comparison]:
    """Compare a run with the authors', measure by measure.

    Updates before the authors' first and after their last point are left out.

    Raises:
        ValueError: the run has no validation score among the authors' updates.
    """
    comparisons = []
    for measure, (split, name) in OURS.items():
        updates, values = history.epoch_curve(split, name)
        steps = curve[measure]["updates"]
        inside = (updates >= steps[0]) & (updates <= steps[-1])
        if inside.any():
            updates, values = updates[inside], values[inside]
            bands = band(curve, measure, updates)
            comparisons.append(Comparison(measure, updates, values, *bands))
    if not comparisons or comparisons[0].measure != "mAP":
        first, last = curve["mAP"]["updates"][0], curve["mAP"]["updates"][-1]
        raise ValueError(
            f"{history.path} has no validation mAP between the updates {first} and "
            f"{last} of the authors' curve: train it with the benchmark's config"
        )
    return comparisons


def verdict(comparison: Comparison) -> tuple[str, str]:
    """Return what a run's curve does, and what the authors' does there, in words."""
    outside, number = comparison.outside, len(comparison.updates)
    scale, form = (100, ".1f") if comparison.measure == "mAP" else (1, ".3f")

    def at(values: np.ndarray, index: int) -> str:
        return f"{scale * values[index]:{form}}"

    ours = f"in the band at all {number} points"
    theirs = ""
    if outside.any():
        first = int(np.flatnonzero(outside)[0])
        ours = (
            f"outside the band at {outside.sum()} of {number} points, first at update "
            f"{comparison.updates[first]}: {at(comparison.values, first)}"
        )
        theirs = (
            f"band there {at(comparison.low, first)} to {at(comparison.high, first)}; "
        )
    ours += f"; last (update {comparison.updates[-1]}) {at(comparison.values, -1)}"
    return ours, theirs + f"last {at(comparison.authors, -1)}"
