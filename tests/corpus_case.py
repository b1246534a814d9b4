"""Tiny corpora and broken audio files for the tests of data preparation."""

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet2_sslam.bin.cli import run_main
from espnet2_sslam.corpus import Clip, CorpusWriter, Downstream

ROOT = Path(__file__).resolve().parent.parent
LOCAL = ROOT / "egs2" / "sslam" / "local"


def real_audio(name: str) -> Path:
    """A directory of real clips, or skip the test."""
    base = os.environ.get("SSLAM_REAL_AUDIO")
    folder = Path(base) if base else ROOT.parent / "shared" / "data"
    if not (folder / name).is_dir():
        pytest.skip(f"no real clips at {folder / name} (set SSLAM_REAL_AUDIO)")
    return folder / name


def noise(num_samples: int, seed: int = 0, channels: int = 1) -> np.ndarray:
    """Soft noise (N,) or (N, channels)."""
    rng = np.random.default_rng(seed)
    shape = num_samples if channels == 1 else (num_samples, channels)
    return (0.1 * rng.standard_normal(shape)).astype(np.float32)


def cut(path: Path, share: float = 0.6) -> Path:
    """Keep only the first part of a file's bytes."""
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    return path


def make_bad(folder: Path, kind: str) -> Path:
    """A file that is broken in the way that `kind` names."""
    folder.mkdir(parents=True, exist_ok=True)
    name, _, form = kind.partition(".")
    path = folder / f"{name}.{form or 'wav'}"
    if name == "missing":
        return path
    if name == "directory":
        path.mkdir()
    elif name == "empty":
        path.write_bytes(b"")
    elif name == "text":
        path.write_text("this is not audio\n" * 100)
    elif name == "no_frames":
        soundfile.write(path, noise(0), 16000)
    elif name == "one_sample":
        soundfile.write(path, noise(1), 16000)
    elif name == "short":
        soundfile.write(path, noise(399), 16000)
    elif name == "truncated":
        soundfile.write(path, noise(48000), 16000)
        cut(path)
    elif name == "header_only":
        soundfile.write(path, noise(16000), 16000)
        path.write_bytes(path.read_bytes()[:30])
    elif name in ("nan", "infinity"):
        samples = noise(16000)
        samples[12345] = np.nan if name == "nan" else np.inf
        soundfile.write(path, samples, 16000, subtype="FLOAT")
    else:
        raise AssertionError(kind)
    return path


def make_corpus(folder: Path, clips: int = 6) -> Path:
    """A labelled data directory of short noises; its path."""
    datadir, audio = folder / "data", folder / "audio"
    audio.mkdir(parents=True)
    splits = ("pretrain/train", "pretrain/valid", "toy/train", "toy/valid", "toy/test")
    writer = CorpusWriter(datadir)
    for number, split in enumerate(splits):
        of_split = []
        for i in range(clips):
            key = f"{split.replace('/', '-')}-{i}"
            path = audio / f"{key}.wav"
            soundfile.write(path, noise(8000 + 100 * i, seed=100 * number + i), 16000)
            of_split.append(Clip(key, str(path), ("cat", "dog")[i % 2]))
        labelled = not split.startswith("pretrain")
        writer.add(split, of_split, labelled=labelled, known_to_exist=True)
    writer.classes("toy", ["cat", "dog"])
    run = Downstream("toy", "multi_class", "toy/train", "toy/valid", ["toy/test"])
    writer.finish([run])
    (datadir / "splits.txt").unlink()  # splits may be told by their folders as well
    return datadir


def replace_line(path: Path, key: str, line: str) -> None:
    """Put `line` where the line of `key` was."""
    lines = path.read_text().splitlines()
    lines = [line if old.split()[0] == key else old for old in lines]
    path.write_text("".join(f"{line}\n" for line in lines if line))


def error_line(main, capsys, *args) -> str:
    """The one line that a command fails with, and exit status 1."""
    with pytest.raises(SystemExit) as exit_:
        run_main(lambda: main([str(arg) for arg in args]))
    assert exit_.value.code == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: ")
    return line
