"""Mixtures of a known number of labelled sounds.

A mixture of degree k has k sources: k clips of k recordings and k different labels. The
first is the reference; every other one is scaled to a signal-to-noise ratio against it,
drawn uniformly. A source's level is the root mean square of its sounding part: of the
frames of 25 ms that are within 40 dB of its loudest one, so that silence around a short
sound does not count.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from espnet2_sslam.audio import read_audio
from espnet2_sslam.corpus.datadir import find_splits, read_split_labels, read_table
from espnet2_sslam.units import FRAME_LENGTH

LEVEL = 10 ** (-26 / 20)  # root mean square of the reference
SOUNDING = 10 ** (-40 / 20)  # of the loudest frame: what counts as silence
PEAK = 10 ** (-1 / 20)  # louder mixtures are turned down to it


@dataclass(frozen=True)
class Source:
    """A clip with one label; `recording` is what it was cut from."""

    key: str
    path: str
    recording: str
    label: str


@dataclass(frozen=True)
class Part:
    """A source in a mixture: its level against the reference, and two draws in 0..1.

    `place` says where it begins, or, if it is longer than the mixture, where it is cut.
    """

    source: Source
    snr: float  # dB
    place: float


def read_sources(datadir: Path) -> list[Source]:
    """Return the clips of a data directory that have exactly one label, each once.

    Raises:
        ValueError: no such clip, or two different clips of the same id.
    """
    found: dict[str, Source] = {}
    for split in find_splits(datadir):
        wav = read_table(Path(datadir) / split / "wav.scp")
        labels = read_split_labels(datadir, split, list(wav))
        if labels is None:
            continue
        speakers = Path(datadir) / split / "utt2spk"
        recordings = read_table(speakers) if speakers.is_file() else {}
        for key, path in wav.items():
            if len(labels[key]) != 1:
                continue
            source = Source(key, path, recordings.get(key, key), labels[key][0])
            if found.setdefault(key, source) != source:
                raise ValueError(
                    f"{datadir}: two different clips are called {key!r}, one of them "
                    f"in {split}: ids must be unique"
                )
    if not found:
        raise ValueError(
            f"{datadir} has no clip with exactly one label: mixtures are made of such "
            "clips; give the data directory (stage 1) of a labelled corpus"
        )
    return [found[key] for key in sorted(found)]


def random_numbers(seed: int, name: str) -> np.random.Generator:
    """Return the random numbers of one mixture, whatever is made before it."""
    digest = hashlib.sha256(name.encode()).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:8], "big")])


def choose(
    by_label: dict[str, list[Source]],
    degree: int,
    snr: tuple[float, float],
    rng: np.random.Generator,
) -> list[Part]:
    """Draw the parts of a mixture: labels evenly, then a clip of each.

    No recording comes twice. The order of the labels is random, and so the reference.

    Raises:
        ValueError: there are fewer labels than `degree`, or too few recordings.
    """
    labels = sorted(by_label)
    if degree > len(labels):
        raise ValueError(
            f"a mixture of {degree} sources needs {degree} labels, there are "
            f"{len(labels)}: leave this degree out"
        )
    chosen: list[Part] = []
    for index in rng.permutation(len(labels)).tolist():
        used = {part.source.recording for part in chosen}
        clips = [s for s in by_label[labels[index]] if s.recording not in used]
        if clips:
            source = clips[int(rng.integers(len(clips)))]
            level = float(rng.uniform(*snr)) if chosen else 0.0
            chosen.append(Part(source, level, float(rng.uniform())))
        if len(chosen) == degree:
            return chosen
    raise ValueError(
        f"a mixture of {degree} sources needs {degree} recordings of different labels, "
        f"only {len(chosen)} were found: leave this degree out"
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
    if room < 0:
        start = int(place * (-room + 1))
        return samples[start : start + num_samples]
    start = int(place * (room + 1))
    return np.pad(samples, (start, room - start))


def mix(parts: Sequence[Part], num_samples: int) -> np.ndarray:
    """Return the mixture (num_samples,) float32, at most -1 dB below full scale.

    Raises:
        AudioError: a source that cannot be read.
        ValueError: a source that is silent where it was cut.
    """
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
