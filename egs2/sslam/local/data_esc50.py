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

import argparse
import csv
import logging
from collections import Counter
from pathlib import Path

import numpy as np

from espnet2_sslam.bin.cli import run_main
from espnet2_sslam.corpus import (
    CLASS_FILE,
    Downstream,
    begin_corpus,
    finish_corpus,
    hold_out,
    partition_groups,
    slug,
    write_atomically,
    write_split,
)

COLUMNS = ("filename", "fold", "category", "src_file")
OFFICIAL_FOLDS = {1, 2, 3, 4, 5}
PRETRAIN_NOTE = (
    "esc50: pretrain/train and pretrain/valid hold all clips of the corpus without "
    "labels, test clips included"
)


def read_metadata(corpus_dir: Path) -> dict:
    """Rows of meta/esc50.csv by clip id.

    Raises:
        ValueError: Missing file or columns, a clip twice, a fold that is no number.
    """
    path = corpus_dir / "meta" / "esc50.csv"
    if not path.is_file():
        raise ValueError(
            f"{path} is missing: --corpus_dir must be the directory of ESC-50 that "
            "holds meta/ and audio/ (https://github.com/karolpiczak/ESC-50)"
        )
    rows = {}
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or [])]
        if missing:
            raise ValueError(f"{path} lacks the column(s) {', '.join(missing)}")
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if any(not (row[name] or "").strip() for name in COLUMNS):
                raise ValueError(f"{where}: one of {', '.join(COLUMNS)} is empty")
            if not row["fold"].strip().isdigit():
                raise ValueError(f"{where}: the fold {row['fold']!r} is not a number")
            key = Path(row["filename"]).stem
            if key in rows:
                raise ValueError(f"{where}: the clip {key!r} occurs twice")
            rows[key] = row
    if not rows:
        raise ValueError(f"{path} lists no clip")
    return rows


def choose_folds(rows: dict, num_folds: int, rng) -> tuple:
    """Fold of each clip, and a note on where the folds come from."""
    official = {key: int(row["fold"]) for key, row in rows.items()}
    there = sorted(set(official.values()))
    if set(there) == OFFICIAL_FOLDS:
        return official, "esc50: the official five folds"
    groups = {key: row["src_file"].strip() for key, row in rows.items()}
    labels = {key: [slug(row["category"])] for key, row in rows.items()}
    parts = partition_groups(groups, labels, [1.0] * num_folds, rng)
    note = (
        f"esc50: only the official fold(s) {', '.join(map(str, there))} are there, so "
        f"{num_folds} folds were made anew, grouped by src_file"
    )
    return {key: part + 1 for key, part in parts.items()}, note


def missing_classes(rows: dict, folds: dict) -> list:
    """A note for every fold without a clip of some class."""
    classes = {slug(row["category"]) for row in rows.values()}
    notes = []
    for fold in sorted(set(folds.values())):
        there = {slug(rows[key]["category"]) for key in rows if folds[key] == fold}
        if classes - there:
            lacking = ", ".join(sorted(classes - there))
            notes.append(f"esc50: fold {fold} has no clip of {lacking}")
    return notes


def prepare(
    corpus_dir: Path, datadir: Path, num_folds: int, valid_share: float, seed: int
) -> None:
    """Write all splits below `datadir`."""
    if num_folds < 2:
        raise ValueError(f"--num_folds must be at least 2, got {num_folds}")
    if not 0 < valid_share < 1:
        raise ValueError(f"--valid_share must be between 0 and 1, got {valid_share:g}")
    corpus_dir = corpus_dir.resolve()
    rows = read_metadata(corpus_dir)
    rng = np.random.default_rng(seed)
    folds, note = choose_folds(rows, num_folds, rng)
    notes = [note, *missing_classes(rows, folds), PRETRAIN_NOTE]
    wav = {
        key: str(corpus_dir / "audio" / row["filename"]) for key, row in rows.items()
    }
    sources = {key: slug(row["src_file"]) for key, row in rows.items()}
    labels = {key: [slug(row["category"])] for key, row in rows.items()}

    begin_corpus(datadir)
    splits = {}
    held_out = hold_out(sources, valid_share, rng)
    for part, name in enumerate(("pretrain/train", "pretrain/valid")):
        splits[name] = [key for key in wav if held_out[key] == part]
        write_split(datadir / name, {key: wav[key] for key in splits[name]}, sources)
    runs = []
    for fold in sorted(set(folds.values())):
        train, test = f"esc50/fold{fold}/train", f"esc50/fold{fold}/test"
        splits[train] = [key for key in wav if folds[key] != fold]
        splits[test] = [key for key in wav if folds[key] == fold]
        for name in (train, test):
            clips = {key: wav[key] for key in splits[name]}
            write_split(datadir / name, clips, sources, labels)
        runs.append(Downstream(f"esc50/fold{fold}", "multi_class", train, test, [test]))
    classes = sorted({label for [label] in labels.values()})
    write_atomically(datadir / "esc50" / CLASS_FILE, "\n".join(classes) + "\n")
    finish_corpus(datadir, splits, runs, "\n".join(notes))
    sizes = Counter(folds.values())
    logging.info(
        "%d clips, %d classes, folds of %s clips; %s",
        len(rows),
        len(classes),
        ", ".join(str(sizes[fold]) for fold in sorted(sizes)),
        note,
    )


def get_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--corpus_dir", type=Path, required=True)
    parser.add_argument("--datadir", type=Path, default=Path("data"))
    parser.add_argument(
        "--num_folds", type=int, default=5, help="folds to make when some are missing"
    )
    parser.add_argument(
        "--valid_share",
        type=float,
        default=0.1,
        help="share of the clips held out for pretrain/valid",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--nj", type=int, default=1, help="not needed here")
    return parser


def main(argv=None) -> None:
    """Entry point."""
    args = get_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    prepare(args.corpus_dir, args.datadir, args.num_folds, args.valid_share, args.seed)


if __name__ == "__main__":
    run_main(main)
