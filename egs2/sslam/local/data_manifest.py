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
from pathlib import Path

from corpus_command import begin, known_labels, read_class_table, write_set

from espnet2_sslam.bin.cli import run_main
from espnet2_sslam.corpus import (
    TASKS,
    WEIGHT_FILE,
    Clip,
    clip_ids,
    read_text,
    write_table,
)

SPLITS = {"train": "train", "valid": "valid", "eval": "test", "test": "test"}
EXPECTED = "--corpus_dir with train.tsv, train.lbl, eval.tsv, eval.lbl and the audio"


def read_tsv(path: Path, audio_root: str | None) -> list[tuple[str, str]]:
    """Relative and whole path of each clip."""
    first, *lines = read_text(path).splitlines() or [""]
    root = audio_root or first
    if not root.strip() or "\t" in root:
        raise ValueError(f"{path}, line 1 must be the root of the audio: {root!r}")
    clips = []
    for number, line in enumerate(lines, 2):
        relative, *rest = line.split("\t")
        if line.strip() and (len(rest) != 1 or not rest[0].strip().isdigit()):
            raise ValueError(f"{path}, line {number}: {line!r} is not path and number")
        if line.strip():
            clips.append((relative, os.path.join(root, relative)))
    return clips


def labelled_clips(tsv: Path, audio_root: str | None, classes) -> list[Clip]:
    """Clips of a split; their ids are names yet."""
    lbl = tsv.with_suffix(".lbl")
    lines = list(filter(str.strip, read_text(lbl).splitlines()))
    rows, clips = read_tsv(tsv, audio_root), []
    if len(lines) != len(rows):
        raise ValueError(
            f"{lbl} lists {len(lines)} clips and {tsv.name} {len(rows)}: both must "
            "list the same clips in order"
        )
    for (relative, path), line in zip(rows, lines, strict=True):
        key, _, labels = line.partition("\t")
        stem, suffix = os.path.splitext(relative)
        if key not in (stem, os.path.basename(stem), relative):
            raise ValueError(
                f"{tsv.name} has {relative} where {lbl} has {key}: both must list the "
                "same clips in order"
            )
        where, names = f"{lbl}: {key}", labels.split(",")
        words = known_labels(names, classes, where, "the label descriptors")
        # clip_ids cuts a suffix off, which must not be what follows a dot in the key.
        clips.append(Clip(key + (suffix or ".audio"), path, words))
    return clips


def with_ids(splits: dict[str, list[Clip]]) -> dict[str, list[Clip]]:
    """The clips of all splits with one word for each name: two names stay two ids."""
    ids = clip_ids(clip.key for clips in splits.values() for clip in clips)
    return {
        split: [clip._replace(key=ids[clip.key]) for clip in clips]
        for split, clips in splits.items()
    }


def read_weights(path: Path, count: int) -> list[float]:
    """The sampling weight of each line of train.tsv."""
    try:
        weights = [float(word) for word in read_text(path).split()]
    except ValueError as error:
        raise ValueError(f"{path} must hold one number a line ({error})") from None
    if not all(weight >= 0 and math.isfinite(weight) for weight in weights):
        raise ValueError(f"{path} has a weight that is negative or not finite")
    if len(weights) != count:
        raise ValueError(
            f"{path} has {len(weights)} weights, train.tsv {count} clips: there must "
            "be one for each"
        )
    return weights


def main(argv=None) -> None:
    """Write all splits below --datadir."""
    args, writer = begin(
        *(argv, __doc__, EXPECTED),
        name=("manifest", "name of the labelled set"),
        audio_root=(str, "where the audio is [line 1 of each tsv]"),
        label_descriptors=(Path, "[label_descriptors.csv]"),
        weights=(Path, "sampling weights of the training clips"),
        task=(TASKS[0], "several labels for a clip, or one", TASKS),
    )
    folder = args.corpus_dir
    tsvs = {name: folder / f"{name}.tsv" for name in SPLITS}
    tsvs = {name: path for name, path in tsvs.items() if path.is_file()}
    if "train" not in tsvs:
        raise ValueError(f"{folder} holds no train.tsv; expected: {EXPECTED}")
    if {"eval", "test"} <= set(tsvs):
        raise ValueError(f"{folder} holds eval.tsv and test.tsv: keep one")
    if not (folder / "train.lbl").is_file():
        named: dict[str, list[Clip]] = {}
        for name, path in tsvs.items():
            split = "train" if name == "train" else "valid"
            if split in named:
                writer.note(f"{path.name} is not used: valid.tsv is pretrain/valid")
            else:
                rows = read_tsv(path, args.audio_root)
                named[split] = [Clip(*row) for row in rows]
        for split, clips in with_ids(named).items():
            writer.add(f"pretrain/{split}", clips, labelled=False)
        writer.finish([])
        return
    if len(tsvs) == 1:
        raise ValueError(f"{folder} holds train.tsv only; {EXPECTED}")
    classes = read_class_table(
        args.label_descriptors or folder / "label_descriptors.csv",
        "it gives the order of the classes; name its file (for AudioSet "
        "class_labels_indices.csv) by --label_descriptors",
    )
    splits = {
        SPLITS[name]: labelled_clips(path, args.audio_root, classes)
        for name, path in tsvs.items()
    }
    splits = with_ids(splits)
    run = write_set(writer, args.name, args.task, splits, classes)
    if args.weights:
        weights = read_weights(args.weights, len(splits["train"]))
        rows = sorted(
            (clip.key, f"{weight:.9g}")
            for clip, weight in zip(splits["train"], weights, strict=True)
            if writer.exists(clip.path)
        )
        write_table(args.datadir / run.train / WEIGHT_FILE, rows)
    writer.finish([run])


if __name__ == "__main__":
    run_main(main)
