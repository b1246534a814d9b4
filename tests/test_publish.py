"""A published folder: whole, the same every time, its card true to the records."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import torch
import yaml
from huggingface_hub import ModelCard

from espnet2_sslam.bin.cli import main as sslam
from espnet2_sslam.checkpoint import load_model, save_model
from espnet2_sslam.store import sha256
from tests.checkpoint_case import FINETUNED, unpack
from tests.command_case import command
from tests.publish_case import (
    CLASSES,
    PHASE_1,
    small_classifier,
    small_encoder,
    write_published,
    write_weights,
)

OUT = Path("out")
ROOT = Path(__file__).resolve().parent.parent
FILES = {"model.safetensors", "config.json", "preprocessor_config.json"}
FILES |= {"espnet_model.zip", "README.md"}
RECORDS = {"config.yaml", "RESULTS.md", "scores.csv"}
RECORDS |= {"metrics/mini_test_linear-evaluation_last.json"}
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An experiment with its results."""
    root = tmp_path_factory.mktemp("finished")
    write_published(root)
    return root


@pytest.fixture
def root(finished, tmp_path):
    """A copy of it to change."""
    shutil.copytree(finished, tmp_path / "recipe", symlinks=True)
    return tmp_path / "recipe"


@pytest.fixture
def encoder(root):
    return root / "exp/pretrain/phase2_tiny_seed1"


@pytest.fixture
def classifier(root):
    return root / "exp/linear_tiny/phase2_seed1/mini"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Every test has a working folder of its own."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def model():
    """A classifier without records."""
    return save_model(small_classifier(), "model")


def publish(model, *options, output=OUT):
    """Publish and return the card's text."""
    sslam(["publish", str(model), "--output", str(output), *map(str, options)])
    return (output / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def refused(capsys):
    """Publish in vain and return the only line."""

    def run(model, *options, output=OUT):
        words = ["--output", output] if output else []
        status, _, stderr = command(capsys, "publish", model, *options, *words)
        assert status == 1 and stderr.count("\n") == 1, stderr
        return stderr

    return run


def same(state, expected):
    return all(torch.equal(state[name], expected[name]) for name in expected)


def later(path):
    """Let a file be one that was written after all others."""
    times = path.stat().st_mtime + 100
    os.utime(path, (times, times))


# --- the folder


def test_the_folder_holds_model_records_and_card_and_nothing_else(classifier):
    card = publish(classifier)
    names = {p.relative_to(OUT).as_posix() for p in OUT.rglob("*") if p.is_file()}
    assert names == FILES | RECORDS
    assert all(f"[{name}]({name})" in card for name in RECORDS)
    for path in OUT, OUT / "espnet_model.zip":
        loaded = load_model(path, cache_dir="cache")
        assert same(loaded.model.state_dict(), small_classifier(101).state_dict())
    assert loaded.classes == CLASSES


def test_the_teacher_can_be_published_but_records_are_of_the_student(encoder):
    card = publish(encoder, "--weights", "teacher")
    state = load_model(OUT).encoder.state_dict()
    assert same(state, small_encoder(99).state_dict())
    assert "without the records of a training" in card and "the teacher's" in card


def test_the_same_model_gives_the_same_bytes_without_paths_of_the_machine(
    classifier, root, tmp_path
):
    path = root / "exp/pretrain/phase1_tiny_seed1/config.yaml"
    with open(classifier / "config.yaml", "a") as config:
        config.write(f"encoder_config: {path}\nclass_names: /m/09x0r\n")
    publish(classifier)
    publish(classifier, output=Path("again/out"))
    for path in OUT.rglob("*.*"):
        content = path.read_bytes()
        assert content == ("again" / path).read_bytes()
        assert str(tmp_path).encode() not in content, path
    shown = yaml.safe_load((OUT / "config.yaml").read_text())
    assert shown["encoder_config"] == ".../pretrain/phase1_tiny_seed1/config.yaml"
    assert shown["class_names"] == "/m/09x0r"  # AudioSet's names are no paths


def test_a_published_model_needs_no_other_file(classifier, root, tmp_path):
    card = publish(classifier, "--name", "moved")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.move(OUT, elsewhere / "moved")
    shutil.rmtree(root)
    soundfile.write(elsewhere / "clip.wav", torch.randn(8_000).mul(0.1), 8_000)
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(BLOCK.findall(card)) + ESPNET],
        cwd=elsewhere,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(elsewhere)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "same"


ESPNET = """
import torch
from espnet2.main_funcs.pack_funcs import unpack
from espnet2_sslam.checkpoint import load_model
assert len(labels) == 3 and {x["label"] for x in classify("clip.wav")} == set(
    dict(labels)
)
files = unpack("moved/espnet_model.zip", "unpacked")
state = torch.load(files["classification_model_file"])
own = load_model("moved").model.state_dict()
assert state.keys() == own.keys()
print("same" if all(torch.equal(own[k], state[k]) for k in own) else "different")
"""


def test_the_code_in_an_encoders_card_runs(encoder):
    card = publish(encoder, "--name", "out")
    soundfile.write("clip.wav", torch.randn(16_000).mul(0.1), 16_000)
    names = {}
    exec(compile("\n".join(BLOCK.findall(card)), "card", "exec"), names)
    assert names["features"].shape == (32,)
    assert names["hidden"].shape[-1] == 32


# --- what the card says


def test_the_metadata_are_what_hugging_face_reads(classifier):
    publish(classifier, "--license", "cc-by-4.0", "--name", "tiny")
    data = ModelCard.load(OUT / "README.md", ignore_metadata_errors=False).data
    assert data.license == "cc-by-4.0" and data.library_name == "espnet"
    assert data.pipeline_tag == "audio-classification"
    assert data.tags == ["espnet", "audio", "classification", "sslam"]
    assert data.datasets == ["sslam-mini"] and data.metrics == ["mAP"]
    [result] = data.eval_results
    assert (result.dataset_name, result.dataset_split) == ("mini", "test")
    path = classifier / "last/test/metrics.json"
    assert result.metric_value == json.loads(path.read_text())["mAP"]


def test_an_encoders_metadata_call_it_what_espnet_does(encoder):
    publish(encoder)
    data = ModelCard.load(OUT / "README.md", ignore_metadata_errors=False).data
    assert (data.library_name, data.pipeline_tag) == ("espnet", "feature-extraction")
    assert data.tags == ["espnet", "audio", "self-supervised-learning", "sslam"]
    assert data.license == "unknown"  # a word of the Hub


def test_a_licence_in_other_words_than_the_hubs_is_refused(refused, encoder):
    line = refused(encoder, "--license", "CC BY 4.0")
    assert "--license 'CC BY 4.0' is not a word of Hugging Face" in line
    assert not OUT.exists()


def test_the_card_tells_training_and_limits_from_the_records(encoder, classifier):
    card = publish(encoder)
    for words in (
        "on single sounds and on mixtures",
        "| data | pretrain/train |",
        "| clips | 600 |",
        "| updates | 20 (epoch 2) |",
        "| wall hours | 0.100 |",  # two epochs of 90 s, validation as long
        f"| started from | `{PHASE_1}` |",
        "Small: 2 blocks of 32 channels",
        "0.5 hours of audio; the paper's is on AudioSet-2M",
        "synthetic sounds only",
        "Pre-training heard test clips, without labels: 3 of mini/test",
        "(RESULTS.md)",
    ):
        assert words in card
    write_weights(encoder, torch.load(encoder / "2epoch.pth"), 1)
    assert "| updates | 10 (epoch 1) |" in publish(encoder / "1epoch.pth")
    card = publish(classifier)
    assert "| training | linear evaluation |" in card and "| clips | 4 |" in card
    assert "| mini | test | 4 | - | 100.0" in card
    assert "No test clip of: rain" in card


def test_a_best_checkpoint_that_was_chosen_on_test_clips_says_so(classifier):
    path = classifier / "config.yaml"
    path.write_text(path.read_text().replace("mini/valid/wav.scp", "mini/test/wav.scp"))
    write_weights(classifier, torch.load(classifier / "2epoch.pth"), 3)  # the last
    card = publish(classifier / "valid.mAP.best.pth")
    assert "chosen on the test clips" in card and "model-index" not in card


# --- what is unknown


def test_weights_without_records_are_unknown_in_every_section(model):
    card = publish(model)
    for words in (
        "Unknown: the weights came without the records of a training.",
        "No scores of these weights are recorded.",
        "- weights: unknown",
        "- training data: unknown",
        "license: unknown",
    ):
        assert words in card


def test_the_authors_weights_keep_their_origin(tmp_path):
    path = unpack(FINETUNED, tmp_path)
    Path("labels.txt").write_text("".join(f"sound {index}\n" for index in range(5)))
    sslam(["convert", str(path), "m", "--labels", "labels.txt"])
    card = publish("m")
    assert f"| file | `{FINETUNED}` |" in card
    assert f"| SHA-256 | `{sha256(path)}` |" in card
    assert "layout of the authors" in card and "The authors' terms apply" in card


def test_records_that_do_not_belong_to_the_weights_are_not_taken_over(
    encoder, classifier, root
):
    later(root / "dump/pretrain/train/wav.scp")
    assert "| data | unknown |" in publish(encoder)
    later(classifier / "2epoch.pth")  # the scores are of earlier weights
    assert "No scores of these weights" in publish(classifier, "--overwrite")
    shutil.copytree(encoder, "alone", symlinks=True)
    Path("alone/checkpoint.pth").unlink()
    card = publish("alone", "--overwrite")
    assert "| updates | unknown |" in card and "RESULTS.md" not in card


# --- scores that the user names


def test_scores_can_be_named(classifier, model):
    scores = classifier / "last/test/metrics.json"
    card = publish(model, "--metrics", f"my set/test={scores}")
    assert "| my set | test | 4 | - | 100.0" in card
    assert "named by the publisher" in card and "type: my-set" in card
    assert (OUT / "metrics/my-set_test.json").is_file()


@pytest.mark.parametrize(
    "metrics, complaint",
    [
        ("mini=metrics.json", "--metrics is SET/SPLIT=metrics.json"),
        ("mini/test=none.json", "No such file or directory: none.json"),
        ("mini/test=broken.json", "not a metrics.json"),
        ("mini/test=other.json", "scores 1 classes, which are not those of the model"),
    ],
)
def test_scores_that_are_not_of_the_model_are_refused(
    refused, model, metrics, complaint
):
    Path("broken.json").write_text("{}")
    other = {"mAP": 0.5, "num_clips": 3, "per_class": {"cat": 0.5}}
    Path("other.json").write_text(json.dumps(other))
    assert complaint in refused(model, "--metrics", metrics)
    assert not OUT.exists()


# --- an earlier folder


def test_a_folder_that_was_edited_is_not_replaced_without_a_word(refused, model):
    publish(model)
    publish(model)  # as it was written: replaced
    card = OUT / "README.md"
    card.write_text(card.read_text() + "by hand\n")
    (OUT / "own.png").touch()
    line = refused(model)
    assert "changed by hand (README.md, own.png)" in line and "--overwrite" in line
    assert card.read_text().endswith("by hand\n")
    assert "by hand" not in publish(model, "--overwrite")


def test_a_folder_of_something_else_is_never_replaced(refused, model):
    OUT.mkdir()
    (OUT / "thesis.txt").write_text("mine")
    assert "was not written by" in refused(model, "--overwrite")
    assert (OUT / "thesis.txt").read_text() == "mine"
    assert "own folder" in refused(model, output=model)
    assert "is a file" in refused(model, output=OUT / "thesis.txt")


def test_a_failure_leaves_the_earlier_folder(refused, model, monkeypatch):
    publish(model)
    before = (OUT / "README.md").read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ModelCard, "from_template", full)
    assert "no space left" in refused(model, "--license", "mit")
    assert (OUT / "README.md").read_bytes() == before
    assert not list(Path().glob(".out*"))


@pytest.mark.parametrize(
    "options, complaint",
    [
        ([], "--output DIR is needed"),
        (["--private"], "--private and --revision are for --hf_repo"),
        (["--hf_repo", "name"], "--hf_repo is user/name, not 'name'"),
        (["--hf_repo", "me/x"], "was not written by `sslam publish`"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    refused, model, options, complaint
):
    assert complaint in refused(model, *options, output=None)
