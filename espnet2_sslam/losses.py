"""What is learned: the teacher's targets and the loss terms, as functions of tensors.

Shapes: B clips, N patches, D channels, R rows (clips x clones), M hidden patches.
Source: ta012/SSLAM@0a3c0ff, models/EAT_pretraining.py; data2vec 2.0, section 3.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

TARGET_EPS = 1e-5


def layer_target(ffn: Sequence[torch.Tensor], num_layers: int) -> torch.Tensor:
    """Patch target: the mean over the last layers of normalised teacher features.

    Each layer's feed-forward output is normalised per clip and channel over the
    patches (instance norm), averaged over layers, then layer-normalised per patch.

    Args:
        ffn: Feed-forward outputs of the teacher's blocks, each (B, N, D), without CLS.
        num_layers: How many of the last ones to average.

    Returns:
        (B, N, D), float32.
    """
    total: Any = 0.0
    for output in ffn[-num_layers:]:
        output = output.float()
        variance, centre = torch.var_mean(output, 1, correction=0, keepdim=True)
        total = total + (output - centre) * (variance + TARGET_EPS).rsqrt()
    target = total / num_layers
    return F.layer_norm(target, target.shape[-1:], eps=TARGET_EPS)


def utterance_target(patch_target: torch.Tensor) -> torch.Tensor:
    """Utterance target: the mean over a clip's patches, (B, N, D) -> (B, D)."""
    return patch_target.mean(1)


def retention_target(
    target: torch.Tensor, neighbour_target: torch.Tensor
) -> torch.Tensor:
    """Source retention target: the mean of both sources' targets, (B, N, D)."""
    return (target + neighbour_target) / 2


def row_targets(
    target: torch.Tensor, hidden: torch.Tensor, num_clones: int
) -> torch.Tensor:
    """Targets at each row's hidden patches, without copying whole clips.

    Args:
        target: (B, N, D).
        hidden: Hidden positions (R, M), R = B * num_clones, clip-major.

    Returns:
        (R, M, D).
    """
    num_patches = target.shape[1]
    row = torch.arange(len(hidden), device=hidden.device) // num_clones
    index = row[:, None] * num_patches + hidden
    return target.flatten(0, 1)[index]


def patch_loss(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean over the hidden patches of the squared error, scaled by 1/sqrt(D).

    Args:
        prediction: (R, M, D).
        target: (R, M, D).
    """
    error = (prediction.float() - target).square().sum()
    return error / (prediction[..., 0].numel() * prediction.shape[-1] ** 0.5)


def utterance_loss(
    prediction: torch.Tensor, target: torch.Tensor, num_clones: int, reduction: str
) -> torch.Tensor:
    """Squared error of the CLS predictions, scaled by 1/sqrt(D).

    Args:
        prediction: CLS tokens (R, D), R = B * num_clones, clip-major.
        target: (B, D).
        num_clones: Rows of one clip.
        reduction: "sum" over the rows, as the authors: the term's weight grows with
            the clips per process and the clones; or "mean".
    """
    rows, width = prediction.shape
    prediction = prediction.float().view(-1, num_clones, width)
    error = (prediction - target[:, None]).square().sum() / width**0.5
    return error / rows if reduction == "mean" else error


def spread(x: torch.Tensor) -> torch.Tensor:
    """Mean over channels of the standard deviation over rows (collapse alarm)."""
    x = x.detach().flatten(0, -2).float()
    return (x.var(0, correction=0) + 1e-6).sqrt().mean()


def classification_loss(
    logits: torch.Tensor, targets: torch.Tensor, loss: str, label_smoothing: float = 0.0
) -> torch.Tensor:
    """Loss summed over clips (and classes), in float32.

    Args:
        logits: (B, C).
        targets: (B, C), in 0..1; for cross-entropy the rows sum to 1.
        loss: "binary_cross_entropy", "cross_entropy", or "asymmetric": binary, and each
            absent class counts by its score (gamma 1 for negatives, 0 for positives).
        label_smoothing: Of cross-entropy.

    Source: cwx-worst-one/EAT@06c1c34, models/EAT_audio_classification.py, forward;
    asymmetric: Ridnik et al., ICCV 2021, with the exponents of BAT's probes
    (houtan-ghaffari/BAT_ICML2026@34632af, engine/trainer.py).
    """
    logits = logits.float()
    if loss == "binary_cross_entropy":
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
    if loss == "asymmetric":
        scores = logits.detach().sigmoid()
        error = scores + targets - 2 * scores * targets
        return F.binary_cross_entropy_with_logits(
            logits, targets, weight=error ** (1 - targets), reduction="sum"
        )
    return F.cross_entropy(
        logits, targets, label_smoothing=label_smoothing, reduction="sum"
    )


def loss_weight(targets: torch.Tensor, reduction: str) -> torch.Tensor:
    """What a summed loss is divided by: "positives", "clips" or "elements".

    Positives are counted after mixup, as the authors do; a batch without any divides
    by 1.
    """
    if reduction == "positives":
        return targets.sum().clamp(min=1.0)
    count = len(targets) if reduction == "clips" else targets.numel()
    return targets.new_full((), count)  # filled there: a copy would wait
