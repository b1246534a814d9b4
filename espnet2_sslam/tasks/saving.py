"""Checkpoints: inside an epoch, at a signal, whole on the disk, the one before kept.

A training's folder holds `checkpoint.pth`, all that it needs to go on, and
`checkpoint.before.pth`, the same from before; each with its checksum.
"""

import contextlib
import copy
import logging
import multiprocessing
import os
import random
import signal
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from espnet2.train.reporter import Average, Reporter, SubReporter, WeightedAverage

from espnet2_sslam import store
from espnet2_sslam.checkpoint import RESUME_FILES

LAST, BEFORE = RESUME_FILES
STOPPED = 85  # exit status of a training that a signal has stopped: start it again
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
SECOND = 1.0  # seconds from which on a second Ctrl-C is meant as one
SAVE, STOP = 1.0, 2.0  # what a rank asks the others for; the larger one wins


def save_whole(states: Any, path: str | Path, before: Path | None = None) -> None:
    """Write with torch.save: the old file or the new one, whole, with its checksum.

    Args:
        states: What is written.
        path: The file.
        before: Where the old one stays; by default it is replaced.

    Raises:
        OSError: If it cannot be written (full disk), with the old file intact.
    """
    try:
        with store.writing(path, "wb", checksum=True, before=before) as stream:
            torch.save(states, stream)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as the latter
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        reason = getattr(cause, "strerror", None) or str(cause).splitlines()[0]
        raise OSError(
            f"cannot write {path}: {reason}; the file from before is intact: make room "
            "and run the same command again with --resume true"
        ) from error


def has_checkpoint(folder: Path) -> bool:
    """Whether a training can be resumed there."""
    return any((folder / name).exists() for name in RESUME_FILES)


def load_checkpoint(folder: Path) -> dict | None:
    """The newest checkpoint of a training that is not damaged; None without any.

    A damaged one is named in the log, and the one before takes its place. The tensors
    are read when they are used.

    Raises:
        ValueError: None of them can be read, with the way out.
    """
    problems = []
    for path in (folder / LAST, folder / BEFORE):
        if not path.exists():
            continue
        try:
            _check(path)
            states = store.read_pickle(path)
        except ValueError as error:
            problems.append(str(error))
            continue
        for problem in problems:
            logging.warning("%s: going on from %s", problem, path)
        if path.name == BEFORE:
            store.move_checked(path, folder / LAST)
        return states
    if not problems:
        return None
    raise ValueError(
        f"{'; '.join(problems)}; it cannot be resumed: delete it to start again, or "
        f"continue from an epoch with --init_param {folder}/<N>epoch.pth in a new "
        "--output_dir"
    )


def _check(path: Path) -> None:
    """Refuse a damaged file by its checksum, or those of the parts that torch wrote."""
    if not store.check(path) and store.is_zip(path):
        try:
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
        except store.DAMAGED as error:
            damaged = " ".join(str(error).split())
        if damaged is not None:
            raise ValueError(f"{path} is damaged or truncated ({damaged})")


class Checkpoints:
    """Decide when a checkpoint is due, and write it beside the training.

    Args:
        folder: Where the training writes.
        updates: Write after every so many updates; None for none by number.
        minutes: Write when the last one is so old; 0 for none by time.
        bad_clips: What it has skipped; its `known` is kept, too.
    """

    def __init__(
        self, folder: str | Path, updates: int | None, minutes: float, bad_clips: Any
    ):
        self.bad_clips = bad_clips
        self.folder, self.updates, self.minutes = Path(folder), updates, minutes
        self.finished = Reporter().state_dict()  # what the ended epochs have reported
        self.within: dict | None = None  # where a resumed epoch goes on
        self.position = 0  # batches of the epoch that are in the weights
        self.signal = 0
        self._trained: dict[str, Any] = {}
        self._writer: threading.Thread | None = None
        self._last = self._asked = time.monotonic()

    def resume(self, states: Mapping[str, Any]) -> None:
        """Take over what a checkpoint says beside weights and optimizers."""
        self.finished, self.within = states["reporter"], states.get("within")
        self.bad_clips.known = states.get("bad_clips", {})

    # ------------------------------------------------------------------ when

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Within the block a signal asks for a checkpoint and the end."""
        previous = {}
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:  # nohup's and cron's choice to ignore one is theirs
                if signal.getsignal(number) is not signal.SIG_IGN:
                    previous[number] = signal.signal(number, self._note)
        try:
            yield
            self.wait()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _note(self, number: int, _: Any) -> None:
        now = time.monotonic()
        if self.signal and number == signal.SIGINT and now - self._asked > SECOND:
            raise KeyboardInterrupt
        if not self.signal:
            self.signal, self._asked = number, now

    def request(self, num_updates: int) -> float:
        """What this rank asks for after an update: 0, SAVE or STOP."""
        if self.signal:
            return STOP
        if rank() > 0 or (self._writer and self._writer.is_alive()):
            return 0.0
        by_number = self.updates and num_updates % self.updates == 0
        minutes = (time.monotonic() - self._last) / 60
        by_time = self.updates is None and 0 < self.minutes <= minutes
        return SAVE if by_number or by_time else 0.0

    def leave(self) -> None:
        """End the process after a signal, with the status that says so.

        Raises:
            SystemExit: STOPPED.
        """
        self.wait()
        every_rank(None)  # who spawned the ranks ends all after the first: see it kept
        name = signal.Signals(self.signal).name if self.signal else "another rank"
        logging.warning(
            f"stopped by {name} after batch {self.position} of the epoch, all is kept: "
            "the same command with --resume true goes on from here"
        )
        raise SystemExit(STOPPED)

    # ------------------------------------------------------------------ what

    def enter(self, reporter: SubReporter, **trained: Any) -> None:
        """Begin an epoch, or go on in the middle of the one that was interrupted.

        Args:
            reporter: Of the epoch.
            trained: model, optimizers, schedulers, scaler.
        """
        self._trained, self._reporter = trained, reporter
        within, self.within = self.within, None
        self.position = 0
        if within is not None:
            self.position = within["batches"]
            _restore_reporter(reporter, within["reporter"])
            _restore_draws(within["draws"][rank()])

    def save(self, wait: bool = False) -> None:
        """Write where the training is; every rank must call it.

        Args:
            wait: Return when it is on the disk, not when its copy is made.
        """
        draws = every_rank(_draws())
        self._last = time.monotonic()
        if rank() > 0:  # the first one writes
            return
        self.wait()
        trained = self._trained
        states = {
            "model": trained["model"].state_dict(),
            "reporter": self.finished,
            "optimizers": [each.state_dict() for each in trained["optimizers"]],
            "schedulers": [
                each and each.state_dict() for each in trained["schedulers"]
            ],
            "scaler": trained["scaler"] and trained["scaler"].state_dict(),
            "within": {
                "epoch": self._reporter.get_epoch(),
                "batches": self.position,
                "reporter": _reporter_state(self._reporter),
                "draws": draws,
            },
            **self._skipped(),
        }
        logging.info(f"checkpoint after batch {self.position} of the epoch")
        if wait:
            self._write(states)
            return
        states = _copied(states)  # the next update changes the tensors
        self._writer = threading.Thread(target=self._try_to_write, args=(states,))
        self._writer.start()

    def save_epoch(self, states: dict) -> None:
        """Write the checkpoint at the end of an epoch."""
        self.wait()
        self.finished = states["reporter"]
        self._write({**states, **self._skipped()})
        self._last = time.monotonic()

    def _skipped(self) -> dict[str, Any]:
        return {"bad_clips": self.bad_clips.known} if self.bad_clips.known else {}

    def wait(self) -> None:
        """Wait until what was saved is on the disk."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None

    def _write(self, states: dict) -> None:
        save_whole(states, self.folder / LAST, self.folder / BEFORE)
        store.remove_checksums(self.folder)

    def _try_to_write(self, states: dict) -> None:
        """Write; what cannot be written now is tried again the next time."""
        try:
            self._write(states)
        except OSError as error:
            logging.warning(str(error))


@contextlib.contextmanager
def passing_signals_on() -> Iterator[None]:
    """Within the block, the processes that this one spawns get its signals."""

    def pass_on(number: int, frame: Any) -> None:
        children = multiprocessing.active_children()
        for child in children:
            if child.pid is not None:
                os.kill(child.pid, number)
        if not children:  # not yet, or none at all: what the signal does by itself
            signal.signal(number, previous[number])
            signal.raise_signal(number)

    previous: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                previous[number] = signal.signal(number, pass_on)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _copied(value: Any) -> Any:
    """Nested states with their tensors on the CPU, apart from the training's."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_copied(item) for item in value)
    return copy.copy(value)


def _reporter_state(reporter: SubReporter) -> dict[str, Any]:
    """What an epoch has reported so far, as numbers."""
    stats = {
        name: [
            torch.tensor([value.value for value in values], dtype=torch.float64),
            (
                torch.tensor(
                    [getattr(v, "weight", 0) for v in values], dtype=torch.float64
                )
                if isinstance(values[0], WeightedAverage)
                else None
            ),
        ]
        for name, values in reporter.stats.items()
    }
    return {
        "stats": stats,
        "count": reporter.count,
        "total_count": reporter.total_count,
        "seconds": time.perf_counter() - reporter.start_time,
    }


def _restore_reporter(reporter: SubReporter, state: Mapping[str, Any]) -> None:
    for name, (values, weights) in state["stats"].items():
        numbers = values.tolist()
        reporter.stats[name] = (
            [Average(value) for value in numbers]
            if weights is None
            else [
                WeightedAverage(value, weight)  # type: ignore[arg-type]
                for value, weight in zip(numbers, weights.tolist(), strict=True)
            ]
        )
    reporter.count, reporter.total_count = state["count"], state["total_count"]
    reporter.start_time = time.perf_counter() - state["seconds"]


def _draws() -> dict[str, Any]:
    """Where this process's global generators are."""
    name, keys, *rest = np.random.get_state()
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
    return {
        "python": random.getstate(),
        "numpy": [name, torch.tensor(keys.astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": cuda,
    }


def _restore_draws(state: Mapping[str, Any]) -> None:
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    random.setstate(state["python"])
    torch.set_rng_state(state["torch"].clone())
    if state["cuda"] is not None and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(state["cuda"].clone())


def rank() -> int:
    """Number of this process among those that train together."""
    parallel = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_rank() if parallel else 0


def every_rank(value: Any) -> list[Any]:
    """The list of every rank's value, on every rank."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values
