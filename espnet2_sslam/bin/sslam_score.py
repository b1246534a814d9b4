"""Score a classifier's predictions against the labels of a data directory."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from espnet2_sslam.bin.cli import run_main
from espnet2_sslam.corpus import TASKS
from espnet2_sslam.results import score_files


def get_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        epilog="Writes OUTPUT_DIR/metrics.json (macro mAP, ROC area, d'; accuracy for "
        "multi_class; 95 %% intervals; AP of every class) and OUTPUT_DIR/"
        "per_class_ap.csv. Every clip of --text must have been predicted, no other.",
    )
    add = parser.add_argument
    add("--predictions", type=Path, required=True, help="predictions.npz of inference")
    add("--text", type=Path, required=True, help="labels: <clip id> <label> ...")
    add("--class_list", type=Path, required=True, help="classes.txt: a label per line")
    add("--task", choices=TASKS, required=True, help="one label per clip, or several")
    add("--output_dir", type=Path, required=True, help="where the two files go")
    add("--resamples", type=int, default=1000, help="of the intervals (1000; 0: none)")
    add("--seed", type=int, default=0, help="of the draws")
    return parser


def main(cmd: Sequence[str] | None = None) -> None:
    """Score and print the main number."""
    metrics = score_files(**vars(get_parser().parse_args(cmd)))
    names = [name for name in ("accuracy", "mAP") if name in metrics]
    facts = [f"{name} {metrics[name]:.4f}" for name in names]
    if "intervals" in metrics:
        low, high = metrics["intervals"][names[0]]
        facts.append(f"95 % interval of {names[0]} {low:.4f} to {high:.4f}")
    scored = sum(value is not None for value in metrics["per_class"].values())
    facts.append(f"mAP of {scored} of {len(metrics['per_class'])} classes")
    if scored == 1:
        facts.append("which says nothing about telling classes apart")
    print(", ".join([*facts, f"{metrics['num_clips']} clips"]))


if __name__ == "__main__":
    run_main(main)
