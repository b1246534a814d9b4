"""Fine-tuning with two processes (gloo, CPU) is fine-tuning with one."""

import pytest
import torch

from tests.classification_case import options, write_data
from tests.toy_task import start, state, train_with_two_ranks

TRAIN = ["-m", "espnet2_sslam.bin.sslam_cls_train"]


@pytest.mark.slow
def test_two_processes_train_and_validate_as_one_does(tmp_path):
    (tmp_path / "data").mkdir()
    data = write_data(tmp_path / "data")
    changes = {"batch_size": 8, "max_epoch": 2, "optim": "sgd"}
    train_with_two_ranks(TRAIN + options(data, tmp_path / "two", **changes))
    process = start(*TRAIN, *options(data, tmp_path / "one", **changes))
    errors = process.communicate(timeout=300)[1]
    assert process.returncode == 0, errors[-2000:]

    one, two = state(tmp_path / "one"), state(tmp_path / "two")
    for name, value in one["model"].items():
        assert torch.allclose(value, two["model"][name], rtol=1e-4, atol=1e-6), name
    for epoch in (1, 2):
        alone, shared = (run["reporter"]["stats"][epoch]["valid"] for run in (one, two))
        assert shared["num_clips"] == alone["num_clips"] == 7
        assert shared["mAP"] == pytest.approx(alone["mAP"])
        assert shared["loss"] == pytest.approx(alone["loss"], rel=1e-4)
