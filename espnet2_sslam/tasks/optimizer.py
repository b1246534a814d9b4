"""Parameter groups: weight decay and layer-wise learning rates."""

import re
from collections.abc import Iterator

import torch

LAYER_DECAY_STYLES = ("standard", "authors")


def parameter_groups(
    model: torch.nn.Module,
    lr: float,
    weight_decay: float,
    *,
    layer_decay: float = 1.0,
    layer_decay_style: str = "standard",
    decay_bias_and_norm: bool = False,
) -> list[dict]:
    """Split the trainable parameters into groups of equal lr and weight decay.

    With L blocks in `model.encoder.blocks`, block i learns at
    lr * layer_decay ** (L - i). What is left of the encoder (patch embedding, CLS,
    norm) counts as the layer below block 0 in style "standard" (layer_decay ** (L + 1),
    as BEiT and MAE do) and keeps the full lr in style "authors" (ta012/SSLAM@0a3c0ff,
    measured: only the blocks are scaled). Everything outside the encoder keeps lr.

    Args:
        model: parameters without gradient (teacher, frozen encoder) are left out.
        lr: learning rate of the top layer.
        weight_decay: weight decay of matrices and convolutions.
        layer_decay: lr ratio of neighbouring layers; 1.0 switches it off.
        layer_decay_style: "standard" or "authors".
        decay_bias_and_norm: also decay biases, norms and the CLS token. The authors'
            code does (its exclusion is never applied).

    Returns:
        Groups with the keys params, lr, weight_decay; each parameter is in one group.

    Raises:
        ValueError: for an unknown style, a decay outside (0, 1], a layer decay on a
            model without blocks, or nothing to train.
    """
    if layer_decay_style not in LAYER_DECAY_STYLES:
        raise ValueError(
            f"layer_decay_style must be one of {', '.join(LAYER_DECAY_STYLES)}, "
            f"got {layer_decay_style}"
        )
    if not 0.0 < layer_decay <= 1.0:
        raise ValueError(f"layer_decay must lie in (0, 1], got {layer_decay}")
    num_blocks = len(getattr(getattr(model, "encoder", None), "blocks", ()))
    if layer_decay != 1.0 and num_blocks == 0:
        raise ValueError("layer_decay needs a model with encoder.blocks; set it to 1.0")

    groups: dict[tuple[float, float], dict] = {}
    for name, parameter in _trainable(model):
        scale = _layer_scale(name, num_blocks, layer_decay, layer_decay_style)
        plain = decay_bias_and_norm or not _is_bias_or_norm(name, parameter)
        decay = weight_decay if plain else 0.0
        empty = {"params": [], "lr": lr * scale, "weight_decay": decay}
        groups.setdefault((scale, decay), empty)["params"].append(parameter)
    if not groups:
        raise ValueError(
            "the model has no trainable parameter: check --freeze_param and the "
            "freeze options of model_conf and encoder_conf"
        )
    return list(groups.values())


def _trainable(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Yield the parameters that get a gradient, shared ones once."""
    return ((n, p) for n, p in model.named_parameters() if p.requires_grad)


def _is_bias_or_norm(name: str, parameter: torch.nn.Parameter) -> bool:
    """Tell vectors (biases, norms) and the CLS token from weight matrices."""
    return parameter.ndim <= 1 or name.endswith("cls_token")


def _layer_scale(name: str, num_blocks: int, decay: float, style: str) -> float:
    """Return the lr factor of a parameter from its place in the encoder."""
    block = re.match(r"encoder\.blocks\.(\d+)\.", name)
    if block:
        return decay ** (num_blocks - int(block.group(1)))
    if name.startswith("encoder.") and style == "standard":
        return decay ** (num_blocks + 1)
    return 1.0
