"""Results in a file of raw arrays: starts, ends and values, one after the other."""

import math
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

TIMES, VALUES = np.dtype("<f8"), np.dtype("<f4")


class Rows(NamedTuple):
    """One file's result: starts and ends in seconds (W,), values (W, ...)."""

    name: str
    starts: np.ndarray
    ends: np.ndarray
    values: np.ndarray


class Place(NamedTuple):
    """Where a file's arrays are: bytes from the start, and the shape of its values."""

    offset: int
    shape: tuple[int, ...]


class StoredRows:
    """Results in the order of the output, read one by one, as often as needed."""

    def __init__(self, path: Path, names: list[str], places: list[Place]):
        self.names = names
        self._path, self._places = path, places

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Rows]:
        with open(self._path, "rb") as data:
            for name, place in zip(self.names, self._places):
                yield Rows(name, *read_arrays(data, place))

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shape of each file's values."""
        return [place.shape for place in self._places]


def read_arrays(data, place: Place) -> list[np.ndarray]:
    """The three arrays of a result; shorter ones where the data end early."""
    data.seek(place.offset)
    rows, count = place.shape[0], math.prod(place.shape)
    starts = np.fromfile(data, TIMES, rows)
    ends = np.fromfile(data, TIMES, rows)
    values = np.fromfile(data, VALUES, count)
    return [
        starts,
        ends,
        values.reshape(place.shape) if len(values) == count else values,
    ]


def checksum(arrays: Sequence[np.ndarray]) -> int:
    """CRC-32 over the bytes of the arrays."""
    crc = 0
    for array in arrays:
        crc = zlib.crc32(memoryview(array).cast("B") if array.size else b"", crc)
    return crc
