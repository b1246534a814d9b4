"""What trainings left behind: settings, time and curves, and all scores as one frame.

Layout: EXPDIR/pretrain/<phase>_<tag>_seed<N>/ and, for the downstream runs,
EXPDIR/<tag>/<model>_seed<N>/<name>/{last,best}/<test split>/metrics.json, where <name>
is the first column of downstream.txt with `/` replaced by `_`.

pandas, torch and TensorBoard are imported where something is read with them.
"""

import datetime
import hashlib
import itertools
import json
import pickle
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from espnet2_sslam.corpus import Downstream, read_downstream, read_label_names
from espnet2_sslam.results.scoring import main_metric
from espnet2_sslam.store import sha256

MODELS = ("random", "phase1", "phase2")  # others have the names of --models
CHECKPOINTS = ("last", "best")
MODEL_DIR = re.compile(r"(.+)_seed(\d+)")
PRETRAIN_DIR = re.compile(r"(phase[12])_(.+)_seed(\d+)")
# What differs between seeds and folds of one experiment, and where it ran.
RUN_KEYS = re.compile(
    r"config|output_dir|seed|init_param|resume|ngpu|num_workers|log_.*|dist_.*|version"
    r"|distributed|multiprocessing_distributed|local_rank|required|wandb.*"
    r"|use_(tensorboard|matplotlib|wandb)"
    r"|(train|valid)_(data_path_and_name_and_type|shape_file)"
)
# Lines of train.log that are records: ESPnet's version line, and what our trainer says
# at every start (`machine: <processor>, <cores>, <memory>; <GPUs>`).
TORCH_LINE = re.compile(r"pytorch\.version=([^\s,]+)")
MACHINE_LINE = re.compile(r" INFO: machine: (.+)")
# Columns of the frame of scores; those of a missing score are empty after the key.
KEY = ["tag", "model", "seed", "data_set", "fold", "split", "checkpoint"]
MEASURES = ["mAP", "accuracy", "auc", "d_prime", "low", "high", "clips"]
CELL = ["tag", "data_set", "split", "checkpoint", "model"]
Curve = tuple[np.ndarray, np.ndarray]  # updates, values
# pandas.DataFrame, or one row of it. Its own types call a selection of columns "Series
# or DataFrame", which no reader and no checker is helped by.
Frame = Any


@dataclass(frozen=True)
class History:
    """One training run. `stats[epoch]["train" | "valid"][name]` are epoch means.

    `machines` are those that its log names: several after a resume elsewhere.
    """

    path: Path
    config: dict
    stats: dict
    torch_version: str | None
    machines: tuple[str, ...] = ()

    @property
    def epochs(self) -> int:
        """Number of finished epochs."""
        return max(self.stats, default=0)

    @property
    def finished(self) -> bool:
        """True when all epochs were trained, or training may stop before."""
        early = self.config.get("patience") is not None
        return early or self.epochs >= self.config["max_epoch"]

    @property
    def updates(self) -> int:
        """Number of optimizer updates (iterations over accum_grad)."""
        return int(self.steps("train")[-1]) if self.stats else 0

    @property
    def hours(self) -> float:
        """Wall hours of training and validation, over all resumed parts."""
        parts = (part for epoch in self.stats.values() for part in epoch.values())
        return sum(part["time"].total_seconds() for part in parts) / 3600

    @property
    def kind(self) -> str:
        """`linear` for a frozen encoder, else `finetune`."""
        frozen = (self.config.get("model_conf") or {}).get("freeze_encoder")
        return "linear" if frozen else "finetune"

    @property
    def settings_hash(self) -> str:
        """First 10 hex digits of the SHA-256 of the settings shared by all seeds."""
        shared = {k: v for k, v in self.config.items() if not RUN_KEYS.fullmatch(k)}
        if scheduler := shared.get("scheduler_conf"):
            # Filled in from the number of clips, which differs between folds.
            shared["scheduler_conf"] = {**scheduler, "total_steps": None}
        text = json.dumps(shared, sort_keys=True, default=str)
        return hashlib.sha256(text.encode("utf-8")).hexdigest()[:10]

    def steps(self, split: str) -> np.ndarray:
        """Updates at the end of each epoch that has the split."""
        epochs = [epoch for epoch in sorted(self.stats) if split in self.stats[epoch]]
        counts = [self.stats[epoch]["train"]["total_count"] for epoch in epochs]
        return np.array(counts) // self.config.get("accum_grad", 1)

    def epoch_curve(self, split: str, name: str) -> Curve:
        """Return (updates, epoch means) of a stat; empty when it was not recorded."""
        epochs = [self.stats[epoch] for epoch in sorted(self.stats)]
        parts = [epoch[split] for epoch in epochs if split in epoch]
        values = np.array([part.get(name, np.nan) for part in parts], dtype=float)
        known = np.isfinite(values)
        return self.steps(split)[known], values[known]


def read_history(run_dir: Path) -> History:
    """Read config.yaml, checkpoint.pth and the logs of an ESPnet output directory.

    Raises:
        FileNotFoundError: The run has not finished an epoch.
        ValueError: The checkpoint is not readable.
    """
    run_dir = Path(run_dir)
    config, checkpoint = run_dir / "config.yaml", run_dir / "checkpoint.pth"
    for path in (config, checkpoint):
        if not path.exists():
            raise FileNotFoundError(
                f"{path} is missing: no finished epoch there; train the model first"
            )
    # ESPnet's launcher renames the log of an earlier start to train.1.log and so on.
    logs = [run_dir / "train.log", *sorted(run_dir.glob("train.*.log"))]
    versions, machines = [], []
    for log in filter(Path.exists, logs):
        with log.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                versions += TORCH_LINE.findall(line)
                machines += MACHINE_LINE.findall(line)
    return History(
        path=run_dir,
        config=yaml.safe_load(config.read_text(encoding="utf-8")),
        stats=_read_reporter(checkpoint),
        torch_version=versions[0] if versions else None,
        machines=tuple(dict.fromkeys(machines)),
    )


def _read_reporter(checkpoint: Path) -> dict:
    """Return the epoch means of ESPnet's reporter; tensors stay on disk."""
    import torch

    scalar = np.float64(0).__reduce__()[0]
    allowed = [datetime.timedelta, scalar, np.dtype, type(np.dtype(np.float64))]
    try:
        with torch.serialization.safe_globals(allowed):
            states = torch.load(
                checkpoint, map_location="cpu", weights_only=True, mmap=True
            )
        stats = states["reporter"]["stats"]
    except (
        RuntimeError,
        EOFError,
        KeyError,
        OSError,
        ValueError,
        pickle.UnpicklingError,
    ) as error:
        raise ValueError(
            f"{checkpoint} is not a readable checkpoint "
            f"({type(error).__name__}); train again or remove the run"
        ) from None
    for epoch in stats.values():
        for part in epoch.values():
            if isinstance(part["time"], dict):  # ESPnet >= 202607 stores seconds
                seconds = part["time"]["__timedelta_seconds__"]
                part["time"] = datetime.timedelta(seconds=seconds)
    return stats


def train_curves(history: History, names: list[str]) -> dict[str, Curve]:
    """Return {name: (updates, values)} of training stats, as finely as logged.

    Taken from the TensorBoard events. ESPnet writes an epoch's mean under the name of
    the interval means too (espnet2/train/reporter.py): it is used only for an epoch
    without another point. After a resume the later value of an update counts.
    """
    points: dict[str, list] = {}
    folder = history.path / "tensorboard" / "train"
    if folder.is_dir():
        # Imported here: it takes a second, and tables do not need it.
        from tensorboard.backend.event_processing import event_accumulator

        events = event_accumulator.EventAccumulator(
            str(folder), size_guidance={event_accumulator.SCALARS: 0}
        ).Reload()
        for name in set(names) & set(events.Tags()["scalars"]):
            points[name] = sorted(events.Scalars(name), key=lambda e: e.wall_time)
    accum_grad = history.config.get("accum_grad", 1)
    curves = {}
    for name in names:
        ends, means = history.epoch_curve("train", name)
        mean_at = dict(zip(ends.tolist(), means.tolist(), strict=True))
        kept = {}
        for point in points.get(name, []):
            update = point.step // accum_grad
            if not np.isclose(point.value, mean_at.get(update, np.nan), rtol=1e-6):
                kept[update] = point.value
        previous = 0
        for end, mean in mean_at.items():
            if not any(previous < update <= end for update in kept):
                kept[end] = mean
            previous = end
        updates = np.array(sorted(kept), dtype=int)
        curves[name] = updates, np.array([kept[update] for update in updates.tolist()])
    return curves


def thin_out(steps: np.ndarray, values: np.ndarray, max_points: int = 400) -> Curve:
    """Average neighbouring points until at most max_points are left."""
    width = -(-len(steps) // max_points)
    if width <= 1:
        return steps, values
    edges = np.arange(0, len(steps), width)
    counts = np.diff(np.append(edges, len(steps)))
    means = [np.add.reduceat(x, edges) / counts for x in (steps, values)]
    return means[0], means[1]


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

    @property
    def tests(self) -> list[str]:
        """The names of the test splits."""
        return [Path(test).name for test in self.line.tests]


@dataclass
class Experiment:
    """All that goes into RESULTS.md.

    `scores` has a row per expected score: the columns KEY and MEASURES (empty where it
    is missing), `run` (the training's folder) and `metrics` (all of metrics.json).
    `pretraining` holds the runs by (phase, tag, seed), in order; `finetuning` by their
    directory; `unfinished` says in words which runs have not reached their last epoch.
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

    @cached_property
    def data_sets(self) -> dict[str, Downstream]:
        """{data set: the first of its lines of downstream.txt}."""
        lines: dict[str, Downstream] = {}
        for line in self.downstream:
            lines.setdefault(line.name.partition("/")[0], line)
        return lines

    @cached_property
    def evaluations(self) -> list[Evaluation]:
        """Everything that has or should have scores, by tag and data set."""
        return [
            Evaluation(tag, data_set, line, main_metric(line.task), kind)
            for tag in sorted(set(self.scores["tag"]))
            for kind in [self._kind(tag)]
            for data_set, line in self.data_sets.items()
        ]

    def models(self, tag: str) -> list[str]:
        """The models of a tag, with a score or a missing one, in order."""
        return in_order(select(self.scores, tag=tag)["model"])

    def label_names(self, data_set: str) -> dict[str, str]:
        """Names to show of a data set's labels, of those that have one."""
        class_list = self.dump / self.data_sets[data_set].class_list
        return read_label_names(class_list.parent)

    def _kind(self, tag: str) -> str:
        for path, run in self.finetuning.items():
            if path.parent.parent.name == tag:
                config = Path(run.config.get("config") or "").name
                return "probe" if config.startswith("probe") else run.kind
        return "linear" if tag.startswith("linear") else "finetune"


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

    Args:
        expdir, dump: Experiment and formatted data directories.
        seeds, models, tags: What should be there; by default what is.
        pretrain_from: Experiment with the pre-trainings, `expdir` by default.

    Raises:
        ValueError: Nothing was scored, or scores do not belong to their labels.
    """
    scores = collect_scores(expdir, dump, seeds=seeds, models=models, tags=tags)
    experiment = Experiment(scores, read_downstream(dump), Path(dump))
    if experiment.downstream and experiment.scored.empty:
        raise ValueError(
            f"no scored run in {expdir}: train and score a classifier first"
        )

    def history_of(path: Path) -> History | None:
        try:
            history = read_history(path)
        except FileNotFoundError as error:
            experiment.unfinished.append(str(error))
            return None
        if not history.finished:
            total = history.config["max_epoch"]
            experiment.unfinished.append(
                f"{path}: {history.epochs} of {total} epochs trained"
            )
        return history

    folders = Path(pretrain_from or expdir).glob("pretrain/*")
    matches = [(PRETRAIN_DIR.fullmatch(path.name), path) for path in folders]
    pretraining = [(m[1], m[2], int(m[3]), path) for m, path in matches if m]
    for phase, tag, seed, path in sorted(pretraining):
        expected = seeds is None or seed in seeds
        if expected and (history := history_of(path)):
            experiment.pretraining[phase, tag, seed] = history
    for path in sorted(set(experiment.scored["run"])):
        if history := history_of(path):
            experiment.finetuning[path] = history
    return experiment


def collect_scores(
    expdir: Path,
    dump: Path,
    *,
    seeds: list[int] | None = None,
    models: Sequence[str] = MODELS,
    tags: list[str] | None = None,
) -> Frame:
    """Read every score that the experiment should have: `Experiment.scores`.

    Expected are all models x seeds x lines of downstream.txt x test splits x {last,
    best}, for each fine-tuning tag. Without `seeds`, a tag's seeds are those of any of
    its runs. Arguments and errors are those of `collect`.
    """
    import pandas as pd

    expdir, dump = Path(expdir), Path(dump)
    seeds_by_tag: dict[str, set[int]] = {}
    for path in expdir.glob("*/*_seed*"):
        match = MODEL_DIR.fullmatch(path.name)
        if match and path.parent.name != "pretrain" and path.is_dir():
            seeds_by_tag.setdefault(path.parent.name, set()).add(int(match[2]))
    downstream = read_downstream(dump)
    rows = []
    for tag in tags or sorted(seeds_by_tag):
        tag_seeds = seeds or sorted(seeds_by_tag.get(tag, ()))
        for model, seed, line in itertools.product(models, tag_seeds, downstream):
            run = expdir / tag / f"{model}_seed{seed}" / line.name.replace("/", "_")
            data_set, _, fold = line.name.partition("/")
            for test, checkpoint in itertools.product(line.tests, CHECKPOINTS):
                folder = run / checkpoint / Path(test).name
                key = (tag, model, seed, data_set, fold, folder.name, checkpoint)
                row = dict(zip(KEY, key, strict=True), run=run, metrics=None)
                if (folder / "metrics.json").exists():
                    row |= _read_metrics(folder, dump / test / "text", line.task)
                rows.append(row)
    frame = pd.DataFrame(rows, columns=pd.Index([*KEY, *MEASURES, "run", "metrics"]))
    return frame.astype(dict.fromkeys(MEASURES, float))


def _read_metrics(folder: Path, text: Path, task: str) -> dict:
    """Return metrics.json and the columns MEASURES; low and high of the main metric.

    Raises:
        ValueError: The scores are of other predictions, other labels or another task.
            (That predictions and labels have the same clips was checked in scoring.)
    """
    path, predictions = folder / "metrics.json", folder / "predictions.npz"
    remedy = "score the predictions again"
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
        hashes, scored_as = metrics["sha256"], metrics["task"]
    except (json.JSONDecodeError, KeyError, TypeError):
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
    low, high = metrics.get("intervals", {}).get(main_metric(task)) or (None, None)
    values = {**metrics, "low": low, "high": high, "clips": metrics["num_clips"]}
    return {**{name: values.get(name) for name in MEASURES}, "metrics": metrics}


def in_order(models: Iterable[str]) -> list[str]:
    """Return the different models: random and the phases first, others as they come."""
    known = dict.fromkeys(models)
    return [m for m in MODELS if m in known] + [m for m in known if m not in MODELS]


def select(frame: Frame, **values: object) -> Frame:
    """Return the rows whose columns have these values."""
    for name, value in values.items():
        frame = frame[frame[name] == value]
    return frame


def summarise(scores: Frame) -> Frame:
    """Average over folds and seeds: a row per tag, data set, split, checkpoint, model.

    A seed's value is the mean over its folds; a seed that lacks a fold is in no
    average. Columns beside CELL and `metric` (mAP or accuracy):
        values: {seed: value} of the complete seeds.
        mean, spread: Their mean and standard deviation (n - 1), else NaN.
        expected: Number of seeds, complete or not.
        part, part_runs, runs: Mean over the scored runs (a seed and fold), their number
            and that of all runs.
    """
    long = scores.melt(KEY, ["mAP", "accuracy"], var_name="metric", value_name="score")
    group_by = [*CELL, "metric"]
    rows = []
    for key, group in long.groupby(group_by, sort=False):
        by_seed = group.groupby("seed").score
        # The mean of NumPy, other than that of pandas, is NaN when a fold is missing.
        means = {int(seed): float(part.to_numpy().mean()) for seed, part in by_seed}
        values = {seed: mean for seed, mean in means.items() if np.isfinite(mean)}
        complete, runs = list(values.values()), group.score.dropna().to_numpy()
        rows.append(
            {
                **dict(zip(group_by, key, strict=True)),
                "values": values,
                "mean": float(np.mean(complete)) if values else np.nan,
                "spread": float(np.std(complete, ddof=1)) if complete[1:] else np.nan,
                "expected": len(means),
                "part": float(np.mean(runs)) if len(runs) else np.nan,
                "part_runs": len(runs),
                "runs": len(group),
            }
        )
    columns = ["values", "mean", "spread", "expected", "part", "part_runs", "runs"]
    return type(scores)(rows, columns=[*group_by, *columns])


def class_precisions(scored: Frame) -> Frame:
    """Return the AP of each class: columns `model`, `class`, `mean`, `spread`, `seeds`.

    A fold in which a class has no positive clip does not count for that class; a class
    that never has one has NaN and no seeds.
    """
    by_run = type(scored)(list(scored["metrics"].str["per_class"])).astype(float)
    keys = [scored[name].to_numpy() for name in ("model", "seed")]
    by_seed = by_run.groupby(keys, sort=False).mean()
    statistics = by_seed.groupby(level=0, sort=False).agg(["mean", "std", "count"])
    long = statistics.stack(level=0, future_stack=True).reset_index()
    long.columns = ["model", "class", "mean", "spread", "seeds"]
    return long
