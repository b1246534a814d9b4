"""Reading a pickled checkpoint without running what a pickle can ask for.

torch's restricted unpickler builds tensors, containers and numbers only. The authors'
files may also hold the configuration as omegaconf, argparse or fairseq objects: these
become inert stand-ins that keep their attributes. Anything else is refused by name.
"""

import codecs
import pickle
import re
import zipfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from espnet2_sslam.checkpoint.errors import CheckpointError, RefusedPickle
from espnet2_sslam.checkpoint.sniff import kind_of

# Classes of these packages describe a configuration; stand-ins take their place.
STAND_IN_PACKAGES = ("omegaconf.", "fairseq.", "argparse.Namespace", "typing.Any")
NUMPY_SCALAR = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")


class StandIn:
    """In place of a configuration class: keeps the pickled state, does nothing."""

    def __init__(self, *args: Any, **kwargs: Any):
        self.__dict__.update(kwargs)

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


def read_pickle(path: str | Path) -> Any:
    """Read what `torch.save` wrote, without importing or calling anything unknown.

    Args:
        path: A .pt or .pth file.

    Raises:
        CheckpointError: The file is none, is cut off, or asks for more than tensors,
            containers, numbers and configuration objects.
    """
    path = Path(path)
    if kind_of(path) != "pickle":
        raise CheckpointError(f"{path} is not a file of torch.save")
    try:
        globals_ = _globals_wanted(path)
        with torch.serialization.safe_globals(_safe_globals(path, globals_)):
            mmap = zipfile.is_zipfile(path)  # not for files from before torch 1.6
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        # not torch's own advice, which is to read the file without care
        named = re.search(r"GLOBAL (\S+)", str(error))
        if named:
            raise _refusal(path, [named[1]]) from None
        raise CheckpointError(f"{path} holds no plain tensors and values") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{path} is damaged or truncated ({_first_line(error)}): get it again"
        ) from None


def plain(value: Any) -> Any:
    """A configuration as plain dicts, lists and values, whatever classes it came in."""
    if isinstance(value, StandIn):
        state = vars(value)
        if "_content" in state:  # omegaconf's containers
            return plain(state["_content"])
        if "_val" in state:  # omegaconf's values
            return plain(state["_val"])
        if "_value_" in state:  # an enumeration
            return plain(state["_value_"])
        return {name: plain(item) for name, item in state.items()}
    if isinstance(value, dict):
        return {str(plain(name)): plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def _globals_wanted(path: Path) -> list[str]:
    """Full names that the pickle asks for beyond what torch itself trusts."""
    if not zipfile.is_zipfile(path):
        return []  # before torch 1.6: read with torch's own list only
    return torch.serialization.get_unsafe_globals_in_checkpoint(path)


def _safe_globals(path: Path, wanted: list[str]) -> list[Any]:
    """What stands for each wanted name; refuses names that nothing stands for."""
    allowed: list[Any] = []
    known = _harmless()
    for name in wanted:
        if name in known:
            allowed.append((known[name], name))
        elif name.startswith(STAND_IN_PACKAGES):
            stand_in = type(name.rsplit(".", 1)[-1], (StandIn,), {})
            allowed.append((stand_in, name))
    names = {name for _, name in allowed}
    refused = [name for name in wanted if name not in names]
    if refused:
        raise _refusal(path, refused)
    if names & set(NUMPY_SCALAR):
        allowed += [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64)]
    return allowed


def _refusal(path: Path, names: list[str]) -> RefusedPickle:
    """What is said of a pickle that asks for more than values."""
    return RefusedPickle(
        f"{path} asks for {', '.join(sorted(names))}: no checkpoint of this kind needs "
        "that, so it is not read (it could run code)"
    )


def _harmless() -> dict[str, Any]:
    """Names of builders of plain values, in the spellings of all versions."""
    scalar = np._core.multiarray.scalar  # noqa: SLF001 (its public place to be pickled)
    known: dict[str, Any] = {name: scalar for name in NUMPY_SCALAR}
    known["numpy.dtype"] = np.dtype
    known["_codecs.encode"] = codecs.encode
    known["collections.defaultdict"] = defaultdict
    for kind in (dict, list, int, float, str, bool, tuple, set):
        for module in ("builtins", "__builtin__"):
            known[f"{module}.{kind.__name__}"] = kind
    known["__builtin__.long"] = int
    known["__builtin__.unicode"] = str
    return known


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
