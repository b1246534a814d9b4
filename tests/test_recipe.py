"""The recipe end to end, on a corpus smaller still than the demo's."""

import json
import lzma
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from espnet2_sslam.bin import sslam_convert
from espnet2_sslam.results import read_history
from tests.corpus_case import output_folders, run_recipe

RECIPE = Path(__file__).resolve().parent.parent / "egs2" / "sslam"
EAT = Path(__file__).resolve().parent / "golden" / "tiny_fairseq_pretrain.pt.xz"

pytestmark = pytest.mark.slow


def small(folder):
    """Options of a small corpus with all output below `folder`."""
    few = "--max_epoch 1 --num_iters_per_epoch 6"
    words = ["--seeds", 1, *output_folders(folder)]
    words += ["--data_args", "--mini_scale 0.1", "--finetune_args", few]
    words += ["--pretrain_args", f"{few} --scheduler_conf warmup_steps=1"]
    return [*words, "--pretrain_tag", "small", "--finetune_tag", "linear"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The output folder of a run of all stages whose phase 1 was once killed."""
    folder = tmp_path_factory.mktemp("recipe")
    words = [RECIPE / "run.sh", "--python", sys.executable, *small(folder)]
    process = subprocess.Popen(
        [str(word) for word in (*words, "--stop_stage", 4)], start_new_session=True
    )
    log = folder / "exp/pretrain/phase1_small_seed1/train.log"
    deadline = time.time() + 300
    while not (log.exists() and "epoch started" in log.read_text()):
        assert process.poll() is None and time.time() < deadline, log
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not log.with_name(".done").exists()
    run_recipe(*small(folder), "--stage", 4)
    return folder


def test_killed_and_run_again_it_ends_with_a_table_of_all_models(finished):
    text = (finished / "exp/RESULTS.md").read_text()
    for model in "random", "phase1", "phase2":
        assert re.search(rf"^\| {model} \| \d", text, re.MULTILINE), text
    assert "test_single" in text and "test_poly" in text
    assert "All expected runs are there and finished." in text


def test_every_clip_is_scored_once(finished):
    for split in "test_single", "test_poly":
        clips = (finished / f"dump/raw/mini/{split}/text").read_text().splitlines()
        scored = list(finished.glob(f"exp/linear/*/mini/*/{split}/metrics.json"))
        assert len(scored) == 6  # the last and the best of three models
        for metrics in scored:
            assert json.loads(metrics.read_text())["num_clips"] == len(clips)


def test_models_share_the_statistics_of_the_pre_training_data(finished):
    stats = json.loads((finished / "dump/raw/report/fbank_stats.json").read_text())
    configs = list(finished.glob("exp/*/*/**/config.yaml"))
    assert len(configs) == 5  # two pre-trainings, three classifiers
    for config in configs:
        assert f"fbank_mean: {stats['mean']}" in config.read_text()


def test_a_second_run_trains_and_scores_nothing(finished):
    output = run_recipe(*small(finished))
    assert "started" not in output
    # stages 1 to 3, two pre-trainings, three fine-tunings and their scorings
    assert output.count("up to date") == 3 + 2 + 3 + 3


def test_features_can_be_the_input(finished):
    words = ["--feats_type", "fbank", "--pretrain_tag", "features"]
    run_recipe(*small(finished), *words, "--stage", 2, "--stop_stage", 4)
    config = finished / "exp/pretrain/phase1_features_seed1/config.yaml"
    assert "input_size: 128" in config.read_text()


def test_variants_cost_the_same_and_stand_beside_what_was_there(finished):
    words = ["--models", "phase1_more phase2:mixed phase2:both"]
    run_recipe(*small(finished), *words, "--stage", 5)
    text = (finished / "exp/RESULTS.md").read_text()
    assert "phase2 against phase1_more |" in text
    for model in "random", "phase1", "phase1_more", "phase2:mixed", "phase2":
        assert re.search(rf"^\| {model} \| \d", text, re.MULTILINE), text
    assert "All expected runs are there and finished." in text
    costs, terms = [], []
    for run in "phase1-more", "phase2-mixed", "phase2-both", "phase2":
        history = read_history(finished / f"exp/pretrain/{run}_small_seed1")
        config = history.config
        conf = config["model_conf"]
        streams = 1 if conf.get("streams", "both") != "both" else 2
        costs.append(
            {
                "rows": conf["clone_batch"] * streams * config["batch_size"],
                "updates": history.updates,
                "teacher": [v for k, v in conf.items() if k.startswith("ema_")],
                **{
                    k: config[k] for k in ("optim_conf", "scheduler_conf", "init_param")
                },
                "rates": history.epoch_curve("train", "optim0_lr0")[1].tolist(),
                "decay": history.epoch_curve("train", "ema_decay")[1].tolist(),
            }
        )
        terms.append("loss_retention" in history.stats[1]["train"])
    assert costs[0]["updates"] == 6 and costs[0]["rates"] and costs[0]["decay"]
    assert all(cost == costs[0] for cost in costs)
    assert terms == [False, False, False, True]


@pytest.mark.parametrize("kind", ["authors", "folder"])
def test_phase_2_goes_on_from_weights_of_others(finished, tmp_path, kind):
    weights = tmp_path / "EAT.pt"
    weights.write_bytes(lzma.decompress(EAT.read_bytes()))
    if kind == "folder":
        sslam_convert.main([str(weights), str(tmp_path / "eat")])
        weights = tmp_path / "eat"
    conf = "--model_conf '{decoder_conf: {num_layers: 2, groups: 4}}'"
    conf += " --optim_conf lr=1.0e-9"
    words = [*small(finished), "--expdir", tmp_path / "exp", "--phase1", weights]
    words += ["--pretrain2_args", conf, "--stage", 4, "--stop_stage", 5]
    output = run_recipe(*words)
    taken = {"authors": "teacher taken, decoder taken"}
    taken["folder"] = "teacher fresh (a copy of the student), decoder fresh (random)"
    assert f"3 blocks of 48 channels; {taken[kind]}" in output
    run = tmp_path / "exp/pretrain/phase2_small_seed1"
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["encoder_conf"]["fbank_mean"] == -4.268  # the weights' own
    name = "EAT" if kind == "authors" else "eat"
    [start] = tmp_path.glob(f"exp/models/phase1_{name}_????????/latest.pth")
    start = torch.load(start)
    trained = torch.load(run / "latest.pth")
    assert trained["num_updates"] == 6
    parts = {"encoder.", "teacher.", "decoder."} if kind == "authors" else {"encoder."}
    assert parts == {f"{key.split('.')[0]}." for key in start if "." in key}
    for key, value in start.items():
        if key.startswith("encoder."):  # so small a rate leaves it as it was
            assert torch.allclose(trained[key], value, atol=1e-5), key
