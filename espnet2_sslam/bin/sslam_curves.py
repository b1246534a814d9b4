"""Say how a training went: a pre-training by itself, a fine-tuning beside the authors'.

Of a pre-training, also of one that still runs, it draws the losses and spreads, and
says whether the patches are learnt to be predicted and whether something collapsed.

Of a finished fine-tuning of one of the paper's benchmarks it prints for each measure
whether the run stays in the band around the authors' curve, and where it leaves it
(what the band is: espnet2_sslam/results/paper.py). There are curves for as2m, as20k and
the five SPASS scenes. The authors validate on the test set, so a run must do so, too.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from espnet2_sslam.bin.cli import run_main
from espnet2_sslam.results import (
    authors_curves,
    compare_run,
    health,
    read_history,
    verdict,
)
from espnet2_sslam.store import write_json


def get_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="directory of the training")
    add("--benchmark", help="as2m, spass_park, ... [the directory's name]")
    add("--kind", choices=("finetune", "linear"), help="[by the run's config.yaml]")
    add("--output", type=Path, help="folder of curves.json and .png [RUN/curves]")
    return parser


def main(cmd: Sequence[str] | None = None) -> None:
    """Compare, print, and write the numbers and the plot."""
    args = get_parser().parse_args(cmd)
    # After the options: matplotlib takes a second.
    from espnet2_sslam.results.plots import plot_curves, plot_training

    history = read_history(args.run)
    output = args.output or args.run / "curves"
    if len(history.epoch_curve("train", "loss_patch")[0]):
        key = "", args.run.resolve().name, history.config["seed"]
        plot_training({key: history}, output / "curves.png")
        print(*health(history), f"wrote {output}/curves.png", sep="\n")
        return
    benchmark, kind = args.benchmark or args.run.resolve().name, args.kind
    kind = kind or history.kind
    runs = compare_run(history, benchmark, kind)
    curve = authors_curves()[benchmark, kind]
    words = {measure: verdict(measure, points) for measure, points in runs.items()}
    lines = [
        f"{m}: {ours}; the authors: {theirs}" for m, (ours, theirs) in words.items()
    ]
    numbers = {measure: points.to_dict("list") for measure, points in runs.items()}
    record = {"benchmark": benchmark, "kind": kind, "verdicts": lines, **numbers}
    write_json(output / "curves.json", record)
    plot_curves(runs, curve, f"{benchmark}, {kind}", output / "curves.png")
    total = curve["mAP"]["updates"][-1]
    if history.updates != total:
        print(f"this run has {history.updates} updates, the authors' {total}")
    print("\n".join(lines))
    print(f"wrote {output}/curves.json and curves.png")


if __name__ == "__main__":
    run_main(main)
