"""`python -m espnet2_sslam.bin.sslam`: the command `sslam`, see cli.py."""

from espnet2_sslam.bin.cli import main, run

__all__ = ["main", "run"]

if __name__ == "__main__":
    run()
