#!/usr/bin/env python3
"""Make the embedded corpus `mini`: synthetic sounds and scenes from a fixed seed.

Sets: pretrain/{train,valid} without labels, and mini/{train,valid,test_single,
test_poly} with the kinds of sound in each clip as labels. Half of the clips (all of
test_single) hold one sound, the others a scene of 2 to 6. Every clip is drawn from
its own seed (seed, split, clip), so a larger --scale keeps the clips of a smaller one.
"""

import argparse
import hashlib
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
from mini_sounds import KINDS
from scipy.fft import next_fast_len
from scipy.signal import fftconvolve

from espnet2_sslam.bin.cli import run_main
from espnet2_sslam.corpus import (
    CLASS_FILE,
    Downstream,
    begin_corpus,
    finish_corpus,
    parallel_map,
    write_atomically,
    write_split,
)
from espnet2_sslam.units import SAMPLE_RATE

SPLITS = {  # split: (clips at scale 1, share of scenes)
    "pretrain/train": (600, 0.5),
    "pretrain/valid": (60, 0.5),
    "mini/train": (300, 0.5),
    "mini/valid": (100, 0.5),
    "mini/test_single": (200, 0.0),
    "mini/test_poly": (200, 1.0),
}
MIN_SECONDS, MAX_SECONDS = 2.0, 4.0
MAX_SOUNDS = 6
NOTES = """mini: synthetic sounds made by local/data_mini.py, seed {seed}, scale {scale}
mini: pretrain/train, pretrain/valid and all labelled splits are separate clips
"""


def place_sound(rng, kind, num_samples):
    """One sound of a kind: somewhere in the clip, with its own room, colour and level.

    Returns:
        (num_samples,) float64 with an RMS (where it sounds) of -32 to -14 dB.
    """
    length = int(num_samples * rng.uniform(0.3, 0.9))
    onset = int(rng.integers(0, num_samples - length + 1))
    sound = KINDS[kind](rng, length)
    room_length = int(rng.uniform(0.01, 0.15) * SAMPLE_RATE)
    room = rng.standard_normal(room_length)
    room *= np.exp(-6.9 * np.arange(room_length) / room_length) * rng.uniform(0, 0.3)
    room[0] = 1.0
    sound = fftconvolve(sound, room)[:length]
    colour = rng.uniform(-0.5, 0.5)
    sound[1:] -= colour * sound[:-1]
    rms = np.sqrt(np.mean(sound**2)) + 1e-12
    clip = np.zeros(num_samples)
    clip[onset : onset + length] = sound / rms * 10 ** (rng.uniform(-32, -14) / 20)
    return clip


def background(rng, num_samples):
    """Stationary noise of a random colour, RMS -55 to -30 dB."""
    size = next_fast_len(num_samples, real=True)  # a prime number is slow
    spectrum = np.fft.rfft(rng.standard_normal(size))
    frequency = np.maximum(np.arange(len(spectrum)), 50.0)
    noise = np.fft.irfft(spectrum * frequency ** -rng.uniform(0, 1.0), size)
    noise = noise[:num_samples]
    return noise / np.sqrt(np.mean(noise**2)) * 10 ** (rng.uniform(-55, -30) / 20)


def make_clip(rng, scene, turn):
    """One clip: samples (N,) int16 and the kinds that sound in it, sorted.

    One of the kinds is the one whose `turn` it is, so that no kind is rare.
    """
    num_samples = int(rng.uniform(MIN_SECONDS, MAX_SECONDS) * SAMPLE_RATE)
    count = int(rng.integers(2, MAX_SOUNDS + 1)) if scene else 1
    others = sorted(KINDS)
    first = others.pop(turn % len(others))
    chosen = rng.choice(others, count - 1, replace=False).tolist()
    kinds = sorted([first, *chosen])
    clip = background(rng, num_samples)
    for kind in kinds:
        clip += place_sound(rng, kind, num_samples)
    peak = np.abs(clip).max()
    clip *= min(1.0, 0.95 / peak)
    return np.round(clip * 32767).astype(np.int16), kinds


def render(item, seed, datadir):
    """Write the clip `item = (split, number)` and return (id, path, labels)."""
    split, number = item
    # A hash keeps the clips of one split apart from those of all others.
    stream = int.from_bytes(hashlib.sha256(split.encode()).digest()[:8], "big")
    rng = np.random.default_rng([seed, stream, number])
    # Spread the scenes evenly, whatever the number of clips.
    share = SPLITS[split][1]
    scenes_before = int(number * share)
    scene = int((number + 1) * share) > scenes_before
    turn = scenes_before if scene else number - scenes_before
    samples, kinds = make_clip(rng, scene, turn)
    key = f"{split.replace('/', '_')}_{number:05d}"
    path = datadir / "audio" / split / f"{key}.wav"
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, SAMPLE_RATE, subtype="PCM_16")
    return key, str(path), kinds


def make_corpus(datadir: Path, seed: int, scale: float, nj: int) -> None:
    """Write all splits below `datadir`."""
    datadir = datadir.resolve()
    begin_corpus(datadir)
    for split, (count, _) in SPLITS.items():
        items = [(split, i) for i in range(max(4, round(count * scale)))]
        work = partial(render, seed=seed, datadir=datadir)
        clips = list(parallel_map(work, items, nj, f"mini: {split}"))
        labels = {key: kinds for key, _, kinds in clips}
        write_split(
            datadir / split,
            {key: path for key, path, _ in clips},
            labels=None if split.startswith("pretrain/") else labels,
        )
    write_atomically(datadir / "mini" / CLASS_FILE, "\n".join(sorted(KINDS)) + "\n")
    tests = ("mini/test_single", "mini/test_poly")
    run = Downstream("mini", "multi_label", "mini/train", "mini/valid", tests)
    notes = NOTES.format(seed=seed, scale=scale)
    finish_corpus(datadir, SPLITS, [run], notes)


def get_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--datadir", type=Path, default=Path("data"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--mini_scale", type=float, default=1.0, help="factor on the number of clips"
    )
    parser.add_argument("--nj", type=int, default=1, help="processes")
    return parser


def main(argv=None):
    """Entry point."""
    args = get_parser().parse_args(argv)
    if args.mini_scale <= 0:
        raise ValueError(f"--mini_scale must be positive, got {args.mini_scale}")
    make_corpus(args.datadir, args.seed, args.mini_scale, args.nj)


if __name__ == "__main__":
    run_main(main)
