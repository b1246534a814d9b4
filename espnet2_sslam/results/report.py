"""RESULTS.md and BENCHMARKS.md: everything that finished runs say, with what made them.

The facts are frames and records; the sentences are in the templates beside this module.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path

from espnet2_sslam.corpus import read_label_names, warnings
from espnet2_sslam.results import paper
from espnet2_sslam.results.differences import differences
from espnet2_sslam.results.experiment import (
    CHECKPOINTS,
    KEY,
    MEASURES,
    MODELS,
    Evaluation,
    Experiment,
    Frame,
    all_series,
    collect,
    comparisons,
    label_series,
    level_name,
    measures,
    select,
)
from espnet2_sslam.results.runs import History
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
    levels = [*label_series(experiment)]
    write_tables(experiment, folder)
    for tag, data_set, split, points in levels:
        path = folder / f"series_{tag}_{data_set}_{split}_labels.csv"
        rows = points.rename(columns={"number": "labels"})
        write_text(path, rows.to_csv(index=False, float_format="%.6f"))
    figures = draw_figures(experiment, folder)
    source = experiment.dump / "report" / "report.json"
    report = json.loads(source.read_text(encoding="utf-8")) if source.exists() else None
    sections = [
        {
            **each._asdict(),
            "table": score_table(experiment, each),
            "variants": variants_table(experiment, each),
            "published": paper.all_numbers(each.data_set, each.metric, each.kind),
            "differences": differences(experiment, each, report),
            "notes": paper.notes(each.data_set, each.kind),
            "single": any(
                scored_classes(experiment, each, Path(test).name).startswith(" of 1 ")
                for test in each.line.tests
            ),
        }
        for each in experiment.evaluations
    ]
    by_run = dict(experiment.scored[["run", "model"]].itertuples(index=False))
    downstream: dict[tuple[str, str], list[History]] = {}
    for path, run in experiment.finetuning.items():
        model = by_run[path]
        downstream.setdefault((path.parent.parent.name, model), []).append(run)
    render(
        "RESULTS.md.j2",
        output,
        experiment=experiment,
        folder=folder.name,
        comparisons=comparisons(experiment),
        sections=sections,
        sources=paper.sources([section["published"] for section in sections]),
        series=[
            (tag, data_set, name, series_table(name, points))
            for tag, data_set, name, points in all_series(experiment)
        ],
        levels=[
            (tag, data_set, split, level_table(points))
            for tag, data_set, split, points in levels
        ],
        quoted=paper.load()["quoted"],
        measures=measures(experiment),
        downstream=downstream,
        skipped=skipped_clips(experiment),
        report=report,
        report_hash=sha256(source)[:10] if report else "",
        warnings=warnings(report) if report else [],
        figures=figures,
    )


MANY = 20  # clips of a training that are listed


def skipped_clips(experiment: Experiment) -> list[tuple[str, int, list[dict]]]:
    """Return what trainings could not read: their names, numbers of clips, and some.

    Of a clip: id, file, reason, how often it was skipped, whether to the end.
    """
    runs = [*experiment.pretraining.values(), *experiment.finetuning.values()]
    rows = {}
    for run in runs:
        clips = [{"clip": uid, **clip} for uid, clip in sorted(run.bad_clips.items())]
        if clips:
            name = f"{run.path.parent.name}/{run.path.name}"
            rows[run.path] = name, len(clips), clips[:MANY]
    return [*rows.values()]


def write_benchmarks(
    folders: Iterable[tuple[Path, Path]],
    output: Path,
) -> int:
    """Write one table of several benchmarks and return its number of rows.

    `folders` are (experiment, dump) of each; see `collect` for the errors. A column is
    a model that any of them has.
    """
    experiments = [collect(*pair) for pair in folders]
    there = {m: words for each in experiments for m, words in each.models.items()}
    order = {word: place for place, word in enumerate(MODELS)}
    models = sorted(there, key=lambda model: order.get(there[model][0], len(order)))
    rows = []
    for experiment in experiments:
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
                texts = texts.reindex(models).fillna("missing")
                for model in models:
                    last, best = texts.loc[model, list(CHECKPOINTS)]
                    text = last if last == "missing" else f"{last} ({best}{star})"
                    row[model] = text.replace(" (one seed)", "")
                rows.append({**row, "published": published or "-"})
    cited = paper.sources([row["published"] for row in rows])
    render("BENCHMARKS.md.j2", Path(output), rows=rows, sources=cited)
    return len(rows)


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
    models = [model for model in experiment.models if model in table.index]
    table = table.reindex(index=models, columns=columns)
    classes = {
        split: scored_classes(experiment, evaluation, split) for _, split, _ in columns
    }
    table.columns = [
        f"{split}, {metric}{classes[split] if metric == 'mAP' else ''}, {last}"
        for metric, split, last in columns
    ]
    words = [experiment.models[model][0] for model in models]
    published = [paper.numbers(data_set, main, kind, word) for word in words]
    if set(published) != {"-"}:
        table[f"papers, {main}"] = published
    return table.reset_index(names="model")


def variants_table(experiment: Experiment, evaluation: Evaluation) -> Frame | None:
    """Return the paper's table 2 with ours beside it; None where there is neither.

    A row per setting of phase 2 (and pre-training of ours, where there are several),
    the last checkpoints of every split.
    """
    import pandas as pd

    tag, data_set, line, main, kind = evaluation
    cells = select(experiment.summary, tag=tag, data_set=data_set, metric=main)
    cells = select(cells, checkpoint="last")
    texts = cells.pivot(index="model", columns="split", values="text")
    splits = [Path(test).name for test in line.tests]
    rows, ours, theirs = [], 0, 0
    for word, name in paper.VARIANTS.items():
        entries = paper.entries(data_set, main, kind, word)
        numbers = [str(e["value"]) for e in entries if e["source"] == "table2"]
        models = [m for m in texts.index if experiment.models[m][0] == word]
        if word != "phase2":
            ours, theirs = ours + len(models), theirs + len(numbers)
        for model in models or [word]:
            row = {"model": model, "in the paper": name}
            for split in splits:
                text = texts.loc[model, split] if models else "not run"
                row[f"{split}, {main}"] = text
            rows.append({**row, f"table 2, {main}": ", ".join(numbers) or "-"})
    return pd.DataFrame(rows) if ours or theirs else None


def scored_classes(experiment: Experiment, evaluation: Evaluation, split: str) -> str:
    """Say over how many classes mAP is the mean: those with a positive clip.

    Of folds, the fewest.
    """
    tag, data_set, *_ = evaluation
    rows = select(experiment.scored, tag=tag, data_set=data_set, split=split)
    counts = [
        (sum(value is not None for value in by_class.values()), len(by_class))
        for by_class in rows["per_class"]
    ]
    if not counts:
        return ""
    scored, all_classes = min(counts)
    return f" of {scored} of {all_classes} classes"


def series_table(name: str, points: Frame) -> Frame:
    """Return a row per model, a column per number, and chance as the last row."""
    spreads = [f" ± {100 * x:.1f}" if x == x else "" for x in points["spread"]]
    table = points.assign(text=points["mAP"].mul(100).map("{:.1f}".format) + spreads)
    table = table.pivot(index="model", columns="number", values="text")
    table = table.reindex(points["model"].unique()).fillna("missing")
    chance = points.groupby("number")["chance"].mean()
    table.loc["chance"] = chance.mul(100).map("{:.1f}".format)
    return table.rename(columns=str).reset_index(names=name)


def level_table(points: Frame) -> Frame:
    """Return a row per model, a column per number of labels, chance as the last row."""
    table = series_table("labels", points)
    clips = points.groupby("number")["clips"].max()
    names = {str(n): f"{level_name(n)} ({clips[n]} clips)" for n in clips.index}
    return table.rename(columns=names)


def write_tables(experiment: Experiment, folder: Path) -> None:
    """Write scores.csv, and the AP of every class and each series as CSV files.

    Per class: each model's mean and spread over the seeds, empty where not known. A
    fold in which a class has no positive clip does not count for that class.
    """
    import pandas as pd

    write_scores_csv(folder / "scores.csv", experiment.scores)
    keys = ["tag", "data_set", "split", "checkpoint"]
    for key, rows in experiment.scored.groupby(keys):
        by_run = rows["per_class"].apply(pd.Series).astype(float)
        by_model = by_run.groupby([rows["model"], rows["seed"]]).mean().groupby("model")
        table = by_model.agg(["mean", "std"]).T.unstack()
        models = [model for model in experiment.models if model in by_model.groups]
        columns = [(m, name) for m in models for name in ("mean", "std")]
        table = table.reindex(columns=columns)
        names = {"mean": "AP", "std": "spread"}
        table.columns = [f"{model}_{names[name]}" for model, name in columns]
        names = read_label_names(rows["class_list"].iloc[0].parent)
        table.insert(0, "name", [names.get(label, label) for label in table.index])
        text = table.to_csv(index_label="class", float_format="%.6f")
        write_text(folder / f"per_class_ap_{'_'.join(key)}.csv", text)
    for tag, data_set, name, frame in all_series(experiment):
        rows = frame.rename(columns={"number": name})
        path = folder / f"series_{tag}_{data_set}_{name}.csv"
        write_text(path, rows.to_csv(index=False, float_format="%.6f"))


def write_scores_csv(path: Path, scores: Frame) -> None:
    """Write every single score, unaveraged: one line per run, split and checkpoint.

    `model` is the word, `pretraining` which of several with it.
    """
    scored = scores[scores["clips"].notna()].sort_values(KEY)
    rows = scored.assign(model=scored["word"])
    rows = rows[[*KEY[:2], "pretraining", *KEY[2:], *MEASURES]].astype({"clips": int})
    write_text(path, rows.to_csv(index=False, float_format="%.6f"))
