#!/usr/bin/env python3
"""Prepare URBAN-SED: audio/{train,validate,test} and annotations/{train,validate,test}.

The labels of a clip are those of the events in its annotation file (.txt, else .jams),
without the background. urbansed/{train,valid,test}; which of validation and test the
authors of SSLAM report is not known, so both are scored.
"""

from collections.abc import Iterator
from pathlib import Path

from corpus_command import corpus_parser, known_labels, parse
from event_files import FORMS, read_event_labels

from espnet2_sslam.bin.cli import run_main
from espnet2_sslam.corpus import Clip, CorpusWriter, Downstream, slug

SPLITS = {"train": "train", "valid": "validate", "test": "test"}
CLASSES = (
    "air_conditioner car_horn children_playing dog_bark drilling engine_idling "
    "gun_shot jackhammer siren street_music"
).split()
EXPECTED = (
    "--corpus_dir with audio/{train,validate,test}/*.wav and "
    "annotations/{train,validate,test}/*.txt (or .jams), as in URBAN-SED_v2.0.0"
)


def find_root(corpus_dir: Path) -> Path:
    """The folder with audio/ and annotations/.

    Raises:
        ValueError: There is none.
    """
    for folder in (corpus_dir, *sorted(corpus_dir.glob("URBAN-SED*"))):
        if (folder / "annotations").is_dir() and (folder / "audio").is_dir():
            return folder
    raise ValueError(f"{corpus_dir} holds no audio/ and annotations/: {EXPECTED}")


def read_split(root: Path, name: str, writer: CorpusWriter) -> Iterator[Clip]:
    """Clips of a split that have an annotation; others are noted."""
    files = (root / "annotations" / name).glob("[!.]*")
    # The simplest form, where a clip has several, overwrites the others.
    files = (path for path in files if path.suffix in FORMS)
    forms = sorted(files, key=lambda path: FORMS.index(path.suffix), reverse=True)
    annotations = {path.stem: path for path in forms}
    for stem, path in sorted(annotations.items()):
        labels = read_event_labels(path)
        words = known_labels(labels, CLASSES, path, "URBAN-SED's ten classes")
        yield Clip(slug(stem), str(root / "audio" / name / f"{stem}.wav"), words)
    bare = {path.stem for path in (root / "audio" / name).glob("[!.]*.wav")}
    bare -= set(annotations)
    if bare:
        writer.note(
            f"urbansed: {len(bare)} clips in audio/{name} have no annotation and are "
            f"not used, as {min(bare)}"
        )


def main(argv=None) -> None:
    """Write all splits below --datadir."""
    args = parse(corpus_parser(__doc__), argv, EXPECTED)
    root = find_root(args.corpus_dir)
    writer = CorpusWriter(args.datadir, EXPECTED)
    for split, name in SPLITS.items():
        writer.add(f"urbansed/{split}", read_split(root, name, writer))
    writer.classes("urbansed", {name: name for name in CLASSES})
    train, valid, test = (f"urbansed/{split}" for split in SPLITS)
    writer.finish([Downstream("urbansed", "multi_label", train, valid, [test, valid])])


if __name__ == "__main__":
    run_main(main)
