"""The authors' checkpoints, taken apart: fairseq .pt files and safetensors exports.

Source: files written by the trainer of ta012/SSLAM@0a3c0ff (which keeps the layout of
cwx-worst-one/EAT@06c1c34); the exports' layout as their public loaders read it.
"""

from collections.abc import Mapping
from typing import Any

import torch

from espnet2_sslam.checkpoint.errors import CheckpointError
from espnet2_sslam.checkpoint.names import (
    ENCODER_NAMES,
    HEAD_NAMES,
    HUGGINGFACE_HEAD_NAMES,
    HUGGINGFACE_NAMES,
    State,
    decoder_state_from_authors,
    rename,
)
from espnet2_sslam.checkpoint.parts import Parts, encoder_sizes, float32
from espnet2_sslam.checkpoint.pickled import plain
from espnet2_sslam.units import AUDIOSET_MEAN, AUDIOSET_STD, SAMPLE_RATE

DECODER = "modality_encoders.IMAGE.decoder."
HEAD_WIDTH = 64  # channels per attention head in every released model
POOLINGS = {"CLS_TOKEN": "cls", "MEAN_POOLING": "mean", "LIN_SOFTMAX": "lin_softmax"}
# The authors' loader chooses the fbank mean and std by these flags of the task.
FBANK_BY_FLAG = {
    "esc50_eval": (-6.627, 5.359),
    "spcv2_eval": (-6.846, 5.565),
}
# Options of the authors' models that our encoder has built in.
BUILT_IN = {"layer_norm_first": False, "norm_eps": 1e-6, "norm_affine": True}
BUILT_IN_IMAGE = {
    "num_extra_tokens": 1,
    "prenet_depth": 0,
    "use_alibi_encoder": False,
    "in_chans": 1,
    "patch_size": 16,
    "fixed_positions": True,
}


def from_fairseq(checkpoint: Any, source: str) -> Parts:
    """Take apart what the authors' trainer wrote.

    Args:
        checkpoint: The unpickled file: a dict with `model`, or a bare state dict.
        source: What errors call the file.

    Raises:
        CheckpointError: Not an EAT or SSLAM model; all entries that are too many;
            an architecture that the encoder does not have.
    """
    if not isinstance(checkpoint, Mapping):
        raise CheckpointError(f"{source} holds a {type(checkpoint).__name__}, no model")
    state = checkpoint.get("model", checkpoint)
    state, teacher = _split_teacher(state, source)
    cfg = plain(checkpoint.get("cfg")) or {}
    if any(name.startswith("model.modality_encoders.") for name in state):
        inner = {k[6:]: v for k, v in state.items() if k.startswith("model.")}
        rest = {k: v for k, v in state.items() if not k.startswith("model.")}
        state = {**inner, **rest}
    decoder = {name: v for name, v in state.items() if name.startswith(DECODER)}
    state = {name: v for name, v in state.items() if name not in decoder}
    encoder, others = rename(state, ENCODER_NAMES)
    head, others = rename({name: state[name] for name in others}, HEAD_NAMES)
    _refuse(source, encoder, others)
    model_cfg, task_cfg = cfg.get("model") or {}, cfg.get("task") or {}
    base_cfg = (model_cfg.get("pretrained_model_args") or {}).get("model") or model_cfg
    _check_architecture(source, base_cfg)
    parts = Parts(float32(encoder), {}, float32(head) or None)
    if decoder:
        parts.decoder = float32(decoder_state_from_authors(decoder))
    if teacher is not None:
        parts.teacher, others = rename(float32(teacher), ENCODER_NAMES)
        _refuse(f"{source} (EMA)", parts.teacher, others)
    labels = (plain(checkpoint.get("task_state")) or {}).get("labels")
    parts.details = {**base_cfg, **task_cfg, **model_cfg}
    parts.config = _config(parts, base_cfg.get("num_heads"), _class_list(labels))
    return parts


def from_huggingface(state: State, config: Mapping[str, Any], source: str) -> Parts:
    """Take apart an export of the authors.

    Args:
        state: The tensors of its safetensors file.
        config: Its config.json, or an empty dict.
        source: What errors call it.

    Raises:
        CheckpointError: As in `from_fairseq`.
    """
    encoder, others = rename(state, HUGGINGFACE_NAMES)
    head, others = rename({k: state[k] for k in others}, HUGGINGFACE_HEAD_NAMES)
    _refuse(source, encoder, others)
    _check_architecture(source, config, {"in_chans": 1, "patch_size": 16})
    parts = Parts(float32(encoder), {}, float32(head) or None)
    labels = config.get("id2label")
    named = labels and any(not v.startswith("LABEL_") for v in labels.values())
    classes = [labels[key] for key in sorted(labels, key=int)] if named else None
    parts.config = _config(parts, config.get("num_heads"), classes)
    return parts


def _split_teacher(state: Any, source: str) -> tuple[State, State | None]:
    """The student's entries and the EMA's, which may be nested or flat."""
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{source} holds no state dict under `model`")
    own, teacher = {}, {}
    for name, value in state.items():
        if name == "_ema" and isinstance(value, Mapping):
            teacher.update(value)
        elif name.startswith("_ema."):
            teacher[name[5:]] = value
        else:
            own[name] = value
    for name, value in {**own, **teacher}.items():
        if not isinstance(value, torch.Tensor):
            raise CheckpointError(
                f"{source} is no model: {name} is a {type(value).__name__}, no tensor"
            )
    return own, teacher or None


def _refuse(source: str, encoder: State, others: list[str]) -> None:
    """Refuse entries that are too many; nothing known at all is another model."""
    if not encoder:
        shown = ", ".join(sorted(others)[:3]) or "nothing"
        raise CheckpointError(
            f"{source} is not an EAT or SSLAM model: it holds {shown}, ..."
        )
    if others:
        raise CheckpointError(
            f"{source} holds entries that no EAT or SSLAM model has: "
            f"{', '.join(sorted(others))}"
        )


def _check_architecture(
    source: str, cfg: Mapping[str, Any], image: dict[str, Any] | None = None
) -> None:
    """Refuse options that change the network in ways our encoder does not have."""
    pairs = [(cfg, BUILT_IN), (cfg, image or {})]
    modality = (cfg.get("modalities") or {}).get("image") or {}
    pairs.append((modality, BUILT_IN_IMAGE))
    wrong = [
        f"{name}: {given[name]} (not {value})"
        for given, built_in in pairs
        for name, value in built_in.items()
        if given.get(name) is not None and given[name] != value
    ]
    if wrong:
        raise CheckpointError(f"{source} has another architecture: {', '.join(wrong)}")


def _config(
    parts: Parts, num_heads: int | None, classes: list[str] | None
) -> dict[str, Any]:
    """What config.json will say; `num_heads` may still be unknown (None)."""
    sizes = encoder_sizes(parts.encoder)
    if num_heads is None and sizes["embed_dim"] % HEAD_WIDTH == 0:
        num_heads = sizes["embed_dim"] // HEAD_WIDTH
    mean, std = AUDIOSET_MEAN, AUDIOSET_STD
    for flag, values in FBANK_BY_FLAG.items():
        if parts.details.get(flag):
            mean, std = values
    config = {
        "model_type": "sslam",
        "architectures": ["SSLAMModel"],
        "format_version": 1,
        "encoder": {**sizes, "num_heads": num_heads, "target_frames": None},
        "fbank_mean": mean,
        "fbank_std": std,
        "sampling_rate": SAMPLE_RATE,
        "classifier": None,
    }
    if parts.head is not None:
        one = parts.details.get("esc50_eval") or parts.details.get("spcv2_eval")
        mode = str(parts.details.get("prediction_mode", "CLS_TOKEN")).split(".")[-1]
        config["architectures"] = ["SSLAMForAudioClassification"]
        config["classifier"] = {
            "classes": classes,
            "task": "multi_class" if one else "multi_label",
            "pooling": POOLINGS.get(mode, mode),
            "head_norm": "layer",
            "weighted_layers": False,
        }
    return config


def _class_list(labels: Any) -> list[str] | None:
    """Class names in the order of their numbers, from the task's {name: number}."""
    if not isinstance(labels, Mapping) or not labels:
        return None
    return [str(name) for name, _ in sorted(labels.items(), key=lambda x: int(x[1]))]
