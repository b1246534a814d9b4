"""Plot a clip as a pre-training model meets it: mixture, mask, prediction error."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from espnet2_sslam.bin.cli import run_main


def get_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        epilog="Example: --model_dir exp/pretrain/phase2_tiny_seed1 --wav dog.wav "
        "rain.wav --output panel.png",
    )
    add = parser.add_argument
    add("--model_dir", type=Path, required=True, help="directory of a pre-training run")
    text = "audio files; the first is drawn, mixed with the last (phase 2 needs two)"
    add("--wav", type=Path, nargs="+", required=True, help=text)
    add("--output", type=Path, default=Path("panel.png"), help="PNG file to write")
    add("--seed", type=int, default=0, help="of the mask, the regions and the noise")
    return parser


def main(cmd: Sequence[str] | None = None) -> None:
    """Draw the panels."""
    args = get_parser().parse_args(cmd)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    # After the options: it takes seconds to import torch.
    from espnet2_sslam.results.panels import draw_panel

    draw_panel(args.model_dir, args.wav, args.output, args.seed)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    run_main(main)
