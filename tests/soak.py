"""10,000 tiny updates under hundreds of faults, every one compared with a clean run.

    python -m tests.soak [--updates 10000] [--every 24] [--seed 0] [--report PAGE]

Both tasks train: alone, with loader processes, with clips that are bad from the start,
on two ranks. In every `--every` updates one fault strikes, at a moment drawn from the
seed; the same command then starts the training again, as a user would. Weights and
optimizer after each update must be, bit by bit, those of a training without faults,
and so must all that is left in the end. Trainings are forked from this process, which
has everything loaded. A soak that is stopped goes on when it is started again.
"""

import argparse
import ctypes
import errno
import hashlib
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from espnet2_sslam import store
from espnet2_sslam.machine import environment
from espnet2_sslam.tasks.saving import BEFORE, LAST, STOPPED
from tests.faults import (
    die,
    fork_ranks,
    group_gets,
    in_a_group,
    nothing,
    training,
    watch_updates,
    watch_writes,
    write_sets,
)
from tests.toy_task import assert_same, fork, state

EPOCH = 25  # updates
INTERVAL = 5  # updates from one checkpoint to the next
FIRST = 3 * INTERVAL + 1  # a damaged checkpoint needs one before it
LAST_ONES = 4 * INTERVAL  # updates without faults, which need some to be noticed
PATIENCE = 60  # seconds without an update, or for the other ranks to end
GROWTH = 16 << 20  # bytes by which a process may grow
MARKS = "<!-- written by make soak -->", "<!-- end of what make soak writes -->"


# ----------------------------------------------------------------- what a training says


class Watch:
    """What a training tells the soak, in shared memory, which outlives a kill.

    Args:
        updates: Of the whole training.
        expected: Digest after each update of the clean run; None in that run itself.

    Attributes:
        first, last: Updates of this start; 0 before the first one.
        wrong: The first update that is not that of the clean run; 0 if all are.
        struck: When the fault struck, in words; empty before it.
    """

    def __init__(self, updates: int, expected: np.ndarray | None = None):
        self._shared = RawArray("q", 3)
        self._text = RawArray("c", 256)
        self.digests, self.memory = (
            np.frombuffer(RawArray("q", updates + 1), np.int64) for _ in range(2)
        )
        self.expected = expected

    first = property(lambda self: self._shared[0])
    last = property(lambda self: self._shared[1])
    wrong = property(lambda self: self._shared[2])
    struck = property(lambda self: self._text.value.decode())

    def strike(self, when: str) -> None:
        """Say that the fault happens now."""
        self._text.value = when.encode()[:255]

    def updated(self, optimizer: torch.optim.Optimizer) -> None:
        """Take note of an update; a wrong one ends the training."""
        number = updates_of(optimizer)
        self.digests[number] = digest(optimizer)
        self.memory[number] = resident_bytes()
        self._shared[:2] = [self.first or number, number]
        if self.expected is not None and self.digests[number] != self.expected[number]:
            self._shared[2] = number
            die()


def updates_of(optimizer: torch.optim.Optimizer) -> int:
    """How many updates an optimizer has made in all starts."""
    return max((int(s["step"]) for s in optimizer.state.values()), default=0)


def digest(optimizer: torch.optim.Optimizer) -> int:
    """A number that no other rates, weights and moments have."""
    whole = hashlib.blake2b(digest_size=8)
    for group in optimizer.param_groups:
        whole.update(repr(group["lr"]).encode())
        for weights in group["params"]:
            for value in (weights.detach(), *optimizer.state[weights].values()):
                whole.update(value.contiguous().numpy())
    return int.from_bytes(whole.digest(), "little", signed=True)


def resident_bytes() -> int:
    """Memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


# --------------------------------------------------------------------------- the faults


class Fault(NamedTuple):
    """What happens to one start of a training.

    Attributes:
        kind: Key of KINDS.
        update: The first one before which it may strike.
        draw: For its details.
        ranks: Those that it meets.
        clips, folder: Where the clips and the checkpoints are.
    """

    kind: str
    update: int
    draw: random.Random
    ranks: tuple[int, ...]
    clips: Path
    folder: Path

    @property
    def two_checkpoints(self) -> bool:
        """Whether both are there: not between two renames."""
        return all((self.folder / name).exists() for name in (LAST, BEFORE))


@dataclass
class Kind:
    """A kind of fault.

    Attributes:
        end: How the training must end, in words.
        statuses: Exit statuses that say so.
        prepare: (fault, watch) -> function of the number of an update; called in the
            training's process when it begins, and its result before each update from
            the fault's on.
        outside: (fault, processes, watches); called beside the training.
        after: (fault) -> what was done; called when the training has ended.
    """

    end: str
    statuses: tuple[int, ...]
    prepare: Callable[[Fault, Watch], Callable] = lambda *_: nothing
    outside: Callable[[Fault, list, list[Watch]], None] = nothing
    after: Callable[[Fault], str | None] = nothing


def at_update(act: Callable[[Fault], Any]) -> Callable:
    """The fault strikes once, before its update."""

    def prepare(fault: Fault, watch: Watch) -> Callable:
        def strike(number: int) -> None:
            if not watch.struck:
                watch.strike(f"before update {number}")
                if act(fault) is False:  # not possible now: before the next one
                    watch.strike("")

        return strike

    return prepare


def inside_write(act: Callable, moments: int, only: tuple[str, ...]) -> Callable:
    """It strikes at a moment of the writes that begin after its update.

    Args:
        act: What happens, at this moment and all that follow.
        moments: One of so many, which are those of two checkpoints.
        only: How the names of its moments may begin.
    """

    def prepare(fault: Fault, watch: Watch) -> Callable:
        waiting, armed = fault.draw.randrange(moments), []

        def event(name: str) -> None:
            nonlocal waiting
            if armed and name.startswith(only):
                waiting -= 1
                if waiting < 0:
                    watch.strike(watch.struck or name)
                    act()

        watch_writes(event)
        return armed.append

    return prepare


def no_space() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def small_files(fault: Fault, watch: Watch) -> Callable:
    """No file may be larger than a part of a checkpoint, for a while or for good."""
    limit = fault.draw.randrange(50_000, 500_000)
    for_now = fault.draw.choice((4, 8, 1000))
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]

    def strike(number: int) -> None:
        watch.strike(watch.struck or f"{limit} bytes from update {number}")
        room = limit if number < fault.update + for_now else hard
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))

    return strike


def send(number: signal.Signals) -> Callable:
    """A signal, to the training alone or to its loader processes, too."""

    def act(fault: Fault) -> None:
        if fault.draw.random() < 0.5:
            group_gets(number)
        else:
            die(number)

    return at_update(act)


def kill_loader(fault: Fault) -> bool:
    workers = multiprocessing.active_children()
    if workers:
        fault.draw.choice(workers).kill()
    return bool(workers)


def kill_by_clock(fault: Fault, processes: list, watches: list[Watch]) -> None:
    while watches[0].last < fault.update and processes[0].is_alive():
        time.sleep(0.001)
    kill_later(fault, processes, watches, f"update {watches[0].last}", 0.15)


def kill_at_start(fault: Fault, processes: list, watches: list[Watch]) -> None:
    kill_later(fault, processes, watches, "the start", 0.25)


def kill_later(fault, processes, watches, since: str, seconds: float) -> None:
    delay = fault.draw.uniform(0, seconds)
    time.sleep(delay)
    for rank in fault.ranks:
        if processes[rank].is_alive():
            watches[rank].strike(f"{1000 * delay:.0f} ms after {since}")
            processes[rank].kill()


def to_clip(change: Callable[[Path, random.Random], object]) -> Callable:
    return at_update(
        lambda fault: change(
            fault.draw.choice(sorted(fault.clips.glob("*.wav"))), fault.draw
        )
    )


def to_checkpoint(change: Callable[[Path, random.Random], object]) -> Callable:
    def after(fault: Fault) -> str:
        if not fault.two_checkpoints:
            return ALONE
        path = fault.folder / fault.draw.choice((LAST, LAST, LAST, BEFORE))
        change(path, fault.draw)
        return path.name

    return after


ALONE = "the only checkpoint, left as it is"


def flip(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    bits = draw.choice((1, 16, 4096))
    start = draw.randrange(len(content) - bits // 8)
    for bit in range(bits):
        content[start + bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def cut(path: Path, draw: random.Random) -> None:
    os.truncate(path, draw.choice((0, draw.randrange(path.stat().st_size))))


def remove(path: Path, draw: random.Random) -> None:
    path.unlink()


DEAD = (-signal.SIGKILL,)
kill_here = at_update(lambda fault: die())
kill_with_two = at_update(lambda fault: fault.two_checkpoints and die())
KINDS = {
    "SIGKILL before an update": Kind("dead", DEAD, kill_here),
    "SIGKILL by the clock": Kind("dead", DEAD, outside=kill_by_clock),
    "SIGKILL in the first 250 ms": Kind("dead", DEAD, outside=kill_at_start),
    "SIGKILL inside a write": Kind(
        "dead", DEAD, inside_write(die, 80, ("before", "half", "after"))
    ),
    **{
        name: Kind("status 85", (STOPPED,), send(getattr(signal, name)))
        for name in ("SIGTERM", "SIGUSR1", "SIGHUP", "SIGINT")
    },
    "no space left, inside a write": Kind(
        "status 1", (1,), inside_write(no_space, 20, ("before fsync", "half"))
    ),
    "limited size of files": Kind(
        "status 1, or goes on when there is room", (1, STOPPED), small_files
    ),
    **{
        f"checkpoint: {name}": Kind(
            "dead; resumed from the other one",
            DEAD,
            kill_with_two,
            after=to_checkpoint(do),
        )
        for name, do in (("bits flipped", flip), ("cut", cut), ("removed", remove))
    },
    "clip removed": Kind("status 1; the clip is put back", (1,), to_clip(remove)),
    "clip cut": Kind("status 1; the clip is put back", (1,), to_clip(cut)),
    "loader process killed": Kind("status 1", (1,), at_update(kill_loader)),
    "rank killed": Kind("dead; the other one has status 1", DEAD, kill_here),
}
SINGLE = (
    *("SIGKILL before an update", "SIGTERM", "checkpoint: bits flipped"),
    *("SIGKILL inside a write", "SIGKILL by the clock"),
    *("no space left, inside a write", "SIGUSR1", "clip removed"),
    *("SIGKILL inside a write", "checkpoint: cut", "SIGHUP", "limited size of files"),
    *("SIGKILL in the first 250 ms", "SIGINT", "checkpoint: removed"),
    *("SIGKILL inside a write", "clip cut", "SIGKILL by the clock"),
)
LOADED = ("loader process killed", *SINGLE)
BROKEN = tuple(name for name in LOADED if "clip" not in name)
RANKS = (
    *("rank killed", "SIGTERM", "SIGKILL inside a write", "loader process killed"),
    *("rank killed", "checkpoint: bits flipped", "SIGKILL by the clock", "SIGUSR1"),
    *("clip removed", "no space left, inside a write"),
)


@dataclass
class Leg:
    """One training under faults.

    Attributes:
        task: Key of tests.faults.TASKS.
        clean: Name of the run without faults that it must equal.
        share: Of all updates.
        kinds: Its faults in turn.
        turn: Where in them it begins, so that a short soak meets every kind.
        more: Options that do not change what is trained.
        bad: Whether two clips are bad in the clean run as well.
        ranks: Processes.
    """

    name: str
    task: str
    clean: str
    share: float
    kinds: tuple[str, ...]
    turn: int
    more: str = ""
    bad: bool = False
    ranks: int = 1


ONE, TWO = "--num_workers 1", "--num_workers 2"
LEGS = (
    Leg("phase 2", "pretrain", "phase 2", 0.2, SINGLE, 0),
    Leg("phase 2, 2 loader processes", "pretrain", "phase 2", 0.2, LOADED, 7, TWO),
    Leg("phase 2, 2 bad clips", "pretrain", "bad", 0.1, BROKEN, 3, ONE, bad=True),
    Leg("phase 2, 2 ranks", "pretrain", "ranks", 0.1, RANKS, 0, ONE, ranks=2),
    Leg("fine-tuning", "classify", "fine-tuning", 0.2, SINGLE, 12),
    Leg(
        "fine-tuning, 1 loader process", "classify", "fine-tuning", 0.2, LOADED, 0, ONE
    ),
)


def observed(train: Callable, fault: Fault | None, watch: Watch) -> None:
    """Train in this process, watched, and let the fault happen to it."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # when the soak is killed, so is this
    strike = KINDS[fault.kind].prepare(fault, watch) if fault else nothing

    def before(optimizer: torch.optim.Optimizer) -> None:
        number = updates_of(optimizer) + 1
        if fault is not None and number >= fault.update:
            strike(number)
            if number >= fault.update + LAST_ONES:  # that did not end the training
                die(signal.SIGTERM)

    watch_updates(before, watch.updated)
    in_a_group(train)


# ----------------------------------------------------------------------------- the soak


class Soak:
    """All trainings under faults, and what came of them.

    Args:
        work: Folder of the trainings and the journal; a soak that was begun goes on.
        updates: Of all legs together.
        every: Updates with one fault each.
        seed: Of the faults.

    Raises:
        ValueError: Another soak was begun there, or a clean run failed.
    """

    def __init__(self, work: Path, updates: int, every: int, seed: int):
        self.work, self.updates, self.every, self.seed = work, updates, every, seed
        self.journal = store.Journal(work / "journal.jsonl")
        plan: dict[str, Any] = {"updates": updates, "every": every, "seed": seed}
        plan["commit"] = environment()["commit"]
        begun = next((r["plan"] for r in self.records("plan")), None)
        if begun is None:
            self.journal.append({"plan": plan})
        elif begun != plan:
            raise ValueError(
                f"{work} holds a soak of {begun}, not of {plan}: remove it"
            )
        self.sets = {}
        for bad in (False, True):
            shutil.rmtree(work / f"data{bad:d}", ignore_errors=True)
            self.sets[bad] = train, _ = write_sets(work / f"data{bad:d}")
            if bad:
                (train / "clip03.wav").unlink()
                os.truncate(train / "clip07.wav", 10_000)
        self.clips = {p: p.read_bytes() for p in self.sets[False][0].glob("*.wav")}
        self.begun = resident_bytes()

    def records(self, key: str, value: str | None = None) -> list[dict]:
        """Those of the journal that have a key, or a certain value of it."""
        records = [record for _, record in self.journal if key in record]
        return [r for r in records if value is None or r[key] == value]

    def run(self) -> list[str]:
        """Go through all legs; what went wrong."""
        for leg in LEGS:
            if not self.records("ended", leg.name):
                self._leg(leg)
        problems = [r["problem"] for r in self.records("problem") if r["problem"]]
        if max(r["parent"] for r in self.records("leg")) > GROWTH:
            problems.append("the process that starts the trainings grows")
        return problems

    def _leg(self, leg: Leg) -> None:
        expected, clean = self._clean(leg)
        folder = self._folder(leg)
        problem = ""
        for number, fault in self._faults(leg):
            record = self._one(leg, folder, fault, expected)
            self.journal.append({"leg": leg.name, "number": number, **record})
            print(leg.name, number, *record.values(), sep=" | ", flush=True)
            if problem := record["problem"]:
                break
            if record["last"] == self._updates(leg) and set(record["statuses"]) == {0}:
                break
        problem = "stopped" if problem else difference(folder, clean)
        self.journal.append({"ended": leg.name, "problem": problem})

    def _folder(self, leg: Leg) -> Path:
        return self.work / leg.name.replace(" ", "_").replace(",", "")

    def _faults(self, leg: Leg) -> Iterator[tuple[int, Fault | None]]:
        """The faults that are left, numbered; then starts that meet none."""
        count = max((self._updates(leg) - FIRST - LAST_ONES) // self.every, 1)
        for number in range(len(self.records("leg", leg.name)), count):
            draw = random.Random(f"{self.seed} {leg.name} {number}")
            update = FIRST + number * self.every + draw.randrange(self.every)
            kind = leg.kinds[(number + leg.turn) % len(leg.kinds)]
            ranks = draw.choice([(0,), (1,), (0, 1)]) if leg.ranks > 1 else (0,)
            if kind.endswith("inside a write") or kind == "rank killed":
                ranks = ranks[:1] if kind == "rank killed" else (0,)
            clips = self.sets[leg.bad][0]
            yield number, Fault(kind, update, draw, ranks, clips, self._folder(leg))
        for number in range(count, count + 2):
            yield number, None

    def _updates(self, leg: Leg) -> int:
        return max(round(self.updates * leg.share / EPOCH), 2) * EPOCH

    def _start(
        self, leg: Leg, folder: Path, more: str, watches: list, fault: Fault | None
    ) -> tuple[list, list[Path]]:
        """Start a training; its processes and logs."""
        updates = self._updates(leg)
        more += f" --max_epoch {updates // EPOCH} --num_iters_per_epoch {EPOCH}"
        more += " --min_target_var 0 --min_prediction_var 0"
        options = [*more.split(), "--scheduler_conf", f"total_steps={updates}"]
        options += ["--max_bad", "0.3"] if leg.bad else []

        def one(rank: int, of_rank: list[str]) -> Callable:
            data = self.sets[leg.bad]
            train = training(data, leg.task, [*options, *of_rank], folder)
            meets = fault if fault and rank in fault.ranks else None
            return partial(observed, train, meets, watches[rank])

        logs = [folder.with_name(f"{folder.name}.log{i}") for i in range(leg.ranks)]
        for log in logs:
            log.unlink(missing_ok=True)  # loader processes of a killed one may use it
            log.touch()
        if leg.ranks == 1:
            return [fork(one(0, []), str(logs[0]))], logs
        return fork_ranks([partial(one, i) for i in range(leg.ranks)], *logs), logs

    def _clean(self, leg: Leg) -> tuple[np.ndarray, Path]:
        """Digests of the training without faults, and its folder."""
        folder = self.work / f"clean_{leg.clean.replace(' ', '_')}"
        digests = folder / "digests.npy"
        if not digests.exists():
            shutil.rmtree(folder, ignore_errors=True)
            watches = [Watch(self._updates(leg)) for _ in range(leg.ranks)]
            processes, logs = self._start(leg, folder, "", watches, None)
            problem = joined(processes, watches)
            if problem or any(process.exitcode for process in processes):
                raise ValueError(f"{folder}: {problem} {logs[0].read_text()[-500:]}")
            memory = watches[0].memory[1:]
            growth, part = 0, len(memory) // 5
            if part >= 5 * EPOCH:  # what is loaded at first use is there
                growth = int(memory[-part:].mean() - memory[part : 2 * part].mean())
            problem = f"{folder.name} grows" if growth > GROWTH else ""
            record = {"clean": leg.clean, "updates": len(memory), "growth": growth}
            self.journal.append({**record, "problem": problem})
            with store.writing(digests, "wb") as stream:
                np.save(stream, watches[0].digests)
        return np.load(digests), folder

    def _one(
        self, leg: Leg, folder: Path, fault: Fault | None, expected: np.ndarray
    ) -> dict[str, Any]:
        """Start the training once, with a fault; what happened."""
        for path, content in self.clips.items():
            if not path.exists() or path.stat().st_size != len(content):
                path.write_bytes(content)
        more = f"--checkpoint_updates {INTERVAL} --resume true {leg.more}"
        watches = [Watch(self._updates(leg), expected) for _ in range(leg.ranks)]
        processes, logs = self._start(leg, folder, more, watches, fault)
        if fault:
            KINDS[fault.kind].outside(fault, processes, watches)
        left = joined(processes, watches)
        struck = next((w.struck for w in watches if w.struck), "")
        if fault and struck and (done := KINDS[fault.kind].after(fault)):
            struck += f"; {done}"
        record = {
            "kind": fault.kind if fault else "",
            "struck": struck,
            "statuses": [process.exitcode for process in processes],
            "first": watches[0].first,
            "last": max(watch.last for watch in watches),
            "wrong": max(watch.wrong for watch in watches),
        }
        said = [
            line
            for log, status in zip(logs, record["statuses"], strict=True)
            if status != -signal.SIGKILL
            for line in log.read_text().splitlines()
        ]
        record["problem"] = left or problem_of(record, said)
        return {**record, "parent": resident_bytes() - self.begun}


def joined(processes: list, watches: list[Watch]) -> str:
    """Wait for the end of a training and of what it started; what has not ended."""
    seen, since, problem = (-1, -1), time.monotonic(), ""
    while alive := sum(process.is_alive() for process in processes):
        now = alive, sum(watch.last for watch in watches)
        if now != seen:
            seen, since = now, time.monotonic()
        elif time.monotonic() - since > PATIENCE:
            problem = f"{alive} of {len(processes)} processes hang"
            for process in processes:
                process.kill()
        time.sleep(0.002)
    since = time.monotonic()
    for process in processes:
        process.join()
        # the loader processes of a killed one find that out within 5 s
        while process.exitcode != -signal.SIGKILL and group_lives(process.pid):
            if time.monotonic() - since > 10:
                problem = problem or "a process outlives the training"
                os.killpg(process.pid, signal.SIGKILL)
            time.sleep(0.01)
    return problem


def group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def problem_of(record: dict[str, Any], said: list[str]) -> str:
    """What is not as it should be at the end of a start; empty if all is."""
    last = said[-1] if said else "nothing said"
    if record["wrong"]:
        return f"update {record['wrong']} is not that of the clean run"
    if any("Traceback" in line for line in said):
        return f"a traceback: {last}"
    allowed: set[int] = {0, STOPPED}
    if record["struck"]:
        allowed = set(KINDS[record["kind"]].statuses)
        if len(record["statuses"]) > 1:
            allowed |= {1}  # of a rank that has lost the other one
    if not set(record["statuses"]) <= allowed:
        return f"status {record['statuses']}: {last}"
    if 1 in record["statuses"] and not any(x.startswith("error: ") for x in said):
        return f"no line says why: {last}"
    return ""


def difference(folder: Path, clean: Path) -> str:
    """How what a training leaves behind differs from a clean one, if it does."""
    names = [sorted(path.name for path in f.glob("*.pth")) for f in (folder, clean)]
    if names[0] != names[1]:
        return f"{names[0]} instead of {names[1]}"
    if left := [path.name for path in folder.glob(".*.tmp")]:
        return f"left over: {left}"
    try:
        assert_same(state(folder), state(clean))
        for name in set(names[0]) - {LAST, BEFORE}:
            store.check(folder / name)
            assert_same(*(torch.load(f / name) for f in (folder, clean)))
    except (AssertionError, ValueError) as error:
        return f"the end differs: {error}"
    return ""


# --------------------------------------------------------------------------- the report


def counts(starts: list[dict]) -> tuple[Counter, Counter]:
    """How often each kind of fault was tried, and how often it cost something."""
    tried: Counter = Counter()
    lost: Counter = Counter()
    before: dict[str, str] = {}
    for record in starts:
        strikes = record["struck"] and not record["struck"].endswith(ALONE)
        tried[record["kind"]] += bool(strikes)
        if record["problem"]:  # a first update that is wrong tells on the fault before
            late = 0 < record["wrong"] == record["first"] or not record["struck"]
            lost[before.get(record["leg"], "") if late else record["kind"]] += 1
        if strikes:
            before[record["leg"]] = record["kind"]
    return tried, lost


def table(soak: Soak) -> str:
    """What was tried, what survived and what was lost, as Markdown."""
    starts, ends = soak.records("leg"), soak.records("ended")
    tried, lost = counts(starts)
    rows = [
        "| fault | the training | tried | survived | lost |",
        "|---|---|---|---|---|",
    ]
    for name, kind in KINDS.items():
        number = f"{tried[name]} | {tried[name] - lost[name]} | {lost[name]}"
        rows.append(f"| {name} | {kind.end} | {number} |")
    number = f"{tried.total()} | {tried.total() - lost.total()} | {lost.total()}"
    rows.append(f"| **all** | | {number} |")
    rows += ["", "| training | updates | starts | updates made again | in the end |"]
    rows.append("|---|---|---|---|---|")
    total = 0
    for leg in LEGS:
        own = [r for r in starts if r["leg"] == leg.name]
        reached = max((r["last"] for r in own), default=0)
        again = sum(r["last"] - r["first"] + 1 for r in own if r["first"]) - reached
        end = [r["problem"] or "equal" for r in ends if r["ended"] == leg.name]
        number = f"{reached} | {len(own)} | {again} | {''.join(end) or 'not reached'}"
        rows.append(f"| {leg.name} | {number} |")
        total += reached
    writes = {r["struck"] for r in starts if r["kind"].endswith("inside a write")}
    memory = [
        f"{record['growth'] / 2**20:+.1f} MiB over {record['updates']} updates of the "
        f"clean run `{record['clean']}`"
        for record in soak.records("clean")
        if record["growth"]
    ]
    parent = max((r["parent"] for r in starts), default=0) / 2**20
    memory.append(
        f"{parent:+.1f} MiB in the process that made all {len(starts)} starts"
    )
    rows += ["", f"{total} updates. Memory: {', '.join(memory)}. Inside writes, faults"]
    rows.append(f"struck at {len(writes - {''})} different named moments.")
    return "\n".join(rows)


def write_report(page: Path, soak: Soak) -> None:
    """Put the table between the marks of a page."""
    plan, here = soak.records("plan")[0]["plan"], environment()
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not (begin and end):
        raise ValueError(f"{page} must hold the lines {MARKS[0]} and {MARKS[1]}")
    head = (
        f"{here['date']}, commit {plan['commit']}; {here['machine']}; "
        f"{here['versions']}.\nSeed {plan['seed']}, a fault in every {plan['every']} "
        "updates."
    )
    store.write_text(page, f"{before}{begin}\n{head}\n\n{table(soak)}\n{end}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=10_000)
    parser.add_argument("--every", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    place = Path(tempfile.gettempdir()) / "sslam_soak"
    parser.add_argument(
        "--work", type=Path, default=place, help="what is there goes on"
    )
    parser.add_argument("--report", type=Path, help="page with the table")
    args = parser.parse_args()
    torch.set_num_threads(1)
    soak = Soak(args.work, args.updates, args.every, args.seed)
    problems = soak.run()
    print(table(soak))
    if args.report:
        write_report(args.report, soak)
    for problem in problems:
        print(f"lost: {problem}")
    if not problems:
        shutil.rmtree(args.work)
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
