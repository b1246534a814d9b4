"""The command `sslam`: SSLAM for people who never train.

sslam embed    features of audio files
sslam tag      labels of audio files, of windows of them, or of time steps
sslam plot     a spectrogram with the labels above it
sslam convert  weights from and to the authors' files, Hugging Face and ESPnet
sslam export   an ONNX file
sslam publish  a folder for others with a model card, and its upload to Hugging Face

Each has --help.
"""

import importlib
import sys
from collections.abc import Sequence

import espnet2_sslam
from espnet2_sslam.bin.cli import run_main

COMMANDS = {
    "embed": "sslam_embed",
    "tag": "sslam_tag",
    "plot": "sslam_plot",
    "convert": "sslam_convert",
    "export": "sslam_export",
    "publish": "sslam_publish",
}


def main(cmd: Sequence[str] | None = None) -> None:
    """Run the sub-command that the first word names."""
    words = list(sys.argv[1:] if cmd is None else cmd)
    if not words or words[0] in ("-h", "--help"):
        print(__doc__.strip())
        return
    if words[0] == "--version":
        print(f"espnet2_sslam {espnet2_sslam.__version__}")
        return
    if words[0] not in COMMANDS:
        raise ValueError(
            f"sslam has no command {words[0]!r}: it is one of {', '.join(COMMANDS)}"
        )
    module = importlib.import_module(f"espnet2_sslam.bin.{COMMANDS[words[0]]}")
    module.main(words[1:])


def run() -> None:
    """Entry point of `sslam`."""
    run_main(main)


def run_convert() -> None:
    """Entry point of `sslam-convert`."""
    run_main(lambda: main(["convert", *sys.argv[1:]]))


def run_export() -> None:
    """Entry point of `sslam-export`."""
    run_main(lambda: main(["export", *sys.argv[1:]]))


if __name__ == "__main__":
    run()
