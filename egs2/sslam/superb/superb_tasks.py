"""The tasks, and whether their data is there and SSLAM can learn from it."""

import csv
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import soundfile

from espnet2_sslam.store import write_json, write_lines
from espnet2_sslam.units import SAMPLE_RATE


class Task(NamedTuple):
    """A task of s3prl.

    Args:
        name: Our word for it, and the name of its folder.
        title: What it is, for the table.
        folds: Number of cross-validation folds, 1 for fixed splits.
        metric: What the best checkpoint, the learning rate and the table go by.
        expert: s3prl's downstream expert of a task of SUPERB; "" for one of HEAR, whose
            problem class has the task's name.
    """

    name: str
    title: str
    folds: int = 1
    metric: str = "top1_acc"
    expert: str = ""

    @property
    def hear(self) -> bool:
        """Whether `s3prl.main` runs it rather than `s3prl.run_downstream`."""
        return not self.expert

    @property
    def fold_numbers(self) -> range:
        """The folds as s3prl counts them: IEMOCAP's from 1, HEAR's from 0."""
        return range(self.folds) if self.hear else range(1, self.folds + 1)


# Folds and metrics are those of s3prl 0.4.18's own configurations: s3prl/problem/common
# for HEAR, and five folds for IEMOCAP as SUPERB reports them.
_ALL = (
    Task("ks", "keyword spotting", 1, "accuracy", "speech_commands"),
    Task("ic", "intent classification", 1, "accuracy", "fluent_commands"),
    Task("sid", "speaker identification", 1, "accuracy", "voxceleb1"),
    Task("er", "emotion recognition", 5, "accuracy", "emotion"),
    Task("HearESC50", "environmental sounds", 5),
    Task("HearBeijingOpera", "Beijing opera percussion", 5),
    Task("HearCremaD", "emotion (CREMA-D)", 5),
    Task("HearFSD", "sound events (FSD50K)", metric="mAP"),
    Task("HearGSC5hr", "speech commands, 5 hours"),
    Task("HearGtzan", "music genre", 10),
    Task("HearGtzanMusicSpeech", "music or speech", 5),
    Task("HearGunshot", "gunshot location", 7),
    Task("HearLibriCount", "number of speakers", 5),
    Task("HearNsynth5hr", "pitch, 5 hours", metric="pitch_acc"),
    Task("HearStroke", "mridangam strokes", 5),
    Task("HearTonic", "mridangam tonics", 5),
    Task("HearVocal", "vocal imitations", 3, "mAP"),
    Task("HearVoxLingual", "spoken language", 5),
)
TASKS = {task.name: task for task in _ALL}
_CTC = (
    "its CTC loss needs more steps than labels, which SSLAM's steps of 160 ms do not "
    "give: s3prl would count the loss as 0"
)
_FRAMES = "it needs a label every 10 to 25 ms, and SSLAM has steps of 160 ms"
REFUSED = {
    **dict.fromkeys(("asr", "pr", "sf", "ctc", "SuperbASR", "SuperbPR"), _CTC),
    **dict.fromkeys(("se", "ss", "sd", "HearDcase2016Task2", "HearMaestro"), _FRAMES),
}


def read_data(
    task: Task, folder: Path, scratch: Path
) -> tuple[dict[str, str], list[int]]:
    """Find the data of a task; lists that s3prl needs are written to `scratch`.

    Returns:
        Options of s3prl, and each clip's samples at 16 kHz.
    """
    folder, scratch = folder.resolve(), scratch.resolve()
    try:
        if not folder.is_dir():
            raise ValueError(f"there is no folder {folder} with the data")
        if task.hear:
            options, clips = _hear_scene(task, folder)
        else:
            options, clips = _READERS[task.name](folder, scratch)
        with ThreadPoolExecutor(8) as threads:
            samples = list(threads.map(_samples, clips))
        if not samples:
            raise ValueError(f"{folder} holds no audio")
    except ValueError as error:
        raise ValueError(f"{task.name}: {error}") from None
    return {name: str(path) for name, path in options.items()}, samples


def _keywords(folder: Path, _: Path):
    """Speech Commands: a folder per word, and the test set beside it."""
    train = _need(folder, "speech_commands_v0.0[12]")[-1]
    test = _need(folder, "speech_commands_test_set_v0.0[12]")[-1]
    _need(train, "_background_noise_/*.wav")
    words = [p for p in _need(train, "*/*.wav") if p.parent.name[0] != "_"]
    options = {"speech_commands_root": train, "speech_commands_test_root": test}
    return options, words + _need(test, "*/*.wav")


def _intents(folder: Path, _: Path):
    """Fluent Speech Commands: three CSV files with the paths of the clips."""
    clips = []
    for split in ("train", "valid", "test"):
        [path] = _need(folder, f"data/{split}_data.csv")
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        if not rows or not {"path", "action", "object", "location"} <= set(rows[0]):
            raise ValueError(f"{path} needs path, action, object, location")
        clips += [folder / row["path"] for row in rows]
    return {"file_path": folder}, clips


def _speakers(folder: Path, scratch: Path):
    """VoxCeleb1: <dev|test>/wav/<speaker>/<video>/<clip>.wav and the list of splits.

    s3prl's wheel leaves its copy of VoxCeleb1's list out.
    """
    [path] = _need(folder, "iden_split.txt")
    rows = [line.split() for line in path.read_text("utf-8").splitlines() if line]
    parts, clips = sorted(folder.glob("*/wav")), []
    for _, name in rows:
        if not "id10001" <= name[:7] <= "id11251":  # s3prl's label is the number
            raise ValueError(f"{path} names {name}, no id10001-id11251")
        clip = next((part / name for part in parts if (part / name).is_file()), None)
        if clip is None:
            raise ValueError(f"{folder}/*/wav lacks {name}")
        clips.append(clip)
    meta = scratch / "voxceleb1.txt"
    write_lines(meta, map(" ".join, rows))
    return {"file_path": folder, "meta_data": meta}, clips


def _emotions(folder: Path, scratch: Path):
    """IEMOCAP: lists with each session as test set are made, as the wheel has none.

    Source: s3prl's downstream/emotion/IEMOCAP_preprocess.py, by its results: files and
    clips are in the order of their names here.
    """
    # [6.2901 - 8.2357]<tab>Ses01F_impro01_F000<tab>neu<tab>[2.5, 2.5, 2.5]
    turn = re.compile(r"^\[.*?\]\s+(\S+)\s+(neu|hap|exc|ang|sad)\s", re.MULTILINE)
    sessions: dict[str, list[dict[str, str]]] = {}
    for session in (f"Session{number}" for number in range(1, 6)):
        evaluations = _need(folder, f"{session}/dialog/EmoEvaluation/[!.]*.txt")
        paths = _need(folder, f"{session}/sentences/wav/**/[!.]*.wav")
        waves = {path.stem: str(path.relative_to(folder)) for path in paths}
        texts = (path.read_text("utf-8", errors="replace") for path in evaluations)
        sessions[session] = [
            # excited counts as happy
            {"path": waves[name], "label": label.replace("exc", "hap")}
            | {"speaker": name.split("_")[0]}
            for text in texts
            for name, label in turn.findall(text)
            if name in waves
        ]
    lists = scratch / "iemocap"
    labels = {"neu": 0, "hap": 1, "ang": 2, "sad": 3}
    for test, own in sessions.items():
        train = [c for name, clips in sessions.items() if name != test for c in clips]
        for split, clips in (("train", train), ("test", own)):
            content = {"labels": labels, "meta_data": clips}
            write_json(lists / test / f"{split}_meta_data.json", content)
    clips = [folder / clip["path"] for clips in sessions.values() for clip in clips]
    return {"root": folder, "meta_data": lists}, clips


_READERS = {"ks": _keywords, "ic": _intents, "sid": _speakers, "er": _emotions}


def _hear_scene(task: Task, folder: Path):
    """HEAR's layout: 48000/<split>/*.wav and <split>.json with {file: [label]}."""
    splits = ["train", "valid", "test"]
    if task.folds > 1:
        splits = [f"fold{fold:02d}" for fold in task.fold_numbers]
    rates = [folder / r for r in ("48000", "16000") if (folder / r).is_dir()]
    rate = (rates or _need(folder, "48000"))[0]
    clips = []
    for split in splits:
        [path] = _need(folder, f"{split}.json")
        clips += [rate / split / name for name in json.loads(path.read_text())]
    return {"dataset_root": folder}, clips


def _need(folder: Path, pattern: str) -> list[Path]:
    """What matches a pattern, or an error."""
    paths = sorted(folder.glob(pattern))
    if not paths:
        raise ValueError(f"{folder} has no {pattern}")
    return paths


def _samples(path: Path) -> int:
    """Samples of a clip at 16 kHz, from its header."""
    try:
        info = soundfile.info(str(path))
    except (soundfile.LibsndfileError, OSError) as error:
        raise ValueError(f"{path} cannot be read as audio: {error}") from None
    return round(info.frames * SAMPLE_RATE / info.samplerate)
