#!/usr/bin/env python3
"""Make an encoder from anywhere usable by our trainings: encoder.pth and config.yaml.

SOURCE is whatever `sslam convert` reads: the authors' .pt file, an export of theirs or
its Hugging Face id, a folder in our format, a training's folder. Heads are left out.
With --phase1 it is latest.pth instead, with teacher and decoder where SOURCE has them;
`fresh` in config.yaml names those that it has not.
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

FRESH = {"teacher": "a copy of the student", "decoder": "random"}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("output", metavar="DIR", type=Path)
    parser.add_argument("--phase1", action="store_true", help="to be continued")
    args = parser.parse_args()
    parts = read_parts(args.source)
    taken = ["encoder", *(FRESH if args.phase1 else ())]
    prefixes = tuple(f"{name}." for name in taken)
    kept = {k: v for k, v in parts.tensors.items() if k.startswith(prefixes)}
    parts = replace(parts, tensors=kept, head_options=None).complete(args.source)
    encoder = {name: parts.sizes[name] for name in SIZES}
    encoder["fbank_mean"], encoder["fbank_std"] = parts.fbank
    record = {"encoder_conf": encoder, "origin": parts.origin}
    text = ""
    if args.phase1:
        fresh = [name for name in FRESH if not parts.below(f"{name}.")]
        record["fresh"] = " ".join(fresh)
        text = "# {depth} blocks of {embed_dim} channels; ".format(**encoder)
        text += ", ".join(
            f"{name} {f'fresh ({FRESH[name]})' if name in fresh else 'taken'}"
            for name in FRESH
        )
        text += "\n"
    text += yaml.safe_dump(record, sort_keys=False)
    store.write_text(args.output / "config.yaml", text)
    file = args.output / ("latest.pth" if args.phase1 else "encoder.pth")
    with store.writing(file, "wb") as stream:
        torch.save(to_training(parts), stream)
    print(f"{args.source} -> {args.output}")


if __name__ == "__main__":
    run_main(main)
