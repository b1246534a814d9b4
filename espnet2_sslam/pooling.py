"""Tokens of a clip -> one vector, for classification.

Shapes: B clips, N patches, D channels.
"""

from typing import List, Optional

import torch
import torch.nn.functional as F
from torch import nn

from espnet2_sslam.units import PATCHES_PER_STEP

POOLINGS = ("cls", "mean", "concat", "attentive", "lin_softmax")


class Pooling(nn.Module):
    """Tokens of one or of all layers -> one vector per clip; padding never counts.

    Args:
        kind: "cls": the CLS token; "mean": mean of the patches; "concat": their mean
            over time, frequency bands side by side (8 * D); "attentive": their mean
            weighted by a learnt softmax (a plain mean at first); "lin_softmax": per
            channel sum(p * p) / sum(p) of p = sigmoid(patch), as a logit.
        embed_dim: D.
        num_states: Layers that come in; more than one are summed with learnt softmax
            weights first (equal at first).

    Raises:
        ValueError: Another `kind`.

    Source: cwx-worst-one/EAT@06c1c34, models/EAT_audio_classification.py, forward
    (cls, mean, lin_softmax); the weighted sum is SUPERB's (s3prl, Featurizer).
    """

    def __init__(self, kind: str, embed_dim: int, num_states: int = 1):
        super().__init__()
        if kind not in POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}: {kind!r}")
        self.kind = kind
        self.output_size = embed_dim * (PATCHES_PER_STEP if kind == "concat" else 1)
        if num_states > 1:
            self.layer_weights = nn.Parameter(torch.zeros(num_states))
        if kind == "attentive":
            self.attention = nn.Linear(embed_dim, 1)
            nn.init.zeros_(self.attention.weight)
            nn.init.zeros_(self.attention.bias)

    def forward(
        self, states: List[torch.Tensor], real: Optional[torch.Tensor] = None
    ) -> torch.Tensor:
        """Pool to (B, output_size).

        Args:
            states: Tokens of each layer (B, 1+N, D), CLS first.
            real: True for the patches that are not padding (B, N); all by default.
        """
        x = states[0]
        if len(states) > 1:
            weights = self.layer_weights.softmax(0)
            x = sum(weight * state for weight, state in zip(weights, states))
        if self.kind == "cls":
            return x[:, 0]
        x = x[:, 1:]
        if real is None:
            real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        if self.kind == "lin_softmax":
            return _linear_softmax(x.float(), real).to(x.dtype)
        if self.kind == "concat":
            bands = x.unflatten(1, (-1, PATCHES_PER_STEP)).flatten(2)
            return _mean(bands, real[:, ::PATCHES_PER_STEP])
        if self.kind == "mean":
            return _mean(x, real)
        scores = self.attention(x)[..., 0]
        weights = scores.float().masked_fill(~real, float("-inf")).softmax(1)
        return (weights[..., None].to(x.dtype) * x).sum(1)


def _mean(x: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Mean over the real rows (B, N) of (B, N, D): (B, D)."""
    x = torch.where(real[..., None], x, 0.0)
    return x.sum(1) / real.sum(1, keepdim=True)


def _linear_softmax(x: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Logit of sum(p^2) / sum(p), p = sigmoid(x), over the real patches: (B, D)."""
    x = F.logsigmoid(x).masked_fill(~real[..., None], float("-inf"))
    x = torch.logsumexp(x + x, 1) - torch.logsumexp(x + 1e-6, 1)
    x = x.clamp(max=0)
    return torch.nan_to_num(x - torch.log(-torch.expm1(x)), 0.0, 0.0, 0.0)
