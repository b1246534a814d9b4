"""Tokens (CLS, then patches) as a sequence over time, and those of several chunks.

Shapes: B clips, S time patches, N = 8 * S patches, D channels.
"""

from typing import List, Sequence, Tuple

import torch

from espnet2_sslam.features import zero_padding
from espnet2_sslam.units import PATCHES_PER_STEP


def as_sequence(
    tokens: torch.Tensor,
    steps: torch.Tensor,
    *,
    freq: str,
    upsample: int,
    with_cls: bool,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Arrange tokens over time, as the options of the same names of the encoder say.

    Args:
        tokens: (B, 1+N, D).
        steps: Time patches of each clip (B,).
        freq: "mean", "concat" or "flatten" of the 8 frequency patches of a time patch.
        upsample: Repetitions of every time patch.
        with_cls: Put the CLS token before the others.

    Returns:
        Output (B, L, D), or (B, L, 8 * D) for "concat", zero beyond a clip's end, and
        lengths (B,).
    """
    cls, patches = tokens[:, :1], tokens[:, 1:]
    B, N, D = patches.shape
    S = N // PATCHES_PER_STEP
    grid = patches.reshape(B, S, PATCHES_PER_STEP, D)
    if freq == "mean":
        grid, width = grid.mean(2), 1
    elif freq == "concat":
        grid, width = grid.flatten(2), 1
        cls = cls.repeat(1, 1, PATCHES_PER_STEP)
    else:
        grid, width = grid.flatten(2), PATCHES_PER_STEP
    repeats = upsample * width
    out = grid.repeat_interleave(upsample, 1)
    out = out.reshape(B, S * repeats, cls.shape[-1])
    olens = steps * repeats
    if with_cls:
        out, olens = torch.cat([cls, out], 1), olens + 1
    return zero_padding(out, olens), olens


def join_chunks(chunks: Sequence[tuple], batch: int) -> List[torch.Tensor]:
    """Put the chunks' tokens one after the other; CLS is their weighted mean.

    Args:
        chunks: For each chunk in order: the clips that reach into it (b,), how many of
            its frames each fills (b,), and every layer's tokens (b, 1+n, D).
        batch: Number of clips B.

    Returns:
        Every layer's tokens (B, 1+N, D), zero where a clip has ended.
    """
    joined = []
    weight = torch.zeros(batch, 1, 1, device=chunks[0][1].device)
    for rows, length, _ in chunks:
        weight[rows] += length[:, None, None]
    for layer in range(len(chunks[0][2])):
        cls, parts = 0.0, []
        for rows, length, states in chunks:
            tokens = states[layer]
            full = tokens.new_zeros(batch, *tokens.shape[1:]).index_copy(
                0, rows, tokens
            )
            share = torch.zeros_like(weight).index_copy(
                0, rows, length[:, None, None].to(weight.dtype)
            )
            cls = cls + full[:, :1] * (share / weight).to(full.dtype)
            parts.append(full[:, 1:])
        joined.append(torch.cat([cls, *parts], 1))
    return joined
