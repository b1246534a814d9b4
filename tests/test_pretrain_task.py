"""The pre-training task: its configurations, its checks, its clip length."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from espnet2_sslam.features import kaldi_fbank
from espnet2_sslam.tasks import SSLAMTask
from tests.toy_task import arguments, write_clips

CONF = Path(__file__).resolve().parent.parent / "conf"
CONFIGS = sorted(CONF.glob("pretrain_*.yaml"))
UPDATES = {
    "pretrain_eat_base": 400_000,
    "pretrain_sslam_base": 200_000,
    "pretrain_eat_tiny": 400,
    "pretrain_sslam_tiny": 200,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    return write_clips(folder / "train", 48), write_clips(folder / "valid", 4)


def parse(data, folder, config, *more):
    """Options of a training, checked as main() does it."""
    command = [*arguments(*data, folder), "--batch_size", "48", "--config", str(config)]
    parser = SSLAMTask.get_parser()
    args = parser.parse_args([*command, *more])
    args.max_epoch = yaml.safe_load(config.read_text())["max_epoch"]
    SSLAMTask.check_and_complete(args)
    return args


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_is_accepted_and_makes_its_updates(data, tmp_path, config):
    args = parse(data, tmp_path, config)
    assert args.scheduler_conf["total_steps"] == UPDATES[config.stem]
    head = config.read_text()
    for field in ("# What:", "# Source:", "# Cost:", "# Result:"):
        assert field in head
    assert SSLAMTask.min_clips_per_rank(args) == (2 if "sslam" in config.stem else 1)


@pytest.mark.parametrize(
    "phase, lr, warmup, clones, mixture",
    [("eat", 5e-4, 53_333, 16, False), ("sslam", 5e-5, 25_000, 8, True)],
)
def test_base_configurations_have_the_papers_values(phase, lr, warmup, clones, mixture):
    config = yaml.safe_load((CONF / f"pretrain_{phase}_base.yaml").read_text())
    assert config["optim_conf"] == {
        "lr": lr,
        "betas": [0.9, 0.95],
        "weight_decay": 0.05,
    }
    assert config["scheduler_conf"]["warmup_steps"] == warmup
    assert config["grad_clip"] == 4.0 and config["batch_size"] == 48
    model = config["model_conf"]
    assert (model["clone_batch"], model["mixture"]) == (clones, mixture)
    assert model["mask_ratio"] == 0.8 and model["mask_ratio_adjust"] == 0.07
    assert model["mask_block_size"] == 5 and model["clip_frames"] == 1024
    assert model["ema_decay"] == 0.9998 and model["ema_end_decay"] == 0.99999
    assert model["utterance_loss_reduction"] == "sum"


def test_clips_are_cut_to_exactly_the_models_frames(data, tmp_path):
    args = parse(data, tmp_path, CONF / "pretrain_sslam_tiny.yaml")
    preprocess = SSLAMTask.build_preprocess_fn(args, train=True)
    long = {"speech": np.random.default_rng(0).normal(size=80_000).astype("float32")}
    cut = torch.from_numpy(preprocess("clip", long)["speech"])[None]
    assert kaldi_fbank(cut)[1].tolist() == [256]


def test_a_model_is_built_with_the_seed_of_the_training(data, tmp_path):
    args = parse(data, tmp_path, CONF / "pretrain_sslam_tiny.yaml", "--seed", "5")
    model = SSLAMTask.build_model(args)
    assert model.seed == 5 and model.streams == ("unmixed", "mixed")
    assert model.encoder.config.embed_dim == 96
