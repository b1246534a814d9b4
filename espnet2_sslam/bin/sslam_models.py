"""sslam models: the released models of SSLAM and EAT, what each is for, how to load it.

Every command and `SSLAM.from_pretrained` take an id instead of a folder; it is fetched
from Hugging Face once, checked, and used from the cache afterwards.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from espnet2_sslam.bin.cli import run_main
from espnet2_sslam.store import read_yaml

RELEASED = Path(__file__).parents[1] / "checkpoint" / "released.yaml"


def main(cmd: Sequence[str] | None = None) -> None:
    """Print the list."""
    parser = argparse.ArgumentParser(
        prog="sslam models",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="as a JSON list")
    args = parser.parse_args(cmd)
    models = released_models()
    if args.json:
        print(json.dumps(models, indent=2, ensure_ascii=False))
        return
    for model in models:
        print(model["id"])
        for name in ("for", "head", "size", "score", "license", "load", "source"):
            if name in model:
                print(f"  {name + ':':8} {model[name]}")
        print()


def released_models() -> list[dict[str, Any]]:
    """The entries of the list, in its order."""
    return read_yaml(RELEASED)["models"]


if __name__ == "__main__":
    run_main(main)
