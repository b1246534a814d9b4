#!/usr/bin/env python3
"""Make the embedded corpus `mini`: synthetic sounds and scenes from a fixed seed.

Sets: pretrain/{train,valid} without labels, and mini/{train,valid,test_single,
test_poly} with the kinds of sound in each clip as labels. Half of the clips (all of
test_single) hold one sound, the others a scene of 2 to 6. Every clip is drawn from
its own seed (seed, split, clip), so a larger --scale keeps the clips of a smaller one.
"""

import hashlib
from functools import partial

import numpy as np
import soundfile
from corpus_command import begin
from scipy.fft import next_fast_len
from scipy.signal import butter, fftconvolve, lfilter, sosfilt

from espnet2_sslam.bin.cli import run_main
from espnet2_sslam.corpus import Clip, Downstream, parallel_map
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


# Twelve kinds of sounds, randomly varied: (rng, num_samples) -> (num_samples,) float64.
# Level, onset and background are the scene's business, not the sound's.


def _time(num_samples: int) -> np.ndarray:
    """Seconds since the onset, (num_samples,)."""
    return np.arange(num_samples) / SAMPLE_RATE


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """A draw that is uniform in octaves."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _fade(sound: np.ndarray, seconds: float = 0.01) -> np.ndarray:
    """Fade both ends, so that no sound starts or ends with a click."""
    n = min(len(sound) // 2, max(1, int(seconds * SAMPLE_RATE)))
    ramp = np.linspace(0.0, 1.0, n)
    sound[:n] *= ramp
    sound[len(sound) - n :] *= ramp[::-1]
    return sound


def _phase(frequency: np.ndarray) -> np.ndarray:
    """Phase in radians of a frequency track in Hz."""
    return 2 * np.pi * np.cumsum(frequency) / SAMPLE_RATE


def _repeat(rng, num_samples, period, render):
    """Place `render(max_length)` every `period` seconds, with a little jitter."""
    sound, start = np.zeros(num_samples), 0.0
    while (onset := int(start * SAMPLE_RATE)) < num_samples:
        event = render(num_samples - onset)
        sound[onset : onset + len(event)] += event
        start += period * rng.uniform(0.9, 1.1)
    return sound


def beep(rng, num_samples):
    """Pure tones of one pitch, switched on and off."""
    pitch = _log_uniform(rng, 300, 4000)
    length = int(rng.uniform(0.05, 0.25) * SAMPLE_RATE)
    second = rng.uniform(0.0, 0.4)

    def tone(limit):
        t = _time(min(length, limit))
        octave = second * np.sin(4 * np.pi * pitch * t)
        return _fade(np.sin(2 * np.pi * pitch * t) + octave)

    return _repeat(rng, num_samples, rng.uniform(0.12, 0.5), tone)


def _chirp(rng, num_samples, upwards):
    """Repeated glides over one to three octaves, rising or falling."""
    low = _log_uniform(rng, 200, 1200)
    high = low * 2 ** rng.uniform(1.0, 2.5)
    length = int(rng.uniform(0.15, 0.6) * SAMPLE_RATE)
    first, last = (low, high) if upwards else (high, low)

    def glide(limit):
        ramp = np.linspace(0.0, 1.0, length)[:limit]
        return _fade(np.sin(_phase(first * (last / first) ** ramp)))

    return _repeat(rng, num_samples, length / SAMPLE_RATE * rng.uniform(1, 2), glide)


def noise_burst(rng, num_samples):
    """Short bursts of broad noise with a sharp start."""
    length = int(rng.uniform(0.04, 0.2) * SAMPLE_RATE)
    decay = rng.uniform(10, 40)
    edge = _log_uniform(rng, 500, 3000)
    sos = butter(2, edge, "high", fs=SAMPLE_RATE, output="sos")

    def burst(limit):
        n = min(length, limit)
        noise = sosfilt(sos, rng.standard_normal(n))
        return _fade(noise * np.exp(-decay * _time(n)), 0.002)

    return _repeat(rng, num_samples, rng.uniform(0.2, 0.6), burst)


def wind(rng, num_samples):
    """Band noise whose level and colour drift slowly."""
    noise = rng.standard_normal(num_samples)
    centre = _log_uniform(rng, 200, 1500)
    turns = rng.uniform(0.2, 1.0) * _time(num_samples) + rng.uniform()
    drift = 0.5 + 0.5 * np.sin(2 * np.pi * turns)
    sound = np.zeros(num_samples)
    for factor, share in ((0.7, 1 - drift), (1.4, drift)):
        edges = [centre * factor / 1.5, centre * factor * 1.5]
        sos = butter(2, edges, "band", fs=SAMPLE_RATE, output="sos")
        sound += sosfilt(sos, noise) * share
    return _fade(sound * (0.4 + 0.6 * drift), 0.1)


def knock(rng, num_samples):
    """Blows on something hollow: short, low, damped resonances in a rhythm."""
    pitches = _log_uniform(rng, 100, 500) * np.array([1.0, 1.7, 2.9])
    damping = rng.uniform(30, 80)
    length = int(0.15 * SAMPLE_RATE)

    def blow(limit):
        t = _time(min(length, limit))
        body = sum(np.sin(2 * np.pi * f * t) / (i + 1) for i, f in enumerate(pitches))
        click = rng.standard_normal(len(t)) * np.exp(-600 * t)
        return _fade(body * np.exp(-damping * t) + 0.5 * click, 0.001)

    return _repeat(rng, num_samples, rng.uniform(0.12, 0.4), blow)


def siren(rng, num_samples):
    """A rich tone that wails up and down."""
    centre = _log_uniform(rng, 500, 1500)
    rate = rng.uniform(0.7, 3.0)
    wail = np.sin(2 * np.pi * (rate * _time(num_samples) + rng.uniform()))
    phase = _phase(centre * 2 ** (rng.uniform(0.3, 0.7) * wail))
    return _fade(np.sin(phase) + 0.4 * np.sin(2 * phase) + 0.2 * np.sin(3 * phase))


def bell(rng, num_samples):
    """Inharmonic partials that ring and die away."""
    pitch = _log_uniform(rng, 300, 1500)
    ratios = np.array([0.56, 0.92, 1.19, 1.71, 2.0, 2.74, 3.0, 3.76])
    ratios = ratios * rng.uniform(0.98, 1.02, len(ratios))
    gains = rng.uniform(0.3, 1.0, len(ratios)) / ratios
    decay = rng.uniform(2, 6)

    def stroke(limit):
        t = _time(limit)
        parts = (
            gain * np.sin(2 * np.pi * pitch * ratio * t) * np.exp(-decay * ratio * t)
            for ratio, gain in zip(ratios, gains, strict=True)
            if pitch * ratio < SAMPLE_RATE / 2
        )
        return _fade(sum(parts, np.zeros(limit)), 0.002)

    return _repeat(rng, num_samples, rng.uniform(0.5, 1.5), stroke)


def pluck(rng, num_samples):
    """Plucked strings (Karplus-Strong), a few notes of one instrument."""
    root = _log_uniform(rng, 110, 500)
    damping = rng.uniform(0.985, 0.998)

    def note(limit):
        pitch = root * 2 ** (rng.choice([0, 3, 5, 7, 12]) / 12)
        period = max(2, int(SAMPLE_RATE / pitch))
        noise = np.zeros(limit)
        noise[:period] = rng.uniform(-1, 1, min(period, limit))
        loop = np.zeros(period + 2)
        loop[0], loop[period], loop[period + 1] = 1.0, -damping / 2, -damping / 2
        return _fade(np.asarray(lfilter([1.0], loop, noise)), 0.002)

    return _repeat(rng, num_samples, rng.uniform(0.25, 0.7), note)


def engine(rng, num_samples):
    """A low harmonic buzz with unsteady speed, pulsing."""
    knots, speeds = np.linspace(0, num_samples, 8), rng.uniform(-0.08, 0.08, 8)
    slow = np.interp(np.arange(num_samples), knots, speeds)
    phase = _phase(_log_uniform(rng, 30, 120) * (1 + slow))
    harmonics = np.arange(1, 25)
    gains = rng.uniform(0.3, 1.0, len(harmonics)) / harmonics ** rng.uniform(0.3, 0.9)
    waves = (gain * np.sin(k * phase) for k, gain in zip(harmonics, gains, strict=True))
    sound = sum(waves, np.zeros(num_samples))
    pulse = 1 + 0.5 * np.sin(phase / 2)
    return _fade(sound * pulse + 0.3 * rng.standard_normal(num_samples) * pulse, 0.05)


def bird(rng, num_samples):
    """Fast trills high up."""
    pitch = _log_uniform(rng, 2000, 5000)
    rate, depth = rng.uniform(12, 30), rng.uniform(0.1, 0.3)
    length = int(rng.uniform(0.15, 0.4) * SAMPLE_RATE)

    def trill(limit):
        n = min(length, limit)
        wave = np.sin(2 * np.pi * rate * _time(n))
        slope = 1 + rng.uniform(-0.15, 0.15) * _time(n)
        sound = np.sin(_phase(pitch * slope * 2 ** (depth * wave)))
        return _fade(sound * (0.6 + 0.4 * wave), 0.02)

    return _repeat(rng, num_samples, rng.uniform(0.3, 0.7), trill)


def drop(rng, num_samples):
    """Water drops: very short damped blips whose pitch shoots up, at random times."""
    pitch = _log_uniform(rng, 400, 1500)
    rate = rng.uniform(4, 12)

    def blip(limit):
        t = _time(min(int(0.06 * SAMPLE_RATE), limit))
        track = pitch * rng.uniform(0.7, 1.4) * np.exp(rng.uniform(8, 20) * t)
        return _fade(np.sin(_phase(np.minimum(track, 7000))) * np.exp(-50 * t), 0.001)

    sound = np.zeros(num_samples)
    count = 1 + rng.poisson(rate * num_samples / SAMPLE_RATE)
    for onset in rng.integers(0, num_samples, count):
        event = blip(num_samples - onset) * rng.uniform(0.3, 1.0)
        sound[onset : onset + len(event)] += event
    return sound


SOUNDS = (beep, bell, bird, drop, engine, knock, noise_burst, pluck, siren, wind)
KINDS = {function.__name__: function for function in SOUNDS}
KINDS["chirp_up"] = partial(_chirp, upwards=True)
KINDS["chirp_down"] = partial(_chirp, upwards=False)


# Scenes


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
    """Write the clip `item = (split, number)` and return its clip."""
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
    return Clip(key, str(path), " ".join(kinds))


def main(argv=None) -> None:
    """Write all splits below --datadir."""
    args, writer = begin(
        *(argv, __doc__, None),
        seed=(0, "of the made sounds"),
        mini_scale=(1.0, "times the number of clips"),
    )
    if args.mini_scale <= 0:
        raise ValueError(f"--mini_scale must be positive, got {args.mini_scale}")
    work = partial(render, seed=args.seed, datadir=args.datadir.resolve())
    for split, (count, _) in SPLITS.items():
        items = [(split, i) for i in range(max(4, round(count * args.mini_scale)))]
        clips = parallel_map(work, items, args.nj, f"mini: {split}", unit="clip")
        labelled = not split.startswith("pretrain/")
        writer.add(split, clips, labelled=labelled, known_to_exist=True)
    writer.classes("mini", sorted(KINDS))
    writer.note(
        "mini: synthetic sounds made by local/data_mini.py, seed "
        f"{args.seed}, scale {args.mini_scale}"
    )
    writer.note(
        "mini: pretrain/train, pretrain/valid and all labelled splits are separate "
        "clips"
    )
    tests = ("mini/test_single", "mini/test_poly")
    run = Downstream("mini", "multi_label", "mini/train", "mini/valid", tests)
    writer.finish([run])


if __name__ == "__main__":
    run_main(main)
