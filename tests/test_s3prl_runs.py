"""s3prl's real commands through our wrapper, on miniatures of SUPERB and HEAR."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from espnet2_sslam.checkpoint import save_model
from tests.checkpoint_case import small_encoder
from tests.s3prl_data import (
    noisy_sounds,
    tone_digits,
    write_hear_scene,
    write_ks_config,
    write_speech_commands,
)

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent
# Measured, the same with torch 2.11 and torch 2.8.
FBANK_KEYWORDS = 0.5159
FBANK_SOUNDS = 0.5


def s3prl(folder, *words, status=0):
    """Run a command of s3prl as a user would, in a folder; its stderr and stdout."""
    run = subprocess.run(
        [sys.executable, "-m", "espnet2_sslam", "-m", *map(str, words)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
        capture_output=True,
    )
    assert run.returncode == status, run.stderr[-3000:]
    return run.stderr + run.stdout


def scores(folder, split):
    """Accuracies that run_downstream logged for a split, by step."""
    lines = (folder / "log.log").read_text().splitlines()
    found = [re.fullmatch(rf"{split} at step (\d+): (.+)", line) for line in lines]
    return {int(match[1]): float(match[2]) for match in found if match}


@pytest.fixture(scope="module")
def keywords(tmp_path_factory):
    """Keyword spotting: the folder with config.yaml and the corpus."""
    folder = tmp_path_factory.mktemp("ks")
    train, test = write_speech_commands(folder, tone_digits(14), test_from=10)
    write_ks_config(folder / "config.yaml", train, test, steps=40)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a tiny model, whose weights are random."""
    return save_model(small_encoder(), tmp_path_factory.mktemp("model"))


def downstream(folder, *words, status=0):
    words = ["s3prl.run_downstream", *words, "--device", "cpu"]
    return s3prl(folder, *words, status=status)


TRAIN = ["-m", "train", "-d", "speech_commands", "-c", "config.yaml"]


def test_keyword_spotting_with_fbank_gives_the_same_accuracy_on_every_stack(keywords):
    downstream(keywords, *TRAIN, "-u", "fbank_no_cmvn", "-p", "fbank")
    accuracy = scores(keywords / "fbank", "test")[40]
    assert accuracy == pytest.approx(FBANK_KEYWORDS, abs=0.01)


def test_keyword_spotting_with_sslam_trains_evaluates_and_resumes(keywords, model):
    (keywords / "sslam.yaml").write_text(yaml.safe_dump({"weights": "student"}))
    options = ["-u", "sslam", "-k", model, "-g", "sslam.yaml", "-p", "exp"]
    log = downstream(keywords, *TRAIN, *options)
    assert log.count("fills in for s3prl") == 1
    trained = scores(keywords / "exp", "test")
    assert set(trained) == {40}

    downstream(keywords, "-m", "evaluate", "-e", "exp/states-40.ckpt")
    assert scores(keywords / "exp", "test")[0] == trained[40]

    longer = "config.runner.total_steps=80"
    log = downstream(keywords, "-m", "train", "-e", "exp", "-o", longer)
    assert "Resume from exp/states-40.ckpt" in log
    assert set(scores(keywords / "exp", "test")) == {0, 40, 80}


def test_a_mistake_of_the_user_is_one_line(keywords):
    (keywords / "typo.yaml").write_text("frequency: mean\n")
    options = ["-u", "sslam", "-g", "typo.yaml", "-p", "wrong"]
    log = downstream(keywords, *TRAIN, *options, status=1)
    assert "\nerror: sslam has no option frequency; it has" in log
    assert "Traceback" not in log


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """A HEAR scene task in the layout of ESC-50."""
    folder = tmp_path_factory.mktemp("hear")
    return write_hear_scene(folder / "esc50", noisy_sounds(4, 10)).parent


def hear(folder, name, *words, steps=20):
    """HEAR's ESC-50 on the first fold; its accuracy."""
    command = f"""
        s3prl.main HearESC50 --target_dir {name} --cache_dir cache --device cpu
        --num_workers 0 --prepare_data.dataset_root esc50 --prepare_data.test_fold 0
        --train.total_steps {steps} --train.eval_step 20 --train.save_step 20
        --train.log_step 20 --train.gradient_accumulate 1
    """
    log = s3prl(folder, *command.split(), *words)
    result = folder / name / "evaluate" / "valid_best" / "test" / "result.yaml"
    return yaml.safe_load(result.read_text())["top1_acc"], log


def test_hear_with_fbank_gives_the_same_accuracy_on_every_stack(sounds):
    accuracy, _ = hear(sounds, "fbank", "--build_upstream.name", "fbank_no_cmvn")
    assert accuracy == pytest.approx(FBANK_SOUNDS, abs=0.01)


def test_hear_with_sslam_trains_and_resumes(sounds, model):
    words = ["--build_upstream.name", "sslam"]
    words += ["--build_upstream.extra_conf.ckpt", model]
    words += ["--build_upstream.extra_conf.freq", "mean"]
    accuracy, _ = hear(sounds, "sslam", *words)
    assert 0 <= accuracy <= 1
    _, log = hear(sounds, "sslam", *words, steps=40)
    assert "step_20" in log
