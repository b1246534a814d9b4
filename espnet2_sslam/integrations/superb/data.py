"""Is a task's data there, and can SSLAM learn from it? Asked before any training."""

import csv
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import soundfile

from espnet2_sslam.integrations.s3prl.guards import check_learnable
from espnet2_sslam.integrations.superb.emotion import write_emotion_lists
from espnet2_sslam.integrations.superb.tasks import Task, fold_numbers
from espnet2_sslam.store import write_text
from espnet2_sslam.units import SAMPLE_RATE

SPEAKERS = 1251  # of VoxCeleb1, id10001 to id11251; s3prl's output layer has so many


class Data(NamedTuple):
    """What the runs of a task need to know of its data.

    Attributes:
        options: The data's paths, for s3prl's configuration.
        samples: Length of every clip at 16 kHz.
    """

    options: dict[str, Any]
    samples: list[int]


def read_data(task: Task, folder: Path, scratch: Path) -> Data:
    """Check a task's data and measure its clips.

    Args:
        task: The task.
        folder: Where the data is.
        scratch: Folder for lists that s3prl needs beside the data.

    Raises:
        ValueError: Something is missing, or a file is no audio.
    """
    folder = folder.resolve()
    if not folder.is_dir():
        raise ValueError(f"{task.name}: there is no folder {folder} with the data")
    found = _READERS.get(task.name, _hear)(task, folder, scratch)
    if not found.samples:
        raise ValueError(f"{task.name}: {folder} holds no audio")
    return found


def check_steps(task: Task, data: Data, downsample_rate: int | None) -> None:
    """Refuse clips that get no step at an upstream's rate, as s3prl would not.

    Args:
        task: The task.
        data: What `read_data` returned.
        downsample_rate: Samples per step; None (not known) is left to s3prl.

    Raises:
        ValueError: Clips without a step.
    """
    if task.hear or downsample_rate is None:  # s3prl.main rounds up
        return
    try:
        check_learnable(downsample_rate, data.samples)
    except ValueError as error:
        raise ValueError(f"{task.name}: {error}") from None


def _keywords(task: Task, folder: Path, scratch: Path) -> Data:
    """Speech Commands: a folder per word, and the test set beside it."""
    train = _one(task, folder, "speech_commands_v0.0[12]")
    test = _one(task, folder, "speech_commands_test_set_v0.0[12]")
    noises = _need(task, train, "_background_noise_/*.wav")
    short = [p for p, n in zip(noises, _lengths(noises)) if n < SAMPLE_RATE]
    if short:
        raise ValueError(
            f"{task.name}: s3prl cuts a second out of every background noise, and "
            f"{short[0]} is shorter"
        )
    words = [p for p in _need(task, train, "*/*.wav") if p not in set(noises)]
    options = {"speech_commands_root": train, "speech_commands_test_root": test}
    clips = words + _need(task, test, "*/*.wav")
    return Data(_as_text(options), _lengths(clips))


def _intents(task: Task, folder: Path, scratch: Path) -> Data:
    """Fluent Speech Commands: three CSV files with the paths of the clips."""
    clips = []
    for split in ("train", "valid", "test"):
        [path] = _need(task, folder, f"data/{split}_data.csv")
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        if not rows or not {"path", "action", "object", "location"} <= set(rows[0]):
            raise ValueError(
                f"{task.name}: {path} needs path, action, object, location"
            )
        clips += [folder / row["path"] for row in rows]
    return Data({"file_path": str(folder)}, _lengths(clips))


def _speakers(task: Task, folder: Path, scratch: Path) -> Data:
    """VoxCeleb1: <dev|test>/wav/<speaker>/<video>/<clip>.wav and the list of splits."""
    names = ("iden_split.txt", "veri_test_class.txt")
    lists = [folder / name for name in names if (folder / name).is_file()]
    if not lists:
        raise ValueError(
            f"{task.name}: {folder} lacks iden_split.txt, VoxCeleb1's list of the "
            "identification splits (s3prl's wheel leaves its copy out): put it there"
        )
    places = [path for path in sorted(folder.glob("*/wav")) if path.is_dir()]
    lines, clips = [], []
    for line in lists[0].read_text(encoding="utf-8").splitlines():
        split, _, name = line.strip().partition(" ")
        if not name:
            continue
        speaker = name[2:7]
        if not speaker.isdigit() or not 0 <= int(speaker) - 10001 < SPEAKERS:
            raise ValueError(
                f"{task.name}: {lists[0]} names {name}, no id10001-id11251"
            )
        found = [place / name for place in places if (place / name).is_file()]
        if not found:
            raise ValueError(f"{task.name}: {folder}/*/wav lacks {name}")
        lines.append(f"{split} {name}\n")
        clips.append(found[0])
    meta = scratch / "voxceleb1.txt"
    write_text(meta, "".join(lines))
    options = {"file_path": folder, "meta_data": meta.resolve()}
    return Data(_as_text(options), _lengths(clips))


def _emotions(task: Task, folder: Path, scratch: Path) -> Data:
    """IEMOCAP: lists per session are made, as the wheel has none."""
    lists = scratch.resolve() / "iemocap"
    clips = write_emotion_lists(folder, lists)
    return Data(_as_text({"root": folder, "meta_data": lists}), _lengths(clips))


def _hear(task: Task, folder: Path, scratch: Path) -> Data:
    """HEAR's layout: 48000/<split>/*.wav and <split>.json with {file: [label]}."""
    splits = ["train", "valid", "test"]
    if task.folds > 1:
        splits = [f"fold{fold:02d}" for fold in fold_numbers(task)]
    rate = next((r for r in ("48000", "16000") if (folder / r).is_dir()), None)
    if rate is None:
        raise ValueError(
            f"{task.name}: {folder} lacks 48000/ (or 16000/) of HEAR's data"
        )
    clips = []
    for split in splits:
        [path] = _need(task, folder, f"{split}.json")
        names = json.loads(path.read_text(encoding="utf-8"))
        clips += [folder / rate / split / name for name in names]
    return Data({"dataset_root": str(folder)}, _lengths(clips))


def _one(task: Task, folder: Path, pattern: str) -> Path:
    """The only folder of a name, the latest version of several."""
    return _need(task, folder, pattern)[-1]


def _need(task: Task, folder: Path, pattern: str) -> list[Path]:
    """What matches a pattern, or an error."""
    found = sorted(folder.glob(pattern))
    if not found:
        raise ValueError(f"{task.name}: {folder} has no {pattern}")
    return found


def _lengths(clips: list[Path]) -> list[int]:
    """Samples of each clip at 16 kHz, from the headers."""

    def length(path: Path) -> int:
        try:
            info = soundfile.info(str(path))
        except (soundfile.LibsndfileError, OSError) as error:
            raise ValueError(f"{path} cannot be read as audio: {error}") from None
        return round(info.frames * SAMPLE_RATE / info.samplerate)

    with ThreadPoolExecutor(8) as threads:
        return list(threads.map(length, clips))


def _as_text(options: dict[str, Path]) -> dict[str, str]:
    return {name: str(path) for name, path in options.items()}


_READERS: dict[str, Callable[[Task, Path, Path], Data]] = {
    "ks": _keywords,
    "ic": _intents,
    "sid": _speakers,
    "er": _emotions,
}
