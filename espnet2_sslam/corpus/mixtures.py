"""Mixtures of a known number of sounds: which sources, at which levels, the samples.

A source's level is the root mean square of its sounding part: of the frames of 25 ms
that are within 40 dB of its loudest one, so that silence around a short sound does not
count.
"""

import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from espnet2_sslam.audio import read_audio
from espnet2_sslam.units import FRAME_LENGTH

ATTEMPTS = 50  # to find a mixture that was not made yet
LEVEL = 10 ** (-26 / 20)  # root mean square of the reference
SOUNDING = 10 ** (-40 / 20)  # of the loudest frame: what counts as silence
PEAK = 10 ** (-1 / 20)  # louder mixtures are turned down to it


class Source(NamedTuple):
    """A clip with one label; `recording` is what it was cut from."""

    key: str
    path: str
    recording: str
    label: str


class Part(NamedTuple):
    """A source in a mixture: its level against the reference, and a draw in 0..1.

    `place` says where it begins, or, if it is longer than the mixture, where it is cut.
    """

    source: Source
    snr: float  # dB
    place: float


class Mixture(NamedTuple):
    """What one file is made of; `split` is train, valid or degree_<k> of the test."""

    split: str
    key: str
    parts: list[Part]


def choose(
    labelled: Mapping[str, Sequence[Source]],
    degree: int,
    snr: tuple[float, float],
    rng: np.random.Generator,
) -> list[Part]:
    """Draw the parts of a mixture: labels evenly, then a clip of each.

    No recording comes twice. The order of the labels is random, and so the reference.
    """
    labels = sorted(labelled)
    chosen: list[Part] = []
    for index in rng.permutation(len(labels)).tolist():
        used = {part.source.recording for part in chosen}
        clips = [s for s in labelled[labels[index]] if s.recording not in used]
        if clips:
            source = clips[int(rng.integers(len(clips)))]
            level = float(rng.uniform(*snr)) if chosen else 0.0
            chosen.append(Part(source, level, float(rng.uniform())))
        if len(chosen) == degree:
            return chosen
    raise ValueError(
        f"a mixture of {degree} sources needs {degree} labels with recordings of their "
        f"own, there are {len(chosen)}: leave this degree out"
    )


def sounding_level(samples: np.ndarray) -> float:
    """Return the root mean square of a clip's sounding part (N,), 0 for silence."""
    padded = np.pad(samples, (0, -len(samples) % FRAME_LENGTH))
    power = np.mean(padded.reshape(-1, FRAME_LENGTH).astype(np.float64) ** 2, axis=1)
    loud = power[power >= SOUNDING**2 * power.max()] if len(power) else power
    return float(np.sqrt(loud.mean())) if power.any() else 0.0


def fit(samples: np.ndarray, num_samples: int, place: float) -> np.ndarray:
    """Put a clip somewhere into silence of num_samples, or cut so many out of it."""
    room = num_samples - len(samples)
    start = int(place * (abs(room) + 1))
    if room < 0:
        return samples[start : start + num_samples]
    return np.pad(samples, (start, room - start))


def mix(parts: Sequence[Part], num_samples: int) -> np.ndarray:
    """Return the mixture (num_samples,) float32, at most -1 dB below full scale."""
    mixture = np.zeros(num_samples)
    for part in parts:
        clip = fit(read_audio(part.source.path), num_samples, part.place)
        level = sounding_level(clip)
        if level == 0.0:
            raise ValueError(
                f"{part.source.path} is silent in the part that was cut out: take it "
                "out of the lists or make the mixtures longer"
            )
        mixture += clip * (LEVEL * 10 ** (part.snr / 20) / level)
    peak = np.abs(mixture).max()
    return (mixture * min(1.0, PEAK / peak)).astype(np.float32)


def plan(
    sources: Mapping[str, Sequence[Source]],
    *,
    degrees: Sequence[int],
    snr: tuple[float, float],
    train_clips: int,
    valid_clips: int,
    test_clips: int,
    seed: int,
) -> list[Mixture]:
    """Draw all mixtures; the audio is not touched.

    No two mixtures have the same sources: where there are too few (of degree 1 there
    are as many as sources), less than what was asked for is made.

    Args:
        sources: Of "train", "valid" and "test".
        degrees: How many sources a mixture holds.
        snr: Lowest and highest level of all sources but the first, in dB.
        train_clips, valid_clips: Mixtures, all degrees in equal shares.
        test_clips: Mixtures of each degree.
        seed: Of all draws; those of one mixture do not depend on the others'.
    """
    planned = []
    for name, count in (("train", train_clips), ("valid", valid_clips)):
        for i, degree in enumerate(itertools.islice(itertools.cycle(degrees), count)):
            planned.append((name, name, degree, i))
    for degree in degrees:
        planned += [("test", f"degree_{degree}", degree, i) for i in range(test_clips)]
    labelled = {split: by_label(of_split) for split, of_split in sources.items()}
    mixtures, seen = [], set()
    for split, name, degree, number in planned:
        key = f"{name}_{number:05d}"
        # Random numbers of its own, whatever is made before it.
        digest = hashlib.sha256(key.encode()).digest()
        rng = np.random.default_rng([seed, int.from_bytes(digest[:8], "big")])
        for _ in range(ATTEMPTS):
            parts = choose(labelled[split], degree, snr, rng)
            content = (split, frozenset(part.source.key for part in parts))
            if content not in seen:
                seen.add(content)
                mixtures.append(Mixture(name, key, parts))
                break
    return mixtures


def by_label(sources: Iterable[Source]) -> dict[str, list[Source]]:
    """The sources of each label."""
    labelled: dict[str, list[Source]] = {}
    for source in sources:
        labelled.setdefault(source.label, []).append(source)
    return labelled
