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
(float16: 2e-2, int8: 1e-1) of the output's largest value (at least of 1), nothing is
written. --int8 rounds the products of the blocks alone and keeps the log-mel in float;
its biases are corrected on the same clips, so give it some of yours by --check_audio.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from espnet2_sslam.bin.cli import model_parser, number_or_all, run_main
from espnet2_sslam.store import remove_leftovers_of

LOADING = ("target_frames", "max_frames", "layer", "freq", "cls_token", "upsample")
TYPES = ("float32", "float16", "int8")
FEATURES = (*LOADING[2:], "pooling")  # of encoders only


def get_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    example = "example: sslam export models/sslam_as2m sslam.onnx --check_audio clips"
    parser = model_parser("export", __doc__ or "", example)
    number = {"type": int, "metavar": "N"}
    add = parser.add_argument
    add("output", metavar="OUT.onnx", type=Path, help="file to write")
    add("--opset", type=int, default=18, help="18 to 22 (default: 18)")
    text = "of the network's weights (default: float32); float16: half the size, int8: "
    text += "less than a third"
    add("--dtype", choices=TYPES, default="float32", help=text)
    for flag, dtype in (("--fp16", "float16"), ("--int8", "int8")):
        constant = {"dest": "dtype", "action": "store_const", "const": dtype}
        add(flag, **constant, help=f"the same as --dtype {dtype}")
    text = "real clips to compare with as well: files or folders (the first 15 s)"
    add("--check_audio", nargs="+", default=[], metavar="PATH", help=text)
    text = "cut or zero-pad each clip to N frames of 10 ms, as in the paper (1024)"
    add("--target_frames", **number, help=text)
    text = "longest clip in frames of 10 ms (default: the model's, mostly 12288)"
    add("--max_frames", **number, help=text)
    add("--encoder_only", action="store_true", help="features, though a classifier")
    add = parser.add_argument_group("features (encoders)").add_argument
    text = "block: -1 the last (default), 0 patches, or all"
    add("--layer", type=number_or_all, help=text)
    text = "the 8 frequency patches of a time step: their mean (default), side by side,"
    add("--freq", choices=("mean", "concat", "flatten"), help=f"{text} or as 8 steps")
    flag = {"dest": "cls_token", "action": "store_true", "default": None}
    add("--cls", **flag, help="put the CLS token before the features")
    add("--upsample", **number, help="repeat every step N times")
    text = "the embedding: mean over the patches (default) or the CLS token"
    add("--pooling", choices=("mean", "cls"), help=text)
    return parser


def main(cmd: Sequence[str] | None = None) -> None:
    """Load, export, check, and say what was written."""
    args = get_parser().parse_args(cmd)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    from espnet2_sslam.checkpoint import load_model
    from espnet2_sslam.integrations.onnx import export_onnx, read_clips, require_onnx

    if args.output.is_dir():
        raise ValueError(f"{args.output} is a folder: name the file to write")
    require_onnx()
    clips = read_clips(args.check_audio)
    used: dict[str, Any] = {k: v for k, v in vars(args).items() if v is not None}
    options = {name: used[name] for name in LOADING if name in used}
    source = {"revision": args.revision, "weights": args.weights}
    loaded = load_model(args.model, **source, **options)
    if args.encoder_only and loaded.classes is None:
        raise ValueError(f"{args.model} is an encoder: leave --encoder_only out")
    model = loaded.encoder if args.encoder_only else loaded.model
    features = [name for name in FEATURES if name in used]
    if model is not loaded.encoder and features:
        raise ValueError(
            f"{args.model} is a classifier, {', '.join(features)} shape an encoder's "
            "features: add --encoder_only to export them"
        )
    remove_leftovers_of(args.output)
    exported = export_onnx(
        model,
        args.output,
        pooling=args.pooling or "mean",
        dtype=args.dtype,
        opset=args.opset,
        origin=loaded.config.get("origin"),
        clips=clips,
    )
    print(f"{exported.path}: {exported.size / 1e6:.1f} MB, opset {args.opset}")
    print(f"outputs: {', '.join(exported.outputs)}")
    print(f"checked: {exported.check}")


if __name__ == "__main__":
    run_main(main)
