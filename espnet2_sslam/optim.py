"""What the optimizer does: weight decay and learning rate of each parameter, by update.

`parameter_groups` fixes the peak rate of each group, `WarmupCosine` its course.
"""

import logging
import math
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from espnet2_sslam.config import check_choice

CURVE = ("warmup_steps", "total_steps", "min_lr", "scale_min_lr")  # of WarmupCosine


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
        decay_bias_and_norm: also decay biases, norms, the CLS token and prototypes. The
            authors' code does (its exclusion is never applied).

    Returns:
        Groups with the keys params, lr, weight_decay; each parameter is in one group.

    Raises:
        ValueError: for an unknown style, a decay outside (0, 1], a layer decay on a
            model without blocks, or nothing to train.
    """
    check_choice("layer_decay_style", layer_decay_style, ("standard", "authors"))
    if not 0.0 < layer_decay <= 1.0:
        raise ValueError(f"layer_decay must lie in (0, 1], got {layer_decay}")
    blocks: Any = getattr(getattr(model, "encoder", None), "blocks", ())
    num_blocks = len(blocks)
    if layer_decay != 1.0 and num_blocks == 0:
        raise ValueError("layer_decay needs a model with encoder.blocks; set it to 1.0")

    depths: dict[int, int] = {}  # what blocks share (BEATs) belongs to the lowest
    for index, block in enumerate(blocks):
        for parameter in block.parameters():
            depths.setdefault(id(parameter), num_blocks - index)
    groups: dict[tuple[float, float], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        depth = depths.get(id(parameter), 0)  # layers above this one
        if not depth and name.startswith("encoder.") and layer_decay_style != "authors":
            depth = num_blocks + 1
        scale = layer_decay**depth
        is_vector = parameter.ndim <= 1 or name.endswith(("cls_token", "prototypes"))
        decay = 0.0 if is_vector and not decay_bias_and_norm else weight_decay
        group = {"params": [], "lr": lr * scale, "weight_decay": decay}
        groups.setdefault((scale, decay), group)["params"].append(parameter)
    if not groups:
        raise ValueError(
            "the model has no trainable parameter: check --freeze_param and the "
            "freeze options of model_conf and encoder_conf"
        )
    return list(groups.values())


def warmup_updates(warmup_steps: float, total_steps: int) -> int:
    """Updates of warm-up, which may be given as a share of all, above 0 and below 1.

    Raises:
        ValueError: neither a share nor a whole number.
    """
    if 0 < warmup_steps < 1:
        return round(warmup_steps * total_steps)
    if warmup_steps != int(warmup_steps):
        raise ValueError(
            f"warmup_steps must be a whole number of updates, or a share of all below "
            f"1, got {warmup_steps}"
        )
    return int(warmup_steps)


class WarmupCosine(LRScheduler):
    """Warm up linearly to each group's own peak, then follow a cosine to `min_lr`.

    Update n uses `min + n * (peak - min) / warmup_steps` while n < warmup_steps, then
    `min + (peak - min) * (1 + cos(pi * (n - warmup_steps) / (total_steps -
    warmup_steps))) / 2`, and `min` from total_steps on. The peak of a group is its lr
    in the optimizer, so layer-wise learning rates keep their ratios.

    Source: fairseq's CosineLRScheduler as the authors use it (ta012/SSLAM@0a3c0ff),
    without its restart at total_steps.

    Args:
        optimizer: its groups' `lr` are the peaks, its default `lr` the reference.
        warmup_steps: updates of linear warm-up, or below 1 their share of total_steps;
            0 starts at the peak.
        total_steps: updates of the whole training. None is filled in by the task from
            max_epoch, the iterations per epoch and accum_grad.
        min_lr: where warm-up starts and the cosine ends.
        scale_min_lr: True scales `min_lr` of a group by its peak / the optimizer's lr.
            False is the authors' way: the same `min_lr` for all, and a group whose
            peak lies below it stays at its peak for the whole training.
        last_epoch: number of updates done before, as in every torch scheduler.

    Raises:
        ValueError: for negative steps or rates, steps that are neither whole nor a
            share, or no update after the warm-up.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup_steps: float = 0,
        total_steps: int | None = None,
        min_lr: float = 0.0,
        scale_min_lr: bool = True,
        last_epoch: int = -1,
    ):
        if total_steps is None:
            raise ValueError(
                "scheduler_conf total_steps is needed: give the number of updates, "
                "or train through a task of espnet2_sslam, which fills it in"
            )
        warmup_steps = warmup_updates(warmup_steps, total_steps)
        if not 0 <= warmup_steps < total_steps:
            raise ValueError(
                f"warmup_steps must be 0 or more and below total_steps, but "
                f"warmup_steps is {warmup_steps} and total_steps is {total_steps}: "
                "lower warmup_steps or train longer"
            )
        if min_lr < 0.0 or optimizer.defaults["lr"] <= 0.0:
            raise ValueError(
                f"min_lr must be 0 or more and optim_conf lr above 0, got {min_lr} and "
                f"{optimizer.defaults['lr']}"
            )
        self.warmup_steps = warmup_steps
        self.total_steps = total_steps
        self.min_lr = min_lr
        self.scale_min_lr = scale_min_lr
        self.reference_lr = optimizer.defaults["lr"]
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """Return the learning rate of every group for the next update."""
        return [self._lr_at(self.last_epoch, float(peak)) for peak in self.base_lrs]

    def load_state_dict(self, state_dict: dict) -> None:
        """Continue where the state was saved.

        Raises:
            ValueError: if the state follows another curve than this scheduler.
        """
        for name in CURVE:
            if state_dict[name] != getattr(self, name):
                raise ValueError(
                    f"the checkpoint was trained with scheduler_conf {name} "
                    f"{state_dict[name]}, this run has {getattr(self, name)}: resume "
                    "with the same settings, or train into a new --output_dir"
                )
        super().load_state_dict(state_dict)

    def follow(self, state_dict: dict) -> None:
        """Continue at the update of a state on this scheduler's own curve."""
        own = {name: getattr(self, name) for name in CURVE}
        if any(state_dict[name] != value for name, value in own.items()):
            logging.warning(
                f"the learning rate follows another curve from update "
                f"{state_dict['last_epoch']} on: that of {self.total_steps} updates, "
                f"not {state_dict['total_steps']}"
            )
        super().load_state_dict({**state_dict, **own})
        rates = self.get_lr()
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self._last_lr = [*rates]

    def _lr_at(self, update: int, peak: float) -> float:
        """Return the learning rate at one update of the group with this peak."""
        low = self.min_lr
        if self.scale_min_lr:
            low = low * peak / self.reference_lr
        low = min(low, peak)
        if update < self.warmup_steps:
            return low + update * (peak - low) / self.warmup_steps
        progress = (update - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        if progress >= 1.0:
            return low
        return low + 0.5 * (peak - low) * (1.0 + math.cos(math.pi * progress))
