"""Which runs an experiment directory holds, which it should hold, and their scores.

Layout: EXPDIR/pretrain/<phase>_<tag>_seed<N>/ and, for the downstream runs,
EXPDIR/<tag>/<model>_seed<N>/<name>/{last,best}/<test split>/metrics.json, where <name>
is the first column of downstream.txt with `/` replaced by `_`.
"""

import itertools
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from espnet2_sslam.corpus import Downstream, read_downstream, read_table
from espnet2_sslam.results.scoring import read_predictions
from espnet2_sslam.store import sha256

MODELS = ("random", "phase1", "phase2")  # others have the names of --models
CHECKPOINTS = ("last", "best")
MODEL_DIR = re.compile(r"(.+)_seed(\d+)")
PRETRAIN_DIR = re.compile(r"(phase[12])_(.+)_seed(\d+)")


class Key(NamedTuple):
    """What identifies one scored test split."""

    tag: str
    model: str
    seed: int
    data_set: str
    fold: str
    split: str
    checkpoint: str

    @property
    def run(self) -> str:
        """The training run in words."""
        fold = f"/{self.fold}" if self.fold else ""
        return f"{self.tag}/{self.model}_seed{self.seed}, {self.data_set}{fold}"


@dataclass(frozen=True)
class Scores:
    """All scores: `found[key]` is a metrics.json, `missing` what should be there.

    `downstream` holds the lines of downstream.txt, `run_dirs[key]` the training run.
    """

    downstream: list[Downstream]
    found: dict[Key, dict]
    missing: list[Key]
    run_dirs: dict[Key, Path]


def data_set_and_fold(name: str) -> tuple[str, str]:
    """Split a name of downstream.txt; the fold is empty where there are none."""
    data_set, _, fold = name.partition("/")
    return data_set, fold


def in_order(models: Iterable[str]) -> list[str]:
    """Return the different models: random and the phases first, others as they come."""
    known = dict.fromkeys(models)
    return [m for m in MODELS if m in known] + [m for m in known if m not in MODELS]


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
    dump: Path,
    *,
    seeds: list[int] | None = None,
    models: tuple[str, ...] = MODELS,
    tags: list[str] | None = None,
) -> Scores:
    """Read every score that the experiment should have.

    Expected are all models x seeds x lines of downstream.txt x test splits x {last,
    best}, for each fine-tuning tag. Without `seeds`, a tag's seeds are those of any of
    its runs.

    Raises:
        ValueError: for scores that do not belong to the predictions or labels there.
    """
    there = find_tags(expdir)
    downstream = read_downstream(dump)
    scores = Scores(downstream, {}, [], {})
    for tag in tags or sorted(there):
        tag_seeds = seeds or sorted({seed for _, seed in there.get(tag, [])})
        for model, seed, line in itertools.product(models, tag_seeds, downstream):
            run = Path(expdir) / tag / f"{model}_seed{seed}"
            run = run / line.name.replace("/", "_")
            for test, checkpoint in itertools.product(line.tests, CHECKPOINTS):
                split = Path(test).name
                name = data_set_and_fold(line.name)
                key = Key(tag, model, seed, *name, split, checkpoint)
                folder = run / checkpoint / split
                if (folder / "metrics.json").exists():
                    text = Path(dump) / test / "text"
                    scores.found[key] = read_metrics(folder, text, line.task)
                    scores.run_dirs[key] = run
                else:
                    scores.missing.append(key)
    return scores


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
    ids, clips = read_predictions(predictions).ids, read_table(text)
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
