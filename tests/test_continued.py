"""Commands that are killed and given again: the same bytes, and nothing left over."""

import multiprocessing
import os
import random
import shutil
import signal
import sys

import numpy as np
import pytest
import soundfile
import torch

from espnet2_sslam.bin.cli import main as sslam
from espnet2_sslam.bin.cli import run_main
from espnet2_sslam.checkpoint import save_model
from espnet2_sslam.classifier import SSLAMClassifier
from espnet2_sslam.encoder import SSLAMEncoder

# Children of a server that has imported torch, which takes a fresh process seconds.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.test_continued", "espnet2_sslam.inference"])
OUTPUTS = {
    "embed csv": ("out.csv",),
    "embed tsv": ("out.tsv",),
    "embed json": ("out.json",),
    "embed jsonl": ("out.jsonl", "--pooling", "cls"),
    "embed npz": ("out.npz", "--chunk", "0.7", "--layer", "all"),
    "embed ark": ("out.ark", "--pooling", "frames"),
    "tag csv": ("out.csv", "--top_k", "0"),
    "tag npz": ("out.npz",),
    "tag ark": ("out.ark", "--frames"),
    "tag tsv": ("out.tsv", "--events", "--threshold", "0.5"),
}


QUICK = ("embed npz", "tag ark", "convert")  # cases that are tested every time
COMMANDS = {
    "convert": ("convert", "model", "out"),
    "convert to Hugging Face": ("convert", "model", "out", "--to", "huggingface"),
    "convert in place": ("convert", "model", "copy", "--overwrite"),
    "convert to ESPnet": ("convert", "model", "out.pth"),
    "plot": ("plot", "model", "clips/00.wav", "-o", "out.svg"),
    "export": ("export", "model", "out.onnx"),
}


def choose(cases):
    """The cases as parameters, most of them slow: each is several processes."""
    slow = pytest.mark.slow
    return [c if c in QUICK else pytest.param(c, marks=slow) for c in cases]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small classifier, and clips from 0.1 s to 6 s."""
    folder = tmp_path_factory.mktemp("continued")
    torch.manual_seed(0)
    sizes = {"embed_dim": 64, "depth": 2, "num_heads": 2, "max_frames": 256}
    encoder = SSLAMEncoder(fbank_mean=-4.0, fbank_std=4.0, **sizes)
    model = SSLAMClassifier(encoder, ["cat", "dog"], task="multi_label")
    save_model(model, folder / "model")
    (folder / "clips").mkdir()
    rng = np.random.default_rng(0)
    for number in range(60):
        wave = 0.1 * rng.standard_normal(int(16000 * rng.uniform(0.1, 2.5)))
        if number in (11, 12, 40):
            wave = np.tile(wave, 4)
        soundfile.write(folder / f"clips/{number:02d}.wav", wave, 16000)
    (folder / "clips/20.wav").write_text("no audio")
    return folder


def killed(folder, words, point, number):
    """Run a command and get a signal at its `point`-th write, rename or result."""
    os.chdir(folder)
    torch.set_num_threads(1)
    sys.stderr = open("log", "a")
    sys.stdout = sys.stderr
    left = [point]

    def patch(module, name):
        plain = getattr(module, name)

        def call(*args, **kwargs):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), number)
            return plain(*args, **kwargs)

        setattr(module, name, call)

    from espnet2_sslam import store

    patch(os, "replace")
    patch(os, "fsync")
    patch(store.Journal, "append")
    run_main(lambda: sslam(words))


def run(folder, words, point=0, number=signal.SIGKILL):
    """The exit status of the command in a process of its own."""
    words = list(map(str, words))
    child = SERVER.Process(target=killed, args=(folder, words, point, number))
    child.start()
    child.join()
    return child.exitcode


def content(place):
    """All files below a folder and their bytes."""
    return {
        str(path.relative_to(place)): path.read_bytes()
        for path in sorted(place.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("case", choose(OUTPUTS))
def test_results_of_a_killed_command_are_continued_to_the_same_bytes(
    folder, tmp_path, case
):
    name, *more = OUTPUTS[case]
    words = [case.split()[0], "model", "clips", *more, "--batch_seconds", 4, "-o"]
    # one clip is no audio: status 1, and the results of the others stay for its repair
    assert run(folder, [*words, tmp_path / "whole" / name]) == 1
    generator = random.Random(case)
    points, kills = [generator.randint(1, 22) for _ in range(3)], 0
    for point in [*points, 0]:
        status = run(folder, [*words, tmp_path / "killed" / name], point)
        kills += status == -signal.SIGKILL
        assert status in ((1, -signal.SIGKILL) if point else (1,))
    assert kills == 3
    expected, got = content(tmp_path / "whole"), content(tmp_path / "killed")
    results = [name for name in expected if ".part/" not in name]
    assert results and [name for name in got if ".part/" not in name] == results
    for each in results:
        place = bytes(tmp_path / "killed"), bytes(tmp_path / "whole")
        assert got[each].replace(*place) == expected[each], each


@pytest.mark.parametrize("case", choose(COMMANDS))
def test_a_killed_command_that_is_given_again_leaves_the_same_and_nothing_else(
    folder, tmp_path, case
):
    modules = {"plot": ["matplotlib"], "export": ["onnx", "onnxscript", "onnxruntime"]}
    for module in modules.get(case, ()):
        pytest.importorskip(module, reason=f"{module} is not installed")
    for name in "model", "clips":
        (tmp_path / name).symlink_to(folder / name)
    if "in place" in case:
        shutil.copytree(folder / "model", tmp_path / "copy")
        (tmp_path / "copy/notes.txt").write_text("mine")
    events = 0  # until the command is through: a kill at each of them
    while True:
        events += 1
        status = run(tmp_path, COMMANDS[case], events)
        if status == 0:
            break
        if status == 1:  # the kill before came when all was in place
            assert "is there already" in (tmp_path / "log").read_text()
            break
        assert status == -signal.SIGKILL
        left = content(tmp_path / "out") if (tmp_path / "out").exists() else {}
        assert len(left) in (0, 2, 3)
    assert events > 1
    (tmp_path / "log").unlink()
    got = content(tmp_path)
    names = [name for name in got if name.split("/")[0] not in ("model", "clips")]
    expected = {
        "convert": ["config.json", "model.safetensors", "preprocessor_config.json"],
        "convert to Hugging Face": ["config.json", "model.safetensors"],
    }
    whole = [f"out/{name}" for name in expected.get(case, ())]
    if "in place" in case:
        whole = [f"copy/{name}" for name in expected["convert"]]
        whole.insert(2, "copy/notes.txt")
    assert names == (whole or [COMMANDS[case][-1]])
    before = {name: got[name] for name in names}
    again = ["--overwrite"] if case.startswith("convert") else []
    assert run(tmp_path, [*COMMANDS[case], *again]) == 0
    (tmp_path / "log").unlink()
    assert {name: content(tmp_path)[name] for name in names} == before


@pytest.mark.parametrize("name, status", [("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_command_that_a_signal_ends_tidies_up(folder, tmp_path, name, status):
    (tmp_path / "model").symlink_to(folder / "model")
    words = ["convert", "model", "out.pth"]
    assert run(tmp_path, words, 1, getattr(signal, name)) == status
    log = (tmp_path / "log").read_text()
    assert log.splitlines()[-1] == f"error: interrupted by {name}"
    assert {path.name for path in tmp_path.iterdir()} == {"model", "log"}
