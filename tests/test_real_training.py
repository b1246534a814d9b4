"""Pre-training and classification through ESPnet: chained, resumed, on two ranks."""

import numpy as np
import pytest
import torch

from espnet2_sslam.tasks import SSLAMClassificationTask, SSLAMTask
from tests.toy_task import (
    arguments,
    assert_same,
    state,
    train_with_two_ranks,
    write_clips,
)

SMALL = ["--encoder_conf", "{embed_dim: 16, depth: 2, num_heads: 2, drop_path: 0.2}"]
PRETRAIN = [
    *SMALL,
    *("--model_conf", "{clip_frames: 128, clone_batch: 2, mask_block_size: 2}"),
    *("--model_conf", "decoder_conf={num_layers: 1, groups: 2}"),
    *("--optim_conf", "lr=0.001", "--scheduler_conf", "total_steps=9"),
]
MIXTURE = ["--model_conf", "mixture=true"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Clips with two labels in turn, and some with both or none."""
    folder = tmp_path_factory.mktemp("data")
    sets = [
        write_clips(folder / name, count, shortest=9000)
        for name, count in (("train", 13), ("valid", 7))
    ]
    labels = ["cat", "dog", "cat dog", ""]
    for path, count in zip(sets, (13, 7), strict=True):
        lines = [f"clip{i:02d} {labels[i % 4]}".strip() + "\n" for i in range(count)]
        (path / "text").write_text("".join(lines))
    (folder / "classes.txt").write_text("cat\ndog\n")
    return sets


def classify(data, *more):
    """Return the options of a classification with all its random draws."""
    train, valid = data
    return [
        *("--train_data_path_and_name_and_type", f"{train}/text,label,text"),
        *("--valid_data_path_and_name_and_type", f"{valid}/text,label,text"),
        *("--class_list", str(train.parent / "classes.txt")),
        *("--scheduler_conf", "total_steps=9", *more),
    ]


def run(task, data, folder, more):
    task.main(cmd=arguments(*data, folder, *more))
    return state(folder)


def test_phase_1_then_phase_2_then_a_classifier(data, tmp_path):
    one = run(SSLAMTask, data, tmp_path / "1", [*PRETRAIN, "--max_epoch", "1"])
    init = ["--init_param", f"{tmp_path}/1/latest.pth:::num_updates"]
    more = [*PRETRAIN, *MIXTURE, *init, "--max_epoch", "1"]
    two = run(SSLAMTask, data, tmp_path / "2", more)
    assert one["model"]["num_updates"] == two["model"]["num_updates"] == 3
    init = ["--init_param", f"{tmp_path}/2/latest.pth:encoder:encoder"]
    more = [*classify(data, *init), "--model_conf", "freeze_encoder=true"]
    three = run(SSLAMClassificationTask, data, tmp_path / "3", more)
    for name, value in two["model"].items():
        if name.startswith("encoder."):
            assert torch.equal(value, three["model"][name]), name


@pytest.mark.parametrize(
    "task, more",
    [
        (SSLAMTask, PRETRAIN),
        (SSLAMTask, [*PRETRAIN, *MIXTURE]),
        (SSLAMClassificationTask, None),
    ],
    ids=["phase 1", "phase 2", "fine-tuning"],
)
def test_resumed_training_equals_uninterrupted(data, tmp_path, task, more):
    if more is None:
        more = "{mixup_alpha: 0.8, mask_ratio: 0.2, noise: 0.1, roll_and_gain: true}"
        more = classify(data, *SMALL, "--augment_conf", more)
    whole = run(task, data, tmp_path / "whole", more)
    run(task, data, tmp_path / "parts", [*more, "--max_epoch", "1"])
    assert_same(whole, run(task, data, tmp_path / "parts", [*more, "--resume", "true"]))


@pytest.mark.slow
def test_two_ranks_validate_every_clip_and_train_as_one(data, tmp_path):
    more = [*SMALL, "--encoder_conf", "drop_path=0.0"]
    # Plain gradient descent: Adam would blow up the noise in gradients that are zero
    # by symmetry (the biases of the keys).
    more += ["--model_conf", "loss_reduction=clips", "--optim", "sgd"]
    more = classify(data, *more)
    module = "espnet2_sslam.bin.sslam_cls_train"
    train_with_two_ranks(["-m", module, *arguments(*data, tmp_path / "two", *more)])
    two = state(tmp_path / "two")
    one = run(SSLAMClassificationTask, data, tmp_path / "one", more)
    for name, value in one["model"].items():
        torch.testing.assert_close(two["model"][name], value, rtol=1e-4, atol=1e-6)
    for epoch in (1, 2, 3):
        got, expected = (s["reporter"]["stats"][epoch]["valid"] for s in (two, one))
        assert got["mAP"] == pytest.approx(expected["mAP"], rel=1e-6)


@pytest.mark.slow
def test_two_ranks_pretrain_with_mixtures(data, tmp_path):
    more = [*PRETRAIN, *MIXTURE]
    module = "espnet2_sslam.bin.sslam_train"
    train_with_two_ranks(["-m", module, *arguments(*data, tmp_path / "two", *more)])
    two = state(tmp_path / "two")
    assert two["model"]["num_updates"] == 9
    assert np.isfinite(two["reporter"]["stats"][3]["valid"]["loss"])
