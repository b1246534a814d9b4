"""Work in several processes: in order, and never left behind."""

import os
import signal
import subprocess
import sys
import time

import pytest

from espnet2_sslam.corpus import ArrayJob, parallel_map
from espnet2_sslam.corpus.parallel import TASK_FOLDER, kept_results
from tests.corpus_case import ROOT, task_runner

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


def test_tasks_of_an_array_job_give_their_results_in_order(tmp_path):
    job = ArrayJob.or_processes(3, task_runner(tmp_path), tmp_path)
    items, local = list(range(100)), 3
    results = parallel_map(lambda number: number**2 + local, items, job, "my work")
    assert list(results) == [number**2 + local for number in items]
    assert not (tmp_path / TASK_FOLDER).exists()
    calls = (tmp_path / "calls").read_text().split()
    assert calls[:2] == ["--mem", "2G"] and calls[2] == "JOB=1:3"


def test_a_name_with_the_letters_of_the_tasks_number_stays_as_it_is(tmp_path):
    job = ArrayJob.or_processes(2, task_runner(tmp_path), tmp_path / "JOBS")
    results = parallel_map(square_unless_negative, list(range(80)), job, "work")
    assert list(results) == [number**2 for number in range(80)]


@pytest.mark.parametrize("what", ["kill", "raise"])
def test_a_task_that_failed_is_named_and_what_is_done_is_kept(tmp_path, what):
    folder, items = tmp_path / "out", list(range(100))
    job = ArrayJob.or_processes(3, task_runner(tmp_path), folder)
    bad = kill_own_process if what == "kill" else square_unless_negative

    def work(number):
        return bad(-number) if number == 40 else number

    with pytest.raises(ChildProcessError) as error:
        list(parallel_map(work, items, job, "work"))
    assert "1 of 3 tasks (work) failed, the first with: " in str(error.value)
    log = str(error.value).partition("(log: ")[2].partition(")")[0]
    assert log.endswith("task.2.log")
    with open(log) as file:
        assert ("-40 is negative" in file.read()) == (what == "raise")
    assert sorted(kept_results(job.folder, "work")) == [*range(40), *range(66, 100)]
    assert list(kept_results(job.folder, "work")) == []


def test_a_task_that_is_started_again_goes_on(tmp_path):
    job = ArrayJob.or_processes(2, task_runner(tmp_path, requeue=True), tmp_path)
    calls = tmp_path / "done"

    def work(number):
        with open(calls, "a") as file:
            file.write(f"{number}\n")
        if number == 20 and calls.read_text().split().count("20") == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    assert list(parallel_map(work, list(range(80)), job, "work")) == list(range(80))
    done = sorted(map(int, calls.read_text().split()))
    assert done == sorted([*range(80), 20])


def test_a_signal_takes_the_tasks_back(tmp_path):
    code = f"""
import sys, time
from espnet2_sslam.bin.cli import run_main
from espnet2_sslam.corpus import ArrayJob, parallel_map

def work(number):
    import os, time
    print(os.getpid(), file=open({str(tmp_path / "pids")!r}, "a"), flush=True)
    time.sleep(60)

job = ArrayJob.or_processes(2, {task_runner(tmp_path)!r}, {str(tmp_path)!r})
run_main(lambda: list(parallel_map(work, list(range(80)), job, "work")))
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    pids = tmp_path / "pids"
    with subprocess.Popen([sys.executable, "-c", code], env=env) as parent:
        deadline = time.monotonic() + 60
        while not (pids.exists() and len(pids.read_text().split()) == 2):
            assert time.monotonic() < deadline and parent.poll() is None
            time.sleep(0.05)
        parent.send_signal(signal.SIGTERM)
        assert parent.wait(30) == 128 + signal.SIGTERM
    assert not any(is_running(int(pid)) for pid in pids.read_text().split())
