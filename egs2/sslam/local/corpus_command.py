"""What the commands local/data_<corpus>.py share: options, tables, labels, sets."""

import argparse
import csv
import io
import logging
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from espnet2_sslam.corpus import (
    ARRAY_HELP,
    ArrayJob,
    Clip,
    CorpusWriter,
    Downstream,
    label_word,
    read_text,
    slug,
    unique_words,
)


def begin(
    argv: Sequence[str] | None,
    doc: str | None,
    expected: str | None = "",
    **options: Any,
) -> tuple[argparse.Namespace, CorpusWriter]:
    """Read the options, begin a log on stderr, and the data folder of --datadir.

    Args:
        argv: Words of the command line.
        doc: What --help says.
        expected: What --corpus_dir must be, which is then checked to be a folder; None
            for a corpus without one.
        options: Default, help and perhaps choices of each further option. In place of
            the default None stands a type; a list takes some values, a tuple so many.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    if expected is not None:
        text = "folder of the corpus, which is only read"
        add(
            "--corpus_dir",
            type=Path,
            required=True,
            help=f"{text}: {expected}".rstrip(": "),
        )
    text = "data folder to write [data]"
    add("--datadir", type=Path, default=Path("data"), help=text)
    add("--nj", type=int, default=1, help="processes, where they help [1]")
    add("--cmd", help=ARRAY_HELP)
    for name, (default, text, *choices) in options.items():
        several = isinstance(default, list | tuple)
        nargs: Any = len(default) if isinstance(default, tuple) else "+"
        one = default[0] if several else default
        shown = " ".join(map(str, default)) if several else default
        optional = isinstance(default, type)
        add(
            f"--{name}",
            type=one if optional else type(one),
            default=None if optional else default,
            nargs=nargs if several else None,
            choices=choices[0] if choices else None,
            help=text if optional else f"{text} [{shown}]".strip(),
        )
    args = parser.parse_args(argv)
    args.nj = ArrayJob.or_processes(args.nj, args.cmd, args.datadir)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if expected:
        args.corpus_dir = args.corpus_dir.resolve()
        if not args.corpus_dir.is_dir():
            raise ValueError(f"{args.corpus_dir} is no directory; expected: {expected}")
    name, share = getattr(args, "name", "set"), getattr(args, "valid_share", 0.1)
    if name != slug(name) or name == "pretrain":
        raise ValueError(f"--name {name!r} must be one word, not `pretrain`")
    if not 0 < share < 1:
        raise ValueError(f"--valid_share must be between 0 and 1, got {share:g}")
    return args, CorpusWriter(args.datadir, expected or "")


def read_rows(path: Path, columns: Iterable[str]) -> list[tuple[str, dict[str, str]]]:
    """Read a corpus's own table: where each row stands, and its cells, stripped.

    The separator is a tab in .tsv files, else a comma, or a semicolon where the header
    has no comma. Names of columns are in lower case; blank rows are passed over.

    Args:
        path: The table.
        columns: Those it must have.
    """
    text = read_text(path)
    header = "".join(text.splitlines()[:1])
    separator = ";" if ";" in header and "," not in header else ","
    if path.suffix == ".tsv" or "\t" in header:
        separator = "\t"
    file = io.StringIO(text, newline="")
    reader = csv.DictReader(file, delimiter=separator, skipinitialspace=True)
    names = [(name or "").strip().lower() for name in reader.fieldnames or []]
    lacking = [name for name in columns if name not in names]
    if lacking:
        raise ValueError(
            f"{path} lacks the column(s) {', '.join(lacking)}; it has: "
            f"{', '.join(names) or 'none'}"
        )
    reader.fieldnames = names
    rows = []
    for row in reader:
        where = f"{path}, line {reader.line_num}"
        if None in row:
            raise ValueError(
                f"{where}: more fields than columns; put a field with a separator in "
                "it, such as several labels, into quotes"
            )
        cells = {name: (cell or "").strip() for name, cell in row.items()}
        if any(cells.values()):
            rows.append((where, cells))
    return rows


def read_class_table(path: Path, hint: str) -> dict[str, str]:
    """Last column of each label of an `index,label,...` CSV, in class order.

    A header is passed over.
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
    """Words of the labels of a clip, each once, separated by blanks."""
    words = unique_words(names)
    for word in words:
        if word not in classes:
            raise ValueError(f"{where}: the label {word!r} is not in {classes_of}")
    return " ".join(words)


def write_set(
    writer: CorpusWriter,
    name: str,
    task: str,
    splits: Mapping[str, Iterable[Clip]],
    classes: Iterable[str],
    **options,
) -> Downstream:
    """Write a labelled set, its splits and classes: the training run on it."""
    for split, clips in splits.items():
        writer.add(f"{name}/{split}", clips, **options)
    writer.classes(name, classes)
    return Downstream.of_set(name, task, splits)


def write_pretrain(
    writer: CorpusWriter, clips: Iterable[Clip], parts: Mapping[str, int]
) -> None:
    """Write pretrain/train and pretrain/valid, the clips of part 0 and 1, unlabelled.

    Lost files are found, listed and counted when the audio is formatted.
    """
    by_part: tuple[list[Clip], list[Clip]] = ([], [])
    for clip in clips:
        if clip.key in parts:
            by_part[parts[clip.key]].append(clip)
    for name, of_part in zip(("train", "valid"), by_part, strict=True):
        name = f"pretrain/{name}"
        writer.add(name, of_part, labelled=False, known_to_exist=True)
