"""What the commands local/data_<corpus>.py share: options and start."""

import argparse
import logging
from collections.abc import Callable, Sequence
from pathlib import Path


def corpus_parser(description: str, nj: str = "not needed here"):
    """A parser with the options of every corpus that lies on disk."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus_dir", type=Path, required=True)
    parser.add_argument("--datadir", type=Path, default=Path("data"))
    parser.add_argument("--nj", type=int, default=1, help=nj)
    return parser


def prepare_corpus(
    parser: argparse.ArgumentParser,
    prepare: Callable[[argparse.Namespace], None],
    argv: Sequence[str] | None = None,
) -> None:
    """Read the options and prepare the corpus, with a log on stderr."""
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    prepare(args)
