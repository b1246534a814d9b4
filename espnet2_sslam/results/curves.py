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
from pathlib import Path

import numpy as np

from espnet2_sslam.results import paper
from espnet2_sslam.results.history import History
from espnet2_sslam.results.style import plt, save

SHIFT = 1.15
TOLERANCE = {"mAP": 0.01, "valid_loss": 0.03}  # absolute; share of the value
OURS = {"mAP": ("valid", "mAP"), "valid_loss": ("valid", "loss")}
TITLES = {"mAP": "mAP on the test set", "valid_loss": "loss on the test set"}


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


def kind_of(history: History) -> str:
    """Return linear for a run with a frozen encoder, else finetune."""
    conf = history.config.get("model_conf") or {}
    return "linear" if conf.get("freeze_encoder") else "finetune"


def authors_curve(benchmark: str, kind: str) -> dict:
    """Return the authors' curves of a benchmark.

    Raises:
        ValueError: they published none; the message lists those that there are.
    """
    curves = paper.authors_curves()
    if (benchmark, kind) not in curves:
        there = ", ".join(f"{name} ({kind})" for name, kind in curves)
        raise ValueError(
            f"there is no curve of the authors for {benchmark} ({kind}), only for "
            f"{there}"
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
    found = []
    for measure, (split, name) in OURS.items():
        updates, values = history.epoch_curve(split, name)
        steps = curve[measure]["updates"]
        inside = (updates >= steps[0]) & (updates <= steps[-1])
        if inside.any():
            updates, values = updates[inside], values[inside]
            bands = band(curve, measure, updates)
            found.append(Comparison(measure, updates, values, *bands))
    if not found or found[0].measure != "mAP":
        first, last = curve["mAP"]["updates"][0], curve["mAP"]["updates"][-1]
        raise ValueError(
            f"{history.path} has no validation mAP between the updates {first} and "
            f"{last} of the authors' curve: train it with the benchmark's config"
        )
    return found


def verdict(comparison: Comparison) -> str:
    """Say in one line where a run leaves the band."""
    outside, number = comparison.outside, len(comparison.updates)
    scale, form = (100, ".1f") if comparison.measure == "mAP" else (1, ".3f")

    def show(value):
        return f"{scale * value:{form}}"

    end = (
        f"at its last point (update {comparison.updates[-1]}) "
        f"{show(comparison.values[-1])}, the authors {show(comparison.authors[-1])}"
    )
    if not outside.any():
        return f"{comparison.measure}: in the band at all {number} points; {end}"
    first = int(np.flatnonzero(outside)[0])
    side = "above" if comparison.values[first] > comparison.high[first] else "below"
    return (
        f"{comparison.measure}: outside the band at {int(outside.sum())} of {number} "
        f"points, first at update {comparison.updates[first]}: "
        f"{show(comparison.values[first])} is {side} {show(comparison.low[first])} to "
        f"{show(comparison.high[first])}; {end}"
    )


def plot(comparisons: list[Comparison], curve: dict, title: str, path: Path) -> None:
    """Draw a panel per measure: band, the authors' curve and the run's points."""
    figure, axes = plt.subplots(
        1, len(comparisons), figsize=(5.2 * len(comparisons), 3.6), squeeze=False
    )
    for axis, found in zip(axes.flat, comparisons):
        steps = np.array(curve[found.measure]["updates"])
        values, low, high = band(curve, found.measure, steps)
        scale = 100 if found.measure == "mAP" else 1
        axis.fill_between(
            steps, scale * low, scale * high, color="#D55E00", alpha=0.15, label="band"
        )
        axis.plot(steps, scale * values, color="#D55E00", label="authors")
        inside = ~found.outside
        for chosen, colour, name in (
            (inside, "#0072B2", "this run"),
            (~inside, "black", "this run, outside"),
        ):
            if chosen.any():
                points = found.updates[chosen], scale * found.values[chosen]
                axis.plot(*points, "o", color=colour, ms=3.5, label=name)
        unit = " (%)" if scale == 100 else ""
        axis.set(title=TITLES[found.measure] + unit, xlabel="updates")
        axis.legend(loc="best")
    figure.suptitle(title)
    figure.tight_layout()
    save(figure, path)
