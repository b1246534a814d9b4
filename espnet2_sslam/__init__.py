"""SSLAM (self-supervised learning from audio mixtures) as an ESPnet2 plug-in.

`from espnet2_sslam import SSLAM` is the API for people who never train.
"""

from espnet2_sslam import _hook

__version__ = "0.1.0"

_hook.install()


def __getattr__(name: str):
    """Import SSLAM when it is asked for: the package itself imports in milliseconds."""
    if name == "SSLAM":
        from espnet2_sslam.inference import SSLAM

        return SSLAM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
