"""The tasks, and whether their data is there and SSLAM can learn from it."""

import csv
import json
import re
from collections.abc import Iterable
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
        module: s3prl's downstream expert (SUPERB) or problem class (HEAR).
        title: What it is, for the table.
        metric: What the best checkpoint, the learning rate and the table go by.
        folds: Number of cross-validation folds, 1 for fixed splits.
    """

    name: str
    module: str
    title: str
    metric: str = "accuracy"
    folds: int = 1

    @property
    def hear(self) -> bool:
        """Whether `s3prl.main` runs it rather than `s3prl.run_downstream`."""
        return self.name.startswith("Hear")

    @property
    def fold_numbers(self) -> range:
        """The folds as s3prl counts them: IEMOCAP's from 1, HEAR's from 0."""
        return range(self.folds) if self.hear else range(1, self.folds + 1)


def _hear(name: str, title: str, folds: int = 1, metric: str = "top1_acc") -> Task:
    return Task(name, name, title, metric, folds)


# Folds and metrics are those of s3prl 0.4.18's own configurations: s3prl/problem/common
# for HEAR, and five folds for IEMOCAP as SUPERB reports them.
_ALL = (
    Task("ks", "speech_commands", "keyword spotting"),
    Task("ic", "fluent_commands", "intent classification"),
    Task("sid", "voxceleb1", "speaker identification"),
    Task("er", "emotion", "emotion recognition", folds=5),
    _hear("HearESC50", "environmental sounds", 5),
    _hear("HearBeijingOpera", "Beijing opera percussion", 5),
    _hear("HearCremaD", "emotion (CREMA-D)", 5),
    _hear("HearFSD", "sound events (FSD50K)", metric="mAP"),
    _hear("HearGSC5hr", "speech commands, 5 hours"),
    _hear("HearGtzan", "music genre", 10),
    _hear("HearGtzanMusicSpeech", "music or speech", 5),
    _hear("HearGunshot", "gunshot location", 7),
    _hear("HearLibriCount", "number of speakers", 5),
    _hear("HearNsynth5hr", "pitch, 5 hours", metric="pitch_acc"),
    _hear("HearStroke", "mridangam strokes", 5),
    _hear("HearTonic", "mridangam tonics", 5),
    _hear("HearVocal", "vocal imitations", 3, "mAP"),
    _hear("HearVoxLingual", "spoken language", 5),
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


def read_words(words: Iterable[str], pattern: str, form: str) -> dict[str, str]:
    """Values by name from words such as NAME=VALUE.

    Args:
        words: Of the command line.
        pattern: Of a word, with a group for the name and one for the value.
        form: What a word must look like, for the error.

    Raises:
        ValueError: A word of another form, or a name that is given twice.
    """
    values: dict[str, str] = {}
    for word in words:
        match = re.fullmatch(pattern, word)
        if match is None:
            raise ValueError(f"{form}, got {word!r}")
        name, value = match.groups(default="")
        if name in values:
            raise ValueError(f"{form}: {name or word} is given twice")
        values[name] = value
    return values


def parse_tasks(words: Iterable[str]) -> dict[str, Path]:
    """Folders of the data by task, from words TASK=DIR.

    Raises:
        ValueError: A word of another form, an unknown task, one that cannot be learnt
            at SSLAM's resolution, or one that is given twice.
    """
    folders = read_words(words, r"([^=]*)=?(.*)", "--tasks takes TASK=DIR")
    for name, folder in folders.items():
        if name in REFUSED:
            raise ValueError(f"task {name} cannot be learnt here: {REFUSED[name]}")
        if name not in TASKS:
            raise ValueError(f"there is no task {name!r}; there are {', '.join(TASKS)}")
        if not folder:
            raise ValueError(f"task {name} needs its data: {name}=DIR")
    return {name: Path(folder).expanduser() for name, folder in folders.items()}


class Data(NamedTuple):
    """The data of a task: options of s3prl, and each clip's samples at 16 kHz."""

    options: dict[str, str]
    samples: list[int]


def read_data(task: Task, folder: Path, scratch: Path) -> Data:
    """Find the data of a task; lists that s3prl needs are written to `scratch`.

    Raises:
        ValueError: The folder is not laid out as s3prl expects, or a clip is not there.
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
    return Data({name: str(path) for name, path in options.items()}, samples)


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
    """VoxCeleb1: <dev|test>/wav/<speaker>/<video>/<clip>.wav and the list of splits."""
    names = ("iden_split.txt", "veri_test_class.txt")
    lists = [folder / name for name in names if (folder / name).is_file()]
    if not lists:
        raise ValueError(
            f"{folder} lacks iden_split.txt, VoxCeleb1's list of the identification "
            "splits (s3prl's wheel leaves its copy out): put it there"
        )
    lines = [line for line in lists[0].read_text("utf-8").splitlines() if line.strip()]
    parts, clips = sorted(folder.glob("*/wav")), []
    for line in lines:
        _, name = line.split()
        if not name.startswith("id1") or not 0 <= int(name[2:7]) - 10001 < 1251:
            raise ValueError(f"{lists[0]} names {name}, no id10001-id11251")
        paths = [part / name for part in parts if (part / name).is_file()]
        if not paths:
            raise ValueError(f"{folder}/*/wav lacks {name}")
        clips.append(paths[0])
    meta = scratch / "voxceleb1.txt"
    write_lines(meta, (" ".join(line.split()) for line in lines))
    return {"file_path": folder, "meta_data": meta}, clips


def _emotions(folder: Path, scratch: Path):
    """IEMOCAP: lists with each session as test set are made, as the wheel has none.

    Source: s3prl's downstream/emotion/IEMOCAP_preprocess.py, by its results: files and
    clips are in the order of their names here.
    """
    sessions = {
        f"Session{n}": _emotion_clips(folder, f"Session{n}") for n in range(1, 6)
    }
    lists = scratch / "iemocap"
    for test, own in sessions.items():
        train = [c for name, clips in sessions.items() if name != test for c in clips]
        for split, clips in (("train", train), ("test", own)):
            labels = {"neu": 0, "hap": 1, "ang": 2, "sad": 3}
            content = {"labels": labels, "meta_data": clips}
            write_json(lists / test / f"{split}_meta_data.json", content)
    clips = [folder / clip["path"] for clips in sessions.values() for clip in clips]
    return {"root": folder, "meta_data": lists}, clips


def _emotion_clips(root: Path, session: str) -> list[dict[str, str]]:
    """Path, label and speaker of each clip of a session that has one of the labels."""
    evaluations = sorted((root / session / "dialog/EmoEvaluation").glob("[!.]*.txt"))
    waves = {p.stem: p for p in (root / session / "sentences/wav").rglob("[!.]*.wav")}
    if not evaluations or not waves:
        raise ValueError(
            f"{root} needs {session}/dialog/EmoEvaluation/*.txt and "
            f"{session}/sentences/wav/*/*.wav of IEMOCAP"
        )
    # [6.2901 - 8.2357]<tab>Ses01F_impro01_F000<tab>neu<tab>[2.5, 2.5, 2.5]
    turn = re.compile(r"^\[.*?\]\s+(\S+)\s+(neu|hap|exc|ang|sad)\s", re.MULTILINE)
    return [
        {
            "path": str(waves[name].relative_to(root)),
            "label": label.replace("exc", "hap"),  # excited counts as happy
            "speaker": name.split("_")[0],
        }
        for path in evaluations
        for name, label in turn.findall(path.read_text("utf-8", errors="replace"))
        if name in waves
    ]


_READERS = {"ks": _keywords, "ic": _intents, "sid": _speakers, "er": _emotions}


def _hear_scene(task: Task, folder: Path):
    """HEAR's layout: 48000/<split>/*.wav and <split>.json with {file: [label]}."""
    splits = ["train", "valid", "test"]
    if task.folds > 1:
        splits = [f"fold{fold:02d}" for fold in task.fold_numbers]
    rates = [folder / r for r in ("48000", "16000") if (folder / r).is_dir()]
    if not rates:
        raise ValueError(f"{folder} lacks 48000/ (or 16000/) of HEAR's data")
    clips = []
    for split in splits:
        [path] = _need(folder, f"{split}.json")
        clips += [rates[0] / split / name for name in json.loads(path.read_text())]
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
