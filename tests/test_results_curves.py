"""A run against the authors' curve: where it is inside the band and where it is not."""

import json

import numpy as np
import pytest
import torch

from espnet2_sslam.bin.sslam_curves import main
from espnet2_sslam.results import paper, read_history
from tests.corpus_case import error_line
from tests.results_case import write_history

MARKET = paper.authors_curves()["spass_market", "linear"]


def write_run(folder, updates, mAP, loss=None, **config):
    """Write a run with these validation scores at these updates."""
    loss = mAP if loss is None else loss
    write_history(folder, [1.0] * len(updates), **config)
    state = torch.load(folder / "checkpoint.pth", weights_only=False)
    for epoch, (update, score, value) in enumerate(
        zip(updates, mAP, loss, strict=True), start=1
    ):
        state["reporter"]["stats"][epoch]["train"]["total_count"] = int(update)
        state["reporter"]["stats"][epoch]["valid"] |= {
            "mAP": float(score),
            "loss": float(value),
        }
    torch.save(state, folder / "checkpoint.pth")
    return folder


def at(updates, measure, curve=MARKET):
    return np.interp(updates, curve[measure]["updates"], curve[measure]["values"])


def test_the_authors_curves_end_at_the_papers_numbers():
    ends = {
        key: round(100 * curve["mAP"]["values"][-1], 1)
        for key, curve in paper.authors_curves().items()
    }
    assert ends["spass_market", "linear"] == 68.5
    assert ends["spass_waterfront", "finetune"] == 82.6
    assert ends["as20k", "finetune"] == 40.9
    best = max(paper.authors_curves()["as2m", "finetune"]["mAP"]["values"])
    assert round(100 * best, 1) == 50.2
    assert len(ends) == 12


@pytest.mark.parametrize("key", list(paper.authors_curves()))
def test_the_authors_own_curve_lies_in_its_band(key):
    curve = paper.authors_curves()[key]
    for measure in paper.OURS:
        steps = np.array(curve[measure]["updates"])
        authors, low, high = paper.band(curve, measure, steps)
        assert (low < authors).all() and (authors < high).all()
        assert (authors == curve[measure]["values"]).all()


def compare(folder, *scores):
    run = write_run(folder, *scores)
    return paper.compare_run(read_history(run), "spass_market", "linear")


def test_a_run_like_the_authors_is_inside_whatever_its_epochs(tmp_path):
    updates = np.arange(100, 3906, 63)
    near = at(updates, "mAP") - 0.009, 1.02 * at(updates, "valid_loss")
    runs = compare(tmp_path / "near", updates, *near)
    assert list(runs) == ["mAP", "valid_loss"]
    assert not any(points["outside"].any() for points in runs.values())
    assert "in the band at all 61 points" in paper.verdict("mAP", runs["mAP"])[0]
    late = compare(tmp_path / "late", updates, at(updates / 1.1, "mAP"))
    assert not late["mAP"]["outside"].any()


def test_the_first_point_outside_is_named_with_its_side(tmp_path):
    updates = np.array([79, 790, 1580, 3160])
    score = at(updates, "mAP") - [0, 0, 0.05, 0.05]
    runs = compare(tmp_path, updates, score, at(updates, "valid_loss") * [1.2, 1, 1, 1])
    assert runs["mAP"]["outside"].tolist() == [False, False, True, True]
    ours, authors = paper.verdict("mAP", runs["mAP"])
    assert "outside the band at 2 of 4 points, first at update 1580: 62.7" in ours
    assert authors.startswith("band there 66.2 to 69.1")
    loss = paper.verdict("valid_loss", runs["valid_loss"])[0]
    assert "first at update 79: 1.459" in loss


def test_the_command_finds_the_benchmark_by_the_run_and_writes_all(tmp_path, capsys):
    updates = np.array([790, 1580, 3906])
    run = write_run(
        tmp_path / "spass_market",
        updates,
        at(updates, "mAP"),
        at(updates, "valid_loss"),
        model_conf={"freeze_encoder": True},
    )
    main([str(run)])
    printed = capsys.readouterr().out
    assert "mAP: in the band at all 3 points; last (update 3906) 68.5" in printed
    record = json.loads((run / "curves/curves.json").read_text())
    assert record["kind"] == "linear" and record["mAP"]["outside"] == [False] * 3
    assert (run / "curves/curves.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    "name, updates, words",
    [
        ("esc50", [100], "no curve of the authors for esc50 (finetune), only for"),
        ("spass_market", [10], "no validation mAP between the updates 76 and 3906"),
    ],
)
def test_what_cannot_be_compared_is_one_line(tmp_path, capsys, name, updates, words):
    run = write_run(tmp_path / name, updates, [0.5])
    assert words in error_line(main, capsys, run)
