"""Sixteen noise and tone clips, and the command line of a training on them."""

from pathlib import Path

import numpy as np
import soundfile
import yaml

CLASSES = ["high", "low", "noise"]
SIZE = {"embed_dim": 16, "depth": 1, "num_heads": 2, "max_frames": 320}
CONFIG = {
    "encoder_conf": SIZE,
    "model_conf": {"pooling": "mean"},
    "batch_size": 5,
    "max_epoch": 2,
    "num_workers": 0,
    "use_matplotlib": False,
    "use_tensorboard": False,
    "optim_conf": {"lr": 0.01},
    "seed": 3,
}


def tone(kind, num_samples, rng):
    time = np.arange(num_samples) / 16_000
    if kind == 2:
        return 0.1 * rng.standard_normal(num_samples)
    return 0.1 * np.sin(2 * np.pi * (2000, 200)[kind] * time + rng.uniform(0, 6))


def write_data(folder):
    """train: 16 clips, valid: 7 clips of other lengths, and classes.txt."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 16), ("valid", 7)):
        split_dir = folder / split
        split_dir.mkdir()
        lists = {"wav.scp": [], "text": [], "utt2num_samples": []}
        for index in range(count):
            name, samples = f"{split}_{index}", int(rng.integers(4000, 9000))
            path = split_dir / f"{name}.wav"
            soundfile.write(path, tone(index % 3, samples, rng), 16_000)
            lists["wav.scp"].append(f"{name} {path}")
            lists["text"].append(f"{name} {CLASSES[index % 3]}")
            lists["utt2num_samples"].append(f"{name} {samples}")
        lists["text"][-1] = f"{name} high low"
        for file, lines in lists.items():
            (split_dir / file).write_text("\n".join(lines) + "\n")
    (folder / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return folder


def options(data, output_dir, config=None, **changes):
    """The command line of a training with CONFIG, changed."""
    config = {**CONFIG, **(config or {}), **changes}
    path = Path(output_dir).with_suffix(".yaml")
    path.write_text(yaml.safe_dump(config))
    words = ["--config", path, "--output_dir", output_dir]
    for split in ("train", "valid"):
        for triple in ("wav.scp,speech,sound", "text,label,text"):
            words += [f"--{split}_data_path_and_name_and_type"]
            words += [f"{data}/{split}/{triple}"]
        words += [f"--{split}_shape_file", f"{data}/{split}/utt2num_samples"]
    return [str(word) for word in [*words, "--class_list", data / "classes.txt"]]
