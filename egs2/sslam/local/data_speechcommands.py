#!/usr/bin/env python3
"""Prepare Speech Commands: ks2 (v0.02, 35 words) or ks1 (v0.01, 12 classes, as SUPERB).

--corpus_dir holds speech_commands_v0.02 (ks2), or speech_commands_v0.01 and
speech_commands_test_set_v0.01 (ks1), each as its archive unpacks: a folder for each
word, _background_noise_, validation_list.txt and testing_list.txt.

ks2: the official lists; all other clips are for training. ks1: yes no up down left
right on off stop go, all other words as _unknown_, and _silence_; training and
validation from the lists, the clips of testing_list.txt left out, testing on the
official test archive. The noise recordings are cut into pieces of one second, each
used once; a seeded tenth of them is for validation. (SUPERB draws a random second of
the same recordings in both.) ks1/train/weights holds 1000 / (clips of the class +
0.01).
"""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
from corpus_command import corpus_parser, parse

from espnet2_sslam.bin.cli import run_main
from espnet2_sslam.corpus import Clip, CorpusWriter, Downstream, label_word, slug

NOISE = "_background_noise_"
UNKNOWN, SILENCE = "_unknown_", "_silence_"
KEYWORDS = ["yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go"]
KS1_CLASSES = [*KEYWORDS, UNKNOWN, SILENCE]  # the order of SUPERB
KS2_CLASSES = 35
LISTS = {"valid": "validation_list.txt", "test": "testing_list.txt"}
VERSIONS = {"ks1": "0.01", "ks2": "0.02"}
VALID_SHARE = 0.1  # of the pieces of noise
EXPECTED = "--corpus_dir with speech_commands_v{0}/ as its archive unpacks"


def find_folder(corpus_dir: Path, version: str) -> Path:
    """The unpacked training archive of a version.

    Raises:
        ValueError: It is not there.
    """
    name = f"speech_commands_v{version}"
    for folder in (corpus_dir / name, corpus_dir / "SpeechCommands" / name, corpus_dir):
        other = re.fullmatch(r"speech_commands_v0\.0\d", folder.name)
        wrong = other is not None and folder.name != name
        if (folder / LISTS["valid"]).is_file() and not wrong:
            return folder
    raise ValueError(
        f"{corpus_dir} holds no {name}/{LISTS['valid']}; expected: "
        f"{EXPECTED.format(version)} (local/download.sh --corpus speechcommands)"
    )


def find_test_folder(folder: Path, version: str) -> Path:
    """The unpacked test archive, beside the training archive.

    Raises:
        ValueError: It is not there.
    """
    name = f"speech_commands_test_set_v{version}"
    for parent in (folder.parent, folder):
        if (parent / name / SILENCE).is_dir():
            return parent / name
    raise ValueError(
        f"{folder.parent / name} with {SILENCE}/, {UNKNOWN}/ and the words is missing: "
        "ks1 is tested on the official test archive, unpack it there "
        "(local/download.sh --corpus speechcommands)"
    )


def read_lists(folder: Path) -> dict[str, str]:
    """Split of each clip, `<word>/<file>`, that a list names.

    Raises:
        ValueError: A list is missing or empty, a line has another form, or a clip is
            listed twice.
    """
    splits: dict[str, str] = {}
    for split, name in LISTS.items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{path} is missing: unpack the archive again")
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        clips = [line.strip().removeprefix("./") for line in lines if line.strip()]
        for clip in clips or [""]:
            if clip.count("/") != 1:
                raise ValueError(f"{path}: {clip!r} is not <word>/<file>.wav")
            if clip in splits:
                raise ValueError(
                    f"{path}: {clip} is listed twice (or in both lists); keep one line "
                    "of it"
                )
            splits[clip] = split
    return splits


def clip_of(path: Path, word: str, label: str) -> Clip:
    """A clip of a word; its speaker is the hash that its name begins with."""
    stem = path.name
    while stem.lower().endswith(".wav"):  # some names end in .wav.wav
        stem = stem[:-4]
    speaker = slug(stem.split("_nohash_")[0]) if "_nohash_" in stem else ""
    return Clip(slug(f"{word}-{stem}"), str(path), label_word(label), speaker)


def words_of(folder: Path) -> list[str]:
    """The folders of words, sorted."""
    return sorted(path.name for path in folder.glob("[!._]*/"))


def wav_files(folder: Path) -> list[Path]:
    """The audio of a folder, sorted; hidden files (as macOS leaves them) left out."""
    return sorted(folder.glob("[!.]*.wav"))


def read_clips(folder: Path, task: str) -> dict[str, list[Clip]]:
    """Clips of each split by the lists, those that a list names but nobody has too."""
    listed = read_lists(folder)
    clips: dict[str, list[Clip]] = {"train": [], "valid": [], "test": []}
    files = {
        f"{word}/{path.name}": path
        for word in words_of(folder)
        for path in wav_files(folder / word)
    }
    lost = sorted(set(listed) - set(files))
    for name, path in [*files.items(), *((name, folder / name) for name in lost)]:
        word = name.split("/")[0]
        label = word if task == "ks2" or word in KEYWORDS else UNKNOWN
        clips[listed.get(name, "train")].append(clip_of(path, word, label))
    return clips


def test_archive_clips(folder: Path) -> Iterator[Clip]:
    """Clips of the official test archive, whose folders are the twelve classes."""
    for name in KS1_CLASSES:
        if not (folder / name).is_dir():
            raise ValueError(f"{folder} lacks {name}/: unpack the test archive again")
        for path in wav_files(folder / name):
            clip = clip_of(path, name, name)
            # Words and noises of other folders: not a speaker of its own.
            yield clip._replace(speaker="") if name == SILENCE else clip


def cut_noise(folder: Path, target: Path, rng) -> dict[str, list[Clip]]:
    """Pieces of one second of the noise recordings for training and validation.

    Raises:
        ValueError: There are no two pieces.
    """
    pieces = []
    target.mkdir(parents=True, exist_ok=True)
    for path in wav_files(folder / NOISE):
        samples, rate = soundfile.read(path, dtype="int16")
        for number in range(len(samples) // rate):
            piece = target / f"{slug(path.stem)}_{number:03d}.wav"
            part = samples[number * rate : (number + 1) * rate]
            soundfile.write(piece, part, rate, subtype="PCM_16")
            key = slug(f"{SILENCE}-{piece.stem}")
            pieces.append(Clip(key, str(piece), SILENCE, slug(f"noise-{path.stem}")))
    if len(pieces) < 2:
        raise ValueError(
            f"{folder / NOISE} holds less than two seconds of noise: unpack the "
            "archive again"
        )
    valid = set(rng.permutation(len(pieces))[: max(1, int(VALID_SHARE * len(pieces)))])
    return {
        "train": [piece for i, piece in enumerate(pieces) if i not in valid],
        "valid": [piece for i, piece in enumerate(pieces) if i in valid],
    }


def main(argv=None) -> None:
    """Write all splits below --datadir."""
    parser = corpus_parser(__doc__)
    add = parser.add_argument
    add("--task", choices=tuple(VERSIONS), default="ks2", help="[ks2]")
    add("--seed", type=int, default=0, help="of what noise is for validation [0]")
    args = parse(parser, argv)
    version = VERSIONS[args.task]
    folder = find_folder(args.corpus_dir.resolve(), version)
    writer = CorpusWriter(args.datadir, EXPECTED.format(version))
    clips = read_clips(folder, args.task)
    if args.task == "ks1":
        classes = KS1_CLASSES
        clips["test"] = list(test_archive_clips(find_test_folder(folder, version)))
        audio = args.datadir.resolve() / "audio" / "silence"
        noise = cut_noise(folder, audio, np.random.default_rng(args.seed))
        for split, pieces in noise.items():
            clips[split] += pieces
        writer.note(
            f"ks1: {len(noise['train'])} and {len(noise['valid'])} s of noise are "
            f"{SILENCE} of train and valid (seed {args.seed}); test is the official "
            "test archive"
        )
    else:
        classes = words_of(folder)
        if len(classes) != KS2_CLASSES:
            writer.note(f"ks2: {len(classes)} words are there, {KS2_CLASSES} in v0.02")
    for split, of_split in clips.items():
        weighted = args.task == "ks1" and split == "train"
        writer.add(f"{args.task}/{split}", of_split, weighted=weighted)
    writer.classes(args.task, {label_word(name): name for name in classes})
    writer.finish([Downstream.of_set(args.task, "multi_class", clips)])


if __name__ == "__main__":
    run_main(main)
