"""Convert weights: the authors' files, our trainings and our own format.

SOURCE is one of
  - the authors' .pt file (EAT or SSLAM, pre-trained or fine-tuned)
  - their safetensors export (a folder, a file, or its Hugging Face id)
  - a training of ours (its folder, or a .pth file with config.yaml beside)
  - a folder in our format, or a packed .zip

OUTPUT's suffix says what to write, or --to:
  folder       model.safetensors and config.json, for every other command (default)
  fairseq      .pt, the authors' layout
  huggingface  a folder in the layout of the authors' exports
  training     .pth, for --init_param of a pre-training or fine-tuning
  espnet-pack  .zip, as ESPnet's `pack` writes it
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from espnet2_sslam.bin.cli import model_parser, run_main

if TYPE_CHECKING:
    from espnet2_sslam.checkpoint import Model, Parts

SUFFIXES = {".pt": "fairseq", ".pth": "training", ".zip": "espnet-pack"}
LAYOUTS = ("folder", "fairseq", "huggingface", "training", "espnet-pack")


def get_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    example = "example: sslam convert EAT-base_epoch30_ft.pt models/eat_as2m "
    example += "--labels class_labels_indices.csv"
    parser = model_parser("convert", __doc__ or "", example, model="SOURCE")
    add = parser.add_argument
    add("output", metavar="OUTPUT", type=Path, help="file or folder to write")
    add("--to", choices=LAYOUTS, help="layout of OUTPUT (default: by its suffix)")
    add("--labels", type=Path, help="class names: a list, or the authors' csv table")
    add("--task", choices=("multi_label", "multi_class"), help="sigmoid or softmax")
    add("--num_heads", type=int, help="attention heads, where SOURCE does not say")
    add("--fbank_mean", type=float, help="mean of the log-mel, instead of SOURCE's")
    add("--fbank_std", type=float, help="its standard deviation")
    add("--cache_dir", type=Path, help="where downloads go")
    add("--overwrite", action="store_true", help="replace what is in OUTPUT")
    return parser


def main(cmd: Sequence[str] | None = None) -> None:
    """Read, complete, write, and say what was written."""
    args = get_parser().parse_args(cmd)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if (args.fbank_mean is None) != (args.fbank_std is None):
        raise ValueError("give --fbank_mean and --fbank_std together, or neither")
    output = args.output
    in_use = any(output.iterdir()) if output.is_dir() else output.exists()
    if in_use and not args.overwrite:
        raise ValueError(f"{output} is there already: --overwrite replaces it")
    from espnet2_sslam.checkpoint import assemble, read_parts

    parts = read_parts(args.source, revision=args.revision, cache_dir=args.cache_dir)
    classes = None
    if args.labels is not None:
        from espnet2_sslam.corpus import read_class_names

        known = (parts.head_options or {}).get("classes")
        classes = read_class_names(args.labels, known)
    parts = parts.complete(
        args.source,
        weights=args.weights,
        num_heads=args.num_heads,
        classes=classes,
        task=args.task,
        fbank=None if args.fbank_mean is None else (args.fbank_mean, args.fbank_std),
    )
    # every name and shape must fit, whatever is written
    model = assemble(parts, args.source)
    layout = args.to or SUFFIXES.get(output.suffix, "folder")
    write(parts, model, output, layout)
    print(describe(parts))
    print(f"written: {output} ({layout})")


def write(parts: "Parts", model: "Model", output: Path, layout: str) -> None:
    """Write one of the layouts, whole or not at all."""
    import torch

    from espnet2_sslam import checkpoint, store

    store.remove_leftovers_of(output)
    if layout in ("folder", "huggingface"):
        config, state = parts.config(), parts.state()
        if layout == "huggingface":
            state, config = checkpoint.to_huggingface(parts)
        if output.exists() and any(output.iterdir()):  # other files there stay
            checkpoint.write_folder(config, state, output)
            return
        with store.replacing_folder(output) as folder:
            checkpoint.write_folder(config, state, folder)
    elif layout == "espnet-pack":
        from espnet2_sslam.integrations.pack import pack_model

        pack_model(model, output)
    else:
        fairseq = layout == "fairseq"
        content = (checkpoint.to_fairseq if fairseq else checkpoint.to_training)(parts)
        with store.writing(output, "wb") as stream:
            torch.save(content, stream)


def describe(parts: "Parts") -> str:
    """What the model is, in a few lines."""
    head, shown = parts.head_options, {**parts.sizes, **parts.origin}
    text = "encoder: {depth} blocks, {embed_dim} channels, {num_heads} heads "
    lines = [
        (text + "({weights}'s weights)").format(**shown),
        "fbank mean, std: {:.4f}, {:.4f}".format(*parts.fbank),
    ]
    if head:
        lines.append(
            f"classifier: {len(head['classes'])} classes ({head['classes'][0]}, ...), "
            f"{head['task']}, pooling {head['pooling']}"
        )
    others = [name for name in ("decoder", "teacher") if parts.below(f"{name}.")]
    if others:
        lines.append(f"in the source beside it: {' and '.join(others)}")
    return "\n".join(lines)


if __name__ == "__main__":
    run_main(main)
