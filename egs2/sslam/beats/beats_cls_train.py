#!/usr/bin/env python3
"""Train a head on BEATs (or all of it) on labelled clips, to compare with SSLAM."""

from espnet2_sslam.bin.cli import run_main


def main(cmd=None) -> None:
    """Train; `--help` lists the options, `--print_config` the whole configuration."""
    from beats_classifier import (
        BeatsClassificationTask,
    )  # after the options: it takes seconds

    BeatsClassificationTask.main(cmd=cmd)


if __name__ == "__main__":
    run_main(main)
