#!/usr/bin/env python3
"""Lay real sounds out as s3prl's tasks expect them, for trials of stage 8.

  superb_data.py ks --source FSDD --output DIR
      Speech Commands v1 from the Free Spoken Digit Dataset (recordings/): the digits 0
      to 7 stand for eight keywords, 8 and 9 for unknown words. Each speaker's first
      recordings are for training and validation, the last fifth for the test.
  superb_data.py HearESC50 --source ESC50 --output DIR
      HEAR's ESC-50 from its own layout (meta/esc50.csv, audio/), five folds made anew
      by source recording.

The scores of such data are those of these miniatures and of nothing else.
"""

import argparse
import csv
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import soxr

from espnet2_sslam.bin.cli import run_main

RATE = 16000
KEYWORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "bed", "cat")
KNOWN = 8  # keywords of the task; the last two count as `_unknown_`
FOLDS = 5  # of ESC-50


class Clip(NamedTuple):
    """A recording (samples,) at 16 kHz and what is known about it."""

    wave: np.ndarray
    label: str
    speaker: str  # or the recording that it was cut from
    index: int


def spoken_digits(source: Path, per_speaker: int) -> list[Clip]:
    """Recordings of the Free Spoken Digit Dataset, every digit of every speaker."""
    paths = sorted(source.glob("recordings/*"))
    named = [(path, *path.stem.split("_")) for path in paths]
    return [
        Clip(_read(path)[:RATE], digit, speaker, int(index))
        for path, digit, speaker, index in named
        if int(index) < per_speaker
    ]


def environmental_sounds(source: Path, per_class: int) -> list[Clip]:
    """The first clips of each class of ESC-50."""
    with open(source / "meta" / "esc50.csv", newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row["category"])
    clips, count = [], Counter()
    for row in rows:
        name = row["category"]
        if count[name] < per_class:
            wave = _read(source / "audio" / row["filename"])
            clips.append(Clip(wave, name, row["src_file"], count[name]))
        count[name] += 1
    return clips


def write_speech_commands(
    folder: Path, clips: Iterable[Clip], test_from: int
) -> tuple[Path, Path]:
    """Speech Commands v0.01: digits 0-7 are keywords, 8 and 9 unknown words.

    Those with an index from `test_from` on are for the test. s3prl divides the training
    folder by a hash of the file names: about a tenth is for validation and another
    tenth is left out.
    """
    train = folder / "speech_commands_v0.01"
    test = folder / "speech_commands_test_set_v0.01"
    for wave, digit, speaker, index in clips:
        root, word = train, KEYWORDS[int(digit)]
        if index >= test_from:
            root, word = test, word if int(digit) < KNOWN else "_unknown_"
        _write(root / word / f"{speaker}{index}{digit}_nohash_0.wav", wave)
    rng = np.random.default_rng(0)
    for number in range(6):
        noise = 0.05 * rng.standard_normal(3 * RATE).astype(np.float32)
        _write(train / "_background_noise_" / f"noise{number}.wav", noise)
        _write(test / "_silence_" / f"noise{number}_nohash_0.wav", noise[:RATE])
    return train, test


def write_hear_scene(folder: Path, clips: Iterable[Clip], folds: int = FOLDS) -> Path:
    """A HEAR scene task: 48000/foldNN/*.wav and foldNN.json with the labels.

    The clips of one recording stay in one fold; recordings take turns.
    """
    clips = list(clips)
    recordings = sorted({clip.speaker for clip in clips})
    labels: list[dict[str, list[str]]] = [{} for _ in range(folds)]
    for number, clip in enumerate(clips):
        fold = recordings.index(clip.speaker) % folds
        name = f"{clip.speaker}-{clip.label}-{number}.wav"
        _write(folder / "48000" / f"fold{fold:02d}" / name, clip.wave, 48000)
        labels[fold][name] = [clip.label]
    for fold, content in enumerate(labels):
        (folder / f"fold{fold:02d}.json").write_text(json.dumps(content))
    return folder


def _read(path: Path) -> np.ndarray:
    """A mono file at 16 kHz."""
    wave, rate = soundfile.read(path, dtype="float32")
    return soxr.resample(wave, rate, RATE)


def _write(path: Path, wave: np.ndarray, rate: int = RATE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, soxr.resample(wave, RATE, rate), rate)


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("task", choices=("ks", "HearESC50"), help="layout to write")
    text = "folder of spoken digits (FSDD) for ks, of ESC-50 for HearESC50"
    add("--source", type=Path, required=True, help=text)
    add("--output", type=Path, required=True, help="a new folder")
    text = "recordings per digit and speaker, or clips per class, at most [50]"
    add("--per_class", type=int, default=50, help=text)
    args = parser.parse_args()
    if args.output.exists():
        raise ValueError(f"{args.output} is there already: remove it or name another")
    read = spoken_digits if args.task == "ks" else environmental_sounds
    clips = read(args.source, args.per_class)
    if not clips:
        raise ValueError(f"{args.source} holds no recordings for {args.task}")
    if args.task == "ks":
        recordings = 1 + max(clip.index for clip in clips)
        write_speech_commands(args.output, clips, recordings - recordings // 5)
    else:
        write_hear_scene(args.output, clips)
    print(f"wrote {args.output}: {len(clips)} clips")


if __name__ == "__main__":
    run_main(main)
