"""Clips, and a quick stand-in for `SSLAM`, for the tests of the commands.

The stand-in reads the files as the real one does, and its numbers depend on the audio
alone, so a result that lands on another file shows.
"""

import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from espnet2_sslam.audio import AudioError, read_audio
from espnet2_sslam.bin.cli import main as sslam
from espnet2_sslam.bin.cli import run_main
from espnet2_sslam.inference import SSLAM, FileResult
from espnet2_sslam.inference.stream import Finished, First
from espnet2_sslam.units import SAMPLE_RATE

CLASSES = ["Dog", "Rain, light", "Siren"]
WIDTH = 4
ROOT = Path(__file__).resolve().parent.parent


class FakeSSLAM:
    """`SSLAM` with mean magnitudes instead of a network."""

    plot = SSLAM.plot
    asked = []  # what from_pretrained was given, newest last
    device = "cpu"

    def __init__(self, classes=CLASSES, seed=0, dtype="float32"):
        self.classes, self.dtype = classes, dtype
        self.model = torch.nn.Linear(2, 2)
        torch.nn.init.constant_(self.model.weight, float(seed))
        torch.nn.init.zeros_(self.model.bias)
        self.encoder = SimpleNamespace(config=SimpleNamespace(resampler="sinc"))

    @classmethod
    def from_pretrained(cls, source, **options):
        cls.asked.append((source, options))
        dtype = options["dtype"].replace("auto", "float32")
        if options["compile"]:
            dtype = "bfloat16"
        return cls(None if source == "encoder" else CLASSES, len(source), dtype)

    def _files(self, files, width, chunk=None, hop=None, layers=None):
        for index, path in enumerate(files):
            path = path.source if isinstance(path, First) else path
            if isinstance(path, Finished):
                continue
            time.sleep(float(os.environ.get("FAKE_PAUSE", "0")))
            try:
                wave = read_audio(path)
            except AudioError as error:
                yield FileResult(index, str(path), str(error))
                continue
            size = len(wave) if chunk is None else int(chunk * SAMPLE_RATE)
            step = size if hop is None else int(hop * SAMPLE_RATE)
            starts = np.arange(0, max(len(wave) - size, 0) + step, step)
            starts = starts[starts < len(wave)]
            ends = np.minimum(starts + size, len(wave))
            rows = [
                [part.mean() for part in np.array_split(np.abs(wave[a:b]), width)]
                for a, b in zip(starts, ends, strict=True)
            ]
            values = np.minimum(np.array(rows, np.float32), 1)
            if layers:
                values = np.stack([values * layer for layer in range(layers)], 1)
            times = starts / SAMPLE_RATE, ends / SAMPLE_RATE
            yield FileResult(index, str(path), None, *times, values)

    def embed_files(self, files, *, layer=-1, pooling="mean", chunk=None, hop=None):
        if layer not in ("all", -1, 0, 1, 2, 3):
            raise ValueError(f'layer must be "all" or in -1..3, got {layer!r}')
        chunk = 0.16 if pooling == "frames" else chunk
        return self._files(files, WIDTH, chunk, hop, 3 if layer == "all" else None)

    def tag_files(self, files, *, chunk=None, hop=None):
        return self._files(files, len(self.classes), chunk, hop)

    def tag_frames(self, files, *, resolution=0.16, window=None):
        return self._files(files, len(self.classes), resolution)


def make_clips(folder, count, seconds=0.2, rate=16_000):
    """Clips `clip000.wav`, ... of different loudness and content."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        rng = np.random.default_rng(index)
        wave = 0.2 * rng.standard_normal(int(seconds * rate)) * (1 + index % 5) / 5
        soundfile.write(folder / f"clip{index:03d}.wav", wave, rate)
    return sorted(folder.glob("*.wav"))


def install(monkeypatch=None):
    """Let the commands load the stand-in."""
    import espnet2_sslam.inference as package

    FakeSSLAM.asked.clear()
    if monkeypatch is None:
        package.SSLAM = FakeSSLAM
    else:
        monkeypatch.setattr(package, "SSLAM", FakeSSLAM, raising=False)


def command(capsys, *words):
    """Run `sslam` as from the shell: (exit status, stdout, stderr)."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run_main(lambda: sslam([str(word) for word in words]))
    out, err = capsys.readouterr()
    return stop.value.code, out, err


def run_apart(folder, pause, words):
    """`sslam` with the stand-in as a process of its own; stderr goes to `log`."""
    os.chdir(folder)
    os.environ["FAKE_PAUSE"] = str(pause)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    install()
    with open("log", "w") as sys.stderr:
        run_main(lambda: sslam(list(words)))
