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

import argparse
import logging
import re
from pathlib import Path

import numpy as np
from folder_table import Clip, label_slugs, read_metadata, read_tree, unique_ids

from espnet2_sslam.bin.cli import run_main
from espnet2_sslam.corpus import (
    CLASS_FILE,
    TASKS,
    Downstream,
    begin_corpus,
    finish_corpus,
    hold_out,
    partition_groups,
    slug,
    write_atomically,
    write_split,
)

PARTS = {"train": 0.8, "valid": 0.1, "test": 0.1}
LABEL_FILE = "label_names.tsv"


def read_clips(args) -> list[Clip]:
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


def group_of(clip: Clip, pattern: str) -> str:
    """What must not be divided between splits: column, pattern or file stem."""
    if clip.group:
        return clip.group
    stem = Path(clip.name).stem.lower()
    if pattern:
        match = re.search(pattern, Path(clip.name).stem)
        if not match:
            raise ValueError(f"--group_regex {pattern!r} does not match {clip.name}")
        return match.group(1) if match.groups() else match.group(0)
    return stem


def choose_splits(
    clips: dict[str, Clip], groups: dict[str, str], rng
) -> dict[str, str]:
    """Split of each labelled clip, as given or seeded."""
    if next(iter(clips.values())).split is None:
        labels = {key: clip.labels for key, clip in clips.items()}
        parts = partition_groups(groups, labels, list(PARTS.values()), rng)
        return {key: list(PARTS)[part] for key, part in parts.items()}
    splits = {key: clip.split for key, clip in clips.items()}
    there = set(splits.values())
    if "train" not in there or len(there) < 2:
        raise ValueError(
            f"the table has the split(s) {', '.join(sorted(there))} only: name some "
            "files train and others test (or valid), or leave the column out for a "
            "seeded split"
        )
    return splits


def choose_task(clips: dict[str, Clip], task: str) -> str:
    """`multi_class` when every clip has exactly one label, unless told."""
    many = next((clip for clip in clips.values() if len(clip.labels) != 1), None)
    if task == "auto":
        return "multi_class" if many is None else "multi_label"
    if task == "multi_class" and many is not None:
        raise ValueError(
            f"{many.name} has {len(many.labels)} labels: --task multi_class needs "
            "exactly one for every file"
        )
    return task


def write_labelled(args, clips, groups, splits) -> Downstream:
    """Write the labelled set and its class list."""
    task = choose_task(clips, args.task)
    names = label_slugs(list(clips.values()))
    for split in sorted(set(splits.values())):
        inside = {key: clip for key, clip in clips.items() if splits[key] == split}
        write_split(
            args.datadir / args.name / split,
            {key: str(clip.path) for key, clip in inside.items()},
            groups,
            {key: [names[label] for label in c.labels] for key, c in inside.items()},
        )
    folder = args.datadir / args.name
    classes = sorted(names.values())
    write_atomically(folder / CLASS_FILE, "\n".join(classes) + "\n")
    lines = (f"{names[label]}\t{label}\n" for label in sorted(names))
    write_atomically(folder / LABEL_FILE, "".join(lines))
    test = f"{args.name}/{'test' if 'test' in splits.values() else 'valid'}"
    valid = f"{args.name}/valid" if "valid" in splits.values() else test
    return Downstream(args.name, task, f"{args.name}/train", valid, [test])


def write_pretrain(args, clips, groups, splits, rng) -> list[str]:
    """Write pretrain/{train,valid}; notes on what is in them."""
    if args.pretrain_on == "all" or not splits:
        note = "pretrain/{train,valid} hold all audio, without labels"
        parts = hold_out(groups, args.valid_share, rng)
    elif "valid" in splits.values():
        note = "pretrain/{train,valid} are the audio of the splits train and valid"
        parts = {key: ("train", "valid", "test").index(splits[key]) for key in clips}
    else:
        note = "pretrain/{train,valid} are the audio of the split train"
        inside = {key: groups[key] for key in clips if splits[key] == "train"}
        parts = hold_out(inside, args.valid_share, rng)
    for part, name in enumerate(("train", "valid")):
        wav = {key: str(clips[key].path) for key in clips if parts.get(key) == part}
        write_split(args.datadir / "pretrain" / name, wav, groups)
    return [f"{args.name}: {note}"]


def prepare(args) -> None:
    """Write all splits below --datadir."""
    if args.name != slug(args.name) or args.name == "pretrain":
        raise ValueError(f"--name {args.name!r} must be one word, not `pretrain`")
    if not 0 < args.valid_share < 1:
        raise ValueError(f"--valid_share must be in (0, 1), got {args.valid_share:g}")
    clips = unique_ids(read_clips(args))
    groups = {key: slug(group_of(c, args.group_regex)) for key, c in clips.items()}
    rng = np.random.default_rng(args.seed)
    labelled = any(clip.labels for clip in clips.values())
    splits: dict[str, str] = {}
    runs: list[Downstream] = []
    begin_corpus(args.datadir)
    names = ["pretrain/train", "pretrain/valid"]
    if labelled:
        splits = choose_splits(clips, groups, rng)
        runs.append(write_labelled(args, clips, groups, splits))
        names += [f"{args.name}/{split}" for split in sorted(set(splits.values()))]
    else:
        logging.info(
            "no labels: only the pre-training sets are made, no downstream run"
        )
    notes = write_pretrain(args, clips, groups, splits, rng)
    finish_corpus(args.datadir, names, runs, "\n".join(notes))
    logging.info("%d files; %s", len(clips), notes[0])


def get_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--corpus_dir", type=Path, required=True)
    parser.add_argument("--datadir", type=Path, default=Path("data"))
    parser.add_argument("--name", default="folder", help="name of the labelled set")
    parser.add_argument("--task", choices=("auto", *TASKS), default="auto")
    parser.add_argument(
        "--label_from",
        choices=("none", "parent"),
        default="none",
        help="without a table: the directory a file lies in is its label",
    )
    parser.add_argument(
        "--group_regex",
        default="",
        help="its first group, on the name without extension, is what stays together",
    )
    parser.add_argument("--pretrain_on", choices=("train", "all"), default="train")
    parser.add_argument("--valid_share", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--nj", type=int, default=1, help="not needed here")
    return parser


def main(argv=None) -> None:
    """Entry point."""
    args = get_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    prepare(args)


if __name__ == "__main__":
    run_main(main)
