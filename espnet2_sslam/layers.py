"""The pieces of the transformer: patches, positions, attention, block.

Shapes: B clips, T frames, N patches, L tokens, D channels.
"""

import torch
import torch.nn.functional as F
from torch import nn

from espnet2_sslam.units import PATCH_SIZE, PATCHES_PER_STEP


class PatchEmbedding(nn.Module):
    """Project patches of 16 frames x 16 mel bins to tokens.

    (B, T, 128) with T a multiple of 16 -> (B, N, D), index = time * 8 + frequency.
    """

    def __init__(self, embed_dim: int):
        super().__init__()
        self.proj = nn.Conv2d(1, embed_dim, PATCH_SIZE, stride=PATCH_SIZE)

    def forward(self, fbank: torch.Tensor) -> torch.Tensor:
        return self.proj(fbank[:, None]).flatten(2).transpose(1, 2)


def sincos_positions(embed_dim: int, num_steps: int) -> torch.Tensor:
    """Fixed 2-D sine-cosine positions (1, num_steps * 8, D).

    The first half of the channels encodes frequency, the second time, each as
    [sin | cos] with wavelengths from 2*pi to 10000 * 2*pi patches.

    Raises:
        ValueError: `embed_dim` is not a multiple of 4.

    Source: cwx-worst-one/EAT@06c1c34, models/images.py (fairseq's get_2d_sincos).
    """
    if embed_dim % 4:
        raise ValueError(f"embed_dim must be a multiple of 4, got {embed_dim}")
    quarter = embed_dim // 4
    omega = 10_000.0 ** -(torch.arange(quarter, dtype=torch.float64) / quarter)
    time = torch.arange(num_steps).repeat_interleave(PATCHES_PER_STEP)
    frequency = torch.arange(PATCHES_PER_STEP).repeat(num_steps)
    angles = [place[:, None] * omega for place in (frequency, time)]
    parts = [wave(angle) for angle in angles for wave in (torch.sin, torch.cos)]
    return torch.cat(parts, 1).float()[None]


def drop_path(
    x: torch.Tensor, rate: float, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Zero the whole residual branch of some clips and scale up the others.

    Args:
        x: Residual branch (B, L, D).
        rate: Probability that a clip's branch is dropped.
        generator: Source of randomness on x's device.
    """
    keep = torch.rand(len(x), 1, 1, generator=generator, device=x.device) >= rate
    return x * (keep / (1 - rate)).to(x.dtype)


class Attention(nn.Module):
    """Multi-head self-attention over tokens (B, L, D)."""

    def __init__(self, embed_dim: int, num_heads: int):
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(
                f"embed_dim {embed_dim} is not a multiple of num_heads {num_heads}"
            )
        self.num_heads = num_heads
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim)
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(
        self, x: torch.Tensor, key_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Attend; `key_mask` (B, 1, 1, L) is True for the tokens to look at."""
        B, L, D = x.shape
        heads = 3, self.num_heads, D // self.num_heads
        q, k, v = self.qkv(x).view(B, L, *heads).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=key_mask)
        return self.proj(x.transpose(1, 2).reshape(B, L, D))


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, embed_dim: int, hidden_dim: int):
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, embed_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Post-norm transformer block that also returns its feed-forward output.

    (B, L, D) -> (B, L, D) and the raw feed-forward output (B, L, D), from which the
    teacher's targets are made.

    Source: AltBlock with layer_norm_first false, EAT@06c1c34, models/modules.py.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        norm_eps: float = 1e-6,
    ):
        super().__init__()
        self.drop_path = drop_path
        self.attn = Attention(embed_dim, num_heads)
        self.norm1 = nn.LayerNorm(embed_dim, eps=norm_eps)
        self.mlp = Mlp(embed_dim, int(embed_dim * mlp_ratio))
        self.norm2 = nn.LayerNorm(embed_dim, eps=norm_eps)

    def forward(
        self,
        x: torch.Tensor,
        key_mask: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x = x + self._maybe_drop(self.attn(x, key_mask), generator)
        residual = self.norm1(x)
        feed_forward = self.mlp(residual)
        x = self.norm2(residual + self._maybe_drop(feed_forward, generator))
        return x, feed_forward

    def _maybe_drop(self, branch, generator):
        if self.drop_path == 0.0 or not self.training:
            return branch
        return drop_path(branch, self.drop_path, generator)
