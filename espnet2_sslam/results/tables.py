"""Scores as Markdown and CSV tables."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from espnet2_sslam.corpus import Downstream
from espnet2_sslam.results import paper
from espnet2_sslam.results.record import Record, Split
from espnet2_sslam.results.runs import CHECKPOINTS, Key, Scores
from espnet2_sslam.results.summary import Cell, models_present, summarise
from espnet2_sslam.store import write_csv


def markdown(header: list[str], rows: Iterable[Iterable]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(str(x) for x in line)} |" for line in lines)


def show(cell: Cell) -> str:
    """Return a cell in percent: mean, spread, and what is missing from it."""
    if not cell.values:
        return "missing"
    text = f"{100 * cell.mean:.1f}"
    text += " (one seed)" if cell.spread is None else f" ± {100 * cell.spread:.1f}"
    if cell.incomplete:
        text += f" ({len(cell.values)} of {len(cell.values) + len(cell.incomplete)})"
    return text


def main_metric(task: str) -> str:
    """Return the metric of a task that papers report."""
    return "accuracy" if task == "multi_class" else "mAP"


def score_table(
    scores: Scores, tag: str, data_set: str, splits: list[str], task: str, kind: str
) -> str:
    """Return one data set's table: a row per model, a column per split and checkpoint.

    The papers' column stands beside where they report the metric for the data set.
    """
    metrics = ["accuracy", "mAP"] if task == "multi_class" else ["mAP"]
    columns = [(m, s, c) for m in metrics for s in splits for c in CHECKPOINTS]
    models = models_present(scores, tag)
    published = {
        model: paper.numbers(data_set, metrics[0], kind, model) for model in models
    }
    with_paper = any(number != "-" for number in published.values())
    header = ["model", *(f"{s}, {m}, {c}" for m, s, c in columns)]
    header += [f"papers, {metrics[0]}"] if with_paper else []
    rows = []
    for model in models:
        cells = [
            summarise(scores, tag, model, data_set, s, c, m) for m, s, c in columns
        ]
        row = [model, *map(show, cells)]
        rows.append([*row, published[model]] if with_paper else row)
    return markdown(header, rows)


def write_scores_csv(path: Path, scores: Scores) -> None:
    """Write every single score, unaveraged: one line per run, split and checkpoint."""
    rows = [
        [
            *key,
            *(_number(m.get(name)) for name in ("mAP", "accuracy", "auc", "d_prime")),
            *_interval(m),
            m["num_clips"],
        ]
        for key, m in sorted(scores.found.items())
    ]
    measures = ["mAP", "accuracy", "auc", "d_prime", "low", "high", "clips"]
    write_csv(path, [*Key._fields, *measures], rows)


def write_per_class_csv(path: Path, record: Record, split: Split) -> None:
    """Write name and AP of every class: each model's mean and spread over seeds."""
    names, cells = record.label_names(split.data_set), record.per_class(split)
    labels = sorted({label for by_class in cells.values() for label in by_class})
    rows = []
    for label in labels:
        row: list = [label, names.get(label, label)]
        for model in cells:
            cell = cells[model].get(label)
            known = cell is not None and cell.values
            row += [_number(cell.mean), _number(cell.spread)] if known else ["", ""]
        rows.append(row)
    header = ["class", "name"]
    for model in cells:
        header += [f"{model}_AP", f"{model}_spread"]
    write_csv(path, header, rows)


def measures(scores: Scores, data_sets: dict[str, Downstream]) -> list[list]:
    """Return rows of tag, data set, split, model, interval, ROC area, d'.

    Of the last checkpoints. The interval is that over clips, the mean of the seeds'
    bounds; folds have their own test clips, so none is shown for them.
    """
    groups: dict[tuple[str, str, str, str], list[Key]] = {}
    for key in scores.found:
        if key.checkpoint == "last":
            group = (key.tag, key.data_set, key.split, key.model)
            groups.setdefault(group, []).append(key)
    rows = []
    for group, keys in groups.items():
        found = [scores.found[key] for key in keys]
        folds = {key.fold for key in keys}
        bounds = [_interval(m) for m in found] if len(folds) == 1 else []
        metric = main_metric(data_sets[group[1]].task)
        rows.append([*group, *_more(found, bounds, metric)])
    return sorted(rows, key=lambda row: row[:3])


def _more(metrics: list[dict], bounds: list[list[str]], metric: str) -> list[str]:
    """Return the cells of a row: interval, ROC area, d'; `-` where one is not known."""
    cells = ["-"]
    if bounds and all(low for low, _ in bounds):
        low, high = np.mean([[float(x) for x in pair] for pair in bounds], axis=0)
        cells = [f"{metric} {100 * low:.1f} to {100 * high:.1f}"]
    for name in ("auc", "d_prime"):
        values = [m.get(name) for m in metrics]
        known = all(value is not None for value in values)
        cells.append(f"{np.mean(values):.3f}" if known else "-")
    return cells


def _interval(metrics: dict) -> list[str]:
    """Return the bounds of the main metric's interval, empty where there is none."""
    name = main_metric(metrics["task"])
    bounds = metrics.get("intervals", {}).get(name)
    return [_number(bound) for bound in bounds] if bounds else ["", ""]


def _number(value) -> str:
    """Return a number for a CSV field, empty for None."""
    return "" if value is None else f"{value:.6f}"
