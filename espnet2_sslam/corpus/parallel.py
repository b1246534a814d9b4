"""Map a function over many items in several processes, in order, with progress.

The processes are this machine's, or the tasks of an array job on a cluster, which are
started as Kaldi's and ESPnet's recipes do: `slurm.pl JOB=1:N LOG.JOB.log COMMAND`. Such
a task runs this file; it takes its items from a file and leaves results in a journal.
"""

import base64
import logging
import os
import pickle
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from espnet2_sslam.progress import Progress
from espnet2_sslam.store import Journal, write_bytes

ARRAY_HELP = "slurm.pl or queue.pl, with options: run the tasks as an array job"
TASK_FOLDER = ".tasks"
CHUNKS = 4  # that a task has at least: it waits in a queue and starts a Python
LOOK = 5.0  # seconds between two looks at what the tasks have done


@dataclass(frozen=True)
class ArrayJob:
    """Tasks of an array job, which stand where processes do.

    Args:
        number: Of tasks.
        cmd: slurm.pl, queue.pl or another of that of_audio, with its options.
        folder: Which all machines see. Tasks, their results and their logs lie there
            until all have ended well.
    """

    number: int
    cmd: str
    folder: Path

    @classmethod
    def or_processes(
        cls, nj: int, cmd: str | None, outdir: str | Path
    ) -> "ArrayJob | int":
        """An array job that uses `outdir`/.tasks; without `cmd` processes."""
        return cls(nj, cmd, Path(outdir).resolve() / TASK_FOLDER) if cmd else nj


Workers = int | ArrayJob


def parallel_map(
    function: Callable,
    items: Sequence,
    nj: Workers,
    what: str,
    chunk: int = 8,
    unit: str = "file",
    seconds: Callable[[Any], float] | None = None,
) -> Iterator:
    """Iterate over `function(item)` in the order of `items`.

    Args:
        function: Called in this process when `nj` is 1 or there are few items.
        items: What to work on.
        nj: Processes, or an array job.
        what: Name of the work for progress lines.
        chunk: Items handed to a process at a time.
        unit: What an item is, for progress lines.
        seconds: Of audio that a result stands for.

    Raises:
        ValueError: `nj` is not positive.
        ChildProcessError: A process was killed (for want of memory, most often), or a
            task failed.
    """
    number = nj.number if isinstance(nj, ArrayJob) else nj
    if number < 1:
        raise ValueError(f"--nj must be at least 1, got {number}")
    if isinstance(nj, ArrayJob) and len(items) > CHUNKS * chunk:
        return _in_tasks(function, items, nj, what, chunk, unit, seconds)
    if isinstance(nj, ArrayJob) or nj == 1 or len(items) <= chunk:
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


# Array jobs


def _in_tasks(
    function: Callable,
    items: Sequence,
    job: ArrayJob,
    what: str,
    chunk: int,
    unit: str,
    seconds: Callable | None,
) -> Iterator:
    """Iterate over the results of the tasks of an array job, when all have ended."""
    from joblib import wrap_non_picklable_objects as portable  # of a script, too

    list(kept_results(job.folder, what))
    job.folder.mkdir(parents=True, exist_ok=True)
    # a new folder: tasks of a stopped run may still write to theirs
    folder = Path(tempfile.mkdtemp(prefix=_prefix(what), dir=job.folder))
    number = min(job.number, -(-len(items) // (CHUNKS * chunk)))
    cuts = [len(items) * task // number for task in range(number + 1)]
    counts: dict[Path, int] = {}  # of items, by the task's path without a suffix
    of_audio = portable(lambda result: seconds(result) if seconds else 0.0)
    for task, (start, end) in enumerate(pairwise(cuts), 1):
        work = portable(function), items[start:end], what, unit, of_audio
        counts[folder / f"task.{task}"] = end - start
        write_bytes(folder / f"task.{task}.work", pickle.dumps(work))
    name = "JOB"
    while name in f"{folder} {sys.executable}":  # it is replaced wherever it stands
        name += "_"
    path = f"{folder}/task.{name}"
    command = [*shlex.split(job.cmd), f"{name}=1:{number}", f"{path}.log"]
    command += [sys.executable, "-m", __name__, path]
    logging.info("%s: %d tasks, their logs: %s/*.log", what, number, folder)
    with subprocess.Popen(command) as process:
        try:
            _watch(process, list(counts), Progress(what, len(items), unit))
        except BaseException:
            process.terminate()  # it takes the tasks back
            raise
    failed = [path for path, n in counts.items() if len(_results_of(path)) < n]
    if failed:
        raise ChildProcessError(
            f"{len(failed)} of {number} tasks ({what}) failed, the first with: "
            f"{_last_line(failed[0])} (log: {failed[0]}.log); run this again: what is "
            "finished is kept"
        )
    for path in counts:
        results = _results_of(path)
        for item in range(len(results)):
            yield _decoded(results[item])
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        job.folder.rmdir()
    logging.info("%s: %d done", what, len(items))


def kept_results(folder: Path, what: str) -> Iterator:
    """Results that tasks of a stopped run have left in an array job's folder.

    They are removed behind it; a task that still runs ends then.
    """
    for left in sorted(folder.glob(f"{_prefix(what)}*")):
        for journal in sorted(left.glob("*.results")):
            yield from map(_decoded, _results_of(journal.with_suffix("")).values())
        shutil.rmtree(left, ignore_errors=True)


def _prefix(what: str) -> str:
    return f"{''.join(c if c.isalnum() else '_' for c in what)}-"


def _results_of(task: Path) -> dict[int, str]:
    """Results of a task so far, by their item."""
    records = (record for _, record in Journal(f"{task}.results"))
    return {record["item"]: record["result"] for record in records}


def _decoded(result: str) -> Any:
    return pickle.loads(base64.b64decode(result))  # noqa: S301  # a task's of ours


def _last_line(task: Path) -> str:
    """What a task's log says at its end; "#": lines of the one that started it."""
    with suppress(OSError):
        text = Path(f"{task}.log").read_text("utf-8", errors="replace")
        lines = [line.strip() for line in text.splitlines()]
        return [line for line in lines if line and line[0] != "#"][-1]
    return "no log"


def _watch(process: subprocess.Popen, tasks: list[Path], progress: Progress) -> None:
    """Wait for the end of a process and count what the tasks have done until then."""
    places = dict.fromkeys(tasks, 0)
    with progress:
        while process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(LOOK)
            for task in tasks:
                with suppress(OSError), open(f"{task}.results", "rb") as file:
                    file.seek(places[task])
                    lines = file.read()
                    places[task] += len(lines)
                    progress.update(lines.count(b"\n"))


def main() -> None:
    """Work as one task, or go on where the same one was stopped."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    path = Path(sys.argv[1])
    work = Path(f"{path}.work")
    content = work.read_bytes()  # of the process that has started this one
    function, items, what, unit, seconds = pickle.loads(content)  # noqa: S301
    done = _results_of(path)
    todo = [item for item in range(len(items)) if item not in done]
    options = {"unit": unit, "seconds": seconds}
    results = parallel_map(function, [items[i] for i in todo], 1, what, **options)
    with Journal(f"{path}.results") as journal:
        for item, result in zip(todo, results, strict=True):
            code = base64.b64encode(pickle.dumps(result)).decode()
            journal.append({"item": item, "result": code})
            if not work.exists():
                sys.exit(f"stopped: {work} is gone, nobody waits for the rest")


if __name__ == "__main__":
    main()
