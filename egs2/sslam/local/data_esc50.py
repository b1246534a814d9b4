#!/usr/bin/env python3
"""Prepare ESC-50 from its own layout: meta/esc50.csv and audio/.

With all five official folds there, these are used. With some of them only, folds are
made anew: clips of one source recording (src_file) stay together and classes are
balanced. Each fold is a training run, esc50/fold<k>/{train,test}; ESC-50 has no
validation split, so the test clips are also what validation reports on (training
stops after a fixed number of epochs, and last and best are reported separately).

Pre-training uses no labels; pretrain/{train,valid} hold all clips of the corpus, a
share of the recordings kept for valid. So the test clips of every fold are seen,
without labels, in pre-training, as ESC-50 has no other audio. The data report says so.
"""

from pathlib import Path

import numpy as np
from corpus_command import begin, read_rows, write_pretrain

from espnet2_sslam.bin.cli import run_main
from espnet2_sslam.corpus import (
    Clip,
    Downstream,
    hold_out,
    label_word,
    partition_groups,
    slug,
)

COLUMNS = ("filename", "fold", "category", "src_file")
EXPECTED = (
    "--corpus_dir with meta/esc50.csv and audio/ of ESC-50 "
    "(https://github.com/karolpiczak/ESC-50)"
)


def read_metadata(folder: Path) -> dict[str, dict[str, str]]:
    """Read the rows of meta/esc50.csv by clip id."""
    path = folder / "meta" / "esc50.csv"
    if not path.is_file():
        raise ValueError(f"{path} is missing; expected: {EXPECTED}")
    rows: dict[str, dict[str, str]] = {}
    for where, row in read_rows(path, COLUMNS):
        key = Path(row["filename"]).stem
        if not all(row[name] for name in COLUMNS):
            raise ValueError(f"{where}: one of {', '.join(COLUMNS)} is empty")
        if not row["fold"].isdigit():
            raise ValueError(f"{where}: the fold {row['fold']!r} is not a number")
        if key in rows:
            raise ValueError(f"{where}: the clip {key!r} occurs twice")
        rows[key] = row
    if not rows:
        raise ValueError(f"{path} lists no clip")
    return rows


def main(argv=None) -> None:
    """Write all splits below --datadir."""
    args, writer = begin(
        *(argv, __doc__, EXPECTED),
        num_folds=(5, "folds to make when some are missing"),
        valid_share=(0.1, "share of clips held out in pre-training"),
        seed=(0, "of folds and of what is held out"),
    )
    if args.num_folds < 2:
        raise ValueError(f"--num_folds must be at least 2, got {args.num_folds}")
    rng = np.random.default_rng(args.seed)
    clips, folds, names = {}, {}, {}
    for key, row in read_metadata(args.corpus_dir).items():
        path = str(args.corpus_dir / "audio" / row["filename"])
        word = label_word(row["category"])
        names[word] = row["category"].replace("_", " ")
        clips[key] = Clip(key, path, word, row["src_file"])
        folds[key] = int(row["fold"])
    note = "esc50: the official five folds"
    if set(folds.values()) != {1, 2, 3, 4, 5}:
        note = (
            "esc50: only the official fold(s) "
            f"{', '.join(map(str, sorted(set(folds.values()))))} are there, so "
            f"{args.num_folds} folds were made anew, grouped by src_file"
        )
        sources = {key: clip.speaker for key, clip in clips.items()}
        labels = {key: [clip.labels] for key, clip in clips.items()}
        parts = partition_groups(sources, labels, [1.0] * args.num_folds, rng)
        folds = {key: part + 1 for key, part in parts.items()}
    writer.note(note)
    by_fold = {
        fold: [clip for key, clip in clips.items() if folds[key] == fold]
        for fold in sorted(set(folds.values()))
    }
    for fold, of_fold in by_fold.items():
        lacking = sorted(set(names) - {clip.labels for clip in of_fold})
        if lacking:
            writer.note(f"esc50: fold {fold} has no clip of {', '.join(lacking)}")
    writer.note(
        "esc50: pretrain/train and pretrain/valid hold all clips of the corpus without "
        "labels, test clips included"
    )
    clips = {key: c._replace(speaker=slug(c.speaker)) for key, c in clips.items()}
    sources = {key: clip.speaker for key, clip in clips.items()}
    write_pretrain(writer, clips.values(), hold_out(sources, args.valid_share, rng))
    runs = []
    for fold in by_fold:
        name = f"esc50/fold{fold}"
        train = [clip for key, clip in clips.items() if folds[key] != fold]
        test = [clip for key, clip in clips.items() if folds[key] == fold]
        for split, of_split in (("train", train), ("test", test)):
            writer.add(f"{name}/{split}", of_split, known_to_exist=True)
        runs.append(Downstream.of_set(name, "multi_class", ("train", "test")))
    writer.classes("esc50", dict(sorted(names.items())))
    writer.finish(runs)


if __name__ == "__main__":
    run_main(main)
