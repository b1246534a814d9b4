"""Scores as tables: Markdown for the report, CSV for programs."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from espnet2_sslam.results import paper
from espnet2_sslam.results.runs import (
    CELL,
    CHECKPOINTS,
    KEY,
    MEASURES,
    MODELS,
    Evaluation,
    Experiment,
    Frame,
    class_precisions,
    collect,
    select,
)
from espnet2_sslam.results.scoring import main_metric
from espnet2_sslam.store import write_text

NUMBERED = re.compile(r"(.+)_(\d+)")
# (model, the one it is compared with); models of other names are compared with random.
COMPARISONS = (("phase1", "random"), ("phase2", "random"), ("phase2", "phase1"))


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
        keep_trailing_newline=True,
    )
    jinja.filters["table"] = table
    text = jinja.get_template(template).render(environment=environment(), **facts)
    # The blank lines of conditions that do not hold.
    write_text(path, re.sub(r"\n{3,}", "\n\n", text).rstrip("\n") + "\n")


def show(cell: Frame, one_seed: str = " (one seed)") -> str:
    """Return a row of the summary in percent: mean, spread, and what is missing.

    Without a complete seed it is the mean over the runs (folds) that are scored, with
    their number: not comparable with others, but better than nothing.
    """
    seeds, expected = len(cell["values"]), cell["expected"]
    if not seeds:
        if not cell["part_runs"]:
            return "missing"
        return f"{100 * cell['part']:.1f} ({cell['part_runs']} of {cell['runs']} runs)"
    spread = one_seed if seeds == 1 else f" ± {100 * cell['spread']:.1f}"
    part = f" ({seeds} of {expected})" if seeds < expected else ""
    return f"{100 * cell['mean']:.1f}{spread}{part}"


def score_table(experiment: Experiment, evaluation: Evaluation) -> Frame:
    """Return one data set's table: a row per model, a column per split and checkpoint.

    The papers' column stands beside where they report the metric for the data set.
    """
    tag, data_set, _, main, kind = evaluation
    cells = select(experiment.summary, tag=tag, data_set=data_set)
    cells = cells.assign(text=[show(cell) for _, cell in cells.iterrows()])
    columns = [
        (metric, split, checkpoint)
        for metric in dict.fromkeys([main, "mAP"])
        for split in evaluation.tests
        for checkpoint in CHECKPOINTS
    ]
    keys = ["metric", "split", "checkpoint"]
    table = cells.pivot(index="model", columns=keys, values="text")
    table = table.reindex(index=experiment.models(tag), columns=columns)
    table.columns = [f"{split}, {metric}, {last}" for metric, split, last in columns]
    published = [paper.numbers(data_set, main, kind, model) for model in table.index]
    if set(published) != {"-"}:
        table[f"papers, {main}"] = published
    return table.reset_index(names="model")


def comparisons(experiment: Experiment) -> list[dict]:
    """Return what pre-training and phase 2 bring, by the last checkpoints.

    Each is {tag, data_set, split, metric, model, other, difference, means, spreads,
    distinct, higher, pairs}: `difference` in points, None where a model has no complete
    seed; `distinct` whether the intervals mean ± spread do not overlap, None for one
    seed; `higher` of the `pairs` seeds that both have, in how many the model is above.
    """
    scored = select(experiment.scored, checkpoint="last")
    groups = scored[["tag", "data_set", "split"]].drop_duplicates()
    compared = []
    for row in groups.sort_values("tag", kind="stable").to_dict("records"):
        row["metric"] = main_metric(experiment.data_sets[row["data_set"]].task)
        cells = select(experiment.summary, checkpoint="last", **row).set_index("model")
        models = experiment.models(row["tag"])
        named = [(model, "random") for model in models if model not in MODELS]
        for model, other in [*COMPARISONS, *named]:
            if model not in models or other not in models:
                continue
            pair = cells.loc[[model, other]]
            means, spreads = (
                100 * pair[name].to_numpy() for name in ("mean", "spread")
            )
            difference = means[0] - means[1]
            values, others = pair["values"]
            both = [seed for seed in values if seed in others]
            one_seed = np.isnan(spreads).any()
            facts = {
                "difference": None if np.isnan(difference) else difference,
                "means": means,
                "spreads": spreads,
                "distinct": None if one_seed else bool(abs(difference) > spreads.sum()),
                "higher": sum(values[seed] > others[seed] for seed in both),
                "pairs": len(both),
            }
            compared.append({**row, "model": model, "other": other, **facts})
    return compared


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


class Series(NamedTuple):
    """Test splits that differ by a number, such as degree_1, degree_2 (name: degree).

    Columns of `frame`: `model`, `number`, `mAP` of the last checkpoints, `spread`,
    `seeds`, and `chance`: the mAP of random scores, which is the mean share of positive
    clips per class that has any.
    """

    tag: str
    data_set: str
    name: str
    frame: Frame

    @property
    def table(self) -> Frame:
        """A row per model, a column per number, and chance as the last row."""
        texts = [
            f"{100 * p.mAP:.1f}"
            + ("" if np.isnan(p.spread) else f" ± {100 * p.spread:.1f}")
            for p in self.frame.itertuples()
        ]
        table = self.frame.assign(text=texts)
        table = table.pivot(index="model", columns="number", values="text")
        table = table.reindex(self.frame["model"].unique()).fillna("missing")
        chance = self.frame.groupby("number")["chance"].mean()
        table.loc["chance"] = [f"{100 * share:.1f}" for share in chance]
        return table.rename(columns=str).reset_index(names=self.name)


def all_series(experiment: Experiment) -> Iterator[Series]:
    """Yield every series of two splits or more with a score."""

    def chance_of(metrics: dict) -> float:
        counts = [count for count in metrics["positives"].values() if count]
        return float(np.mean(counts)) / metrics["num_clips"]

    for evaluation in experiment.evaluations:
        numbers: dict[str, dict[str, int]] = {}
        for split in evaluation.tests:
            if match := NUMBERED.fullmatch(split):
                numbers.setdefault(match[1], {})[split] = int(match[2])
        here = {"tag": evaluation.tag, "data_set": evaluation.data_set}
        scored = select(experiment.scored, **here)
        shares = scored["metrics"].map(chance_of).groupby(scored["split"]).mean()
        cells = select(experiment.summary, **here, checkpoint="last", metric="mAP")
        cells = cells[cells["mean"].notna()].rename(columns={"mean": "mAP"})
        for name, number_of in numbers.items():
            frame = cells[cells["split"].isin(list(number_of))]
            if len(number_of) > 1 and len(frame):
                places = experiment.models(evaluation.tag).index
                frame = frame.assign(
                    number=frame["split"].map(number_of),
                    seeds=frame["values"].map(len),
                    chance=frame["split"].map(shares),
                    place=frame["model"].map(places),
                ).sort_values(["place", "number"])
                columns = ["model", "number", "mAP", "spread", "seeds", "chance"]
                yield Series(**here, name=name, frame=frame[columns])


def write_scores_csv(path: Path, scores: Frame) -> None:
    """Write every single score, unaveraged: one line per run, split and checkpoint."""
    rows = scores[scores["clips"].notna()].sort_values(KEY)[[*KEY, *MEASURES]]
    rows = rows.astype({"clips": int})
    write_text(path, rows.to_csv(index=False, float_format="%.6f"))


def write_tables(experiment: Experiment, folder: Path) -> None:
    """Write scores.csv, and the AP of every class and each series as CSV files.

    Per class: each model's mean and spread over the seeds, empty where not known.
    """
    write_scores_csv(folder / "scores.csv", experiment.scores)
    for key, part in experiment.scored.groupby(CELL[:4]):
        tag, data_set = key[:2]
        names = experiment.label_names(data_set)
        table = class_precisions(part).pivot(
            index="class", columns="model", values=["mean", "spread"]
        )
        table = table.sort_index().swaplevel(axis="columns")
        models = experiment.models(tag)
        columns = [(model, name) for model in models for name in ("mean", "spread")]
        table = table.reindex(columns=columns)
        table.columns = [f"{m}_{name.replace('mean', 'AP')}" for m, name in columns]
        table.insert(0, "name", [names.get(label, label) for label in table.index])
        text = table.to_csv(float_format="%.6f")
        write_text(folder / f"per_class_ap_{'_'.join(key)}.csv", text)
    for tag, data_set, name, frame in all_series(experiment):
        rows = frame.rename(columns={"number": name})
        path = folder / f"series_{tag}_{data_set}_{name}.csv"
        write_text(path, rows.to_csv(index=False, float_format="%.6f"))


def write_benchmarks(
    folders: Iterable[Iterable[Path]],
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
                name = data_set if len(line.tests) == 1 else f"{data_set}, {split}"
                row = {"data set": name, "evaluation": tag, "measure": metric}
                for model in models:
                    by = select(cells, model=model).set_index("checkpoint")
                    last, best = (show(by.loc[name], "") for name in CHECKPOINTS)
                    star = "*" if test == line.valid else ""
                    row[model] = last if last == "missing" else f"{last} ({best}{star})"
                rows.append({**row, "published": published or "-"})
    cited = paper.sources([row["published"] for row in rows])
    render("BENCHMARKS.md.j2", Path(output), rows=rows, sources=cited)
    return len(rows)
