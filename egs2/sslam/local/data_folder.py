#!/usr/bin/env python3
"""Prepare any folder of audio files, or a CSV/TSV table that lists them.

--corpus_dir is a directory or a table. A directory that holds metadata.csv or
metadata.tsv is read through it, any other is searched for audio files. A table has
the columns path[, labels][, split][, group]; several labels of a file are separated by
`,` or `;` inside the (quoted) field; split is train, valid or test.

With labels: <name>/{train,valid,test} and pretrain/{train,valid}, where pre-training
gets the audio of the training split (--pretrain_on all: of every split). Without
labels: pretrain/{train,valid} only. Where no split is given, files are split 80/10/10
by a seed; files of one group (same column `group`, else the same name without
directory and extension) stay together.
"""

import csv
import io
import logging
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from corpus_command import EXTENSIONS, SPLIT_NAMES, corpus_parser, parse

from espnet2_sslam.bin.cli import run_main
from espnet2_sslam.corpus import (
    TASKS,
    Clip,
    CorpusWriter,
    Downstream,
    hold_out,
    partition_groups,
    slug,
)

PARTS = {"train": 0.8, "valid": 0.1, "test": 0.1}
COLUMNS = {  # column of a table: the names it may have
    "path": ("path", "file", "filename"),
    "labels": ("labels", "label"),
    "split": ("split",),
    "group": ("group",),
}


class ListedFile(NamedTuple):
    """One audio file; `labels` None means that nothing is known about it."""

    path: Path
    name: str  # relative path, as in the table or below the folder
    labels: list[str] | None = None
    split: str | None = None
    group: str | None = None


def read_tree(folder: Path, label_from: str) -> list[ListedFile]:
    """All audio files below a folder, labels from the directory they lie in or none.

    Raises:
        ValueError: There is no audio file, or one lies outside any label's directory.
    """
    clips = []
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in relative.parts)
        if hidden or path.suffix.lower() not in EXTENSIONS or path.is_dir():
            continue
        labels = None
        if label_from == "parent":
            if len(relative.parts) < 2:
                raise ValueError(
                    f"{path} lies in no label's directory: move it into one, or use "
                    "--label_from none"
                )
            labels = [relative.parts[-2]]
        clips.append(ListedFile(path, relative.as_posix(), labels))
    if not clips:
        raise ValueError(
            f"{folder} holds no audio file ({' '.join(EXTENSIONS)}): check --corpus_dir"
        )
    return clips


def read_metadata(path: Path) -> list[ListedFile]:
    """Files of a CSV or TSV table with the columns path[, labels][, split][, group].

    The separator is a tab in .tsv files, else a comma, or a semicolon where the header
    has no comma. Paths are relative to the table.

    Raises:
        ValueError: No UTF-8, no `path` column, a row with too many fields or without a
            path, a file or a label twice, an unknown split, or some rows without.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text: save it as UTF-8") from None
    header = re.split("[\r\n]", text, maxsplit=1)[0]
    tab = path.suffix.lower() == ".tsv" or "\t" in header
    separator = "\t" if tab else ";" if ";" in header and "," not in header else ","
    file = io.StringIO(text, newline="")
    reader = csv.DictReader(file, delimiter=separator, skipinitialspace=True)
    names = [(name or "").strip().lower() for name in reader.fieldnames or []]
    reader.fieldnames = names
    columns = {  # of those the table has
        column: name
        for column, allowed in COLUMNS.items()
        for name in reversed(allowed)
        if name in names
    }
    if "path" not in columns:
        raise ValueError(
            f"{path} needs a column `path` (and may have labels, split, group); its "
            f"columns are: {', '.join(names) or 'none'}"
        )
    clips: dict[str, ListedFile] = {}
    for row in reader:
        where = f"{path}, line {reader.line_num}"
        if None in row:
            raise ValueError(
                f"{where}: more fields than columns; put several labels into quotes"
            )
        cells = {name: (row[of] or "").strip() for name, of in columns.items()}
        if not any((value or "").strip() for value in row.values()):
            continue
        clip = _clip_of_row(path.parent, cells, where)
        if clip.name in clips:
            raise ValueError(f"{where}: {clip.name} occurs twice; keep one row of it")
        clips[clip.name] = clip
    if not clips:
        raise ValueError(f"{path} lists no file")
    if len({clip.split is None for clip in clips.values()}) > 1:
        without = next(clip.name for clip in clips.values() if clip.split is None)
        raise ValueError(f"{path}: {without} has no split but others have one")
    return list(clips.values())


def _clip_of_row(folder: Path, cells: dict[str, str], where: str) -> ListedFile:
    name = cells["path"]
    if not name:
        raise ValueError(f"{where}: the path is empty")
    labels = None
    if "labels" in cells:
        labels = [label.strip() for label in re.split("[,;]", cells["labels"])]
        labels = [label for label in labels if label]
        if len(set(labels)) != len(labels):
            raise ValueError(f"{where}: the same label twice for {name}")
    split = cells.get("split", "")
    if split and split.lower() not in SPLIT_NAMES:
        raise ValueError(f"{where}: unknown split {split!r}; use train, valid or test")
    split, group = SPLIT_NAMES.get(split.lower()), cells.get("group") or None
    return ListedFile(folder / name, name, labels, split, group)


def unique_ids(clips: list[ListedFile]) -> dict[str, ListedFile]:
    """Clips by an id made of the relative path without its extension.

    Where two would share an id the extension is added, and then a number.
    """
    stems = {clip.name: slug(str(Path(clip.name).with_suffix(""))) for clip in clips}
    count = Counter(stems.values())
    by_id: dict[str, ListedFile] = {}
    for clip in sorted(clips, key=lambda clip: clip.name):
        key = stems[clip.name]
        key = key if count[key] == 1 else slug(clip.name)
        base, number = key, 2
        while key in by_id:
            key, number = f"{base}-{number}", number + 1
        by_id[key] = clip
    return by_id


def label_slugs(clips: list[ListedFile]) -> dict[str, str]:
    """Label of each blank-free name, sorted by the name.

    Raises:
        ValueError: Two labels would get the same name.
    """
    labels: dict[str, str] = {}
    for label in sorted({label for clip in clips for label in clip.labels or []}):
        other = labels.setdefault(slug(label), label)
        if other != label:
            raise ValueError(
                f"the labels {other!r} and {label!r} would both become "
                f"{slug(label)!r}: rename one, or spell both alike if they mean "
                "the same"
            )
    return dict(sorted(labels.items()))


def read_clips(args) -> list[ListedFile]:
    """The clips of --corpus_dir, whatever it is."""
    source = args.corpus_dir.resolve()
    if source.is_file():
        return read_metadata(source)
    if not source.is_dir():
        raise ValueError(f"--corpus_dir {source} is neither a directory nor a table")
    tables = [source / f"metadata.{kind}" for kind in ("csv", "tsv")]
    tables = [table for table in tables if table.is_file()]
    if len(tables) > 1:
        raise ValueError(f"{source} holds two tables: give one as --corpus_dir")
    if tables:
        logging.info("reading %s", tables[0])
        return read_metadata(tables[0])
    return read_tree(source, args.label_from)


def group_of(clip: ListedFile, pattern: str) -> str:
    """What must not be divided between splits: column, pattern or file stem."""
    stem = Path(clip.name).stem
    if clip.group or not pattern:
        return clip.group or stem.lower()
    match = re.search(pattern, stem)
    if not match:
        raise ValueError(f"--group_regex {pattern!r} does not match {clip.name}")
    return match.group(1) if match.groups() else match.group(0)


def choose_splits(
    clips: dict[str, ListedFile], groups: dict[str, str], rng
) -> dict[str, str]:
    """Split of each labelled clip, as given or seeded."""
    if next(iter(clips.values())).split is None:
        labels = {key: clip.labels or [] for key, clip in clips.items()}
        parts = partition_groups(groups, labels, list(PARTS.values()), rng)
        return {key: list(PARTS)[part] for key, part in parts.items()}
    splits = {key: clip.split or "" for key, clip in clips.items()}
    there = set(splits.values())
    if "train" not in there or len(there) < 2:
        raise ValueError(
            f"the table has the split(s) {', '.join(sorted(there))} only: name some "
            "files train and others test (or valid), or leave the column out for a "
            "seeded split"
        )
    return splits


def choose_task(clips: dict[str, ListedFile], task: str) -> str:
    """`multi_class` when every clip has exactly one label, unless told."""
    many = next((clip for clip in clips.values() if len(clip.labels or ()) != 1), None)
    if task == "auto":
        return "multi_class" if many is None else "multi_label"
    if task == "multi_class" and many is not None:
        raise ValueError(
            f"{many.name} has {len(many.labels or ())} labels: --task multi_class "
            "needs exactly one for every file"
        )
    return task


def write_labelled(
    args,
    writer: CorpusWriter,
    files: dict[str, ListedFile],
    groups: dict[str, str],
    splits: dict[str, str],
) -> Downstream:
    """Write the labelled set and its class list."""
    task = choose_task(files, args.task)
    names = label_slugs(list(files.values()))
    for split in sorted(set(splits.values())):
        clips = [
            Clip(
                key, str(file.path), " ".join(map(slug, file.labels or ())), groups[key]
            )
            for key, file in files.items()
            if splits[key] == split
        ]
        writer.add(f"{args.name}/{split}", clips, known_to_exist=True)
    writer.classes(args.name, names)
    return Downstream.of_set(args.name, task, splits.values())


def choose_pretrain(args, groups, splits, rng) -> tuple[dict[str, int], str]:
    """Part of each clip in pretrain/{train,valid} (0, 1), and a note on it."""
    if args.pretrain_on == "all" or not splits:
        note = "pretrain/{train,valid} hold all audio, without labels"
        return hold_out(groups, args.valid_share, rng), note
    if "valid" in splits.values():
        note = "pretrain/{train,valid} are the audio of the splits train and valid"
        return {key: list(PARTS).index(split) for key, split in splits.items()}, note
    inside = {key: groups[key] for key, split in splits.items() if split == "train"}
    note = "pretrain/{train,valid} are the audio of the split train"
    return hold_out(inside, args.valid_share, rng), note


def main(argv=None) -> None:
    """Write all splits below --datadir."""
    parser = corpus_parser(__doc__)
    add = parser.add_argument
    add("--name", default="folder", help="name of the labelled set [folder]")
    add("--task", choices=("auto", *TASKS), default="auto", help="[auto]")
    help_ = "without a table: the directory a file lies in is its label [none]"
    add("--label_from", choices=("none", "parent"), default="none", help=help_)
    help_ = "its first group, on the name without extension, is what stays together"
    add("--group_regex", default="", help=help_)
    add("--pretrain_on", choices=("train", "all"), default="train", help="[train]")
    add("--valid_share", type=float, default=0.1, help="of pre-training [0.1]")
    add("--seed", type=int, default=0, help="[0]")
    args = parse(parser, argv)
    files = unique_ids(read_clips(args))
    groups = {key: slug(group_of(f, args.group_regex)) for key, f in files.items()}
    rng = np.random.default_rng(args.seed)
    splits: dict[str, str] = {}
    runs: list[Downstream] = []
    # Lost files are found, listed and counted when the audio is formatted.
    writer = CorpusWriter(args.datadir)
    if any(file.labels for file in files.values()):
        splits = choose_splits(files, groups, rng)
        runs.append(write_labelled(args, writer, files, groups, splits))
    else:
        logging.info(
            "no labels: only the pre-training sets are made, no downstream run"
        )
    parts, note = choose_pretrain(args, groups, splits, rng)
    for part, name in enumerate(("train", "valid")):
        clips = [
            Clip(key, str(files[key].path), "", groups[key])
            for key in files
            if parts.get(key) == part
        ]
        writer.add(f"pretrain/{name}", clips, labelled=False, known_to_exist=True)
    writer.note(f"{args.name}: {note}")
    writer.finish(runs)
    logging.info("%d files", len(files))


if __name__ == "__main__":
    run_main(main)
