"""The authors' checkpoints and ours, both ways: names, sizes, configuration.

Two layouts are known: "fairseq", what the authors' trainer writes (.pt), and
"huggingface", their exports (safetensors). Our names are those of `SSLAMEncoder`,
`ConvDecoder` and `SSLAMClassifier`.

Source: key lists of checkpoints written by the trainer of ta012/SSLAM@0a3c0ff (fairseq;
it keeps the layout of cwx-worst-one/EAT@06c1c34), and the configuration that its loader
rebuilds the network from; the exports' layout as their public loaders read it.
"""

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from espnet2_sslam.checkpoint.files import (
    CheckpointError,
    Parts,
    State,
    plain,
    with_fbank,
)
from espnet2_sslam.units import (
    AUDIOSET_MEAN,
    AUDIOSET_STD,
    PATCH_SIZE,
    PATCHES_PER_STEP,
)

# authors' prefix -> ours; a trailing dot stands for everything below
ENCODER_NAMES = {
    "modality_encoders.IMAGE.extra_tokens": "cls_token",
    "modality_encoders.IMAGE.local_encoder.proj.": "patch_embed.proj.",
    "modality_encoders.IMAGE.fixed_positional_encoder.positions": "positions",
    "modality_encoders.IMAGE.context_encoder.norm.": "norm.",
    "blocks.": "blocks.",
}
DECODER_NAMES = {
    "modality_encoders.IMAGE.decoder.blocks.": "convs.",
    "modality_encoders.IMAGE.decoder.proj.": "proj.",
}
HEAD_NAMES = {"fc_norm.": "fc_norm.", "head.": "head."}
HUGGINGFACE_NAMES = {
    "model.extra_tokens": "cls_token",
    "model.local_encoder.proj.": "patch_embed.proj.",
    "model.fixed_positional_encoder.positions": "positions",
    "model.pre_norm.": "norm.",
    "model.blocks.": "blocks.",
}
HUGGINGFACE_HEAD_NAMES = {"model.fc_norm.": "fc_norm.", "model.head.": "head."}

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
    "patch_size": PATCH_SIZE,
    "fixed_positions": True,
}
# What else the authors' trainer writes and their loader reads; sizes are filled in.
CFG_FILE = Path(__file__).with_name("fairseq.yaml")


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
    state, teacher = _split_teacher(checkpoint.get("model", checkpoint), source)
    if any(name.startswith("model.modality_encoders.") for name in state):
        # fine-tuned: the pre-trained network is one level down, the head is not
        state = {name.removeprefix("model."): value for name, value in state.items()}
    decoder, others = rename(state, {DECODER: DECODER})
    encoder, others = rename({name: state[name] for name in others}, ENCODER_NAMES)
    head, others = rename({name: state[name] for name in others}, HEAD_NAMES)
    _refuse(source, encoder, others)
    cfg = plain(checkpoint.get("cfg")) or {}
    model_cfg, task_cfg = cfg.get("model") or {}, cfg.get("task") or {}
    base_cfg = (model_cfg.get("pretrained_model_args") or {}).get("model") or model_cfg
    _check_architecture(source, base_cfg)
    if teacher is not None:
        teacher, others = rename(teacher, ENCODER_NAMES)
        _refuse(f"{source} (EMA)", teacher, others)
    labels = (plain(checkpoint.get("task_state")) or {}).get("labels")
    classes = None
    if isinstance(labels, Mapping) and labels:  # {name: number}
        classes = sorted(map(str, labels), key=lambda name: int(labels[name]))
    return _parts(
        encoder,
        head,
        {**base_cfg, **task_cfg, **model_cfg},
        base_cfg.get("num_heads"),
        classes,
        decoder=float32(decoder_state_from_authors(decoder)) if decoder else None,
        teacher=teacher,
    )


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
    _check_architecture(source, config, {"in_chans": 1, "patch_size": PATCH_SIZE})
    labels = config.get("id2label")
    named = labels and any(not v.startswith("LABEL_") for v in labels.values())
    classes = None
    if labels and named:
        classes = [labels[key] for key in sorted(labels, key=int)]
    return _parts(encoder, head, {}, config.get("num_heads"), classes)


def to_fairseq(parts: Parts) -> dict[str, Any]:
    """The content of a .pt file that the authors' code loads.

    Tensors are the same objects as in `parts`. A classifier becomes their fine-tuned
    layout; an encoder their pre-training layout, with decoder and EMA where they are.

    Raises:
        CheckpointError: A head that their classifier does not have.
    """
    student = rename(parts.encoder, reverse(ENCODER_NAMES))[0]
    stored = yaml.safe_load(CFG_FILE.read_text(encoding="utf-8"))
    base = {
        "model": _model_cfg(parts, stored),
        "task": {**stored["task"], "_name": "mae_image_pretraining"},
    }
    cfg, task_state = base, {}
    if parts.head is None:
        state: OrderedDict[str, Any] = OrderedDict(student)
        if parts.decoder is not None:
            state.update(decoder_state_to_authors(parts.decoder))
        if parts.teacher is not None:
            state["_ema"] = rename(parts.teacher, reverse(ENCODER_NAMES))[0]
    else:
        state = OrderedDict((f"model.{k}", v) for k, v in student.items())
        state.update(_head(parts, HEAD_NAMES))
        cfg = _classifier_cfg(parts, base)
        classes = _options(parts)["classes"]
        task_state = {"labels": {name: str(i) for i, name in enumerate(classes)}}
    return {
        "args": None,
        "cfg": cfg,
        "model": state,
        "criterion": None,
        "optimizer_history": [],
        "task_state": task_state,
        "extra_state": {},
        "last_optimizer_state": None,
    }


def to_huggingface(parts: Parts) -> tuple[State, dict[str, Any]]:
    """The tensors and the config.json of the authors' exports.

    Raises:
        CheckpointError: As in `to_fairseq`.
    """
    state = rename(parts.encoder, reverse(HUGGINGFACE_NAMES))[0]
    sizes = parts.sizes
    config = {
        "model_type": "eat",
        "model_variant": "pretrain" if parts.head is None else "finetune",
        "embed_dim": sizes["embed_dim"],
        "depth": sizes["depth"],
        "num_heads": sizes["num_heads"],
        "mlp_ratio": sizes["mlp_ratio"],
        "max_length": sizes["max_frames"] // PATCH_SIZE,
        "patch_size": PATCH_SIZE,
        "stride": PATCH_SIZE,
        "in_chans": 1,
        "mel_bins": 128,
        "img_size": [1024, 128],
        "norm_eps": 1e-6,
        "layer_norm_first": False,
        "fixed_positions": True,
    }
    if parts.head is not None:
        state.update(_head(parts, HUGGINGFACE_HEAD_NAMES))
        classes = _options(parts)["classes"]
        config["num_classes"] = len(classes)
        config["id2label"] = {str(i): name for i, name in enumerate(classes)}
    return state, config


def rename(state: State, names: dict[str, str]) -> tuple[State, list[str]]:
    """Rename the entries whose names begin as in `names`.

    Returns:
        The renamed entries, and the names of the others.
    """
    renamed, others = {}, []
    for name, value in state.items():
        for prefix in names:
            if name == prefix or (prefix.endswith(".") and name.startswith(prefix)):
                renamed[names[prefix] + name[len(prefix) :]] = value
                break
        else:
            others.append(name)
    return renamed, others


def reverse(names: dict[str, str]) -> dict[str, str]:
    """The same table from our names to the authors'."""
    return {ours: theirs for theirs, ours in names.items()}


def encoder_state_from_authors(state: State) -> State:
    """The encoder's entries of a fairseq state dict under our names.

    Args:
        state: Entries in the authors' names; those of the decoder are left out.

    Returns:
        A state dict for `SSLAMEncoder` (without the fbank mean and std).

    Raises:
        ValueError: An entry that is neither the encoder's nor the decoder's.
    """
    return _part(state, ENCODER_NAMES, DECODER_NAMES)


def decoder_state_from_authors(state: State) -> State:
    """The decoder's entries of a fairseq state dict under our names."""
    renamed = _part(state, DECODER_NAMES, ENCODER_NAMES)
    # a block of theirs is a sequence, whose first entry is the convolution
    return {name.replace(".0.", "."): value for name, value in renamed.items()}


def decoder_state_to_authors(state: State) -> State:
    """Our decoder's entries under the authors' names."""
    renamed = {}
    for name, value in state.items():
        if name.startswith("convs."):
            _, index, rest = name.split(".")
            name = f"convs.{index}.0.{rest}"
        renamed[name] = value
    return rename(renamed, reverse(DECODER_NAMES))[0]


def float32(state: Mapping[str, torch.Tensor]) -> State:
    """The tensors in float32, from whatever type they were stored in."""
    return {
        name: value.float() if value.is_floating_point() else value
        for name, value in state.items()
    }


def _part(state: State, names: dict[str, str], other_names: dict[str, str]) -> State:
    """Entries of one part, renamed; those of neither part are an error."""
    renamed, others = rename(state, names)
    _, unknown = rename({name: state[name] for name in others}, other_names)
    if unknown:
        raise ValueError(f"not entries of an EAT or SSLAM model: {', '.join(unknown)}")
    return renamed


def _parts(
    encoder: State,
    head: State,
    details: Mapping[str, Any],
    num_heads: int | None,
    classes: list[str] | None,
    *,
    decoder: State | None = None,
    teacher: State | None = None,
) -> Parts:
    """Put renamed states together with what shapes and configuration say of them.

    Args:
        details: Options of the authors' configuration, by name.
        num_heads: None: as in every released model of this width, or unknown.
    """
    sizes = _sizes(encoder)
    if num_heads is None and sizes["embed_dim"] % HEAD_WIDTH == 0:
        num_heads = sizes["embed_dim"] // HEAD_WIDTH
    fbank = AUDIOSET_MEAN, AUDIOSET_STD
    for flag, values in FBANK_BY_FLAG.items():
        if details.get(flag):
            fbank = values
    options = None
    if head:
        one_label = details.get("esc50_eval") or details.get("spcv2_eval")
        mode = str(details.get("prediction_mode", "CLS_TOKEN")).split(".")[-1]
        options = {
            "classes": classes,
            "task": "multi_class" if one_label else "multi_label",
            "pooling": POOLINGS.get(mode, mode),
            "head_norm": "layer",
            "weighted_layers": False,
        }
    return Parts(
        with_fbank(float32(encoder), fbank),
        {**sizes, "num_heads": num_heads, "target_frames": None},
        float32(head) or None,
        options,
        decoder=decoder,
        teacher=with_fbank(float32(teacher), fbank) if teacher else None,
    )


def _sizes(encoder: State) -> dict[str, Any]:
    """Sizes that the shapes of an encoder's state tell (all but the heads).

    Raises:
        CheckpointError: The entries that would tell are missing.
    """
    needed = ("patch_embed.proj.weight", "positions", "blocks.0.mlp.fc1.weight")
    missing = [name for name in needed if name not in encoder]
    if missing:
        raise CheckpointError(f"not an SSLAM encoder: it lacks {', '.join(missing)}")
    width = len(encoder["patch_embed.proj.weight"])
    blocks = {name.split(".")[1] for name in encoder if name.startswith("blocks.")}
    return {
        "embed_dim": width,
        "depth": len(blocks),
        "mlp_ratio": len(encoder["blocks.0.mlp.fc1.weight"]) / width,
        "max_frames": encoder["positions"].shape[1] // PATCHES_PER_STEP * PATCH_SIZE,
    }


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
    modality = (cfg.get("modalities") or {}).get("image") or {}
    pairs = [(cfg, {**BUILT_IN, **(image or {})}), (modality, BUILT_IN_IMAGE)]
    wrong = [
        f"{name}: {section[name]} (not {value})"
        for section, built_in in pairs
        for name, value in built_in.items()
        if section.get(name) is not None and section[name] != value
    ]
    if wrong:
        raise CheckpointError(f"{source} has another architecture: {', '.join(wrong)}")


def _options(parts: Parts) -> dict[str, Any]:
    """Options of a head."""
    assert parts.head_options is not None, "a head has options"
    return parts.head_options


def _head(parts: Parts, names: dict[str, str]) -> State:
    """fc_norm and head under the authors' names; refuses what they do not have."""
    options = _options(parts)
    renamed, others = rename(parts.head or {}, reverse(names))
    plain_head = (
        options["pooling"] in POOLINGS.values()
        and options["head_norm"] == "layer"
        and not options["weighted_layers"]
    )
    if others or not plain_head:
        raise CheckpointError(
            "the authors' classifier has pooling cls, mean or lin_softmax of the last "
            f"layer and a layer norm; this one has pooling {options['pooling']}, "
            f"{options['head_norm']} norm, weighted_layers {options['weighted_layers']}"
        )
    return renamed


def _model_cfg(parts: Parts, stored: dict[str, Any]) -> dict[str, Any]:
    """Their section `model` of pre-training."""
    sizes = parts.sizes
    layers, channels, groups, kernel = 6, sizes["embed_dim"], 16, 3  # the paper's
    if parts.decoder is not None:
        first = parts.decoder["convs.0.weight"]
        layers = len([name for name in parts.decoder if name.endswith("weight")]) - 1
        channels, kernel = len(first), first.shape[-1]
        groups = sizes["embed_dim"] // first.shape[1]
    decoder = {
        "decoder_dim": channels,
        "decoder_groups": groups,
        "decoder_kernel": kernel,
        "decoder_layers": layers,
    }
    image = {
        **stored["image"],
        "embed_dim": sizes["embed_dim"],
        "model_depth": sizes["depth"],
        "num_alibi_heads": sizes["num_heads"],
        "max_length": sizes["max_frames"] // PATCH_SIZE,
        "decoder": {**stored["decoder"], **decoder},
    }
    return {
        **stored["model"],
        "embed_dim": sizes["embed_dim"],
        "depth": sizes["depth"],
        "num_heads": sizes["num_heads"],
        "mlp_ratio": sizes["mlp_ratio"],
        "average_top_k_layers": sizes["depth"],
        "modalities": {"_name": None, "image": image},
    }


def _classifier_cfg(parts: Parts, base: dict[str, Any]) -> dict[str, Any]:
    """Their configuration of fine-tuning, with that of pre-training inside."""
    options = _options(parts)
    flags = {flag: parts.fbank == values for flag, values in FBANK_BY_FLAG.items()}
    frames = parts.sizes["target_frames"] or 1024
    return {
        "model": {
            "_name": "mae_image_classification",
            "model_path": "",
            "no_pretrained_weights": False,
            "linear_classifier": False,
            "num_classes": len(options["classes"]),
            "use_fc_norm": True,
            "prediction_mode": reverse(POOLINGS)[options["pooling"]],
            "audio_mae": True,
            "drop_path_rate": 0.1,
            "layer_decay": 0.65,
            "target_length": frames,
            "pretrained_model_args": base,
            **flags,
        },
        "task": {
            **base["task"],
            "_name": "mae_image_classification",
            "target_length": frames,
            "labels": "lbl",
            **flags,
        },
    }
