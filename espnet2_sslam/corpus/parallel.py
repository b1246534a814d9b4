"""Map a function over many items in several processes, in order, with progress."""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from espnet2_sslam.progress import Progress


def parallel_map(
    function: Callable,
    items: Sequence,
    nj: int,
    what: str,
    chunk: int = 8,
    unit: str = "file",
    seconds: Callable[[Any], float] | None = None,
) -> Iterator:
    """Iterate over `function(item)` in the order of `items`.

    Args:
        function: Called in this process when `nj` is 1 or there are few items.
        items: What to work on.
        nj: Processes.
        what: Name of the work for progress lines.
        chunk: Items handed to a process at a time.
        unit: What an item is, for progress lines.
        seconds: Of audio that a result stands for.

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
    return _with_progress(results, len(items), what, unit, seconds)


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


def _with_progress(
    results: Iterable, total: int, what: str, unit: str, seconds: Callable | None
) -> Iterator:
    """Pass `results` on and count them."""
    with Progress(what, total, unit) as progress:
        for result in results:
            yield result
            progress.update(1, seconds(result) if seconds else 0.0)
    logging.info("%s: %d done", what, total)
