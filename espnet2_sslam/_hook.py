"""Make SSLAM known to ESPnet and s3prl, when and if they are imported.

Neither has a plug-in mechanism that reaches all its commands. Here a finder on
sys.meta_path calls our integrations around the execution of the modules below. Standard
library only: `import espnet2_sslam` stays fast. docs/importing.md says what changes.
"""

import builtins
import contextlib
import functools
import importlib
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

INTEGRATIONS = "espnet2_sslam.integrations."
TASKS = ("espnet2.tasks.", "espnet3.systems.esp2_asr.task")
# ESPnet imports these in every process, and they need nothing: a training of ESPnet
# loads none of our integration of s3prl.
QUIET = ("s3prl.upstream", "s3prl.upstream.wav2vec2", "s3prl.util", "s3prl.utility")


def concerns(name: str) -> bool:
    """Whether we act around the execution of a module."""
    if name.startswith("s3prl."):
        return name not in QUIET and not name.startswith(
            tuple(f"{package}." for package in QUIET[1:])
        )
    return name.startswith(TASKS)


@contextlib.contextmanager
def acting(module: ModuleType) -> Iterator[None]:
    """Act before and after a module is executed.

    Raises:
        ValueError: Somebody else has taken one of our names.
    """
    name = module.__name__
    if name.startswith(TASKS):
        yield
        espnet = importlib.import_module(INTEGRATIONS + "espnet")
        if hasattr(espnet, "register"):  # else it is being imported, and does it itself
            espnet.register(module)
        return
    with importlib.import_module(INTEGRATIONS + "s3prl.compat").executing(module):
        yield
    if name == "s3prl.hub":
        importlib.import_module(INTEGRATIONS + "s3prl.expert").register(module)


class HostFinder:
    """Finds the hosts' modules as Python does, and acts around their execution."""

    @classmethod
    def find_spec(
        cls, name: str, path=None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the module's spec with a loader that does what is to be done."""
        if not concerns(name):
            return None
        others = (f for f in sys.meta_path if f is not cls and hasattr(f, "find_spec"))
        specs = (finder.find_spec(name, path, target) for finder in others)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_act(module: ModuleType) -> None:
            with acting(module):
                execute(module)

        spec.loader.exec_module = execute_and_act
        return spec


def install() -> None:
    """Act on all modules concerned, loaded or to come; again is harmless."""
    if HostFinder in sys.meta_path:
        return
    sys.meta_path.insert(0, HostFinder)  # type: ignore[arg-type]
    for name, module in list(sys.modules.items()):
        if concerns(name):
            with acting(module):
                pass


NOTE = "Failed to import Flash Attention"


@contextlib.contextmanager
def without_flash_attention_note() -> Iterator[None]:
    """Drop the note that ESPnet prints while it is imported, and nothing else.

    202511 prints it to stdout, where it becomes part of `--print_config`; 202611 to
    stderr, where an error should be one line.
    """
    usual = builtins.print

    @functools.wraps(usual)  # numba looks print up by its name while it is imported
    def print_others(*words: Any, **options: Any) -> None:
        if not "".join(map(str, words)).startswith(NOTE):
            usual(*words, **options)

    builtins.print = print_others
    try:
        yield
    finally:
        builtins.print = usual
