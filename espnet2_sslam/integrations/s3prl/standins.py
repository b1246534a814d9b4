"""Stand-ins for packages that s3prl imports for single tasks.

Two of them do the real work with packages that are here; the others raise one clear
line when they are really used.
"""

from types import ModuleType
from typing import Any

# Each with the sub-modules that s3prl imports by name.
STANDINS = {
    "catalyst": ("data", "data.sampler"),  # multi-GPU keyword spotting
    "dcase_util": ("containers",),  # HEAR's event tasks
    "editdistance": (),  # speech recognition
    "h5py": (),  # diarization
    "pandas": (),  # tables of many tasks
    "sed_eval": (),  # HEAR's event tasks
    "tensorboardX": (),  # the log of run_downstream
}


class _MissingType(type):
    """Type of a name that is not here: it can be named but not called."""

    def __call__(cls, *args: Any, **options: Any):
        raise ImportError(_complaint(cls))

    def __getattr__(cls, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return _missing(cls.__module__, f"{cls.__name__}.{name}")


def _missing(module: str, name: str) -> type:
    """A name of a module that is not here."""
    return _MissingType(name, (), {"__module__": module})


def _complaint(cls: type) -> str:
    missing = cls.__mro__[-2]  # of which s3prl may have derived its own
    package = missing.__module__.split(".")[0]
    name = f"{missing.__module__}.{missing.__name__}"
    return f"this part of s3prl needs {name}: pip install {package}"


class _StandIn(ModuleType):
    """A module of which every name is missing."""

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        real = _REAL.get((self.__name__, name))
        return real() if real else _missing(self.__name__, name)


def standin_modules(name: str) -> dict[str, ModuleType]:
    """The stand-in for a package and its sub-modules, by full name."""
    full_names = [name, *(f"{name}.{part}" for part in STANDINS[name])]
    modules = {full: _StandIn(full) for full in full_names}
    for full, module in modules.items():
        module.__path__ = []
        parent, _, own = full.rpartition(".")
        if parent:
            setattr(modules[parent], own, module)
    return modules


def edit_distance(first, second) -> int:
    """Levenshtein distance of two sequences, as editdistance.eval."""
    from torchaudio.functional import edit_distance as distance

    return distance(list(first), list(second))


def _summary_writer() -> type:
    """The log writer of torch, with the interface of tensorboardX's."""
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter


_REAL = {
    ("editdistance", "eval"): lambda: edit_distance,
    ("tensorboardX", "SummaryWriter"): _summary_writer,
}
