"""Inverse block masking: hide all, keep square blocks, several masks per clip."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from espnet2_sslam.units import PATCHES_PER_STEP


def inverse_block_mask(
    num_masks: int,
    num_steps: int,
    generator: torch.Generator,
    *,
    mask_ratio: float = 0.8,
    mask_block_size: int = 5,
    mask_ratio_adjust: float = 0.07,
) -> torch.Tensor:
    """Draw masks that keep square blocks of patches visible.

    Block centres are drawn with replacement; a block is clamped at the border; then
    patches are hidden or shown at random until exactly the wanted share is hidden.

    Args:
        num_masks: Masks R to draw (clips x clones).
        num_steps: Time patches S of the grid.
        generator: Randomness; the masks are made on its device.
        mask_ratio: Share of patches hidden.
        mask_block_size: Side of a block in patches.
        mask_ratio_adjust: Added to the visible share when counting blocks, because
            blocks overlap.

    Returns:
        Masks (R, 8 * S), True = hidden, each with the same number of hidden patches.

    Raises:
        ValueError: Options that leave no patch visible or none hidden.

    Source: SSLAM, section 3 and EAT, section 3.3; fairseq's compute_block_mask_2d as
    in cwx-worst-one/EAT@06c1c34.
    """
    num_patches = num_steps * PATCHES_PER_STEP
    num_visible = count_visible(num_steps, mask_ratio)
    share = 1 - mask_ratio + mask_ratio_adjust
    num_blocks = max(1, int(num_patches * share / mask_block_size**2))
    device = generator.device
    centre = torch.randint(
        num_patches, (num_masks, num_blocks), generator=generator, device=device
    )
    offset = torch.arange(mask_block_size, device=device) - mask_block_size // 2
    time = (centre // PATCHES_PER_STEP)[..., None] + offset
    frequency = (centre % PATCHES_PER_STEP)[..., None] + offset
    time = time.clamp(0, num_steps - 1)[..., :, None]
    frequency = frequency.clamp(0, PATCHES_PER_STEP - 1)[..., None, :]
    blocks = (time * PATCHES_PER_STEP + frequency).flatten(1)
    # Patches in a block score 1..2, the others 0..1: the best ones stay visible.
    score = torch.rand(num_masks, num_patches, generator=generator, device=device)
    score += torch.zeros_like(score).scatter_(1, blocks, 1.0)
    mask = torch.ones_like(score, dtype=torch.bool)
    return mask.scatter_(1, score.topk(num_visible, 1).indices, False)


def count_visible(num_steps: int, mask_ratio: float) -> int:
    """Visible patches V of each mask over `num_steps` time patches.

    Raises:
        ValueError: No patch is visible, or none hidden.
    """
    num_patches = num_steps * PATCHES_PER_STEP
    # int() and round(): the float product must not lose a patch (0.2 * 320 = 63.99..)
    num_visible = int(round(num_patches * (1 - mask_ratio), 6))
    if not 0 < num_visible < num_patches:
        raise ValueError(
            f"mask_ratio {mask_ratio} leaves {num_visible} of {num_patches} patches "
            "visible: at least one must be visible and one hidden"
        )
    return num_visible


def split_indices(
    mask: torch.Tensor, num_visible: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions of the visible and of the hidden patches, in order.

    Args:
        mask: (R, N), True = hidden.
        num_visible: Visible patches V of every row, see `count_visible`.

    Returns:
        Visible (R, V) and hidden (R, M) positions, ascending.
    """
    order = mask.to(torch.uint8).argsort(dim=1, stable=True)
    return order[:, :num_visible], order[:, num_visible:]


# The streams that masks, regions and noise are drawn from: keyed by seed, batch and
# rank, so that they are the same again after a resume.


def keyed_generator(device: torch.device, *key: int) -> torch.Generator:
    """Return a generator on `device` whose stream depends on every number of `key`."""
    state = np.random.SeedSequence(key).generate_state(2, np.uint32)
    seed = int(state[0]) << 31 | int(state[1]) >> 1
    return torch.Generator(device).manual_seed(seed)


class CountingModule(nn.Module):
    """A model that is trained by its `objective`, a function of tensors.

    Its counters, its own 0-dimensional buffers, stay on the CPU, so that a step that
    reads one waits for no GPU; checkpoints hold them as ever.
    """

    objective: Callable[..., Any]

    def __init__(self):
        super().__init__()
        self._compiled: Callable[..., Any] | None = None

    def compile_step(self, **options: Any) -> None:
        """Let training steps run `objective` as one graph of `torch.compile`.

        Args:
            options: Of `torch.compile`.
        """
        self._compiled = torch.compile(self.objective, fullgraph=True, **options)

    def _apply(self, fn, recurse=True):
        counters = {
            name: buffer
            for name, buffer in self._buffers.items()
            if buffer is not None and buffer.dim() == 0 and buffer.device.type == "cpu"
        }
        super()._apply(fn, recurse)
        self._buffers.update(counters)
        return self


def batch_generator(
    device: torch.device, seed: int, num_batches: torch.Tensor
) -> torch.Generator:
    """Return the generator of the next training batch on this rank, and count it.

    ESPnet gives all ranks the same global stream, so the key holds the rank.

    Args:
        device: Where the draws are made.
        seed: Of the training.
        num_batches: The counter of a `CountingModule`; it is increased. (A float:
            ESPnet's averaging of checkpoints sums integer buffers.)
    """
    parallel = torch.distributed.is_available() and torch.distributed.is_initialized()
    rank = torch.distributed.get_rank() if parallel else 0
    num_batches += 1
    return keyed_generator(device, seed, int(num_batches), rank)
