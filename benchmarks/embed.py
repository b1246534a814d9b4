"""Speed of `SSLAM.embed_files` beside the encoder alone on ready patches.

    python benchmarks/embed.py                          # ViT-Base, 10 s clips, FLAC
    python benchmarks/embed.py --model tiny --num_clips 256 --threads 1
    python benchmarks/embed.py --device cuda --dtype bfloat16 --num_clips 2048

The encoder alone is `encoder.encode` on patches that lie in memory, with the batch size
and the threads of `embed_files`; the files hold noise and are read, decoded, resampled
and turned into log-mel on the way. Both run in turn, so that a busy machine slows both
down; the ratio is the median over the rounds (above 1: slower than the encoder).
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import torch

from espnet2_sslam.encoder import SSLAMEncoder
from espnet2_sslam.features import num_frames, num_patch_steps
from espnet2_sslam.inference import SSLAM
from espnet2_sslam.units import PATCHES_PER_STEP, SAMPLE_RATE

MODELS = {
    "base": dict(embed_dim=768, depth=12, num_heads=12),
    "tiny": dict(embed_dim=192, depth=4, num_heads=3),
}
DISTINCT = 16  # files that are written; the list of files repeats them


def get_parser():
    """Options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="base", choices=sorted(MODELS))
    parser.add_argument("--embed_dim", type=int, help="instead of the model's")
    parser.add_argument("--depth", type=int, help="instead of the model's")
    parser.add_argument("--seconds", type=float, default=10.0, help="of a clip")
    parser.add_argument("--num_clips", type=int, default=32, help="per round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rates", type=int, nargs="+", default=[44_100, 16_000])
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--threads", type=int, help="of torch; default: torch's")
    parser.add_argument("--batch_seconds", type=float, help="default: SSLAM's")
    parser.add_argument("--device", help="default: SSLAM's")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--output", type=Path, help="JSON file for the numbers")
    return parser


def write_clips(folder, args, rate):
    """FLAC files of noise; a list of `num_clips` paths."""
    generator = np.random.default_rng(0)
    shape = (round(args.seconds * rate), args.channels)
    paths = []
    for number in range(min(args.num_clips, DISTINCT)):
        paths.append(folder / f"{rate}_{number}.flac")
        noise = 0.1 * generator.standard_normal(shape)
        soundfile.write(paths[-1], noise, rate)
    return [paths[number % len(paths)] for number in range(args.num_clips)]


def encoder_alone(model, args):
    """A function that encodes as many clips as a round has, from ready patches."""
    frames = num_frames(torch.tensor(round(args.seconds * SAMPLE_RATE)))
    tokens = int(num_patch_steps(frames)) * PATCHES_PER_STEP
    size = max(1, int(model.batch_seconds / args.seconds))
    shape = (min(size, args.num_clips), tokens, model.encoder.config.embed_dim)
    patches = torch.randn(shape, device=model.device)
    low = args.dtype != "float32"

    @torch.inference_mode()
    def encode():
        for start in range(0, args.num_clips, size):
            part = patches[: args.num_clips - start]
            with torch.autocast(model.device.type, torch.bfloat16, enabled=low):
                out = model.encoder.encode(part).last
            out[:, 1:].mean(1).cpu()

    return encode


def seconds_per_clip(function, args):
    """Wall time of one call, per clip."""
    start = time.perf_counter()
    function()
    return (time.perf_counter() - start) / args.num_clips


def embed(model, paths):
    """Embed all files; every one must come out."""
    done = sum(result.error is None for result in model.embed_files(paths))
    if done != len(paths):
        raise RuntimeError(f"{done} of {len(paths)} files were embedded")


def measure(model, files, args):
    """Seconds per clip of each contestant, a list over the rounds."""
    contestants = {"encoder": encoder_alone(model, args)}
    for rate, paths in files.items():
        contestants[f"embed_files {rate} Hz"] = lambda paths=paths: embed(model, paths)
    times = {name: [] for name in contestants}
    for function in contestants.values():
        function()  # warm up
    for _ in range(args.rounds):
        for name, function in contestants.items():
            times[name].append(seconds_per_clip(function, args))
    return times


def main():
    """Measure, print, and write the numbers."""
    args = get_parser().parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    sizes = {name: getattr(args, name) for name in ("embed_dim", "depth")}
    sizes = {name: value for name, value in sizes.items() if value}
    torch.manual_seed(0)
    encoder = SSLAMEncoder(**{**MODELS[args.model], **sizes})
    model = SSLAM(
        encoder,
        device=args.device,
        dtype=args.dtype,
        batch_seconds=args.batch_seconds,
    )
    with tempfile.TemporaryDirectory() as folder:
        files = {rate: write_clips(Path(folder), args, rate) for rate in args.rates}
        times = measure(model, files, args)
    setting = (
        f"D {encoder.config.embed_dim}, depth {encoder.config.depth}, "
        f"{args.dtype}, {model.device}, "
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"{platform.machine()}; {args.num_clips} clips of {args.seconds:g} s, "
        f"{args.channels} channels, {args.rounds} rounds"
    )
    print(setting)
    rows = {}
    for name, values in times.items():
        ratios = [
            value / alone for value, alone in zip(values, times["encoder"], strict=True)
        ]
        rows[name] = dict(
            seconds_per_clip=statistics.median(values),
            best=min(values),
            ratio=statistics.median(ratios),
            ratios=ratios,
        )
        print(
            f"{name:24} {1e3 * rows[name]['seconds_per_clip']:9.2f} ms per clip, best "
            f"{1e3 * min(values):9.2f}; ratio {rows[name]['ratio']:.3f} "
            f"({min(ratios):.3f} to {max(ratios):.3f})"
        )
    if args.output:
        numbers = dict(setting=setting, results=rows)
        args.output.write_text(json.dumps(numbers, indent=2))


if __name__ == "__main__":
    main()
