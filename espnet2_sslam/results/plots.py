"""Plots of training curves and of average precision per class."""

import textwrap
from pathlib import Path

import numpy as np

from espnet2_sslam.results.history import History, thin_out, train_curves
from espnet2_sslam.results.record import Record, Split
from espnet2_sslam.results.style import COLOURS, SEED_LINES, colours, plt, save

HALF_OF_CLASSES = 30  # a plot has room for twice as many
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


def plot_training(histories: dict[tuple[str, int], History], path: Path) -> None:
    """Plot every loss term and the variances over updates.

    One panel per statistic; `histories` are the runs by (phase, seed). Training is
    drawn as logged, validation as a point per epoch.
    """
    curves = {key: train_curves(run, list(CURVES)) for key, run in histories.items()}
    names = [n for n in CURVES if any(len(c[n][0]) for c in curves.values())]
    columns = min(len(names), 3) or 1
    rows = -(-len(names) // columns) or 1
    figure, axes = plt.subplots(
        rows, columns, figsize=(4.2 * columns, 2.9 * rows), squeeze=False
    )
    seeds = sorted({seed for _, seed in histories})
    for axis, name in zip(axes.flat, names):
        for (phase, seed), run in sorted(histories.items()):
            steps, values = thin_out(*curves[phase, seed][name])
            colour, line = COLOURS[phase], SEED_LINES[seeds.index(seed) % 4]
            if len(steps):
                axis.plot(steps, values, line, color=colour, lw=1.3)
            axis.plot(*run.epoch_curve("valid", name), "o", color=colour, ms=3.5)
        title, unit = CURVES[name]
        axis.set(title=title, ylabel=unit, xlabel="updates")
    for axis in list(axes.flat)[len(names) :]:
        axis.set_axis_off()
    handles, labels = _training_legend(histories, seeds)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.35 / figure.get_figheight()))
    figure.legend(handles, labels, loc="upper center", ncols=len(labels))
    save(figure, path)


def plot_per_class(record: Record, split: Split, path: Path) -> None:
    """Plot the AP of every class as bars, one per model, with the spread of seeds.

    Classes stand in the order of the first model's AP under their names; a class
    without a positive clip is left out. Of very many, the ends of the order are shown.
    """
    names, cells = record.label_names(split.data_set), record.per_class(split)
    models = [m for m in cells if any(cell.values for cell in cells[m].values())]
    labels = {label for m in models for label, cell in cells[m].items() if cell.values}
    reference = cells[models[0]]
    order = sorted(labels, key=lambda c: (reference[c].mean, c))
    title = (
        f"{split.data_set}, {split.split}: {split.tag}, {split.checkpoint} checkpoint"
    )
    if len(order) > 2 * HALF_OF_CLASSES:
        title += f"\nthe {HALF_OF_CLASSES} lowest and highest of {len(order)} classes"
        order = order[:HALF_OF_CLASSES] + order[-HALF_OF_CLASSES:]
    colour = colours(models)
    height = 0.8 / len(models)
    figure, axis = plt.subplots(
        figsize=(7, 1.3 + len(order) * 0.16 * (len(models) + 1))
    )
    for index, model in enumerate(reversed(models)):
        where = np.arange(len(order)) + (index - (len(models) - 1) / 2) * height
        values = [100 * cells[model][label].mean for label in order]
        spread = [100 * (cells[model][label].spread or 0.0) for label in order]
        seeds = max(len(cells[model][label].values) for label in order)
        axis.barh(
            where,
            values,
            height,
            xerr=spread if seeds > 1 else None,
            error_kw={"lw": 0.8, "ecolor": "#444444"},
            color=colour[model],
            label=f"{model}, {seeds} seed{'s' * (seeds > 1)}",
        )
    shown = [textwrap.shorten(names.get(c, c), 40, placeholder=" ...") for c in order]
    axis.set_yticks(np.arange(len(order)), shown)
    axis.set(xlim=(0, 100), ylim=(-0.6, len(order) - 0.4))
    axis.set_xlabel("average precision (%), line = spread of the seeds")
    axis.set_title(title)
    axis.grid(False, axis="y")
    handles, entries = axis.get_legend_handles_labels()
    figure.tight_layout()
    axis.legend(
        handles[::-1], entries[::-1], loc="upper left", bbox_to_anchor=(1.0, 1.0)
    )
    figure.tight_layout()
    save(figure, path)


def _training_legend(histories: dict, seeds: list[int]) -> tuple[list, list[str]]:
    """Return handles and labels: colours are phases, lines seeds, points validation."""
    phases = sorted({phase for phase, _ in histories})
    line, handles = plt.Line2D, []
    handles += [line([], [], color=COLOURS[phase], lw=3) for phase in phases]
    handles += [
        line([], [], color="#444444", ls=SEED_LINES[i % 4]) for i in range(len(seeds))
    ]
    handles.append(line([], [], color="#444444", ls="", marker="o", ms=4))
    labels = [*phases, *(f"seed {seed}" for seed in seeds), "validation"]
    return handles, labels
