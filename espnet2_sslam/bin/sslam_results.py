"""Collect the runs of an experiment into RESULTS.md, CSV tables and plots.

With --benchmark, several times, it puts the results of several experiments into one
table instead (BENCHMARKS.md), beside published numbers.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from espnet2_sslam.bin.cli import run_main
from espnet2_sslam.results import collect, write_all, write_benchmarks


def get_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        epilog="Tables and plots go to a folder beside OUTPUT with its name in small "
        "letters. All that is on the disk is shown. Missing and unfinished runs are "
        "listed and are in no average.",
    )
    pair = {"nargs": 2, "action": "append", "metavar": ("EXPDIR", "DUMP"), "type": Path}
    add = parser.add_argument
    add("--expdir", type=Path, help="experiments (exp)")
    add("--dump", type=Path, help="formatted data (dump/raw)")
    add("--benchmark", **pair, help="one of several experiments and its data")
    add("--output", type=Path, required=True, help="Markdown file to write")
    text = "runs that should be there, as folders <tag>/<run> below --expdir"
    add("--expect", nargs="+", default=(), metavar="RUN", help=text)
    add("--pretrain_from", type=Path, help="where they were pre-trained [--expdir]")
    return parser


def main(cmd: Sequence[str] | None = None) -> None:
    """Write the report, or the table of benchmarks."""
    parser = get_parser()
    args = vars(parser.parse_args(cmd))
    output, benchmarks = args.pop("output"), args.pop("benchmark")
    if bool(benchmarks) == bool(args["expdir"] and args["dump"]):
        parser.error("give --expdir and --dump, or --benchmark")
    if benchmarks:
        rows = write_benchmarks(benchmarks, output)
        print(f"wrote {output}: {rows} rows")
        return
    experiment = collect(expected=args.pop("expect"), **args)
    write_all(experiment, output)
    missing = len(experiment.missing) + len(experiment.unfinished)
    missing += len(experiment.stale)
    print(f"wrote {output}: {len(experiment.scored)} scores, {missing} missing")


if __name__ == "__main__":
    run_main(main)
