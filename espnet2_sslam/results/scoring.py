"""Predictions against labels: every clip once, no label guessed."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from espnet2_sslam.corpus import TASKS, label_vector, read_classes, read_table
from espnet2_sslam.results.intervals import bootstrap
from espnet2_sslam.store import sha256, write_csv, write_json


@dataclass(frozen=True)
class Predictions:
    """What the classifier said: ids (N,), scores (N, C), classes (C,)."""

    ids: list[str]
    scores: np.ndarray
    classes: list[str]


def read_predictions(path: Path) -> Predictions:
    """Read predictions.npz; raises ValueError for a damaged or inconsistent file."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            ids, scores, classes = (arrays[k] for k in ("ids", "scores", "classes"))
    except (BadZipFile, EOFError, KeyError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error) else "empty file"
        raise ValueError(
            f"{path}: not a complete predictions file ({reason}); run inference again"
        ) from None
    if scores.shape != (len(ids), len(classes)):
        raise ValueError(
            f"{path}: scores of shape {(len(ids), len(classes))} needed, "
            f"got {scores.shape}; run inference again"
        )
    ids = [str(clip) for clip in ids]
    twice = [clip for clip, count in Counter(ids).items() if count > 1]
    if twice:
        raise ValueError(f"{path}: the clip id {twice[0]} is there twice; remove one")
    bad = np.flatnonzero(~np.isfinite(scores).all(axis=1))
    if len(bad):
        raise ValueError(
            f"{path}: scores of {len(bad)} clips are not finite, the first is "
            f"{ids[bad[0]]}; check the model"
        )
    return Predictions(ids, scores, [str(label) for label in classes])


def main_metric(task: str) -> str:
    """Return the metric of a task that papers report."""
    return "accuracy" if task == "multi_class" else "mAP"


def target_matrix(
    ids: list[str], labels: dict[str, list[str]], classes: list[str], task: str
) -> np.ndarray:
    """Return the labels of the clips as a 0/1 matrix (N, C) in the order of ids.

    Raises:
        ValueError: for an unknown task or label, and in `multi_class` for a clip
            that has not exactly one label.
    """
    if task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {task!r}")
    column = {label: index for index, label in enumerate(classes)}
    targets = np.zeros((len(ids), len(classes)), dtype=np.int64)
    for row, clip in enumerate(ids):
        try:
            targets[row] = label_vector(labels[clip], column)
        except ValueError as error:
            raise ValueError(f"clip {clip}: {error}") from None
        if task == "multi_class" and targets[row].sum() != 1:
            raise ValueError(
                f"clip {clip} has {targets[row].sum()} labels, multi_class needs "
                "exactly one; use multi_label or correct the text file"
            )
    return targets


def score(
    predictions: Predictions,
    labels: dict[str, list[str]],
    classes: list[str],
    task: str,
    *,
    resamples: int = 0,
    seed: int = 0,
) -> dict:
    """Compute macro mAP, ROC area, d' (and accuracy for `multi_class`) over all clips.

    `intervals` holds the 95 % bootstrap intervals, of `resamples` draws of the clips.
    `auc` and `d_prime` are None where no class has clips of both kinds, or no order is
    wrong (d' infinite). A class without a positive clip has no average precision: it is
    listed in `classes_without_positives`, is None in `per_class` and left out of the
    mean.

    Raises:
        ValueError: when ids or classes differ, or no class has a positive clip.
    """
    # scikit-learn takes seconds to import; reading results does not need it.
    from espnet2_sslam.metrics import accuracy, average_precisions, d_prime, roc_auc

    _check_same("clip ids", predictions.ids, list(labels))
    if predictions.classes != classes:
        _check_same("classes", predictions.classes, classes)
        raise ValueError(
            "the predictions have the classes in another order than the class list; "
            "run inference and scoring with the same class list"
        )
    targets = target_matrix(predictions.ids, labels, classes, task)
    if not targets.any():
        raise ValueError(
            "no clip has a label of the class list: nothing to score; check the "
            "text file"
        )
    single_label = task == "multi_class"
    per_class = average_precisions(targets, predictions.scores)
    metrics = {
        "task": task,
        "num_clips": len(predictions.ids),
        "mAP": float(np.nanmean(per_class)),
    }
    if single_label:
        metrics["accuracy"] = float(accuracy(targets, predictions.scores))
    auc = roc_auc(targets, predictions.scores)
    metrics["auc"], metrics["d_prime"] = _known(auc), _known(d_prime(auc))
    if resamples:
        draws = {"resamples": resamples, "seed": seed}
        metrics["bootstrap"] = draws
        metrics["intervals"] = bootstrap(
            targets, predictions.scores, **draws, accuracy=single_label
        )
    positives = {c: int(n) for c, n in zip(classes, targets.sum(axis=0), strict=True)}
    metrics["classes_without_positives"] = [c for c, n in positives.items() if not n]
    metrics["positives"] = positives
    metrics["per_class"] = {
        c: _known(value) for c, value in zip(classes, per_class, strict=True)
    }
    return metrics


def score_files(
    predictions: Path,
    text: Path,
    class_list: Path,
    task: str,
    output_dir: Path,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict:
    """Score files and write `metrics.json` and `per_class_ap.csv` in output_dir.

    `metrics.json` also holds the SHA-256 of what was scored, so that a later reader
    can tell whether it still belongs to the predictions beside it.
    """
    labels = {clip: words.split() for clip, words in read_table(text).items()}
    classes = read_classes(class_list)
    read = read_predictions(predictions)
    metrics = score(read, labels, classes, task, resamples=resamples, seed=seed)
    sources = {"predictions": predictions, "text": text, "class_list": class_list}
    metrics["sha256"] = {name: sha256(path) for name, path in sources.items()}
    rows = [
        [label, metrics["positives"][label], "" if ap is None else f"{ap:.6f}"]
        for label, ap in metrics["per_class"].items()
    ]
    write_csv(Path(output_dir) / "per_class_ap.csv", ["class", "positives", "AP"], rows)
    write_json(Path(output_dir) / "metrics.json", metrics)
    return metrics


def _known(value: float) -> float | None:
    """Return the number, or None for what JSON has no word for."""
    return float(value) if np.isfinite(value) else None


def _check_same(what: str, got: list[str], needed: list[str]) -> None:
    """Raise ValueError with an example when two collections are not the same set."""
    missing, extra = set(needed) - set(got), set(got) - set(needed)
    if missing or extra:
        examples = [f"{min(missing)} is missing"] if missing else []
        examples += [f"{min(extra)} is not expected"] if extra else []
        raise ValueError(
            f"{what} of the predictions do not match: {len(missing)} missing, "
            f"{len(extra)} unexpected ({', '.join(examples)}); run inference on the "
            "same data directory"
        )
