"""Turn audio files into features (embeddings) of a trained encoder."""

import argparse
from collections.abc import Sequence

from espnet2_sslam.bin import model_options
from espnet2_sslam.bin.cli import run_main

FORMATS = ("npz", "csv", "tsv", "json", "jsonl", "ark")
EPILOG = """
A clip is one row, the mean of its patches (--pooling cls: the CLS token). With --chunk
a row is a window of a recording, with --pooling frames a time step of 160 ms; start
and end are its seconds. Files that cannot be read are listed at the end with the
reason, the exit status is 1, and all others are in the output.

examples:
  a folder of clips, one row of 768 values per clip:
    sslam embed MODEL clips/ -o clips.npz
    python -c "import numpy; x = numpy.load('clips.npz'); print(x['ids'], x['values'])"

  windows of 10 s, every 5 s, of long recordings, as text:
    sslam embed MODEL field/*.flac -o field.csv --chunk 10 --hop 5

  every layer (0 is the patch embedding), for a weighted sum of your own:
    sslam embed MODEL clips/ -o layers.npz --layer all

  Kaldi's ark and scp, a matrix of 160 ms steps per utterance, for ESPnet's recipes:
    sslam embed MODEL --list data/train/wav.scp -o dump/feats.scp --pooling frames
"""


def get_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = argparse.ArgumentParser(
        prog="sslam embed",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=model_options.HELP_STYLE,
    )
    model_options.add_model_options(parser)
    model_options.add_input_options(parser)
    group = parser.add_argument_group("features")
    group.add_argument(
        "--layer",
        type=_layer,
        default=-1,
        help="block whose output is taken: 1, 2, ..., 0 for the patch embedding, -1 "
        "for the last, or all (default: -1)",
    )
    group.add_argument(
        "--pooling",
        choices=("mean", "cls", "frames"),
        default="mean",
        help="mean of the patches, CLS token, or every 160 ms (default: mean)",
    )
    model_options.add_window_options(parser)
    model_options.add_output_options(parser, FORMATS, required=True)
    return parser


def _layer(text: str) -> int | str:
    """A block's number, or `all`."""
    if text == "all":
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be a number or all, got {text!r}"
        ) from None


def main(cmd: Sequence[str] | None = None) -> None:
    """Embed the files."""
    args = get_parser().parse_intermixed_args(cmd)
    model_options.start_logging()
    model_options.check_windows(args)
    # After the options: torch takes seconds to import.
    from espnet2_sslam.bin.many_files import run_job
    from espnet2_sslam.inference import collect_files, output_format, write_embeddings

    format = output_format(args.output, args.format, FORMATS)
    series = args.chunk is not None or args.pooling == "frames"
    if format == "ark" and series and args.layer == "all":
        raise ValueError("ark holds no arrays (time, layer, value): choose one --layer")
    model_options.check_output(args.output)
    items = collect_files(args.files, args.list, args.names)
    model = model_options.load(args)
    options = {
        "layer": args.layer,
        "pooling": args.pooling,
        "chunk": args.chunk,
        "hop": args.hop,
    }
    run_job(
        args,
        items,
        model,
        {"command": "embed", **options},
        lambda files: model.embed_files(files, **options),
        lambda results, job: write_embeddings(
            args.output, format, results, job, series
        ),
    )


if __name__ == "__main__":
    run_main(main)
