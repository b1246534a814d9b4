"""Make a folder of a model for others, with a model card; upload it to Hugging Face.

MODEL is what every command reads: a training's folder or .pth file, a folder of ours,
a checkpoint of the authors, a Hugging Face id. The folder holds
  model.safetensors, config.json, preprocessor_config.json   for SSLAM and transformers
  espnet_model.zip                                           as ESPnet packs models
  config.yaml                                                of the training
  metrics/, RESULTS.md, scores.csv                           scores, where there are any
  README.md                                                  the model card
The card says what the records beside MODEL say (how long it was trained, on what, its
scores), and of the rest that it is unknown. Look at it and edit README.md; then

  sslam publish FOLDER --hf_repo user/name

uploads the folder as it is. With --output and --hf_repo both steps are done at once.
"""

import argparse
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from espnet2_sslam.bin.cli import run_main

CARD_OPTIONS = ("name", "license", "data_license", "datasets", "metrics")
REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def get_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = argparse.ArgumentParser(
        prog="sslam publish",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: sslam publish "
        "exp/mini/linear_tiny/phase2_sslam_tiny_seed1/mini --output "
        "publish/sslam-mini --license apache-2.0",
    )
    several = {"nargs": "+", "default": []}
    add = parser.add_argument
    add("model", metavar="MODEL", help="the model, or a folder that is only uploaded")
    add("--output", type=Path, metavar="DIR", help="the folder to write")
    add("--overwrite", action="store_true", help="replace what was changed by hand")
    text = "which weights of a pre-training (default: student)"
    add("--weights", choices=("student", "teacher"), default="student", help=text)
    add("--cache_dir", type=Path, help="where downloads go")
    add = parser.add_argument_group("model card").add_argument
    add("--name", help="the model's name (default: that of --hf_repo, or of DIR)")
    add("--license", help="of the weights, in Hugging Face's word, such as cc-by-4.0")
    add("--data_license", metavar="TEXT", help="of the training data, in words")
    add("--datasets", **several, help="data sets' Hugging Face ids")
    text = "scores of a classifier by sslam_score, such as esc50/test=metrics.json"
    add("--metrics", **several, metavar="SET/SPLIT=FILE", help=text)
    add = parser.add_argument_group("upload").add_argument
    add("--hf_repo", metavar="USER/NAME", help="repository to upload to")
    add("--private", action="store_true", help="make it private")
    add("--revision", metavar="BRANCH", help="branch to upload to (default: main)")
    return parser


def main(cmd: Sequence[str] | None = None) -> None:
    """Write the folder, upload it, or both."""
    parser = get_parser()
    args = parser.parse_args(cmd)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    if args.hf_repo and not REPO.fullmatch(args.hf_repo):
        raise ValueError(f"--hf_repo is user/name, not {args.hf_repo!r}")
    if (args.private or args.revision) and not args.hf_repo:
        raise ValueError("--private and --revision are for --hf_repo: name that too")
    if not args.output and not args.hf_repo:
        raise ValueError("--output DIR is needed: the folder to write")
    from huggingface_hub.utils import disable_progress_bars
    from huggingface_hub.utils import logging as hub_logging

    from espnet2_sslam.integrations.publish import check_folder, push, write_folder

    card = {name: getattr(args, name) for name in CARD_OPTIONS}
    if args.output:
        facts = write_folder(
            args.model,
            args.output,
            weights=args.weights,
            cache_dir=args.cache_dir,
            overwrite=args.overwrite,
            repo=args.hf_repo,
            branch=args.revision,
            **card,
        )
        print(f"written: {args.output} ({len(facts['scores'])} scores, see README.md)")
    else:
        check_folder(Path(args.model))
        for name, value in card.items():
            if value:
                raise ValueError(
                    f"without --output {args.model} is uploaded as it is: edit its "
                    f"README.md instead of --{name}"
                )
    if args.hf_repo:
        if not sys.stderr.isatty():  # bars and retries are for somebody who watches
            hub_logging.set_verbosity_error()
            disable_progress_bars()
        options = {"private": args.private, "overwrite": args.overwrite}
        folder = args.output or Path(args.model)
        url = push(folder, args.hf_repo, branch=args.revision, **options)
        print(f"uploaded: {url}")


if __name__ == "__main__":
    run_main(main)
