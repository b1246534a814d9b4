#!/usr/bin/env python3
"""Prepare the authors' manifests: <split>.tsv, <split>.lbl and label_descriptors.csv.

--corpus_dir holds train.tsv and eval.tsv (or valid.tsv, test.tsv): the first line is
the root of the audio (--audio_root replaces it), then `relative/path.wav<TAB>number`
(the number is not used: it is a sample rate in some manifests). train.lbl, ... have
`id<TAB>label,label` for the same clips in the same order. label_descriptors.csv has
`index,label,"display name"` without header and gives the order of the classes; where
there is none (as for AudioSet-20K) name AudioSet's class_labels_indices.csv by
--label_descriptors. --weights is a file of sampling weights, one number for each line
of train.tsv.

Without .lbl files the manifests are for pre-training: pretrain/{train,valid}.
"""

import csv
import math
import os
from collections.abc import Iterator
from pathlib import Path

from corpus_command import corpus_parser, parse

from espnet2_sslam.bin.cli import run_main
from espnet2_sslam.corpus import (
    TASKS,
    WEIGHT_FILE,
    Clip,
    CorpusWriter,
    Downstream,
    label_word,
    slug,
    unique_words,
    write_table,
)

SPLITS = {"train": "train", "valid": "valid", "eval": "test", "test": "test"}
EXPECTED = "--corpus_dir with train.tsv, train.lbl, eval.tsv, eval.lbl and the audio"


def read_descriptors(path: Path) -> dict[str, str]:
    """Display name of each label, in class order; a header line is passed over.

    Raises:
        ValueError: The rows are not numbered 0, 1, 2, ..., or a label occurs twice.
    """
    if not path.is_file():
        raise ValueError(
            f"{path} is missing: it gives the order of the classes; name its file "
            "(for AudioSet class_labels_indices.csv) by --label_descriptors"
        )
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


def read_tsv(path: Path, audio_root: str | None) -> Iterator[tuple]:
    """Relative path, whole path and line number of each clip.

    Raises:
        ValueError: No root, or a line of another form.
    """
    with open(path, encoding="utf-8-sig") as file:
        root = audio_root or file.readline().rstrip("\r\n")
        if audio_root:
            file.readline()
        if not root.strip() or "\t" in root:
            raise ValueError(f"{path}, line 1 must be the root of the audio: {root!r}")
        for number, line in enumerate(file, 2):
            line = line.rstrip("\r\n")
            if not line.strip():
                continue
            relative, *rest = line.split("\t")
            if len(rest) != 1 or not rest[0].strip().isdigit():
                raise ValueError(
                    f"{path}, line {number}: {line!r} is not path and number"
                )
            yield relative, os.path.join(root, relative), number


def read_lbl(path: Path) -> Iterator[tuple]:
    """Id and labels of each line.

    Raises:
        ValueError: A line without a tab.
    """
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            key, tab, labels = line.rstrip("\r\n").partition("\t")
            if not tab:
                raise ValueError(f"{path}, line {number}: no tab behind the id")
            yield key, unique_words(labels.split(","))


def labelled_clips(
    folder: Path, name: str, audio_root, classes: dict
) -> Iterator[Clip]:
    """Clips of a split.

    Raises:
        ValueError: tsv and lbl do not list the same clips, or a label is unknown.
    """
    lbl = folder / f"{name}.lbl"
    lines = read_lbl(lbl)
    for relative, path, number in read_tsv(folder / f"{name}.tsv", audio_root):
        key, labels = next(lines, ("", []))
        stem = os.path.splitext(relative)[0]
        if key not in (stem, os.path.basename(stem), relative):
            raise ValueError(
                f"{name}.tsv, line {number}, is {relative}, but the same line of {lbl} "
                f"is {key or 'not there'}: both must list the same clips in order"
            )
        unknown = [label for label in labels if label not in classes]
        if unknown:
            raise ValueError(
                f"{lbl}: the label {unknown[0]!r} of {key} is not in the label "
                "descriptors"
            )
        yield Clip(slug(key), path, " ".join(labels))
    extra = next(lines, None)
    if extra is not None:
        raise ValueError(f"{lbl} lists {extra[0]}, which {name}.tsv does not")


def bare_clips(folder: Path, name: str, audio_root) -> Iterator[Clip]:
    """Clips of a split without labels."""
    for relative, path, _ in read_tsv(folder / f"{name}.tsv", audio_root):
        yield Clip(slug(os.path.splitext(relative)[0]), path)


def read_weights(path: Path) -> list[float]:
    """One positive number a line.

    Raises:
        ValueError: A line is no such number.
    """
    with open(path, encoding="utf-8-sig") as file:
        words = [line.strip() for line in file if line.strip()]
    try:
        weights = [float(word) for word in words]
    except ValueError as error:
        raise ValueError(f"{path} must hold one number a line ({error})") from None
    if not all(weight >= 0 and math.isfinite(weight) for weight in weights):
        raise ValueError(f"{path} holds a weight that is negative or not finite")
    return weights


def write_given_weights(args, writer: CorpusWriter, classes: dict) -> None:
    """Give each training clip that is there its weight of --weights."""
    weights = read_weights(args.weights)
    clips = labelled_clips(args.corpus_dir, "train", args.audio_root, classes)
    rows = {}
    count = 0
    for count, clip in enumerate(clips, 1):
        if count <= len(weights) and clip.path in writer.files:
            rows[clip.key] = weights[count - 1]
    if count != len(weights):
        raise ValueError(
            f"{args.weights} has {len(weights)} weights, train.tsv {count} clips: "
            "there must be one for each"
        )
    path = args.datadir / args.name / "train" / WEIGHT_FILE
    write_table(path, ((key, f"{rows[key]:.9g}") for key in sorted(rows)))


def main(argv=None) -> None:
    """Write all splits below --datadir."""
    parser = corpus_parser(__doc__)
    add = parser.add_argument
    add("--name", default="manifest", help="name of the labelled set [manifest]")
    add("--audio_root", help="where the audio is [line 1 of each tsv]")
    add("--label_descriptors", type=Path, help="[label_descriptors.csv]")
    add("--weights", type=Path, help="sampling weights of the training clips")
    add("--task", choices=TASKS, default=TASKS[0], help="[multi_label]")
    args = parse(parser, argv)
    args.corpus_dir = args.corpus_dir.resolve()
    names = [name for name in SPLITS if (args.corpus_dir / f"{name}.tsv").is_file()]
    if "train" not in names:
        raise ValueError(f"{args.corpus_dir} holds no train.tsv; expected: {EXPECTED}")
    if args.name != slug(args.name) or args.name == "pretrain":
        raise ValueError(f"--name {args.name!r} must be one word, not `pretrain`")
    if {"eval", "test"} <= set(names):
        raise ValueError(f"{args.corpus_dir} holds eval.tsv and test.tsv: keep one")
    writer = CorpusWriter(args.datadir, EXPECTED)
    if not (args.corpus_dir / "train.lbl").is_file():
        for name in names:
            clips = bare_clips(args.corpus_dir, name, args.audio_root)
            split = "train" if name == "train" else "valid"
            writer.add(f"pretrain/{split}", clips, labelled=False)
        writer.finish([])
        return
    path = args.label_descriptors or args.corpus_dir / "label_descriptors.csv"
    classes = read_descriptors(path)
    for name in names:
        clips = labelled_clips(args.corpus_dir, name, args.audio_root, classes)
        writer.add(f"{args.name}/{SPLITS[name]}", clips)
    writer.classes(args.name, classes)
    if args.weights:
        write_given_weights(args, writer, classes)
    there = [SPLITS[name] for name in names]
    if len(there) == 1:
        raise ValueError(f"{args.corpus_dir} holds train.tsv only; {EXPECTED}")
    test = f"{args.name}/{'test' if 'test' in there else 'valid'}"
    valid = f"{args.name}/{'valid' if 'valid' in there else 'test'}"
    writer.finish(
        [Downstream(args.name, args.task, f"{args.name}/train", valid, [test])]
    )


if __name__ == "__main__":
    run_main(main)
