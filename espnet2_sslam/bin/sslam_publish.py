"""Make a folder of a model for others, with a model card; upload it to Hugging Face.

MODEL is what every command reads: a training's folder or .pth file, a folder of ours,
a checkpoint of the authors, a Hugging Face id. The folder holds
  model.safetensors, config.json, preprocessor_config.json   for SSLAM and transformers
  espnet_model.zip                                           as ESPnet packs models
  config*.yaml                                               of the trainings behind it
  metrics/, RESULTS.md, scores.csv                           scores, where there are any
  README.md                                                  the model card
  checksums.txt                                              SHA-256 of every file
The card says what the records beside MODEL say (how long it was trained, on what, its
scores), and of the rest that it is unknown. Look at it and edit README.md; then

  sslam publish FOLDER --hf_repo user/name

uploads the folder as it is. With --output and --hf_repo both steps are done at once.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from espnet2_sslam.bin.cli import run_main

CARD_OPTIONS = ("name", "license", "data_license", "datasets", "metrics", "results")


def get_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = argparse.ArgumentParser(
        prog="sslam publish",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: sslam publish exp/mini/linear_tiny/phase2_seed1/mini "
        "--output publish/sslam-mini --license apache-2.0",
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="the model, or a folder that is only uploaded")
    add("--output", type=Path, metavar="DIR", help="the folder to write")
    add("--overwrite", action="store_true", help="replace what was changed by hand")
    add("--weights", choices=("student", "teacher"), default="student")
    add("--cache_dir", type=Path, help="where downloads go")
    add = parser.add_argument_group("model card").add_argument
    add("--name", help="the model's name (default: that of --hf_repo, or of DIR)")
    add("--license", help="of the weights, in Hugging Face's word, such as cc-by-4.0")
    add("--data_license", metavar="TEXT", help="of the training data, in words")
    add("--datasets", nargs="+", default=[], help="data sets' Hugging Face ids")
    add(
        "--metrics",
        nargs="+",
        default=[],
        metavar="SET/SPLIT=FILE",
        help="scores of a classifier by sslam_score, such as esc50/test=metrics.json",
    )
    add(
        "--results",
        nargs="+",
        type=Path,
        default=[],
        metavar="PATH",
        help="RESULTS.md, experiments or runs with scores of these weights (default: "
        "where the recipe puts them)",
    )
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
    check_arguments(args, parser)
    folder = write(args) if args.output else Path(args.model)
    if args.hf_repo:
        upload(args, folder)


def check_arguments(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Refuse what can be seen to be wrong before anything is read."""
    from espnet2_sslam.integrations.publish import check_repo, read_checksums

    if args.hf_repo:
        check_repo(args.hf_repo)
    elif args.private or args.revision:
        raise ValueError("--private and --revision are for --hf_repo: name that too")
    if args.output:
        return
    if not args.hf_repo:
        raise ValueError("--output DIR is needed: the folder to write")
    read_checksums(Path(args.model))
    for name in CARD_OPTIONS:
        if getattr(args, name) != parser.get_default(name):
            raise ValueError(
                f"without --output {args.model} is uploaded as it is: edit its "
                f"README.md instead of --{name}"
            )


def write(args: argparse.Namespace) -> Path:
    """Write the folder and say what is in it, and what the publisher may add."""
    from espnet2_sslam.integrations.publish import write_folder

    facts = write_folder(
        args.model,
        args.output,
        weights=args.weights,
        cache_dir=args.cache_dir,
        overwrite=args.overwrite,
        repo=args.hf_repo,
        branch=args.revision,
        **{name: getattr(args, name) for name in CARD_OPTIONS},
    )
    print(f"written: {args.output} ({len(facts['scores'])} scores, see README.md)")
    unknown = {
        "how the model was trained": not facts["trainings"],
        "scores of these weights (--metrics, --results)": not facts["scores"],
        "the licence of the weights (--license)": not facts["license"],
        "the licence of the training data (--data_license)": not (
            facts["corpora"] or facts["data_license"]
        ),
    }
    for training in facts["trainings"]:
        kind = training["kind"]
        unknown[f"how long {kind} was trained"] = not training.get("updates")
        unknown[f"what {kind} was trained on"] = not training["split"]
    for line in (line for line, is_unknown in unknown.items() if is_unknown):
        print(f"unknown: {line}")
    return args.output


def upload(args: argparse.Namespace, folder: Path) -> None:
    """Upload the folder and say where it is."""
    from espnet2_sslam.integrations.publish import push

    url = push(
        folder,
        args.hf_repo,
        private=args.private,
        branch=args.revision,
        overwrite=args.overwrite,
    )
    print(f"uploaded: {url}")


if __name__ == "__main__":
    run_main(main)
