#!/usr/bin/env python3
"""Prepare IDMT-DESED-FL, whose layout we do not know: what is assumed is said here.

Known: it was made with scaper from DESED's ten classes. Not known: where to get it, its
folders, its number of clips. Accepted in --corpus_dir, at any depth:
- each clip's events in a file of the clip's name (.txt, .tsv, .csv or .jams, see
  local/event_files.py), beside the audio or in another folder, or
- tables of many clips, as in DESED: .tsv or .csv files with the columns filename,
  onset, offset, event_label.

The split of a clip is the first folder on its path named train, training, valid,
validation, val, dev, test, eval or evaluation. --make_split true makes 80/10/10 splits
by a seed instead, which are not the authors'. Without a validation split the test clips
are validated on.
"""

from pathlib import Path

import numpy as np
from corpus_command import EXTENSIONS, SPLIT_NAMES, corpus_parser, parse, read_rows
from event_files import FORMS, read_event_labels

from espnet2_sslam.bin.cli import run_main
from espnet2_sslam.corpus import (
    Clip,
    CorpusWriter,
    Downstream,
    label_name,
    partition_groups,
    slug,
    unique_words,
)

SET = "idmt_desed_fl"
DESED_CLASSES = (
    "Alarm_bell_ringing Blender Cat Dishes Dog Electric_shaver_toothbrush Frying "
    "Running_water Speech Vacuum_cleaner"
).split()
SPLITS = ("train", "valid", "test")
SHARES = (0.8, 0.1, 0.1)
EXPECTED = (
    "--corpus_dir with folders train/ and test/ (validation/ too, if there is one) of "
    "audio, and events of each clip in a .txt, .csv or .jams file of its name"
)


class Tree:
    """Audio files, annotation files and tables below a folder."""

    def __init__(self, root: Path):
        self.audio: list[Path] = []
        self.events: dict[str, list[Path]] = {}
        self.tables: list[Path] = []
        for path in sorted(root.rglob("*")):
            if any(part.startswith(".") for part in path.relative_to(root).parts):
                continue
            suffix = path.suffix.lower()
            if suffix in EXTENSIONS:
                self.audio.append(path)
            elif suffix in (".csv", ".tsv") and is_table(path):
                self.tables.append(path)
            elif suffix in FORMS:
                self.events.setdefault(path.stem, []).append(path)


def is_table(path: Path) -> bool:
    """Whether a file has the header of a table of many clips."""
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        names = file.readline().strip().lower().replace("\t", ",").split(",")
    return "filename" in names and "event_label" in names


def read_table(path: Path) -> dict[str, list[str]]:
    """Labels of each file name (without folder and extension) of a table."""
    labels: dict[str, list[str]] = {}
    with open(path, encoding="utf-8-sig") as file:
        separator = "\t" if "\t" in file.readline() else ","
    for row in read_rows(path, ("filename", "event_label"), separator):
        if not row["filename"]:
            raise ValueError(f"{path}, line {row['line']}: no filename")
        labels.setdefault(Path(row["filename"]).stem, []).append(row["event_label"])
    return labels


def split_of(path: Path, root: Path) -> str:
    """The split that a folder on the path names, or ""."""
    parts = path.relative_to(root).parts[:-1]
    names = (SPLIT_NAMES.get(part.lower()) for part in parts)
    return next((name for name in names if name), "")


def nearest(path: Path, candidates: list[Path], root: Path) -> Path:
    """The annotation of the clip's own split and the most folders in common.

    Raises:
        ValueError: Two are equally near.
    """

    def nearness(other: Path) -> tuple:
        own, its = path.relative_to(root).parts, other.relative_to(root).parts
        shared = len(set(own[:-1]) & set(its[:-1]))
        form = -FORMS.index(other.suffix.lower())
        return split_of(other, root) == split_of(path, root), shared, form

    ordered = sorted(candidates, key=nearness)
    if len(ordered) > 1 and nearness(ordered[-1]) == nearness(ordered[-2]):
        raise ValueError(
            f"{path} could belong to {ordered[-2]} or {ordered[-1]}: keep one of them"
        )
    return ordered[-1]


def read_clips(root: Path, writer: CorpusWriter) -> dict[str, Clip]:
    """Clips with labels by id; without annotation, or without audio, they are noted."""
    tree = Tree(root)
    tables: dict[str, list[str]] = {}
    for table in tree.tables:
        for name, labels in read_table(table).items():
            tables.setdefault(name, []).extend(labels)
    clips: dict[str, Clip] = {}
    bare = []
    for path in tree.audio:
        if path.stem in tree.events:
            labels = read_event_labels(nearest(path, tree.events[path.stem], root))
        elif path.stem in tables:
            labels = sorted(unique_words(tables[path.stem]))
        else:
            bare.append(path)
            continue
        key = slug(path.relative_to(root).with_suffix("").as_posix())
        if key in clips:
            raise ValueError(f"{path} and {clips[key].path} would share the id {key}")
        clips[key] = Clip(key, str(path), " ".join(labels))
    if bare:
        writer.note(
            f"{SET}: {len(bare)} audio files have no annotation and are not used, as "
            f"{bare[0].relative_to(root)}"
        )
    lost = sorted({*tree.events, *tables} - {path.stem for path in tree.audio})
    if lost:
        writer.note(f"{SET}: {len(lost)} annotated clips have no audio, as {lost[0]}")
    if not clips:
        raise ValueError(f"{root} holds no audio with annotations; {EXPECTED}")
    return clips


def choose_splits(clips: dict[str, Clip], root: Path, args, writer) -> dict[str, str]:
    """Split of each clip, by its folder or seeded.

    Raises:
        ValueError: Folders name no train and test split, and none may be made.
    """
    splits = {key: split_of(Path(clip.path), root) for key, clip in clips.items()}
    there = set(splits.values())
    if args.make_split == "true":
        groups = {key: key for key in clips}
        labels = {key: clip.labels.split() for key, clip in clips.items()}
        rng = np.random.default_rng(args.seed)
        parts = partition_groups(groups, labels, SHARES, rng)
        writer.note(
            f"{SET}: split 80/10/10 by seed {args.seed}, not the authors' splits"
        )
        return {key: SPLITS[part] for key, part in parts.items()}
    if "train" not in there or not there & {"valid", "test"}:
        raise ValueError(
            f"{root}: no folders named train and test (or eval) hold annotated audio; "
            "put the clips into such folders, or add --make_split true"
        )
    outside = [key for key, split in splits.items() if not split]
    if outside:
        writer.note(f"{SET}: {len(outside)} clips are in no split, as {outside[0]}")
    return splits


def main(argv=None) -> None:
    """Write all splits below --datadir."""
    parser = corpus_parser(__doc__)
    add = parser.add_argument
    add("--make_split", choices=("true", "false"), default="false", help="[false]")
    add("--seed", type=int, default=0, help="of --make_split [0]")
    args = parse(parser, argv, EXPECTED)
    root = args.corpus_dir
    writer = CorpusWriter(args.datadir, EXPECTED)
    writer.note(
        f"{SET}: its layout is not documented; local/data_{SET}.py says what is assumed"
    )
    clips = read_clips(root, writer)
    splits = choose_splits(clips, root, args, writer)
    names = [name for name in SPLITS if name in splits.values()]
    for name in names:
        writer.add(f"{SET}/{name}", (c for k, c in clips.items() if splits[k] == name))
    labels = {label for clip in clips.values() for label in clip.labels.split()}
    known = {name.lower(): name for name in DESED_CLASSES}
    if {label.lower() for label in labels} <= set(known):
        spelt = {label.lower(): label for label in labels}
        classes = [spelt.get(name, known[name]) for name in sorted(known)]
    else:
        classes = sorted(labels)
        other = sorted(label for label in labels if label.lower() not in known)
        writer.note(f"{SET}: not among DESED's ten classes: {', '.join(other)}")
    writer.classes(SET, {word: label_name(word) for word in classes})
    writer.finish([Downstream.of_set(SET, "multi_label", names)])


if __name__ == "__main__":
    run_main(main)
