"""What RESULTS.md says of a difference from the published numbers."""

import json

import numpy as np
import pytest
import yaml

from espnet2_sslam.results import collect, paper
from espnet2_sslam.results.differences import differences
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


def write_report(dump, **numbers):
    """A data report: usable, listed and missing clips of splits of AudioSet-20K."""
    names = ("usable", "listed", "missing")
    splits = {
        f"as20k/{split}": {**dict(zip(names, clips, strict=True)), "left_out": {}}
        for split, clips in numbers.items()
    }
    (dump / "report").mkdir()
    (dump / "report/report.json").write_text(json.dumps({"splits": splits}))


def write_as20k(tmp_path, ranking=GOOD, config="finetune_as20k.yaml", **changes):
    """An experiment on AudioSet-20K with one model called sslam; its record."""
    exp, dump = tmp_path / "exp", tmp_path / "dump"
    write_dump(dump, ["as20k multi_label as20k/train as20k/eval as20k/eval"])
    write_report(dump, train=(20_550, 22_160, 1_610), eval=(4, 20_371, 20_367))
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


def rows_of(record):
    """{what: (ours, papers)} of the one table that the record gives."""
    [evaluation] = record.evaluations
    path = record.dump / "report/report.json"
    report = json.loads(path.read_text()) if path.exists() else None
    rows = differences(record, evaluation, report)
    return {what: (ours, papers) for what, ours, papers in rows}, rows


def test_a_run_as_the_papers_says_so_and_names_what_is_left(tmp_path):
    by_what, rows = rows_of(write_as20k(tmp_path))
    scores = [row for row in rows if row[0] == "mAP of sslam, eval"]
    assert scores[0][1].startswith("100.0 (95 % interval ")
    assert [row[2] for row in scores] == [
        *("40.9 (table1): ours +59.1", "39.97-40.26 (bat): ours +59.7")
    ]
    assert by_what["training clips, as20k/train"] == (
        *("20550 of 22160 listed (1610 missing, 0 not usable)", "20550"),
    )
    assert by_what["test clips, as20k/eval"] == (
        *("4 of 20371 listed (20367 missing, 0 not usable)", "18886"),
    )
    assert by_what["encoder"] == ("12 blocks of 768 channels", "12 of 768")
    assert by_what["weights"][0] == "SSLAM.pt, SHA-256 0123456789"
    name = "finetune_as20k.yaml"
    assert by_what["settings"] == (f"{name}, unchanged", name)
    assert by_what["trained on"] == ("1 GPU, mixed precision", "1 GPU, float16")
    ours, _ = by_what["curve of mAP, seed 1"]
    assert "outside the band at 1 of 3 points, first at update 20000" in ours


def test_changed_options_are_named_with_both_values(tmp_path):
    record = write_as20k(
        tmp_path,
        batch_size=8,
        accum_grad=2,
        optim_conf={"lr": 1e-4, "betas": [0.9, 0.95]},
        encoder_conf={"target_frames": 1024, "depth": 3, "embed_dim": 48},
        ngpu=0,
    )
    by_what, rows = rows_of(record)
    changed = {row[0]: row[1] for row in rows if row[0].startswith("option ")}
    assert changed == {
        "option accum_grad": "2 (finetune_as20k.yaml: 1)",
        "option batch_size": "8 (finetune_as20k.yaml: 48)",
        "option optim_conf.lr": "0.0001 (finetune_as20k.yaml: 5e-05)",
    }
    assert by_what["trained on"][0] == "CPU, float32"
    assert by_what["encoder"][0] == "3 blocks of 48 channels"


def test_another_config_is_named_beside_that_of_the_benchmark(tmp_path):
    by_what, _ = rows_of(write_as20k(tmp_path, config="finetune_tiny.yaml"))
    names = "finetune_tiny.yaml, unchanged", "finetune_as20k.yaml"
    assert by_what["settings"] == names
    (tmp_path / "finetune_tiny.yaml").unlink()
    record = collect(tmp_path / "exp", tmp_path / "dump", models=("sslam",))
    assert "not there to compare" in rows_of(record)[0]["settings"][0]


def test_an_unfinished_run_and_one_without_early_epochs_are_named(tmp_path):
    record = write_as20k(tmp_path, max_epoch=5)
    assert rows_of(record)[0]["epochs, seed 1"][0] == "3 of 5 trained"
    run = next(iter(record.finetuning))
    write_history(run, [1.0], **{**USED, "max_epoch": 1})
    record = collect(tmp_path / "exp", tmp_path / "dump", models=("sslam",))
    assert "no validation" in rows_of(record)[0]["curve, seed 1"][0]


def test_a_score_near_the_papers_is_within_the_interval(tmp_path):
    record = write_as20k(tmp_path, ranking=BAD)
    [score] = record.scored.query("checkpoint == 'last'").itertuples()
    assert score.mAP == pytest.approx(5 / 12) and score.low < 0.409 < score.high
    papers = rows_of(record)[1][0][2]
    assert papers == "40.9 (table1): ours +0.8, which is in the interval"


def test_sets_without_published_numbers_have_no_section(tmp_path):
    exp, dump = tmp_path / "exp", tmp_path / "dump"
    write_dump(dump)
    run = exp / "finetune_tiny/phase2_seed1/mini"
    write_history(run, [1.0])
    for checkpoint in ("last", "best"):
        write_scores(run / checkpoint / "test", dump / "mini/test", GOOD)
    record = collect(exp, dump, models=("phase2",))
    assert rows_of(record) == ({}, [])


def test_every_published_data_set_has_a_note():
    for entry in paper.load()["numbers"]:
        assert paper.notes(entry["data_set"], entry["kind"])


@pytest.mark.parametrize(
    "data_set, metric, kind, model, numbers",
    [
        ("esc50", "accuracy", "finetune", "eat_ft", "95.9 (table1)"),
        ("esc50", "accuracy", "finetune", "phase2", "96.2 (table1), 98.21 (bat)"),
        ("esc50", "accuracy", "linear", "phase2", "-"),
        (
            *("spass_market", "mAP", "linear", "SSLAM-AS2M"),
            "68.5 (table2), 68.5 last, 68.5 best (log)",
        ),
        ("as20k", "mAP", "finetune", "mine", "-"),
    ],
)
def test_published_numbers_stand_beside_the_row_they_belong_to(
    data_set, metric, kind, model, numbers
):
    assert paper.numbers(data_set, metric, kind, model) == numbers


def test_everything_that_is_published_stands_in_one_line():
    line = paper.all_numbers("as20k", "mAP", "finetune")
    assert line == (
        "EAT 40.2 (table1), 40.28-40.37 (bat); "
        "SSLAM 40.9 (table1), 39.97-40.26 (bat), 40.9 last, 40.9 best (log)"
    )
    assert paper.all_numbers("mini", "mAP", "linear") == ""
