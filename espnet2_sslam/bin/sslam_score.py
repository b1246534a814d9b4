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
    add("--resamples", type=int, default=1000, help="draws of the intervals, 0: none")
    add("--seed", type=int, default=0, help="of the draws")
    return parser


def main(cmd: Sequence[str] | None = None) -> None:
    """Score and print the main number."""
    metrics = score_files(**vars(get_parser().parse_args(cmd)))
    shown = [f"mAP {metrics['mAP']:.4f}"]
    if "accuracy" in metrics:
        shown.insert(0, f"accuracy {metrics['accuracy']:.4f}")
    if "intervals" in metrics:
        name = "accuracy" if "accuracy" in metrics else "mAP"
        low, high = metrics["intervals"][name]
        shown.append(f"95 % interval of {name} {low:.4f} to {high:.4f}")
    empty = metrics["classes_without_positives"]
    if empty:
        shown.append(f"{len(empty)} classes without a positive clip left out")
    print(f"{', '.join(shown)}, {metrics['num_clips']} clips")


if __name__ == "__main__":
    run_main(main)
