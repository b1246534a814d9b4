"""All runs of an experiment: one frame of scores, and the facts that it holds.

Layout: EXPDIR/pretrain/<word>_<pre-training>_seed<N>/ and, for the downstream runs,
EXPDIR/<tag>/<run>/<name>/{last,best}/<test split>/metrics.json, where <run> is named as
the pre-training's folder, or random_<pre-training>_seed<N>, or <weights>_seed<N>, and
<name> is the first column of downstream.txt with `/` replaced by `_`. Before, <run> was
<word>_seed<N>: such runs are found too, their pre-training is in their config.yaml.

pandas is imported where a frame is made.
"""

import itertools
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from espnet2_sslam.corpus import Downstream, read_downstream
from espnet2_sslam.results.runs import History, read_history
from espnet2_sslam.results.scoring import main_metric, score_levels
from espnet2_sslam.store import sha256

# Words for models in the order of the tables; weights have names of their own. In the
# names of folders "-" stands for ":" and "_".
MODELS = ("random", "phase1", "phase1_more", "phase2:mixed", "phase2:both", "phase2")
CHECKPOINTS = ("last", "best")
# What a word is compared with: the first of the others that is there. phase1_more is
# phase 1 continued for as long as phase 2.
CONTROL = ("phase1_more", "phase1")
COMPARISONS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("phase1", ("random",)),
    ("phase2", ("random",)),
    ("phase1_more", ("phase1",)),
    ("phase2:mixed", CONTROL),
    ("phase2:both", CONTROL),
    ("phase2", CONTROL),
)
_WORD_BY_FOLDER = {re.sub("[:_]", "-", word): word for word in MODELS}
RUN_DIR = re.compile(
    rf"({'|'.join(sorted(_WORD_BY_FOLDER, reverse=True))})(?:_(.+))?_seed(\d+)"
    r"|(.+)_seed(\d+)"
)
# A file of the pre-training in the config.yaml of what was made from it.
PRETRAINED = re.compile(r"([^\s/:]+)/(?:latest\.pth|config\.yaml)")
# What an unwritten option of a pre-training's model_conf is.
UNSAID: dict[str, Any] = {"clone_batch": 16, "mixture": False, "streams": "both"}
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
    report, `kind` is `finetune`, `linear` (frozen encoder) or, of a config
    probe_<word>.yaml, that word.
    """

    tag: str
    data_set: str
    line: Downstream
    metric: str
    kind: str


@dataclass
class Experiment:
    """All that goes into RESULTS.md.

    `scores` has a row per score that is there or expected, models in their order: the
    columns KEY, `word` (see MODELS) and `pretraining` (its name, "" for none) of the
    model, `main` (the task's metric), `run` (the training's folder), `text` (the
    labels) and `class_list`; empty where it is missing are MEASURES, `chance` (mAP of
    random scores) and `per_class`. `models` gives (word, pretraining) by model.
    `pretraining` holds the runs by (word, name, seed), in order; `finetuning` by their
    directory; `unfinished` says in words which have not reached their last epoch,
    `stale` which scores do not belong to the data at hand.
    """

    scores: Frame
    downstream: list[Downstream]
    dump: Path
    models: dict[str, tuple[str, str]]
    pretraining: dict[tuple[str, str, int], History] = field(default_factory=dict)
    finetuning: dict[Path, History] = field(default_factory=dict)
    unfinished: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)

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

    def pretrained(self, model: str) -> History | None:
        """Return a model's pre-training, the first seed's; None if it is not there."""
        word, name = self.models[model]
        runs = (run for key, run in self.pretraining.items() if key[:2] == (word, name))
        return next(runs, None)

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
            config = Path(runs[tag].config.get("config") or "").stem
            word = config.removeprefix("probe_")
            return word if word != config else runs[tag].kind

        return [
            Evaluation(tag, data_set, line, main_metric(line.task), kind(tag))
            for tag in self.scores["tag"].unique()
            for data_set, line in lines.items()
            if len(select(self.scores, tag=tag, data_set=data_set))
        ]


def split_run(name: str) -> tuple[str, str, int] | None:
    """Return word or name of weights, pre-training and seed of a run's folder."""
    if not (match := RUN_DIR.fullmatch(name)):
        return None
    folder, pretraining, seed, weights, weights_seed = match.groups()
    if folder is None:
        return weights, "", int(weights_seed)
    return _WORD_BY_FOLDER[folder], pretraining or "", int(seed)


def _origin(config: str) -> tuple[str, str, int] | None:
    """Return `split_run` of the pre-training that a config.yaml's text names."""
    for name in PRETRAINED.findall(config):
        run = split_run(name)
        if run is None and name.startswith("phase1_"):  # weights from elsewhere
            run = ("phase1", name.removeprefix("phase1_"), 0)
        if run and run[0] in MODELS:
            return run
    return None


def find_runs(expdir: Path, expected: Iterable[str] = ()) -> dict[tuple, Path]:
    """Return the folders of all runs, by (tag, word, pre-training, seed), in order.

    Args:
        expdir: The experiment.
        expected: Runs `<tag>/<run>` that should be there.
    """
    paths = [path for path in expdir.glob("*/*_seed*") if path.is_dir()]
    # The newer layout last: where a run is there twice, it counts.
    paths.sort(key=lambda path: bool((split_run(path.name) or ("", ""))[1]))
    runs: dict[tuple, Path] = {}
    for path in [*paths, *(expdir / name for name in expected)]:
        run = split_run(path.name)
        if run is None or path.parent.name == "pretrain":
            continue
        word, pretraining, seed = run
        if word in MODELS and not pretraining:
            config = next(path.glob("*/config.yaml"), None)
            origin = _origin(config.read_text("utf-8")) if config else None
            pretraining = origin[1] if origin else ""
        runs[path.parent.name, word, pretraining, seed] = path
    order = {word: place for place, word in enumerate(MODELS)}

    def place(key: tuple) -> tuple:
        tag, word, pretraining, seed = key
        return tag, order.get(word, len(order)), word, pretraining, seed

    return {key: runs[key] for key in sorted(runs, key=place)}


def collect(
    expdir: Path,
    dump: Path,
    *,
    expected: Iterable[str] = (),
    pretrain_from: Path | None = None,
) -> Experiment:
    """Read all runs that are there; missing and unfinished ones are listed.

    A run has scores for all lines of downstream.txt x test splits x {last, best}.

    Args:
        expdir, dump: Experiment and formatted data directories.
        expected: Runs `<tag>/<run>` that should be there too; of these, scores that do
            not belong to their labels are an error, others' are listed as stale.
        pretrain_from: Experiment with the pre-trainings, `expdir` by default.

    Raises:
        ValueError: Nothing was scored, or an expected score is of other labels.
    """
    import pandas as pd

    expdir, dump = Path(expdir), Path(dump)
    wanted = {expdir / name for name in expected}
    downstream = read_downstream(dump)
    lines = [(line, line.name.replace("/", "_")) for line in downstream]
    runs = {
        key: path
        for key, path in find_runs(expdir, expected).items()
        if path in wanted or any((path / name).is_dir() for _, name in lines)
    }
    names: dict[str, set[str]] = {}
    for _, word, pretraining, _ in runs:
        names.setdefault(word, set()).add(pretraining)
    rows, stale = [], []
    for (tag, word, pretraining, seed), path in runs.items():
        several = len(names[word]) > 1
        model = f"{word} ({pretraining or 'unknown'})" if several else word
        for line, name in lines:
            data_set, _, fold = line.name.partition("/")
            for test, checkpoint in itertools.product(line.tests, CHECKPOINTS):
                folder = path / name / checkpoint / Path(test).name
                key = (tag, model, seed, data_set, fold, folder.name, checkpoint)
                row = dict(zip(KEY, key, strict=True), run=path / name)
                row |= {"word": word, "pretraining": pretraining}
                row["main"] = main_metric(line.task)
                row["class_list"] = dump / line.class_list
                row["text"] = dump / test / "text"
                if (folder / "metrics.json").exists():
                    try:
                        row |= _read_metrics(folder, row["text"], line.task)
                    except ValueError as error:
                        if path in wanted:
                            raise
                        stale.append(str(error))
                        continue
                rows.append(row)
    columns = [*KEY, "word", "pretraining", *MEASURES, "main", "chance", "per_class"]
    columns += ["run", "text", "class_list"]
    scores = pd.DataFrame(rows, columns=pd.Index(columns))
    scores = scores.astype(dict.fromkeys([*MEASURES, "chance"], float))
    parts = scores[["model", "word", "pretraining"]].drop_duplicates()
    order = {word: place for place, word in enumerate(MODELS)}
    models = {
        model: (word, name) for model, word, name in parts.itertuples(index=False)
    }
    models = dict(
        sorted(models.items(), key=lambda item: order.get(item[1][0], len(order)))
    )
    experiment = Experiment(scores, downstream, dump, models, stale=stale)
    if downstream and experiment.scored.empty:
        raise ValueError(
            f"no scored run in {expdir}: train and score a classifier first"
        )

    def read(paths: dict) -> dict:
        """Read the runs; say of those that are not finished."""
        histories = {}
        for key, path in paths.items():
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
        run = split_run(path.name)
        if run and run[0] in MODELS:
            pretrained[run] = path
    by_place = sorted(pretrained, key=lambda key: (order[key[0]], *key[1:]))
    experiment.pretraining = read({key: pretrained[key] for key in by_place})
    trained = sorted(set(experiment.scored["run"]))
    experiment.finetuning = read({path: path for path in trained})
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
    distinct, higher, pairs, fewer}: `difference` in points, None where a model has no
    complete seed; `distinct` whether the intervals mean ± spread do not overlap, None
    for one seed; `higher` of the `pairs` seeds that both have, in how many the model is
    above; `fewer` says how many updates less the other has, if the model came from it.
    """
    scored = select(experiment.scored, checkpoint="last")
    cells = seed_scores(select(experiment.scores, checkpoint="last")).reset_index()
    groups = scored[["tag", "data_set", "split", "main"]].drop_duplicates()
    groups = groups.rename(columns={"main": "metric"})
    compared = []
    for row in groups.sort_values("tag", kind="stable").to_dict("records"):
        values = select(cells, **row).pivot(index="seed", columns="model")["score"]
        for pair in _pairs(experiment, set(values.columns)):
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
                "fewer": _fewer_updates(experiment, *pair),
            }
            compared.append({**row, "model": pair[0], "other": pair[1], **facts})
    return compared


def _pairs(experiment: Experiment, there: set[str]) -> Iterator[tuple[str, str]]:
    """Yield (model, what it is compared with) of the models that are there."""
    models = [model for model in experiment.models if model in there]
    for word, others in COMPARISONS:
        for model in models:
            if experiment.models[model][0] != word:
                continue
            partners = (_partner(experiment, model, models, other) for other in others)
            if partner := next(filter(None, partners), None):
                yield model, partner
    randoms = [model for model in models if experiment.models[model][0] == "random"]
    for model in models if randoms else ():
        name = experiment.models[model][0]
        if name not in MODELS:
            sizes = (r for r in randoms if experiment.models[r][1] == name)
            yield model, next(sizes, randoms[0])


def _partner(
    experiment: Experiment, model: str, models: list[str], word: str
) -> str | None:
    """Return the model of a word that goes with a model, None if there is none."""
    others = [other for other in models if experiment.models[other][0] == word]
    name = experiment.models[model][1]
    parent = _parent(experiment, model)
    if word == "phase1_more":
        ours = experiment.pretrained(model)
        for other in others:
            theirs = experiment.pretrained(other)
            alike = ours and theirs and compute(ours) == compute(theirs)
            starts = {parent, _parent(experiment, other)} - {None}
            if len(starts) < 2 and (experiment.models[other][1] == name or alike):
                return other
        return None
    if word == "phase1" and parent:
        return next(
            (each for each in others if experiment.models[each] == parent), None
        )
    if len(others) == 1:
        return others[0]
    name = parent[1] if parent else name
    return next((each for each in others if experiment.models[each][1] == name), None)


def _parent(experiment: Experiment, model: str) -> tuple[str, str] | None:
    """Return (word, pretraining) of what a phase 2 began with, None if not known."""
    run = experiment.pretrained(model)
    if experiment.models[model][0] == "phase1" or run is None:
        return None
    origin = _origin("\n".join(run.config.get("init_param") or ()))
    return origin[:2] if origin else None


def compute(run: History) -> dict[str, object]:
    """Return what a pre-training cost and how it was driven, whatever its objective.

    Updates, clips and student rows per clip of an update, optimizer, schedule of the
    learning rate and of the teacher.
    """
    conf = {**UNSAID, **(run.config.get("model_conf") or {})}
    names = ("batch_size", "accum_grad", "padding", "optim", "optim_conf", "scheduler")
    both = conf["mixture"] and conf["streams"] == "both"
    return {
        "updates": run.updates,
        "rows": conf["clone_batch"] * (2 if both else 1),
        **{name: run.config.get(name) for name in (*names, "scheduler_conf")},
        **{name: value for name, value in conf.items() if name.startswith("ema_")},
    }


def _fewer_updates(experiment: Experiment, model: str, other: str) -> str:
    """Say by how many updates less than a model what it began with was pre-trained."""
    run = experiment.pretrained(model)
    if run is None or _parent(experiment, model) != experiment.models[other]:
        return ""
    return f"{run.updates} updates fewer" if run.updates else "fewer updates"


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


LABELS = "labels"  # the series by number of labels
# The paper's levels of polyphony (table 3), by their lowest number of labels, and 1.
LEVELS = (1, 2, 4, 6, 8, 10, 12, 14)
LEVEL_CLIPS = 20  # with fewer clips a level is left out


def level_name(level: int) -> str:
    """Return a level of LEVELS in words, such as `2-3`."""
    upper = {low: high - 1 for low, high in itertools.pairwise(LEVELS)}
    if level == LEVELS[-1]:
        return f"{level}+"
    return str(level) if upper[level] == level else f"{level}-{upper[level]}"


def _scores_by_level(experiment: Experiment) -> Frame:
    """Return mAP, chance and clips of each last checkpoint by number of labels.

    The average precision of a level is over its clips alone, the mean over the classes
    that have a positive clip in it. Only of multi_label splits with two levels or more.
    """
    import pandas as pd

    rows = []
    keys = ["tag", "data_set", "split", "model", "seed", "fold"]
    scored = select(experiment.scored, checkpoint="last", main="mAP")
    for row in scored.to_dict("records"):
        folder = row["run"] / row["checkpoint"] / row["split"]
        by_level = score_levels(
            folder / "predictions.npz", row["text"], row["class_list"], LEVELS
        )
        large = {k: v for k, v in by_level.items() if v["clips"] >= LEVEL_CLIPS}
        for level, values in large.items() if len(large) > 1 else ():
            rows.append({**{key: row[key] for key in keys}, "number": level, **values})
    return pd.DataFrame(
        rows, columns=pd.Index([*keys, "number", "mAP", "chance", "clips"])
    )


def label_series(experiment: Experiment) -> Iterator[tuple[str, str, str, Frame]]:
    """Yield the series of every multi_label split by number of labels.

    (tag, data set, split, frame): columns as of `all_series`, and `clips` (of all
    folds). A seed that lacks a fold of a level is left out.
    """
    levels = _scores_by_level(experiment)
    order = list(experiment.models)
    for key, frame in levels.groupby(["tag", "data_set", "split"]):
        folds = frame.groupby("number")["fold"].nunique()
        cells = frame.groupby(["model", "number", "seed"])
        means = cells[["mAP", "chance"]].mean()
        clips = cells["clips"].sum()
        complete = cells["fold"].nunique()
        complete = complete == folds.reindex(complete.index, level="number")
        means = means.assign(clips=clips)[complete]
        points = means.groupby(["model", "number"]).agg(
            mAP=("mAP", "mean"),
            spread=("mAP", "std"),
            seeds=("mAP", "count"),
            chance=("chance", "mean"),
            clips=("clips", "max"),
        )
        points = points.reset_index()
        place = points["model"].map(order.index)
        points = points.assign(place=place).sort_values(["place", "number"])
        yield *key, points.drop(columns="place")


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
    places = cells["model"].map(list(experiment.models).index)
    for key, frame in cells.assign(place=places).groupby(["tag", "data_set", "name"]):
        points = frame[frame["seeds"] > 0].astype({"number": int})
        if frame["split"].nunique() > 1 and len(points):
            columns = ["model", "number", "mAP", "spread", "seeds", "chance"]
            yield *key, points.sort_values(["place", "number"])[columns]
