"""The sounds that the miniature corpora are made of."""

import hashlib
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import numpy as np
import soundfile


class Sounds:
    """Writes a different short sound, or the next real clip, to each path.

    Args:
        clips: Real audio files; made sounds by default.
        rate: Hz of the files written.
        seconds: Their length.
    """

    def __init__(self, clips: Sequence[Path] | None = None, rate=16000, seconds=0.5):
        self.clips = [str(path) for path in clips or ()]
        self.rate, self.seconds = rate, seconds
        self.turn = count()

    def write(self, path: Path, labels: Sequence[str] = (), seconds=None) -> Path:
        """Write one file; made sounds have a tone for each label, and noise."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        seconds = seconds or self.seconds
        number = next(self.turn)
        if self.clips:
            samples, rate = soundfile.read(self.clips[number % len(self.clips)])
            samples = np.resize(samples, int(seconds * rate))
        else:
            rate = self.rate
            samples = made_sound(int(seconds * rate), rate, labels, number)
        form = "FLAC" if path.suffix == ".flac" else "WAV"
        soundfile.write(path, samples, rate, subtype="PCM_16", format=form)
        return path


def made_sound(num_samples: int, rate: int, labels, seed: int) -> np.ndarray:
    """Soft noise and a tone of a pitch of its own for each label, (num_samples,)."""
    rng = np.random.default_rng(seed)
    sound = 0.02 * rng.standard_normal(num_samples)
    time = np.arange(num_samples) / rate
    for label in labels:
        code = int.from_bytes(hashlib.sha256(label.encode()).digest()[:4], "big")
        pitch = 200 * 2 ** (code % 40 / 10)  # 200 Hz to 3 kHz
        sound += 0.1 * np.sin(2 * np.pi * (pitch * time + rng.uniform()))
    return sound / max(1.0, np.abs(sound).max() / 0.9)
