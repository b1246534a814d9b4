"""Does the ONNX file give what PyTorch gives? Asked with onnxruntime, clip by clip.

Shapes: N samples; the first dimension of every output is the clip.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from espnet2_sslam.audio import read_audio
from espnet2_sslam.units import FRAME_LENGTH, SAMPLE_RATE

TOLERANCE = {"float32": 1e-4, "float16": 2e-2}
LONGEST = 15 * SAMPLE_RATE  # samples of a clip that are compared
BATCH = 4  # clips
SLACK = 3_210  # samples that a batch is longer than its longest clip


class Check(NamedTuple):
    """What was compared, and the largest difference of each output."""

    clips: int
    batches: int
    tolerance: float
    largest: dict[str, float]

    def __str__(self) -> str:
        found = ", ".join(f"{name} {value:.1e}" for name, value in self.largest.items())
        return (
            f"{self.clips} clips, each alone and in padded batches ({self.batches}): "
            f"largest difference from PyTorch {found} (allowed {self.tolerance:.0e})"
        )


def made_clips() -> list[np.ndarray]:
    """Clips that a log-mel finds hard: short, silent, very quiet, clipped, mixed."""
    draw = np.random.default_rng(0)

    def noise(seconds, scale):
        size = int(seconds * SAMPLE_RATE)
        return (scale * draw.standard_normal(size)).astype(np.float32)

    def tone(seconds, frequency, scale):
        time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
        phase = 2 * np.pi * (frequency * time + 3 * np.sin(5 * time))
        chord = sum(np.sin(k * phase) / k for k in range(1, 8))
        return (scale * chord * np.exp(-2 * (time % 0.7))).astype(np.float32)

    silence = np.zeros(SAMPLE_RATE // 2, np.float32)
    scene = np.concatenate([tone(4, 220, 0.2), silence, tone(5.5, 700, 0.05)])
    clips = [
        noise(FRAME_LENGTH / SAMPLE_RATE, 0.1),
        silence,
        tone(1.3, 150, 0.3),
        1e-4 * tone(0.9, 310, 0.3),
        np.clip(tone(2.21, 90, 1.5), -1, 1) + 0.2,
        noise(0.4, 0.3),
        np.concatenate([noise(1.7, 1e-5), silence, noise(0.3, 0.5)]),
        scene + noise(10, 0.003),
    ]
    return [clip.astype(np.float32) for clip in clips]


def read_clips(paths: Sequence[str | Path]) -> list[np.ndarray]:
    """The audio files, and those in the folders, at 16 kHz.

    Raises:
        AudioError: A file that cannot be read.
        ValueError: There is none.
    """
    files = []
    for path in map(Path, paths):
        inside = sorted(p for p in path.rglob("*") if p.is_file())
        files += inside if path.is_dir() else [path]
    if paths and not files:
        raise ValueError(f"no audio in {', '.join(map(str, paths))} to check with")
    return [read_audio(file) for file in files]


def compare(
    reference: torch.nn.Module,
    session,
    clips: Sequence[np.ndarray],
    *,
    max_samples: int | None = None,
    tolerance: float = TOLERANCE["float32"],
) -> Check:
    """Compare each clip alone in PyTorch with the clip alone and in batches in ONNX.

    A difference counts relative to the largest value of PyTorch's output for the clip,
    and absolutely where that is below 1: logits may be large and scores are small.

    Args:
        reference: FeatureGraph or ScoreGraph.
        session: onnxruntime.InferenceSession of the file.
        clips: 16 kHz; the first 15 s of each are used.
        max_samples: Longest clip that the file takes.

    Raises:
        ValueError: A difference above the tolerance.
    """
    longest = min(LONGEST, max_samples or LONGEST)
    clips = [clip[:longest] for clip in clips]
    wanted = [_torch_outputs(reference, clip) for clip in clips]
    largest = dict.fromkeys(reference.outputs, 0.0)
    batches = 0
    for rows, found in _runs(session, clips, longest):
        batches += len(rows) > 1
        for place, row in enumerate(rows):
            for name, output, expected in zip(largest, found, wanted[row]):
                difference = _difference(output[place], expected)
                largest[name] = max(largest[name], difference)
    check = Check(len(clips), batches, tolerance, largest)
    if not max(largest.values()) <= tolerance:
        raise ValueError(f"the ONNX file does not equal the model: {check}")
    return check


def _torch_outputs(reference, clip: np.ndarray) -> list[np.ndarray]:
    """PyTorch's outputs for one clip, without the first dimension."""
    with torch.no_grad():
        outputs = reference(torch.from_numpy(clip)[None], torch.tensor([len(clip)]))
    return [output[0].numpy() for output in outputs]


def _runs(session, clips, longest: int) -> Iterator[tuple[list[int], list[np.ndarray]]]:
    """Rows of `clips` and their outputs: each alone, then all in batches."""
    rows = range(len(clips))
    batches = [list(rows[start : start + BATCH]) for start in rows[::BATCH]]
    for batch in [[row] for row in rows] + [b for b in batches if len(b) > 1]:
        lengths = np.array([len(clips[row]) for row in batch], np.int64)
        slack = SLACK if len(batch) > 1 else 0
        size = min(lengths.max() + slack, max(longest, lengths.max()))
        speech = np.full((len(batch), size), 7.0, np.float32)  # must not matter
        for place, row in enumerate(batch):
            speech[place, : lengths[place]] = clips[row]
        yield batch, session.run(None, {"speech": speech, "speech_lengths": lengths})


def _difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference; what `found` has beyond must be zero. inf if not finite."""
    padded = np.zeros_like(found)
    padded[tuple(slice(size) for size in expected.shape)] = expected
    scale = max(1.0, float(np.abs(expected).max()))
    if not (np.isfinite(found).all() and np.isfinite(expected).all()):
        return float("inf")
    return float(np.abs(found - padded).max()) / scale
