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

import logging
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from corpus_command import (
    EXTENSIONS,
    SPLIT_NAMES,
    begin,
    read_rows,
    write_pretrain,
    write_set,
)

from espnet2_sslam.bin.cli import run_main
from espnet2_sslam.corpus import TASKS, Clip, clip_ids, hold_out, partition_groups, slug

PARTS = {"train": 0.8, "valid": 0.1, "test": 0.1}
ALIASES = {"file": "path", "filename": "path", "label": "labels"}  # of columns


class ListedFile(NamedTuple):
    """One audio file, what a table or its folder says of it."""

    path: Path
    name: str  # relative path, as in the table or below the folder
    labels: list[str] = []  # noqa: RUF012 (never changed)
    split: str = ""
    group: str = ""


def read_tree(folder: Path, label_from: str) -> list[ListedFile]:
    """All audio files below a folder, labels from the directory they lie in or none."""
    files = []
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in relative.parts)
        if hidden or path.suffix.lower() not in EXTENSIONS or path.is_dir():
            continue
        labels = list(relative.parts[-2:-1]) if label_from == "parent" else []
        if label_from == "parent" and not labels:
            raise ValueError(
                f"{path} lies in no label's directory: move it into one, or use "
                "--label_from none"
            )
        files.append(ListedFile(path, relative.as_posix(), labels))
    if not files:
        raise ValueError(
            f"{folder} holds no audio file ({' '.join(EXTENSIONS)}): check --corpus_dir"
        )
    return files


def read_metadata(path: Path) -> list[ListedFile]:
    """Files of a CSV or TSV table; paths are relative to the table."""
    files: dict[str, ListedFile] = {}
    for where, row in read_rows(path, ["path"], ALIASES):
        name, split = row["path"], row.get("split", "")
        labels = [label.strip() for label in re.split("[,;]", row.get("labels", ""))]
        labels = [label for label in labels if label]
        if not name:
            raise ValueError(f"{where}: the path is empty")
        name = Path(name).as_posix()  # without ./
        if name in files:
            raise ValueError(f"{where}: {name} occurs twice; keep one row of it")
        if len(set(labels)) != len(labels):
            raise ValueError(f"{where}: the same label twice for {name}")
        if split and split.lower() not in SPLIT_NAMES:
            raise ValueError(
                f"{where}: unknown split {split!r}; use train, valid or test"
            )
        split, group = SPLIT_NAMES.get(split.lower(), ""), row.get("group", "")
        files[name] = ListedFile(path.parent / name, name, labels, split, group)
    if not files:
        raise ValueError(f"{path} lists no file")
    without = [name for name, file in files.items() if not file.split]
    if 0 < len(without) < len(files):
        raise ValueError(f"{path}: {without[0]} has no split but others have one")
    return list(files.values())


def read_files(source: Path, label_from: str) -> list[ListedFile]:
    """The files of --corpus_dir, whatever it is."""
    if source.is_file():
        return read_metadata(source)
    if not source.is_dir():
        raise ValueError(f"--corpus_dir {source} is neither a directory nor a table")
    tables = sorted(source.glob("metadata.[ct]sv"))
    if len(tables) > 1:
        raise ValueError(f"{source} holds two tables: give one as --corpus_dir")
    return read_metadata(tables[0]) if tables else read_tree(source, label_from)


def group_of(file: ListedFile, pattern: str) -> str:
    """What must not be divided between splits: column, pattern or file stem."""
    stem = Path(file.name).stem
    if file.group or not pattern:
        return slug(file.group or stem.lower())
    match = re.search(pattern, stem)
    if not match:
        raise ValueError(f"--group_regex {pattern!r} does not match {file.name}")
    return slug(match[1] if match.groups() else match[0])


def label_names(files: dict[str, ListedFile]) -> dict[str, str]:
    """The label of each blank-free name, sorted by the name."""
    names: dict[str, str] = {}
    for label in sorted({label for file in files.values() for label in file.labels}):
        other = names.setdefault(slug(label), label)
        if other != label:
            raise ValueError(
                f"the labels {other!r} and {label!r} would both become "
                f"{slug(label)!r}: rename one, or spell both alike if they mean "
                "the same"
            )
    return dict(sorted(names.items()))


def choose_splits(
    files: dict[str, ListedFile], groups: dict[str, str], rng
) -> dict[str, str]:
    """Split of each labelled file, as given or seeded."""
    splits = {key: file.split for key, file in files.items()}
    names = set(splits.values())
    if names == {""}:
        labels = {key: file.labels for key, file in files.items()}
        parts = partition_groups(groups, labels, list(PARTS.values()), rng)
        return {key: list(PARTS)[part] for key, part in parts.items()}
    if "train" not in names or len(names) < 2:
        raise ValueError(
            f"the table has the split(s) {', '.join(sorted(names))} only: name some "
            "files train and others test (or valid), or leave the column out for a "
            "seeded split"
        )
    return splits


def choose_task(files: dict[str, ListedFile], task: str) -> str:
    """`multi_class` when every file has exactly one label, unless told."""
    other = [file for file in files.values() if len(file.labels) != 1]
    if task == "multi_class" and other:
        raise ValueError(
            f"{other[0].name} has {len(other[0].labels)} labels: --task multi_class "
            "needs exactly one for every file"
        )
    if task == "auto":
        return "multi_label" if other else "multi_class"
    return task


def main(argv=None) -> None:
    """Write all splits below --datadir."""
    args, writer = begin(
        *(argv, __doc__),
        name=("folder", "name of the labelled set"),
        task=("auto", "", ("auto", *TASKS)),
        label_from=(
            *("none", "without a table: the directory a file lies in is its label"),
            ("none", "parent"),
        ),
        group_regex=("", "its first group, on the stem of a name, stays together"),
        pretrain_on=("train", "", ("train", "all")),
        valid_share=(0.1, "of pre-training"),
        seed=(0, ""),
    )
    read = read_files(args.corpus_dir.resolve(), args.label_from)
    ids = clip_ids(file.name for file in read)
    files = {ids[f.name]: f for f in sorted(read, key=lambda file: file.name)}
    groups = {key: group_of(file, args.group_regex) for key, file in files.items()}
    rng = np.random.default_rng(args.seed)
    clips = {
        key: Clip(key, str(file.path), " ".join(map(slug, file.labels)), groups[key])
        for key, file in files.items()
    }
    splits: dict[str, str] = {}
    runs = []
    if any(file.labels for file in files.values()):
        splits = choose_splits(files, groups, rng)
        task, classes = choose_task(files, args.task), label_names(files)
        by_split = {
            name: [clip for key, clip in clips.items() if splits[key] == name]
            for name in sorted(set(splits.values()))
        }
        # Lost files are found, listed and counted when the audio is formatted.
        run = write_set(writer, args.name, task, by_split, classes, known_to_exist=True)
        runs.append(run)
    else:
        logging.info(
            "no labels: only the pre-training sets are made, no downstream run"
        )
    if args.pretrain_on == "all" or not splits:
        note = "hold all audio, without labels"
        parts = hold_out(groups, args.valid_share, rng)
    elif "valid" in splits.values():
        note = "are the audio of the splits train and valid"
        order = {"train": 0, "valid": 1}
        parts = {key: order[s] for key, s in splits.items() if s in order}
    else:
        note = "are the audio of the split train"
        trained = {key: groups[key] for key, s in splits.items() if s == "train"}
        parts = hold_out(trained, args.valid_share, rng)
    write_pretrain(writer, clips.values(), parts)
    writer.note(f"{args.name}: pretrain/{{train,valid}} {note}")
    writer.finish(runs)
    logging.info("%d files", len(files))


if __name__ == "__main__":
    run_main(main)
