"""A list of files on the workers of a Dask cluster, with the results of one process.

A shard is a run of the list that is batched by itself, here as on a worker. Only names
travel: a worker leaves the results of a shard in a file beside the journal, from which
the client, the only writer of the journal, takes them one by one.
"""

import json
import logging
import os
import pickle
import platform
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

from espnet2_sslam import __version__
from espnet2_sslam.inference.api import SSLAM, choose_dtype, find_device
from espnet2_sslam.inference.results import Shard, weights_sha256
from espnet2_sslam.inference.stream import FileResult, Finished

CONNECT = 10  # seconds until a scheduler must have answered
PATIENCE = 60  # seconds without a result until workers are looked for
PIECES = "pieces"  # folder of the results that are not taken over yet
DEADLY = "deadly: each worker that works on it dies (out of memory? a decoder's fault?)"
GONE = "the Dask scheduler is gone: with another one the same command goes on"
_loading = threading.Lock()  # a worker may have several threads


class Work(NamedTuple):
    """What is done with each file.

    Args:
        model: Path or Hugging Face id.
        options: Of `SSLAM.from_pretrained`, as pairs.
        weights: SHA-256 of the client's weights.
        method, method_options: Of SSLAM: what is computed of files.
        folder: Where the results go.
    """

    model: str
    options: tuple[tuple[str, Any], ...]
    weights: str
    method: str
    method_options: dict[str, Any]
    folder: str
    version: str = __version__


# On a worker


@lru_cache(maxsize=1)
def _model(source: str, options: tuple, weights: str) -> SSLAM:
    """The model, loaded once."""
    model = SSLAM.from_pretrained(source, **dict(options))
    if weights_sha256(model.model) != weights:
        raise ValueError(f"{source} has other weights here than for the client")
    return model


def _compute(work: Work, sources: list[str | Finished], here: list[str]) -> str:
    """Results of a shard, in a new file, whose path is returned.

    Args:
        work: What is done.
        sources: The shard.
        here: Those files in it that the client can see.
    """
    try:
        if work.version != __version__:
            raise ValueError(f"version {__version__} instead of {work.version}")
        with _loading:
            model = _model(work.model, work.options, work.weights)
        for path in here:
            os.stat(path)
        number, piece = tempfile.mkstemp(dir=work.folder)
    except (ValueError, OSError) as error:
        raise ValueError(
            f"worker {platform.node()}: {error}: workers need our version, and a disk "
            "on which they see the model, the audio and the output's folder as we do"
        ) from None
    with os.fdopen(number, "wb") as file:
        for result in getattr(model, work.method)(sources, **work.method_options):
            pickle.dump(result, file)
    return piece


def _choose_dtype(dtype: str, device: str | None, compile: bool) -> str:
    return choose_dtype(dtype, find_device(device), speed=compile)


# At the client


class Cluster:
    """The client of a Dask scheduler. Use it in a `with` block.

    Args:
        address: Of the scheduler (tcp://HOST:8786), or its scheduler file.

    Raises:
        ValueError: No such file, or nobody answers there.
    """

    def __init__(self, address: str):
        try:
            from distributed import Client
        except ImportError:
            raise ValueError(
                "--dask needs Dask: pip install 'dask[distributed]'"
            ) from None
        host = address
        try:
            if os.path.isfile(address):
                host = json.loads(Path(address).read_text("utf-8")).get("address")
                if not isinstance(host, str):
                    raise ValueError("a file, but not a scheduler's")
            elif ":" not in address:
                raise ValueError("neither HOST:PORT nor a scheduler file that is here")
            self._client = Client(host, timeout=CONNECT, set_as_default=False)
        except (OSError, ValueError, AttributeError) as error:
            raise ValueError(f"--dask {address}: no scheduler: {error}") from None

        # What matters is told in one line; a lost connection would be thirty.
        logging.getLogger("distributed").setLevel(logging.CRITICAL)

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *exception: object) -> None:
        with suppress(Exception):  # whatever it is, the work is over
            self._client.close(timeout=CONNECT)

    def num_threads(self) -> int:
        """Of all workers: shards that are computed at a time."""
        try:
            threads: Any = self._client.nthreads()  # awaited in its own thread
            return sum(threads.values())
        except OSError:
            raise ConnectionError(GONE) from None

    def dtype(self, dtype: str, device: str | None, compile: bool) -> str:
        """The precision for all workers: the given one or, of "auto", a worker's."""
        choice = self._client.submit(_choose_dtype, dtype, device, compile, pure=False)
        return self._outcome(choice)

    def compute(self, work: Work, shards: Sequence[Shard]) -> Iterator[FileResult]:
        """Results of all files, those of a shard together, as soon as they are there.

        No more shards are given out than keep all workers busy. Dask gives the shards
        of a worker that dies to others. The files of a shard at which worker after
        worker has died are tried one by one; those that kill again have an `error`.
        """
        from distributed import KilledWorker

        shutil.rmtree(work.folder, ignore_errors=True)  # of a client that was killed
        Path(work.folder).mkdir()
        waiting = (shard for shard in shards if shard.files)
        killed: list[Shard] = []
        running: dict[Any, Shard] = {}
        ready: SimpleQueue = SimpleQueue()
        try:
            while True:
                room = 2 * self.num_threads() + 2 - len(running)
                for shard in islice(waiting, max(room, 0)):
                    future = self._submit(work, shard.sources)
                    running[future] = shard
                    future.add_done_callback(ready.put)
                if not running:
                    break
                future = self._next(ready)
                shard = running.pop(future)
                try:
                    yield from self._taken(future, shard)
                except KilledWorker:
                    killed.append(shard)
            for shard in killed:
                sources = list(shard.sources)
                for place, source in shard.files:
                    try:
                        os.unlink(self._outcome(self._submit(work, [source])))
                    except KilledWorker:
                        sources[place] = Finished(0)  # as if it could not be read
                        yield FileResult(shard.first + place, source, DEADLY)
                shard = shard._replace(sources=sources)
                yield from self._taken(self._submit(work, sources), shard)
        except KilledWorker:
            raise ValueError(
                f"each worker that works on {shard.files[0][1]} and the "
                f"{len(shard.files) - 1} files behind it dies, but of none of them "
                "alone: give the workers more memory or fewer threads"
            ) from None
        finally:
            with suppress(Exception):
                self._client.cancel(list(running), force=True)
            shutil.rmtree(work.folder, ignore_errors=True)

    def _next(self, ready: SimpleQueue) -> Any:
        """The next future that is ready; says when nobody works on any."""
        while True:
            try:
                return ready.get(timeout=PATIENCE)
            except Empty:
                if not self.num_threads():
                    logging.warning("--dask: there is no worker: waiting for one")

    def _submit(self, work: Work, sources: Sequence[str | Finished]) -> Any:
        """Give files to a worker: the future of `_compute`."""
        paths = [s if isinstance(s, Finished) else os.path.abspath(s) for s in sources]
        here = [s for s in paths if isinstance(s, str) and os.path.exists(s)]
        return self._client.submit(_compute, work, paths, here, pure=False)

    def _taken(self, future: Any, shard: Shard) -> Iterator[FileResult]:
        """The results in the file that a worker has left."""
        piece = self._outcome(future)
        with open(piece, "rb") as file:
            for _ in shard.files:  # each has one; pickle raises where one is cut off
                result = pickle.load(file)  # noqa: S301  # a worker's of ours
                yield replace(result, index=shard.first + result.index)
        os.unlink(piece)

    def _outcome(self, future: Any) -> Any:
        """What a worker has returned or raised."""
        try:
            return future.result()
        except CancelledError:
            raise ConnectionError(GONE) from None
        except ImportError as error:
            raise ValueError(f"--dask: a worker lacks a package: {error}") from None
