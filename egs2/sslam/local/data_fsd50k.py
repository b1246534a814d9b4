#!/usr/bin/env python3
"""Prepare FSD50K: FSD50K.{dev_audio,eval_audio,ground_truth}, in its own splits.

fsd50k/{train,valid,test} are the official train and val parts of the development set
and the evaluation set. Labels are the 200 words of ground_truth/vocabulary.csv in its
order, propagated upwards in the ontology as in the official files.
"""

import csv
from pathlib import Path

from corpus_command import corpus_parser, parse, read_rows

from espnet2_sslam.bin.cli import run_main
from espnet2_sslam.corpus import Clip, CorpusWriter, Downstream, unique_words

SPLITS = {"train": "train", "val": "valid"}  # of dev.csv
EXPECTED = (
    "--corpus_dir with FSD50K.dev_audio/, FSD50K.eval_audio/ and FSD50K.ground_truth/ "
    "(dev.csv, eval.csv, vocabulary.csv)"
)


def read_vocabulary(path: Path) -> list[str]:
    """Read the labels in class order: `index,label,mid` without header.

    Raises:
        ValueError: Not such a file.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing; expected: {EXPECTED}")
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = [row for row in csv.reader(file) if row and row[0].strip().isdigit()]
    labels = [row[1].strip() for row in sorted(rows, key=lambda row: int(row[0]))]
    if not labels or len(set(labels)) != len(labels):
        raise ValueError(f"{path} is not a list of index,label,mid with unique labels")
    return labels


def read_clips(root: Path, classes: list[str]) -> dict[str, list[Clip]]:
    """Read the clips of each split.

    Raises:
        ValueError: An unknown split or label.
    """
    clips: dict[str, list[Clip]] = {"train": [], "valid": [], "test": []}
    for part in ("dev", "eval"):
        path = root / "FSD50K.ground_truth" / f"{part}.csv"
        columns = ("fname", "labels", "split")[: 3 if part == "dev" else 2]
        for row in read_rows(path, columns):
            name = row["fname"]
            split = SPLITS.get(row["split"]) if part == "dev" else "test"
            if split is None:
                raise ValueError(
                    f"{path}: {name} is in the split {row['split']!r}, train and val "
                    "are known"
                )
            labels = unique_words(row["labels"].split(","))
            unknown = [label for label in labels if label not in classes]
            if unknown:
                raise ValueError(
                    f"{path}: the label {unknown[0]!r} of {name} is not in "
                    "vocabulary.csv"
                )
            audio = root / f"FSD50K.{part}_audio" / f"{name}.wav"
            clips[split].append(Clip(f"{part}-{name}", str(audio), " ".join(labels)))
    return clips


def main(argv=None) -> None:
    """Write all splits below --datadir."""
    args = parse(corpus_parser(__doc__), argv)
    root = args.corpus_dir.resolve()
    writer = CorpusWriter(args.datadir, EXPECTED)
    classes = read_vocabulary(root / "FSD50K.ground_truth" / "vocabulary.csv")
    for split, clips in read_clips(root, classes).items():
        writer.add(f"fsd50k/{split}", clips)
    writer.classes("fsd50k", {name: name.replace("_", " ") for name in classes})
    train, valid, test = (f"fsd50k/{split}" for split in ("train", "valid", "test"))
    writer.finish([Downstream("fsd50k", "multi_label", train, valid, [test])])


if __name__ == "__main__":
    run_main(main)
