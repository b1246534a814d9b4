"""Put the results of several benchmarks into one table, beside published numbers."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from espnet2_sslam.bin.cli import run_main
from espnet2_sslam.results import MODELS, write_benchmarks


def get_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = argparse.ArgumentParser(
        prog="python -m espnet2_sslam.bin.sslam_benchmarks",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    several = {"nargs": 2, "action": "append", "metavar": ("EXPDIR", "DUMP")}
    text = "experiment and formatted data of a benchmark; may be given several times"
    add = parser.add_argument
    add("--benchmark", type=Path, required=True, help=text, **several)
    add("--output", type=Path, required=True, help="Markdown file to write")
    add("--models", nargs="+", default=MODELS, help="models to expect")
    add("--seeds", type=int, nargs="+", help="seeds to expect (default: those there)")
    return parser


def main(cmd: Sequence[str] | None = None) -> None:
    """Write the table."""
    args = vars(get_parser().parse_args(cmd))
    rows = write_benchmarks(args.pop("benchmark"), **args)
    print(f"wrote {args['output']}: {rows} rows")


if __name__ == "__main__":
    run_main(main)
