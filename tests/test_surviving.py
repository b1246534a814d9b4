"""A training that is killed, stopped or damaged at any moment ends as if it was not."""

import itertools
import os
import random
import re
import resource
import signal
import time
from functools import partial

import espnet2.tasks.abs_task
import pytest
import torch

from espnet2_sslam.checkpoint import CheckpointError, load_model
from espnet2_sslam.tasks import SafeTrainer
from espnet2_sslam.tasks.data import _begin_worker
from espnet2_sslam.tasks.saving import STOPPED
from tests.faults import (
    TASKS,
    damage,
    die,
    fork_ranks,
    group_gets,
    in_a_group,
    training,
    watch_updates,
    watch_writes,
    write_sets,
)
from tests.toy_task import assert_same, fork, state

PARTS = ("--checkpoint_updates", "1", "--resume", "true")
CASES = [
    ("pretrain", "--num_iters_per_epoch 6 --accum_grad 2"),
    ("pretrain", "--padding authors --num_workers 2"),
    ("classify", "--num_iters_per_epoch 6 --accum_grad 2 --num_workers 2"),
    ("classify", ""),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_sets(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    """Return a function that gives a case's end without any fault."""
    known = {}

    def end(name, more):
        if (name, more) not in known:
            folder = tmp_path_factory.mktemp("whole") / "exp"
            run(training(data, name, more.split(), folder), expected=0)
            known[name, more] = state(folder)
        return known[name, more]

    return end


def run(train, expected, log=os.devnull):
    """Train in a child; its exit status must be as expected."""
    process = fork(train, log)
    process.join()
    assert process.exitcode == expected


def at_update(count, act, train):
    """Train, and do something before one of the updates."""
    done = itertools.count(1)

    def before(_):
        if next(done) == count:
            act()

    watch_updates(before)
    train()


def within(folder):
    """Where the checkpoint of a training stands: epoch, and batches of the next one."""
    states = torch.load(folder / "checkpoint.pth", weights_only=False)
    inside = states.get("within") or {"batches": 0}
    return states["reporter"]["epoch"], inside["batches"]


def written_then_die():
    time.sleep(0.3)  # beside the training
    die()


@pytest.mark.parametrize("name, more", CASES)
def test_resumed_inside_an_epoch_equals_uninterrupted(
    data, tmp_path, undisturbed, name, more
):
    folder = tmp_path / "exp"
    train = training(data, name, [*more.split(), *PARTS], folder)
    places = []
    for _ in range(3):
        run(partial(at_update, 3, written_then_die, train), -signal.SIGKILL)
        places.append(within(folder))
    assert any(batches for _, batches in places), places
    run(train, 0)
    assert_same(state(folder), undisturbed(name, more))


def killed_at(event, train):
    """Train, and be killed at an event: an update, or a moment of a write."""
    events = itertools.count(1)

    def happens(_):
        if next(events) == event:
            die()

    watch_writes(happens)
    watch_updates(happens)
    train()


@pytest.mark.parametrize("name", TASKS)
def test_killed_at_any_moment_equals_uninterrupted(data, tmp_path, undisturbed, name):
    draw, folder = random.Random(0), tmp_path / "exp"
    train = training(data, name, PARTS, folder)
    for _ in range(10):
        process = fork(partial(killed_at, draw.randrange(1, 100), train))
        process.join()
        assert process.exitcode in (-signal.SIGKILL, 0)
    run(train, 0)
    assert_same(state(folder), undisturbed(name, ""))
    assert not list(folder.glob(".*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_killed_by_the_clock_equals_uninterrupted(data, tmp_path, undisturbed, name):
    """With a loader process, in as many trainings as 30 kills take."""
    draw, kills = random.Random(1), 0
    more = "--num_workers 1"
    for number in itertools.count():
        if kills >= 30:
            break
        folder = tmp_path / str(number)
        train = training(data, name, [*more.split(), *PARTS], folder)
        while True:
            process = fork(train, tmp_path / "log")
            process.join(draw.uniform(0.2, 3))
            if process.exitcode is not None:
                break
            process.kill()
            process.join()
            kills += 1
        assert process.exitcode == 0, (tmp_path / "log").read_text()[-1000:]
        assert_same(state(folder), undisturbed(name, more))


def test_killed_while_the_config_is_written_again(data, tmp_path, undisturbed):
    folder = tmp_path / "exp"
    train = training(data, "pretrain", PARTS, folder)
    run(partial(at_update, 5, die, train), -signal.SIGKILL)

    def half(options, stream, **_):
        stream.write("batch_size: ")
        stream.flush()
        die()

    def killed():
        espnet2.tasks.abs_task.yaml_no_alias_safe_dump = half
        train()

    run(killed, -signal.SIGKILL)
    run(train, 0)
    assert_same(state(folder), undisturbed("pretrain", ""))
    assert not list(folder.glob(".*.tmp"))


def test_going_on_with_other_settings_is_noted_and_logged_as_ever(data, tmp_path):
    folder, log = tmp_path / "exp", tmp_path / "log"
    more = ["--resume", "true", "--max_epoch"]
    run(training(data, "pretrain", [*more, "1"], folder), 0)
    more = [*more, "2", "--optim_conf", "lr=0.02"]
    run(training(data, "pretrain", more, folder), 1)
    run(training(data, "pretrain", [*more, "--keep", "true"], folder), 0, log)
    assert "lr was 0.001, then 0.02" in (folder / "kept.txt").read_text()
    assert re.search(r"(?m)^\[\S+\] \d{4}-.*INFO: 2epoch results: ", log.read_text())


def test_a_worker_that_starts_when_its_training_is_gone_ends():
    gone = fork(lambda: None)
    gone.join()
    worker = fork(lambda: (_begin_worker(gone.pid, 0), time.sleep(60)))
    worker.join(20)
    assert worker.exitcode == 0


@pytest.mark.parametrize("number", ["SIGTERM", "SIGUSR1", "SIGHUP", "SIGINT"])
def test_a_signal_ends_the_update_and_keeps_all(data, tmp_path, undisturbed, number):
    folder, log = tmp_path / "exp", tmp_path / "log"
    more = ["--resume", "true", "--num_workers", "1"]
    train = training(data, "pretrain", more, folder)
    act = partial(group_gets, getattr(signal, number))
    run(partial(in_a_group, partial(at_update, 5, act, train)), STOPPED, log)
    assert within(folder)[0] == 1 and within(folder)[1] > 0
    last = log.read_text().splitlines()[-1]
    assert f"stopped by {number}" in last and "--resume true" in last
    run(train, 0)
    assert_same(state(folder), undisturbed("pretrain", ""))


def test_a_batch_without_shared_memory_ends_the_training(data, tmp_path):
    log = tmp_path / "log"
    train = training(data, "classify", ["--num_workers", "1"], tmp_path / "exp")

    def limited():
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
        train()

    run(limited, 1, log)
    assert "Traceback" not in log.read_text()
    worker, last = log.read_text().splitlines()[-2:]
    assert "cannot be handed" in worker and "File too large" in worker
    assert last.startswith("error: a process that reads clips was ended")


def test_a_signal_in_validation_keeps_the_epoch(data, tmp_path, undisturbed):
    folder = tmp_path / "exp"
    train = training(data, "classify", ["--resume", "true"], folder)

    def stopped():
        validate = SafeTrainer.validate_one_epoch

        def call(**kwargs):
            die(signal.SIGTERM)
            validate(**kwargs)

        SafeTrainer.validate_one_epoch = call
        train()

    run(stopped, STOPPED)
    assert within(folder) == (0, 3)
    run(train, 0)
    assert_same(state(folder), undisturbed("classify", ""))


def test_a_damaged_checkpoint_is_named_and_the_one_before_used(
    data, tmp_path, undisturbed
):
    folder, log = tmp_path / "exp", tmp_path / "log"
    train = training(data, "pretrain", PARTS, folder)
    run(partial(at_update, 6, written_then_die, train), -signal.SIGKILL)
    damage(folder / "checkpoint.pth")
    run(train, 0, log)
    assert "checkpoint.pth is damaged" in log.read_text()
    assert_same(state(folder), undisturbed("pretrain", ""))
    for path in folder.glob("checkpoint*.pth"):
        damage(path)
    log.unlink()
    run(train, 1, log)
    last = log.read_text().splitlines()[-1]
    assert last.startswith("error: ") and "--init_param" in last
    assert "checkpoint.before.pth is damaged" in last


def test_damaged_weights_are_read_by_nobody(data, tmp_path):
    folder, log = tmp_path / "exp", tmp_path / "log"
    run(training(data, "pretrain", ["--max_epoch", "1"], folder), 0)
    damage(folder / "1epoch.pth")
    for path in (folder, folder / "latest.pth"):
        with pytest.raises(CheckpointError, match="latest.pth is damaged"):
            load_model(path)
    init = ["--init_param", f"{folder}/latest.pth"]
    run(training(data, "pretrain", init, tmp_path / "next"), 1, log)
    assert "latest.pth is damaged" in log.read_text().splitlines()[-1]


def two_ranks(data, folder, log, act=None, acting=(0, 1), update=2, more=PARTS):
    """Train on two ranks, some of which act before an update; their exit status."""

    def one(rank, options):
        train = training(data, "pretrain", [*options, *more], folder)
        if act is not None and rank in acting:
            train = partial(at_update, update, act, train)
        return train

    ranks = fork_ranks([partial(one, 0), partial(one, 1)], f"{log}0", f"{log}1")
    for process in ranks:
        process.join()
    return [process.exitcode for process in ranks]


@pytest.mark.slow
def test_two_compiled_ranks_train_as_two_that_are_not(data, tmp_path):
    plain, compiled, log = tmp_path / "plain", tmp_path / "compiled", tmp_path / "log"
    one_graph = ["--padding", "authors", "--max_epoch", "1"]
    assert two_ranks(data, plain, log, more=one_graph) == [0, 0]
    one_graph += ["--compile", "true"]
    assert two_ranks(data, compiled, log, more=one_graph) == [0, 0]
    expected = state(plain)["model"]
    for name, value in state(compiled)["model"].items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)


def test_two_ranks_stop_at_one_update_and_go_on(data, tmp_path):
    log = tmp_path / "log"
    whole, folder = tmp_path / "whole", tmp_path / "exp"
    assert two_ranks(data, whole, log, more=()) == [0, 0]
    stop = partial(die, signal.SIGTERM)
    assert two_ranks(data, folder, log, stop, [1], 4) == [STOPPED, STOPPED]
    assert within(folder) == (1, 2)
    status = two_ranks(data, folder, log, written_then_die)
    assert status == [-signal.SIGKILL, -signal.SIGKILL]
    assert two_ranks(data, folder, log) == [0, 0]
    assert_same(state(folder), state(whole))
