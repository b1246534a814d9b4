"""Write the recipe and its configurations into a new folder, ready to run.

DIR/egs2/sslam is that of a checkout, with DIR/conf; its README.md says how to begin. It
runs in the environment in which `sslam` is installed with the extra `recipe`.
"""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from espnet2_sslam.bin.cli import run_main
from espnet2_sslam.store import replacing_folder

PACKAGE = Path(__file__).resolve().parent.parent
RECIPE = PACKAGE / "_recipe"  # in a wheel, by setup.py
# A wheel holds no links.
LINKS = {"egs2/sslam/conf": "../../conf", "egs2/sslam/asr/conf": "../../../conf"}


def main(cmd: Sequence[str] | None = None) -> None:
    """Copy the recipe out of the package, with its links and executable files."""
    parser = argparse.ArgumentParser(
        prog="sslam recipe",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: sslam recipe work && cd work/egs2/sslam && ls",
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="a new folder")
    folder = parser.parse_args(cmd).folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not empty: choose a new folder for the recipe")
    if not RECIPE.is_dir():
        raise ValueError(
            f"this installation is a checkout, its recipe is {PACKAGE.parent}/"
            "egs2/sslam"
        )
    with replacing_folder(folder) as place:
        shutil.copytree(RECIPE, place, dirs_exist_ok=True)
        for link, target in LINKS.items():
            (place / link).symlink_to(target)
        for path in place.rglob("*"):
            if path.is_file() and path.read_bytes()[:2] == b"#!":
                path.chmod(path.stat().st_mode | 0o111)
    print(f"written: {folder / 'egs2/sslam'}")


if __name__ == "__main__":
    run_main(main)
