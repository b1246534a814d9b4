"""sslam info: what a model is, read from its files.

MODEL is whatever the other commands take, and an ONNX file of `sslam export`: sizes,
parameters, classes, mean and std of the log-mel, resampler, time step, longest clip,
origin, hashes, and the license where its README.md or the list of released models says
it.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from espnet2_sslam.bin.cli import model_parser, run_main
from espnet2_sslam.bin.sslam_models import released_models

SHOWN = 5  # names of classes in the text


def main(cmd: Sequence[str] | None = None) -> None:
    """Print the facts as text or JSON."""
    example = "example: sslam info models/sslam --json | jq .weights_sha256"
    parser = model_parser("info", __doc__ or "", example)
    parser.add_argument("--json", action="store_true", help="as a JSON object")
    args = parser.parse_args(cmd)
    if args.model.endswith(".onnx"):
        from espnet2_sslam.integrations.onnx import read_facts

        facts = {"model": args.model, **read_facts(args.model)}
    else:
        facts = model_facts(args.model, args.revision, args.weights)
    if args.json:
        print(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    if classes := facts.get("classes"):
        more = f", ... ({len(classes)})" if len(classes) > SHOWN else ""
        facts["classes"] = ", ".join(classes[:SHOWN]) + more
    for name, value in facts.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {text}" for key, text in value.items())
        elif isinstance(value, list):
            value = ", ".join(value)
        elif isinstance(value, int) and value >= 100_000:
            value = f"{value:,}"
        if value not in (None, ""):
            print(f"{name:22} {value}")


def model_facts(
    source: str, revision: str | None = None, weights: str = "student"
) -> dict[str, Any]:
    """What a model's files say of it, as JSON has it.

    Args:
        source, revision, weights: As for `SSLAM.from_pretrained`.

    Raises:
        CheckpointError: It cannot be read, and why.
    """
    from espnet2_sslam import checkpoint, store
    from espnet2_sslam.inference import weights_sha256
    from espnet2_sslam.units import (
        FRAME_SHIFT,
        NUM_MEL_BINS,
        PATCH_SIZE,
        SAMPLE_RATE,
    )

    path = checkpoint.resolve(source, revision=revision)
    file = checkpoint.weights_file(path) if path.is_dir() else path
    parts = checkpoint.read_parts(path)
    head, classes = parts.head_options, None
    if head is not None and not head["classes"]:  # what the authors release
        classes = [str(index) for index in range(len(parts.tensors["head.weight"]))]
    complete = parts.complete(source, weights=weights, classes=classes)
    model, frame = checkpoint.assemble(complete, source), FRAME_SHIFT / SAMPLE_RATE
    facts: dict[str, Any] = {
        "model": source,
        "kind": "encoder" if head is None else "classifier",
        **complete.sizes,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "seconds_per_step": PATCH_SIZE * frame,
        "max_seconds_per_pass": round(complete.sizes["max_frames"] * frame, 2),
        "sampling_rate": SAMPLE_RATE,
        "num_mel_bins": NUM_MEL_BINS,
        "fbank_mean": complete.fbank[0],
        "fbank_std": complete.fbank[1],
    }
    if head is not None:
        number = len(complete.tensors["head.weight"])
        facts |= {**head, "num_classes": number, "classes": head["classes"] or None}
    return facts | {
        "beside_it": [n for n in ("decoder", "teacher") if parts.below(f"{n}.")],
        "file": file.name,
        "bytes": file.stat().st_size,
        "sha256": store.sha256(file),
        "weights_sha256": weights_sha256(model),
        "origin": complete.origin,
        "license": _license(source, file.parent / "README.md"),
    }


def _license(source: str, card: Path) -> str | None:
    """What a model card beside the weights, or the list of released models, says."""
    if card.is_file():
        from huggingface_hub import metadata_load

        return str((metadata_load(card) or {}).get("license") or "") or None
    stated = {model["id"]: model.get("license") for model in released_models()}
    return stated.get(source.partition("@")[0])


if __name__ == "__main__":
    run_main(main)
