"""A finished experiment on disk, as the recipe leaves it."""

import json

import torch

from espnet2_sslam.classifier import SSLAMClassifier
from espnet2_sslam.encoder import SSLAMEncoder
from espnet2_sslam.results import collect, write_scores_csv
from tests.results_case import (
    BAD,
    CLASSES,
    GOOD,
    SWAPPED,
    write_dump,
    write_history,
    write_scores,
)

SIZES = dict(embed_dim=32, depth=2, num_heads=4, max_frames=256)
NOTE = "mini: synthetic sounds made by local/data_mini.py, seed 0, scale 1.0"
RANKINGS = {("phase2", 1): GOOD, ("phase2", 2): SWAPPED, ("random", 1): BAD}


def small_encoder(seed=0):
    """An encoder with random weights."""
    torch.manual_seed(seed)
    return SSLAMEncoder(**SIZES, fbank_mean=-5.5, fbank_std=3.25).eval()


def small_classifier(seed=0):
    """A classifier of the three classes."""
    torch.manual_seed(seed)
    return SSLAMClassifier(small_encoder(seed), CLASSES, task="multi_label").eval()


def write_weights(run, state, epoch=2):
    """Write the epoch's weights and latest.pth."""
    torch.save(state, run / f"{epoch}epoch.pth")
    (run / "latest.pth").unlink(missing_ok=True)
    (run / "latest.pth").symlink_to(f"{epoch}epoch.pth")


def write_report(dump):
    """Write what stage 3 says about the splits."""
    split = {"usable": 600, "hours": 0.5, "content_sha256": "ab" * 32}
    splits = {"pretrain/train": split, "mini/train": {**split, "usable": 4}}
    report = {
        "notes": [NOTE],
        "classes": {"mini": CLASSES},
        "splits": splits,
        "pretraining_overlaps": [{"split": "mini/test", "clips": 3}],
        "leaks": [],
    }
    (dump / "report").mkdir()
    (dump / "report" / "report.json").write_text(json.dumps(report))


def write_pretraining(root, phase, start=None, seed=1):
    """One phase; `start` is the weights that it began with."""
    run = root / f"exp/pretrain/phase{phase}_tiny_seed{seed}"
    scp = root / "dump/pretrain/train/wav.scp"
    options = dict(
        seed=seed,
        encoder_conf={**SIZES, "fbank_mean": -5.5, "fbank_std": 3.25},
        model_conf={"mixture": phase == 2},
        train_data_path_and_name_and_type=[[_name(scp, root), "speech", "sound"]],
    )
    if start:
        options["init_param"] = [f"{_name(start, root)}:::num_updates"]
    write_history(run, [5.0, 4.0], **options)
    encoder = small_encoder(10 * phase + seed)
    teacher = small_encoder(99)
    state = {f"encoder.{k}": v for k, v in encoder.state_dict().items()}
    state |= {f"teacher.encoder.{k}": v for k, v in teacher.state_dict().items()}
    write_weights(run, state)
    return run


def write_evaluation(root, model, seed, encoder, ranking):
    """One linear evaluation, scored."""
    run = root / f"exp/linear_tiny/{model}_seed{seed}/mini"
    options = dict(
        seed=seed,
        encoder_conf={**SIZES, "fbank_mean": -5.5, "fbank_std": 3.25},
        model_conf={"task": "multi_label", "freeze_encoder": True},
        class_list=CLASSES,
        train_data_path_and_name_and_type=[
            ["dump/mini/train/wav.scp", "speech", "sound"]
        ],
        valid_data_path_and_name_and_type=[
            ["dump/mini/valid/wav.scp", "speech", "sound"]
        ],
    )
    if encoder is not None:
        weights = encoder / "latest.pth"
        options["init_param"] = [f"{_name(weights, root)}:encoder:encoder"]
    write_history(run, [3.0, 2.0], **options)
    write_weights(run, small_classifier(100 + seed).state_dict())
    (run / "valid.mAP.best.pth").symlink_to("2epoch.pth")
    for checkpoint in ("last", "best"):
        write_scores(run / checkpoint / "test", root / "dump/mini/test", ranking)
    return run


def write_published(root):
    """Everything; returns the folder of phase 2, seed 1, and of its classifier."""
    dump = root / "dump"
    write_dump(dump)
    write_report(dump)
    (dump / "pretrain/train").mkdir(parents=True)
    (dump / "pretrain/train/wav.scp").write_text("x x.flac\n")
    phases = {}
    for seed in (1, 2):
        first = write_pretraining(root, 1, seed=seed)
        phases[seed] = write_pretraining(root, 2, first / "latest.pth", seed)
    runs = {
        (model, seed): write_evaluation(
            root, model, seed, phases[seed] if model == "phase2" else None, ranking
        )
        for (model, seed), ranking in RANKINGS.items()
    }
    write_table(root)
    return phases[1], runs["phase2", 1]


def write_table(root):
    """Write results/scores.csv as stage 7 does."""
    models = ("random", "phase2")
    scores = collect(root / "exp", root / "dump", models=models).scores
    write_scores_csv(root / "exp/results/scores.csv", scores)
    head = "# Results\n\n| what | value |\n| --- | --- |\n| commit | abc123 |\n"
    (root / "exp/RESULTS.md").write_text(head)


def _name(path, root):
    """A path as the recipe writes it: relative to its own folder."""
    return str(path.relative_to(root))
