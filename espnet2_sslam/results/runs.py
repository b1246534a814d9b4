"""Which runs an experiment directory holds, which it should hold, and their scores.

Layout: EXPDIR/pretrain/<phase>_<tag>_seed<N>/ and, for the downstream runs,
EXPDIR/<tag>/<model>_seed<N>/<name>/{last,best}/<test split>/metrics.json, where <name>
is the first column of downstream.txt with `/` replaced by `_`.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Optional

from espnet2_sslam.results.files import sha256
from espnet2_sslam.results.scoring import TASKS, read_predictions, read_text

MODELS = ("random", "phase1", "phase2")
CHECKPOINTS = ("last", "best")
MODEL_DIR = re.compile(rf"({'|'.join(MODELS)})_seed(\d+)")
PRETRAIN_DIR = re.compile(r"(phase[12])_(.+)_seed(\d+)")


@dataclass(frozen=True)
class Downstream:
    """One line of downstream.txt: a training run and its test directories."""

    name: str
    task: str
    train_dir: Path
    valid_dir: Path
    test_dirs: tuple[Path, ...]

    @property
    def data_set(self) -> str:
        """The data set's name without the fold."""
        return self.name.split("/")[0]

    @property
    def fold(self) -> str:
        """The fold's name, empty where there are no folds."""
        return self.name.partition("/")[2]


class Key(NamedTuple):
    """What identifies one scored test split."""

    tag: str
    model: str
    seed: int
    data_set: str
    fold: str
    split: str
    checkpoint: str

    def describe(self) -> str:
        """Return the key as words for a list of missing runs."""
        fold = f"/{self.fold}" if self.fold else ""
        return (
            f"{self.tag}/{self.model}_seed{self.seed}, {self.data_set}{fold}, "
            f"{self.split}, {self.checkpoint}"
        )


@dataclass(frozen=True)
class Scores:
    """All scores found: `found[key]` is a metrics.json, `missing` lists what is not."""

    found: dict[Key, dict]
    missing: list[Key]
    run_dirs: dict[Key, Path]


def read_downstream(path: Path) -> list[Downstream]:
    """Read downstream.txt; directories are relative to it.

    Raises:
        ValueError: for a line with other than five columns or an unknown task.
    """
    path, runs = Path(path), []
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; run stages 1 to 3 first")
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if not (fields := line.split()):
            continue
        if len(fields) != 5 or fields[1] not in TASKS:
            raise ValueError(
                f"{path}, line {number}: needed <name> <{'|'.join(TASKS)}> <train dir> "
                f"<valid dir> <test dirs>, got {line!r}; prepare the data again"
            )
        tests = tuple(path.parent / test for test in fields[4].split(","))
        train, valid = (path.parent / field for field in fields[2:4])
        runs.append(Downstream(fields[0], fields[1], train, valid, tests))
    return runs


def find_tags(expdir: Path) -> dict[str, list[tuple[str, int]]]:
    """Return {fine-tuning tag: [(model, seed), ...]} of the directories there."""
    tags: dict[str, list[tuple[str, int]]] = {}
    for path in sorted(Path(expdir).glob("*/*_seed*")):
        found = MODEL_DIR.fullmatch(path.name)
        if found and path.parent.name != "pretrain" and path.is_dir():
            tags.setdefault(path.parent.name, []).append((found[1], int(found[2])))
    return tags


def find_pretraining(expdir: Path) -> list[tuple[str, str, int, Path]]:
    """Return (phase, tag, seed, directory) of the pre-training runs, sorted."""
    runs = []
    for path in Path(expdir).glob("pretrain/*"):
        if found := PRETRAIN_DIR.fullmatch(path.name):
            runs.append((found[1], found[2], int(found[3]), path))
    return sorted(runs)


def collect_scores(
    expdir: Path,
    downstream: list[Downstream],
    *,
    seeds: Optional[list[int]] = None,
    models: tuple[str, ...] = MODELS,
    tags: Optional[list[str]] = None,
) -> Scores:
    """Read every score that the experiment should have.

    Expected are all models x seeds x lines of downstream.txt x test splits x {last,
    best}, for each fine-tuning tag. Without `seeds`, a tag's seeds are those of any of
    its runs.

    Raises:
        ValueError: for scores that do not belong to the predictions or labels there.
    """
    there = find_tags(expdir)
    found, missing, run_dirs = {}, [], {}
    for tag in tags or sorted(there):
        tag_seeds = seeds or sorted({seed for _, seed in there.get(tag, [])})
        for model, seed, line in (
            (m, s, d) for m in models for s in tag_seeds for d in downstream
        ):
            run = Path(expdir) / tag / f"{model}_seed{seed}"
            run = run / line.name.replace("/", "_")
            for test in line.test_dirs:
                for checkpoint in CHECKPOINTS:
                    split = test.name
                    key = Key(
                        tag, model, seed, line.data_set, line.fold, split, checkpoint
                    )
                    folder = run / checkpoint / split
                    if (folder / "metrics.json").exists():
                        found[key] = read_metrics(folder, test / "text", line.task)
                        run_dirs[key] = run
                    else:
                        missing.append(key)
    return Scores(found, missing, run_dirs)


def read_metrics(folder: Path, text: Path, task: str) -> dict:
    """Read metrics.json and check that it belongs to its predictions and labels.

    Raises:
        ValueError: naming the folder, when the scores are of other predictions, other
            labels, another task, or the predictions are not of the test set's clips.
    """
    path = folder / "metrics.json"
    remedy = "run stage 7 again"
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
        hashes = metrics["sha256"]
        scored_as = metrics["task"]
    except (json.JSONDecodeError, KeyError, TypeError):
        raise ValueError(f"{path} is not a complete metrics file; {remedy}") from None
    predictions = folder / "predictions.npz"
    if not predictions.exists():
        raise ValueError(f"{predictions} is missing beside its scores; {remedy}")
    if scored_as != task:
        raise ValueError(f"{path}: scored as {scored_as}, needed {task}; {remedy}")
    ids, clips = read_predictions(predictions).ids, read_text(text)
    if different := set(ids) ^ set(clips):
        raise ValueError(
            f"{predictions}: its clips are not those of {text} ({len(different)} "
            f"differ, e.g. {min(different)}); {remedy}"
        )
    for name, source in (("predictions", predictions), ("text", text)):
        if hashes.get(name) != sha256(source):
            raise ValueError(
                f"{path}: {source} has changed since it was scored; {remedy}"
            )
    return metrics
