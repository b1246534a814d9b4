"""RESULTS.md: everything that finished runs say, with what made them."""

from pathlib import Path

from espnet2_sslam.machine import environment
from espnet2_sslam.results import paper, tables
from espnet2_sslam.results.data import data_section
from espnet2_sslam.results.differences import difference_sections
from espnet2_sslam.results.figures import draw_figures
from espnet2_sslam.results.history import History
from espnet2_sslam.results.record import Record
from espnet2_sslam.results.runs import MODELS
from espnet2_sslam.results.series import series_sections
from espnet2_sslam.results.summary import compare, models_present, summarise
from espnet2_sslam.store import write_text

LEGEND = (
    "Scores are in percent: mean ± standard deviation over the seeds. A seed's score "
    "is the mean over its folds, where there are folds. `last` is the model after the "
    "last epoch, `best` the epoch with the best validation score."
)
OPTIMISTIC = (
    "This data set has no validation split: `best` was chosen on the test clips and is "
    "optimistic; compare `last`."
)
CHOSEN = "`best` was chosen on `{}`: its score there is optimistic."
MEASURES = (
    "Of the last checkpoints, means over the seeds: the 95 % bootstrap interval of the "
    "main metric over test clips (how much it would change with other clips of the "
    "same kind; not shown for folds, which have clips of their own), the macro area "
    "under the ROC curve and d'."
)
COMPARISONS = (
    ("phase1", "random", ""),
    ("phase2", "random", ""),
    ("phase2", "phase1", "What phase 2 adds: "),
)  # models of other names are compared with random
SETTINGS = (
    "`settings` is a hash of all options but seed, paths and machine: runs with the "
    "same one were trained alike."
)


def write_all(record: Record, output: Path) -> None:
    """Write RESULTS.md, and CSV files and plots into a folder beside it.

    Raises:
        ValueError: for an output without a suffix, which would be the folder's name.
    """
    output = Path(output)
    folder = output.with_name(output.stem.lower())
    if folder == output:
        raise ValueError(f"--output {output} needs a suffix, such as {output}.md")
    tables.write_scores_csv(folder / "scores.csv", record.scores)
    for split in record.splits:
        path = folder / f"per_class_ap_{'_'.join(split)}.csv"
        tables.write_per_class_csv(path, record, split)
    write_text(output, _report(record, draw_figures(record, folder), folder.name))


def findings(record: Record) -> list[str]:
    """Return the sentences on what pre-training and phase 2 bring (last checkpoint)."""
    lines = []
    for tag, data_set, split, checkpoint in record.splits:
        if checkpoint != "last":
            continue
        metric = tables.main_metric(record.data_sets[data_set].task)
        expected = models_present(record.scores, tag)
        cells = {
            model: summarise(
                record.scores, tag, model, data_set, split, checkpoint, metric
            )
            for model in expected
        }
        where = f"{tag}, {data_set} {split}, {metric}"
        named = [(m, "random", "") for m in expected if m not in MODELS]
        for ours, other, start in [*COMPARISONS, *named]:
            if ours in expected and other in expected:
                sentence = compare(ours, cells[ours], other, cells[other], where)
                lines.append(start + sentence)
    return lines


def _report(record: Record, plots: list[tuple[str, Path]], folder: str) -> str:
    """Return the text of RESULTS.md."""
    parts = [
        "# Results",
        _made_with(record),
        "## What the numbers say",
        "\n".join(f"- {line}" for line in findings(record)) or "Nothing to compare.",
        LEGEND,
        *_score_sections(record),
        *difference_sections(record),
        *series_sections(record),
        *_measures_section(record),
        f"Every single score is in `{folder}/scores.csv`, the average precision of "
        f"every class in `{folder}/per_class_ap_*.csv`.",
        *_missing_section(record),
        "## Pre-training runs",
        _pretraining_table(record),
        "## Downstream runs",
        _downstream_table(record),
        SETTINGS,
        *data_section(record.dump),
    ]
    if plots:
        parts.append("## Plots")
    parts += [f"{text}\n\n![{text}]({folder}/{path.name})" for text, path in plots]
    return "\n\n".join(parts) + "\n"


def _made_with(record: Record) -> str:
    """Return the header table: when, with what, where, how long."""
    made = environment()
    hours = {
        "pre-training": sum(run.hours for run in record.pretraining.values()),
        "downstream": sum(run.hours for run in record.finetuning.values()),
    }
    made["training time"] = ", ".join(f"{k} {v:.2f} h" for k, v in hours.items())
    return tables.markdown(["what", "value"], made.items())


def _score_sections(record: Record) -> list[str]:
    """Return a heading and a table per fine-tuning tag and data set."""
    parts, sources, known = [], set(), paper.load()["sources"]
    for tag in record.tags:
        for data_set, line in record.data_sets.items():
            names = [Path(test).name for test in line.tests]
            table = tables.score_table(
                record.scores, tag, data_set, names, line.task, record.kind(tag)
            )
            parts += [f"## {data_set}: {tag}", table]
            if line.valid in line.tests:
                valid = Path(line.valid).name
                parts.append(OPTIMISTIC if names == [valid] else CHOSEN.format(valid))
            metric = tables.main_metric(line.task)
            published = paper.all_numbers(data_set, metric, record.kind(tag))
            if published:
                parts.append(f"Published {metric}: {published}.")
                sources |= {source for source in known if f"({source})" in published}
    if sources:
        parts.append("\n".join(f"- {name}: {known[name]}" for name in sorted(sources)))
    return parts


def _measures_section(record: Record) -> list[str]:
    """Return heading, legend and table of the other measures."""
    rows = tables.measures(record.scores, record.data_sets)
    header = ["tag", "data set", "split", "model"]
    header += ["95 % interval", "ROC area", "d'"]
    return ["## Intervals, ROC areas", MEASURES, tables.markdown(header, rows)]


def _missing_section(record: Record) -> list[str]:
    """List what should be there and is not."""
    missing: dict[str, list[str]] = {}
    for key in record.scores.missing:
        missing.setdefault(key.run, []).append(f"{key.split} {key.checkpoint}")
    if not missing and not record.unfinished:
        return ["All expected runs are there and finished."]
    parts = ["## Missing or unfinished runs"]
    if missing:
        parts.append(
            "Not scored, and in no average (a seed counts with all its folds):"
        )
        lines = (f"- {run}: {', '.join(what)}" for run, what in missing.items())
        parts.append("\n".join(lines))
    if record.unfinished:
        parts.append("Not trained to the end:")
        parts.append("\n".join(f"- {line}" for line in record.unfinished))
    return parts


def _pretraining_table(record: Record) -> str:
    """Return a table with settings, time and final validation values."""
    header = ["phase", "tag", "seed", "epochs", "updates", "hours", "settings"]
    header += ["torch", "espnet", "machine", "validation loss", "target spread"]
    rows = []
    for (phase, tag, seed), run in record.pretraining.items():
        final = [run.epoch_curve("valid", name)[1] for name in ("loss", "target_var")]
        rows.append(
            [
                *(phase, tag, seed, run.epochs, run.updates, f"{run.hours:.3f}"),
                *(run.settings_hash, run.torch_version or "-"),
                run.config.get("version", "-"),
                "; ".join(run.machines) or "-",
                *(f"{values[-1]:.4f}" if len(values) else "-" for values in final),
            ]
        )
    return tables.markdown(header, rows) if rows else "None."


def _downstream_table(record: Record) -> str:
    """Return a table with settings and time of the downstream runs, per model."""
    groups: dict[tuple[str, str], list[History]] = {}
    for path, run in record.finetuning.items():
        model = path.parent.name.partition("_seed")[0]
        groups.setdefault((path.parent.parent.name, model), []).append(run)
    rows = []
    for (tag, model), runs in sorted(groups.items()):
        updates = sorted({run.updates for run in runs})
        hashes = sorted({run.settings_hash for run in runs})
        hours = sum(run.hours for run in runs)
        machines = dict.fromkeys(name for run in runs for name in run.machines)
        rows.append(
            [
                *(tag, model, len(runs), ", ".join(map(str, updates))),
                *(f"{hours:.3f}", ", ".join(hashes), "; ".join(machines) or "-"),
            ]
        )
    header = ["tag", "model", "runs", "updates", "hours", "settings", "machine"]
    return tables.markdown(header, rows) if rows else "None."
