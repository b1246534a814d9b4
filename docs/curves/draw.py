#!/usr/bin/env python3
"""Draw curves.png: a pre-training that learnt, and one that did not.

Both are phases 1 of `make evidence` (4,000 updates of 16 clips, 0.5 million
parameters, the same but for seed and learning rate): seed 31 at 1e-3, of
benchmarks/evidence/records, and seed 25 at 3e-3, of the first run, which its gate made
void.
"""

import json
from pathlib import Path

from espnet2_sslam.results.plots import plot_training
from espnet2_sslam.results.runs import History, health

HERE = Path(__file__).resolve().parent
LEARNT = HERE.parent.parent / "benchmarks/evidence/records/phase1_seed31.json"
CONFIG = {"encoder_conf": {"embed_dim": 96}}  # of benchmarks/evidence.yaml
NAMES = ("loss_patch", "target_var", "prediction_var")


def read(path: Path) -> History:
    """The curve of a record, point after point, as that of a training."""
    points = json.loads(path.read_text())["curve"]
    stats = {
        i: {"train": {**p, "total_count": p["update"]}} for i, p in enumerate(points)
    }
    return History(path, CONFIG, stats, None)


if __name__ == "__main__":
    runs = {
        ("phase 1 that", "learnt", 31): read(LEARNT),
        ("phase 1 that", "did not", 25): read(HERE / "phase1_seed25.json"),
    }
    plot_training(runs, HERE.parent / "curves.png", NAMES)
    for run in runs.values():
        print(*health(run), sep="\n")
