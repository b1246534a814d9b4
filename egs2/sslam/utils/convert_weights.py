#!/usr/bin/env python3
"""Make an encoder from anywhere usable by stage 6: encoder.pth and config.yaml.

SOURCE is whatever sslam-convert reads: the authors' .pt file, an export of theirs or
its Hugging Face id, a folder in our format, a training's folder. Heads are left out.
"""

import argparse
import os
from dataclasses import replace
from pathlib import Path

import torch
import yaml

from espnet2_sslam.bin.cli import run_main
from espnet2_sslam.checkpoint import complete, read_parts, to_training

SIZES = ("embed_dim", "depth", "num_heads", "mlp_ratio", "max_frames")


def write(path, save):
    """Write a file whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    save(part)
    os.replace(part, path)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("output", metavar="DIR", type=Path)
    args = parser.parse_args()
    parts = read_parts(args.source)
    config = {**parts.config, "classifier": None}
    parts = replace(parts, config=config, head=None, decoder=None, teacher=None)
    parts = complete(parts, args.source)
    encoder = {name: parts.config["encoder"][name] for name in SIZES}
    for name in ("fbank_mean", "fbank_std"):
        encoder[name] = parts.config[name]
    record = {"encoder_conf": encoder, "origin": parts.config["origin"]}
    args.output.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(record, sort_keys=False)
    write(args.output / "config.yaml", lambda path: path.write_text(text))
    weights = to_training(parts)
    write(args.output / "encoder.pth", lambda path: torch.save(weights, path))
    print(f"{args.source} -> {args.output}")


if __name__ == "__main__":
    run_main(main)
