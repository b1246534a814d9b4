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

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from corpus_command import corpus_parser, parse, read_rows

from espnet2_sslam.bin.cli import run_main
from espnet2_sslam.corpus import (
    Clip,
    CorpusWriter,
    Downstream,
    hold_out,
    partition_groups,
    slug,
)

COLUMNS = ("filename", "fold", "category", "src_file")
OFFICIAL_FOLDS = {1, 2, 3, 4, 5}


def read_metadata(corpus_dir: Path) -> dict[str, dict[str, str]]:
    """Read the rows of meta/esc50.csv by clip id.

    Raises:
        ValueError: Missing file or columns, a clip twice, a fold that is no number.
    """
    path = corpus_dir / "meta" / "esc50.csv"
    if not path.is_file():
        raise ValueError(
            f"{path} is missing: --corpus_dir must be the directory of ESC-50 that "
            "holds meta/ and audio/ (https://github.com/karolpiczak/ESC-50)"
        )
    rows: dict[str, dict[str, str]] = {}
    for row in read_rows(path, COLUMNS):
        where = f"{path}, line {row['line']}"
        if not all(row[name] for name in COLUMNS):
            raise ValueError(f"{where}: one of {', '.join(COLUMNS)} is empty")
        if not row["fold"].isdigit():
            raise ValueError(f"{where}: the fold {row['fold']!r} is not a number")
        key = Path(row["filename"]).stem
        if key in rows:
            raise ValueError(f"{where}: the clip {key!r} occurs twice")
        rows[key] = row
    if not rows:
        raise ValueError(f"{path} lists no clip")
    return rows


def main(argv=None) -> None:
    """Write all splits below --datadir."""
    parser = corpus_parser(__doc__)
    add = parser.add_argument
    add("--num_folds", type=int, default=5, help="made when some are missing [5]")
    add("--valid_share", type=float, default=0.1, help="of pretrain/valid [0.1]")
    add("--seed", type=int, default=0, help="[0]")
    args = parse(parser, argv)
    if args.num_folds < 2:
        raise ValueError(f"--num_folds must be at least 2, got {args.num_folds}")
    corpus_dir = args.corpus_dir.resolve()
    rows = read_metadata(corpus_dir)
    labels = {key: slug(row["category"]) for key, row in rows.items()}
    rng = np.random.default_rng(args.seed)
    folds = {key: int(row["fold"]) for key, row in rows.items()}
    note = "esc50: the official five folds"
    if set(folds.values()) != OFFICIAL_FOLDS:
        note = (
            "esc50: only the official fold(s) "
            f"{', '.join(map(str, sorted(set(folds.values()))))} are there, so "
            f"{args.num_folds} folds were made anew, grouped by src_file"
        )
        groups = {key: row["src_file"] for key, row in rows.items()}
        words = {key: [label] for key, label in labels.items()}
        parts = partition_groups(groups, words, [1.0] * args.num_folds, rng)
        folds = {key: part + 1 for key, part in parts.items()}

    writer = CorpusWriter(args.datadir)
    writer.note(note)
    classes = sorted(set(labels.values()))
    for fold in sorted(set(folds.values())):
        present = {labels[key] for key in rows if folds[key] == fold}
        if present != set(classes):
            lacking = ", ".join(sorted(set(classes) - present))
            writer.note(f"esc50: fold {fold} has no clip of {lacking}")
    writer.note(
        "esc50: pretrain/train and pretrain/valid hold all clips of the corpus without "
        "labels, test clips included"
    )
    clips = {
        key: Clip(
            key,
            str(corpus_dir / "audio" / row["filename"]),
            labels[key],
            slug(row["src_file"]),
        )
        for key, row in rows.items()
    }

    def write(split: str, keys: Iterable[str], labelled: bool) -> None:
        # Lost files are found, listed and counted when the audio is formatted.
        chosen = [clips[key] for key in keys]
        writer.add(split, chosen, labelled=labelled, known_to_exist=True)

    sources = {key: clip.speaker for key, clip in clips.items()}
    held_out = hold_out(sources, args.valid_share, rng)
    for part, name in enumerate(("pretrain/train", "pretrain/valid")):
        write(name, (key for key in clips if held_out[key] == part), labelled=False)
    runs = []
    for fold in sorted(set(folds.values())):
        train, test = f"esc50/fold{fold}/train", f"esc50/fold{fold}/test"
        write(train, (key for key in clips if folds[key] != fold), labelled=True)
        write(test, (key for key in clips if folds[key] == fold), labelled=True)
        runs.append(Downstream(f"esc50/fold{fold}", "multi_class", train, test, [test]))
    writer.classes("esc50", classes)
    writer.finish(runs)


if __name__ == "__main__":
    run_main(main)
