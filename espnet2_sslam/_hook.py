"""Make SSLAM known to ESPnet and s3prl, when and if they are imported.

Neither has a plug-in mechanism that reaches all its commands. Here a finder on
sys.meta_path calls our integrations around the execution of the modules below. Standard
library only: `import espnet2_sslam` stays fast. The README says what works through it.
"""

import importlib
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType

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
    getattr(importlib.import_module(INTEGRATIONS + module), function)(*arguments)


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
