"""Write a model as one ONNX file that takes raw 16 kHz waveforms.

The log-mel spectrogram is part of the file; batch and length are free. Inputs: speech
(batch, samples) float32 in [-1, 1], padded at the end; speech_lengths (batch) int64.
Outputs of a classifier: logits and scores (batch, classes); the class names are in the
file's metadata ("classes", JSON). Outputs of an encoder: features (batch, steps,
channels), feature_lengths and embedding (batch, channels). A clip gives the same alone
and in any batch. Speech of more than max_samples (metadata; 122.9 s by default) is an
error at run time: cut it, or use --target_frames.

Before OUT.onnx is put in place it is compared with PyTorch, with onnxruntime: on made
clips, silence among them, and on those of --check_audio. If a difference is above 1e-4
(float16: 2e-2) of the output's largest value (at least of 1), nothing is written.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from espnet2_sslam.bin.cli import run_main

FEATURE_OPTIONS = ("layer", "freq", "cls_token", "upsample", "pooling")


def get_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = argparse.ArgumentParser(
        prog="sslam export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: sslam export models/sslam_as2m sslam.onnx --check_audio clips",
    )
    add = parser.add_argument
    add(
        "model",
        metavar="MODEL",
        help="model folder, checkpoint of the authors, training folder or its .pth, "
        "Hugging Face id or ESPnet model zoo tag",
    )
    add("output", metavar="OUT.onnx", type=Path, help="file to write")
    add("--weights", choices=("student", "teacher"), default="student")
    add("--revision", help="branch, tag or commit of a Hugging Face model")
    add("--opset", type=int, default=18, help="18 to 22 (default: 18)")
    add(
        "--dtype",
        choices=("float32", "float16"),
        default="float32",
        help="of the network's weights; float16: half the size, less exact",
    )
    add(
        "--check_audio",
        nargs="+",
        default=[],
        metavar="PATH",
        help="real clips to compare with as well: files or folders (the first 15 s)",
    )
    add(
        "--target_frames",
        type=int,
        metavar="N",
        help="cut or zero-pad each clip to N frames of 10 ms, as in the paper (1024)",
    )
    add(
        "--max_frames",
        type=int,
        metavar="N",
        help="longest clip in frames of 10 ms (default: the model's, mostly 12288)",
    )
    add("--encoder_only", action="store_true", help="features, though a classifier")
    _add_feature_options(parser.add_argument_group("features (encoders)").add_argument)
    return parser


def _add_feature_options(add) -> None:
    """Add the options of an encoder's output."""
    add("--layer", type=_layer, help="block: -1 the last (default), 0 patches, or all")
    add(
        "--freq",
        choices=("mean", "concat", "flatten"),
        help="the 8 frequency patches of a time step: their mean (default), side by "
        "side, or as 8 steps",
    )
    add(
        "--cls",
        dest="cls_token",
        action="store_true",
        default=None,
        help="put the CLS token before the features",
    )
    add("--upsample", type=int, metavar="N", help="repeat every step N times")
    add(
        "--pooling",
        choices=("mean", "cls"),
        help="the embedding: mean over the patches (default) or the CLS token",
    )


def _layer(text: str):
    """A block's number, or "all"."""
    return text if text == "all" else int(text)


def main(cmd: Sequence[str] | None = None) -> None:
    """Load, export, check, and say what was written."""
    args = get_parser().parse_args(cmd)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    from espnet2_sslam.checkpoint import load_model
    from espnet2_sslam.integrations.onnx import export_onnx, read_clips, require_onnx

    require_onnx()
    clips = read_clips(args.check_audio)
    features = _options(args, FEATURE_OPTIONS)
    pooling = features.pop("pooling", None)
    loaded = load_model(
        args.model,
        revision=args.revision,
        weights=args.weights,
        **_options(args, ("target_frames", "max_frames")),
        **features,
    )
    model = loaded.encoder if args.encoder_only else loaded.model
    if args.encoder_only and loaded.classes is None:
        raise ValueError(f"{args.model} is an encoder: leave --encoder_only out")
    if model is not loaded.encoder and (features or pooling):
        names = ", ".join(_options(args, FEATURE_OPTIONS))
        raise ValueError(
            f"{args.model} is a classifier, {names} shape an encoder's features: add "
            "--encoder_only to export them"
        )
    exported = export_onnx(
        model,
        args.output,
        pooling=pooling or "mean",
        dtype=args.dtype,
        opset=args.opset,
        origin=loaded.config.get("origin"),
        clips=clips,
    )
    print(f"{exported.path}: {exported.size / 1e6:.1f} MB, opset {args.opset}")
    print(f"outputs: {', '.join(exported.outputs)}")
    print(f"checked: {exported.check}")


def _options(args: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """Return those of `names` that were used."""
    values = {name: getattr(args, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


if __name__ == "__main__":
    run_main(main)
