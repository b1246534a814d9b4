"""Partial mixtures: unmixed regions, overlay, removal of the unmixed patches.

A clip is overlaid with its neighbour, the batch rolled by one, except in two unmixed
regions that keep one source. Times here are time patches (160 ms), so that regions
and patches always line up. Shapes: B clips, T frames, S time patches, N = 8 * S.
"""

import math

import torch

from espnet2_sslam.units import FRAME_LENGTH, FRAME_SHIFT, PATCH_SIZE, PATCHES_PER_STEP

REGION_SHARE = (15, 64)  # one region: 240 of 1024 frames
MIXING_RULES = ("max", "logsumexp", "waveform")


def neighbour(x: torch.Tensor) -> torch.Tensor:
    """The other clip of each mixture: the batch rolled by one."""
    return torch.roll(x, 1, 0)


def region_steps(num_steps: int) -> int:
    """Time patches of one unmixed region: 15 of 64, in proportion for shorter clips.

    Raises:
        ValueError: The clip is too short for two regions and something mixed.
    """
    share, whole = REGION_SHARE
    # rounded: of 8 time patches 2 and not 1, which would keep a quarter, not half
    width = max(1, (2 * num_steps * share + whole) // (2 * whole))
    if num_steps < 3:
        raise ValueError(
            f"partial mixtures need clips of at least 3 time patches (48 frames), "
            f"got {num_steps}"
        )
    return width


def draw_regions(
    num_steps: int, generator: torch.Generator, num_clips: int | None = None
) -> torch.Tensor:
    """Draw where the two unmixed regions start.

    The first starts in the first half, the second anywhere after the first that
    leaves at least the last time patch mixed.

    Args:
        num_steps: Time patches S of a clip.
        generator: Randomness; the result is on its device.
        num_clips: Draw for each of so many clips; one draw for all by default.

    Returns:
        First time patches of both regions: (1, 2), or (num_clips, 2).

    Source: ta012/SSLAM@0a3c0ff, models/EAT_pretraining.py (idx_1, idx_2).
    """
    width = region_steps(num_steps)
    count, device = num_clips or 1, generator.device
    first = torch.randint(num_steps // 2, (count,), generator=generator, device=device)
    choices = num_steps - width - (first + width)
    share = torch.rand(count, generator=generator, device=device, dtype=torch.float64)
    second = first + width + (share * choices).long()
    return torch.stack([first, second], 1)


def unmixed_steps(regions: torch.Tensor, num_steps: int) -> torch.Tensor:
    """True for the time patches inside the unmixed regions: (1 or B, S)."""
    index = torch.arange(num_steps, device=regions.device)
    start = regions[..., None]
    inside = (index >= start) & (index < start + region_steps(num_steps))
    return inside.any(1)


def mix_partially(
    fbank: torch.Tensor, regions: torch.Tensor, rule: str, std: torch.Tensor
) -> torch.Tensor:
    """Overlay each clip with its neighbour except in the unmixed regions.

    Args:
        fbank: Normalised log-mel (B, T, 128), T whole patches.
        regions: Starts of the unmixed regions in time patches (1 or B, 2).
        rule: "max" of the log energies (paper), or "logsumexp", their sum in power.
        std: The normalisation's standard deviation (log-mel = 2 * std * fbank + mean).

    Returns:
        Mixtures (B, T, 128).

    Raises:
        ValueError: One clip only (it would be mixed with itself).
    """
    check_batch(len(fbank))
    other = neighbour(fbank)
    if rule == "max":
        mixed = torch.maximum(fbank, other)
    else:
        # the mean cancels: log(exp(2sa+m) + exp(2sb+m)) = m + log(exp(2sa) + exp(2sb))
        scale = 2 * std
        mixed = torch.logaddexp(fbank * scale, other * scale) / scale
    keep = unmixed_steps(regions, fbank.shape[1] // PATCH_SIZE)
    keep = keep.repeat_interleave(PATCH_SIZE, 1)[..., None]
    return torch.where(keep, fbank, mixed)


def mix_waveforms(
    speech: torch.Tensor,
    lengths: torch.Tensor,
    regions: torch.Tensor,
    num_steps: int,
    snr: torch.Tensor,
) -> torch.Tensor:
    """Add each clip's neighbour in the time domain except in the unmixed regions.

    Args:
        speech: Waveforms (B, samples).
        lengths: Samples of each clip (B,).
        regions: Starts of the unmixed regions in time patches (1 or B, 2).
        num_steps: Time patches S of a clip; audio after them stays unmixed.
        snr: Power of the clip over its neighbour's in dB (B,).

    Returns:
        Waveforms (B, samples).
    """
    check_batch(len(speech))
    real = torch.arange(speech.shape[1], device=speech.device) < lengths[:, None]
    own = torch.where(real, speech, 0.0)
    power = own.square().sum(1) / lengths
    other, other_power = neighbour(own), neighbour(power)
    gain = (power / other_power.clamp(min=1e-10)).sqrt() * 10 ** (-snr / 20)
    # a window that begins in an unmixed frame must not reach into the mixture
    step, reach = PATCH_SIZE * FRAME_SHIFT, FRAME_LENGTH - FRAME_SHIFT
    index = torch.arange(own.shape[1], device=own.device)
    start = (regions * step)[..., None]
    end = start + region_steps(num_steps) * step + reach
    mixed = ~((index >= start) & (index < end)).any(1) & (index < num_steps * step)
    return own + torch.where(mixed, gain[:, None] * other, 0.0)


def mixed_patches(regions: torch.Tensor, num_steps: int) -> torch.Tensor:
    """Positions of the patches outside the unmixed regions: (1 or B, K), ascending."""
    outside = ~unmixed_steps(regions, num_steps)
    count = num_steps - 2 * region_steps(num_steps)
    steps = outside.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[
        :, :count
    ]
    bands = torch.arange(PATCHES_PER_STEP, device=regions.device)
    return (steps[..., None] * PATCHES_PER_STEP + bands).flatten(1)


def drop_unmixed(patches: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Keep only the patches at `index` (1 or B, K) of (B, N, D): (B, K, D)."""
    index = index.expand(len(patches), -1)[..., None].expand(-1, -1, patches.shape[-1])
    return patches.gather(1, index)


def splice(
    target: torch.Tensor, other: torch.Tensor, index: torch.Tensor
) -> torch.Tensor:
    """A copy of (B, N, D) with the patches at `index` replaced by `other` (B, K, D)."""
    index = index.expand(len(target), -1)[..., None].expand_as(other)
    return target.scatter(1, index, other)


def check_batch(num_clips: int) -> None:
    """Refuse a batch in which a clip would be its own neighbour."""
    if num_clips < 2:
        raise ValueError(
            "partial mixtures need at least 2 clips per process and batch, got "
            f"{num_clips}: raise batch_size or set mixture: false"
        )


def db_range(low: float, high: float, count: int, generator) -> torch.Tensor:
    """Uniform draws between two levels in dB (count,)."""
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise ValueError(f"need a range of dB as [low, high], got [{low}, {high}]")
    share = torch.rand(count, generator=generator, device=generator.device)
    return low + share * (high - low)
