#!/usr/bin/env python3
"""Prepare IDMT-DESED-FL, whose layout we do not know: what is assumed is said here.

Known: it was made with scaper from DESED's ten classes. Not known: where to get it, its
folders, its number of clips. Accepted in --corpus_dir, at any depth:
- each clip's events in a file of the clip's name (.txt, .tsv, .csv or .jams, see
  local/event_files.py), beside the audio or in another folder, or
- tables of many clips, as in DESED: .tsv or .csv files with the columns filename,
  onset, offset, event_label.

The split of a clip is the first folder on its path named train, training, valid,
validation, val, dev, test, eval or evaluation. --make_split true makes 80/10/10 splits
by a seed instead, which are not the authors'. Without a validation split the test clips
are validated on.
"""

from collections import Counter
from pathlib import Path

import numpy as np
from corpus_command import begin, read_rows, write_set
from event_files import FORMS, read_event_labels

from espnet2_sslam.audio import SUFFIXES, find_audio, left_out_words
from espnet2_sslam.bin.cli import run_main
from espnet2_sslam.corpus import (
    Clip,
    clip_ids,
    label_name,
    partition_groups,
    unique_words,
)
from espnet2_sslam.corpus.tables import SPLITS as SPLIT_NAMES

SET = "idmt_desed_fl"
DESED_CLASSES = (
    "Alarm_bell_ringing Blender Cat Dishes Dog Electric_shaver_toothbrush Frying "
    "Running_water Speech Vacuum_cleaner"
).split()
SPLITS = ("train", "valid", "test")
EXPECTED = (
    "--corpus_dir with folders train/ and test/ (validation/ too, if there is one) of "
    "audio, and events of each clip in a .txt, .csv or .jams file of its name"
)


def is_table(path: Path) -> bool:
    """Whether a file has the header of a table of many clips."""
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        names = file.readline().strip().lower().replace("\t", ",").split(",")
    return "filename" in names and "event_label" in names


def split_of(path: Path) -> str:
    """The split that a folder on the path names, or ""."""
    names = [SPLIT_NAMES.get(part.lower()) for part in path.parts[:-1]]
    return next(filter(None, names), "")


def nearest(path: Path, candidates: list[Path]) -> Path:
    """The annotation of the clip's own split and the most folders in common."""

    def nearness(other: Path) -> tuple:
        shared = len(set(path.parts[:-1]) & set(other.parts[:-1]))
        form = -FORMS.index(other.suffix.lower())
        return split_of(other) == split_of(path), shared, form

    *others, best = sorted(candidates, key=nearness)
    if others and nearness(others[-1]) == nearness(best):
        raise ValueError(
            f"{path} could belong to {others[-1]} or {best}: keep one of them"
        )
    return best


def read_clips(root: Path, writer) -> tuple[dict[str, Clip], dict[str, str]]:
    """Clips with labels, and their splits, by id.

    Clips without annotation, and annotations without audio, are noted.
    """
    left_out: Counter = Counter()
    names = find_audio(root, left_out, FORMS)
    files = sorted(Path(name).relative_to(root) for name in names)
    audio = [path for path in files if path.suffix.lower() in SUFFIXES]
    if left_out:
        writer.note(f"{SET}: {left_out_words(left_out)}")
    events: dict[str, list[Path]] = {}
    tables: dict[str, list[str]] = {}
    for path in files:
        suffix = path.suffix.lower()
        if suffix in (".csv", ".tsv") and is_table(root / path):
            for where, row in read_rows(root / path, ("filename", "event_label")):
                if not row["filename"]:
                    raise ValueError(f"{where}: no filename")
                stem = Path(row["filename"]).stem
                tables.setdefault(stem, []).append(row["event_label"])
        elif suffix in FORMS:
            events.setdefault(path.stem, []).append(path)
    clips, splits, bare = {}, {}, []
    ids = clip_ids(path.as_posix() for path in audio)
    for path in audio:
        if path.stem in events:
            labels = read_event_labels(root / nearest(path, events[path.stem]))
        elif path.stem in tables:
            labels = sorted(unique_words(tables[path.stem]))
        else:
            bare.append(path)
            continue
        key = ids[path.as_posix()]
        clips[key] = Clip(key, str(root / path), " ".join(labels))
        splits[key] = split_of(path)
    if bare:
        writer.note(
            f"{SET}: {len(bare)} audio files have no annotation and are not used, as "
            f"{bare[0]}"
        )
    lost = sorted({*events, *tables} - {path.stem for path in audio})
    if lost:
        writer.note(f"{SET}: {len(lost)} annotated clips have no audio, as {lost[0]}")
    if not clips:
        raise ValueError(f"{root} holds no audio with annotations; {EXPECTED}")
    return clips, splits


def main(argv=None) -> None:
    """Write all splits below --datadir."""
    args, writer = begin(
        *(argv, __doc__, EXPECTED),
        make_split=("false", "make a split where there is none", ("true", "false")),
        seed=(0, "of --make_split"),
    )
    writer.note(
        f"{SET}: its layout is not documented; local/data_{SET}.py says what is assumed"
    )
    clips, splits = read_clips(args.corpus_dir, writer)
    if args.make_split == "true":
        labels = {key: clip.labels.split() for key, clip in clips.items()}
        rng = np.random.default_rng(args.seed)
        parts = partition_groups({key: key for key in clips}, labels, (8, 1, 1), rng)
        splits = {key: SPLITS[part] for key, part in parts.items()}
        writer.note(
            f"{SET}: split 80/10/10 by seed {args.seed}, not the authors' splits"
        )
    names = [name for name in SPLITS if name in splits.values()]
    if names[:1] != ["train"] or len(names) < 2:
        raise ValueError(
            f"{args.corpus_dir}: no folders named train and test (or eval) hold "
            "annotated audio; put the clips into such folders, or add --make_split true"
        )
    outside = [key for key, split in splits.items() if not split]
    if outside:
        writer.note(f"{SET}: {len(outside)} clips are in no split, as {outside[0]}")
    # DESED's own spelling and order, as far as the labels are DESED's.
    used = {label for clip in clips.values() for label in clip.labels.split()}
    known = {name.lower(): name for name in DESED_CLASSES}
    other = sorted(label for label in used if label.lower() not in known)
    if other:
        writer.note(f"{SET}: not among DESED's ten classes: {', '.join(other)}")
    spelt = {**known, **{label.lower(): label for label in sorted(used)}}
    classes = sorted(used) if other else [spelt[name] for name in sorted(known)]
    by_split = {
        name: [clip for key, clip in clips.items() if splits[key] == name]
        for name in names
    }
    words = {word: label_name(word) for word in classes}
    writer.finish([write_set(writer, SET, "multi_label", by_split, words)])


if __name__ == "__main__":
    run_main(main)
