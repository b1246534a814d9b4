"""Validate all audio and convert it to 16 kHz mono (and log-mel if wanted).

Reads DATADIR/<set>/<split>/wav.scp, writes OUTDIR/<set>/<split> with the same lists
plus utt2num_samples (and feats.scp, utt2num_frames). Clips that cannot be used are
left out and listed with the reason in OUTDIR/problems.tsv; when they are more than
--max_bad, nothing is used. May be interrupted and run again: finished files that are
still valid are kept.
"""

import argparse
import logging
from dataclasses import fields
from pathlib import Path

from espnet2_sslam.bin.cli import run_main
from espnet2_sslam.config import RESAMPLERS
from espnet2_sslam.corpus import (
    ARRAY_HELP,
    AUDIO_FORMATS,
    ArrayJob,
    Format,
    make_dump,
)


def str2bool(value: str) -> bool:
    """`true` or `false`, as in ESPnet's options."""
    if value.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"must be true or false, got {value!r}")
    return value.lower() == "true"


def get_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m espnet2_sslam.bin.format_audio",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--datadir", type=Path, default=Path("data"), help="lists of clips"
    )
    parser.add_argument(
        "--outdir", type=Path, default=Path("dump/raw"), help="folder to write"
    )
    parser.add_argument(
        "--nj", type=int, default=1, help="processes, or tasks of --cmd"
    )
    parser.add_argument("--cmd", help=ARRAY_HELP)
    parser.add_argument(
        "--feats_type",
        choices=("raw", "fbank"),
        default="raw",
        help="fbank: also write un-normalised log-mel as kaldi ark and scp",
    )
    parser.add_argument(
        "--audio_format",
        choices=AUDIO_FORMATS,
        default=AUDIO_FORMATS[0],
        help="wav: read several times as fast in training; flac: about half as large",
    )
    parser.add_argument(
        "--bits",
        type=int,
        choices=(0, 16, 24),
        default=0,
        help="0: 24 for sources below 16 kHz, else 16; samples beyond [-1, 1] become "
        "a WAV of floats",
    )
    parser.add_argument(
        "--resampler",
        choices=RESAMPLERS,
        default="sinc",
        help="of audio at other rates; sinc: as the authors do",
    )
    parser.add_argument(
        "--link_ok",
        type=str2bool,
        default=False,
        help="use files that are 16 kHz mono WAV or FLAC already where they lie",
    )
    parser.add_argument(
        "--max_bad",
        type=float,
        default=0.01,
        help="largest share of clips that may be left out",
    )
    parser.add_argument(
        "--verify",
        type=str2bool,
        default=False,
        help="look at the content of all files again, not only of those whose size, "
        "time or inode has changed",
    )
    parser.add_argument(
        "--cut",
        type=float,
        metavar="SECONDS",
        help="cut longer recordings of all splits into clips of this length; their "
        "ids say the place, labels are carried along; a tail below 0.5 s belongs to "
        "the clip before it",
    )
    return parser


def main(argv=None) -> None:
    """Entry point."""
    args = get_parser().parse_args(argv)
    if not 0 <= args.max_bad < 1:
        raise ValueError(f"--max_bad must be in [0, 1), got {args.max_bad:g}")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    options = vars(args)
    form = Format(**{field.name: options.pop(field.name) for field in fields(Format)})
    workers = (options.pop("nj"), options.pop("cmd"), args.outdir)
    print(make_dump(form=form, nj=ArrayJob.or_processes(*workers), **options))


if __name__ == "__main__":
    run_main(main)
