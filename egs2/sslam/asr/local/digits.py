#!/usr/bin/env python3
"""Make strings of spoken digits from single ones, with the words as text.

Reads {digit}_{speaker}_{index}.wav or .flac (the Free Spoken Digit Dataset). A string
has one speaker, 2 to 5 digits and pauses of 50 to 200 ms. No recording is in two of the
sets: one speaker is heard in test_new only; of the others' recordings of each digit, a
tenth each is kept for valid and test_known.
"""

import argparse
import re
from pathlib import Path

import numpy as np
import soundfile
import soxr

from espnet2_sslam.bin.cli import run_main
from espnet2_sslam.corpus import CONTENT_FILE, Clip, CorpusWriter, write_table
from espnet2_sslam.store import sha256

NAME = re.compile(r"([0-9])_([A-Za-z]+)_([0-9]+)\.(wav|flac)")
WORDS = ("zero", "one", "two", "three", "four")
WORDS += ("five", "six", "seven", "eight", "nine")
RATE = 16_000  # Hz, of the strings
DIGITS = (2, 5)  # fewest and most in a string
PAUSE = (800, 3_200)  # samples: shortest and longest silence around a digit


def find_recordings(corpus_dir: Path) -> dict[str, list[list[Path]]]:
    """The files of each speaker, by digit, in the order of their index."""
    paths = [*corpus_dir.glob("*_*_*.*"), *corpus_dir.glob("recordings/*_*_*.*")]
    named = [(path, NAME.fullmatch(path.name)) for path in paths]
    matches = [(int(m[3]), path, m[2], int(m[1])) for path, m in named if m]
    if not matches:
        raise ValueError(
            f"{corpus_dir} has no recordings: {{digit}}_{{speaker}}_{{index}}.wav or "
            ".flac are needed"
        )
    speakers = {}
    for _, path, speaker, digit in sorted(matches):
        speakers.setdefault(speaker, [[] for _ in WORDS])[digit].append(path)
    for speaker, files in speakers.items():
        if min(map(len, files)) < 3:
            raise ValueError(
                f"speaker {speaker} needs 3 recordings of each digit: leave them out"
            )
    return speakers


def split(
    speakers: dict[str, list[list[Path]]], test_speaker: str
) -> dict[str, dict[str, list[list[Path]]]]:
    """The recordings of each set: {set: {speaker: [files of 0, of 1, ...]}}."""
    if test_speaker not in speakers or len(speakers) < 2:
        raise ValueError(
            f"--test_speaker {test_speaker} must be one of at least two speakers, "
            f"there are {', '.join(sorted(speakers))}"
        )
    sets: dict[str, dict] = {"train": {}, "valid": {}, "test_known": {}, "test_new": {}}
    for speaker, files in sorted(speakers.items()):
        if speaker == test_speaker:
            sets["test_new"][speaker] = files
            continue
        tenths = [max(1, len(of_one) // 10) for of_one in files]
        pairs = list(zip(files, tenths, strict=True))
        sets["test_known"][speaker] = [of_one[:n] for of_one, n in pairs]
        sets["valid"][speaker] = [of_one[n : 2 * n] for of_one, n in pairs]
        sets["train"][speaker] = [of_one[2 * n :] for of_one, n in pairs]
    return sets


def make_string(files: list[list[Path]], generator: np.random.Generator) -> tuple:
    """Draw digits and recordings: the waveform, and the words."""
    digits = generator.integers(10, size=generator.integers(*DIGITS, endpoint=True))
    pieces = [np.zeros(generator.integers(*PAUSE, endpoint=True), dtype=np.float32)]
    for digit in digits:
        path = files[digit][generator.integers(len(files[digit]))]
        wave, rate = soundfile.read(path, dtype="float32", always_2d=True)
        pieces.append(soxr.resample(wave.mean(1), rate, RATE))
        pause = generator.integers(*PAUSE, endpoint=True)
        pieces.append(np.zeros(pause, dtype=np.float32))
    return np.concatenate(pieces), " ".join(WORDS[digit] for digit in digits)


def write_set(writer, name: str, speakers: dict, number: int, seed) -> None:
    """Write one set: FLAC files below `audio`, and the lists in its folder."""
    generator = np.random.default_rng(seed)
    audio = (writer.datadir / "audio" / name).absolute()
    audio.mkdir(parents=True, exist_ok=True)
    clips, contents = [], []
    for index in range(number):
        speaker = sorted(speakers)[index % len(speakers)]
        key = f"{speaker}_{name}_{index:04d}"
        wave, text = make_string(speakers[speaker], generator)
        soundfile.write(audio / f"{key}.flac", wave, RATE)
        clips.append(Clip(key, str(audio / f"{key}.flac"), text, speaker))
        contents.append((key, sha256(audio / f"{key}.flac")))
    writer.add(name, clips, known_to_exist=True)
    write_table(writer.datadir / name / CONTENT_FILE, sorted(contents))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--corpus_dir", type=Path, required=True, help="where the recordings are")
    add("--datadir", type=Path, required=True, help="output")
    add("--num_train", type=int, default=600, help="strings for training")
    add("--num_test", type=int, default=60, help="strings in each other set")
    add("--test_speaker", required=True, help="the speaker of test_new")
    add("--seed", type=int, default=1, help="of all choices")
    args = parser.parse_args()
    if min(args.num_train, args.num_test) < 1:
        raise ValueError("--num_train and --num_test start at 1")
    sets = split(find_recordings(args.corpus_dir), args.test_speaker)
    writer = CorpusWriter(args.datadir)
    for number, (name, speakers) in enumerate(sets.items()):
        size = args.num_train if name == "train" else args.num_test
        write_set(writer, name, speakers, size, [args.seed, number])


if __name__ == "__main__":
    run_main(main)
