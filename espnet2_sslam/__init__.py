"""SSLAM (self-supervised learning from audio mixtures) as an ESPnet2 plug-in."""

__version__ = "0.1.0"
