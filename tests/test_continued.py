"""Commands that are killed with SIGKILL and given again: the same bytes, nothing left."""

import multiprocessing
import os
import random
import signal
import sys
from pathlib import Path

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


def killed(folder, words, point):
    """Run a command and be killed at its `point`-th write, rename or result."""
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
                os.kill(os.getpid(), signal.SIGKILL)
            return plain(*args, **kwargs)

        setattr(module, name, call)

    from espnet2_sslam import store

    patch(os, "replace")
    patch(os, "fsync")
    patch(store.Journal, "append")
    run_main(lambda: sslam(words))


def run(folder, words, point=0):
    """The exit status of the command in a process of its own."""
    child = SERVER.Process(target=killed, args=(folder, list(map(str, words)), point))
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


@pytest.mark.parametrize("case", OUTPUTS)
def test_results_of_a_killed_command_are_continued_to_the_same_bytes(
    folder, tmp_path, case
):
    name, *more = OUTPUTS[case]
    words = [case.split()[0], "model", "clips", *more, "--batch_seconds", 4, "-o"]
    # one clip is no audio: status 1, and the results of the others stay for its repair
    assert run(folder, [*words, tmp_path / "whole" / name]) == 1
    generator = random.Random(case)
    points, kills = [generator.randint(1, 22) for _ in range(4)], 0
    for point in [*points, 0]:
        status = run(folder, [*words, tmp_path / "killed" / name], point)
        kills += status == -signal.SIGKILL
        assert status in ((1, -signal.SIGKILL) if point else (1,))
    assert kills >= 3
    expected, got = content(tmp_path / "whole"), content(tmp_path / "killed")
    results = [name for name in expected if ".part/" not in name]
    assert results and [name for name in got if ".part/" not in name] == results
    for each in results:
        place = bytes(tmp_path / "killed"), bytes(tmp_path / "whole")
        assert got[each].replace(*place) == expected[each], each
