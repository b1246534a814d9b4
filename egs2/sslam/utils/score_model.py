#!/usr/bin/env python3
"""Stage 7 for one trained classifier: predict and score its checkpoints on test splits.

One process does what `espnet2_sslam.bin.sslam_cls_inference` and `sslam_score` would
do in many, because importing takes longer than a small test split. Results go to
OUTPUT_DIR/<checkpoint>/<test split>/.
"""

import argparse
import sys
from pathlib import Path

import yaml

from espnet2_sslam.bin import sslam_cls_inference, sslam_score
from espnet2_sslam.bin.cli import run_main


def get_parser():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, each = parser.add_argument, {"action": "append", "required": True}
    add("--config", required=True, help="config.yaml of the training")
    text = "weights under the name that the results get, such as last=latest.pth"
    add("--checkpoint", **each, metavar="NAME=FILE", help=text)
    add("--test_dir", type=Path, **each, help="a test split")
    add("--list", default="wav.scp,speech,sound", help="its audio: FILE,speech,TYPE")
    add("--class_list", required=True, help="classes.txt: a label per line")
    add("--task", required=True, help="multi_label or multi_class")
    add("--output_dir", type=Path, required=True)
    add("--ngpu", type=int, default=0, help="1 or more: use a GPU")
    # ESPnet's launcher gives this to every command.
    add("--multiprocessing_distributed", help="no effect")
    return parser


def builder(config):
    """Return the function that builds the classifier of a config.yaml, BEATs' too."""
    if "beats_checkpoint" in (yaml.safe_load(Path(config).read_text("utf-8")) or {}):
        sys.path.append(str(Path(__file__).resolve().parent.parent / "beats"))
        from beats_cls_train import classifier_from_config  # type: ignore[import]
    else:
        from espnet2_sslam.classifier import classifier_from_config
    return classifier_from_config


def main():
    args = get_parser().parse_args()
    build = builder(args.config)
    for checkpoint in args.checkpoint:
        name, _, weights = checkpoint.partition("=")
        for test_dir in args.test_dir:
            out = args.output_dir / name / test_dir.name
            data = f"{test_dir}/{args.list}"
            words = ["--config", args.config, "--model_file", weights]
            words += ["--data_path_and_name_and_type", data, "--output_dir", out]
            words += ["--ngpu", min(args.ngpu, 1)]
            sslam_cls_inference.main(list(map(str, words)), build)
            words = ["--predictions", out / "predictions.npz"]
            words += ["--text", test_dir / "text", "--class_list", args.class_list]
            words += ["--task", args.task, "--output_dir", out]
            sslam_score.main(list(map(str, words)))


if __name__ == "__main__":
    run_main(main)
