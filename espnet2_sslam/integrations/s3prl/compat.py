"""Let s3prl 0.4.18 run on current versions of its dependencies.

s3prl was written for older torchaudio, huggingface_hub and torch, and imports optional
packages of single tasks at the top of modules that all tasks share. What is missing
here is filled in, each piece only where it is missing; nothing that works is changed.
Nothing happens before a module of s3prl that needs it is imported.
"""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

from espnet2_sslam.integrations.s3prl import guards, pieces
from espnet2_sslam.integrations.s3prl.standins import STANDINS, standin_modules

# ESPnet imports these in every process, and they run as they are.
QUIET = ("s3prl.upstream", "s3prl.upstream.wav2vec2", "s3prl.util", "s3prl.utility")

_filled: list[str] | None = None
_standins: list[str] = []


def apply() -> None:
    """Fill in what s3prl lacks when its modules are imported; again is harmless.

    Call it before a module of s3prl is executed. It imports neither torch nor s3prl.
    """
    if _Finder in sys.meta_path:
        return
    # after finders that look at all the others, which would never end otherwise
    first = sys.meta_path.index(PathFinder) if PathFinder in sys.meta_path else 0
    sys.meta_path.insert(first, _Finder)
    for name in [name for name in sys.modules if name.startswith("s3prl.")]:
        if not _is_quiet(name):
            fill()
        guards.add(sys.modules[name])


def fill() -> list[str]:
    """Fill in every piece that is missing, and say so once, in one line on stderr.

    Returns:
        What was filled in.
    """
    global _filled
    if _filled is None:
        _filled = [name for piece in pieces.PIECES for name in piece()]
        _standins.extend(n for n in STANDINS if importlib.util.find_spec(n) is None)
        lines = [", ".join(_filled)] if _filled else []
        if _standins:
            lines.append(f"stand-ins for {', '.join(_standins)}")
        if lines:
            sys.stderr.write(f"espnet2_sslam fills in for s3prl: {'; '.join(lines)}\n")
    return _filled + _standins


def _is_quiet(name: str) -> bool:
    """Whether a module needs nothing filled in."""
    return name in QUIET or name.startswith(tuple(f"{part}." for part in QUIET[1:]))


@contextmanager
def _visible_standins() -> Iterator[None]:
    """Stand-ins in sys.modules, only while a module of s3prl is executed."""
    added = {}
    for name in _standins:
        for full, module in standin_modules(name).items():
            if full not in sys.modules:
                added[full] = sys.modules[full] = module
    try:
        yield
    finally:
        for full, module in added.items():
            if sys.modules.get(full) is module:
                del sys.modules[full]


class _Finder:
    """Finds s3prl's modules as Python does, and puts the pieces around them."""

    @classmethod
    def find_spec(
        cls, name: str, path=None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the module's spec with a loader that fills in before it executes."""
        if not name.startswith("s3prl."):
            return None
        spec = _spec_of_later_finders(cls, name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader.exec_module = _filling(name, spec.loader.exec_module)
        return spec


def _spec_of_later_finders(finder, name, path, target) -> ModuleSpec | None:
    """What the finders after ours return."""
    for other in sys.meta_path[sys.meta_path.index(finder) + 1 :]:
        spec = getattr(other, "find_spec", lambda *a: None)(name, path, target)
        if spec is not None:
            return spec
    return None


def _filling(name: str, execute: Callable) -> Callable:
    """`execute` with everything in place before and the guards after it."""

    def execute_filled(module: ModuleType) -> None:
        if not _is_quiet(name):
            fill()
        with _visible_standins():
            execute(module)
        guards.add(module)

    return execute_filled
