"""Draw a recording: log-mel spectrogram, and above it its labels over time."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from espnet2_sslam.bin import model_options
from espnet2_sslam.bin.cli import run_main

FORMATS = (".png", ".svg", ".pdf")
SHORT = 300.0  # seconds up to which a row of the picture is a time step
CHUNK = 10.0  # seconds of a window beyond
EPILOG = """
The labels are those with the highest score anywhere in the recording; dark means a
high score. Up to 5 minutes a score is that of a time step, beyond that of a window of
10 s; --chunk and --frames choose. A model without a classifier gives the spectrogram
alone.

examples:
  sslam plot MODEL street.wav -o street.png
  sslam plot MODEL night.flac -o night.svg --chunk 10 --hop 5 --top_k 8
  sslam plot MODEL clip.wav -o clip.png --resolution 0.04 --label Dog --label Speech
"""


def get_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = argparse.ArgumentParser(
        prog="sslam plot",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=model_options.HELP_STYLE,
    )
    model_options.add_model_options(parser)
    parser.add_argument("file", metavar="FILE", help="audio file of any length")
    add = parser.add_argument
    add(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="PICTURE",
        help="file to write: .png, .svg (text stays text) or .pdf",
    )
    add("--top_k", type=int, metavar="K", default=5, help="labels (default: 5)")
    add(
        "--label",
        action="append",
        default=[],
        metavar="NAME",
        help="draw this label instead of the best ones; may be repeated",
    )
    model_options.add_window_options(parser)
    model_options.add_step_options(parser, "--frames: draw time steps at any length")
    return parser


def main(cmd: Sequence[str] | None = None) -> None:
    """Draw the picture."""
    args = get_parser().parse_intermixed_args(cmd)
    model_options.start_logging()
    _check(args)
    # After the options: torch takes seconds to import.
    from espnet2_sslam.inference import draw_timeline, read_spectrogram, save_picture

    spectrogram = read_spectrogram(args.file)
    duration = float(spectrogram.edges[-1])
    model = model_options.load(args)
    note = ""
    if model.classes:
        timeline = _timeline(args, model, duration)
    else:
        timeline, note = None, "no labels: this model has no classifier"
    name = os.path.basename(os.path.normpath(args.model)) or args.model
    title = f"{_short(os.path.basename(args.file))}\nmodel: {_short(name)}"
    save_picture(draw_timeline(spectrogram, timeline, title, note), args.output)
    print(f"wrote {args.output}")


def _check(args: argparse.Namespace) -> None:
    """Refuse what would fail later."""
    model_options.check_windows(args)
    model_options.check_steps(args)
    if args.output.suffix.lower() not in FORMATS:
        raise ValueError(
            f"{args.output}: need a picture with suffix {', '.join(FORMATS)}"
        )
    if os.path.isdir(args.file):
        raise ValueError(f"{args.file} is a folder: name the recording to draw")
    if args.top_k < 1:
        raise ValueError(f"--top_k must be 1 or more, got {args.top_k}")
    model_options.check_output(args.output)


def _timeline(args: argparse.Namespace, model, duration: float):
    """The labels over time, of time steps or of windows."""
    from espnet2_sslam.inference import make_timeline

    chunk, hop = args.chunk, args.hop
    steps = args.frames or args.window is not None or args.resolution is not None
    if chunk is None and not steps and duration > SHORT:
        chunk = CHUNK
    if chunk is None:
        resolution = args.resolution or 0.16
        [result] = model.tag_frames(
            [args.file], resolution=resolution, window=args.window
        )
        note = f"every {resolution:g} s"
    else:
        [result] = model.tag_files([args.file], chunk=chunk, hop=hop)
        note = f"windows of {chunk:g} s every {hop or chunk:g} s"
    if result.error is not None:
        raise ValueError(f"{args.file}: {result.error}")
    return make_timeline(
        result.values,
        result.starts,
        result.ends,
        model.classes,
        args.top_k,
        duration,
        note,
        args.label,
    )


def _short(name: str, limit: int = 90) -> str:
    """A name that fits on a line: its middle is left out."""
    half = limit // 2
    return name if len(name) <= limit else f"{name[:half]}…{name[-half:]}"


if __name__ == "__main__":
    run_main(main)
