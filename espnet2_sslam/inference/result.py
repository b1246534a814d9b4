"""What comes out for a file."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class FileResult:
    """The rows of one file, or the reason why there are none.

    W rows (clips, windows or time steps), D channels, L layers, C classes.

    Args:
        index: Place of the file in the list that was given, from 0.
        name: Its path, or what stands for it ("audio 3" for an array).
        error: One line with the reason if the file cannot be used; then the arrays
            are None.
        starts, ends: Seconds at which each row begins and ends (W,).
        values: Embeddings (W, D), with layer="all" (W, L, D), or scores in 0..1
            (W, C); float32.
        duration: Seconds of audio in the file.
    """

    index: int
    name: str
    error: str | None = None
    starts: np.ndarray | None = None
    ends: np.ndarray | None = None
    values: np.ndarray | None = None
    duration: float | None = None
