"""All plots: training curves, AP per class, series of test splits, authors' curves."""

import io
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from espnet2_sslam.results.experiment import Experiment, Frame, all_series
from espnet2_sslam.results.paper import band
from espnet2_sslam.results.runs import History
from espnet2_sslam.store import write_bytes

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# Okabe and Ito's colours, distinct for the colour-blind and in grey.
COLOURS = {"random": "#999999", "phase1": "#56B4E9", "phase2": "#D55E00"}
MORE_COLOURS = ("#009E73", "#E69F00", "#CC79A7", "#0072B2", "#F0E442")
SEED_LINES = ("-", "--", ":", "-.")
GREY = "#444444"
look: dict[Any, Any] = {"figure.dpi": 110, "font.size": 10, "legend.frameon": False}
look |= {"axes.grid": True, "axes.axisbelow": True, "grid.alpha": 0.3}
look |= {"axes.spines.top": False, "axes.spines.right": False}
plt.rcParams.update(look)
AXES = {"degree": "degree of polyphony (sources per mixture)"}
TITLES = {"mAP": "mAP on the test set", "valid_loss": "loss on the test set"}
# Statistics of pretrain_model.py: title and unit.
ERROR, SPREAD = "squared error / √D", "standard deviation"
CURVES = {
    "loss": ("total loss", ERROR),
    "loss_utterance": ("utterance loss", ERROR),
    "loss_patch": ("patch loss", ERROR),
    "loss_retention": ("source retention loss", ERROR),
    "loss_retention_utterance": ("source retention loss on utterances", ERROR),
    "target_var": ("spread of the targets (0: collapse)", SPREAD),
    "prediction_var": ("spread of the predictions", SPREAD),
    "grad_norm": ("gradient", "norm before clipping"),
}


def draw_figures(experiment: Experiment, folder: Path) -> list[tuple[str, str]]:
    """Draw all plots of an experiment into a folder; returns (caption, file name)."""
    drawn = []
    if experiment.pretraining:
        plot_training(experiment.pretraining, folder / "pretraining.png")
        trained = dict.fromkeys(f"{p} {tag}" for p, tag, _ in experiment.pretraining)
        text = f"Pre-training ({', '.join(trained)}): losses and spreads over updates."
        drawn.append((text, "pretraining.png"))
    panels: dict[tuple[str, str], dict[str, Frame]] = {}
    for tag, data_set, name, series in all_series(experiment):
        panels.setdefault((data_set, name), {})[tag] = series
    for (data_set, name), series_by_tag in panels.items():
        file = f"series_{data_set}_{name}.png"
        plot_series(series_by_tag, name, folder / file)
        drawn.append((f"mAP over {name}, {data_set}, last checkpoints.", file))
    return drawn


def grid(
    number: int, columns: int, width: float, height: float, **options: Any
) -> tuple[Figure, list[Axes]]:
    """Return a figure of `number` panels, of width x height inches each."""
    columns = max(min(number, columns), 1)
    rows = max(math.ceil(number / columns), 1)
    size = (width * columns, height * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, **options)
    for axis in axes.flat[number:]:
        axis.set_axis_off()
    return figure, list(axes.flat[:number])


def plot_training(histories: dict[tuple[str, str, int], History], path: Path) -> None:
    """Plot every loss term and the variances over updates, a panel per statistic.

    `histories` are the runs by (phase, tag, seed). Colours are phases and tags, lines
    seeds: epoch means of training, and of validation as points.
    """
    curves = {
        (name, split, key): run.epoch_curve(split, name)
        for name in CURVES
        for key, run in histories.items()
        for split in ("train", "valid")
    }
    names = [n for n in CURVES if any(len(curves[n, "train", k][0]) for k in histories)]
    figure, axes = grid(len(names), 3, 4.2, 2.9)
    seeds = list(dict.fromkeys(seed for *_, seed in histories))
    trained = list(dict.fromkeys(f"{phase} {tag}" for phase, tag, _ in histories))
    palette = [COLOURS["phase1"], COLOURS["phase2"], *MORE_COLOURS]
    colour = dict(zip(trained, palette * len(trained), strict=False))
    for axis, name in zip(axes, names, strict=True):
        for key in histories:
            style = {"color": colour[f"{key[0]} {key[1]}"], "lw": 1.3, "ms": 3.5}
            line = SEED_LINES[seeds.index(key[2]) % 4]
            axis.plot(*curves[name, "train", key], line, **style)
            axis.plot(*curves[name, "valid", key], "o", **style)
        title, unit = CURVES[name]
        axis.set(title=title, ylabel=unit, xlabel="updates")
    entries: dict[str, dict] = {
        name: {"color": colour[name], "lw": 3} for name in trained
    }
    for index, seed in enumerate(seeds):
        entries[f"seed {seed}"] = {"color": GREY, "ls": SEED_LINES[index % 4]}
    entries["validation"] = {"color": GREY, "ls": "", "marker": "o", "ms": 4}
    handles = [Line2D([], [], label=k, **style) for k, style in entries.items()]
    figure.legend(handles=handles, loc="upper center", ncols=len(handles))
    save(figure, path, rect=(0, 0, 1, 1 - 0.35 / figure.get_figheight()))


def plot_series(panels: dict[str, Frame], name: str, path: Path) -> None:
    """Plot mAP against the number of a split: a panel per title, a line per model.

    `panels` are frames of `all_series`.
    """
    figure, axes = grid(len(panels), 2, 5.6, 4.0, sharey=True)
    colour = colours(model for series in panels.values() for model in series["model"])
    for axis, (title, series) in zip(axes, panels.items(), strict=True):
        lines = series.pivot(index="number", columns="model", values=["mAP", "spread"])
        lines = 100 * lines
        style: dict[str, Any] = {"marker": "o", "ms": 4, "capsize": 2, "color": colour}
        lines["mAP"].plot(ax=axis, yerr=lines["spread"].fillna(0), **style)
        chance = 100 * series.groupby("number")["chance"].mean()
        axis.plot(chance.index, chance, ":", color=GREY, label="chance")
        axis.set(xlabel=AXES.get(name, name), title=title, xticks=list(chance.index))
        axis.legend(loc="best")
    for axis in axes[::2]:
        axis.set_ylabel("mAP (%), bar = spread of the seeds")
        axis.set_ylim(bottom=0)
    save(figure, path)


def plot_curves(runs: dict[str, Frame], curve: dict, title: str, path: Path) -> None:
    """Draw a panel per measure of `compare_run`: band, authors' curve, run's points."""
    figure, axes = grid(len(runs), 2, 5.2, 3.6)
    for axis, (measure, points) in zip(axes, runs.items(), strict=True):
        steps = np.array(curve[measure]["updates"])
        scale, unit = (100, " (%)") if measure == "mAP" else (1, "")
        values, low, high = (scale * x for x in band(curve, measure, steps))
        authors = COLOURS["phase2"]
        axis.fill_between(steps, low, high, color=authors, alpha=0.15, label="band")
        axis.plot(steps, values, color=authors, label="authors")
        for outside, part in points.groupby("outside"):
            colour, name = ("black", ", outside") if outside else ("#0072B2", "")
            dots = {"color": colour, "ms": 3.5, "label": f"this run{name}"}
            axis.plot(part["updates"], scale * part["values"], "o", **dots)
        axis.set(title=TITLES[measure] + unit, xlabel="updates")
        axis.legend(loc="best")
    figure.suptitle(title)
    save(figure, path)


def colours(models: Iterable[str]) -> dict[str, str]:
    """Return a colour for each model, the same in every plot of these models."""
    others = dict.fromkeys(model for model in models if model not in COLOURS)
    more = {m: MORE_COLOURS[i % len(MORE_COLOURS)] for i, m in enumerate(others)}
    return {**COLOURS, **more}


def save(figure: Figure, path: Path, **layout: Any) -> None:
    """Write a figure as PNG, whole or not at all, and close it."""
    figure.tight_layout(**layout)
    stream = io.BytesIO()
    # Without the software's name the same numbers give the same bytes.
    figure.savefig(stream, format="png", metadata={"Software": None})
    plt.close(figure)
    write_bytes(Path(path), stream.getvalue())
