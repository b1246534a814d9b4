"""All plots: training curves, AP per class, series of test splits, authors' curves."""

import io
import math
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from espnet2_sslam.corpus import read_table
from espnet2_sslam.results.paper import Comparison, band
from espnet2_sslam.results.runs import (
    CELL,
    Experiment,
    Frame,
    History,
    class_precisions,
    select,
    thin_out,
    train_curves,
)
from espnet2_sslam.results.tables import all_series
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
HALF_OF_CLASSES = 30  # a plot has room for twice as many
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


def draw_figures(experiment: Experiment, folder: Path) -> list[tuple[str, Path]]:
    """Draw all plots of an experiment into a folder; returns (caption, file)."""
    drawn = []
    tags = sorted({(phase, tag) for phase, tag, _ in experiment.pretraining})
    # Both phases in one plot, unless one of them has several tags.
    together = len(tags) == len({phase for phase, _ in tags})
    for group in [tags] if together and tags else [[one] for one in tags]:
        runs = {
            (phase, seed): run
            for (phase, tag, seed), run in experiment.pretraining.items()
            if (phase, tag) in group
        }
        name = "pretraining" if together else "_".join(["pretraining", *group[0]])
        plot_training(runs, folder / f"{name}.png")
        names = ", ".join(" ".join(one) for one in group)
        text = f"Pre-training ({names}): losses and spreads over updates."
        drawn.append((text, folder / f"{name}.png"))
    panels: dict[tuple[str, str], dict] = {}
    for tag, data_set, name, series in all_series(experiment):
        panels.setdefault((data_set, name), {})[tag] = series
    for (data_set, name), series_by_tag in panels.items():
        path = folder / f"series_{data_set}_{name}.png"
        plot_series(series_by_tag, name, path)
        drawn.append((f"mAP over {name}, {data_set}, last checkpoints.", path))
    scored = select(experiment.scored, checkpoint="last")
    splits = scored[CELL[:3]].drop_duplicates().sort_values("tag", kind="stable")
    for tag, data_set, split in splits.itertuples(index=False):
        rows = select(scored, tag=tag, data_set=data_set, split=split)
        path = folder / f"per_class_ap_{tag}_{data_set}_{split}.png"
        title = f"{data_set}, {split}: {tag}, last checkpoint"
        classes = class_precisions(rows)
        names = experiment.label_names(data_set)
        plot_per_class(classes, experiment.models(tag), names, title, path)
        drawn.append((f"{tag}: AP per class, {data_set} {split}.", path))
    # The first validation clip as the first model of the last phase meets it.
    finished = {k: r.path for k, r in experiment.pretraining.items() if r.finished}
    wav_scp = experiment.dump / "pretrain" / "valid" / "wav.scp"
    wavs = list(read_table(wav_scp).values())[:2] if wav_scp.exists() else []
    if finished and len(wavs) == 2:
        # Imported here: it takes torch and the method, the other plots do not.
        from espnet2_sslam.results.panels import draw_panel

        phase = max(phase for phase, _, _ in finished)
        model = finished[min(key for key in finished if key[0] == phase)]
        draw_panel(model, [Path(wav) for wav in wavs], folder / "clip.png")
        seen = "its partial mixture, the mask" if phase == "phase2" else "the mask"
        text = f"A clip of {phase}: {seen} and the error of the prediction."
        drawn.append((text, folder / "clip.png"))
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


def plot_training(histories: dict[tuple[str, int], History], path: Path) -> None:
    """Plot every loss term and the variances over updates.

    One panel per statistic; `histories` are the runs by (phase, seed). Training is
    drawn as logged, validation as a point per epoch.
    """
    curves = {key: train_curves(run, list(CURVES)) for key, run in histories.items()}
    names = [n for n in CURVES if any(len(c[n][0]) for c in curves.values())]
    figure, axes = grid(len(names), 3, 4.2, 2.9)
    seeds = sorted({seed for _, seed in histories})
    for axis, name in zip(axes, names, strict=True):
        for (phase, seed), run in sorted(histories.items()):
            steps, values = thin_out(*curves[phase, seed][name])
            colour, line = COLOURS[phase], SEED_LINES[seeds.index(seed) % 4]
            if len(steps):
                axis.plot(steps, values, line, color=colour, lw=1.3)
            axis.plot(*run.epoch_curve("valid", name), "o", color=colour, ms=3.5)
        title, unit = CURVES[name]
        axis.set(title=title, ylabel=unit, xlabel="updates")
    # Colours are phases, lines seeds, points validation.
    phases = sorted({phase for phase, _ in histories})
    entries = {phase: {"color": COLOURS[phase], "lw": 3} for phase in phases}
    for index, seed in enumerate(seeds):
        entries[f"seed {seed}"] = {"color": GREY, "ls": SEED_LINES[index % 4]}
    entries["validation"] = {"color": GREY, "ls": "", "marker": "o", "ms": 4}
    handles = [Line2D([], [], label=k, **style) for k, style in entries.items()]
    figure.legend(handles=handles, loc="upper center", ncols=len(handles))
    save(figure, path, rect=(0, 0, 1, 1 - 0.35 / figure.get_figheight()))


def plot_per_class(
    classes: Frame, models: list[str], names: dict[str, str], title: str, path: Path
) -> None:
    """Plot the AP of every class as bars, one per model, with the spread of seeds.

    Classes stand in the order of the first model's AP under their names; a class
    without a positive clip is left out. Of very many, the ends of the order are shown.

    Args:
        classes: See `class_precisions`.
        models: In the order of the bars; those without a score are left out.
        names: To show, of labels that have one.
        title, path: Of the plot.
    """
    by_model = {m: select(classes, model=m).set_index("class") for m in models}
    by_model = {m: table for m, table in by_model.items() if table["seeds"].any()}
    models = list(by_model)
    reference = by_model[models[0]]
    # Equal ones in the order of their labels.
    scored = reference[reference["seeds"] > 0].sort_index()
    order: list[str] = list(scored.sort_values("mean", kind="stable").index)
    if len(order) > 2 * HALF_OF_CLASSES:
        title += f"\nthe {HALF_OF_CLASSES} lowest and highest of {len(order)} classes"
        order = order[:HALF_OF_CLASSES] + order[-HALF_OF_CLASSES:]
    colour = colours(models)
    height = 0.8 / len(models)
    figure, [axis] = grid(1, 1, 7, 1.3 + len(order) * 0.16 * (len(models) + 1))
    rows = np.arange(len(order))
    for index, model in enumerate(reversed(models)):
        table = by_model[model].loc[order]
        seeds = int(table["seeds"].max())
        axis.barh(
            rows + (index - (len(models) - 1) / 2) * height,
            100 * table["mean"],
            height,
            xerr=100 * table["spread"].fillna(0.0) if seeds > 1 else None,
            error_kw={"lw": 0.8, "ecolor": GREY},
            color=colour[model],
            label=f"{model}, {seeds} seed{'s' * (seeds > 1)}",
        )
    labels = [textwrap.shorten(names.get(c, c), 40, placeholder=" ...") for c in order]
    axis.set_yticks(rows, labels)
    axis.set(xlim=(0, 100), ylim=(-0.6, len(order) - 0.4), title=title)
    axis.set_xlabel("average precision (%), line = spread of the seeds")
    axis.grid(False, axis="y")
    legend = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0), "reverse": True}
    axis.legend(**legend)
    save(figure, path)


def plot_series(panels: dict[str, Frame], name: str, path: Path) -> None:
    """Plot mAP against the number of a split: a panel per title, a line per model.

    `panels` are frames of `tables.all_series`.
    """
    width = 6.4 if len(panels) == 1 else 5.4
    figure, axes = grid(len(panels), 2, width, 4.0, sharey=True)
    colour = colours(model for series in panels.values() for model in series["model"])
    for axis, (title, series) in zip(axes, panels.items(), strict=True):
        lines = list(series.groupby("model", sort=False))
        for index, (model, line) in enumerate(lines):
            seeds = int(line["seeds"].max())
            # Beside each other, so that the bars can be told apart.
            shift = 0.06 * (index - (len(lines) - 1) / 2)
            axis.errorbar(
                line["number"] + shift,
                100 * line["mAP"],
                100 * line["spread"] if seeds > 1 else None,
                label=f"{model}, {seeds} seed{'s' * (seeds > 1)}",
                **{"color": colour[model], "marker": "o", "ms": 4, "capsize": 2},
            )
        chance = 100 * series.groupby("number")["chance"].mean()
        axis.plot(chance.index, chance, ":", color=GREY, label="chance")
        axis.set(xlabel=AXES.get(name, name), title=title)
        axis.set_xticks(list(chance.index))
        axis.legend(loc="best")
    for axis in axes[::2]:
        axis.set_ylabel("mAP (%), bar = spread of the seeds")
        axis.set_ylim(bottom=0)
    save(figure, path)


def plot_curves(
    comparisons: list[Comparison], curve: dict, title: str, path: Path
) -> None:
    """Draw a panel per measure: band, the authors' curve and the run's points."""
    figure, axes = grid(len(comparisons), 2, 5.2, 3.6)
    for axis, run in zip(axes, comparisons, strict=True):
        steps = np.array(curve[run.measure]["updates"])
        scale, unit = (100, " (%)") if run.measure == "mAP" else (1, "")
        values, low, high = (scale * x for x in band(curve, run.measure, steps))
        authors = COLOURS["phase2"]
        axis.fill_between(steps, low, high, color=authors, alpha=0.15, label="band")
        axis.plot(steps, values, color=authors, label="authors")
        for part, colour, name in (
            (~run.outside, "#0072B2", "this run"),
            (run.outside, "black", "this run, outside"),
        ):
            if part.any():
                points = run.updates[part], scale * run.values[part]
                axis.plot(*points, "o", color=colour, ms=3.5, label=name)
        axis.set(title=TITLES[run.measure] + unit, xlabel="updates")
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
    if figure.get_layout_engine() is None:
        figure.tight_layout(**layout)
    stream = io.BytesIO()
    # Without the software's name the same numbers give the same bytes.
    figure.savefig(stream, format="png", metadata={"Software": None})
    plt.close(figure)
    write_bytes(Path(path), stream.getvalue())
