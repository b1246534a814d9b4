"""All runs of an experiment: one frame of scores, and the facts that it holds.

Layout: EXPDIR/pretrain/<phase>_<tag>_seed<N>/ and, for the downstream runs,
EXPDIR/<tag>/<model>_seed<N>/<name>/{last,best}/<test split>/metrics.json, where <name>
is the first column of downstream.txt with `/` replaced by `_`.

pandas is imported where a frame is made.
"""

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from espnet2_sslam.corpus import Downstream, read_downstream
from espnet2_sslam.results.runs import History, read_history
from espnet2_sslam.results.scoring import main_metric
from espnet2_sslam.store import sha256

MODELS = ("random", "phase1", "phase2")  # others have the names of --models
CHECKPOINTS = ("last", "best")
# (model, the one it is compared with); models of other names are compared with random.
COMPARISONS = (("phase1", "random"), ("phase2", "random"), ("phase2", "phase1"))
MODEL_DIR = re.compile(r"(.+)_seed(\d+)")
PRETRAIN_DIR = re.compile(r"(phase[12])_(.+)_seed(\d+)")
# Columns of the frame of scores; those of a missing score are empty after the key.
KEY = ["tag", "model", "seed", "data_set", "fold", "split", "checkpoint"]
MEASURES = ["mAP", "accuracy", "auc", "d_prime", "low", "high", "clips"]
CELL = ["tag", "data_set", "split", "checkpoint", "model", "metric"]
# pandas.DataFrame, or one row of it. Its own types call a selection of columns "Series
# or DataFrame", which no reader and no checker is helped by.
Frame = Any


class Evaluation(NamedTuple):
    """A tag and data set with scores, there or missing.

    `line` is the data set's first of downstream.txt, `metric` the one that papers
    report, `kind` is `probe` (our own), `linear` (frozen encoder) or `finetune`.
    """

    tag: str
    data_set: str
    line: Downstream
    metric: str
    kind: str


@dataclass
class Experiment:
    """All that goes into RESULTS.md.

    `scores` has a row per expected score, models in their order: the columns KEY,
    `main` (the task's metric), `run` (the training's folder) and `class_list`; empty
    where it is missing are MEASURES, `chance` (mAP of random scores) and `per_class`.
    `pretraining` holds the runs by (phase, tag, seed), in order; `finetuning` by their
    directory; `unfinished` says in words which have not reached their last epoch.
    """

    scores: Frame
    downstream: list[Downstream]
    dump: Path
    pretraining: dict[tuple[str, str, int], History] = field(default_factory=dict)
    finetuning: dict[Path, History] = field(default_factory=dict)
    unfinished: list[str] = field(default_factory=list)

    @cached_property
    def summary(self) -> Frame:
        """See `summarise`."""
        return summarise(self.scores)

    @property
    def scored(self) -> Frame:
        """The rows of `scores` that are not missing."""
        return self.scores[self.scores["clips"].notna()]

    @property
    def missing(self) -> Frame:
        """The rows of `scores` that are."""
        return self.scores[self.scores["clips"].isna()]

    @property
    def models(self) -> list[str]:
        """The models, with scores or missing ones, in order."""
        return list(self.scores["model"].unique())

    @cached_property
    def evaluations(self) -> list[Evaluation]:
        """Everything that has or should have scores, by tag and data set."""
        lines: dict[str, Downstream] = {}
        for line in self.downstream:
            lines.setdefault(line.name.partition("/")[0], line)
        runs: dict[str, History] = {}
        for path, run in self.finetuning.items():
            runs.setdefault(path.parent.parent.name, run)

        def kind(tag: str) -> str:
            if tag not in runs:
                return "linear" if tag.startswith("linear") else "finetune"
            config = Path(runs[tag].config.get("config") or "").name
            return "probe" if config.startswith("probe") else runs[tag].kind

        return [
            Evaluation(tag, data_set, line, main_metric(line.task), kind(tag))
            for tag in self.scores["tag"].unique()
            for data_set, line in lines.items()
        ]


def collect(
    expdir: Path,
    dump: Path,
    *,
    seeds: list[int] | None = None,
    models: Sequence[str] = MODELS,
    tags: list[str] | None = None,
    pretrain_from: Path | None = None,
) -> Experiment:
    """Read all runs; missing and unfinished ones are listed in the result.

    Expected are all models x seeds x lines of downstream.txt x test splits x {last,
    best}, for each fine-tuning tag.

    Args:
        expdir, dump: Experiment and formatted data directories.
        seeds, models, tags: What to expect, by default all tags and a tag's seeds that
            have any run.
        pretrain_from: Experiment with the pre-trainings, `expdir` by default.

    Raises:
        ValueError: Nothing was scored, or scores do not belong to their labels.
    """
    import pandas as pd

    expdir, dump = Path(expdir), Path(dump)
    seeds_by_tag: dict[str, set[int]] = {}
    for path in expdir.glob("*/*_seed*"):
        match = MODEL_DIR.fullmatch(path.name)
        if match and path.parent.name != "pretrain" and path.is_dir():
            seeds_by_tag.setdefault(path.parent.name, set()).add(int(match[2]))
    others = [model for model in dict.fromkeys(models) if model not in MODELS]
    models = [model for model in MODELS if model in models] + others
    downstream = read_downstream(dump)
    rows = []
    for tag in sorted(tags or seeds_by_tag):
        tag_seeds = seeds or sorted(seeds_by_tag.get(tag, ()))
        for model, seed, line in itertools.product(models, tag_seeds, downstream):
            run = expdir / tag / f"{model}_seed{seed}" / line.name.replace("/", "_")
            data_set, _, fold = line.name.partition("/")
            for test, checkpoint in itertools.product(line.tests, CHECKPOINTS):
                folder = run / checkpoint / Path(test).name
                key = (tag, model, seed, data_set, fold, folder.name, checkpoint)
                row = dict(zip(KEY, key, strict=True), run=run)
                row["main"] = main_metric(line.task)
                row["class_list"] = dump / line.class_list
                if (folder / "metrics.json").exists():
                    row |= _read_metrics(folder, dump / test / "text", line.task)
                rows.append(row)
    columns = [*KEY, *MEASURES, "main", "chance", "per_class", "run", "class_list"]
    scores = pd.DataFrame(rows, columns=pd.Index(columns))
    scores = scores.astype(dict.fromkeys([*MEASURES, "chance"], float))
    experiment = Experiment(scores, downstream, dump)
    if downstream and experiment.scored.empty:
        raise ValueError(
            f"no scored run in {expdir}: train and score a classifier first"
        )

    def read(paths: dict) -> dict:
        """Read the runs; say of those that are not finished."""
        histories = {}
        for key, path in sorted(paths.items()):
            try:
                histories[key] = run = read_history(path)
            except FileNotFoundError as error:
                experiment.unfinished.append(str(error))
                continue
            if not run.finished:
                text = f"{run.epochs} of {run.config['max_epoch']} epochs trained"
                experiment.unfinished.append(f"{path}: {text}")
        return histories

    pretrained = {}
    for path in Path(pretrain_from or expdir).glob("pretrain/*"):
        match = PRETRAIN_DIR.fullmatch(path.name)
        if match and (not seeds or int(match[3]) in seeds):
            pretrained[match[1], match[2], int(match[3])] = path
    experiment.pretraining = read(pretrained)
    experiment.finetuning = read({path: path for path in experiment.scored["run"]})
    return experiment


def _read_metrics(folder: Path, text: Path, task: str) -> dict:
    """Return the columns of a score; low and high are of the main metric.

    Raises:
        ValueError: The scores are of other predictions, other labels or another task.
            (That predictions and labels have the same clips was checked in scoring.)
    """
    path, predictions = folder / "metrics.json", folder / "predictions.npz"
    remedy = "score the predictions again"
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
        hashes, scored_as, clips = (metrics[k] for k in ("sha256", "task", "num_clips"))
        low, high = metrics.get("intervals", {}).get(main_metric(task), (None, None))
        # The mean share of positive clips, over the classes that have any.
        shares = [count / clips for count in metrics["positives"].values() if count]
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ValueError(f"{path} is not a complete metrics file; {remedy}") from None
    if not predictions.exists():
        raise ValueError(f"{predictions} is missing beside its scores; infer again")
    if scored_as != task:
        raise ValueError(f"{path}: scored as {scored_as}, needed {task}; {remedy}")
    for name, source in (("predictions", predictions), ("text", text)):
        if hashes.get(name) != sha256(source):
            raise ValueError(
                f"{path}: {source} has changed since it was scored; {remedy}"
            )
    metrics |= {"low": low, "high": high, "clips": clips, "chance": np.mean(shares)}
    return {name: metrics.get(name) for name in (*MEASURES, "chance", "per_class")}


def select(frame: Frame, **values: object) -> Frame:
    """Return the rows whose columns have these values."""
    for name, value in values.items():
        frame = frame[frame[name] == value]
    return frame


def _by_metric(scores: Frame) -> Frame:
    return scores.melt(KEY, ["mAP", "accuracy"], var_name="metric", value_name="score")


def seed_scores(scores: Frame) -> Frame:
    """Return the mean over folds by CELL and seed, NaN where a fold is missing."""
    folds = _by_metric(scores).groupby([*CELL, "seed"], sort=False)["score"]
    return folds.mean().where(folds.count() == folds.size())


def summarise(scores: Frame) -> Frame:
    """Average over folds and seeds: a row per CELL (metric is mAP or accuracy).

    A seed's value is the mean over its folds; a seed that lacks a fold is in no
    average. Other columns:
        mean, spread: Mean and standard deviation (n - 1) of the complete seeds, or NaN.
        seeds, expected: Number of complete seeds, and of all.
        part, part_runs, runs: Mean over the scored runs (a seed and fold), their number
            and that of all runs.
        text: In percent: mean, spread, and what is missing. Without a complete seed it
            is `part`: not comparable with others, but better than nothing.
    """

    def text(cell: Frame) -> str:
        if not cell.part_runs:
            return "missing"
        if not cell.seeds:
            return f"{100 * cell.part:.1f} ({cell.part_runs} of {cell.runs} runs)"
        spread = " (one seed)" if cell.seeds == 1 else f" ± {100 * cell.spread:.1f}"
        complete = cell.seeds == cell.expected
        part = "" if complete else f" ({cell.seeds} of {cell.expected})"
        return f"{100 * cell.mean:.1f}{spread}{part}"

    runs = _by_metric(scores).groupby(CELL, sort=False)["score"]
    seeds = seed_scores(scores).groupby(level=CELL, sort=False)
    summary = seeds.agg(mean="mean", spread="std", seeds="count", expected="size")
    summary = summary.join(runs.agg(part="mean", part_runs="count", runs="size"))
    summary["text"] = [text(cell) for cell in summary.itertuples()]
    return summary.reset_index()


def comparisons(experiment: Experiment) -> list[dict]:
    """Return what pre-training and phase 2 bring, by the last checkpoints.

    Each is {tag, data_set, split, metric, model, other, difference, means, spreads,
    distinct, higher, pairs}: `difference` in points, None where a model has no complete
    seed; `distinct` whether the intervals mean ± spread do not overlap, None for one
    seed; `higher` of the `pairs` seeds that both have, in how many the model is above.
    """
    scored = select(experiment.scored, checkpoint="last")
    cells = seed_scores(select(experiment.scores, checkpoint="last")).reset_index()
    others = [(m, "random") for m in experiment.models if m not in MODELS]
    groups = scored[["tag", "data_set", "split", "main"]].drop_duplicates()
    groups = groups.rename(columns={"main": "metric"})
    compared = []
    for row in groups.sort_values("tag", kind="stable").to_dict("records"):
        values = select(cells, **row).pivot(index="seed", columns="model")["score"]
        for pair in [*COMPARISONS, *others]:
            if not set(pair) <= set(experiment.models):
                continue
            points = 100 * values[list(pair)]  # a row per seed
            means, spreads = points.mean().to_numpy(), points.std().to_numpy()
            difference = means[0] - means[1]
            gains = (points[pair[0]] - points[pair[1]]).dropna()
            clear = bool(abs(difference) > spreads.sum())
            facts = {
                "difference": None if np.isnan(difference) else difference,
                "means": means,
                "spreads": spreads,
                "distinct": None if np.isnan(spreads).any() else clear,
                "higher": int((gains > 0).sum()),
                "pairs": len(gains),
            }
            compared.append({**row, "model": pair[0], "other": pair[1], **facts})
    return compared


def measures(experiment: Experiment) -> Frame:
    """Return low, high, auc and d_prime of the last checkpoints, means of the seeds.

    low and high are the 95 % interval over clips of the main `metric`, the mean of the
    seeds' bounds; folds have their own test clips, so none is shown for them.
    """
    columns, where = ["low", "high", "auc", "d_prime"], ["tag", "data_set", "split"]
    scored = select(experiment.scored, checkpoint="last")
    scored = scored.rename(columns={"main": "metric"})
    groups = scored.groupby([*where, "model", "metric"], sort=False)[columns]
    means = groups.mean().where(groups.count().eq(groups.size(), axis="index"))
    means = means.reset_index().sort_values(where, kind="stable")
    folds = experiment.scores.groupby("data_set")["fold"].nunique()
    means.loc[means["data_set"].map(folds) > 1, ["low", "high"]] = np.nan
    return means


def all_series(experiment: Experiment) -> Iterator[tuple[str, str, str, Frame]]:
    """Yield every series of two splits or more with a score.

    Test splits that differ by a number, such as degree_1, degree_2: (tag, data set,
    `degree`, frame). Columns: `model`, `number`, `mAP` of the last checkpoints,
    `spread`, `seeds`, and `chance`, the mAP of random scores.
    """
    where = ["tag", "data_set", "split"]
    chance = experiment.scored.groupby(where)["chance"].mean()
    cells = select(experiment.summary, checkpoint="last", metric="mAP")
    cells = cells.rename(columns={"mean": "mAP"}).join(chance, where)
    cells[["name", "number"]] = cells["split"].str.extract(r"^(.+)_(\d+)$")
    places = cells["model"].map(experiment.models.index)
    for key, frame in cells.assign(place=places).groupby(["tag", "data_set", "name"]):
        points = frame[frame["seeds"] > 0].astype({"number": int})
        if frame["split"].nunique() > 1 and len(points):
            columns = ["model", "number", "mAP", "spread", "seeds", "chance"]
            yield *key, points.sort_values(["place", "number"])[columns]
