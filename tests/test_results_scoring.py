"""Scoring: numbers by hand, and every way labels and predictions can disagree."""

import json
from statistics import NormalDist

import numpy as np
import pytest

from espnet2_sslam.results import score_files

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


def write_case(folder, text=TEXT, ids=tuple(TEXT), scores=SCORES, classes=CLASSES):
    """Write the three input files and return the arguments of score_files."""
    np.savez(
        folder / "predictions.npz",
        ids=np.array(ids),
        scores=scores,
        logits=scores,
        classes=np.array(classes),
    )
    lines = [" ".join([clip, *labels]) for clip, labels in text.items()]
    (folder / "text").write_text("\n".join(lines) + "\n")
    (folder / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return {
        "predictions": folder / "predictions.npz",
        "text": folder / "text",
        "class_list": folder / "classes.txt",
        "task": "multi_label",
        "output_dir": folder / "out",
    }


def test_multi_label_scores_equal_the_hand_computed_ones(tmp_path):
    metrics = score_files(**write_case(tmp_path))
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


def test_multi_class_scores_accuracy_over_all_clips(tmp_path):
    text = {"a": ["bell"], "b": ["dog"], "c": ["bell"], "d": ["rain"]}
    metrics = score_files(**{**write_case(tmp_path, text), "task": "multi_class"})
    assert metrics["accuracy"] == pytest.approx(3 / 4)


def test_order_of_the_clips_does_not_matter(tmp_path):
    here, there = tmp_path / "1", tmp_path / "2"
    here.mkdir(), there.mkdir()
    order = [2, 0, 3, 1]
    ids = [list(TEXT)[i] for i in order]
    one = score_files(**write_case(here))
    two = score_files(**write_case(there, ids=ids, scores=SCORES[order]))
    assert one["per_class"] == two["per_class"]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"text": {**TEXT, "e": ["dog"]}}, "1 missing.*e is missing"),
        ({"text": {k: TEXT[k] for k in "abc"}}, "1 unexpected.*d is not expected"),
        ({"text": {**TEXT, "d": ["cat"]}}, "clip d: the label 'cat'"),
        ({"text": {k: [] for k in TEXT}}, "nothing to score"),
        ({"ids": ["a", "b", "b", "d"]}, "clip id b is there twice"),
        ({"scores": SCORES[:, :3]}, "shape"),
        ({"scores": np.where(SCORES == 0.7, np.nan, SCORES)}, "not finite.* d;"),
        ({"classes": CLASSES[::-1]}, "another order"),
        ({"classes": ["bell", "dog", "rain", "wind"]}, "siren is missing"),
    ],
)
def test_disagreement_is_an_error_and_writes_nothing(tmp_path, change, message):
    arguments = write_case(tmp_path, **change)
    with pytest.raises(ValueError, match=message) as error:
        score_files(**arguments)
    assert "\n" not in str(error.value)
    assert not arguments["output_dir"].exists()


def test_multi_class_refuses_clips_without_exactly_one_label(tmp_path):
    arguments = {**write_case(tmp_path), "task": "multi_class"}
    with pytest.raises(ValueError, match="clip b has 2 labels"):
        score_files(**arguments)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04half", b"no archive"])
def test_damaged_predictions_are_named(tmp_path, content):
    arguments = write_case(tmp_path)
    arguments["predictions"].write_bytes(content)
    with pytest.raises(ValueError, match=r"predictions\.npz: not a complete") as error:
        score_files(**arguments)
    assert "\n" not in str(error.value)


def test_duplicate_clips_in_text_are_an_error(tmp_path):
    arguments = write_case(tmp_path)
    arguments["text"].write_text("a bell\nb dog\na dog\n")
    with pytest.raises(ValueError, match="'a' occurs twice"):
        score_files(**arguments)


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


def test_a_perfect_ranking_has_no_finite_d_prime(tmp_path):
    scores = np.array([[1.0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0]])
    metrics = score_files(**write_case(tmp_path, scores=scores))
    assert metrics["auc"] == 1.0 and metrics["d_prime"] is None
