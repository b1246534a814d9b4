"""Trainings in processes of their own: kills, ranks, spawned ranks, clean stdout."""

import multiprocessing
import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest
import yaml

from espnet2_sslam.tasks.saving import STOPPED, has_checkpoint
from tests.toy_task import (
    SpawningTask,
    ToyTask,
    arguments,
    assert_same,
    fork,
    start,
    state,
    write_clips,
)

pytestmark = pytest.mark.slow

# Trains the toy, and is killed in the middle of writing the second checkpoint.
KILLED_WHILE_WRITING = """
import os, signal, sys
import torch
from tests.toy_task import ToyTask

plain, written = torch.save, []

def save(states, stream):
    written.append(stream.name)
    if len(written) == 3:
        stream.write(b"half a checkpoint")
        stream.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    plain(states, stream)

torch.save = save
ToyTask.main(cmd=sys.argv[1:])
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return write_clips(folder / "train", 13), write_clips(folder / "valid", 6)


def train_here(data, folder, *more):
    ToyTask.main(cmd=arguments(*data, folder, *more))
    return state(folder)


def test_killed_within_an_epoch_and_resumed_equals_uninterrupted(data, tmp_path):
    more = ("--max_samples", "1500", "--num_workers", "1")
    parts = (*more, "--die_at_update", "5")
    command = arguments(*data, tmp_path / "parts", *parts)
    process = start("-m", "tests.toy_task", *command)
    errors = process.communicate()[1]
    assert process.returncode == -signal.SIGKILL, errors
    assert state(tmp_path / "parts")["reporter"]["epoch"] == 1
    parts = train_here(data, tmp_path / "parts", *parts, "--resume", "true")
    assert_same(parts, train_here(data, tmp_path / "whole", *more))


def test_killed_while_writing_and_resumed_equals_uninterrupted(data, tmp_path):
    command = arguments(*data, tmp_path / "parts")
    process = start("-c", KILLED_WHILE_WRITING, *command)
    errors = process.communicate()[1]
    assert process.returncode == -signal.SIGKILL, errors
    assert state(tmp_path / "parts")["reporter"]["epoch"] == 1
    parts = train_here(data, tmp_path / "parts", "--resume", "true")
    assert_same(parts, train_here(data, tmp_path / "whole"))
    assert not list((tmp_path / "parts").glob(".*.tmp"))


def test_printed_configuration_is_yaml_that_can_be_used(data, tmp_path):
    process = start("-m", "tests.toy_task", "--print_config", "--seed", "5")
    printed, errors = process.communicate()
    assert process.returncode == 0, errors
    config = yaml.safe_load(printed)
    assert config["seed"] == 5 and config["scheduler"] == "sslam_warmup_cosine"
    (tmp_path / "conf.yaml").write_text(printed)
    more = ("--config", str(tmp_path / "conf.yaml"), "--dry_run", "true")
    ToyTask.main(cmd=arguments(*data, tmp_path / "exp", *more))
    written = yaml.safe_load((tmp_path / "exp/config.yaml").read_text())
    assert written["seed"] == 5


def test_a_spawned_rank_reports_a_bad_clip_in_one_line(data, tmp_path, capfd):
    folder = write_clips(tmp_path / "bad", 5)
    (folder / "clip03.wav").unlink()
    command = arguments(folder, data[1], tmp_path / "exp", "--log_level", "ERROR")
    args = ToyTask.get_parser().parse_args(command)
    ToyTask.check_and_complete(args)
    args.version, args.distributed = "", False
    context = multiprocessing.get_context("spawn")
    rank = context.Process(target=ToyTask.main_worker, args=(args,))
    rank.start()
    rank.join()
    errors = capfd.readouterr().err
    assert rank.exitcode == 1
    assert "Traceback" not in errors
    assert errors.strip().splitlines()[-1].startswith("error: clip clip03 cannot be")


def spawning(data, folder, *more):
    """Start a training that spawns two ranks; wait for its first checkpoint."""
    options = ["--ngpu", "2", "--multiprocessing_distributed", "true"]
    options += ["--dist_backend", "gloo", "--max_epoch", "100000"]
    options += ["--checkpoint_updates", "1", "--use_tf32", "false", *more]
    log = folder.with_name("log")
    train = partial(SpawningTask.main, cmd=arguments(*data, folder, *options))
    process = fork(train, log)
    until = time.monotonic() + 120
    while not has_checkpoint(folder) and time.monotonic() < until:
        assert process.is_alive(), log.read_text()
        time.sleep(0.1)
    return process, log


def ranks_of(process):
    """The processes that a training has started, without Python's own helper."""
    path = f"/proc/{process.pid}/task/{process.pid}/children"
    pids = [int(pid) for pid in Path(path).read_text().split()]
    words = {pid: Path(f"/proc/{pid}/cmdline").read_text() for pid in pids}
    return [pid for pid in pids if "resource_tracker" not in words[pid]]


@pytest.mark.parametrize(
    "number, whom",
    [(signal.SIGTERM, "the training"), (signal.SIGUSR1, "all of its processes")],
)
def test_spawned_ranks_keep_all_at_a_signal(data, tmp_path, number, whom):
    process, log = spawning(data, tmp_path / "exp")
    ranks = ranks_of(process)
    for pid in [process.pid, *(ranks if whom != "the training" else ())]:
        os.kill(pid, number)
    process.join(60)
    status, text = process.exitcode, log.read_text()
    process.kill()
    assert status == STOPPED, text
    assert len(ranks) == 2 and not any(Path(f"/proc/{pid}").exists() for pid in ranks)
    assert "Traceback" not in text and f"stopped by {number.name}" in text
    states = state(tmp_path / "exp")
    assert states["model"]["num_updates"] > 0


def test_a_killed_spawned_rank_ends_all(data, tmp_path):
    process, log = spawning(data, tmp_path / "exp")
    ranks = ranks_of(process)
    os.kill(ranks[1], signal.SIGKILL)
    process.join(60)
    status, text = process.exitcode, log.read_text()
    process.kill()
    assert status == 1 and "Traceback" not in text, text
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks)
    assert "SIGKILL" in text.splitlines()[-1]
    assert state(tmp_path / "exp")["model"]["num_updates"] > 0
