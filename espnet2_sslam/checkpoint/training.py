"""The weights of our own trainings (ESPnet's .pth files), taken apart."""

import logging
from collections.abc import Mapping
from typing import Any

from espnet2_sslam.checkpoint.errors import CheckpointError
from espnet2_sslam.checkpoint.folder import model_config
from espnet2_sslam.checkpoint.names import State
from espnet2_sslam.checkpoint.parts import FBANK_NAMES, Parts
from espnet2_sslam.classifier import classifier_from_config
from espnet2_sslam.encoder import SSLAMEncoder

PARTS = ("encoder.", "decoder.", "teacher.encoder.")
MARK = "encoder.patch_embed.proj.weight"
COUNTERS = ("num_updates", "num_batches")
# What training adds to an encoder and a stored model has no use for.
TRAINING_ONLY = "drop_path freeze input_size override_fbank_stats pretrained".split()
DECODER_MARK = "convs.0.weight"  # ConvDecoder's, not the decoder of an ASR model


def is_training_state(content: Any) -> bool:
    """Whether this is the state dict of one of our models."""
    return isinstance(content, Mapping) and MARK in content


def from_training(state: State, config: Any, source: str) -> Parts:
    """Take apart a pre-training model or a classifier; of other tasks, the encoder.

    Args:
        state: Content of <N>epoch.pth, latest.pth, ...
        config: Content of the training's config.yaml.
        source: What errors call the file.

    Raises:
        CheckpointError: config.yaml is not that of one of our trainings.
    """
    if not isinstance(config, dict) or not isinstance(config.get("encoder_conf"), dict):
        raise CheckpointError(f"the config.yaml beside {source} is of another task")
    below = {prefix: _below(state, prefix) for prefix in PARTS}
    encoder = below["encoder."]
    mean, std = (float(encoder.pop(name)) for name in FBANK_NAMES)
    teacher = {k: v for k, v in below["teacher.encoder."].items() if "log_mel" not in k}
    parts = Parts(
        encoder,
        _config(config, mean, std),
        decoder=below["decoder."] if DECODER_MARK in below["decoder."] else None,
        teacher=teacher or None,
    )
    rest = {k: v for k, v in state.items() if not k.startswith(PARTS)}
    head = {k: v for k, v in rest.items() if k not in COUNTERS}
    if parts.config["classifier"] is not None:
        parts.head = head
    elif head:
        logging.info("%s: only the encoder is taken", source)
    return parts


def _below(state: State, prefix: str) -> State:
    """Entries below a prefix, without it."""
    return {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}


def _config(config: dict[str, Any], mean: float, std: float) -> dict[str, Any]:
    """What config.json will say: the training's options, the checkpoint's fbank."""
    options = {
        k: v for k, v in config["encoder_conf"].items() if k not in TRAINING_ONLY
    }
    options.update(fbank_mean=mean, fbank_std=std)
    if isinstance(config.get("class_list"), list):
        wanted = {**config, "encoder_conf": options, "input_size": 1}
        wanted["augment_conf"] = {}
        wanted["model_conf"] = _inference_options(config.get("model_conf") or {})
        return model_config(classifier_from_config({"seed": 0, **wanted}))
    return model_config(SSLAMEncoder(**options))


def _inference_options(model_conf: dict[str, Any]) -> dict[str, Any]:
    """Options of the classifier that change what it computes in evaluation."""
    kept = ("task", "pooling", "head_norm", "weighted_layers")
    return {name: model_conf[name] for name in kept if name in model_conf}
