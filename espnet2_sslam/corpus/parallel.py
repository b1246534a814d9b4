"""Map a function over items in several processes, in order, with progress."""

import itertools
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from tqdm import tqdm

LOG_INTERVAL = 30.0  # seconds between two progress lines


def with_progress(results: Iterable, total: int, what: str) -> Iterator:
    """Pass `results` on, with a bar on a terminal and plain log lines elsewhere."""
    if sys.stderr.isatty():
        yield from tqdm(results, total=total, desc=what)
        return
    last = time.monotonic()
    for done, result in enumerate(results, 1):
        yield result
        if time.monotonic() - last > LOG_INTERVAL:
            last = time.monotonic()
            logging.info("%s: %d of %d", what, done, total)
    logging.info("%s: %d done", what, total)


def parallel_map(
    function: Callable, items: Sequence, nj: int, what: str, chunk: int = 8
) -> Iterator:
    """Results of `function(item)` in the order of `items`.

    Args:
        function: Picklable; called in this process when `nj` is 1.
        items: What to work on.
        nj: Processes.
        what: Name of the work for progress lines.
        chunk: Items handed to a process at a time.

    Raises:
        ValueError: `nj` is not positive.
        ChildProcessError: A process was killed (for want of memory, most often).
    """
    if nj < 1:
        raise ValueError(f"--nj must be at least 1, got {nj}")
    if nj == 1 or len(items) <= chunk:
        results = map(function, items)
    else:
        results = _in_processes(function, items, nj, chunk)
    return with_progress(results, len(items), what)


def _start_worker(parent: int) -> None:
    """One thread for torch, Ctrl-C left to the parent, and no life without it."""
    # Lists are read without torch: it would take 650 MiB of memory.
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process when its parent was killed, instead of waiting for ever."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _call_all(function: Callable, items: Sequence) -> list:
    """Results of one chunk."""
    return [function(item) for item in items]


def _in_processes(function, items, nj, chunk):
    """Results in order, with a bounded number of chunks in the pool."""
    context = multiprocessing.get_context("fork")
    chunks = (items[i : i + chunk] for i in range(0, len(items), chunk))
    pool = ProcessPoolExecutor(
        nj, context, initializer=_start_worker, initargs=(os.getpid(),)
    )
    try:
        waiting = deque(
            pool.submit(_call_all, function, part)
            for part in itertools.islice(chunks, 4 * nj)
        )
        while waiting:
            yield from waiting.popleft().result()
            part = next(chunks, None)
            if part is not None:
                waiting.append(pool.submit(_call_all, function, part))
    except BrokenProcessPool:
        raise ChildProcessError(
            "a worker process was killed (out of memory?): run the stage again with "
            "a smaller --nj; finished files are kept"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
