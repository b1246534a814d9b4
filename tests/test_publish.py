"""A published folder: whole, the same every time, its card true to the records."""

import json
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

from espnet2_sslam.bin import sslam
from espnet2_sslam.checkpoint import load_model, save_model
from espnet2_sslam.integrations.publish import folder as folder_module
from espnet2_sslam.integrations.publish.evaluation import Score, over_folds
from tests.checkpoint_case import FINETUNED, unpack
from tests.command_case import command
from tests.publish_case import (
    CLASSES,
    record,
    score_record,
    small_classifier,
    small_encoder,
    write_published,
    write_table,
    write_weights,
)
from tests.results_case import BAD, write_scores

ROOT = Path(__file__).resolve().parent.parent
FILES = {"model.safetensors", "config.json", "preprocessor_config.json"}
FILES |= {"espnet_model.zip", "README.md", "checksums.txt", "config.yaml"}
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An experiment as stage 7 leaves it."""
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


@pytest.fixture
def publish(tmp_path):
    """Publish and return the card's text; the folder is tmp_path/out."""

    def run(model, *options, output=tmp_path / "out"):
        sslam.main(["publish", str(model), "--output", str(output), *map(str, options)])
        return (output / "README.md").read_text(encoding="utf-8")

    return run


@pytest.fixture
def refused(capsys, tmp_path):
    """Publish in vain and return the only line."""

    def run(model, *options, output=tmp_path / "out"):
        words = ["publish", model, *options]
        words += ["--output", output] if output else []
        status, _, stderr = command(capsys, sslam.main, *words)
        assert status == 1 and stderr.count("\n") == 1, stderr
        return stderr

    return run


# --- the folder


def test_the_folder_holds_model_packed_model_configs_card_and_hashes(
    publish, classifier, tmp_path
):
    publish(classifier)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == FILES | {"config_phase1.yaml", "config_phase2.yaml"}
    out = ["sha256sum", "--strict", "-c", "checksums.txt"]
    done = subprocess.run(out, cwd=tmp_path / "out", capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count(": OK") == len(names) - 1


def test_the_weights_are_those_of_the_run(publish, classifier, tmp_path):
    publish(classifier)
    wanted = small_classifier(101).state_dict()
    for path in (tmp_path / "out", tmp_path / "out/espnet_model.zip"):
        loaded = load_model(path, cache_dir=tmp_path / "cache")
        found = loaded.model.state_dict()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert loaded.classes == CLASSES


def test_the_teacher_can_be_published(publish, encoder, tmp_path):
    card = publish(encoder, "--weights", "teacher")
    found = load_model(tmp_path / "out").encoder.state_dict()
    wanted = small_encoder(99).state_dict()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    # The scores are of the student.
    assert "No scores of these weights" in card and "the teacher's" in card


def test_the_same_model_gives_the_same_bytes(publish, classifier, tmp_path):
    publish(classifier)
    publish(classifier, output=tmp_path / "again/out")
    for path in (tmp_path / "out").iterdir():
        assert path.read_bytes() == (tmp_path / "again/out" / path.name).read_bytes()


def test_no_file_tells_where_it_was_made(publish, classifier, root, tmp_path):
    path = classifier / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["encoder_config"] = f"{root}/exp/pretrain/phase1_tiny_seed1/config.yaml"
    path.write_text(yaml.safe_dump(config))
    score_record(root, classifier)
    publish(classifier)
    for path in (tmp_path / "out").iterdir():
        assert str(tmp_path).encode() not in path.read_bytes(), path
    shown = yaml.safe_load((tmp_path / "out/config.yaml").read_text())
    assert shown["encoder_config"] == ".../pretrain/phase1_tiny_seed1/config.yaml"


def test_a_published_model_needs_no_other_file(publish, classifier, root, tmp_path):
    card = publish(classifier, "--name", "moved")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.move(tmp_path / "out", elsewhere / "moved")
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


def test_the_code_in_an_encoders_card_runs(publish, encoder, tmp_path, monkeypatch):
    card = publish(encoder, "--name", "out")
    monkeypatch.chdir(tmp_path)
    soundfile.write("clip.wav", torch.randn(16_000).mul(0.1), 16_000)
    names = {}
    exec(compile("\n".join(BLOCK.findall(card)), "card", "exec"), names)
    assert names["features"].shape == (32,)
    assert names["hidden"].shape[-1] == 32


# --- what the card says


def test_the_metadata_are_what_hugging_face_reads(publish, classifier, tmp_path):
    publish(classifier, "--license", "cc-by-4.0", "--name", "tiny")
    data = ModelCard.load(tmp_path / "out/README.md").data
    assert data.license == "cc-by-4.0" and data.library_name == "espnet2_sslam"
    assert data.pipeline_tag == "audio-classification"
    assert {"espnet", "audio-classification"} <= set(data.tags)
    assert data.datasets == ["sslam-mini"] and data.metrics == ["mAP"]
    [result] = data.eval_results
    assert (result.dataset_name, result.dataset_split) == ("mini", "test")
    path = classifier / "last/test/metrics.json"
    assert result.metric_value == json.loads(path.read_text())["mAP"]


def test_the_card_tells_the_trainings_from_their_records(publish, classifier):
    card = publish(classifier)
    rows = re.findall(r"^\| (phase \d|linear evaluation) \| (.*) \|$", card, re.M)
    assert [name for name, _ in rows] == ["phase 1", "phase 2", "linear evaluation"]
    first = rows[0][1].split(" | ")
    assert first[:4] == ["pretrain/train", "600", "0.500", "20 (epoch 2)"]
    assert float(first[4]) == 0.1  # hours: two epochs of 90 s, validation as long
    assert rows[2][1].split(" | ")[1] == "4"
    assert "unknown" not in "".join(row for _, row in rows)


def test_an_earlier_epoch_has_its_own_updates(publish, encoder):
    write_weights(encoder, torch.load(encoder / "2epoch.pth"), 1)
    card = publish(encoder / "1epoch.pth")
    assert "| phase 2 | pretrain/train | 600 | 0.500 | 10 (epoch 1) | 0.050 |" in card


def test_the_table_shows_all_seeds_of_the_experiment(publish, classifier):
    card = publish(classifier)
    # AP of the classes with positives: GOOD gives 1, SWAPPED 7/12 and 1, BAD 5/12.
    assert "| random | 41.7 (one seed) |" in card
    assert "| phase2 | 89.6 ± 14.7 |" in card
    assert "commit abc123" in card


def test_an_encoder_has_the_scores_of_its_own_linear_evaluation(publish, root):
    cards = [
        publish(root / f"exp/pretrain/phase2_tiny_seed{seed}", "--overwrite")
        for seed in (1, 2)
    ]
    rows = [re.search(r"^\| mini \| test \|.*$", card, re.M)[0] for card in cards]
    assert "100.0" in rows[0] and "79.2" in rows[1]
    assert all("linear evaluation, checkpoint last" in row for row in rows)
    assert "value: 0.7917" in cards[1]


def test_the_limits_name_what_is_not_good(publish, classifier):
    card = publish(classifier)
    for words in (
        "Small: 2 blocks of 32 channels",
        "0.5 hours of audio; the paper's is on AudioSet-2M",
        "synthetic sounds only",
        "Pre-training heard test clips, without labels: 3 of mini/test",
        "No test clip of: rain",
    ):
        assert words in card


def test_a_best_checkpoint_that_was_chosen_on_test_clips_says_so(
    publish, classifier, root
):
    path = classifier / "config.yaml"
    config = path.read_text().replace(
        "dump/mini/valid/wav.scp", "dump/mini/test/wav.scp"
    )
    path.write_text(config)
    state = torch.load(classifier / "2epoch.pth")
    write_weights(classifier, {k: v + 1 for k, v in state.items()}, 3)  # the last
    score_record(root, classifier)
    card = publish(classifier / "valid.mAP.best.pth")
    assert "chosen on the test clips" in card and "model-index" not in card


def test_folds_are_averaged_and_single_sets_are_not():
    def score(data_set, value, clips, empty=()):
        metrics = {"mAP": value, "accuracy": value / 2, "num_clips": clips}
        metrics["classes_without_positives"] = list(empty)
        metrics["intervals"] = {"mAP": [0, 1]}
        return Score("tag", "fine-tuning", data_set, "test", "last", metrics)

    scores = [score("esc50_fold1", 0.5, 40, ["pig"]), score("esc50_fold2", 0.7, 38)]
    folds = {"esc50_fold1": "esc50", "esc50_fold2": "esc50"}
    mean, other = over_folds([*scores, score("mini", 0.9, 7)], folds)
    assert mean.data_set == "esc50" and mean.metrics["folds"] == 2
    assert mean.metrics["mAP"] == pytest.approx(0.6)
    assert mean.metrics["accuracy"] == pytest.approx(0.3)
    assert mean.metrics["num_clips"] == 78 and "intervals" not in mean.metrics
    assert mean.metrics["classes_without_positives"] == ["pig"]
    assert other.data_set == "mini" and other.metrics["mAP"] == 0.9
    assert other.metrics["intervals"] == {"mAP": [0, 1]}


# --- what is unknown


def test_weights_without_records_are_unknown_in_every_section(
    publish, tmp_path, capsys
):
    save_model(small_classifier(), tmp_path / "model")
    card = publish(tmp_path / "model")
    for words in (
        "Unknown: the weights came without the records of a training.",
        "No scores of these weights are recorded.",
        "- weights: unknown",
        "- training data: unknown",
        "license: unknown",
    ):
        assert words in card
    assert capsys.readouterr().out.count("unknown: ") == 4


def test_the_authors_weights_keep_their_origin(publish, tmp_path):
    path = unpack(FINETUNED, tmp_path)
    labels = tmp_path / "labels.txt"
    labels.write_text("".join(f"sound {index}\n" for index in range(5)))
    sslam.main(["convert", str(path), str(tmp_path / "m"), "--labels", str(labels)])
    card = publish(tmp_path / "m")
    assert f"| file | `{FINETUNED}` |" in card
    assert f"| SHA-256 | `{folder_module.sha256(path)}` |" in card
    assert "layout of the authors" in card and "The authors' terms apply" in card
    origin = json.loads((tmp_path / "out/config.json").read_text())["origin"]
    assert origin["layout"] == "fairseq"


def test_data_that_were_changed_are_not_described(publish, encoder, root):
    (root / "dump/pretrain/train/wav.scp").write_text("other clips\n")
    card = publish(encoder)
    assert "| phase 2 | unknown | unknown | unknown | 20 (epoch 2) |" in card
    assert "what pretrain/phase2_tiny_seed1 was trained on" in card


def test_a_start_that_was_changed_is_not_described(publish, encoder, root):
    first = root / "exp/pretrain/phase1_tiny_seed1"
    write_weights(first, torch.load(root / "exp/pretrain/phase1_tiny_seed2/latest.pth"))
    card = publish(encoder)
    assert "| phase 1 |" not in card
    assert "phase1_tiny_seed1/latest.pth has changed" in card


def test_weights_from_elsewhere_at_the_start_are_named(publish, classifier, root):
    first = root / "exp/models/eat"
    first.mkdir(parents=True)
    weights = {f"encoder.{k}": v for k, v in small_encoder(7).state_dict().items()}
    torch.save(weights, first / "encoder.pth")
    origin = {"file": "EAT.pt", "sha256": "cd" * 32, "layout": "fairseq"}
    (first / "config.yaml").write_text(yaml.safe_dump({"origin": origin}))
    path = classifier / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["init_param"] = ["exp/models/eat/encoder.pth:encoder:encoder"]
    path.write_text(yaml.safe_dump(config))
    card = publish(classifier)
    assert "started from `EAT.pt`" in card and "cd" * 32 in card
    assert "how the weights were made that linear evaluation started from" in card


def test_scores_of_other_weights_are_not_taken_over(publish, classifier, encoder):
    for run, state in ((classifier, small_classifier(5)), (encoder, None)):
        if state is None:
            other = torch.load(run / "2epoch.pth")
            write_weights(run, {k: v + 1 for k, v in other.items()})
        else:
            write_weights(run, state.state_dict())
        assert "No scores of these weights" in publish(run, "--overwrite")


# --- scores that the user names


def test_scores_can_be_named(publish, classifier, tmp_path, root):
    save_model(small_classifier(), tmp_path / "model")
    scores = classifier / "last/test/metrics.json"
    card = publish(tmp_path / "model", "--metrics", f"my set/test={scores}")
    assert "| my set | test | 4 | - | 100.0" in card
    assert "named by the publisher" in card and "type: my-set" in card


@pytest.mark.parametrize(
    "metrics, complaint",
    [
        ("metrics.json", "--metrics is DATASET/SPLIT=metrics.json"),
        ("mini=metrics.json", "--metrics is DATASET/SPLIT=metrics.json"),
        ("mini/test=none.json", "none.json cannot be read: No such file"),
        ("mini/test=broken.json", "not a metrics.json"),
        ("mini/test=other.json", "scores 1 classes, which are not those of the model"),
    ],
)
def test_scores_that_are_not_of_the_model_are_refused(
    refused, tmp_path, monkeypatch, metrics, complaint
):
    save_model(small_classifier(), tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    Path("broken.json").write_text("{}")
    other = {"mAP": 0.5, "num_clips": 3, "per_class": {"cat": 0.5}}
    Path("other.json").write_text(json.dumps(other))
    assert complaint in refused("model", "--metrics", metrics)
    assert not (tmp_path / "out").exists()


def test_another_experiment_with_the_encoder_can_be_named(publish, encoder, root):
    (root / "exp/linear_tiny").rename(root / "linear_tiny")
    shutil.rmtree(root / "exp/results")
    (root / "elsewhere").mkdir()
    (root / "linear_tiny").rename(root / "elsewhere/linear_tiny")
    assert "No scores" in publish(encoder)
    card = publish(encoder, "--results", root / "elsewhere")
    assert "| mini | test | 4 | - | 100.0" in card


def test_results_of_other_weights_are_refused(refused, encoder, root):
    other = root / "exp/linear_tiny/phase2_seed2/mini"
    assert "holds no scores of" in refused(encoder, "--results", other)
    assert "no such file" in refused(encoder, "--results", root / "none")


def test_scores_that_were_changed_since_stage_7_are_refused(refused, classifier):
    path = classifier / "last/test/metrics.json"
    path.write_text(path.read_text().replace('"mAP": 1.0', '"mAP": 0.9'))
    assert "has changed since stage 7: run it again" in refused(classifier)


def test_a_table_that_is_older_than_the_scores_is_refused(refused, classifier, root):
    for name in ("last", "best"):
        write_scores(classifier / name / "test", root / "dump/mini/test", BAD)
    score_record(root, classifier)
    assert "run stage 7 again" in refused(classifier)
    write_table(root)


# --- an earlier folder


def test_a_folder_that_was_edited_is_not_replaced_without_a_word(
    publish, refused, classifier, tmp_path
):
    publish(classifier)
    publish(classifier)  # as it was written: replaced
    card = tmp_path / "out/README.md"
    card.write_text(card.read_text() + "by hand\n")
    line = refused(classifier)
    assert "changed by hand (README.md)" in line and "--overwrite" in line
    assert card.read_text().endswith("by hand\n")
    assert "by hand" not in publish(classifier, "--overwrite")


def test_a_folder_of_something_else_is_never_replaced(refused, classifier, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.txt").write_text("mine")
    for options in ([], ["--overwrite"]):
        assert "was not written by" in refused(classifier, *options)
    assert (tmp_path / "out/thesis.txt").read_text() == "mine"
    assert "own folder" in refused(classifier, output=classifier)
    assert "is a file" in refused(classifier, output=tmp_path / "out/thesis.txt")


def test_a_failure_leaves_the_earlier_folder(
    publish, refused, classifier, tmp_path, monkeypatch
):
    publish(classifier)
    before = (tmp_path / "out/README.md").read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder_module, "write_card", full)
    assert "no space left" in refused(classifier, "--license", "mit")
    assert (tmp_path / "out/README.md").read_bytes() == before
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".out")]


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


def test_a_run_outside_of_the_recipe_is_published_too(publish, encoder, tmp_path):
    shutil.copytree(encoder, tmp_path / "alone", symlinks=True)
    (tmp_path / "alone/.done").unlink()
    (tmp_path / "alone/checkpoint.pth").unlink()
    card = publish(tmp_path / "alone")
    assert "| phase 2 | unknown | unknown | unknown | unknown | unknown | 1 |" in card


def test_large_files_are_told_apart_by_size_and_time(tmp_path, monkeypatch):
    from espnet2_sslam.integrations.publish import records

    (tmp_path / "a").write_text("abc")
    monkeypatch.setattr(records, "HASH_LIMIT", 2)
    record(tmp_path, [tmp_path / "a"])
    state = records.read_record(tmp_path)["inputs"][str(tmp_path / "a")]
    assert state == [3, (tmp_path / "a").stat().st_mtime_ns]
    assert records.recorded({"x/a": 1}, "a") == 1
    assert records.recorded({"xa": 1}, "a") is None
