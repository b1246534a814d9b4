"""A finished experiment on disk, as the recipe leaves it: phase 2 and a classifier."""

import json

import torch

from espnet2_sslam.classifier import SSLAMClassifier
from espnet2_sslam.encoder import SSLAMEncoder
from tests.results_case import CLASSES, GOOD, write_dump, write_history, write_scores

SIZES = dict(embed_dim=32, depth=2, num_heads=4, max_frames=256)
NOTE = "mini: synthetic sounds made by local/data_mini.py, seed 0, scale 1.0"
PHASE_1 = "exp/pretrain/phase1_tiny_seed1/latest.pth"


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


def write_published(root):
    """Everything; returns the folder of phase 2, and of a classifier on it."""
    dump = root / "dump"
    write_dump(dump)
    split = {"usable": 600, "hours": 0.5}
    report = {
        "notes": [NOTE],
        "classes": {"mini": CLASSES},
        "splits": {"pretrain/train": split, "mini/train": {**split, "usable": 4}},
        "pretraining_overlaps": [{"split": "mini/test", "clips": 3}],
        "leaks": [],
    }
    (dump / "report").mkdir()
    (dump / "report/report.json").write_text(json.dumps(report))
    encoder = root / "exp/pretrain/phase2_tiny_seed1"
    classifier = root / "exp/linear_tiny/phase2_seed1/mini"
    start = f"{encoder.relative_to(root)}/latest.pth:encoder:encoder"
    head = {"task": "multi_label", "freeze_encoder": True}
    for run, data, options in (
        (
            encoder,
            "pretrain",
            {"model_conf": {"mixture": True}, "init_param": [PHASE_1]},
        ),
        (
            classifier,
            "mini",
            {"model_conf": head, "class_list": CLASSES, "init_param": [start]},
        ),
    ):
        lists = {part: dump / data / part / "wav.scp" for part in ("train", "valid")}
        for part, path in lists.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("x x.flac\n")
            option = f"{part}_data_path_and_name_and_type"
            options[option] = [[str(path.relative_to(root)), "speech", "sound"]]
        options["encoder_conf"] = {**SIZES, "fbank_mean": -5.5, "fbank_std": 3.25}
        write_history(run, [5.0, 4.0], **options)
    state = {f"encoder.{k}": v for k, v in small_encoder(1).state_dict().items()}
    teacher = small_encoder(99).state_dict()
    state |= {f"teacher.encoder.{k}": v for k, v in teacher.items()}
    write_weights(encoder, state)
    write_weights(classifier, small_classifier(101).state_dict())
    (classifier / "valid.mAP.best.pth").symlink_to("2epoch.pth")
    for checkpoint in ("last", "best"):
        write_scores(classifier / checkpoint / "test", dump / "mini/test", GOOD)
    (root / "exp/results").mkdir()
    (root / "exp/results/scores.csv").write_text("tag,model\n")
    (root / "exp/RESULTS.md").write_text("# Results\n")
    return encoder, classifier
