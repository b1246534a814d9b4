"""Every upstream on every task: train over the grid, choose on dev, test once."""

import importlib.metadata
import logging
import os
import shlex
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import yaml

import espnet2_sslam
from espnet2_sslam.integrations.superb import upstreams as sources
from espnet2_sslam.integrations.superb.data import Data, check_steps, read_data
from espnet2_sslam.integrations.superb.run import (
    LOG,
    Run,
    Schedule,
    error_line,
    make_config,
)
from espnet2_sslam.integrations.superb.tasks import TASKS, Task, fold_numbers
from espnet2_sslam.integrations.superb.upstreams import Upstream


@dataclass(frozen=True)
class Plan:
    """What is asked for.

    Attributes:
        tasks: Folder of the data by task.
        upstreams: Source by name; "" for names of s3prl.
        lrs: Learning rates to choose from.
        seeds: Of the trainings; {seed} in a source is replaced by it.
        expdir: Where everything goes.
        options: Of the sslam upstream.
        schedule: Length and machine of the trainings.
        config_dir: Folder with ks.yaml, ic.yaml, sid.yaml and er.yaml.
        jobs: Trainings at a time.
    """

    tasks: dict[str, Path]
    upstreams: dict[str, str]
    lrs: tuple[float, ...]
    seeds: tuple[int, ...]
    expdir: Path
    options: dict[str, Any] = field(default_factory=dict)
    schedule: Schedule = Schedule()
    config_dir: Path = Path("conf/s3prl")
    jobs: int = 1


@dataclass
class Outcome:
    """What came out: `chosen` by (task, upstream), with tested runs; failures."""

    plan: Plan
    runs: list[Run]
    chosen: dict[tuple[str, str], float] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


def sweep(plan: Plan, execute: Optional["Processes"] = None) -> Outcome:
    """Run what is not done yet.

    Args:
        plan: What is asked for.
        execute: Runs the commands of s3prl.

    Raises:
        ValueError: Something that can be seen to be wrong before any training.
    """
    execute = execute or Processes()
    outcome = Outcome(plan, make_runs(plan))
    replaced = plan.expdir.with_name(f"{plan.expdir.name}_replaced")
    waiting = [run for run in outcome.runs if run.record("trained") is None]
    logging.info("%d of %d trainings to do", len(waiting), len(outcome.runs))
    part = _Part(execute, replaced)
    _in_parallel(part.train, waiting, execute, outcome)
    outcome.chosen = choose(outcome.runs)
    tests = [
        run
        for run in outcome.runs
        if outcome.chosen.get((run.task.name, run.upstream.name)) == run.lr
        and run.record("tested") is None
    ]
    _in_parallel(part.test, tests, execute, outcome)
    return outcome


def make_runs(plan: Plan) -> list[Run]:
    """All runs of a plan, after everything they need was found to be there."""
    bases = {name: _base_config(TASKS[name], plan.config_dir) for name in plan.tasks}
    ready = [
        sources.prepare(name, source, seed, plan.options, plan.expdir / "models")
        for seed in plan.seeds
        for name, source in plan.upstreams.items()
    ]
    for double in sources.same_weights(ready):
        logging.warning("%s", double)
    runs = []
    for name, folder in plan.tasks.items():
        logging.info("%s: reading %s", name, folder)
        task = TASKS[name]
        data = read_data(task, folder, plan.expdir / "data")
        for upstream in ready:
            check_steps(task, data, upstream.downsample_rate)
        for i, upstream in enumerate(ready):
            seed = plan.seeds[i // len(plan.upstreams)]
            for lr in plan.lrs:
                for fold in fold_numbers(task):
                    runs.append(
                        _make_run(
                            plan, task, bases[name], data, upstream, lr, seed, fold
                        )
                    )
    return runs


def _make_run(
    plan: Plan,
    task: Task,
    base: dict[str, Any],
    data: Data,
    upstream: Upstream,
    lr: float,
    seed: int,
    fold: int,
) -> Run:
    """One run with its folder and settings."""
    config = make_config(
        task, base, data.options, upstream, lr, seed, fold, plan.schedule
    )
    settings = {
        "config": config,
        "seed": seed,
        "upstream": upstream.identity(),
        "clips": len(data.samples),
        "samples": sum(data.samples),
        "s3prl": importlib.metadata.version("s3prl"),
    }
    own = f"lr{lr:g}" + (f"_fold{fold}" if task.folds > 1 else "")
    folder = plan.expdir / task.name / f"{upstream.name}_seed{seed}" / own
    return Run(task, upstream, lr, seed, fold, folder, config, settings, plan.schedule)


def _base_config(task: Task, folder: Path) -> dict[str, Any]:
    """The YAML file of a SUPERB task; HEAR's values are in s3prl."""
    if task.hear:
        return {}
    path = folder / f"{task.name}.yaml"
    if not path.is_file():
        raise ValueError(
            f"task {task.name} needs {path}; --config_dir names its folder"
        )
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def choose(runs: Sequence[Run]) -> dict[tuple[str, str], float]:
    """The best learning rate of each task and upstream.

    By the mean of the dev scores over seeds and folds; of equal ones the smallest. A
    task and upstream with an unfinished training has none.
    """
    scores: dict[tuple[str, str], dict[float, list]] = defaultdict(
        lambda: defaultdict(list)
    )
    for run in runs:
        record = run.record("trained")
        by_rate = scores[run.task.name, run.upstream.name]
        by_rate[run.lr].append(None if record is None else record["dev"])
    chosen = {}
    for key, by_rate in scores.items():
        if not any(None in dev for dev in by_rate.values()):
            best = max(by_rate, key=lambda lr: (sum(by_rate[lr]), -lr))
            chosen[key] = best
    return chosen


class _Part:
    """Trains and tests runs, each with its record."""

    def __init__(self, execute: "Processes", replaced: Path):
        self.execute, self.replaced = execute, replaced

    def train(self, run: Run) -> None:
        """Train a run and record its dev score."""
        run.begin(self.replaced)
        seconds = self._do(run, run.train_command(), "training")
        dev, step = run.dev_score()
        run.write_record(
            "trained",
            dev=dev,
            dev_step=step,
            steps=run.total_steps(),
            seconds=round(seconds),
        )
        run.tidy()
        logging.info("%s: dev %s %.4f, %.0f s", run.name, run.task.metric, dev, seconds)

    def test(self, run: Run) -> None:
        """Score a run on the test set and record it."""
        run.write_config()  # the weights' folder may have moved
        self._do(run, run.test_command(), "test")
        scores = run.test_scores()
        run.write_record("tested", test=scores[run.task.metric], metrics=scores)
        logging.info("%s: test %.4f", run.name, scores[run.task.metric])

    def _do(self, run: Run, command: list[str], what: str) -> float:
        log = run.folder.resolve() / LOG
        began = time.monotonic()
        status = self.execute(command, run.folder, log)
        if status:
            raise ValueError(
                f"{run.name}: {what} failed: {error_line(log)} "
                f"(log: {run.folder / LOG})"
            )
        return time.monotonic() - began


def _in_parallel(
    work: Callable[[Run], None],
    runs: Sequence[Run],
    execute: "Processes",
    outcome: Outcome,
) -> None:
    """Do all of them, some at a time; one that fails keeps no other from running."""

    def guarded(run: Run) -> None:
        try:
            work(run)
        except (ValueError, OSError, LookupError) as error:
            if execute.stopped:
                return
            line = " ".join(str(error).split())
            outcome.failures.append(line if run.name in line else f"{run.name}: {line}")
            logging.error("%s", outcome.failures[-1])

    with ThreadPoolExecutor(outcome.plan.jobs) as threads:
        futures = [threads.submit(guarded, run) for run in runs]
        try:
            for future in futures:
                future.result()
        except BaseException:
            for future in futures:
                future.cancel()
            execute.stop()
            raise


class Processes:
    """Runs commands in processes of their own, which do not outlive this one."""

    def __init__(self):
        self.running: set[subprocess.Popen] = set()
        self.stopped = False

    def __call__(self, command: list[str], folder: Path, log: Path) -> int:
        """Run a command in a folder, its output at the end of a log."""
        root = str(Path(espnet2_sslam.__file__).resolve().parent.parent)
        paths = [root, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        paths = [os.path.abspath(path) for path in paths if path]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        with log.open("a", encoding="utf-8") as output:
            output.write(f"# {shlex.join(command)}\n")
            output.flush()
            process = subprocess.Popen(
                command, cwd=folder, env=env, stdout=output, stderr=output
            )
        self.running.add(process)
        try:
            return process.wait()
        finally:
            self.running.discard(process)

    def stop(self) -> None:
        """End what still runs; the next sweep continues it."""
        self.stopped = True
        for process in list(self.running):
            process.terminate()
