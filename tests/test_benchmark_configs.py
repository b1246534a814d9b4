"""The configs of the paper's benchmarks have the values of the authors' own runs.

Origin: the overrides that their runs recorded (ta012/SSLAM@0a3c0ff, experiments/*/
.hydra/overrides.yaml of SSLAM_Ft_AS2M, SSLAM_Ft_AS20K, SSLAM_Ft_SPASS and
SSLAM_LinearEval_SPASS), config/finetuning.yaml there, and the scripts of EAT
(cwx-worst-one/EAT@06c1c34, scripts/finetuning_ESC50.sh and finetuning_SPCv2.sh).
"""

from pathlib import Path

import pytest
import yaml

CONF = Path(__file__).resolve().parent.parent / "conf"
# lr, batch size, updates, warm-up, mixup, mask ratio, frames, mean and std, loss
RUNS = {
    "finetune_as2m": (5e-5, 96, 400_000, 40_000, 0.8, 0.2, 1024, None),
    "finetune_as20k": (5e-5, 48, 40_000, 4000, 0.8, 0.2, 1024, None),
    "finetune_esc50": (5e-5, 48, 4000, 400, 0.0, 0.4, 512, (-6.627, 5.359)),
    "finetune_ks2": (2e-4, 256, 40_000, 4000, 0.8, 0.2, 128, (-6.846, 5.565)),
    "finetune_spass": (5e-5, 48, 3906, 390, 0.8, 0.2, 1024, (-5.275, 3.268)),
    "linear_spass": (1e-3, 48, 3906, 0, 0.8, 0.2, 1024, (-5.275, 3.268)),
}
LOSSES = {  # task, loss by default for it or named, label smoothing
    "finetune_esc50": ("multi_class", None, 0.1),
    "finetune_ks2": ("multi_class", "binary_cross_entropy", None),
}


def read(name):
    return yaml.safe_load((CONF / f"{name}.yaml").read_text())


@pytest.mark.parametrize("name", RUNS)
def test_a_config_has_the_values_of_the_authors_run(name):
    config, encoder = read(name), read(name)["encoder_conf"]
    lr, batch, updates, warmup, mixup, mask, frames, stats = RUNS[name]
    assert config["optim_conf"]["lr"] == lr
    assert config["batch_size"] == batch
    assert config["max_epoch"] * config["num_iters_per_epoch"] == updates
    assert config["scheduler_conf"]["warmup_steps"] == warmup
    assert config["augment_conf"].get("mixup_alpha", 0.0) == mixup
    assert config["augment_conf"]["mask_ratio"] == mask
    assert encoder["target_frames"] == frames
    own_stats = encoder.get("fbank_mean"), encoder.get("fbank_std")
    assert own_stats == (stats or (None, None))
    assert encoder.get("override_fbank_stats", False) == (stats is not None)
    task, loss, smoothing = LOSSES.get(name, ("multi_label", None, None))
    model = config["model_conf"]
    assert (model["task"], model.get("loss")) == (task, loss)
    assert model.get("label_smoothing") == smoothing
    assert model["pooling"] == "cls"


# The configs of benchmarks whose settings are not released.
NAMES = {
    path.stem for kind in ("finetune", "linear") for path in CONF.glob(f"{kind}_*")
}
OWN = {f"{kind}_{size}" for kind in ("finetune", "linear") for size in ("tiny", "base")}
ASSUMED = sorted(NAMES - {*RUNS} - OWN)


@pytest.mark.parametrize("name", [*RUNS, *ASSUMED])
def test_what_is_common_to_all_is_the_same_everywhere(name):
    config, linear = read(name), name.startswith("linear")
    augment, model = config["augment_conf"], config["model_conf"]
    assert config["optim"] == "adamw"
    assert config["optim_conf"]["betas"] == [0.9, 0.95]
    assert config["optim_conf"]["weight_decay"] == 0.05
    assert config["optim_groups_conf"]["decay_bias_and_norm"] is True
    assert config["optim_groups_conf"].get("layer_decay") == (None if linear else 0.65)
    assert config["scheduler_conf"]["min_lr"] == 1e-6
    assert config["scheduler_conf"]["scale_min_lr"] is False
    assert config["grad_clip"] == float("inf")
    assert config["encoder_conf"]["drop_path"] == 0.1
    assert augment["roll_and_gain"] is True
    assert augment.get("mixup_probability", 0.9) == 0.9
    assert augment.get("noise", 0) == (0.1 if "ks" in name else 0)
    for option in "freeze_encoder", "frozen_drop_path":
        assert model.get(option, False) == linear
    measure = "accuracy" if name[-3:] in ("c50", "ks1", "ks2") else "mAP"
    assert config["best_model_criterion"] == [["valid", measure, "max"]]
    balanced = {"finetune_as2m": 200_000, "finetune_ks1": 12_800}
    assert config.get("balanced_clips_per_epoch") == balanced.get(name)


@pytest.mark.parametrize("name", ASSUMED)
def test_what_is_assumed_is_called_so(name):
    text = (CONF / f"{name}.yaml").read_text()
    words = "not released" if name != "finetune_fsd50k" else "the paper does not use it"
    assert words in " ".join(text.replace("#", " ").split())
