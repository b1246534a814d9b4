"""Embeddings and labels for people who never train."""

from espnet2_sslam.inference.model import SSLAM
from espnet2_sslam.inference.result import FileResult

__all__ = ["SSLAM", "FileResult"]
