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

import math
import os
from collections.abc import Iterator
from pathlib import Path

from corpus_command import corpus_parser, known_labels, parse, read_class_table

from espnet2_sslam.bin.cli import run_main
from espnet2_sslam.corpus import (
    TASKS,
    WEIGHT_FILE,
    Clip,
    CorpusWriter,
    Downstream,
    slug,
    write_table,
)

SPLITS = {"train": "train", "valid": "valid", "eval": "test", "test": "test"}
EXPECTED = "--corpus_dir with train.tsv, train.lbl, eval.tsv, eval.lbl and the audio"


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


def labelled_clips(
    folder: Path, name: str, audio_root, classes: dict
) -> Iterator[Clip]:
    """Clips of a split.

    Raises:
        ValueError: tsv and lbl do not list the same clips, or a label is unknown.
    """
    lbl = folder / f"{name}.lbl"
    lines = filter(str.strip, lbl.read_text(encoding="utf-8-sig").splitlines())
    for relative, path, number in read_tsv(folder / f"{name}.tsv", audio_root):
        key, _, labels = next(lines, "").partition("\t")
        stem = os.path.splitext(relative)[0]
        if key not in (stem, os.path.basename(stem), relative):
            raise ValueError(
                f"{name}.tsv, line {number}, is {relative}, but the same line of {lbl} "
                f"is {key or 'not there'}: both must list the same clips in order"
            )
        where = f"{lbl}: {key}"
        words = known_labels(labels.split(","), classes, where, "the label descriptors")
        yield Clip(slug(key), path, words)
    for line in lines:
        raise ValueError(f"{lbl} lists {line!r}, which {name}.tsv does not")


def write_given_weights(args, writer: CorpusWriter, classes: dict) -> None:
    """Give each training clip that is there its weight of --weights.

    Raises:
        ValueError: A line is no number from 0 up, or there is not one for each clip.
    """
    words = args.weights.read_text(encoding="utf-8-sig").split()
    try:
        weights = [float(word) for word in words]
    except ValueError as error:
        raise ValueError(
            f"{args.weights} must hold one number a line ({error})"
        ) from None
    if not all(weight >= 0 and math.isfinite(weight) for weight in weights):
        raise ValueError(f"{args.weights} has a weight that is negative or not finite")
    clips = list(labelled_clips(args.corpus_dir, "train", args.audio_root, classes))
    if len(clips) != len(weights):
        raise ValueError(
            f"{args.weights} has {len(weights)} weights, train.tsv {len(clips)} clips: "
            "there must be one for each"
        )
    rows = sorted(
        (clip.key, f"{weight:.9g}")
        for clip, weight in zip(clips, weights, strict=True)
        if writer.exists(clip.path)
    )
    write_table(args.datadir / args.name / "train" / WEIGHT_FILE, rows)


def main(argv=None) -> None:
    """Write all splits below --datadir."""
    parser = corpus_parser(__doc__)
    add = parser.add_argument
    add("--name", default="manifest", help="name of the labelled set [manifest]")
    add("--audio_root", help="where the audio is [line 1 of each tsv]")
    add("--label_descriptors", type=Path, help="[label_descriptors.csv]")
    add("--weights", type=Path, help="sampling weights of the training clips")
    add("--task", choices=TASKS, default=TASKS[0], help="[multi_label]")
    args = parse(parser, argv, EXPECTED)
    folder = args.corpus_dir
    names = [name for name in SPLITS if (folder / f"{name}.tsv").is_file()]
    if "train" not in names:
        raise ValueError(f"{folder} holds no train.tsv; expected: {EXPECTED}")
    if {"eval", "test"} <= set(names):
        raise ValueError(f"{folder} holds eval.tsv and test.tsv: keep one")
    writer = CorpusWriter(args.datadir, EXPECTED)
    if not (folder / "train.lbl").is_file():
        for name in names:
            rows = read_tsv(folder / f"{name}.tsv", args.audio_root)
            clips = (Clip(slug(os.path.splitext(row[0])[0]), row[1]) for row in rows)
            split = "train" if name == "train" else "valid"
            writer.add(f"pretrain/{split}", clips, labelled=False)
        writer.finish([])
        return
    if len(names) == 1:
        raise ValueError(f"{folder} holds train.tsv only; {EXPECTED}")
    table = args.label_descriptors or folder / "label_descriptors.csv"
    classes = read_class_table(
        table,
        "it gives the order of the classes; name its file (for AudioSet "
        "class_labels_indices.csv) by --label_descriptors",
    )
    for name in names:
        clips = labelled_clips(folder, name, args.audio_root, classes)
        writer.add(f"{args.name}/{SPLITS[name]}", clips)
    writer.classes(args.name, classes)
    if args.weights:
        write_given_weights(args, writer, classes)
    splits = [SPLITS[name] for name in names]
    writer.finish([Downstream.of_set(args.name, args.task, splits)])


if __name__ == "__main__":
    run_main(main)
