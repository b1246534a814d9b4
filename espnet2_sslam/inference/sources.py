"""What a user may hand over as audio -> blocks of mono samples at 16 kHz."""

import logging
import os
from collections.abc import Iterator, Mapping
from numbers import Real
from typing import Any

import numpy as np
import torch

from espnet2_sslam.audio import (
    BLOCK_FRAMES,
    MAX_PEAK,
    AudioError,
    AudioSummary,
    mono_blocks,
    read_blocks,
)

MAX_CHANNELS = 8  # of an array: more rows than that are taken for a batch of clips
SCALES = {"int16": 2**15, "int32": 2**31, "uint8": 2**7}  # full scale of integers


def is_single(audio: Any) -> bool:
    """Whether this is one clip, not several.

    A list, a tuple or another iterable holds several; paths, file objects, arrays,
    (array, rate) and {"array": ..., "sampling_rate": ...} are one.
    """
    return (
        isinstance(audio, (str, bytes, os.PathLike, Mapping))
        or hasattr(audio, "read")
        or _is_array(audio)
        or _is_pair(audio)
        or not hasattr(audio, "__iter__")
    )


def as_clips(audio: Any) -> tuple[list[Any], bool]:
    """The clips of what was given, and whether it was a single one."""
    single = is_single(audio)
    return [audio] if single else list(audio), single


def source_name(source: Any, index: int) -> str:
    """What results and errors call a source: its path, or "audio <index>"."""
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source) if isinstance(source, os.PathLike) else source
    name = getattr(source, "name", None) if hasattr(source, "read") else None
    if isinstance(source, Mapping):
        name = source.get("path")
    return name if isinstance(name, str) and name else f"audio {index}"


def source_blocks(source: Any, name: str, rate: float | None) -> Iterator:
    """Blocks (n,) of mono float32 samples at 16 kHz.

    Args:
        source: A path, an object open for reading bytes, an array (NumPy or torch),
            (array, rate), or {"array": ..., "sampling_rate": ...}.
        name: What errors call it.
        rate: Samples per second of arrays that come without their own rate.

    Raises:
        AudioError: What `audio.read_blocks` says, or an array that is not audio.
    """
    if isinstance(source, Mapping) and "array" in source:
        source, rate = source["array"], source.get("sampling_rate", rate)
    elif _is_pair(source):
        source, rate = source
    if isinstance(source, (str, os.PathLike)) or hasattr(source, "read"):
        return read_blocks(source, name=name)
    if not _is_array(source):
        raise AudioError(
            name,
            "not audio: need a path, a file object, an array with its rate or a list "
            f"of these, got {type(source).__name__}",
        )
    if rate is None:
        raise AudioError(
            name, "no rate: an array needs its sampling rate, give rate=... in Hz"
        )
    if not (isinstance(rate, Real) and 0 < rate < float("inf")):
        raise AudioError(name, f"no rate: need samples per second above 0, got {rate}")
    return _array_blocks(source, name, rate)


def _is_array(value: Any) -> bool:
    return isinstance(value, (np.ndarray, torch.Tensor))


def _is_pair(value: Any) -> bool:
    """Whether the value is (array, rate), as soundfile and torchaudio return it."""
    return (
        isinstance(value, tuple)
        and len(value) == 2
        and _is_array(value[0])
        and isinstance(value[1], Real)
    )


def _array_blocks(array: Any, name: str, rate: float) -> Iterator[np.ndarray]:
    """Blocks of an array; a peak far beyond 1 is worth a warning."""
    samples = _time_first(_to_numpy(array, name), name)
    scale, offset = _scale(samples, name)
    pieces = (
        (np.asarray(samples[start : start + BLOCK_FRAMES], np.float32) - offset) / scale
        for start in range(0, len(samples), BLOCK_FRAMES)
    )
    summary = AudioSummary()
    yield from mono_blocks(name, pieces, rate, summary)
    peak = max(-summary.lowest, summary.highest)
    if peak > MAX_PEAK:
        logging.warning(
            "%s: peak %.1f; samples are taken to be in [-1, 1]: integers in a float "
            "array have to be divided by their full scale",
            name,
            peak,
        )


def _to_numpy(array: Any, name: str) -> np.ndarray:
    """A torch tensor of any device and dtype as a NumPy array; arrays as they are."""
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        array = (array.float() if array.dtype == torch.bfloat16 else array).numpy()
    if array.dtype.kind not in "fiu":
        raise AudioError(
            name, f"not audio: need an array of real numbers, got {array.dtype}"
        )
    return array


def _time_first(array: np.ndarray, name: str) -> np.ndarray:
    """An array (N,), (N, channels) or (channels, N) as (N, channels)."""
    if array.ndim == 1:
        return array[:, None]
    if array.ndim == 2 and array.shape[0] != array.shape[1]:
        short = int(array.shape[1] < array.shape[0])
        if 1 <= array.shape[short] <= MAX_CHANNELS:
            return array if short else array.T
    raise AudioError(
        name,
        f"shape: need an array (N,), (N, channels) or (channels, N) with 1 to "
        f"{MAX_CHANNELS} channels, got {array.shape}; give several clips as a list",
    )


def _scale(samples: np.ndarray, name: str) -> tuple[float, float]:
    """Full scale of an array's numbers and its value of silence."""
    if samples.dtype.kind == "f":
        return 1.0, 0.0
    kind = samples.dtype.name
    if kind not in SCALES:
        raise AudioError(
            name,
            f"not audio: integers must be {', '.join(SCALES)}, got {kind}: their full "
            "scale is not known, convert them to float in [-1, 1]",
        )
    return float(SCALES[kind]), 128.0 if kind == "uint8" else 0.0
