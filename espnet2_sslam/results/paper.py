"""What others have published: numbers (paper.yaml), the authors' training curves
(authors_curves.yaml), and a run against the curve of the same benchmark.

The authors publish one run each, so their spread is not known. The band around their
curve is made of two parts:

- everything that the curve passes between update / 1.15 and 1.15 * update, which allows
  for epochs of another length and for a rise that is a little earlier or later;
- a tolerance beyond that: 1 point of mAP, and 3 % of the loss. Re-runs of the released
  weights by others (BAT, arXiv 2602.16305) end 0.6 to 0.9 points below the authors'
  on AudioSet-20K, and up to 0.3 apart. (On AudioSet-2M they end 2.4 points below, with
  half of the updates: no spread of seeds, and the band does not cover it.)
"""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from espnet2_sslam.results.experiment import Frame
from espnet2_sslam.results.runs import History

NAMES = {"phase1": "EAT", "phase2": "SSLAM", "beats": "BEATs"}
# The paper's table 2: its settings of phase 2, and our words for them.
VARIANTS = {
    "phase1_more": "MB-UA",
    "phase2:mixed": "MB-PMA",
    "phase2:both": "MB-UA-PMA",
    "phase2": "SSLAM",
}
SHIFT = 1.15
TOLERANCE = {"mAP": 0.01, "valid_loss": 0.03}  # absolute; share of the value
OURS = {"mAP": "mAP", "valid_loss": "loss"}  # the validation's name of a measure


@cache
def load(name: str = "paper.yaml") -> Any:
    """Return the content of a file beside this module."""
    return yaml.safe_load(Path(__file__).with_name(name).read_text("utf-8"))


def authors_curves() -> dict[tuple[str, str], dict]:
    """Return the authors' training curves: {(data set, kind): curves}.

    Curves are {mAP | valid_loss | train_loss: {updates: [...], values: [...]}}.
    """
    curves = load("authors_curves.yaml")
    return {(curve["benchmark"], curve["kind"]): curve for curve in curves}


def published_model(model: str) -> str:
    """Return which published model (a key of NAMES or VARIANTS) one of ours is beside.

    `model` is a word of `experiment.MODELS`, or the name of weights from elsewhere: one
    that begins with eat is phase 1, one that begins with sslam is phase 2, one that
    begins with beats is BEATs; others stay themselves.
    """
    for phase, name in NAMES.items():
        if model.lower().startswith(name.lower()):
            return phase
    return model


def entries(data_set: str, metric: str, kind: str, model: str) -> list[dict]:
    """Return the entries of `numbers` in paper.yaml for a row of our tables."""
    row = {"data_set": data_set, "metric": metric, "kind": kind}
    row["model"] = published_model(model)
    return [entry for entry in load()["numbers"] if row.items() <= entry.items()]


def numbers(data_set: str, metric: str, kind: str, model: str) -> str:
    """Return the published numbers for a row of our tables, `-` where there is none.

    `data_set` is the name in downstream.txt, `kind` as in paper.yaml.
    """
    cited = entries(data_set, metric, kind, model)
    texts = [f"{entry['value']} ({entry['source']})" for entry in cited]
    curve = authors_curves().get((data_set, kind))
    if curve and metric == "mAP" and published_model(model) == "phase2":
        values = curve["mAP"]["values"]
        last, best = 100 * values[-1], 100 * max(values)
        texts.append(f"{last:.1f} last, {best:.1f} best (log)")
    return ", ".join(texts) or "-"


def all_numbers(data_set: str, metric: str, kind: str) -> str:
    """Return in one line what is published on a data set, empty for nothing."""
    texts = {m: numbers(data_set, metric, kind, m) for m in NAMES}
    return "; ".join(f"{NAMES[m]} {text}" for m, text in texts.items() if text != "-")


def sources(texts: list[str]) -> dict[str, str]:
    """Return {short name: source} of all that the texts cite in brackets."""
    known = load()["sources"].items()
    return {k: v for k, v in known if any(f"({k})" in text for text in texts)}


def notes(data_set: str, kind: str) -> list[str]:
    """Return what else is known about a difference from the papers' numbers."""
    return [
        note["text"]
        for note in load()["notes"]
        if note["kind"] in (kind, "any") and data_set in note["data_sets"].split()
    ]


def band(curve: dict, measure: str, updates: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return (authors, low, high) at these updates; see the module for the band."""
    steps, values = (np.array(curve[measure][k], float) for k in ("updates", "values"))
    low, high = np.empty((2, len(updates)))
    for index, update in enumerate(updates):
        near = values[(steps >= update / SHIFT) & (steps <= update * SHIFT)]
        ends = np.interp([update / SHIFT, update, update * SHIFT], steps, values)
        low[index], high[index] = min(*near, *ends), max(*near, *ends)
    beyond = TOLERANCE[measure]
    if measure == "mAP":
        return np.interp(updates, steps, values), low - beyond, high + beyond
    return np.interp(updates, steps, values), low * (1 - beyond), high * (1 + beyond)


def compare_run(history: History, benchmark: str, kind: str) -> dict[str, Frame]:
    """Return {measure: frame with a row per epoch} of a run beside the authors'.

    Columns: `updates`, `values` of the run, `authors`, `low` and `high` of the band,
    `outside` (of it). Updates before the authors' first and after their last point are
    left out.

    Raises:
        ValueError: The authors published no curve of the benchmark, or the run has no
            validation score among its updates.
    """
    import pandas as pd

    curve = authors_curves().get((benchmark, kind))
    if curve is None:
        names = ", ".join(f"{name} ({kind})" for name, kind in authors_curves())
        raise ValueError(
            f"there is no curve of the authors for {benchmark} ({kind}), only for "
            f"{names}"
        )
    frames = {}
    for measure, name in OURS.items():
        updates, values = history.epoch_curve("valid", name)
        steps = curve[measure]["updates"]
        inside = (updates >= steps[0]) & (updates <= steps[-1])
        if inside.any():
            frame = pd.DataFrame({"updates": updates, "values": values})[inside]
            authors, low, high = band(curve, measure, updates[inside])
            frame = frame.assign(authors=authors, low=low, high=high)
            frame["outside"] = ~frame["values"].between(low, high)
            frames[measure] = frame.reset_index(drop=True)
        elif measure == "mAP":
            raise ValueError(
                f"{history.path} has no validation mAP between the updates {steps[0]} "
                f"and {steps[-1]} of the authors' curve: train it with the benchmark's "
                "config"
            )
    return frames


def verdict(measure: str, frame: Frame) -> tuple[str, str]:
    """Return what a run's curve does, and what the authors' does there, in words."""
    if measure == "mAP":
        texts = frame.mul(100).map("{:.1f}".format)
    else:
        texts = frame.map("{:.3f}".format)
    ours, theirs = f"in the band at all {len(frame)} points", ""
    if frame["outside"].any():
        first = frame["outside"].idxmax()
        ours = (
            f"outside the band at {frame['outside'].sum()} of {len(frame)} points, "
            f"first at update {frame['updates'][first]}: {texts['values'][first]}"
        )
        theirs = f"band there {texts['low'][first]} to {texts['high'][first]}; "
    last = texts.iloc[-1]
    ours += f"; last (update {frame['updates'].iloc[-1]}) {last['values']}"
    return ours, f"{theirs}last {last['authors']}"
