"""The configs of the paper's pre-trainings hold the authors' values, every one.

Origin: ta012/SSLAM@0a3c0ff, SSLAM_Stage2/config/pretraining_AS2M.yaml and
scripts/pretrain_stage2.sh; cwx-worst-one/EAT@06c1c34, config/pretraining_AS2M.yaml and
scripts/pretraining_AS2M.sh. Validation every 4,000 updates, autocast and batches
of one size are ours.
"""

from pathlib import Path

import pytest
import torch
import yaml

from espnet2_sslam.decoder import ConvDecoder

CONF = Path(__file__).resolve().parent.parent / "conf"
BOTH = {
    "encoder_conf": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "model_conf": {
        "clip_frames": 1024,
        "mask_ratio": 0.8,
        "mask_block_size": 5,
        "mask_ratio_adjust": 0.07,
        "utterance_loss_weight": 1.0,
        "utterance_loss_reduction": "sum",
        "decoder_conf": {
            "num_layers": 6,
            "kernel_size": 3,
            "groups": 16,
            "noise_std": 0.01,
        },
        "ema_decay": 0.9998,
        "ema_end_decay": 0.99999,
        "ema_anneal_updates": 100_000,
    },
    "padding": "authors",
    "batch_size": 48,
    "num_iters_per_epoch": 4000,
    "grad_clip": 4.0,
    "use_amp": True,
    "num_workers": 8,
    "drop_last_iter": True,  # ours: the authors' last batch of a pass is smaller
    "optim": "adamw",
    "optim_groups_conf": {"decay_bias_and_norm": True},
    "scheduler": "sslam_warmup_cosine",
    "keep_nbest_models": 1,
}
PHASES = {
    "pretrain_eat_base": (
        {"clone_batch": 16, "mixture": False},
        {"max_epoch": 100, "lr": 5e-4, "warmup_steps": 53_333},
    ),
    "pretrain_sslam_base": (
        {
            "clone_batch": 8,
            "mixture": True,
            "streams": "both",
            "source_retention": True,
            "mixing_rule": "max",
            "regions_per": "batch",
            "utterance_target_layers": 1,
        },
        {"max_epoch": 50, "lr": 5e-5, "warmup_steps": 25_000},
    ),
}


@pytest.mark.parametrize("name", PHASES)
def test_a_config_of_the_paper_holds_these_values_and_no_others(name):
    model, own = PHASES[name]
    expected = {
        **BOTH,
        "model_conf": {**BOTH["model_conf"], **model},
        "max_epoch": own["max_epoch"],
        "optim_conf": {"lr": own["lr"], "betas": [0.9, 0.95], "weight_decay": 0.05},
        "scheduler_conf": {"warmup_steps": own["warmup_steps"], "min_lr": 0.0},
    }
    assert yaml.safe_load((CONF / f"{name}.yaml").read_text()) == expected


@pytest.mark.parametrize("std", [0.01, 0.3])
def test_the_decoders_noise_has_the_configured_strength(std):
    decoder = ConvDecoder(48, num_layers=1, groups=4, noise_std=std)
    noise = decoder.draw_noise((100, 410, 48), torch.float32, torch.Generator())
    assert float(noise.std()) == pytest.approx(std, rel=0.01)
    assert abs(float(noise.mean())) < std / 100
