"""All plots: training curves, AP per class, series of test splits, authors' curves."""

import io
import itertools
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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
# Statistics of pretrain_model.py: title and unit.
ERROR, SPREAD = "squared error / √D", "standard deviation"
CURVES = {
    "loss": ("total loss", ERROR),
    "loss_utterance": ("utterance loss", ERROR),
    "loss_patch": ("patch loss (dots: nothing learnt)", ERROR),
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


def plot_training(
    histories: dict[tuple[str, str, int], History],
    path: Path,
    names: Iterable[str] = tuple(CURVES),
) -> None:
    """Plot every loss term and the variances over updates, a panel per statistic.

    `histories` are the runs by (phase, tag, seed). Colours are phases and tags, lines
    seeds: epoch means of training, and of validation as points. Dots are the patch loss
    of predicting nothing but the targets' mean. `names` are the statistics, of CURVES.
    """
    runs = histories.values()
    names = [n for n in names if any(len(r.epoch_curve("train", n)[0]) for r in runs)]
    figure, axes = grid(len(names), 3, 4.2, 2.9)
    palette = itertools.cycle([COLOURS["phase1"], COLOURS["phase2"], *MORE_COLOURS])
    colour = dict(zip(dict.fromkeys(k[:2] for k in histories), palette, strict=False))
    lines = itertools.cycle(SEED_LINES)
    line = dict(zip(dict.fromkeys(k[2] for k in histories), lines, strict=False))
    for axis, name in zip(axes, names, strict=True):
        for (phase, tag, seed), run in histories.items():
            style = {"color": colour[phase, tag], "lw": 1.3, "ms": 3.5}
            label = f"{phase} {tag}, seed {seed}"
            train = run.epoch_curve("train", name)
            axis.plot(*train, line[seed], label=label, **style)
            axis.plot(*run.epoch_curve("valid", name), "o", **style)
            if name == "loss_patch":
                axis.plot(*run.unlearnt_loss("train"), ":", color=GREY, lw=1)
        title, unit = CURVES[name]
        axis.set(title=title, ylabel=unit, xlabel="updates (points: validation)")
    handles, labels = axes[0].get_legend_handles_labels()
    rows = math.ceil(len(labels) / 3)
    figure.legend(handles, labels, loc="upper center", ncols=3)
    save(figure, path, rect=(0, 0, 1, 1 - (0.1 + 0.25 * rows) / figure.get_figheight()))


def plot_series(panels: dict[str, Frame], name: str, path: Path) -> None:
    """Plot mAP against the number of a split: a panel per title, a line per model.

    `panels` are frames of `all_series`.
    """
    figure, axes = grid(len(panels), 2, 5.6, 4.0, sharey=True)
    models = {model: None for series in panels.values() for model in series["model"]}
    others = (model for model in models if model not in COLOURS)
    colour = COLOURS | dict(zip(others, itertools.cycle(MORE_COLOURS), strict=False))
    for axis, (title, series) in zip(axes, panels.items(), strict=True):
        lines = series.pivot(index="number", columns="model", values=["mAP", "spread"])
        lines = 100 * lines
        style: dict[str, Any] = {"marker": "o", "ms": 4, "capsize": 2, "color": colour}
        lines["mAP"].plot(ax=axis, yerr=lines["spread"].fillna(0), **style)
        chance = 100 * series.groupby("number")["chance"].mean()
        axis.plot(chance.index, chance, ":", color=GREY, label="chance")
        axis.set(xlabel=name, title=title, xticks=list(chance.index))
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
        axis.set(title=f"{measure} on the test set{unit}", xlabel="updates")
        axis.legend(loc="best")
    figure.suptitle(title)
    save(figure, path)


def save(figure: Figure, path: Path, **layout: Any) -> None:
    """Write a figure as PNG, whole or not at all, and close it."""
    figure.tight_layout(**layout)
    stream = io.BytesIO()
    # Without the software's name the same numbers give the same bytes.
    figure.savefig(stream, format="png", metadata={"Software": None})
    plt.close(figure)
    write_bytes(Path(path), stream.getvalue())
