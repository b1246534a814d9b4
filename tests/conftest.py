"""One thread everywhere, and no process that outlives its tests."""

import os
import re
import signal
import time
from pathlib import Path

# Bitwise comparisons between processes need equal sums.
os.environ["OMP_NUM_THREADS"] = "1"
import pytest
import torch

torch.set_num_threads(1)
# Programs that tests start inherit one, and what is forked from this process the other.
MARK = os.environ["SSLAM_TESTS"] = f"{os.getpid()}-{time.time()}"
HELD = os.pipe()[0]


def left_behind():
    """Processes that these tests have started and forgotten: {pid: command line}.

    What this process has forked itself, and pools that it may use again, end with it.
    """
    found, pipe = {}, os.readlink(f"/proc/self/fd/{HELD}")
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            marked = MARK.encode() in (folder / "environ").read_bytes()
            if marked and "_inductor/compile_worker" in command:
                marked = f"--parent={os.getpid()} " not in command
            elif marked and parent == os.getpid():
                pools = "resource_tracker|forkserver|loky|wandb"
                marked = not re.search(pools, command)
            elif not marked and parent != os.getpid():
                marked = os.readlink(folder / f"fd/{HELD}") == pipe
        except (OSError, ValueError):  # ended meanwhile, or another user's
            continue
        if marked and int(folder.name) != os.getpid():
            found[int(folder.name)] = command
    return found


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left():
    """Fail a module that leaves processes behind, which would hold its pipes open."""
    yield
    deadline = time.time() + 20
    while left := left_behind():
        if time.time() > deadline:
            for process in left:
                os.kill(process, signal.SIGKILL)
            pytest.fail(f"processes left behind: {left}")
        time.sleep(0.2)
