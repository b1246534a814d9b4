"""Predictions against labels: every clip once, no label guessed, with intervals."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from espnet2_sslam import metrics
from espnet2_sslam.corpus import label_vector, read_classes, read_table
from espnet2_sslam.store import sha256, write_csv, write_json


def main_metric(task: str) -> str:
    """Return the metric of a task that papers report."""
    return "accuracy" if task == "multi_class" else "mAP"


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

    Returns:
        The content of metrics.json: macro mAP, ROC area, d' (and accuracy for
        `multi_class`) over all clips; `intervals` of 95 % by `resamples` draws of the
        clips. `auc` and `d_prime` are None where no class has clips of both kinds, or
        no order is wrong (d' infinite). A class without a positive clip is listed in
        `classes_without_positives`, None in `per_class` and left out of the mean.
        `sha256` tells a later reader whether it still belongs to what was scored.

    Raises:
        ValueError: Clip ids or classes differ, labels do not suit the task, or no class
            has a positive clip.
    """
    labels = {clip: words.split() for clip, words in read_table(text).items()}
    classes = read_classes(class_list)
    ids, scores, predicted_classes = _read_predictions(predictions)
    _check_same("clip ids", ids, labels)
    _check_same("classes", predicted_classes, classes)
    if predicted_classes != classes:
        raise ValueError(
            "the predictions have the classes in another order than the class list; "
            "run inference and scoring with the same class list"
        )
    targets = _target_matrix(ids, labels, classes, task)

    def known(value: float) -> float | None:  # JSON has no word for NaN and infinity
        return float(value) if np.isfinite(value) else None

    per_class = metrics.average_precisions(targets, scores)
    auc = metrics.roc_auc(targets, scores)
    result = {"task": task, "num_clips": len(ids), "mAP": float(np.nanmean(per_class))}
    if task == "multi_class":
        result["accuracy"] = metrics.accuracy(targets, scores)
    result |= {"auc": known(auc), "d_prime": known(metrics.d_prime(auc))}
    if resamples:
        result["bootstrap"] = draws = {"resamples": resamples, "seed": seed}
        intervals = bootstrap(targets, scores, **draws)
        result["intervals"] = {k: v for k, v in intervals.items() if k in result}
    positives = dict(zip(classes, targets.sum(axis=0).tolist(), strict=True))
    sources = {"predictions": predictions, "text": text, "class_list": class_list}
    result |= {
        "classes_without_positives": [c for c, n in positives.items() if not n],
        "positives": positives,
        "per_class": dict(zip(classes, map(known, per_class), strict=True)),
        "sha256": {name: sha256(path) for name, path in sources.items()},
    }
    rows = [
        [label, positives[label], "" if ap is None else f"{ap:.6f}"]
        for label, ap in result["per_class"].items()
    ]
    write_csv(Path(output_dir) / "per_class_ap.csv", ["class", "positives", "AP"], rows)
    write_json(Path(output_dir) / "metrics.json", result)
    return result


def score_levels(
    predictions: Path, text: Path, class_list: Path, levels: Sequence[int]
) -> dict[int, dict[str, float]]:
    """Return mAP by the number of labels of the clips, as {level: values}.

    A clip belongs to the highest of the rising `levels` that its number of labels
    reaches. Values: `mAP` of these clips alone, the mean over classes with a positive
    clip among them; `chance`, the mean share of positive clips of these classes, which
    random scores get; `clips`. Levels without a clip are left out.

    Raises:
        ValueError: As `score_files`.
    """
    labels = {clip: words.split() for clip, words in read_table(text).items()}
    classes = read_classes(class_list)
    ids, scores, _ = _read_predictions(predictions)
    targets = _target_matrix(ids, labels, classes, "multi_label")
    places = np.searchsorted(levels, targets.sum(axis=1), side="right") - 1
    values = {}
    for place, level in enumerate(levels):
        rows = places == place
        if rows.any():
            shares = targets[rows].mean(axis=0)
            values[level] = {
                "mAP": float(
                    np.nanmean(metrics.average_precisions(targets[rows], scores[rows]))
                ),
                "chance": float(shares[shares > 0].mean()),
                "clips": int(rows.sum()),
            }
    return values


def _read_predictions(path: Path) -> tuple[list[str], np.ndarray, list[str]]:
    """Return ids (N,), scores (N, C) and classes (C,) of predictions.npz."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            ids, scores, classes = (arrays[k] for k in ("ids", "scores", "classes"))
    except (BadZipFile, EOFError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path}: not a complete predictions file ({type(error).__name__}); run "
            "inference again"
        ) from None
    if scores.shape != (len(ids), len(classes)):
        raise ValueError(
            f"{path}: scores of shape {(len(ids), len(classes))} needed, "
            f"got {scores.shape}; run inference again"
        )
    for clip, count in Counter(ids.tolist()).most_common(1):
        if count > 1:
            raise ValueError(f"{path}: the clip id {clip} is there twice; remove one")
    return [str(clip) for clip in ids], scores, [str(label) for label in classes]


def _check_same(kind: str, got: list[str], needed: list[str] | dict) -> None:
    missing, extra = set(needed) - set(got), set(got) - set(needed)
    if missing or extra:
        examples = [f"{min(missing)} is missing"] if missing else []
        examples += [f"{min(extra)} is not expected"] if extra else []
        raise ValueError(
            f"{kind} of the predictions do not match: {len(missing)} missing, "
            f"{len(extra)} unexpected ({', '.join(examples)}); run inference on "
            "the same data directory"
        )


def _target_matrix(
    ids: list[str], labels: dict[str, list[str]], classes: list[str], task: str
) -> np.ndarray:
    """Return the labels of the clips as a 0/1 matrix (N, C) in the order of ids."""
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
    if not targets.any():
        raise ValueError(
            "no clip has a label of the class list: nothing to score; check the "
            "text file"
        )
    return targets


class _ResampledPrecision:
    """Macro mAP of a drawn set of clips, given as counts: how often each was drawn.

    scikit-learn for every class of every draw would take an hour for a thousand draws
    of AudioSet's test set. Here each class is sorted once. The definition is the same.
    """

    def __init__(self, targets: np.ndarray, scores: np.ndarray):
        self.rankings = []
        for positive, values in zip(targets.T > 0, scores.T, strict=True):
            if positive.any():
                order = np.argsort(-values, kind="stable")
                ranked = values[order]
                places = np.flatnonzero(positive[order])  # of the positive clips
                # Clips of equal score come together: the last place of each's group.
                ends = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
                ends = ends[np.searchsorted(ends, places)]
                last_hit = np.searchsorted(places, ends, side="right") - 1
                self.rankings.append((order, places, ends, last_hit))

    def __call__(self, counts: np.ndarray) -> float:
        """Return the mean over classes with a positive clip in the draw, else NaN."""
        precisions = []
        for order, places, ends, last_hit in self.rankings:
            drawn = counts[order]
            hits = drawn[places]
            if hits.any():
                above = np.cumsum(drawn)[ends]
                precision = np.cumsum(hits)[last_hit] / np.maximum(above, 1)
                precisions.append(float((hits * precision).sum() / hits.sum()))
        return float(np.mean(precisions)) if precisions else float("nan")


def bootstrap(
    targets: np.ndarray, scores: np.ndarray, *, resamples: int, seed: int
) -> dict[str, list[float]]:
    """Return the 95 % intervals [low, high] of mAP and accuracy over clips drawn anew.

    Args:
        targets, scores: (N, C).
        resamples: Draws of N clips with replacement.
        seed: Of the draws.

    Raises:
        ValueError: Fewer than 2 resamples.
    """
    if resamples < 2:
        raise ValueError(f"resamples must be at least 2, got {resamples}: use 1000")
    generator = np.random.default_rng(seed)
    precision = _ResampledPrecision(targets, scores)
    right = targets[np.arange(len(scores)), scores.argmax(axis=1)]
    draws = []
    for _ in range(resamples):
        rows = generator.integers(len(targets), size=len(targets))
        counts = np.bincount(rows, minlength=len(targets))
        draws.append((precision(counts), float(counts @ right) / len(targets)))
    low, high = np.nanpercentile(draws, (2.5, 97.5), axis=0).tolist()
    return {"mAP": [low[0], high[0]], "accuracy": [low[1], high[1]]}
