"""Scoring: numbers by hand, and every way labels and predictions can disagree."""

import json
import time
from statistics import NormalDist

import numpy as np
import pytest

from espnet2_sslam.metrics import accuracy, mean_average_precision
from espnet2_sslam.results import bootstrap, score_files

CLASSES = ["bell", "dog", "rain", "siren"]
TEXT = {"a": ["bell"], "b": ["dog", "bell"], "c": [], "d": ["rain"]}
SCORES = np.array(
    [
        [0.9, 0.1, 0.2, 0.5],
        [0.3, 0.8, 0.1, 0.5],
        [0.5, 0.9, 0.0, 0.5],
        [0.1, 0.2, 0.7, 0.5],
    ],
    dtype=np.float32,
)


def write_case(
    folder,
    text=TEXT,
    ids=tuple(TEXT),
    scores=SCORES,
    classes=CLASSES,
    task="multi_label",
):
    """Write the three input files and return the arguments of score_files."""
    arrays = {"ids": ids, "scores": scores, "classes": classes}
    np.savez(folder / "predictions.npz", **arrays)
    lines = [" ".join([clip, *labels]) for clip, labels in text.items()]
    (folder / "text").write_text("\n".join(lines) + "\n")
    (folder / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return {
        "predictions": folder / "predictions.npz",
        "text": folder / "text",
        "class_list": folder / "classes.txt",
        "task": task,
        "output_dir": folder / "out",
    }


def test_multi_label_scores_equal_the_hand_computed_ones(tmp_path):
    order = [2, 0, 3, 1]  # of the predictions does not matter
    ids = [list(TEXT)[row] for row in order]
    metrics = score_files(**write_case(tmp_path, ids=ids, scores=SCORES[order]))
    # bell: ranked a(+) c(-) b(+) d(-): (1/1 + 2/3) / 2; dog: c(-) b(+): 1/2; rain: 1.
    expected = {"bell": 5 / 6, "dog": 0.5, "rain": 1.0, "siren": None}
    assert metrics["per_class"] == pytest.approx(expected)
    assert metrics["mAP"] == pytest.approx((5 / 6 + 0.5 + 1.0) / 3)
    assert metrics["classes_without_positives"] == ["siren"]
    assert metrics["num_clips"] == 4 and "accuracy" not in metrics
    assert json.loads((tmp_path / "out/metrics.json").read_text()) == metrics
    table = (tmp_path / "out/per_class_ap.csv").read_text().splitlines()
    assert table[0] == "class,positives,AP"
    assert table[1:3] == ["bell,2,0.833333", "dog,1,0.500000"]
    assert table[4] == "siren,0,"


@pytest.mark.parametrize(
    "change, message",
    [
        ({"text": {**TEXT, "e": ["dog"]}}, "1 missing.*e is missing"),
        ({"text": {k: TEXT[k] for k in "abc"}}, "1 unexpected.*d is not expected"),
        ({"text": {**TEXT, "d": ["cat"]}}, "clip d: the label 'cat'"),
        ({"text": {k: [] for k in TEXT}}, "nothing to score"),
        ({"ids": ["a", "b", "b", "d"]}, "clip id b is there twice"),
        ({"scores": SCORES[:, :3]}, "shape"),
        ({"scores": np.where(SCORES == 0.7, np.nan, SCORES)}, "1 clips are not finite"),
        ({"classes": CLASSES[::-1]}, "another order"),
        ({"classes": ["bell", "dog", "rain", "wind"]}, "siren is missing"),
        ({"task": "multi_class"}, "clip b has 2 labels"),
    ],
)
def test_disagreement_is_an_error_and_writes_nothing(tmp_path, change, message):
    arguments = write_case(tmp_path, **change)
    with pytest.raises(ValueError, match=message) as error:
        score_files(**arguments)
    assert "\n" not in str(error.value)
    assert not arguments["output_dir"].exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04half", b"no archive"])
def test_damaged_predictions_are_named(tmp_path, content):
    arguments = write_case(tmp_path)
    arguments["predictions"].write_bytes(content)
    with pytest.raises(ValueError, match=r"predictions\.npz: not a complete") as error:
        score_files(**arguments)
    assert "\n" not in str(error.value)


def test_areas_and_intervals_are_scored(tmp_path):
    metrics = score_files(**write_case(tmp_path), resamples=200, seed=1)
    # ROC areas by hand: bell 3 of 4 pairs, dog 2 of 3, rain 3 of 3; siren has none.
    assert metrics["auc"] == pytest.approx((3 / 4 + 2 / 3 + 1) / 3)
    quantile = NormalDist().inv_cdf((3 / 4 + 2 / 3 + 1) / 3)
    assert metrics["d_prime"] == pytest.approx(2**0.5 * quantile)
    low, high = metrics["intervals"]["mAP"]
    assert 0 < low < metrics["mAP"] < high <= 1
    assert metrics["bootstrap"] == {"resamples": 200, "seed": 1}
    assert "intervals" not in score_files(**write_case(tmp_path), resamples=0)
    # A perfect ranking has no finite d'.
    scores = np.array([[1.0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0]])
    metrics = score_files(**write_case(tmp_path, scores=scores))
    assert metrics["auc"] == 1.0 and metrics["d_prime"] is None


def random_case(clips=60, classes=5, ties=True):
    rng = np.random.default_rng(0)
    targets = (rng.random((clips, classes)) < 0.3).astype(int)
    targets[:, -2:] = 0  # a class without a positive clip,
    targets[3, -2] = 1  # and one that some draws miss
    scores = rng.random((clips, classes)) + 0.3 * targets
    return targets, np.round(scores, 1) if ties else scores


@pytest.mark.parametrize("ties", [True, False])
def test_intervals_are_those_of_scikit_learn_on_the_drawn_clips(ties):
    targets, scores = random_case(ties=ties)
    for seed in range(30):  # of two draws, so that each of them shows
        bounds = bootstrap(targets, scores, resamples=2, seed=seed)
        rng = np.random.default_rng(seed)
        draws = [rng.integers(len(targets), size=len(targets)) for _ in range(2)]
        for name, metric in ("mAP", mean_average_precision), ("accuracy", accuracy):
            values = [metric(targets[rows], scores[rows]) for rows in draws]
            expected = np.percentile(values, (2.5, 97.5))
            assert bounds[name] == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ValueError, match="at least 2, got 1"):
        bootstrap(targets, scores, resamples=1, seed=0)


@pytest.mark.slow
def test_draws_of_audioset_take_no_minutes_as_with_scikit_learn():
    case = random_case(18_886, 527, ties=False)
    start = time.perf_counter()
    bootstrap(*case, resamples=10, seed=0)
    assert time.perf_counter() - start < 20
