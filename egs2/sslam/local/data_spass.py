#!/usr/bin/env python3
"""Prepare SPASS, each of its five scenes as a benchmark of its own.

--corpus_dir holds, directly or in a folder such as SPASS_META_DATA, the tables
1_MatrixLabelsMarket.csv ... 5_MatrixLabelsWaterfront.csv (columns audio_filename and
class, one row for each event) and for each scene the folder of its audio, `Market audio
files` or Market_audio_files.

spass_<scene>/{train,test}: as the authors split, the first 75 % of the names in sorted
order are for training. There is no validation split: the test clips are also what
validation reports on, so last and best are reported separately. Classes are sorted (the
authors' order was arbitrary and differed from run to run).
"""

import os
from pathlib import Path

from corpus_command import begin, read_rows, write_set

from espnet2_sslam.bin.cli import run_main
from espnet2_sslam.corpus import Clip, Downstream, label_name, slug, unique_words

SCENES = ("market", "park", "square", "street", "waterfront")
TRAIN_SHARE = 0.75
EXPECTED = (
    "--corpus_dir with SPASS_META_DATA/1_MatrixLabelsMarket.csv ... and "
    "Market_audio_files/ ... (blanks instead of `_` are fine)"
)


def plain(name: str) -> str:
    """A name without case and with `_` for blanks, to compare files with."""
    return "_".join(name.lower().split())


def find_entry(folder: Path, name: str) -> Path:
    """The entry of this name (case and blanks aside) down to two levels below."""
    for pattern in ("*", "*/*", "*/*/*"):
        for path in sorted(folder.glob(pattern)):
            if plain(path.name) == plain(name):
                return path
    raise ValueError(f"{name} is not in {folder}; expected: {EXPECTED}")


def prepare_scene(scene: str, corpus_dir: Path, writer) -> Downstream:
    """Write the two splits of one scene, and note what is odd about it."""
    number, name = SCENES.index(scene) + 1, f"spass_{scene}"
    table = find_entry(corpus_dir, f"{number}_MatrixLabels{scene.title()}.csv")
    folder = find_entry(corpus_dir, f"{scene}_audio_files")
    events: dict[str, list[str]] = {}
    for where, row in read_rows(table, ("audio_filename", "class")):
        if not row["audio_filename"]:
            raise ValueError(f"{where}: no audio_filename")
        events.setdefault(row["audio_filename"], []).append(row["class"])
    if len(events) < 2:
        raise ValueError(f"{table} lists {len(events)} clip(s), two or more are needed")
    labels = {clip: unique_words(names) for clip, names in events.items()}
    clips = []
    for clip in sorted(labels):
        path = folder / clip
        if not path.is_file() and (folder / clip.replace(" ", "_")).is_file():
            path = folder / clip.replace(" ", "_")
        key = slug(f"{scene}-{os.path.splitext(clip)[0]}")
        clips.append(Clip(key, str(path), " ".join(labels[clip])))
    cut = int(len(clips) * TRAIN_SHARE)
    splits = {"train": clips[:cut], "test": clips[cut:]}
    words = {
        split: {word for clip in of_split for word in clip.labels.split()}
        for split, of_split in splits.items()
    }
    classes = {
        word: label_name(word) for word in sorted(words["train"] | words["test"])
    }
    run = write_set(writer, name, "multi_label", splits, classes)
    if only := sorted(words["test"] - words["train"]):
        writer.note(f"{name}: only test clips have the label(s) {', '.join(only)}")
    if bare := [clip for clip in labels if not labels[clip]]:
        writer.note(f"{name}: {len(bare)} clips have no label, as {bare[0]}")
    known = {plain(clip) for clip in labels}
    if extra := [p.name for p in folder.glob("*.wav") if plain(p.name) not in known]:
        writer.note(
            f"{name}: {len(extra)} audio files are not in the table and not used, as "
            f"{min(extra)}"
        )
    return run


def main(argv=None) -> None:
    """Write all scenes below --datadir."""
    args, writer = begin(
        argv, __doc__, EXPECTED, scenes=(list(SCENES), "scenes to prepare", SCENES)
    )
    scenes = [scene for scene in SCENES if scene in args.scenes]
    writer.finish([prepare_scene(scene, args.corpus_dir, writer) for scene in scenes])


if __name__ == "__main__":
    run_main(main)
