"""Checkpoints that are either old and whole or new and whole."""

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

_lock = threading.Lock()
_users = 0
_plain_save = torch.save


def save_atomically(obj: Any, path: str | os.PathLike, **kwargs: Any) -> None:
    """Write with torch.save to a temporary file, then put it in place in one step.

    A process killed while it writes leaves the old file untouched (espnet/espnet#5407
    reports what happens otherwise).

    Raises:
        OSError: if it cannot be written (full disk), with the old file intact.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as stream:
            _plain_save(obj, stream, **kwargs)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except (
        OSError,
        RuntimeError,
    ) as error:  # torch reports a full disk as RuntimeError
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        reason = getattr(cause, "strerror", None) or str(cause).splitlines()[0]
        raise OSError(
            f"cannot write {path}: {reason}; the file from before is intact: make room "
            "and run the same command again with --resume true"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def link_atomically(link: Path, target: str) -> None:
    """Point a symbolic link at target, with no moment without a link."""
    temporary = link.with_name(f".{link.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    os.replace(temporary, link)


@contextlib.contextmanager
def atomic_torch_save() -> Iterator[None]:
    """Make `torch.save` to a path atomic inside the block, in every thread.

    Nested and concurrent blocks share one replacement; the last one out restores
    torch's own function.
    """
    global _users
    with _lock:
        _users += 1
        torch.save = _save
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                torch.save = _plain_save


def _save(obj: Any, f: Any, *args: Any, **kwargs: Any) -> None:
    """torch.save, atomic where the destination is a path."""
    if isinstance(f, (str, os.PathLike)) and not args:
        save_atomically(obj, f, **kwargs)
    else:
        _plain_save(obj, f, *args, **kwargs)


def _sync_folder(folder: Path) -> None:
    """Bring the renaming to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
