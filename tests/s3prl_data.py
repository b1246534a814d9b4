"""Miniatures of SUPERB's and HEAR's data, of artificial sounds where none are real."""

import sys
from pathlib import Path

import numpy as np
import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "egs2" / "sslam" / "local"))

from superb_data import (  # noqa: E402, F401
    RATE,
    Clip,
    write_hear_scene,
    write_speech_commands,
)


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


def write_ks_config(path: Path, train: Path, test: Path, steps: int) -> Path:
    """The recipe's keyword spotting as a YAML file for run_downstream.

    Args:
        path: The file.
        train, test: What `write_speech_commands` returned.
        steps: Updates; evaluated and saved at the end.
    """
    config = yaml.safe_load((ROOT / "conf" / "s3prl" / "ks.yaml").read_text())
    every = dict.fromkeys(("total_steps", "log_step", "eval_step", "save_step"), steps)
    config["runner"].update(every, eval_dataloaders=["dev", "test"])
    config["optimizer"] = {"name": "Adam", "lr": 1e-3}
    config["downstream_expert"]["datarc"].update(
        speech_commands_root=str(train.resolve()),
        speech_commands_test_root=str(test.resolve()),
        num_workers=1,
    )
    path.write_text(yaml.safe_dump(config))
    return path


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
