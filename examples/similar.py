#!/usr/bin/env python3
"""List the pairs of recordings that sound most alike: copies, re-recordings.

Example: python examples/similar.py models/sslam recordings/ -k 20

For the neighbours of one clip among many: `sslam embed`, then `sslam search`.
"""

import argparse

import numpy as np

from espnet2_sslam import SSLAM
from espnet2_sslam.audio import collect_files
from espnet2_sslam.bin.cli import run_main


def main() -> None:
    """Embed every file and print the pairs, most alike first."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("model", help="folder, the authors' file or Hugging Face id")
    add("audio", nargs="+", help="files and folders")
    add("-k", type=int, default=10, help="pairs to print (default: 10)")
    args = parser.parse_args()

    model = SSLAM.from_pretrained(args.model)
    names, values = [], []
    for result in model.embed_files([item.path for item in collect_files(args.audio)]):
        if result.error is not None:
            print(f"left out: {result.name}: {result.error}")
            continue
        names.append(result.name)
        values.append(result.values[0])
    if len(names) < 2:
        raise ValueError("need two readable recordings or more")
    vectors = np.stack(values)
    vectors -= vectors.mean(0)  # what all clips share says nothing of a pair
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = vectors @ vectors.T
    first, second = np.triu_indices(len(names), 1)
    order = np.argsort(-similarity[first, second])[: args.k]
    for a, b in zip(first[order], second[order], strict=True):
        print(f"{similarity[a, b]:.3f}  {names[a]}  {names[b]}")


if __name__ == "__main__":
    run_main(main)
