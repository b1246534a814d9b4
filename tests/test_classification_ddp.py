"""Fine-tuning with two processes (gloo, CPU) is fine-tuning with one."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.classification_case import options, write_data

ROOT = Path(__file__).parent.parent


def start(words):
    command = [sys.executable, "-m", "espnet2_sslam.bin.sslam_cls_train", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *sys.path])
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def finish(processes):
    for process in processes:
        _, error = process.communicate(timeout=300)
        assert process.returncode == 0, error[-2000:]


@pytest.mark.slow
def test_two_processes_train_and_validate_as_one_does(tmp_path):
    (tmp_path / "data").mkdir()
    data = write_data(tmp_path / "data")
    changes = {"batch_size": 8, "max_epoch": 2, "optim": "sgd"}
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    common = options(data, tmp_path / "two", **changes) + ["--dist_backend", "gloo"]
    common += ["--dist_world_size", "2", "--dist_master_addr", "localhost"]
    common += ["--dist_master_port", str(port)]
    both = [start([*common, "--dist_rank", str(rank)]) for rank in (0, 1)]
    finish(both)
    finish([start(options(data, tmp_path / "one", **changes))])

    one, two = (
        torch.load(tmp_path / name / "checkpoint.pth", weights_only=False)
        for name in ("one", "two")
    )
    for name, value in one["model"].items():
        assert torch.allclose(value, two["model"][name], rtol=1e-4, atol=1e-6), name
    for epoch in (1, 2):
        alone, shared = (run["reporter"]["stats"][epoch]["valid"] for run in (one, two))
        assert shared["num_clips"] == alone["num_clips"] == 7
        assert shared["mAP"] == pytest.approx(alone["mAP"])
        assert shared["loss"] == pytest.approx(alone["loss"], rel=1e-4)
