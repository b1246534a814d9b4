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
from espnet2_sslam.corpus import write_atomically

NAME = re.compile(r"([0-9])_([A-Za-z]+)_([0-9]+)\.(wav|flac)")
WORDS = "zero one two three four five six seven eight nine".split()
RATE = 16_000  # Hz, of the strings
DIGITS = (2, 5)  # fewest and most in a string
PAUSE = (800, 3_200)  # samples: shortest and longest silence around a digit


def find_recordings(corpus_dir: Path) -> dict[str, dict[int, list[Path]]]:
    """Return the files by speaker and digit, in the order of their index.

    Raises:
        ValueError: No such files, or a speaker without one of the digits.
    """
    found: dict[str, dict[int, list[Path]]] = {}
    paths = [*corpus_dir.glob("*_*_*.*"), *corpus_dir.glob("recordings/*_*_*.*")]
    named = [(NAME.fullmatch(path.name), path) for path in paths]
    for match, path in sorted(
        ((match, path) for match, path in named if match),
        key=lambda item: (item[0][2], item[0][1], int(item[0][3])),
    ):
        found.setdefault(match[2], {}).setdefault(int(match[1]), []).append(path)
    if not found:
        raise ValueError(
            f"{corpus_dir} has no recordings: {{digit}}_{{speaker}}_{{index}}.wav or "
            ".flac are needed"
        )
    for speaker, by_digit in found.items():
        if min(len(by_digit.get(digit, [])) for digit in range(10)) < 3:
            raise ValueError(
                f"speaker {speaker} needs 3 recordings of each digit: leave them out"
            )
    return found


def split(found: dict, test_speaker: str) -> dict[str, dict[str, list[list[Path]]]]:
    """Return the recordings of each set: {set: {speaker: [files of 0, of 1, ...]}}.

    Raises:
        ValueError: The speaker is not there, or there is no other one.
    """
    if test_speaker not in found or len(found) < 2:
        raise ValueError(
            f"--test_speaker {test_speaker} must be one of at least two speakers, "
            f"there are {', '.join(sorted(found))}"
        )
    sets: dict[str, dict] = {"train": {}, "valid": {}, "test_known": {}, "test_new": {}}
    for speaker, by_digit in sorted(found.items()):
        files = [by_digit[digit] for digit in range(10)]
        if speaker == test_speaker:
            sets["test_new"][speaker] = files
            continue
        tenth = [max(1, len(of_one) // 10) for of_one in files]
        sets["test_known"][speaker] = [f[:n] for f, n in zip(files, tenth)]
        sets["valid"][speaker] = [f[n : 2 * n] for f, n in zip(files, tenth)]
        sets["train"][speaker] = [f[2 * n :] for f, n in zip(files, tenth)]
    return sets


def make_string(files: list[list[Path]], generator: np.random.Generator) -> tuple:
    """Draw digits and recordings; return the waveform and the words."""
    digits = generator.integers(10, size=generator.integers(*DIGITS, endpoint=True))
    pieces = [np.zeros(generator.integers(*PAUSE, endpoint=True), dtype=np.float32)]
    for digit in digits:
        path = files[digit][generator.integers(len(files[digit]))]
        wave, rate = soundfile.read(path, dtype="float32", always_2d=True)
        pieces.append(soxr.resample(wave.mean(1), rate, RATE))
        pause = generator.integers(*PAUSE, endpoint=True)
        pieces.append(np.zeros(pause, dtype=np.float32))
    return np.concatenate(pieces), " ".join(WORDS[digit] for digit in digits)


def write_set(
    folder: Path, audio: Path, speakers: dict, number: int, seed: list[int]
) -> None:
    """Write one set: FLAC files below `audio`, and the lists in `folder`."""
    generator = np.random.default_rng(seed)
    audio.mkdir(parents=True, exist_ok=True)
    rows = []
    for index in range(number):
        speaker = sorted(speakers)[index % len(speakers)]
        key = f"{speaker}_{folder.name}_{index:04d}"
        wave, text = make_string(speakers[speaker], generator)
        path = (audio / f"{key}.flac").absolute()
        soundfile.write(path, wave, RATE)
        rows.append((key, path, text, speaker))
    rows.sort()
    lists = {"wav.scp": 1, "text": 2, "utt2spk": 3}
    folder.mkdir(parents=True, exist_ok=True)
    for name, column in lists.items():
        lines = "".join(f"{row[0]} {row[column]}\n" for row in rows)
        write_atomically(folder / name, lines)


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
    for number, (name, speakers) in enumerate(sets.items()):
        size = args.num_train if name == "train" else args.num_test
        audio = args.datadir / "audio" / name
        write_set(args.datadir / name, audio, speakers, size, [args.seed, number])


if __name__ == "__main__":
    run_main(main)
