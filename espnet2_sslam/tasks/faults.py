"""Faults of machines, in one line each: memory, processes, ranks, disks, hangs.

A training must neither hang nor end in a traceback because of them; what is on the disk
is whole at any moment (`store`), so it ends, says why, and can be resumed.
"""

import argparse
import contextlib
import errno
import json
import multiprocessing
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

AGAIN = "run the same command again with --resume true"
BEAT = 2.0  # seconds between two signs of life
LIFE = 30.0  # seconds without one after which a rank counts as dead
PATIENCE = 50.0  # seconds to find out which rank has ended
END, VERDICT = "sslam/end", "sslam/verdict"  # keys in the store of the ranks
# The disk of a log: full, of too many bytes, gone.
LOG_ERRORS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.ESTALE,
    errno.EROFS,
}
PEERS = re.compile(
    r"gloo|NCCL|[Cc]onnection (closed|reset|refused)|[Bb]roken pipe|TCPStore"
)
WORKER = re.compile(
    r"DataLoader worker \(pid.*?\) (is killed by signal: ([\w ]+)|exit)"
)
ALLOCATE = re.compile(
    r"tried to allocate (\d+ bytes|[\d.]+ [KMGT]?i?B)|unable to allocate ([\d.]+ \w+)",
    re.IGNORECASE,
)
CAPACITY = re.compile(r"total capacity of ([\d.]+ \w+) of which ([\d.]+ \w+) is free")


def explained(error: BaseException, args: argparse.Namespace) -> str | None:
    """Return a fault of the machine in one line, with the option that helps.

    Args:
        error: What a training has raised.
        args: Its options.

    Returns:
        None for all that is not the machine's, and for a lost rank (see `Watch`).
    """
    text = " ".join(str(error).split())
    if match := WORKER.search(text):
        name = match[2] or "an error of its own"
        cause = "the machine was out of memory, as often as not: lower --num_workers "
        if "Bus error" in name:
            cause = "the shared memory (/dev/shm) is full: lower --num_workers "
        return (
            f"a process that reads clips was ended by {name.strip()}: {cause}"
            f"{args.num_workers} and {AGAIN}"
        )
    on_gpu = isinstance(error, torch.cuda.OutOfMemoryError) or (
        "CUDA error: out of memory" in text
    )
    no_memory = isinstance(error, MemoryError) or "can't allocate memory" in text
    if getattr(error, "errno", None) == errno.ENOMEM:
        no_memory = True
    if on_gpu or no_memory:
        return _out_of_memory(text, on_gpu, args)
    if "CUDA error" in text and re.search("ECC|busy|unavailable|launch fail", text):
        return f"the GPU has failed ({text.split(' CUDA kernel')[0]}): {AGAIN}"
    return None


def _out_of_memory(text: str, on_gpu: bool, args: argparse.Namespace) -> str:
    where = "the GPU" if on_gpu else "the machine"
    facts = []
    if match := ALLOCATE.search(text):
        size = match[1] or match[2]
        if size.endswith(" bytes"):
            size = f"{int(size.split()[0]) / 2**30:.2f} GiB"
        facts.append(f"{size} more were needed")
    if match := CAPACITY.search(text):
        facts.append(f"{match[2]} of {match[1]} are free")
    if on_gpu:
        peak = torch.cuda.max_memory_allocated() / 2**30
        facts.append(f"the training had {peak:.1f} GiB at most")
    now = []  # what a training may change on its way
    if on_gpu and args.activation_checkpointing != "all":
        now.append("set --activation_checkpointing all")
    if not on_gpu and args.num_workers:
        now.append(f"lower --num_workers {args.num_workers}")
    new = []
    if args.batch_size > 1:
        half, accum = (args.batch_size + 1) // 2, 2 * args.accum_grad
        new.append(f"--batch_size {half} --accum_grad {accum} (as many clips)")
    if on_gpu and not args.use_amp:
        new.append("--use_amp true")
    ways = [f"{way} and {AGAIN}" for way in now]
    ways += [f"begin a new training with {' or '.join(new)}"] if new else []
    facts = [f" ({'; '.join(facts)})"] if facts else [""]
    return f"{where} is out of memory{facts[0]}: {', or '.join(ways)}"


class _Log:
    """A stream that loses what its disk has no place for."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, if it can be."""
        with _lenient():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, if it can be."""
        with _lenient():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def _lenient() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in LOG_ERRORS:
            raise


@contextlib.contextmanager
def log_may_fail() -> Iterator[None]:
    """Within the block stdout and stderr may lie on a full disk."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(_Log, before)
    try:
        yield
    finally:
        for name, stream in zip(("stdout", "stderr"), before, strict=True):
            try:
                stream.flush()
            except (OSError, ValueError):  # it would fail again when Python ends
                continue
            setattr(sys, name, stream)


class Watch:
    """Look after a training: its progress, and the other ranks.

    Each rank gives signs of life, with what it is doing, in the store by which they
    have found each other; the first rank looks at them. Whoever ends says why.

    Args:
        minutes: How long it may make no progress; 0: for ever.
    """

    def __init__(self, minutes: float):
        self.limit = 60 * minutes if minutes > 0 else float("inf")
        self.clock = 0.0  # seconds of this process: while it is suspended it stands
        self._doing, self._steps, self._step_at = "", 0, 0.0
        self._seen: dict[int, tuple[int, float]] = {}  # beat of each rank, and since
        self._beat_at = 0.0
        self._over = threading.Event()
        self._last_line = threading.Lock()

    # ---------------------------------------------------------------- the training

    def doing(self, what: str) -> None:
        """Say what the training begins to do."""
        self._doing, self._steps = what, self._steps + 1

    def reading(self, batches: Iterable) -> Iterator[Any]:
        """Each of the batches, which are known to be waited for meanwhile."""
        iterator, ended = iter(batches), []

        def note(*_: Any) -> None:
            try:
                torch._C._error_if_any_worker_fails()
            except RuntimeError as error:
                ended.append(error)

        if threading.current_thread() is threading.main_thread():
            # PyTorch's handler would raise anywhere, in the middle of a write too, that
            # a loader process has ended; whoever waits for a batch learns it in 5 s
            signal.signal(signal.SIGCHLD, note)
        while True:
            self.doing("reading clips")
            try:
                batch = next(iterator)
            except StopIteration:
                return
            except (ConnectionError, EOFError, RuntimeError) as error:
                time.sleep(0.1)  # for the signal that says which one has ended, and how
                raise (ended[0] if ended else error) from None
            finally:
                self.doing("computing")
            yield batch

    @contextlib.contextmanager
    def watching(self, args: argparse.Namespace) -> Iterator[None]:
        """Within the block a thread watches; what the machine does is one line.

        Raises:
            OSError: The machine, or another rank, has ended the training.
        """
        targets = [self._keep_time]
        targets += [self._keep_in_touch] if args.distributed else []
        threads = [threading.Thread(target=each, daemon=True) for each in targets]
        for thread in threads:
            thread.start()
        try:
            yield
            self._say_end("")
        except SystemExit:
            self._say_end("")
            raise
        except BaseException as error:
            line = explained(error, args)
            if line is None and _lost_peer(error):
                line = self._blame()
            text = line or f"{type(error).__name__}: {' '.join(str(error).split())}"
            self._say_end(text)
            if line is None:
                raise
            raise OSError(line) from error
        finally:
            with self._last_line:  # unless a thread is ending the process
                self._over.set()
            for thread in threads:
                thread.join(BEAT)

    def _say_end(self, reason: str) -> None:
        """Tell the other ranks that this one ends, and why."""
        store = self._connected()
        if store is None:
            return
        me, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        with contextlib.suppress(Exception):  # the store may be gone already
            if reason:
                store.compare_set(VERDICT, "", f"rank {me} has ended: {reason}")
            store.set(f"{END}/{me}", reason)
            keys = [f"{END}/{other}" for other in range(world)]
            until = time.monotonic() + (4 * BEAT if reason else LIFE)
            # the store is rank 0's and ends with it
            while me == 0 and time.monotonic() < until and not store.check(keys):
                time.sleep(0.05)

    def _blame(self) -> str:
        """Say which rank has ended, after a connection has."""
        end = time.monotonic() + PATIENCE
        me = torch.distributed.get_rank()
        while time.monotonic() < end:
            try:
                verdict = self._verdict()
            except Exception:  # whatever a store without its host raises
                return self._lost("rank 0 has ended, without a word")
            if verdict:
                return self._lost(verdict)
            time.sleep(0.2)
        return self._lost(f"a rank that rank {me} was connected to has ended")

    @staticmethod
    def _lost(verdict: str) -> str:
        me = torch.distributed.get_rank()
        return (
            verdict
            if verdict.startswith(f"rank {me} ")
            else (f"{verdict.rstrip('.')}; rank {me} ends, too: {AGAIN}")
        )

    # -------------------------------------------------------------------- the threads

    @staticmethod
    def _connected() -> Any:
        """The store by which the ranks have found each other; None without ranks."""
        distributed = torch.distributed
        ready = distributed.is_available() and distributed.is_initialized()
        if not ready or distributed.get_world_size() == 1:
            return None
        return distributed.distributed_c10d._get_default_store()

    def _verdict(self) -> str:
        store = self._connected()
        if store is None or not store.check([VERDICT]):
            return ""
        return store.get(VERDICT).decode()

    def _keep_time(self) -> None:
        """Notice that the training stands still."""
        steps, last = 0, time.monotonic()
        while not self._over.wait(BEAT / 2):
            now = time.monotonic()
            self.clock += min(now - last, BEAT)
            last = now
            if steps != self._steps:
                steps, self._step_at = self._steps, self.clock
            still, silent = self.clock - self._step_at, self.clock - self._beat_at
            alone = self._connected() is None
            if not alone and torch.distributed.get_rank() and min(still, silent) > LIFE:
                self._end(self._lost(f"rank 0 has not answered for {silent:.0f} s"))
            # of several ranks the first one judges, if it can
            if steps and still > self.limit + (0 if alone else LIFE):
                self._end(self._hangs("the training has", self._doing, still))

    @staticmethod
    def _hangs(who: str, doing: str, seconds: float) -> str:
        hint = ": the disk or network of the clips hangs" if "clips" in doing else ""
        return (
            f"{who} been {doing} for {seconds / 60:.3g} minutes{hint}; if that may "
            f"be, raise --stall_minutes, else {AGAIN}"
        )

    def _keep_in_touch(self) -> None:
        """Exchange signs of life with the other ranks."""
        beat = 0
        while not self._over.wait(BEAT if beat else 0.05):
            store = self._connected()
            if store is None:
                continue
            beat += 1
            try:
                self._beat(store, beat)
                self._beat_at = self.clock
                verdict = self._verdict()
            except Exception:  # the store has ended, with rank 0 or with all
                if self._over.wait(2 * BEAT):
                    return
                verdict = "rank 0 has ended, without a word"
            if verdict:
                # a training that has noticed ends by itself
                if not self._over.wait(BEAT):
                    with contextlib.suppress(Exception):
                        store.set(f"{END}/{torch.distributed.get_rank()}", verdict)
                    self._end(self._lost(verdict))
                return

    def _beat(self, store: Any, beat: int) -> None:
        me, still = torch.distributed.get_rank(), self.clock - self._step_at
        sign = {
            "beat": beat,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "doing": self._doing,
            "still": still if self._steps else 0.0,
        }
        store.set(f"sslam/alive/{me}", json.dumps(sign))
        if me:
            return
        signs, gone = {}, ""
        for other in range(torch.distributed.get_world_size()):
            key = f"sslam/alive/{other}"
            if not store.check([key]) or store.check([f"{END}/{other}"]):
                continue
            sign = signs[other] = json.loads(store.get(key))
            seen, since = self._seen.get(other, (0, self.clock))
            if seen != sign["beat"]:
                self._seen[other] = sign["beat"], self.clock
                continue
            silent = self.clock - since
            if _killed(sign):
                gone = f"rank {other} (process {sign['pid']}) was killed"
            elif silent > LIFE and still > LIFE:
                state = " (it is stopped)" if _state(sign) in ("T", "t") else ""
                gone = f"rank {other} has given no sign of life for {silent:.0f} s"
                gone += state
        if not gone and still > self.limit:
            hanging = [n for n, sign in signs.items() if "clips" in sign["doing"]]
            who = min(hanging or signs)
            sign = signs[who]
            gone = self._hangs(f"rank {who} has", sign["doing"], sign["still"])
        if gone:
            store.compare_set(VERDICT, "", gone)

    def _end(self, line: str) -> None:
        """End the process from beside a training that cannot do it."""
        with self._last_line:
            if self._over.is_set():
                return
            with contextlib.suppress(OSError):
                os.write(2, f"error: {line}\n".encode())
            for child in multiprocessing.active_children():
                child.kill()
            os._exit(1)


def _lost_peer(error: BaseException) -> bool:
    """Whether a rank fails because another one has."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return False
    kinds = (distributed.DistError, RuntimeError)
    return isinstance(error, kinds) and bool(PEERS.search(str(error)))


def _state(sign: dict[str, Any]) -> str:
    """State of a process of this machine as in /proc, "" of another one's."""
    if sign["host"] != socket.gethostname() or not Path("/proc/self/stat").exists():
        return ""
    try:
        text = Path(f"/proc/{sign['pid']}/stat").read_text()
    except OSError:
        return "gone"
    return text.rpartition(")")[2].split()[0]


def _killed(sign: dict[str, Any]) -> bool:
    return _state(sign) in ("gone", "Z", "X")
