"""What the README shows works as shown."""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet2_sslam.bin import sslam
from espnet2_sslam.checkpoint import save_model
from tests.checkpoint_case import FINETUNED, small_classifier, unpack

README = Path(__file__).parent.parent / "README.md"
SNIPPETS = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
COMMANDS = re.findall(r"^    (sslam .*)$", README.read_text("utf-8"), re.MULTILINE)


@pytest.fixture
def user_folder(tmp_path, monkeypatch):
    """Go to a folder with the files that the README names."""
    rng = np.random.default_rng(0)
    for name in ("clip.wav", "other.flac", "recordings/street.wav"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, rng.uniform(-0.5, 0.5, 24_000).astype("float32"), 16_000)
    save_model(small_classifier(), tmp_path / "models/sslam")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_readme_has_the_snippets_and_commands_that_are_tested():
    assert len(SNIPPETS) >= 3 and len(COMMANDS) >= 5


@pytest.mark.parametrize("code", SNIPPETS, ids=range(len(SNIPPETS)))
def test_python_snippets_run(user_folder, code):
    names = {}
    exec(compile(code, "README", "exec"), names)
    if "features" in names:
        assert names["features"].shape == (32,)
        assert [len(labels) for labels in names["labels"]] == [4, 4]


def test_commands_run_one_after_the_other(user_folder):
    shutil.rmtree("models/sslam")
    unpack(FINETUNED, user_folder).rename("EAT-base_epoch30_ft.pt")
    rows = [f"{index},l{index},sound {index}" for index in range(5)]
    table = "\n".join(["index,mid,display_name", *rows])
    Path("class_labels_indices.csv").write_text(table)
    for command in COMMANDS:
        sslam.main(shlex.split(command)[1:])
    for name in "features.npz", "labels.csv", "events.tsv", "street.png", "sslam.onnx":
        assert Path(name).stat().st_size > 0
