"""Tiny corpora and broken audio files for the tests of data preparation."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet2_sslam.bin.cli import run_main
from espnet2_sslam.corpus import Clip, CorpusWriter, Downstream, read_corpus

ROOT = Path(__file__).resolve().parent.parent
LOCAL = ROOT / "egs2" / "sslam" / "local"
sys.path.insert(0, str(LOCAL))


def script(corpus: str):
    """The module that prepares a corpus."""
    return importlib.import_module(f"data_{corpus}")


def prepare(corpus: str, folder: Path, datadir: Path, *args) -> dict:
    """Run the preparation; splits by name."""
    words = ["--corpus_dir", folder, "--datadir", datadir, *args]
    script(corpus).main([str(word) for word in words])
    return {split.name: split for split in read_corpus(datadir)}


def run_recipe(*words, script: str = "run.sh", **variables) -> str:
    """Run the recipe's run.sh (or another) to its good end; what it printed."""
    # The recipe's own tools run with the python3 of the search path.
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = [LOCAL.parent / script, "--python", sys.executable, *words]
    done = subprocess.run(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
        env={**os.environ, "PATH": path, **variables},
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


# As slurm.pl does: the tasks at a time, each with its number in place of the name.
TASK_RUNNER = f"""#!{sys.executable}
import signal, subprocess, sys
from pathlib import Path

words = sys.argv[1:]
requeue = words[0] == "--requeue"
words = words[requeue:]
Path(__file__).with_name("calls").write_text(" ".join(words))
while words[0].startswith("--"):
    words = words[2:]
array, log, *command = words
name, _, number = array.partition("=1:")


def start(task):
    words = [word.replace(name, str(task)) for word in command]
    stream = open(log.replace(name, str(task)), "a")
    return subprocess.Popen(words, stdout=stream, stderr=stream)


def stop(*signal):
    for process in processes:
        process.kill()


processes = []
signal.signal(signal.SIGTERM, stop)
for task in range(1, 1 + int(number)):
    processes.append(start(task))
for place, process in enumerate(processes):
    if process.wait() and requeue:
        processes[place] = start(1 + place)
sys.exit(any([process.wait() for process in processes]))
"""


def task_runner(folder: Path, requeue: bool = False) -> str:
    """A stand-in for slurm.pl with options; its last call is in FOLDER/calls."""
    path = folder / "tasks.pl"
    path.write_text(TASK_RUNNER)
    path.chmod(0o755)
    return f"{path} {'--requeue ' * requeue}--mem 2G"


def output_folders(folder: Path) -> list:
    """Options of run.sh that put all output below a folder."""
    names = ("data", "dump", "exp")
    return [word for name in names for word in (f"--{name}dir", folder / name)]


def sizes(splits: dict) -> dict[str, int]:
    """Clips of each split."""
    return {name: len(split.wav) for name, split in splits.items()}


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
    samples = {"no_frames": 0, "one_sample": 1, "short": 399, "truncated": 48000}
    if name == "missing":
        return path
    if name == "directory":
        path.mkdir()
    elif name in ("empty", "text"):
        path.write_text("this is not audio\n" * 100 * (name == "text"))
    elif name in samples:
        soundfile.write(path, noise(samples[name]), 16000)
        if name == "truncated":
            cut(path)
    elif name == "header_only":
        soundfile.write(path, noise(16000), 16000)
        path.write_bytes(path.read_bytes()[:30])
    elif name in ("nan", "infinity"):
        wave = noise(16000)
        wave[12345] = np.nan if name == "nan" else np.inf
        soundfile.write(path, wave, 16000, subtype="FLOAT")
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
