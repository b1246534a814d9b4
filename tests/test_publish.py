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
    small_classifier,
    small_encoder,
    write_published,
    write_weights,
)

OUT = Path("out")
ROOT = Path(__file__).resolve().parent.parent
FILES = {"model.safetensors", "config.json", "preprocessor_config.json"}
FILES |= {"espnet_model.zip", "README.md", "checksums.txt", "config.yaml"}
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


def change(path, **options):
    """Change options of a config.yaml."""
    content = {**yaml.safe_load(path.read_text()), **options}
    path.write_text(yaml.safe_dump(content))


def same(state, expected):
    return all(torch.equal(state[name], expected[name]) for name in expected)


def later(path, seconds=100):
    """Let a file be one that was written after all others."""
    times = path.stat().st_mtime + seconds
    os.utime(path, (times, times))


# --- the folder


def test_the_folder_holds_model_configs_scores_card_and_hashes(classifier):
    card = publish(classifier)
    names = {p.relative_to(OUT).as_posix() for p in OUT.rglob("*") if p.is_file()}
    records = {"config.yaml", "config_phase1.yaml", "config_phase2.yaml"}
    records |= {"RESULTS.md", "scores.csv"}
    records |= {"metrics/mini_test_linear-evaluation_last.json"}
    assert names == FILES | records
    assert all(f"[{name}]({name})" in card for name in records)
    words = ["sha256sum", "--strict", "-c", "checksums.txt"]
    done = subprocess.run(words, cwd=OUT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count(": OK") == len(names) - 1
    [path] = (OUT / "metrics").iterdir()
    original = classifier / "last/test/metrics.json"
    assert json.loads(path.read_text()) == json.loads(original.read_text())
    for path in OUT, OUT / "espnet_model.zip":
        loaded = load_model(path, cache_dir="cache")
        assert same(loaded.model.state_dict(), small_classifier(101).state_dict())
    assert loaded.classes == CLASSES


def test_the_teacher_can_be_published_but_scores_are_of_the_student(encoder):
    card = publish(encoder, "--weights", "teacher")
    state = load_model(OUT).encoder.state_dict()
    assert same(state, small_encoder(99).state_dict())
    assert "No scores of these weights" in card and "the teacher's" in card


def test_the_same_model_gives_the_same_bytes_without_paths_of_the_machine(
    classifier, root, tmp_path
):
    path = root / "exp/pretrain/phase1_tiny_seed1/config.yaml"
    change(classifier / "config.yaml", encoder_config=str(path), class_names="/m/09x0r")
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
    code = "\n".join(BLOCK.findall(card)) + ESPNET
    done = subprocess.run(
        [sys.executable, "-c", code],
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
    data = ModelCard.load(OUT / "README.md").data
    assert data.license == "cc-by-4.0" and data.library_name == "espnet2_sslam"
    assert data.pipeline_tag == "audio-classification"
    assert {"espnet", "audio-classification"} <= set(data.tags)
    assert data.datasets == ["sslam-mini"] and data.metrics == ["mAP"]
    [result] = data.eval_results
    assert (result.dataset_name, result.dataset_split) == ("mini", "test")
    path = classifier / "last/test/metrics.json"
    assert result.metric_value == json.loads(path.read_text())["mAP"]


def test_the_card_tells_trainings_and_limits_from_the_records(classifier):
    card = publish(classifier)
    rows = re.findall(r"^\| (phase \d|linear evaluation) \| (.*) \|$", card, re.M)
    assert [name for name, _ in rows] == ["phase 1", "phase 2", "linear evaluation"]
    first = rows[0][1].split(" | ")
    assert first[:4] == ["pretrain/train", "600", "0.500", "20 (epoch 2)"]
    assert float(first[4]) == 0.1  # hours: two epochs of 90 s, validation as long
    assert rows[2][1].split(" | ")[1] == "4"
    assert first[6] == "random weights" and "phase1_tiny_seed1" in rows[1][1]
    assert "unknown" not in "".join(row for _, row in rows)
    for words in (
        "Small: 2 blocks of 32 channels",
        "0.5 hours of audio; the paper's is on AudioSet-2M",
        "synthetic sounds only",
        "Pre-training heard test clips, without labels: 3 of mini/test",
        "No test clip of: rain",
    ):
        assert words in card


def test_an_earlier_epoch_has_its_own_updates(encoder):
    write_weights(encoder, torch.load(encoder / "2epoch.pth"), 1)
    card = publish(encoder / "1epoch.pth")
    assert "| phase 2 | pretrain/train | 600 | 0.500 | 10 (epoch 1) | 0.050 |" in card


def test_an_encoder_has_the_scores_of_its_own_linear_evaluation(root):
    cards = [
        publish(root / f"exp/pretrain/phase2_tiny_seed{seed}", "--overwrite")
        for seed in (1, 2)
    ]
    rows = [re.search(r"^\| mini \| test \|.*$", card, re.M)[0] for card in cards]
    # AP of the classes with positives: GOOD gives 1, SWAPPED 7/12 and 1.
    assert "| 4 | - | 100.0" in rows[0] and "79.2" in rows[1]
    assert all("linear evaluation, checkpoint last" in row for row in rows)
    assert "value: 0.7917" in cards[1]


def test_a_best_checkpoint_that_was_chosen_on_test_clips_says_so(classifier):
    path = classifier / "config.yaml"
    path.write_text(path.read_text().replace("mini/valid/wav.scp", "mini/test/wav.scp"))
    write_weights(classifier, torch.load(classifier / "2epoch.pth"), 3)  # the last
    card = publish(classifier / "valid.mAP.best.pth")
    assert "chosen on the test clips" in card and "model-index" not in card


# --- what is unknown


def test_weights_without_records_are_unknown_in_every_section(model, capsys):
    card = publish(model)
    for words in (
        "Unknown: the weights came without the records of a training.",
        "No scores of these weights are recorded.",
        "- weights: unknown",
        "- training data: unknown",
        "license: unknown",
    ):
        assert words in card
    assert capsys.readouterr().out.count("unknown: ") == 4


def test_the_authors_weights_keep_their_origin(tmp_path):
    path = unpack(FINETUNED, tmp_path)
    Path("labels.txt").write_text("".join(f"sound {index}\n" for index in range(5)))
    sslam(["convert", str(path), "m", "--labels", "labels.txt"])
    card = publish("m")
    assert f"| file | `{FINETUNED}` |" in card
    assert f"| SHA-256 | `{sha256(path)}` |" in card
    assert "layout of the authors" in card and "The authors' terms apply" in card
    origin = json.loads((OUT / "config.json").read_text())["origin"]
    assert origin["layout"] == "fairseq"


@pytest.mark.parametrize("changed", ["data", "start", "scores"])
def test_what_is_newer_than_the_weights_or_older_than_they_is_not_taken_over(
    encoder, classifier, root, changed
):
    if changed == "data":
        later(root / "dump/pretrain/train/wav.scp")
        card = publish(encoder)
        assert "| phase 2 | unknown | unknown | unknown | 20 (epoch 2) |" in card
    elif changed == "start":
        later(root / "exp/pretrain/phase1_tiny_seed1/2epoch.pth")
        assert "| phase 1 |" not in publish(encoder)
    else:
        later(classifier / "2epoch.pth")
        assert "No scores of these weights" in publish(classifier)
        later(encoder / "2epoch.pth", 200)
        assert "No scores of these weights" in publish(encoder, "--overwrite")


def test_weights_from_elsewhere_at_the_start_are_named(classifier, root):
    first = root / "exp/models/eat"
    first.mkdir(parents=True)
    weights = {f"encoder.{k}": v for k, v in small_encoder(7).state_dict().items()}
    torch.save(weights, first / "encoder.pth")
    os.utime(first / "encoder.pth", (0, 0))
    origin = {"file": "EAT.pt", "sha256": "cd" * 32, "layout": "fairseq"}
    (first / "config.yaml").write_text(yaml.safe_dump({"origin": origin}))
    start = ["exp/models/eat/encoder.pth:encoder:encoder"]
    change(classifier / "config.yaml", init_param=start)
    card = publish(classifier)
    assert "`EAT.pt`" in card and "| phase 2 |" not in card


def test_a_run_outside_of_the_recipe_is_published_too(encoder):
    shutil.copytree(encoder, "alone", symlinks=True)
    Path("alone/checkpoint.pth").unlink()
    card = publish("alone")
    assert "| phase 2 | unknown | unknown | unknown | unknown | unknown | 1 |" in card


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
        ("metrics.json", "--metrics is SET/SPLIT=metrics.json"),
        ("mini=metrics.json", "--metrics is SET/SPLIT=metrics.json"),
        ("mini/test=none.json", "none.json cannot be read: No such file"),
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


def test_another_experiment_with_the_encoder_can_be_named(refused, encoder, root):
    (root / "elsewhere").mkdir()
    for name in ("linear_tiny", "results", "RESULTS.md"):
        (root / "exp" / name).rename(root / "elsewhere" / name)
    assert "No scores" in publish(encoder)
    for place in (root / "elsewhere", root / "elsewhere/RESULTS.md"):
        card = publish(encoder, "--results", place, "--overwrite")
        assert "| mini | test | 4 | - | 100.0" in card and "(RESULTS.md)" in card
    other = root / "elsewhere/linear_tiny/phase2_seed2/mini"
    assert "holds no scores of" in refused(encoder, "--results", other)
    assert "no such file" in refused(encoder, "--results", root / "none")


# --- an earlier folder


def test_a_folder_that_was_edited_is_not_replaced_without_a_word(refused, classifier):
    publish(classifier)
    publish(classifier)  # as it was written: replaced
    card = OUT / "README.md"
    card.write_text(card.read_text() + "by hand\n")
    line = refused(classifier)
    assert "changed by hand (README.md)" in line and "--overwrite" in line
    assert card.read_text().endswith("by hand\n")
    assert "by hand" not in publish(classifier, "--overwrite")


def test_a_folder_of_something_else_is_never_replaced(refused, classifier):
    OUT.mkdir()
    (OUT / "thesis.txt").write_text("mine")
    for options in ([], ["--overwrite"]):
        assert "was not written by" in refused(classifier, *options)
    assert (OUT / "thesis.txt").read_text() == "mine"
    assert "own folder" in refused(classifier, output=classifier)
    assert "is a file" in refused(classifier, output=OUT / "thesis.txt")


def test_a_failure_leaves_the_earlier_folder(refused, classifier, monkeypatch):
    publish(classifier)
    before = (OUT / "README.md").read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ModelCard, "from_template", full)
    assert "no space left" in refused(classifier, "--license", "mit")
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
    refused, classifier, options, complaint
):
    assert complaint in refused(classifier, *options, output=None)
