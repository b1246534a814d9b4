"""Published numbers to stand beside ours."""

from functools import cache
from importlib import resources

import yaml

NAMES = {"phase1": "EAT", "phase2": "SSLAM"}


@cache
def load() -> dict:
    """Return the content of paper.yaml."""
    text = resources.files("espnet2_sslam.results").joinpath("paper.yaml").read_text()
    return yaml.safe_load(text)


@cache
def authors_curves() -> dict[tuple[str, str], dict]:
    """Return the authors' training curves: {(data set, kind): curves}.

    Curves are {mAP | valid_loss | train_loss: {updates: [...], values: [...]}}.
    """
    folder = resources.files("espnet2_sslam.results")
    curves = yaml.safe_load(folder.joinpath("authors_curves.yaml").read_text())
    return {(curve["benchmark"], curve["kind"]): curve for curve in curves}


def row(model: str) -> str:
    """Return which published model a model of ours is comparable with.

    Weights from elsewhere (NAME=WEIGHTS) are recognised by their name: one that begins
    with eat is phase 1, one that begins with sslam is phase 2.
    """
    for phase, published in NAMES.items():
        if model.lower().startswith(published.lower()):
            return phase
    return model


def entries(data_set: str, metric: str, kind: str, model: str) -> list[dict]:
    """Return the entries of `numbers` in paper.yaml for a row of our tables."""
    wanted = {"data_set": data_set, "metric": metric, "kind": kind, "model": row(model)}
    return [entry for entry in load()["numbers"] if wanted.items() <= entry.items()]


def bounds(entry: dict) -> tuple[float, float]:
    """Return the lowest and highest value of an entry: one number, or `low-high`."""
    values = [float(word) for word in str(entry["value"]).split("-")]
    return values[0], values[-1]


def numbers(data_set: str, metric: str, kind: str, model: str) -> str:
    """Return the published numbers for a row of our tables, `-` where there is none.

    `data_set` is the name in downstream.txt, `kind` is finetune or linear.
    """
    found = [
        f"{entry['value']} ({entry['source']})"
        for entry in entries(data_set, metric, kind, model)
    ]
    curve = authors_curves().get((data_set, kind))
    if curve and metric == "mAP" and row(model) == "phase2":
        values = curve["mAP"]["values"]
        last, best = 100 * values[-1], 100 * max(values)
        found.append(f"{last:.1f} last, {best:.1f} best (log)")
    return ", ".join(found) or "-"


def all_numbers(data_set: str, metric: str, kind: str) -> str:
    """Return in one line what is published on a data set, empty for nothing."""
    parts = [
        f"{name} {text}"
        for model, name in NAMES.items()
        if (text := numbers(data_set, metric, kind, model)) != "-"
    ]
    return "; ".join(parts)


def clips(data_set: str, what: str) -> int | None:
    """Return how many clips the papers have, None when not known.

    Args:
        data_set: Its name in downstream.txt.
        what: `training` or `test`; of one fold, where there are folds.
    """
    return load()["clips"].get(data_set, {}).get(what)


def notes(data_set: str, kind: str) -> list[str]:
    """Return what else is known about a difference from the papers' numbers."""
    return [
        note["text"]
        for note in load()["notes"]
        if note["kind"] in (kind, "any") and data_set in note["data_sets"].split()
    ]
