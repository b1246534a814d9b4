"""Miniature corpora in the layouts that s3prl's SUPERB and HEAR tasks expect."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import soxr
import yaml

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


def tone_digits(per_speaker: int, seed: int = 0) -> list[Clip]:
    """Artificial `digits`: each a tone of its own in noise."""
    rng = np.random.default_rng(seed)
    clips = []
    for digit in range(10):
        for speaker in ("ann", "bob", "eve"):
            for index in range(per_speaker):
                time = np.arange(int(RATE * rng.uniform(0.3, 1.0))) / RATE
                tone = 0.05 * np.sin(2 * np.pi * 200 * 1.4**digit * time)
                wave = tone + 0.1 * rng.standard_normal(len(time))
                clips.append(Clip(wave.astype(np.float32), str(digit), speaker, index))
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


def write_ks_config(path: Path, train: Path, test: Path, steps: int, **runner) -> Path:
    """SUPERB's keyword spotting as a YAML file for run_downstream.

    Args:
        path: The file.
        train, test: What `write_speech_commands` returned.
        steps: Updates; evaluated and saved at the end.
        runner: Further options of the runner.
    """
    config = {
        "runner": {
            "total_steps": steps,
            "gradient_clipping": 1,
            "gradient_accumulate_steps": 1,
            "log_step": steps,
            "eval_step": steps,
            "save_step": steps,
            "max_keep": 1,
            "eval_dataloaders": ["dev", "test"],
            **runner,
        },
        "optimizer": {"name": "Adam", "lr": 1.0e-3},
        "downstream_expert": {
            "datarc": {
                "speech_commands_root": str(train.resolve()),
                "speech_commands_test_root": str(test.resolve()),
                "num_workers": 1,
                "batch_size": 32,
            },
            "modelrc": {
                "projector_dim": 256,
                "select": "UtteranceLevel",
                "UtteranceLevel": {"pooling": "MeanPooling"},
            },
        },
    }
    path.write_text(yaml.safe_dump(config))
    return path


def environmental_sounds(source: Path, classes: int, per_class: int) -> list[Clip]:
    """Clips of ESC-50; `speaker` is the recording that a clip was cut from."""
    lines = (source / "meta" / "esc50.csv").read_text().splitlines()
    rows = [dict(zip(lines[0].split(","), line.split(","))) for line in lines[1:]]
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


def noisy_sounds(classes: int, per_class: int, seconds: float = 1.0) -> list[Clip]:
    """Artificial sounds: noise that beats at a speed of its own per class."""
    rng = np.random.default_rng(0)
    clips = []
    for label in range(classes):
        for index in range(per_class):
            time = np.arange(int(RATE * seconds)) / RATE
            wave = 0.1 * rng.standard_normal(len(time)) * np.sin(4 * 3**label * time)
            wave = wave.astype(np.float32)
            clips.append(Clip(wave, f"sound{label}", f"{label}-{index}", index))
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
