#!/usr/bin/env python3
"""Prepare URBAN-SED: audio/{train,validate,test} and annotations/{train,validate,test}.

The labels of a clip are those of the events in its annotation file (.txt, else .jams),
without the background. urbansed/{train,valid,test}; which of validation and test the
authors of SSLAM report is not known, so both are scored.
"""

from dataclasses import replace

from corpus_command import begin, known_labels, write_set
from event_files import FORMS, read_event_labels

from espnet2_sslam.bin.cli import run_main
from espnet2_sslam.corpus import Clip, slug

SPLITS = {"train": "train", "valid": "validate", "test": "test"}
CLASSES = (
    "air_conditioner car_horn children_playing dog_bark drilling engine_idling "
    "gun_shot jackhammer siren street_music"
).split()
EXPECTED = (
    "--corpus_dir with audio/{train,validate,test}/*.wav and "
    "annotations/{train,validate,test}/*.txt (or .jams), as in URBAN-SED_v2.0.0"
)


def read_clips(audio, annotations, writer):
    """Iterate over the clips of a split that have an annotation; others are noted."""
    files = [p for p in annotations.glob("[!.]*") if p.suffix in FORMS]
    # The simplest form, where a clip has several, overwrites the others.
    files.sort(key=lambda path: FORMS.index(path.suffix), reverse=True)
    by_clip = {path.stem: path for path in files}
    for stem, path in sorted(by_clip.items()):
        names = read_event_labels(path)
        labels = known_labels(names, CLASSES, path, "URBAN-SED's ten classes")
        yield Clip(slug(stem), str(audio / f"{stem}.wav"), labels)
    bare = {path.stem for path in audio.glob("[!.]*.wav")} - set(by_clip)
    if bare:
        writer.note(
            f"urbansed: {len(bare)} clips in audio/{audio.name} have no annotation and "
            f"are not used, as {min(bare)}"
        )


def main(argv=None) -> None:
    """Write all splits below --datadir."""
    args, writer = begin(argv, __doc__, EXPECTED)
    folders = (args.corpus_dir, *sorted(args.corpus_dir.glob("URBAN-SED*")))
    roots = [
        f for f in folders if (f / "annotations").is_dir() and (f / "audio").is_dir()
    ]
    if not roots:
        raise ValueError(
            f"{args.corpus_dir} holds no audio/ and annotations/: {EXPECTED}"
        )
    splits = {
        split: read_clips(
            roots[0] / "audio" / name, roots[0] / "annotations" / name, writer
        )
        for split, name in SPLITS.items()
    }
    classes = {name: name for name in CLASSES}
    run = write_set(writer, "urbansed", "multi_label", splits, classes)
    writer.finish([replace(run, tests=(*run.tests, run.valid))])


if __name__ == "__main__":
    run_main(main)
