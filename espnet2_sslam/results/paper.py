"""Published numbers to stand beside ours: paper.yaml and authors_curves.yaml."""

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


def published_model(model: str) -> str:
    """Return which published model (a key of NAMES) a model of ours stands beside.

    Weights from elsewhere (NAME=WEIGHTS) are recognised by their name: one that begins
    with eat is phase 1, one that begins with sslam is phase 2; others stay themselves.
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


def bounds(entry: dict) -> tuple[float, float]:
    """Return the lowest and highest value of an entry: one number, or `low-high`."""
    values = [float(word) for word in str(entry["value"]).split("-")]
    return values[0], values[-1]


def numbers(data_set: str, metric: str, kind: str, model: str) -> str:
    """Return the published numbers for a row of our tables, `-` where there is none.

    `data_set` is the name in downstream.txt, `kind` is finetune or linear.
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


def clips(data_set: str, role: str) -> int | None:
    """Return how many clips the papers have, None when not known.

    Args:
        data_set: Its name in downstream.txt.
        role: `training` or `test`; of one fold, where there are folds.
    """
    return load()["clips"].get(data_set, {}).get(role)


def notes(data_set: str, kind: str) -> list[str]:
    """Return what else is known about a difference from the papers' numbers."""
    return [
        note["text"]
        for note in load()["notes"]
        if note["kind"] in (kind, "any") and data_set in note["data_sets"].split()
    ]
