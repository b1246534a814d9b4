"""Embeddings and labels for people who never train."""

from espnet2_sslam.inference.api import SSLAM, best_labels
from espnet2_sslam.inference.stream import FileResult
__all__ = ["SSLAM", "FileResult", "best_labels"]
