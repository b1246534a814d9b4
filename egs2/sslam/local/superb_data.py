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
import json
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
    speaker: str
    index: int


def spoken_digits(source: Path, per_speaker: int) -> list[Clip]:
    """Recordings of the Free Spoken Digit Dataset, every digit of every speaker."""
    clips = []
    for path in sorted(source.glob("recordings/*")):
        digit, speaker, index = path.stem.split("_")
        if int(index) < per_speaker:
            wave, rate = soundfile.read(path, dtype="float32")
            wave = soxr.resample(wave, rate, RATE)[:RATE]
            clips.append(Clip(wave, digit, speaker, int(index)))
    return clips


def write_speech_commands(
    folder: Path, clips: Iterable[Clip], test_from: int, seed: int = 0
) -> tuple[Path, Path]:
    """Speech Commands v0.01: digits 0-7 are keywords, 8 and 9 unknown words.

    s3prl divides the training folder by a hash of the file names: about a tenth is for
    validation and another tenth is left out.

    Args:
        folder: Where the two folders are written.
        clips: Digits; those with an index from `test_from` on are for the test.
        test_from: See `clips`.
        seed: Of the background noises and silences.

    Returns:
        The folders `speech_commands_v0.01` and `speech_commands_test_set_v0.01`.
    """
    rng = np.random.default_rng(seed)
    train = folder / "speech_commands_v0.01"
    test = folder / "speech_commands_test_set_v0.01"
    for clip in clips:
        word = KEYWORDS[int(clip.label)]
        if clip.index >= test_from:
            root, word = test, word if int(clip.label) < KNOWN else "_unknown_"
        else:
            root = train
        _write(
            root / word / f"{clip.speaker}{clip.index}{clip.label}_nohash_0.wav", clip
        )
    for number in range(6):
        noise = 0.05 * rng.standard_normal(3 * RATE).astype(np.float32)
        _write(
            train / "_background_noise_" / f"noise{number}.wav", Clip(noise, "", "", 0)
        )
        silence = Clip(noise[:RATE], "", "", 0)
        _write(test / "_silence_" / f"noise{number}_nohash_0.wav", silence)
    return train, test


def environmental_sounds(source: Path, classes: int, per_class: int) -> list[Clip]:
    """Clips of ESC-50; `speaker` is the recording that a clip was cut from."""
    lines = (source / "meta" / "esc50.csv").read_text().splitlines()
    rows = [
        dict(zip(lines[0].split(","), line.split(","), strict=True))
        for line in lines[1:]
    ]
    names = sorted({row["category"] for row in rows})[:classes]
    clips = []
    for name in names:
        own = [row for row in rows if row["category"] == name][:per_class]
        for index, row in enumerate(own):
            wave, rate = soundfile.read(
                source / "audio" / row["filename"], dtype="float32"
            )
            assert rate == RATE
            clips.append(Clip(wave, name, row["src_file"], index))
    return clips


def write_hear_scene(folder: Path, clips: Iterable[Clip], folds: int = FOLDS) -> Path:
    """A HEAR scene task: 48000/foldNN/*.wav and foldNN.json with the labels.

    The clips of one recording stay in one fold; recordings take turns.
    """
    clips = list(clips)
    recordings = sorted({clip.speaker for clip in clips})
    labels = [{} for _ in range(folds)]
    for number, clip in enumerate(clips):
        fold = recordings.index(clip.speaker) % folds
        name = f"{clip.speaker}-{clip.label}-{number}.wav"
        _write(folder / "48000" / f"fold{fold:02d}" / name, clip, 48000)
        labels[fold][name] = [clip.label]
    for fold, content in enumerate(labels):
        (folder / f"fold{fold:02d}.json").write_text(json.dumps(content))
    return folder


def _write(path: Path, clip: Clip, rate: int = RATE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, soxr.resample(clip.wave, RATE, rate), rate)


def get_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", choices=("ks", "HearESC50"))
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument(
        "--per_class",
        type=int,
        default=50,
        help="recordings per digit and speaker, or clips per class, at most [50]",
    )
    return parser


def main() -> None:
    """Write the folder."""
    args = get_parser().parse_args()
    if args.output.exists():
        raise ValueError(f"{args.output} is there already: remove it or name another")
    if args.task == "ks":
        clips = spoken_digits(args.source, args.per_class)
    else:
        clips = environmental_sounds(args.source, 50, args.per_class)
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
