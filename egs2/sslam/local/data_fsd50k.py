#!/usr/bin/env python3
"""Prepare FSD50K: FSD50K.{dev_audio,eval_audio,ground_truth}, in its own splits.

fsd50k/{train,valid,test} are the official train and val parts of the development set
and the evaluation set. Labels are the 200 words of ground_truth/vocabulary.csv in its
order, propagated upwards in the ontology as in the official files.
"""

from pathlib import Path

from corpus_command import (
    corpus_parser,
    known_labels,
    parse,
    read_class_table,
    read_rows,
)

from espnet2_sslam.bin.cli import run_main
from espnet2_sslam.corpus import Clip, CorpusWriter, Downstream

SPLITS = {"train": "train", "val": "valid"}  # of dev.csv
EXPECTED = (
    "--corpus_dir with FSD50K.dev_audio/, FSD50K.eval_audio/ and FSD50K.ground_truth/ "
    "(dev.csv, eval.csv, vocabulary.csv)"
)


def read_clips(root: Path, classes: dict[str, str]) -> dict[str, list[Clip]]:
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
            words = row["labels"].split(",")
            labels = known_labels(words, classes, f"{path}: {name}", "vocabulary.csv")
            audio = root / f"FSD50K.{part}_audio" / f"{name}.wav"
            clips[split].append(Clip(f"{part}-{name}", str(audio), labels))
    return clips


def main(argv=None) -> None:
    """Write all splits below --datadir."""
    args = parse(corpus_parser(__doc__), argv, EXPECTED)
    root = args.corpus_dir
    writer = CorpusWriter(args.datadir, EXPECTED)
    vocabulary = root / "FSD50K.ground_truth" / "vocabulary.csv"
    classes = read_class_table(vocabulary, EXPECTED)
    for split, clips in read_clips(root, classes).items():
        writer.add(f"fsd50k/{split}", clips)
    writer.classes("fsd50k", {name: name.replace("_", " ") for name in classes})
    splits = ("train", "valid", "test")
    writer.finish([Downstream.of_set("fsd50k", "multi_label", splits)])


if __name__ == "__main__":
    run_main(main)
