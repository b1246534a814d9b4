"""What the commands local/data_<corpus>.py share: options, start, common readers."""

import argparse
import csv
import logging
from collections.abc import Sequence
from pathlib import Path


def corpus_parser(
    description: str | None, nj: str = "not needed here", corpus_dir: bool = True
) -> argparse.ArgumentParser:
    """Return a parser with the options of every corpus (that lies on the disk)."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if corpus_dir:
        parser.add_argument("--corpus_dir", type=Path, required=True)
    parser.add_argument("--datadir", type=Path, default=Path("data"))
    parser.add_argument("--nj", type=int, default=1, help=nj)
    return parser


def parse(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> argparse.Namespace:
    """Read the options and begin a log on stderr."""
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    return args


def read_rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Read a CSV with a header; cells are stripped, `line` is the number of the line.

    Raises:
        ValueError: A column is missing.
    """
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, skipinitialspace=True)
        names = [(name or "").strip() for name in reader.fieldnames or []]
        reader.fieldnames = names
        lacking = [name for name in columns if name not in names]
        if lacking:
            raise ValueError(
                f"{path} lacks the column(s) {', '.join(lacking)}; it has: "
                f"{', '.join(names)}"
            )
        return [
            {name: (row[name] or "").strip() for name in columns}
            | {"line": str(reader.line_num)}
            for row in reader
        ]
