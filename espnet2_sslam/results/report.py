"""RESULTS.md and BENCHMARKS.md: everything that finished runs say, with what made them.

The facts are frames and records; the sentences are in the templates beside this module.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from espnet2_sslam.corpus import warnings
from espnet2_sslam.results import paper
from espnet2_sslam.results.differences import differences
from espnet2_sslam.results.experiment import (
    CHECKPOINTS,
    KEY,
    MEASURES,
    Evaluation,
    Experiment,
    Frame,
    Series,
    all_series,
    class_precisions,
    collect,
    comparisons,
    select,
)
from espnet2_sslam.results.runs import History
from espnet2_sslam.results.scoring import main_metric
from espnet2_sslam.store import sha256, write_text


def markdown(header: Iterable[str], rows: Iterable[Iterable]) -> str:
    """Return a Markdown table."""
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(str(x) for x in line)} |" for line in lines)


def render(template: str, path: Path, **facts: object) -> None:
    """Write a file from a template beside this module.

    Its filter `table` makes a Markdown table of a frame or a list of dictionaries.
    """
    import jinja2

    from espnet2_sslam.machine import environment  # imports torch

    def table(rows: Frame | list[dict]) -> str:
        if isinstance(rows, list):
            return markdown(rows[0], [row.values() for row in rows])
        return markdown(rows.columns, rows.itertuples(index=False))

    jinja = jinja2.Environment(  # noqa: S701  (Markdown has nothing to escape)
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    jinja.filters["table"] = table
    text = jinja.get_template(template).render(environment=environment(), **facts)
    # The blank lines of conditions that do not hold.
    write_text(path, re.sub(r"\n{3,}", "\n\n", text).rstrip("\n") + "\n")


def write_all(experiment: Experiment, output: Path) -> None:
    """Write RESULTS.md, and CSV files and plots into a folder beside it.

    Raises:
        ValueError: An output without a suffix, which would be the folder's name.
    """
    from espnet2_sslam.results.plots import draw_figures  # matplotlib

    output = Path(output)
    folder = output.with_name(output.stem.lower())
    if folder == output:
        raise ValueError(f"--output {output} needs a suffix, such as {output}.md")
    write_tables(experiment, folder)
    figures = draw_figures(experiment, folder)
    path = experiment.dump / "report" / "report.json"
    report = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    sections = [
        {
            **evaluation._asdict(),
            "table": score_table(experiment, evaluation),
            "published": paper.all_numbers(*_published_as(evaluation)),
            "differences": differences(experiment, evaluation, report),
            "notes": paper.notes(evaluation.data_set, evaluation.kind),
        }
        for evaluation in experiment.evaluations
    ]
    missing: dict[str, list[str]] = {}
    for row in experiment.missing.itertuples():
        fold = f"/{row.fold}" if row.fold else ""
        run = f"{row.tag}/{row.model}_seed{row.seed}, {row.data_set}{fold}"
        missing.setdefault(run, []).append(f"{row.split} {row.checkpoint}")
    render(
        "RESULTS.md.j2",
        output,
        folder=folder.name,
        pretraining_hours=sum(run.hours for run in experiment.pretraining.values()),
        downstream_hours=sum(run.hours for run in experiment.finetuning.values()),
        comparisons=comparisons(experiment),
        sections=sections,
        sources=paper.sources([section["published"] for section in sections]),
        series=[(each, series_table(each)) for each in all_series(experiment)],
        measures=measures(experiment),
        missing=missing,
        unfinished=experiment.unfinished,
        pretraining=_pretraining(experiment),
        downstream=_downstream(experiment),
        report=report,
        report_hash=sha256(path)[:10] if report else "",
        data_table=_data(report) if report else [],
        warnings=warnings(report) if report else [],
        figures=figures,
    )


def write_benchmarks(
    folders: Iterable[tuple[Path, Path]],
    output: Path,
    *,
    models: Iterable[str],
    seeds: list[int] | None = None,
) -> int:
    """Write one table of several benchmarks and return its number of rows.

    Args:
        folders: (experiment, dump) of each benchmark.
        output: Markdown file.
        models, seeds: What should be there; what is not is called missing.

    Raises:
        ValueError: Nothing was scored, or scores do not belong to their labels.
    """
    rows, models = [], tuple(models)
    for expdir, dump in folders:
        experiment = collect(expdir, dump, seeds=seeds, models=models)
        for tag, data_set, line, metric, kind in experiment.evaluations:
            published = paper.all_numbers(data_set, metric, kind)
            for test in line.tests:
                split = Path(test).name
                where = {"tag": tag, "data_set": data_set, "split": split}
                cells = select(experiment.summary, **where, metric=metric)
                texts = cells.pivot(index="model", columns="checkpoint", values="text")
                name = data_set if len(line.tests) == 1 else f"{data_set}, {split}"
                row = {"data set": name, "evaluation": tag, "measure": metric}
                star = "*" if test == line.valid else ""
                for model in models:
                    last, best = texts.loc[model, list(CHECKPOINTS)]
                    text = last if last == "missing" else f"{last} ({best}{star})"
                    row[model] = text.replace(" (one seed)", "")
                rows.append({**row, "published": published or "-"})
    cited = paper.sources([row["published"] for row in rows])
    render("BENCHMARKS.md.j2", Path(output), rows=rows, sources=cited)
    return len(rows)


def _published_as(evaluation: Evaluation) -> tuple[str, str, str]:
    return evaluation.data_set, evaluation.metric, evaluation.kind


def score_table(experiment: Experiment, evaluation: Evaluation) -> Frame:
    """Return one data set's table: a row per model, a column per split and checkpoint.

    The papers' column stands beside where they report the metric for the data set.
    """
    tag, data_set, line, main, kind = evaluation
    cells = select(experiment.summary, tag=tag, data_set=data_set)
    columns = [
        (metric, Path(test).name, checkpoint)
        for metric in dict.fromkeys([main, "mAP"])
        for test in line.tests
        for checkpoint in CHECKPOINTS
    ]
    keys = ["metric", "split", "checkpoint"]
    table = cells.pivot(index="model", columns=keys, values="text")
    table = table.reindex(index=experiment.models, columns=columns)
    table.columns = [f"{split}, {metric}, {last}" for metric, split, last in columns]
    published = [paper.numbers(data_set, main, kind, model) for model in table.index]
    if set(published) != {"-"}:
        table[f"papers, {main}"] = published
    return table.reset_index(names="model")


def series_table(series: Series) -> Frame:
    """Return a row per model, a column per number, and chance as the last row."""
    points = series.frame
    spreads = [f" ± {100 * x:.1f}" if x == x else "" for x in points["spread"]]
    table = points.assign(text=points["mAP"].mul(100).map("{:.1f}".format) + spreads)
    table = table.pivot(index="model", columns="number", values="text")
    table = table.reindex(points["model"].unique()).fillna("missing")
    chance = points.groupby("number")["chance"].mean()
    table.loc["chance"] = chance.mul(100).map("{:.1f}".format)
    return table.rename(columns=str).reset_index(names=series.name)


def measures(experiment: Experiment) -> Frame:
    """Return 95 % interval, ROC area and d' of the last checkpoints, means of seeds.

    The interval is that over clips, the mean of the seeds' bounds; folds have their own
    test clips, so none is shown for them.
    """
    scored = select(experiment.scored, checkpoint="last")
    folds = experiment.scores.groupby("data_set")["fold"].nunique()
    group = ["tag", "data_set", "split", "model"]
    rows = []
    for key, part in scored.groupby(group, sort=False):
        mean = part[["low", "high", "auc", "d_prime"]].mean(skipna=False)
        interval = "-"
        if folds[key[1]] == 1 and np.isfinite(mean["low"]):
            metric = main_metric(experiment.data_sets[key[1]].task)
            interval = f"{metric} {100 * mean['low']:.1f} to {100 * mean['high']:.1f}"
        areas = ["-" if np.isnan(x) else f"{x:.3f}" for x in mean[["auc", "d_prime"]]]
        rows.append([*key, interval, *areas])
    columns = ["tag", "data set", "split", "model", "95 % interval", "ROC area", "d'"]
    frame = type(scored)(rows, columns=columns)
    return frame.sort_values(["tag", "data set", "split"], kind="stable")


def write_tables(experiment: Experiment, folder: Path) -> None:
    """Write scores.csv, and the AP of every class and each series as CSV files.

    Per class: each model's mean and spread over the seeds, empty where not known.
    """
    write_scores_csv(folder / "scores.csv", experiment.scores)
    keys = ["tag", "data_set", "split", "checkpoint"]
    for key, part in experiment.scored.groupby(keys):
        table = class_precisions(part, experiment.models)
        table = table.drop(columns="seeds", level=1)
        table.columns = [f"{model}_{statistic}" for model, statistic in table.columns]
        names = experiment.label_names(key[1])
        table.insert(0, "name", [names.get(label, label) for label in table.index])
        path = folder / f"per_class_ap_{'_'.join(key)}.csv"
        write_text(path, table.to_csv(index_label="class", float_format="%.6f"))
    for tag, data_set, name, frame in all_series(experiment):
        rows = frame.rename(columns={"number": name})
        path = folder / f"series_{tag}_{data_set}_{name}.csv"
        write_text(path, rows.to_csv(index=False, float_format="%.6f"))


def write_scores_csv(path: Path, scores: Frame) -> None:
    """Write every single score, unaveraged: one line per run, split and checkpoint."""
    rows = scores[scores["clips"].notna()].sort_values(KEY)[[*KEY, *MEASURES]]
    rows = rows.astype({"clips": int})
    write_text(path, rows.to_csv(index=False, float_format="%.6f"))


def _pretraining(experiment: Experiment) -> list[dict]:
    """Return settings, time and final validation values of each pre-training."""

    def last(run: History, name: str) -> str:
        values = run.epoch_curve("valid", name)[1]
        return f"{values[-1]:.4f}" if len(values) else "-"

    return [
        {
            "phase": phase,
            "tag": tag,
            "seed": seed,
            "epochs": run.epochs,
            "updates": run.updates,
            "hours": f"{run.hours:.3f}",
            "settings": run.settings_hash,
            "torch": run.torch_version or "-",
            "espnet": run.config.get("version", "-"),
            "machine": "; ".join(run.machines) or "-",
            "validation loss": last(run, "loss"),
            "target spread": last(run, "target_var"),
        }
        for (phase, tag, seed), run in experiment.pretraining.items()
    ]


def _downstream(experiment: Experiment) -> list[dict]:
    """Return settings and time of the downstream runs, per model."""
    groups: dict[tuple[str, str], list[History]] = {}
    for path, run in experiment.finetuning.items():
        model = path.parent.name.partition("_seed")[0]
        groups.setdefault((path.parent.parent.name, model), []).append(run)
    return [
        {
            "tag": tag,
            "model": model,
            "runs": len(runs),
            "updates": ", ".join(map(str, sorted({run.updates for run in runs}))),
            "hours": f"{sum(run.hours for run in runs):.3f}",
            "settings": ", ".join(sorted({run.settings_hash for run in runs})),
            "machine": "; ".join(dict.fromkeys(m for run in runs for m in run.machines))
            or "-",
        }
        for (tag, model), runs in sorted(groups.items())
    ]


def _data(report: dict) -> list[dict]:
    """Return clips and hashes of all splits, as the data report has them."""
    return [
        {
            "split": name,
            "clips": split["usable"],
            "listed": split["listed"],
            "missing": split["missing"],
            "left out": sum(split["left_out"].values()),
            "expected": (split["compared"]["expected"] or {}).get("clips", "-"),
            "hours": f"{split['hours']:.3f}",
            "classes": len(split.get("label_counts", {})) or "-",
            "without a positive": len(split.get("classes_without_positives", [])),
            "hash": split["content_sha256"][:10],
        }
        for name, split in sorted(report["splits"].items())
    ]
