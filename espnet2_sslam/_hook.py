"""Make `--encoder sslam` known to ESPnet's own tasks, when and if they are imported.

ESPnet has no plug-in mechanism. Here a finder on sys.meta_path adds our encoder to the
choices of each espnet2.tasks module right after it is executed. Standard library only:
`import espnet2_sslam` stays fast. See the README for what works through it.
"""

import sys
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

NAME = "sslam"
PREFIX = "espnet2.tasks."


class TaskFinder:
    """Finds espnet2.tasks modules as Python does, and registers in them afterwards."""

    @staticmethod
    def find_spec(
        name: str, path=None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the module's spec with a loader that registers after execution."""
        if not name.startswith(PREFIX):
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            register(module)

        spec.loader.exec_module = execute_and_register
        return spec


def install() -> None:
    """Register in all espnet2.tasks modules, loaded or to come; again is harmless."""
    if TaskFinder in sys.meta_path:
        return
    sys.meta_path.insert(0, TaskFinder)
    for name, module in list(sys.modules.items()):
        if name.startswith(PREFIX):
            register(module)


def register(module: ModuleType) -> None:
    """Add SSLAMEncoder to the module's choices of audio encoders.

    Raises:
        ImportError: if another class has the name already.
    """
    from espnet2.asr.encoder.abs_encoder import AbsEncoder
    from espnet2.train.class_choices import ClassChoices

    for variable, value in list(vars(module).items()):
        if not isinstance(value, ClassChoices) or value.base_type is not AbsEncoder:
            continue
        from espnet2_sslam.encoder import SSLAMEncoder

        known = value.classes.setdefault(NAME, SSLAMEncoder)
        if known is not SSLAMEncoder:
            raise ImportError(
                f"{module.__name__}.{variable} has another class named {NAME} "
                f"({known.__module__}.{known.__qualname__}): remove one of the two"
            )
