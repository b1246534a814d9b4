"""Map a function over many items in several processes, in order, with progress."""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from tqdm import tqdm

LOG_INTERVAL = 30.0  # seconds between two progress lines


def parallel_map(
    function: Callable,
    items: Sequence,
    nj: int,
    what: str,
    chunk: int = 8,
) -> Iterator:
    """Iterate over `function(item)` in the order of `items`.

    Args:
        function: Called in this process when `nj` is 1 or there are few items.
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
        results: Iterable = map(function, items)
    else:
        results = _in_processes(function, items, nj, chunk)
    return _with_progress(results, len(items), what)


def _in_processes(function: Callable, items: Iterable, nj: int, chunk: int) -> Iterator:
    """Iterate over the results of fresh processes, which do not share our memory."""
    from joblib import Parallel, delayed, parallel_config
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    options = {"initializer": end_with_parent, "initargs": (os.getpid(),)}
    with parallel_config("loky", inner_max_num_threads=1, **options):
        workers = Parallel(
            nj, return_as="generator", batch_size=chunk  # type: ignore[arg-type]
        )
    try:
        yield from workers(delayed(function)(item) for item in items)
    except TerminatedWorkerError:
        raise ChildProcessError(
            "a worker process was killed (out of memory?): run this again with a "
            "smaller --nj; finished files are kept"
        ) from None


def end_with_parent(parent: int) -> None:
    """Leave Ctrl-C to the parent, and end when it was killed: joblib's would wait."""

    def end() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end, daemon=True).start()


def _with_progress(results: Iterable, total: int, what: str) -> Iterator:
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
