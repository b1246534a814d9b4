"""Trainings in processes of their own: kills, ranks, spawned ranks, clean stdout."""

import multiprocessing
import signal

import pytest
import yaml

from tests.toy_task import (
    ToyTask,
    arguments,
    assert_same,
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
