"""Which scores belong to exactly these weights.

Scores are taken over only where a record ties them to the weights: stage 7 notes the
state of every checkpoint that it scores, stage 6 that of the encoder it starts from.
"""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from espnet2_sslam.integrations.publish.records import (
    read_record,
    recorded,
    state_of,
)
from espnet2_sslam.integrations.publish.source import Source
from espnet2_sslam.results import CHECKPOINTS

RUN_DIR = re.compile(r".+_seed\d+")
METRICS = ("accuracy", "mAP")  # in this order, where they were computed


class Score(NamedTuple):
    """What one test split gave.

    Args:
        tag: Name of the training in its experiment; empty for a file of scores.
        how: "linear evaluation", "fine-tuning" of an encoder, or "" of the model.
        data_set: Name of the set, with its fold where it has folds.
        split: Name of the test split.
        checkpoint: "last", "best", or "" for a file of scores.
        metrics: Content of metrics.json.
        on_test: Whether the checkpoint was chosen on the test clips themselves.
    """

    tag: str
    how: str
    data_set: str
    split: str
    checkpoint: str
    metrics: dict[str, Any]
    on_test: bool = False


def read_metrics_files(named: Iterable[str], source: Source) -> list[Score]:
    """Scores of the model that the user names: DATASET/SPLIT=metrics.json.

    Raises:
        ValueError: Not of that form, not a file of scores, or of other classes.
    """
    scores = []
    for text in named:
        name, _, file = text.partition("=")
        if not file or "/" not in name:
            raise ValueError(
                f"--metrics is DATASET/SPLIT=metrics.json, such as "
                f"esc50/test=out/metrics.json, not {text!r}"
            )
        metrics = read_metrics(Path(file))
        classes = list(metrics.get("per_class", {}))
        if not source.is_classifier or set(classes) != set(source.classes):
            raise ValueError(
                f"{file} scores {len(classes)} classes, which are not those of the "
                f"model ({len(source.classes)}): name scores of this model"
            )
        data_set, _, split = name.rpartition("/")
        scores.append(Score("", "", data_set, split, "", metrics))
    return scores


def own_scores(source: Source, folders: Iterable[Path] = ()) -> list[Score]:
    """Scores that the records tie to the model, by data set, split and checkpoint.

    Args:
        source: The model.
        folders: Where to look beside its own place: experiments, or single runs.

    Raises:
        ValueError: A folder that holds no score of these weights.
    """
    if source.run is None or source.origin["weights"] != "student":
        if any(folders):
            raise ValueError(
                "--results are of a training's own weights: these are others; name "
                "files of scores with --metrics"
            )
        return []
    state = state_of(source.weights)
    home = source.run if source.is_classifier else experiment_of(source.run)
    scores = list(_scores_in(home, source, state)) if home else []
    for folder in map(Path, folders):
        found = list(_scores_in(folder, source, state))
        if not found:
            raise ValueError(
                f"{folder} holds no scores of {source.weights}: score these weights "
                "(stage 7), or leave --results out"
            )
        scores += [score for score in found if score not in scores]
    return sorted(scores, key=lambda s: s[:5])


def experiment_of(run: Path) -> Path | None:
    """The experiment that a run lies in, None outside of the recipe's layout."""
    run = run.resolve()
    if run.parent.name == "pretrain":
        return run.parent.parent
    return run.parents[2] if RUN_DIR.fullmatch(run.parent.name) else None


def _scores_in(folder: Path, source: Source, state: Any) -> Iterator[Score]:
    """All scores of the weights below an experiment or in a run."""
    runs = {record.parent.parent for record in folder.glob("scoring/.done")}
    for depth in ("*/*/*", "*/*/*/*"):  # TAG/MODEL_seedN/SET, or of a benchmark
        runs |= {r.parent.parent for r in folder.glob(f"{depth}/scoring/.done")}
    for run in sorted(runs):
        if source.is_classifier:
            yield from _classifier_scores(run, state)
        elif state in read_record(run)["inputs"].values():
            last = run / "latest.pth"
            if last.exists():
                yield from _classifier_scores(run, state_of(last))


def _classifier_scores(run: Path, state: Any) -> Iterator[Score]:
    """Scores of one file of weights; `last` where last and best are the same file."""
    record = read_record(run / "scoring")
    named = {
        "last": recorded(record["inputs"], "latest.pth"),
        "best": next((s for n, s in record["inputs"].items() if ".best." in n), None),
    }
    checkpoint = next((name for name in CHECKPOINTS if named[name] == state), None)
    if checkpoint is None:
        return
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    frozen = (config.get("model_conf") or {}).get("freeze_encoder")
    how = "linear evaluation" if frozen else "fine-tuning"
    valid = (config.get("valid_data_path_and_name_and_type") or [[""]])[0][0]
    for path in sorted((run / checkpoint).glob("*/metrics.json")):
        split = path.parent.name
        end = f"{checkpoint}/{split}/metrics.json"
        if recorded(record["outputs"], end) != state_of(path):
            raise ValueError(f"{path} has changed since stage 7: run it again")
        on_test = checkpoint == "best" and Path(valid).parent.name == split
        name = run.name
        yield Score(
            run.parent.parent.name,
            how,
            name,
            split,
            checkpoint,
            read_metrics(path),
            on_test,
        )


def over_folds(scores: list[Score], folds: dict[str, str]) -> list[Score]:
    """Average the scores of a data set's folds.

    Args:
        scores: Of one model.
        folds: {name of a run's folder: data set}, see `seeds.fold_names`.
    """
    groups: dict[tuple, list[Score]] = {}
    for s in scores:
        key = (s.tag, s.how, folds.get(s.data_set, s.data_set), s.split, s.checkpoint)
        groups.setdefault(key, []).append(s)
    averaged = []
    for key, group in groups.items():
        means = {
            name: float(np.mean([s.metrics[name] for s in group]))
            for name in METRICS
            if all(name in s.metrics for s in group)
        }
        clips = sum(s.metrics["num_clips"] for s in group)
        empty = {c for s in group for c in s.metrics["classes_without_positives"]}
        metrics = {**means, "num_clips": clips, "folds": len(group)}
        metrics["classes_without_positives"] = sorted(empty)
        if len(group) == 1:
            metrics["intervals"] = group[0].metrics.get("intervals", {})
        averaged.append(Score(*key, metrics, any(s.on_test for s in group)))
    return averaged


def read_metrics(path: Path) -> dict[str, Any]:
    """The content of a metrics.json.

    Raises:
        ValueError: Not there, or not written by the scoring.
    """
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(metrics["mAP"], float) and metrics["num_clips"] > 0:
            return metrics
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        pass
    raise ValueError(f"{path} is not a metrics.json of sslam_score: score again")
