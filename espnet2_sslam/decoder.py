"""Light convolutional decoder: visible patches to predictions of the hidden ones."""

import contextlib
import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from espnet2_sslam.banded import grouped_conv
from espnet2_sslam.encoder import recomputed
from espnet2_sslam.units import PATCHES_PER_STEP


class ConvDecoder(nn.Module):
    """Grouped 2-D convolutions over the patch grid, projected at the hidden patches.

    Args:
        embed_dim: Channels D of tokens and predictions.
        decoder_dim: Channels inside; D by default.
        num_layers: Convolutions, each followed by layer norm, GELU and a residual.
        kernel_size: Side of the kernels in patches.
        groups: Groups of the convolutions.
        noise_std: Standard deviation of the noise put in the hidden places.
        half_precision: Under autocast, also residuals, norms and GELU in its type: less
            memory and traffic, rounded more.

    Source: Decoder2d, cwx-worst-one/EAT@06c1c34, models/modules.py.
    """

    def __init__(
        self,
        embed_dim: int,
        decoder_dim: int = 0,
        num_layers: int = 6,
        kernel_size: int = 3,
        groups: int = 16,
        noise_std: float = 0.01,
        half_precision: bool = False,
    ):
        super().__init__()
        decoder_dim = decoder_dim or embed_dim
        if embed_dim % groups or decoder_dim % groups:
            raise ValueError(
                f"decoder groups {groups} must divide embed_dim {embed_dim} and "
                f"decoder_dim {decoder_dim}"
            )
        if num_layers < 1:
            raise ValueError(f"the decoder needs at least 1 layer, got {num_layers}")
        self.noise_std = noise_std
        self.kernel_size, self.half_precision = kernel_size, half_precision
        self.checkpointing = False  # compute a layer again in the backward pass
        widths = [embed_dim] + [decoder_dim] * num_layers
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, kernel_size, padding=kernel_size // 2, groups=groups)
            for a, b in itertools.pairwise(widths)
        )
        self.proj = nn.Linear(decoder_dim, embed_dim)

    def forward(
        self,
        visible: torch.Tensor,
        visible_index: torch.Tensor,
        hidden_index: torch.Tensor,
        noise: torch.Tensor,
    ) -> torch.Tensor:
        """Predict the hidden patches.

        Args:
            visible: Encoder output at the visible patches (R, V, D), without CLS.
            visible_index: Their positions (R, V).
            hidden_index: Positions of the hidden patches (R, M).
            noise: Decoder input at the hidden patches (R, M, D), see `draw_noise`.

        Returns:
            Predictions (R, M, D).
        """
        rows, num_visible, width = visible.shape
        num_patches = num_visible + hidden_index.shape[1]
        device = visible.device.type
        if self.half_precision and torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            visible, noise = visible.to(dtype), noise.to(dtype)
        first = torch.arange(rows, device=visible.device)[:, None] * num_patches
        x = visible.new_empty(rows * num_patches, width)
        x = x.index_copy(0, (first + hidden_index).flatten(), noise.flatten(0, 1))
        x = x.index_copy(0, (first + visible_index).flatten(), visible.flatten(0, 1))
        x = x.view(rows, -1, PATCHES_PER_STEP, width)
        for conv in self.convs:
            if self.checkpointing and torch.is_grad_enabled():
                x = recomputed(self._layer, conv, x)
            else:
                x = self._layer(conv, x)
        x = x.reshape(rows * num_patches, -1)
        return self.proj(x[(first + hidden_index).flatten()]).view(rows, -1, width)

    def draw_noise(
        self, shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
    ) -> torch.Tensor:
        """Noise for the hidden patches, of `shape`, on the generator's device."""
        noise = torch.empty(shape, dtype=dtype, device=generator.device)
        return noise.normal_(0.0, 1.0, generator=generator).mul_(self.noise_std)

    def _layer(self, conv: Any, x: torch.Tensor) -> torch.Tensor:
        """Convolution, layer norm, GELU, and a residual where the width stays."""
        y = self._convolve(conv, x)
        # autocast would take the norm, and so all that follows, to float32
        half = torch.autocast(x.device.type, enabled=False)
        with half if self.half_precision else contextlib.nullcontext():
            y = F.gelu(F.layer_norm(y, y.shape[-1:], eps=1e-5))
        return x + y if y.shape == x.shape else y

    def _convolve(self, conv: Any, x: torch.Tensor) -> torch.Tensor:
        """Convolve (R, S, 8, C) with channels last in memory; even kernels crop."""
        if torch.is_autocast_enabled("cuda") and x.is_cuda and self.kernel_size % 2:
            dtype = torch.get_autocast_dtype("cuda")
            weight, bias = conv.weight.to(dtype), conv.bias.to(dtype)
            return grouped_conv(x.to(dtype), weight, conv.groups) + bias
        y = conv(x.permute(0, 3, 1, 2))[..., : x.shape[1], : x.shape[2]]
        return y.permute(0, 2, 3, 1)
