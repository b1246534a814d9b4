"""SSLAM (self-supervised learning from audio mixtures) as an ESPnet2 plug-in."""

from espnet2_sslam import _hook

__version__ = "0.1.0"

_hook.install()
