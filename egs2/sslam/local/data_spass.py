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

from corpus_command import corpus_parser, parse, read_rows

from espnet2_sslam.bin.cli import run_main
from espnet2_sslam.corpus import (
    Clip,
    CorpusWriter,
    Downstream,
    label_name,
    label_word,
    slug,
)

SCENES = {
    "market": "1_MatrixLabelsMarket.csv",
    "park": "2_MatrixLabelsPark.csv",
    "square": "3_MatrixLabelsSquare.csv",
    "street": "4_MatrixLabelsStreet.csv",
    "waterfront": "5_MatrixLabelsWaterfront.csv",
}
TRAIN_SHARE = 0.75
COLUMNS = ("audio_filename", "class")
EXPECTED = (
    "--corpus_dir with SPASS_META_DATA/1_MatrixLabelsMarket.csv ... and "
    "Market_audio_files/ ... (blanks instead of `_` are fine)"
)


def plain(name: str) -> str:
    """A name without case and with `_` for blanks, to compare folders with."""
    return "_".join(name.lower().split())


def find_entry(folder: Path, name: str) -> Path:
    """The entry of this name (case and blanks aside) down to two levels below.

    Raises:
        ValueError: It is not there.
    """
    for pattern in ("*", "*/*", "*/*/*"):
        for path in sorted(folder.glob(pattern)):
            if plain(path.name) == plain(name):
                return path
    raise ValueError(f"{name} is not in {folder}; expected: {EXPECTED}")


def read_labels(path: Path) -> dict[str, list[str]]:
    """Labels (each once) of every audio file of a table.

    Raises:
        ValueError: Missing columns, or a row without a file name.
    """
    labels: dict[str, list[str]] = {}
    for row in read_rows(path, COLUMNS):
        name, label = (row[column] for column in COLUMNS)
        if not name:
            raise ValueError(f"{path}, line {row['line']}: no audio_filename")
        of_clip = labels.setdefault(name, [])
        if label and label_word(label) not in of_clip:
            of_clip.append(label_word(label))
    if len(labels) < 2:
        raise ValueError(f"{path} lists {len(labels)} clip(s), two or more are needed")
    return labels


def clip_path(folder: Path, name: str) -> str:
    """Path of a clip, whose file may have `_` where the table has blanks."""
    path = folder / name
    if not path.is_file() and (folder / name.replace(" ", "_")).is_file():
        path = folder / name.replace(" ", "_")
    return str(path)


def prepare_scene(scene: str, corpus_dir: Path, writer: CorpusWriter) -> Downstream:
    """Write the two splits of one scene."""
    labels = read_labels(find_entry(corpus_dir, SCENES[scene]))
    folder = find_entry(corpus_dir, f"{scene}_audio_files")
    names = sorted(labels)
    cut = int(len(names) * TRAIN_SHARE)
    parts = {"train": names[:cut], "test": names[cut:]}
    for split, of_split in parts.items():
        clips = [
            Clip(
                slug(f"{scene}-{os.path.splitext(name)[0]}"),
                clip_path(folder, name),
                " ".join(labels[name]),
            )
            for name in of_split
        ]
        writer.add(f"spass_{scene}/{split}", clips)
    classes = sorted({label for name in names for label in labels[name]})
    names = {word: label_name(word) for word in classes}
    writer.classes(f"spass_{scene}", names)
    # What is odd about a scene is said, not dropped.
    trained = {label for name in parts["train"] for label in labels[name]}
    tested = {label for name in parts["test"] for label in labels[name]}
    if tested - trained:
        only = ", ".join(sorted(tested - trained))
        writer.note(f"spass_{scene}: only test clips have the label(s) {only}")
    bare = [name for name in labels if not labels[name]]
    if bare:
        writer.note(f"spass_{scene}: {len(bare)} clips have no label, as {bare[0]}")
    known = {plain(name) for name in labels}
    extra = [p.name for p in folder.glob("*.wav") if plain(p.name) not in known]
    if extra:
        writer.note(
            f"spass_{scene}: {len(extra)} audio files are not in the table and not "
            f"used, as {min(extra)}"
        )
    return Downstream.of_set(f"spass_{scene}", "multi_label", parts)


def main(argv=None) -> None:
    """Write all scenes below --datadir."""
    parser = corpus_parser(__doc__)
    add = parser.add_argument
    add("--scenes", nargs="+", choices=tuple(SCENES), default=list(SCENES))
    args = parse(parser, argv, EXPECTED)
    writer = CorpusWriter(args.datadir, EXPECTED)
    scenes = [scene for scene in SCENES if scene in args.scenes]
    writer.finish([prepare_scene(scene, args.corpus_dir, writer) for scene in scenes])


if __name__ == "__main__":
    run_main(main)
