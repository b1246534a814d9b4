"""Test splits that differ by a number, such as degree_1, degree_2: a curve each."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from espnet2_sslam.results.record import Record
from espnet2_sslam.results.runs import Scores
from espnet2_sslam.results.style import colours, plt, save
from espnet2_sslam.results.summary import models_present, summarise
from espnet2_sslam.results.tables import markdown
from espnet2_sslam.store import write_csv

LEGEND = (
    "mAP of the last checkpoints. `chance` is the mean share of positive clips per "
    "class, about what random scores would get: it rises with the number of labels, so "
    "a higher mAP does not mean an easier task; compare the models."
)
AXES = {"degree": "degree of polyphony (sources per mixture)"}
NUMBERED = re.compile(r"(.+)_(\d+)")


class Point(NamedTuple):
    """One model on one split; `chance` is what scores at random would give."""

    model: str
    number: int
    mean: float
    spread: float | None
    seeds: int
    chance: float


def numbered_splits(tests: list[str]) -> dict[str, list[str]]:
    """Return {name: splits in the order of their numbers} of series of 2 and more."""
    found: dict[str, list[str]] = {}
    for test in tests:
        split = Path(test).name
        if match := NUMBERED.fullmatch(split):
            found.setdefault(match[1], []).append(split)
    return {
        name: sorted(splits, key=number_of)
        for name, splits in found.items()
        if len(splits) > 1
    }


def number_of(split: str) -> int:
    """Return the number at the end of a split's name."""
    return int(NUMBERED.fullmatch(split)[2])


def chance_level(metrics: dict) -> float:
    """Return the mAP of random scores: the mean share of positive clips per class."""
    counts = [count for count in metrics["positives"].values() if count]
    return float(np.mean(counts)) / metrics["num_clips"]


def points(
    scores: Scores, tag: str, data_set: str, splits: list[str], checkpoint: str = "last"
) -> list[Point]:
    """Return mAP of each model on each split: mean and spread over the seeds."""
    found = []
    for model in models_present(scores, tag):
        for split in splits:
            cell = summarise(scores, tag, model, data_set, split, checkpoint, "mAP")
            chance = [
                chance_level(metrics)
                for key, metrics in scores.found.items()
                if (key.tag, key.data_set, key.split) == (tag, data_set, split)
            ]
            if cell.values:
                found.append(
                    Point(
                        *(model, number_of(split), cell.mean, cell.spread),
                        *(len(cell.values), float(np.mean(chance))),
                    )
                )
    return found


def all_series(record: Record) -> Iterator[tuple[str, str, str, list[Point]]]:
    """Yield (tag, data set, name, points) of every series that was scored."""
    for tag in record.tags:
        for data_set, line in record.data_sets.items():
            for name, splits in numbered_splits(line.tests).items():
                found = points(record.scores, tag, data_set, splits)
                if found:
                    yield tag, data_set, name, found


def series_sections(record: Record) -> list[str]:
    """Return heading and table of every series: a row per model, and chance."""
    parts = []
    for tag, data_set, name, found in all_series(record):
        numbers = sorted({point.number for point in found})
        by_model: dict[str, dict[int, str]] = {}
        for point in found:
            text = f"{100 * point.mean:.1f}"
            if point.spread is not None:
                text += f" ± {100 * point.spread:.1f}"
            by_model.setdefault(point.model, {})[point.number] = text
            by_model.setdefault("chance", {})[
                point.number
            ] = f"{100 * point.chance:.1f}"
        by_model["chance"] = by_model.pop("chance")  # the last row
        rows = [
            [model, *(cells.get(number, "missing") for number in numbers)]
            for model, cells in by_model.items()
        ]
        table = markdown([name, *map(str, numbers)], rows)
        parts += [f"## {data_set} over {name}: {tag}", LEGEND, table]
    return parts


def plot_series(panels: dict[str, list[Point]], name: str, path: Path) -> None:
    """Plot mAP against the number: a panel per title, a line per model, and chance."""
    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(
        *(rows, columns),
        figsize=((6.4, 10.8)[columns - 1], 4.0 * rows),
        sharey=True,
        squeeze=False,
    )
    models = dict.fromkeys(p.model for found in panels.values() for p in found)
    colour = colours(models)
    for axis, (title, found) in zip(axes.flat, panels.items()):
        _draw_lines(axis, found, colour)
        numbers = sorted({point.number for point in found})
        axis.set(xlabel=AXES.get(name, name), title=title)
        axis.set_xticks(numbers)
        axis.legend(loc="best")
    for axis in list(axes.flat)[len(panels) :]:
        axis.remove()
    for axis in axes[:, 0]:
        axis.set_ylabel("mAP (%), bar = spread of the seeds")
        axis.set_ylim(bottom=0)
    figure.tight_layout()
    save(figure, path)


def _draw_lines(axis, found: list[Point], colour: dict[str, str]) -> None:
    """Draw the models' lines with their bars, and that of chance."""
    models = list(dict.fromkeys(point.model for point in found))
    for index, model in enumerate(models):
        own = [point for point in found if point.model == model]
        seeds = max(point.seeds for point in own)
        # Beside each other, so that the bars can be told apart.
        shift = 0.06 * (index - (len(models) - 1) / 2)
        axis.errorbar(
            [point.number + shift for point in own],
            [100 * point.mean for point in own],
            [100 * point.spread for point in own] if seeds > 1 else None,
            color=colour[model],
            marker="o",
            ms=4,
            capsize=2,
            label=f"{model}, {seeds} seed{'s' * (seeds > 1)}",
        )
    chance = sorted({point.number: 100 * point.chance for point in found}.items())
    axis.plot(*zip(*chance), ":", color="#444444", label="chance")


def write_series_csv(found: list[Point], name: str, path: Path) -> None:
    """Write the plotted numbers."""
    rows = [
        [
            *(point.model, point.number, f"{point.mean:.6f}"),
            "" if point.spread is None else f"{point.spread:.6f}",
            *(point.seeds, f"{point.chance:.6f}"),
        ]
        for point in found
    ]
    write_csv(path, ["model", name, "mAP", "spread", "seeds", "chance"], rows)
