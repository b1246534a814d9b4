#!/usr/bin/env python3
"""Make an encoder from anywhere usable by fine-tuning: encoder.pth and config.yaml.

SOURCE is whatever `sslam convert` reads: the authors' .pt file, an export of theirs or
its Hugging Face id, a folder in our format, a training's folder. Heads are left out.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
import yaml

from espnet2_sslam import store
from espnet2_sslam.bin.cli import run_main
from espnet2_sslam.checkpoint import read_parts, to_training
from espnet2_sslam.config import SIZES


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("output", metavar="DIR", type=Path)
    args = parser.parse_args()
    parts = read_parts(args.source)
    kept = {k: v for k, v in parts.tensors.items() if k.startswith("encoder.")}
    parts = replace(parts, tensors=kept, head_options=None).complete(args.source)
    encoder = {name: parts.sizes[name] for name in SIZES}
    encoder["fbank_mean"], encoder["fbank_std"] = parts.fbank
    record = {"encoder_conf": encoder, "origin": parts.origin}
    text = yaml.safe_dump(record, sort_keys=False)
    store.write_text(args.output / "config.yaml", text)
    with store.writing(args.output / "encoder.pth", "wb") as stream:
        torch.save(to_training(parts), stream)
    print(f"{args.source} -> {args.output}")


if __name__ == "__main__":
    run_main(main)
