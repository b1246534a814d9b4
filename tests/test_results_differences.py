"""What RESULTS.md says of a difference from the published numbers."""

import json

import numpy as np
import pytest
import yaml

from espnet2_sslam.results import collect, differences, paper
from tests.results_case import BAD, GOOD, write_dump, write_history, write_scores
from tests.test_results_curves import at, write_run

CONFIG = {
    "encoder_conf": {"target_frames": 1024},
    "batch_size": 48,
    "max_epoch": 3,
    "num_workers": 4,
    "use_amp": True,
    "optim_conf": {"lr": 5.0e-5, "betas": [0.9, 0.95]},
    "grad_clip": float("inf"),
}
USED = {
    **CONFIG,
    "encoder_conf": {"target_frames": 1024, "depth": 12, "embed_dim": 768},
    "optim_conf": {"lr": 5e-5, "betas": (0.9, 0.95), "eps": 1e-8},
    "num_workers": 0,
    "ngpu": 1,
    "accum_grad": 1,
}
CURVE = paper.authors_curves()["as20k", "finetune"]


def split(usable, listed, missing, expected=None, differences=()):
    """The numbers of a split in the data report."""
    expected = expected and {"clips": expected, "source": "a header"}
    return {
        "usable": usable,
        "listed": listed,
        "missing": missing,
        "left_out": {},
        "compared": {"expected": expected, "differences": list(differences)},
    }


def write_report(dump, splits):
    """A data report of these splits, without leaks and copies."""
    report = {
        "splits": splits,
        "leaks": [],
        "duplicates": {"groups": 0, "contradicting_labels": 0},
        "pretraining_overlaps": [],
        "notes": [],
    }
    (dump / "report").mkdir()
    (dump / "report/report.json").write_text(json.dumps(report))


def write_as20k(tmp_path, ranking=GOOD, config="finetune_as20k.yaml", **changes):
    """An experiment on AudioSet-20K with one model called sslam; its record."""
    exp, dump = tmp_path / "exp", tmp_path / "dump"
    write_dump(dump, ["as20k multi_label as20k/train as20k/eval as20k/eval"])
    splits = {
        "as20k/train": split(20_550, 22_160, 1_610, 22_160),
        "as20k/eval": split(4, 20_371, 20_367, 20_371, ["2.10 labels per clip"]),
    }
    write_report(dump, splits)
    (tmp_path / config).write_text(yaml.safe_dump(CONFIG))
    weights = tmp_path / "exp/models/sslam"
    weights.mkdir(parents=True)
    origin = {"origin": {"file": "SSLAM.pt", "sha256": "0123456789abcdef"}}
    (weights / "config.yaml").write_text(yaml.safe_dump(origin))
    run = exp / "finetune_as20k/sslam_seed1/as20k"
    used = {**USED, "config": str(tmp_path / config), **changes}
    used["init_param"] = [f"{weights}/encoder.pth:encoder:encoder"]
    updates = np.array([9000, 20_000, 40_000])
    score = at(updates, "mAP", CURVE) - [0, 0.05, 0]
    write_run(run, updates, score, at(updates, "valid_loss", CURVE), **used)
    for checkpoint in ("last", "best"):
        write_scores(run / checkpoint / "eval", dump / "as20k/eval", ranking)
    return collect(exp, dump, models=("sslam",))


def lines_of(record):
    """The lines of the one section that the record gives."""
    title, _, heading, text = differences.difference_sections(record)
    assert title == "## What differs from the papers"
    assert heading.startswith("### as20k: finetune_as20k")
    return [line.removeprefix("- ") for line in text.splitlines()]


def test_a_run_as_the_papers_says_so_and_names_what_is_left(tmp_path):
    lines = lines_of(write_as20k(tmp_path))
    assert lines[0].startswith("sslam, eval, 100.0 (95 % interval ")
    assert "one seed): 59.1 above 40.9 (table1)" in lines[0]
    assert "59.7 above 39.97-40.26 (bat)" in lines[0]
    assert (
        "as20k/train: 20550 training clips of 22160 listed (1610 missing, 0 not "
        "usable), as the papers" in lines
    )
    assert any("4 test clips of 20371 listed" in line for line in lines)
    assert any("have 18886" in line for line in lines)
    assert "data report: DIFFERENT in as20k/eval: 2.10 labels per clip (a header)" in (
        lines
    )
    assert (
        "encoder: 12 blocks of 768 channels, as the papers'; weights: SSLAM.pt, "
        "SHA-256 0123456789" in lines
    )
    assert "settings: finetune_as20k.yaml, unchanged" in lines
    assert "trained on 1 GPU in mixed precision; the papers: 1 GPU, float16" in lines
    [curve] = [line for line in lines if "curve: mAP" in line]
    assert "outside the band at 1 of 3 points, first at update 20000" in curve
    assert any("re-runs of the released weights" in line for line in lines)


def test_changed_options_are_named_with_both_values(tmp_path):
    record = write_as20k(
        tmp_path,
        batch_size=8,
        accum_grad=2,
        optim_conf={"lr": 1e-4, "betas": [0.9, 0.95]},
        encoder_conf={"target_frames": 1024, "depth": 3, "embed_dim": 48},
        ngpu=0,
    )
    lines = lines_of(record)
    [changed] = [line for line in lines if line.startswith("options other")]
    assert changed == (
        "options other than in finetune_as20k.yaml: accum_grad 2 (config: 1), "
        "batch_size 8 (config: 48), optim_conf.lr 0.0001 (config: 5e-05)"
    )
    assert "trained on CPU in float32; the papers: 1 GPU, float16" in lines
    assert any("3 blocks of 48 channels (the papers': 12 of 768)" in x for x in lines)


def test_another_config_makes_the_comparison_one_for_orientation(tmp_path):
    lines = lines_of(write_as20k(tmp_path, config="finetune_tiny.yaml"))
    assert any(
        "finetune_tiny.yaml, not the benchmark's finetune_as20k.yaml" in line
        for line in lines
    )
    (tmp_path / "finetune_tiny.yaml").unlink()
    exp, dump = tmp_path / "exp", tmp_path / "dump"
    lines = lines_of(collect(exp, dump, models=("sslam",)))
    assert "settings: finetune_tiny.yaml is not there to compare" in lines


def test_an_unfinished_run_and_one_without_early_epochs_are_named(tmp_path):
    record = write_as20k(tmp_path, max_epoch=5)
    assert "seed 1: 3 of 5 epochs trained" in lines_of(record)
    run = next(iter(record.finetuning))
    write_history(run, [1.0], **{**USED, "max_epoch": 1})
    lines = lines_of(collect(tmp_path / "exp", tmp_path / "dump", models=("sslam",)))
    assert any("no validation among the updates" in line for line in lines)


def test_a_score_near_the_papers_is_within_the_interval(tmp_path):
    record = write_as20k(tmp_path, ranking=BAD)
    [metrics] = {
        id(m): m for k, m in record.scores.found.items() if "last" in k
    }.values()
    assert metrics["mAP"] == pytest.approx(5 / 12)
    low, high = metrics["intervals"]["mAP"]
    assert low < 0.409 < high
    assert "0.8 above 40.9 (table1), which is in the interval" in lines_of(record)[0]


def test_sets_without_published_numbers_have_no_section(tmp_path):
    exp, dump = tmp_path / "exp", tmp_path / "dump"
    write_dump(dump)
    run = exp / "finetune_tiny/phase2_seed1/mini"
    write_history(run, [1.0])
    for checkpoint in ("last", "best"):
        write_scores(run / checkpoint / "test", dump / "mini/test", GOOD)
    record = collect(exp, dump, models=("phase2",))
    assert differences.difference_sections(record) == []


def test_every_published_data_set_has_a_note_and_ranges_are_read():
    for entry in paper.load()["numbers"]:
        assert paper.notes(entry["data_set"], entry["kind"])
        low, high = paper.bounds(entry)
        assert 0 < low <= high < 100
    assert paper.bounds({"value": "39.97-40.26"}) == (39.97, 40.26)
    assert paper.clips("urbansed", "test") == 2000
    assert paper.clips("idmt_desed_fl", "test") is None
