"""The pieces that s3prl needs and current packages lack; see `compat`.

Each function fills in one piece where it is missing and returns what it filled in.
"""

import argparse
import importlib
import sys
import warnings
from types import ModuleType
from typing import Any


def audio_backend() -> list[str]:
    """`torchaudio.set_audio_backend`, gone in 2.9: there is nothing left to set."""
    import torchaudio

    if hasattr(torchaudio, "set_audio_backend"):
        return []
    torchaudio.set_audio_backend = lambda backend: None
    return ["torchaudio.set_audio_backend"]


def audio_files() -> list[str]:
    """`torchaudio.load` and `save` need torchcodec since 2.9, `info` is gone."""
    import torchaudio

    from espnet2_sslam.integrations.s3prl import sound

    if hasattr(torchaudio, "info"):  # before 2.9
        return []
    names = ["info"] if _torchcodec_works() else ["load", "save", "info"]
    for name in names:
        setattr(torchaudio, name, getattr(sound, name))
    return [f"torchaudio.{name}" for name in names]


def _torchcodec_works() -> bool:
    """Whether torchcodec and the FFmpeg libraries that it needs are here."""
    try:
        importlib.import_module("torchcodec.decoders")
    except (ImportError, OSError, RuntimeError):
        return False
    return True


def sox_effects() -> list[str]:
    """`torchaudio.sox_effects`: gone in 2.9, before it needs libsox.so."""
    import torchaudio

    from espnet2_sslam.integrations.s3prl import sound

    module = getattr(torchaudio, "sox_effects", None)
    if module is None:
        module = torchaudio.sox_effects = ModuleType("torchaudio.sox_effects")
        sys.modules[module.__name__] = module
    elif _libsox_works(module):
        return []
    module.apply_effects_file = sound.apply_effects_file
    module.apply_effects_tensor = sound.apply_effects_tensor
    return ["torchaudio.sox_effects"]


def _libsox_works(module: ModuleType) -> bool:
    """Whether torchaudio's effects find the library that they need."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that 2.8 is the last with effects
            module.effect_names()
    except (AttributeError, ImportError, OSError, RuntimeError):
        return False
    return True


def huggingface_classes() -> list[str]:
    """Two classes that `--push_to_hf_hub` used, gone from huggingface_hub 1."""
    import huggingface_hub

    names = [n for n in ("HfFolder", "Repository") if not hasattr(huggingface_hub, n)]
    for name in names:
        setattr(huggingface_hub, name, type(name, (_GoneFromHub,), {}))
    return [f"huggingface_hub.{name}" for name in names]


class _GoneFromHub:
    """A class that can be imported but not used."""

    def __init__(self, *args: Any, **options: Any):
        _raise_gone(type(self).__name__)

    @staticmethod
    def get_token():
        """What s3prl calls on the class."""
        _raise_gone("HfFolder.get_token")

    @staticmethod
    def save_token(token):
        """What s3prl calls on the class."""
        _raise_gone("HfFolder.save_token")


def _raise_gone(name: str) -> None:
    raise ImportError(
        f"huggingface_hub has no {name} any more, so that s3prl's --push_to_hf_hub and "
        "--hub huggingface do not work: upload the experiment's folder by hand"
    )


def stored_arguments() -> list[str]:
    """`argparse.Namespace`, refused by `torch.load` since 2.6: it is in checkpoints."""
    import torch

    if argparse.Namespace in torch.serialization.get_safe_globals():
        return []
    torch.serialization.add_safe_globals([argparse.Namespace])
    return ["argparse.Namespace for torch.load"]


PIECES = (
    audio_backend,
    audio_files,
    sox_effects,
    huggingface_classes,
    stored_arguments,
)
