"""A model over many files into one output: progress, failures, and going on."""

import argparse
import hashlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from espnet2_sslam import __version__
from espnet2_sslam.inference import AudioInput, Journal, Rows, StoredRows, plain

Compute = Callable[[list[str]], Iterator]  # paths -> FileResult of each, in order


def run_job(
    args: argparse.Namespace,
    items: Sequence[AudioInput],
    model,
    options: Mapping[str, Any],
    compute: Compute,
    write: Callable[[StoredRows, dict[str, Any]], None],
) -> None:
    """Run a model over the files that the options name and write one output.

    Args:
        args: Of a parser with the options of `model_options`.
        items: The files, see `collect_files`.
        model: The `SSLAM`.
        options: What the results depend on, besides the model; with the command.
        compute: Runs the model over files.
        write: Writes the results; gets them and the record of the job.

    Raises:
        ValueError: Files that could not be used; all else is written before.
    """
    began = time.monotonic()
    job = {
        **options,
        "weights_sha256": fingerprint(model),
        "dtype": args.dtype,
        "target_frames": args.target_frames,
        "espnet2_sslam": __version__,
    }
    with Journal(args.output, job, args.restart) as journal:
        failures: dict[str, str] = {}
        try:
            _fill(journal, items, compute, failures)
            results = journal.rows(items)
            if len(results):
                write(results, job)
        except KeyboardInterrupt:
            say(
                f"{len(journal)} of {len(items)} files are done and kept in "
                f"{journal.folder}: the same command goes on from there"
            )
            raise
        if len(results):
            rows = sum(shape[0] for shape in results.shapes)
            say(
                f"{args.output}: {len(results):,} of {len(items):,} files, {rows:,} "
                f"rows ({time.monotonic() - began:.0f} s)"
            )
        if not failures:
            journal.discard()
    if len(results):
        kept = f"{journal.folder} keeps the others for a run with these repaired"
    else:
        kept = f"{args.output} is not written"
    refuse_failures(failures, len(items), kept)


def _fill(
    journal: Journal,
    items: Sequence[AudioInput],
    compute: Compute,
    failures: dict[str, str],
) -> None:
    """Bring the journal up to date; collect why files could not be used."""
    todo = journal.pending(items)
    done = len(items) - len(todo)
    if done:
        say(f"{done} of {len(items)} files are done already, {len(todo)} to go")
    progress = tqdm(
        total=len(items), initial=done, unit="file", disable=None, smoothing=0.05
    )
    with progress, closing(_results(compute, todo)) as results:
        for result in results:
            item = todo[result.index]
            reason = problem(result)
            if reason is None:
                journal.add(item, result.starts, result.ends, result.values)
            else:
                failures[item.name] = reason
            progress.update()


def _results(compute: Compute, items: Sequence[AudioInput]) -> Iterator:
    """Run the model; too little memory is a matter of options."""
    try:
        yield from compute([item.path for item in items])
    except torch.OutOfMemoryError:
        raise ValueError(
            "out of memory on the device: try a smaller --batch_seconds, or another "
            "--device"
        ) from None


def problem(result) -> str | None:
    """Why a `FileResult` cannot be used, or None."""
    if result.error is None and not np.isfinite(result.values).all():
        return "not finite: the model gives NaN or infinity, see --dtype and the model"
    return result.error


def print_job(
    items: Sequence[AudioInput],
    compute: Compute,
    lines: Callable[[Iterator[Rows]], Iterator[str]],
) -> None:
    """Run a model over files and print what comes out, file by file.

    Args:
        lines: Results, as they come, to lines.

    Raises:
        ValueError: Files that could not be used.
    """
    failures: dict[str, str] = {}

    def results() -> Iterator[Rows]:
        with closing(_results(compute, items)) as found:
            for result in found:
                name, reason = items[result.index].name, problem(result)
                if reason is None:
                    yield Rows(name, result.starts, result.ends, result.values)
                else:
                    failures[name] = reason

    for line in lines(results()):
        print(plain(line), flush=True)
    refuse_failures(failures, len(items), "")


def refuse_failures(failures: Mapping[str, str], total: int, kept: str) -> None:
    """List the files that could not be used, each with its reason, and raise.

    Raises:
        ValueError: If there are any.
    """
    if failures:
        for name, reason in failures.items():
            # The reader names the path; say it once.
            say(f"  {reason}" if reason.startswith(name) else f"  {name}: {reason}")
        files = "file" if total == 1 else "files"
        raise ValueError(
            f"{len(failures)} of {total} {files} could not be used (listed above)"
            + (f"; {kept}" if kept else "")
        )


def fingerprint(model) -> str:
    """SHA-256 over the weights of an `SSLAM`: what its results depend on."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(memoryview(data.numpy()))
    return digest.hexdigest()


def say(line: str) -> None:
    """A line for people, on stderr; results go to files or to stdout."""
    sys.stderr.write(f"{plain(line)}\n")
