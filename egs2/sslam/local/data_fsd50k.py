#!/usr/bin/env python3
"""Prepare FSD50K: FSD50K.{dev_audio,eval_audio,ground_truth}, in its own splits.

fsd50k/{train,valid,test} are the official train and val parts of the development set
and the evaluation set. Labels are the 200 words of ground_truth/vocabulary.csv in its
order, propagated upwards in the ontology as in the official files.
"""

from corpus_command import begin, known_labels, read_class_table, read_rows, write_set

from espnet2_sslam.bin.cli import run_main
from espnet2_sslam.corpus import Clip

SPLITS = {"train": "train", "val": "valid"}  # of dev.csv
EXPECTED = (
    "--corpus_dir with FSD50K.dev_audio/, FSD50K.eval_audio/ and FSD50K.ground_truth/ "
    "(dev.csv, eval.csv, vocabulary.csv)"
)


def main(argv=None) -> None:
    """Write all splits below --datadir."""
    args, writer = begin(argv, __doc__, EXPECTED)
    truth = args.corpus_dir / "FSD50K.ground_truth"
    classes = read_class_table(truth / "vocabulary.csv", EXPECTED)
    clips: dict[str, list[Clip]] = {"train": [], "valid": [], "test": []}
    for part, more in (("dev", ["split"]), ("eval", [])):
        for where, row in read_rows(truth / f"{part}.csv", ["fname", "labels", *more]):
            split = SPLITS.get(row["split"]) if part == "dev" else "test"
            if split is None:
                raise ValueError(
                    f"{where}: the split is {row['split']!r}, not train or val"
                )
            words = row["labels"].split(",")
            labels = known_labels(words, classes, where, "vocabulary.csv")
            audio = args.corpus_dir / f"FSD50K.{part}_audio" / f"{row['fname']}.wav"
            clips[split].append(Clip(f"{part}-{row['fname']}", str(audio), labels))
    names = {name: name.replace("_", " ") for name in classes}
    writer.finish([write_set(writer, "fsd50k", "multi_label", clips, names)])


if __name__ == "__main__":
    run_main(main)
