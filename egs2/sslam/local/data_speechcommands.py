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
from pathlib import Path

import numpy as np
import soundfile
from corpus_command import begin

from espnet2_sslam.bin.cli import run_main
from espnet2_sslam.corpus import Clip, Downstream, label_word, read_text, slug

UNKNOWN, SILENCE = "_unknown_", "_silence_"
KEYWORDS = ["yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go"]
KS1_CLASSES = [*KEYWORDS, UNKNOWN, SILENCE]  # the order of SUPERB
KS2_CLASSES = 35
LISTS = {"valid": "validation_list.txt", "test": "testing_list.txt"}
VERSIONS = {"ks1": "0.01", "ks2": "0.02"}
VALID_SHARE = 0.1  # of the pieces of noise


def find_folder(corpus_dir: Path, name: str) -> Path:
    """The unpacked training archive of this name."""
    for folder in (corpus_dir / name, corpus_dir / "SpeechCommands" / name, corpus_dir):
        other = re.fullmatch(r"speech_commands_v0\.0\d", folder.name)
        if (folder / LISTS["valid"]).is_file() and (not other or folder.name == name):
            return folder
    raise ValueError(
        f"{corpus_dir} holds no {name}/{LISTS['valid']}; expected: --corpus_dir with "
        f"{name}/ as its archive unpacks (local/download.sh --corpus speechcommands)"
    )


def read_lists(folder: Path) -> dict[str, str]:
    """Split of each clip, `<word>/<file>`, that a list names."""
    splits: dict[str, str] = {}
    for split, name in LISTS.items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{path} is missing: unpack the archive again")
        for line in read_text(path).splitlines():
            clip = line.strip().removeprefix("./")
            if clip and clip.count("/") != 1:
                raise ValueError(f"{path}: {clip!r} is not <word>/<file>.wav")
            if clip in splits:
                raise ValueError(
                    f"{path}: {clip} is listed twice (or in both lists); keep one line "
                    "of it"
                )
            if clip:
                splits[clip] = split
        if split not in splits.values():
            raise ValueError(f"{path} is empty: unpack the archive again")
    return splits


def wav_files(folder: Path) -> list[Path]:
    """The audio of a folder, sorted; hidden files (as macOS leaves them) left out."""
    return sorted(folder.glob("[!.]*.wav"))


def clip_of(path: Path, label: str) -> Clip:
    """A clip in its word's folder; its name begins with a hash of the speaker."""
    stem = re.sub(r"(\.wav)+$", "", path.name, flags=re.IGNORECASE)  # some .wav.wav
    speaker = slug(stem.split("_nohash_")[0]) if "_nohash_" in stem else ""
    return Clip(
        slug(f"{path.parent.name}-{stem}"), str(path), label_word(label), speaker
    )


def test_archive_clips(folder: Path) -> list[Clip]:
    """Clips of ks1's official test archive, whose folders are the twelve classes."""
    name = "speech_commands_test_set_v0.01"
    folders = (folder.parent / name, folder / name)
    archive = next((path for path in folders if path.is_dir()), folders[0])
    clips = []
    for label in KS1_CLASSES:
        if not (archive / label).is_dir():
            raise ValueError(
                f"{archive}/{label} is missing: ks1 is tested on the official test "
                "archive, unpack it there (local/download.sh --corpus speechcommands)"
            )
        of_label = [clip_of(path, label) for path in wav_files(archive / label)]
        if label == SILENCE:  # words and noises of other folders: no speakers
            of_label = [clip._replace(speaker="") for clip in of_label]
        clips += of_label
    return clips


def cut_noise(folder: Path, target: Path) -> list[Clip]:
    """Pieces of one second of the noise recordings, written to `target`."""
    pieces = []
    target.mkdir(parents=True, exist_ok=True)
    for path in wav_files(folder):
        samples, rate = soundfile.read(path, dtype="int16")
        for number in range(len(samples) // rate):
            piece = target / f"{slug(path.stem)}_{number:03d}.wav"
            part = samples[number * rate : (number + 1) * rate]
            soundfile.write(piece, part, rate, subtype="PCM_16")
            key = slug(f"{SILENCE}-{piece.stem}")
            pieces.append(Clip(key, str(piece), SILENCE, slug(f"noise-{path.stem}")))
    if len(pieces) < 2:
        raise ValueError(
            f"{folder} holds less than two seconds of noise: unpack the archive again"
        )
    return pieces


def main(argv=None) -> None:
    """Write all splits below --datadir."""
    args, writer = begin(
        *(argv, __doc__),
        task=("ks2", "version: ks1 with 12 classes, ks2 with 35", tuple(VERSIONS)),
        seed=(0, "of what noise is for validation"),
    )
    name = f"speech_commands_v{VERSIONS[args.task]}"
    folder = find_folder(args.corpus_dir.resolve(), name)
    writer.expected = f"--corpus_dir with {name}/ as its archive unpacks"
    listed = read_lists(folder)
    words = sorted(path.name for path in folder.glob("[!._]*/"))
    files = {f"{w}/{path.name}": path for w in words for path in wav_files(folder / w)}
    for clip in sorted(set(listed) - set(files)):  # to be counted as missing
        files[clip] = folder / clip
    clips: dict[str, list[Clip]] = {"train": [], "valid": [], "test": []}
    for clip, path in files.items():
        word = path.parent.name
        label = word if args.task == "ks2" or word in KEYWORDS else UNKNOWN
        clips[listed.get(clip, "train")].append(clip_of(path, label))
    classes = words if args.task == "ks2" else KS1_CLASSES
    if args.task == "ks2" and len(words) != KS2_CLASSES:
        writer.note(f"ks2: {len(words)} words are there, {KS2_CLASSES} in v0.02")
    if args.task == "ks1":
        clips["test"] = test_archive_clips(folder)
        audio = args.datadir.resolve() / "audio" / "silence"
        pieces = cut_noise(folder / "_background_noise_", audio)
        order = np.random.default_rng(args.seed).permutation(len(pieces))
        valid = set(order[: max(1, int(VALID_SHARE * len(pieces)))])
        for number, piece in enumerate(pieces):
            clips["valid" if number in valid else "train"].append(piece)
        writer.note(
            f"ks1: {len(pieces) - len(valid)} and {len(valid)} s of noise are "
            f"{SILENCE} of train and valid (seed {args.seed}); test is the official "
            "test archive"
        )
    for split, of_split in clips.items():
        weighted = args.task == "ks1" and split == "train"
        writer.add(f"{args.task}/{split}", of_split, weighted=weighted)
    writer.classes(args.task, {label_word(name): name for name in classes})
    writer.finish([Downstream.of_set(args.task, "multi_class", clips)])


if __name__ == "__main__":
    run_main(main)
