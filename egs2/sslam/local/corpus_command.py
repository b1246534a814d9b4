"""What the commands local/data_<corpus>.py share: options, tables, checks of labels."""

import argparse
import csv
import logging
from collections.abc import Container, Iterable, Sequence
from pathlib import Path

from espnet2_sslam.corpus import label_word, slug, unique_words

EXTENSIONS = tuple(".wav .flac .mp3 .ogg .opus .oga .aif .aiff .au .w64 .caf".split())
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "validation", "val", "dev"), "valid"),
    **dict.fromkeys(("test", "eval", "evaluation"), "test"),
}


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
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, expected: str = ""
) -> argparse.Namespace:
    """Read the options and begin a log on stderr.

    Raises:
        ValueError: --corpus_dir is not the folder that is `expected`; a --name or
            --valid_share that cannot be.
    """
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if expected:
        args.corpus_dir = args.corpus_dir.resolve()
        if not args.corpus_dir.is_dir():
            raise ValueError(f"{args.corpus_dir} is no directory; expected: {expected}")
    name = getattr(args, "name", "one_word")
    if name != slug(name) or name == "pretrain":
        raise ValueError(f"--name {name!r} must be one word, not `pretrain`")
    share = getattr(args, "valid_share", 0.1)
    if not 0 < share < 1:
        raise ValueError(f"--valid_share must be between 0 and 1, got {share:g}")
    return args


def read_rows(
    path: Path, columns: Sequence[str], separator: str = ","
) -> list[dict[str, str]]:
    """Read a CSV with a header; cells are stripped, `line` is the number of the line.

    Raises:
        ValueError: A column is missing.
    """
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter=separator, skipinitialspace=True)
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


def read_class_table(path: Path, hint: str) -> dict[str, str]:
    """Last column of each label of an `index,label,...` CSV, in class order.

    A header is passed over.

    Raises:
        ValueError: No such file (`hint` says where it is from), a line of another form,
            classes that are not numbered 0, 1, 2, ..., or a label twice.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing: {hint}")
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = [row for row in csv.reader(file, skipinitialspace=True) if any(row)]
    if rows and not rows[0][0].strip().isdigit():
        rows = rows[1:]
    if not rows or any(len(row) < 2 or not row[0].strip().isdigit() for row in rows):
        raise ValueError(f"{path}: each line must read index,label,display name")
    rows.sort(key=lambda row: int(row[0]))
    if [int(row[0]) for row in rows] != list(range(len(rows))):
        raise ValueError(f"{path} does not number its classes 0 to {len(rows) - 1}")
    names = {label_word(row[1]): row[-1].strip() for row in rows}
    if len(names) != len(rows):
        raise ValueError(f"{path} names a label twice")
    return names


def known_labels(
    names: Iterable[str], classes: Container[str], where: object, classes_of: str
) -> str:
    """Words of the labels of a clip, each once, separated by blanks.

    Raises:
        ValueError: A label that `classes` lacks; says `where`, and whose classes.
    """
    words = unique_words(names)
    for word in words:
        if word not in classes:
            raise ValueError(f"{where}: the label {word!r} is not in {classes_of}")
    return " ".join(words)
