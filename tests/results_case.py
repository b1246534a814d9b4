"""A made-up experiment on disk, with chosen scores, for the tests of the results."""

import datetime
import re
from pathlib import Path

import numpy as np
import torch
import yaml

from espnet2_sslam.results import score_files

CLASSES = ["bell", "dog", "rain"]
LABELS = {"a": ["bell"], "b": ["dog"], "c": ["bell", "dog"], "d": []}
# AP of each class by the rank of its positives among the four clips.
GOOD = {"bell": "acbd", "dog": "bcad"}  # both 1
SWAPPED = {"bell": "bacd", "dog": "bcad"}  # bell (1/2 + 2/3) / 2, dog 1
BAD = {"bell": "bdac", "dog": "adbc"}  # both (1/3 + 2/4) / 2


def write_scores(folder: Path, test_dir: Path, ranking: dict, task="multi_label"):
    """Write predictions that rank the clips as told, and score them."""
    scores = np.zeros((4, 3), dtype=np.float32)
    for label, clips in ranking.items():
        for place, clip in enumerate(clips):
            scores[list(LABELS).index(clip), CLASSES.index(label)] = 1 - place / 4
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(
        folder / "predictions.npz",
        ids=np.array(list(LABELS)),
        scores=scores,
        logits=scores,
        classes=np.array(CLASSES),
    )
    return score_files(
        folder / "predictions.npz",
        test_dir / "text",
        test_dir.parent / "classes.txt",
        task,
        folder,
    )


def write_run_scores(run: Path, test_dir: Path, ranking: dict, task="multi_label"):
    """Write a run of one epoch with the scores of both its checkpoints."""
    write_history(run, [1.0])
    for checkpoint in ("last", "best"):
        write_scores(run / checkpoint / test_dir.name, test_dir, ranking, task)


def write_dump(dump: Path, lines=("mini multi_label mini/train mini/valid mini/test",)):
    """Write downstream.txt and the labels of its test directories."""
    dump.mkdir(parents=True)
    (dump / "downstream.txt").write_text("\n".join(lines) + "\n")
    for line in lines:
        for folder in (dump / name for name in re.split("[ ,]", line)[2:]):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "wav.scp").write_text("a a.flac\n")
            text = [" ".join([clip, *labels]) for clip, labels in LABELS.items()]
            (folder / "text").write_text("\n".join(text) + "\n")
            (folder.parent / "classes.txt").write_text("\n".join(CLASSES) + "\n")


def write_history(
    run: Path, losses, *, max_epoch=None, iterations=10, native=True, more=(), **config
):
    """Write config.yaml, checkpoint.pth and train.log as ESPnet does.

    `losses` are the epoch means; validation is 1 above. `native` is the reporter of
    ESPnet 202511, else that of 202611. `more` are other statistics of each epoch.
    """
    run.mkdir(parents=True, exist_ok=True)
    config = {
        "max_epoch": max_epoch or len(losses),
        "accum_grad": 1,
        "seed": 1,
        "output_dir": str(run),
        "version": "202611",
        **config,
    }
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    time = datetime.timedelta(seconds=90)
    stats = {}
    for epoch, loss in enumerate(losses, start=1):
        stats[epoch] = {}
        for split, value in (("train", loss), ("valid", loss + 1)):
            stats[epoch][split] = {
                "loss": np.float64(value) if native else float(value),
                "target_var": 0.5,
                **(more[epoch - 1] if more else {}),
                "time": time if native else {"__timedelta_seconds__": 90.0},
                "total_count": epoch * (iterations if split == "train" else 2),
            }
    reporter = {"stats": stats, "epoch": len(losses)}
    torch.save({"model": {}, "reporter": reporter}, run / "checkpoint.pth")
    (run / "train.log").write_text(
        "[x] INFO: pytorch.version=2.11.0, cuda...\n"
        "[x] (trainer:40) INFO: machine: A CPU, 2 cores, 24 GiB\n"
    )


def write_experiment(
    root: Path, rankings: dict, tag="linear_tiny"
) -> tuple[Path, Path]:
    """Write exp/ and dump/: `rankings[model]` is a list with one ranking per seed."""
    exp, dump = root / "exp", root / "dump"
    write_dump(dump)
    for model, by_seed in rankings.items():
        for seed, ranking in enumerate(by_seed, start=1):
            run = exp / tag / f"{model}_seed{seed}" / "mini"
            conf = {"model_conf": {"freeze_encoder": True}, "seed": seed}
            write_history(run, [3.0, 2.0], **conf)
            for checkpoint in ("last", "best"):
                write_scores(run / checkpoint / "test", dump / "mini/test", ranking)
    for phase in ("phase1", "phase2"):
        for seed in (1, 2):
            run = exp / "pretrain" / f"{phase}_tiny_seed{seed}"
            write_history(run, [5.0, 4.0, 3.5], seed=seed)
    return exp, dump
