"""sslam search: the recordings of an `embed` output that sound most like a clip.

INDEX is what `sslam embed` wrote as npz, csv, tsv, json or jsonl. npz says which model
made it, and that model embeds the clips; with the others, and where that model is not
there any more, give --model. With --chunk in `embed` a row is a window, and its seconds
are printed.
"""

import argparse
from collections.abc import Sequence

from espnet2_sslam.bin.cli import run_main

EXAMPLE = """
example: embed a folder in windows of 10 s, then find what sounds like one clip
  sslam embed MODEL field/ -o field.npz --chunk 10
  sslam search field.npz owl.wav -k 5
"""


def get_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = argparse.ArgumentParser(
        prog="sslam search",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("index", metavar="INDEX", help="output of sslam embed")
    add("clips", metavar="CLIP", nargs="+", help="audio file to compare with")
    add("-k", type=int, default=10, metavar="K", help="rows, best first (default: 10)")
    text = "model that made INDEX: folder, checkpoint, .zip or Hugging Face id "
    text += "(default: the one that INDEX names)"
    add("--model", help=text)
    add("--device", help="cpu, cuda, cuda:1, mps (default: the best one there is)")
    return parser


def main(cmd: Sequence[str] | None = None) -> None:
    """Print the nearest rows of each clip: cosine similarity, file and seconds."""
    args = get_parser().parse_args(cmd)
    if args.k < 1:
        raise ValueError(f"-k must be 1 or more, got {args.k}")
    from espnet2_sslam.inference import EmbeddingIndex, load_index_model, plain

    index = EmbeddingIndex.read(args.index)
    if args.model is None and not index.info.get("model"):
        raise ValueError(f"{args.index} does not name its model: give --model")
    model = load_index_model(index, args.model, device=args.device)
    for clip in args.clips:
        matches = index.search(index.embed(model, clip), args.k)
        print(plain(clip))
        for file, start, end, score in matches:
            print(f"  {score:.3f}  {start:9.2f} - {end:9.2f} s  {plain(file)}")


if __name__ == "__main__":
    run_main(main)
