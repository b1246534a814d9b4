"""Work in several processes: in order, and never left behind."""

import os
import signal
import subprocess
import sys
import time

import pytest

from espnet2_sslam.corpus import parallel_map
from tests.corpus_case import ROOT

PROGRAM = """
import os, sys, time
from espnet2_sslam.corpus import parallel_map

def work(item):
    time.sleep(0.01)
    return os.getpid()

workers = set()
for pid in parallel_map(work, list(range(100_000)), 2, "work", chunk=1):
    if pid not in workers:
        workers.add(pid)
        print(pid, flush=True)
"""


def square_unless_negative(number):
    """What the processes are asked for."""
    if number < 0:
        raise ValueError(f"{number} is negative")
    return number**2


def kill_own_process(number):
    """As a worker that runs out of memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def is_running(pid):
    """Whether a process is there and no zombie."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("nj", [1, 3])
@pytest.mark.parametrize("count", [0, 1, 100])
def test_results_come_in_order(nj, count):
    results = parallel_map(square_unless_negative, list(range(count)), nj, "work")
    assert list(results) == [number**2 for number in range(count)]


@pytest.mark.parametrize("nj", [1, 3])
def test_the_error_of_a_worker_is_raised(nj):
    with pytest.raises(ValueError, match="-1 is negative"):
        list(parallel_map(square_unless_negative, [1] * 50 + [-1], nj, "work"))


def test_a_killed_worker_is_an_error_that_says_what_to_do():
    with pytest.raises(ChildProcessError, match="smaller --nj"):
        list(parallel_map(kill_own_process, list(range(50)), 2, "work"))


def test_no_process_at_all_is_an_error():
    with pytest.raises(ValueError, match="--nj"):
        parallel_map(square_unless_negative, [1], 0, "work")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_their_parent(how):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=env) as parent:
        workers = [int(parent.stdout.readline()) for _ in range(2)]
        parent.send_signal(how)
        parent.wait(30)
    deadline = time.monotonic() + 30
    while any(map(is_running, workers)):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.1)
