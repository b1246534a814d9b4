"""Beside what is published: the papers' numbers, the authors' curves, what differs."""

import json

import numpy as np
import pytest
import torch
import yaml

from espnet2_sslam.bin.sslam_curves import main
from espnet2_sslam.results import collect, compare_run, paper, read_history, verdict
from espnet2_sslam.results.differences import differences
from tests.corpus_case import error_line
from tests.results_case import BAD, GOOD, write_dump, write_history, write_scores

MARKET = paper.authors_curves()["spass_market", "linear"]


def write_run(folder, updates, mAP, loss=None, **config):
    """Write a run with these validation scores at these updates."""
    loss = mAP if loss is None else loss
    write_history(folder, [1.0] * len(updates), **config)
    state = torch.load(folder / "checkpoint.pth", weights_only=False)
    stats = state["reporter"]["stats"].values()
    for epoch, update, *scores in zip(stats, updates, mAP, loss, strict=True):
        epoch["train"]["total_count"] = int(update)
        epoch["valid"] |= dict(zip(("mAP", "loss"), map(float, scores), strict=True))
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
    return compare_run(read_history(run), "spass_market", "linear")


def test_a_run_like_the_authors_is_inside_whatever_its_epochs(tmp_path):
    updates = np.arange(100, 3906, 63)
    near = at(updates, "mAP") - 0.009, 1.02 * at(updates, "valid_loss")
    runs = compare(tmp_path / "near", updates, *near)
    assert list(runs) == ["mAP", "valid_loss"]
    assert not any(points["outside"].any() for points in runs.values())
    assert "in the band at all 61 points" in verdict("mAP", runs["mAP"])[0]
    late = compare(tmp_path / "late", updates, at(updates / 1.1, "mAP"))
    assert not late["mAP"]["outside"].any()


def test_the_first_point_outside_is_named_with_its_side(tmp_path):
    updates = np.array([79, 790, 1580, 3160])
    score = at(updates, "mAP") - [0, 0, 0.05, 0.05]
    runs = compare(tmp_path, updates, score, at(updates, "valid_loss") * [1.2, 1, 1, 1])
    assert runs["mAP"]["outside"].tolist() == [False, False, True, True]
    ours, authors = verdict("mAP", runs["mAP"])
    assert "outside the band at 2 of 4 points, first at update 1580: 62.7" in ours
    assert authors.startswith("band there 66.2 to 69.1")
    loss = verdict("valid_loss", runs["valid_loss"])[0]
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
    return collect(exp, dump)


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


def test_another_config_an_unfinished_run_and_missing_epochs_are_named(tmp_path):
    name = "finetune_tiny.yaml"
    record = write_as20k(tmp_path, config=name, max_epoch=5)
    by_what, _ = rows_of(record)
    assert by_what["settings"] == (f"{name}, changed", "finetune_as20k.yaml")
    assert by_what["epochs, seed 1"][0] == "3 of 5 trained"
    (tmp_path / name).unlink()
    write_history(*record.finetuning, [1.0], config=name, max_epoch=1)
    record = collect(tmp_path / "exp", tmp_path / "dump")
    by_what, _ = rows_of(record)
    assert "not there to compare" in by_what["settings"][0]
    assert "no validation" in by_what["curve, seed 1"][0]


def test_a_score_near_the_papers_is_within_the_interval(tmp_path):
    record = write_as20k(tmp_path, ranking=BAD)
    [score] = record.scored.query("checkpoint == 'last'").itertuples()
    assert score.mAP == pytest.approx(5 / 12) and score.low < 0.409 < score.high
    papers = rows_of(record)[1][0][2]
    assert papers == "40.9 (table1): ours +0.8, which is in the interval"


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
        "SSLAM 40.9 (table1), 39.97-40.26 (bat), 40.9 last, 40.9 best (log); "
        "BEATs 36.73 (bat5)"
    )
    line = paper.all_numbers("as20k", "mAP", "gated")
    assert line == "EAT 35.34 (bat5); SSLAM 34.53 (bat5); BEATs 33.01 (bat5)"
    assert "as a digest of the paper quotes it" in paper.sources([line])["bat5"]
    assert paper.numbers("as20k", "mAP", "prototypes", "beats") == "31.62 (bat5)"
    assert paper.all_numbers("mini", "mAP", "linear") == ""
