#!/usr/bin/env python3
"""Prepare URBAN-SED: audio/{train,validate,test} and annotations/{train,validate,test}.

The labels of a clip are those of the events in its annotation file (.txt, else .jams),
without the background. urbansed/{train,valid,test}; which of validation and test the
authors of SSLAM report is not known, so both are scored.
"""

from collections.abc import Iterator
from pathlib import Path

from corpus_command import corpus_parser, parse
from event_files import FORMS, read_event_labels

from espnet2_sslam.bin.cli import run_main
from espnet2_sslam.corpus import Clip, CorpusWriter, Downstream, slug

SPLITS = {"train": "train", "valid": "validate", "test": "test"}
CLASSES = [
    "air_conditioner",
    "car_horn",
    "children_playing",
    "dog_bark",
    "drilling",
    "engine_idling",
    "gun_shot",
    "jackhammer",
    "siren",
    "street_music",
]
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


def annotation_files(folder: Path) -> dict[str, Path]:
    """Annotation file of each clip, the simplest form where there are several."""
    found: dict[str, Path] = {}
    for form in reversed(FORMS):
        for path in sorted(folder.glob(f"*{form}")):
            if not path.name.startswith("."):
                found[path.stem] = path
    return found


def read_split(root: Path, name: str, writer: CorpusWriter) -> Iterator[Clip]:
    """Clips of a split that have an annotation; others are noted."""
    annotations = annotation_files(root / "annotations" / name)
    for stem in sorted(annotations):
        labels = read_event_labels(annotations[stem])
        unknown = sorted(set(labels) - set(CLASSES))
        if unknown:
            raise ValueError(
                f"{annotations[stem]}: the label {unknown[0]!r} is none of URBAN-SED's "
                "ten; correct the file"
            )
        path = root / "audio" / name / f"{stem}.wav"
        yield Clip(slug(stem), str(path), " ".join(labels))
    bare = {path.stem for path in (root / "audio" / name).glob("*.wav")}
    bare = {stem for stem in bare if not stem.startswith(".")} - set(annotations)
    if bare:
        writer.note(
            f"urbansed: {len(bare)} clips in audio/{name} have no annotation and are "
            f"not used, as {min(bare)}"
        )


def main(argv=None) -> None:
    """Write all splits below --datadir."""
    args = parse(corpus_parser(__doc__), argv)
    root = find_root(args.corpus_dir.resolve())
    writer = CorpusWriter(args.datadir, EXPECTED)
    for split, name in SPLITS.items():
        writer.add(f"urbansed/{split}", read_split(root, name, writer))
    writer.classes("urbansed", {name: name for name in CLASSES})
    train, valid, test = (f"urbansed/{split}" for split in SPLITS)
    writer.finish([Downstream("urbansed", "multi_label", train, valid, [test, valid])])


if __name__ == "__main__":
    run_main(main)
