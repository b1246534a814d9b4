"""SSLAM (self-supervised learning from audio mixtures), at home in ESPnet2.

`SSLAM` is the API for people who never train. What importing the package changes in
ESPnet and s3prl is said in docs/importing.md.
"""

import importlib
from typing import TYPE_CHECKING, Any

from espnet2_sslam import _hook

if TYPE_CHECKING:
    from espnet2_sslam.classifier import SSLAMClassifier
    from espnet2_sslam.config import EncoderConfig, HeadConfig
    from espnet2_sslam.encoder import EncoderOutput, SSLAMEncoder
    from espnet2_sslam.inference import SSLAM, FileResult
    from espnet2_sslam.pretrain_model import Draws, SSLAMPretrainModel

__version__ = "0.2.0"

# name -> module: imported when asked for, so that the package imports in milliseconds
_FACE = {
    "SSLAM": "inference",
    "FileResult": "inference",
    "SSLAMEncoder": "encoder",
    "EncoderOutput": "encoder",
    "SSLAMClassifier": "classifier",
    "SSLAMPretrainModel": "pretrain_model",
    "Draws": "pretrain_model",
    "EncoderConfig": "config",
    "HeadConfig": "config",
}
__all__ = [
    "SSLAM",
    "Draws",
    "EncoderConfig",
    "EncoderOutput",
    "FileResult",
    "HeadConfig",
    "SSLAMClassifier",
    "SSLAMEncoder",
    "SSLAMPretrainModel",
]

_hook.install()


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for."""
    if name in _FACE:
        return getattr(importlib.import_module(f"{__name__}.{_FACE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_FACE])
