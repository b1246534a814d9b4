"""The examples do what they say, and the notebook runs from end to end."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet2_sslam import SSLAM
from espnet2_sslam.checkpoint import save_model
from tests.checkpoint_case import small_classifier

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """models/sslam, and clips of a low and of a high tone in a folder each."""
    rng = np.random.default_rng(0)
    for name, hertz in (("low", 300), ("high", 3000)):
        folder = tmp_path / "labelled" / name
        folder.mkdir(parents=True)
        for index in range(10):
            time = np.arange(16_000) / 16_000
            tone = np.sin(2 * np.pi * hertz * rng.uniform(0.8, 1.2) * time)
            wave = 0.1 * tone + 0.01 * rng.standard_normal(16_000)
            soundfile.write(folder / f"{index}.wav", wave, 16_000)
    save_model(small_classifier(), tmp_path / "models/sslam")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(name, *words):
    command = [sys.executable, EXAMPLES / name, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_fine_tuning_in_plain_pytorch_learns_and_writes_a_model_that_tags(folders):
    options = ["--epochs", 15, "--batch_size", 8, "--lr", "3e-3"]
    stdout = run("fine_tune.py", "models/sslam", "labelled", "models/tones", *options)
    assert "100.0 % of held-out clips right" in stdout.splitlines()[-2]
    model = SSLAM.from_pretrained("models/tones")
    assert model.tag("labelled/high/0.wav", top_k=1)[0][0] == "high"
    assert model.tag("labelled/low/0.wav", top_k=1)[0][0] == "low"


def test_the_notebook_runs(folders, capsys, monkeypatch):
    notebook = json.loads((EXAMPLES / "tour.ipynb").read_text("utf-8"))
    shutil.copytree("labelled", "recordings")
    Path("notebooks").mkdir()
    monkeypatch.chdir("notebooks")  # as Jupyter is in the notebook's own folder
    names = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), "tour.ipynb", "exec"), names)
            assert not cell["outputs"], "clear the outputs before committing"
    out = capsys.readouterr().out
    assert "20 recordings" in out and "held-out clips right" in out


def test_pairs_that_sound_alike_come_first(folders):
    copy = folders / "labelled/copy.wav"
    copy.write_bytes((folders / "labelled/high/3.wav").read_bytes())
    first, *others = run("similar.py", "models/sslam", "labelled", "-k", 5).splitlines()
    assert first.startswith("1.000") and "copy.wav" in first and "high/3.wav" in first
    assert len(others) == 4
