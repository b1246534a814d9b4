"""The recipe end to end, on a corpus smaller still than the demo's."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.corpus_case import output_folders, run_recipe

RECIPE = Path(__file__).resolve().parent.parent / "egs2" / "sslam"

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
