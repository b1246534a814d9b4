"""Make SSLAM known to ESPnet and s3prl, when and if they are imported.

Neither has a plug-in mechanism that reaches all its commands. Here a finder on
sys.meta_path calls our integrations around the execution of the modules below. Standard
library only: `import espnet2_sslam` stays fast. The README says what works through it.
"""

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, TextIO

TASKS = "espnet2.tasks."
INTEGRATIONS = "espnet2_sslam.integrations."


def before(name: str) -> Callable[[], None] | None:
    """What to do before a module is executed, if anything."""
    if name == "s3prl":
        return lambda: _call("s3prl.compat", "apply")
    return None


def after(name: str) -> Callable[[ModuleType], None] | None:
    """What to do with a module after it was executed, if anything.

    Raises (when called):
        ImportError: Somebody else has taken one of our names.
    """
    if name.startswith(TASKS):
        return lambda module: _call("espnet", "register", module)
    if name == "s3prl.hub":
        return lambda module: _call("s3prl.register", "register", module)
    return None


def _call(module: str, function: str, *arguments: object) -> None:
    """Call a function of one of our integrations."""
    integration = importlib.import_module(INTEGRATIONS + module)
    if hasattr(integration, function):  # else it is being imported, and does it itself
        getattr(integration, function)(*arguments)


class HostFinder:
    """Finds the hosts' modules as Python does, and acts around their execution."""

    @classmethod
    def find_spec(
        cls, name: str, path=None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the module's spec with a loader that does what is to be done."""
        first, then = before(name), after(name)
        if first is None and then is None:
            return None
        spec = cls._spec_of_others(name, path, target)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_act(module: ModuleType) -> None:
            if first is not None:
                first()
            execute(module)
            if then is not None:
                then(module)

        spec.loader.exec_module = execute_and_act
        return spec

    @classmethod
    def _spec_of_others(cls, name, path, target) -> ModuleSpec | None:
        """The spec that Python would use without us."""
        for finder in sys.meta_path:
            if finder is not cls and hasattr(finder, "find_spec"):
                spec = finder.find_spec(name, path, target)
                if spec is not None:
                    return spec
        return None


def install() -> None:
    """Act on all modules concerned, loaded or to come; again is harmless."""
    if HostFinder in sys.meta_path:
        return
    sys.meta_path.insert(0, HostFinder)
    for name, module in list(sys.modules.items()):
        if before(name) is not None:
            before(name)()
        if after(name) is not None:
            after(name)(module)


NOTE = "Failed to import Flash Attention"


@contextlib.contextmanager
def without_flash_attention_note() -> Iterator[None]:
    """Drop the note that ESPnet prints while it is imported, and nothing else.

    202511 prints it to stdout, where it becomes part of `--print_config`; 202611 to
    stderr, where an error should be one line.
    """
    out, err = NoteFilter(sys.stdout), NoteFilter(sys.stderr)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield


class NoteFilter:
    """A stream that hands everything but the note on to another one."""

    def __init__(self, stream: TextIO):
        self.stream = stream
        self.in_note = False

    def write(self, text: str) -> int:
        """Write, unless it is the note or the end of its line."""
        if text.startswith(NOTE):
            self.in_note = not text.endswith("\n")
            return len(text)
        if self.in_note and text == "\n":
            self.in_note = False
            return len(text)
        return self.stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)
