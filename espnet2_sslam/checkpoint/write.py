"""Parts of a model back into the layouts of others: fairseq, exports, trainings.

Source: the configuration that the trainer of ta012/SSLAM@0a3c0ff writes; its loader
rebuilds the network from the sections `model` and `task`.
"""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import yaml

from espnet2_sslam.checkpoint.authors import FBANK_BY_FLAG, POOLINGS
from espnet2_sslam.checkpoint.errors import CheckpointError
from espnet2_sslam.checkpoint.folder import join_state
from espnet2_sslam.checkpoint.names import (
    ENCODER_NAMES,
    HEAD_NAMES,
    HUGGINGFACE_HEAD_NAMES,
    HUGGINGFACE_NAMES,
    State,
    decoder_state_to_authors,
    rename,
    reverse,
)
from espnet2_sslam.checkpoint.parts import Parts

CFG_FILE = Path(__file__).with_name("fairseq.yaml")


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
        state = OrderedDict(student)
        if parts.decoder is not None:
            state.update(decoder_state_to_authors(parts.decoder))
        if parts.teacher is not None:
            state["_ema"] = rename(parts.teacher, reverse(ENCODER_NAMES))[0]
    else:
        state = OrderedDict((f"model.{k}", v) for k, v in student.items())
        state.update(_head(parts, HEAD_NAMES))
        cfg = _classifier_cfg(parts, base)
        classes = parts.config["classifier"]["classes"]
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
    sizes = parts.config["encoder"]
    config = {
        "model_type": "eat",
        "model_variant": "pretrain" if parts.head is None else "finetune",
        "embed_dim": sizes["embed_dim"],
        "depth": sizes["depth"],
        "num_heads": sizes["num_heads"],
        "mlp_ratio": sizes["mlp_ratio"],
        "max_length": sizes["max_frames"] // 16,
        "patch_size": 16,
        "stride": 16,
        "in_chans": 1,
        "mel_bins": 128,
        "img_size": [1024, 128],
        "norm_eps": 1e-6,
        "layer_norm_first": False,
        "fixed_positions": True,
    }
    if parts.head is not None:
        state.update(_head(parts, HUGGINGFACE_HEAD_NAMES))
        classes = parts.config["classifier"]["classes"]
        config["num_classes"] = len(classes)
        config["id2label"] = {str(i): name for i, name in enumerate(classes)}
    return state, config


def to_training(parts: Parts) -> State:
    """A state dict for `--init_param` of our trainings.

    Pre-training: `encoder`, and `decoder` and `teacher.encoder` where they are;
    fine-tuning: `encoder` and the head.
    """
    fbank = parts.config["fbank_mean"], parts.config["fbank_std"]
    state = join_state(parts.encoder, fbank, parts.head)
    for name, value in (parts.decoder or {}).items():
        state[f"decoder.{name}"] = value
    if parts.teacher is not None:
        teacher = join_state(parts.teacher, fbank, None)
        state.update({f"teacher.{name}": value for name, value in teacher.items()})
    return state


def _head(parts: Parts, names: dict[str, str]) -> State:
    """fc_norm and head under the authors' names; refuses what they do not have."""
    classifier = parts.config["classifier"]
    renamed, others = rename(parts.head, reverse(names))
    plain_head = (
        classifier["pooling"] in POOLINGS.values()
        and classifier["head_norm"] == "layer"
        and not classifier["weighted_layers"]
    )
    if others or not plain_head:
        raise CheckpointError(
            "the authors' classifier has pooling cls, mean or lin_softmax of the last "
            f"layer and a layer norm; this one has pooling {classifier['pooling']}, "
            f"{classifier['head_norm']} norm, weighted_layers "
            f"{classifier['weighted_layers']}"
        )
    return renamed


def _model_cfg(parts: Parts, stored: dict[str, Any]) -> dict[str, Any]:
    """Their section `model` of pre-training."""
    sizes = parts.config["encoder"]
    image = {
        **stored["image"],
        "embed_dim": sizes["embed_dim"],
        "model_depth": sizes["depth"],
        "num_alibi_heads": sizes["num_heads"],
        "max_length": sizes["max_frames"] // 16,
        "decoder": {
            **stored["decoder"],
            **_decoder_sizes(parts.decoder, sizes["embed_dim"]),
        },
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


def _decoder_sizes(decoder: State | None, width: int) -> dict[str, int]:
    """Sizes of a decoder from its shapes; the paper's where there is none."""
    if decoder is None:
        layers, channels, groups, kernel = 6, width, 16, 3
    else:
        first = decoder["convs.0.weight"]
        layers = len([name for name in decoder if name.endswith("weight")]) - 1
        channels, kernel = len(first), first.shape[-1]
        groups = width // first.shape[1]
    return {
        "decoder_dim": channels,
        "decoder_groups": groups,
        "decoder_kernel": kernel,
        "decoder_layers": layers,
    }


def _classifier_cfg(parts: Parts, base: dict[str, Any]) -> dict[str, Any]:
    """Their configuration of fine-tuning, with that of pre-training inside."""
    classifier = parts.config["classifier"]
    fbank = parts.config["fbank_mean"], parts.config["fbank_std"]
    flags = {flag: fbank == values for flag, values in FBANK_BY_FLAG.items()}
    mode = {ours: theirs for theirs, ours in POOLINGS.items()}[classifier["pooling"]]
    frames = parts.config["encoder"]["target_frames"] or 1024
    return {
        "model": {
            "_name": "mae_image_classification",
            "model_path": "",
            "no_pretrained_weights": False,
            "linear_classifier": False,
            "num_classes": len(classifier["classes"]),
            "use_fc_norm": True,
            "prediction_mode": mode,
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
