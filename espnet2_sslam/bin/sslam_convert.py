"""Convert weights: the authors' files, our trainings and our own format.

SOURCE is one of
  - the authors' .pt file (EAT or SSLAM, pre-trained or fine-tuned)
  - their safetensors export (a folder, a file, or its Hugging Face id)
  - a training of ours (its folder, or a .pth file with config.yaml beside)
  - a folder in our format, a packed .zip, or an ESPnet model zoo tag

OUTPUT's suffix says what to write, or --to:
  folder       model.safetensors and config.json, for every other command (default)
  fairseq      .pt, the authors' layout
  huggingface  a folder in the layout of the authors' exports
  training     .pth, for --init_param of a pre-training or fine-tuning
  espnet-pack  .zip, as ESPnet's `pack` writes it
"""

import argparse
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from espnet2_sslam.bin.cli import run_main

SUFFIXES = {".pt": "fairseq", ".pth": "training", ".zip": "espnet-pack"}
LAYOUTS = ("folder", "fairseq", "huggingface", "training", "espnet-pack")


def get_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = argparse.ArgumentParser(
        prog="sslam-convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: sslam-convert EAT-base_epoch30_ft.pt models/eat_as2m "
        "--labels class_labels_indices.csv",
    )
    add = parser.add_argument
    add("source", metavar="SOURCE", help="where the weights are")
    add("output", metavar="OUTPUT", type=Path, help="file or folder to write")
    add("--to", choices=LAYOUTS, help="layout of OUTPUT (default: by its suffix)")
    add("--weights", choices=("student", "teacher"), default="student")
    add("--labels", type=Path, help="class names: a list, or the authors' csv table")
    add("--task", choices=("multi_label", "multi_class"), help="sigmoid or softmax")
    add("--num_heads", type=int, help="attention heads, where SOURCE does not say")
    add("--fbank_mean", type=float, help="mean of the log-mel, instead of SOURCE's")
    add("--fbank_std", type=float, help="its standard deviation")
    add("--revision", help="branch, tag or commit of a Hugging Face id")
    add("--cache_dir", type=Path, help="where downloads go")
    add("--overwrite", action="store_true", help="replace what is in OUTPUT")
    return parser


def main(cmd: Sequence[str] | None = None) -> None:
    """Read, complete, write, and say what was written."""
    args = get_parser().parse_args(cmd)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    layout = args.to or SUFFIXES.get(args.output.suffix, "folder")
    check_arguments(args)
    parts = read(args)
    {
        "folder": write_folder,
        "fairseq": write_fairseq,
        "huggingface": write_huggingface,
        "training": write_training,
        "espnet-pack": write_pack,
    }[layout](parts, args.output)
    print(describe(parts))
    print(f"written: {args.output} ({layout})")


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse what can be seen to be wrong before anything is read."""
    if (args.fbank_mean is None) != (args.fbank_std is None):
        raise ValueError("give --fbank_mean and --fbank_std together, or neither")
    output = args.output
    there = any(output.iterdir()) if output.is_dir() else output.exists()
    if there and not args.overwrite:
        raise ValueError(f"{output} is there already: --overwrite replaces it")
    if not output.resolve().parent.exists():
        output.resolve().parent.mkdir(parents=True)


def read(args: argparse.Namespace):
    """The parts of SOURCE with the user's additions."""
    from espnet2_sslam.checkpoint import complete, read_labels, read_parts

    parts = read_parts(args.source, revision=args.revision, cache_dir=args.cache_dir)
    classes, fbank = None, None
    if args.labels is not None:
        known = (parts.config["classifier"] or {}).get("classes")
        classes = read_labels(args.labels, known)
    if args.fbank_mean is not None:
        fbank = args.fbank_mean, args.fbank_std
    options = {"num_heads": args.num_heads, "task": args.task}
    parts = complete(
        parts.chosen(args.weights), args.source, classes=classes, fbank=fbank, **options
    )
    build(parts, args.source)  # every name and shape must fit, whatever is written
    return parts


def build(parts: Any, source: str):
    """The model with the parts' weights; CheckpointError where they do not fit."""
    from espnet2_sslam.checkpoint import build_model, fill_model

    return fill_model(build_model(parts.config), stored_state(parts), source)


def stored_state(parts: Any):
    """The content of model.safetensors."""
    from espnet2_sslam.checkpoint import join_state

    fbank = parts.config["fbank_mean"], parts.config["fbank_std"]
    return join_state(parts.encoder, fbank, parts.head)


def write_folder(parts: Any, output: Path) -> None:
    """Our own format, with what Hugging Face's feature extractor needs."""
    from espnet2_sslam.checkpoint import folder

    folder.write_folder(parts.config, stored_state(parts), output)


def write_fairseq(parts: Any, output: Path) -> None:
    """The authors' layout."""
    import torch

    from espnet2_sslam.checkpoint import to_fairseq

    whole(output, lambda path: torch.save(to_fairseq(parts), path))


def write_training(parts: Any, output: Path) -> None:
    """A file for --init_param."""
    import torch

    from espnet2_sslam.checkpoint import to_training

    whole(output, lambda path: torch.save(to_training(parts), path))


def write_huggingface(parts: Any, output: Path) -> None:
    """A folder in the layout of the authors' exports."""
    from espnet2_sslam.checkpoint import folder, to_huggingface

    state, config = to_huggingface(parts)
    folder.write_folder(config, state, output)


def write_pack(parts: Any, output: Path) -> None:
    """ESPnet's packed model."""
    from espnet2_sslam.integrations.pack import pack_model

    model = build(parts, "the source")
    whole(output, lambda path: pack_model(model, path))


def whole(output: Path, write: Callable[[Path], Any]) -> None:
    """Write a file whole or not at all."""
    partial = output.with_name(f".{output.stem}.{os.getpid()}.part{output.suffix}")
    try:
        write(partial)
        os.replace(partial, output)
    finally:
        partial.unlink(missing_ok=True)


def describe(parts: Any) -> str:
    """What the model is, in a few lines."""
    config, sizes = parts.config, parts.config["encoder"]
    lines = [
        f"encoder: {sizes['depth']} blocks, {sizes['embed_dim']} channels, "
        f"{sizes['num_heads']} heads ({config['origin']['weights']}'s weights)",
        f"fbank mean, std: {config['fbank_mean']:.4f}, {config['fbank_std']:.4f}",
    ]
    head = config["classifier"]
    if head:
        lines.append(
            f"classifier: {len(head['classes'])} classes ({head['classes'][0]}, ...), "
            f"{head['task']}, pooling {head['pooling']}"
        )
    others = [name for name in ("decoder", "teacher") if getattr(parts, name)]
    if others:
        lines.append(f"in the source beside it: {' and '.join(others)}")
    return "\n".join(lines)


if __name__ == "__main__":
    run_main(main)
