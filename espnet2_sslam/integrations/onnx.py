"""A model as one ONNX file: waveforms in, features or scores out, no Python needed."""

import importlib
import json
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import espnet2_sslam
from espnet2_sslam.classifier import SSLAMClassifier
from espnet2_sslam.encoder import SSLAMEncoder
from espnet2_sslam.integrations.onnx_check import (
    TOLERANCE,
    Check,
    compare,
    made_clips,
)
from espnet2_sslam.integrations.onnx_graph import reference, traceable
from espnet2_sslam.units import (
    FRAME_LENGTH,
    FRAME_SHIFT,
    FRAME_SHIFT_MS,
    PATCH_SIZE,
    SAMPLE_RATE,
)

OPSETS = range(18, 23)  # 23 has an Attention that onnxruntime does not take masks for
OPSET = 18
PROTOBUF_LIMIT = 2**31  # bytes of one file
TRACED_SIZES = (9_840, 16_240)  # samples; any others will do


class Exported(NamedTuple):
    """The file, its size in bytes, its outputs and how well they agree."""

    path: Path
    size: int
    outputs: Sequence[str]
    check: Check


def export_onnx(
    model: SSLAMEncoder | SSLAMClassifier,
    path: str | Path,
    *,
    pooling: str = "mean",
    dtype: str = "float32",
    opset: int = OPSET,
    origin: dict[str, Any] | None = None,
    clips: Sequence[np.ndarray] = (),
) -> Exported:
    """Write a model as ONNX, fbank included, and compare it with PyTorch.

    Inputs: `speech` (B, samples), float32 at 16 kHz in [-1, 1], padded at the end, and
    `speech_lengths` (B,), int64, at least 400 each. Outputs of an encoder: `features`
    (B, L, D), shaped by the encoder's own options and zero beyond a clip's end,
    `feature_lengths` (B,) and `embedding` (B, D); of a classifier: `logits` and
    `scores` (B, C). Speech longer than `max_samples` (in the metadata; the encoder's
    max_frames) is refused by the runtime, unless the model has target_frames.

    Args:
        model: Encoder or classifier; it is not changed.
        path: File to write; an old one stays until the new one is checked.
        pooling: "mean" or "cls": the embedding of an encoder.
        dtype: "float32", or "float16" for the network (log-mel and outputs stay
            float32): half the size, and agreement to 2e-2 instead of 1e-4.
        opset: ONNX operator set, 18 to 22.
        origin: Where the weights come from; kept in the metadata.
        clips: Real clips (N,) at 16 kHz to compare with, besides the made ones.

    Raises:
        ValueError: A wrong option, onnx is not installed, the model is too large, or
            the file does not give what PyTorch gives (no file is left then).
        OSError: The file cannot be written.
    """
    require_onnx()
    if dtype not in TOLERANCE:
        raise ValueError(f"dtype must be one of {', '.join(TOLERANCE)}: {dtype!r}")
    if opset not in OPSETS:
        raise ValueError(f"opset must be in {OPSETS[0]}..{OPSETS[-1]}: {opset}")
    if pooling not in ("mean", "cls"):
        raise ValueError(f"pooling must be mean or cls: {pooling!r}")
    path = Path(path)
    if path.is_dir() or not path.parent.is_dir():
        wrong = path if path.is_dir() else path.parent
        raise ValueError(f"{wrong} must {'not ' * path.is_dir()}be a folder: {path}")
    graph = traceable(model, pooling, dtype == "float16")
    _check_size(graph)
    properties = metadata(model, pooling, dtype, origin)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with _quiet():
            program = _traced(graph, opset)
            program.model.metadata_props.update(properties)
            program.model.producer_name = "espnet2_sslam"
            program.model.producer_version = espnet2_sslam.__version__
            positions = getattr(model, "encoder", model).positions
            _name_limit(program.model, properties.get("max_samples"), positions)
            program.save(str(temporary), external_data=False)
        check = check_file(
            model, temporary, [*made_clips(), *clips], pooling=pooling, dtype=dtype
        )
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return Exported(path, path.stat().st_size, graph.outputs, check)


def check_file(
    model: SSLAMEncoder | SSLAMClassifier,
    path: str | Path,
    clips: Sequence[np.ndarray],
    *,
    pooling: str = "mean",
    dtype: str = "float32",
) -> Check:
    """Compare an ONNX file with the model it was made of: see `onnx_check.compare`."""
    onnx, onnxruntime = require_onnx()
    onnx.checker.check_model(str(path))
    session = onnxruntime.InferenceSession(
        str(path), providers=["CPUExecutionProvider"]
    )
    return compare(
        reference(model, pooling),
        session,
        clips,
        max_samples=_max_samples(model),
        tolerance=TOLERANCE[dtype],
    )


def require_onnx():
    """Import onnx and onnxruntime, or say in one line how to get them."""
    try:
        importlib.import_module("onnxscript")  # torch's exporter needs it
        return [importlib.import_module(name) for name in ("onnx", "onnxruntime")]
    except ImportError as error:
        raise ValueError(
            f"ONNX needs {error.name}: pip install espnet2_sslam[onnx]"
        ) from error


def metadata(
    model: SSLAMEncoder | SSLAMClassifier,
    pooling: str,
    dtype: str,
    origin: dict[str, Any] | None = None,
) -> dict[str, str]:
    """What a user of the file must know, as strings (lists and objects in JSON)."""
    classifier = model if isinstance(model, SSLAMClassifier) else None
    encoder = classifier.encoder if classifier else model
    known = {
        "model_type": "sslam",
        "sampling_rate": SAMPLE_RATE,
        "min_samples": FRAME_LENGTH,
        "max_samples": _max_samples(model),
        "target_frames": encoder.config.target_frames,
        "fbank_mean": float(encoder.log_mel.mean),
        "fbank_std": float(encoder.log_mel.std),
        "dtype": dtype,
        "origin": origin,
        "converter": f"espnet2_sslam {espnet2_sslam.__version__}",
    }
    if classifier:
        known.update(classes=classifier.classes, task=classifier.task)
    else:
        step = FRAME_SHIFT_MS * PATCH_SIZE / 1000 / encoder.config.upsample
        known.update(
            seconds_per_step=step,
            layer=encoder.layer,
            freq=encoder.config.freq,
            cls_token=encoder.use_cls,
            pooling=pooling,
        )
    given = {name: value for name, value in known.items() if value is not None}
    return {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in given.items()
    }


def _max_samples(model) -> int | None:
    """Longest speech that fits the position table; None where clips are cut to fit."""
    encoder = getattr(model, "encoder", model)
    if encoder.config.target_frames is not None:
        return None
    return FRAME_LENGTH + FRAME_SHIFT * encoder.config.max_frames - 1


def _check_size(graph: torch.nn.Module) -> None:
    """Refuse what does not fit into one file."""
    size = sum(t.numel() * t.element_size() for t in graph.state_dict().values())
    if size > PROTOBUF_LIMIT - 2**24:
        raise ValueError(
            f"the weights take {size / 2**30:.1f} GiB, an ONNX file holds 2 GiB: use "
            "--dtype float16"
        )


def _traced(graph: torch.nn.Module, opset: int):
    """The graph as torch.onnx's program, for any batch and length."""
    speech = torch.randn(
        2, max(TRACED_SIZES), generator=torch.Generator().manual_seed(0)
    )
    try:
        return torch.onnx.export(
            graph,
            (0.1 * speech, torch.tensor(TRACED_SIZES)),
            input_names=["speech", "speech_lengths"],
            output_names=list(graph.outputs),
            dynamic_shapes=({0: "batch", 1: "samples"}, {0: "batch"}),
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        logging.debug("traceback of the error below", exc_info=True)
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise ValueError(
            f"torch.onnx cannot write this model with opset {opset}: {reason}"
        ) from error


def _name_limit(model, max_samples: str | None, positions: torch.Tensor) -> None:
    """Name the node that fails on longer speech so that its name says why."""

    def is_position(value) -> bool:
        while value is not None and value.producer() is not None:
            if value.producer().op_type != "Slice":
                return False
            value = value.producer().inputs[0]
        return value is not None and tuple(value.shape or ()) == positions.shape

    for node in model.graph if max_samples else ():
        if node.op_type == "Add" and any(map(is_position, node.inputs)):
            node.name = f"speech_is_longer_than_{max_samples}_samples"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's notes, which are not for its user."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
