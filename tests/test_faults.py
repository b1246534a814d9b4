"""What fails around a training ends it in one line, with all that it has kept."""

import os
import re
import resource
import signal
import time
from functools import partial

import numpy as np
import pytest
import torch

from espnet2_sslam.tasks import SSLAMTask, faults
from tests.test_bad_clips import MIXED, training
from tests.test_surviving import PARTS, at_update, die, run, within
from tests.toy_task import arguments, assert_same, fork, free_port, state, write_clips


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return [
        write_clips(folder / name, count, shortest=9000)
        for name, count in (("train", 13), ("valid", 7))
    ]


def last_line(log):
    text = log.read_text()
    assert "Traceback" not in text, text
    return text.splitlines()[-1]


def children():
    """Processes that this one has started."""
    with open(f"/proc/self/task/{os.getpid()}/children") as stream:
        return [int(pid) for pid in stream.read().split()]


def kill_a_child(number=signal.SIGKILL):
    os.kill(children()[0], number)
    time.sleep(0.5)


def test_a_killed_loader_process_is_one_line(data, tmp_path):
    log, folder = tmp_path / "log", tmp_path / "exp"
    more = [*PARTS, "--num_workers", "1"]
    train = training(data, "pretrain", folder, *more)
    run(partial(at_update, 4, kill_a_child, train), 1, log)
    line = last_line(log)
    assert line.startswith("error: a process that reads clips was ended by Killed")
    assert "--num_workers 1" in line and "--resume true" in line
    assert within(folder)[0] == 1
    run(train, 0)
    run(training(data, "pretrain", tmp_path / "whole", *more), 0)
    assert_same(state(folder), state(tmp_path / "whole"))


def numpy_memory():
    np.empty(2**60, dtype=np.uint8)


def torch_memory():
    torch.empty(2**60, dtype=torch.uint8)


def gpu_memory():
    raise torch.cuda.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 20.50 GiB. GPU 0 has a total capacity "
        "of 79.10 GiB of which 3.25 GiB is free. Including non-PyTorch memory, this"
    )


@pytest.mark.parametrize(
    "act, expected",
    [
        (numpy_memory, "the machine is out of memory .*1.00 EiB .*--batch_size 2"),
        (torch_memory, "the machine is out of memory .*1073741824.00 GiB more"),
        (
            gpu_memory,
            "the GPU is out of memory .20.50 GiB more were needed; 3.25 GiB of 79.10 "
            "GiB are free.*--activation_checkpointing all and .*--resume true.* new "
            "training with --batch_size 2 --accum_grad 2 .* or --use_amp true",
        ),
    ],
)
def test_too_little_memory_is_one_line_with_what_to_lower(
    data, tmp_path, act, expected
):
    log = tmp_path / "log"
    train = training(data, "pretrain", tmp_path / "exp", *PARTS)
    run(partial(at_update, 3, act, train), 1, log)
    assert re.search(expected, last_line(log))
    assert within(tmp_path / "exp")[1] > 0


def test_too_little_memory_in_a_loader_process_is_no_bad_clip(data, tmp_path):
    log = tmp_path / "log"
    more = ["--num_workers", "1", "--max_bad", "1"]
    train = training(data, "pretrain", tmp_path / "exp", *more)

    def without_memory():
        import espnet2_sslam.tasks.data as module

        def read(*_):
            raise MemoryError

        module.read_part = read
        train()

    run(without_memory, 1, log)
    assert "the machine is out of memory" in last_line(log)


def test_a_log_on_a_full_disk_costs_the_log_only(data, tmp_path):
    log = tmp_path / "log"

    def limited():
        """Let the log be full, and nothing else."""
        with open("/dev/full", "w") as full:
            os.dup2(full.fileno(), 1)
            os.dup2(full.fileno(), 2)
        training(data, "pretrain", tmp_path / "exp")()

    run(limited, 0, log)
    assert within(tmp_path / "exp") == (3, 0)


def test_a_disk_that_is_full_for_all_ends_with_the_checkpoint_from_before(
    data, tmp_path
):
    """RLIMIT_FSIZE is the disk: neither a larger log nor another checkpoint."""
    train = training(data, "pretrain", tmp_path / "exp", *PARTS)

    def full():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))

    run(partial(at_update, 3, full, train), 1)
    assert within(tmp_path / "exp")[0] + within(tmp_path / "exp")[1] > 0
    run(train, 0)
    run(training(data, "pretrain", tmp_path / "whole", *PARTS), 0)
    assert_same(state(tmp_path / "exp"), state(tmp_path / "whole"))


def test_a_folder_that_takes_no_files_is_one_line(data, tmp_path):
    """/proc takes no files, not even root's."""
    log = tmp_path / "log"
    run(partial(SSLAMTask.main, cmd=arguments(*data, "/proc/exp", *MIXED)), 1, log)
    assert "/proc/exp" in last_line(log)


def test_reading_that_hangs_is_noticed(data, tmp_path):
    """A pipe that nobody writes to hangs as a network disk does."""
    log, folder = tmp_path / "log", tmp_path / "exp"
    sets = write_clips(tmp_path / "train", 13, shortest=9000), data[1]
    more = ["--stall_minutes", "0.05", *PARTS]
    train = training(sets, "pretrain", folder, *more)

    def hang():
        for path in sets[0].glob("*.wav"):
            path.unlink()
            os.mkfifo(path)

    start = time.monotonic()
    run(partial(at_update, 3, hang, train), 1, log)
    assert time.monotonic() - start < 30
    line = last_line(log)
    assert "the training has been reading clips for 0.05" in line
    assert "--stall_minutes" in line
    assert within(folder)[0] + within(folder)[1] > 0


def ranks(data, folder, log, act, acting, update=3, more=()):
    """Start two ranks of which one acts before an update; the processes."""
    options = [*PARTS, *more, "--dist_backend", "gloo", "--dist_world_size", "2"]
    options += ["--dist_master_addr", "localhost", "--dist_master_port", free_port()]
    result = []
    for rank in (0, 1):
        train = training(data, "pretrain", folder, *options, "--dist_rank", str(rank))
        if rank == acting:
            train = partial(at_update, update, act, train)
        result.append(fork(train, f"{log}{rank}"))
    return result


def end(processes):
    for process in processes:
        process.kill()
        process.join()


def broken():
    raise OSError("the disk of the clips is gone")


@pytest.mark.parametrize("acting", [0, 1])
@pytest.mark.parametrize(
    "act, expected",
    [(die, "was killed|has ended, without a word"), (broken, "clips is gone")],
)
def test_when_a_rank_ends_the_other_one_says_which_and_why(
    data, tmp_path, act, expected, acting
):
    folder = tmp_path / "exp"
    start = time.monotonic()
    processes = ranks(data, folder, tmp_path / "log", act, acting)
    for process in processes:
        process.join(60)
    status = processes[1 - acting].exitcode
    end(processes)
    assert status == 1 and time.monotonic() - start < 60
    line = last_line(tmp_path / f"log{1 - acting}")
    assert line.startswith(f"error: rank {acting} ") and re.search(expected, line)
    assert within(folder)[0] + within(folder)[1] > 0


@pytest.mark.parametrize("acting", [0, 1])
def test_a_stopped_rank_is_noticed(data, tmp_path, acting, monkeypatch):
    monkeypatch.setattr(faults, "LIFE", 4.0)
    stop = partial(die, signal.SIGSTOP)
    processes = ranks(data, tmp_path / "exp", tmp_path / "log", stop, acting)
    processes[1 - acting].join(40)
    status = processes[1 - acting].exitcode
    end(processes)
    assert status == 1
    line = last_line(tmp_path / f"log{1 - acting}")
    assert re.search(f"error: rank {acting} has (given no sign|not answered)", line)


def test_a_rank_that_hangs_is_named(data, tmp_path, monkeypatch):
    monkeypatch.setattr(faults, "LIFE", 4.0)
    hang = partial(time.sleep, 1000)
    more = ["--stall_minutes", "0.05"]
    processes = ranks(data, tmp_path / "exp", tmp_path / "log", hang, 1, more=more)
    for process in processes:
        process.join(40)
    status = [process.exitcode for process in processes]
    end(processes)
    assert status == [1, 1]
    for rank in (0, 1):
        assert "--stall_minutes" in last_line(tmp_path / f"log{rank}")
