"""Augmentation of fine-tuning: roll and gain, noise, mixup, spectrogram masking.

Pure functions of a padded batch, on its device; every draw comes from `generator`,
which must live on that device. The order in a step is the order of this file.

Shapes: B clips, N samples, T frames, F mel bins, C classes.
"""

from dataclasses import dataclass

import torch

from espnet2_sslam.config import check_choice
from espnet2_sslam.features import zero_padding

GAIN_SHAPE = 10  # the gain of `roll_and_gain` is Beta(10, 10) + 0.5: 0.5 .. 1.5


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What is done to a training batch, in the order of the arguments.

    Args:
        roll_and_gain: Shift the waveform circularly and change its loudness.
        noise: Largest strength of uniform noise on the spectrogram (the authors' value
            is 0.1, for Speech Commands); 0 for none.
        noise_shift: Largest time shift in frames that goes with the noise.
        mixup_alpha: Beta(alpha, alpha) of mixup on the spectrogram; 0 for none.
        mixup_probability: Share of the batches (or clips) that are mixed.
        mixup_per: One share per "batch" (paper) or per "clip".
        mask_ratio: Widest frequency and time band that is overwritten with 0, relative
            to the bins and the clip's frames; 0 for none.

    Raises:
        ValueError: An option outside its range.
    """

    roll_and_gain: bool = False
    noise: float = 0.0
    noise_shift: int = 10
    mixup_alpha: float = 0.0
    mixup_probability: float = 0.9
    mixup_per: str = "batch"
    mask_ratio: float = 0.0

    def __post_init__(self) -> None:
        if min(self.noise, self.noise_shift, self.mixup_alpha) < 0:
            raise ValueError("noise, noise_shift and mixup_alpha must not be negative")
        if not (0 <= self.mixup_probability <= 1 and 0 <= self.mask_ratio <= 1):
            raise ValueError("mixup_probability and mask_ratio must be in 0..1")
        check_choice("mixup_per", self.mixup_per, ("batch", "clip"))

    def is_active(self) -> bool:
        """Say whether anything at all is done."""
        return any((self.roll_and_gain, self.noise, self.mixup_alpha, self.mask_ratio))

    def waveform(
        self, speech: torch.Tensor, lengths: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        """Augment waveforms (B, N) of the given lengths (B,)."""
        if not self.roll_and_gain:
            return speech
        return roll_and_gain(speech, lengths, generator)

    def spectrogram(
        self,
        fbank: torch.Tensor,
        frames: torch.Tensor,
        targets: torch.Tensor,
        generator: torch.Generator,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Augment normalised log-mel (B, T, F); return it, its frames and targets."""
        if self.noise:
            fbank = add_noise(
                fbank, frames, generator, amount=self.noise, max_shift=self.noise_shift
            )
        if self.mixup_alpha:
            share = mixup_weights(
                len(fbank),
                generator,
                alpha=self.mixup_alpha,
                probability=self.mixup_probability,
                per=self.mixup_per,
            )
            fbank, frames, targets = mixup(fbank, frames, targets, share)
        if self.mask_ratio:
            fbank = mask_spectrogram(fbank, frames, generator, ratio=self.mask_ratio)
        return fbank, frames, targets


def roll_and_gain(
    speech: torch.Tensor, lengths: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Shift every clip circularly over its own length and change its loudness.

    Args:
        speech: Waveforms (B, N), zero-padded.
        lengths: Samples of each clip (B,).
        generator: Source of the shifts (uniform) and gains (Beta(10, 10) + 0.5).

    Returns:
        (B, N), each clip without its mean, the padding still zero.

    Source: cwx-worst-one/EAT@06c1c34, data/raw_audio_dataset.py, _roll_mag_aug.
    """
    speech = zero_padding(speech, lengths)
    speech = zero_padding(speech - speech.sum(1, True) / lengths[:, None], lengths)
    shift = (_uniform(len(speech), generator) * lengths).long()
    gain = beta(len(speech), GAIN_SHAPE, generator) + 0.5
    return _roll(speech, lengths, shift) * gain[:, None]


def add_noise(
    fbank: torch.Tensor,
    frames: torch.Tensor,
    generator: torch.Generator,
    *,
    amount: float = 0.1,
    max_shift: int = 10,
) -> torch.Tensor:
    """Add uniform noise of a random strength per clip and shift the clip in time.

    Args:
        fbank: Normalised log-mel (B, T, F).
        frames: Frames of each clip (B,); the padding behind them stays as it is.
        generator: Source of the noise.
        amount: Largest strength: noise is U(0, 1) * U(0, `amount`).
        max_shift: The circular shift is uniform in [-max_shift, max_shift).

    Source: the authors' `noise: true` of Speech Commands (0.1, 10 frames),
    cwx-worst-one/EAT@06c1c34, data/raw_audio_dataset.py, end of __getitem__.
    """
    strength = amount * _uniform(len(fbank), generator)[:, None, None]
    noise = torch.rand(fbank.shape, generator=generator, device=fbank.device)
    noisy = fbank + zero_padding(strength * noise, frames)
    if not max_shift:
        return noisy
    shift = (_uniform(len(fbank), generator) * 2 * max_shift).floor().long() - max_shift
    return _roll(noisy, frames, shift)


def mixup_weights(
    batch_size: int,
    generator: torch.Generator,
    *,
    alpha: float,
    probability: float = 0.9,
    per: str = "batch",
) -> torch.Tensor:
    """Draw the share (B,) that every clip keeps: Beta(alpha, alpha), or 1 if not mixed.

    Args:
        batch_size: B.
        generator: Source of the draws.
        alpha: Shape of the Beta distribution, above 0.
        probability: Share of the batches (or clips) that are mixed at all.
        per: "batch": one share for the whole batch (paper); "clip": one per clip.
    """
    draws = 1 if per == "batch" else batch_size
    mixed = _uniform(draws, generator) < probability
    shares = torch.where(mixed, beta(draws, alpha, generator), 1.0)
    return shares.expand(batch_size)


def mixup(
    fbank: torch.Tensor,
    frames: torch.Tensor,
    targets: torch.Tensor,
    share: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mix every clip and its targets with the clip at the mirrored place of the batch.

    Args:
        fbank: Normalised log-mel (B, T, F).
        frames: Frames of each clip (B,).
        targets: (B, C).
        share: What each clip keeps of itself (B,), see `mixup_weights`.

    Returns:
        Mixed fbank, its frames (the longer of both where two clips are mixed) and mixed
        targets. The middle clip of an odd batch mixes with itself, so it stays.

    Source: cwx-worst-one/EAT@06c1c34, utils/mixup.py (mode batch: partner is flip(0)).
    """
    partner_frames = torch.maximum(frames, frames.flip(0))
    frames = torch.where(share < 1, partner_frames, frames)
    keep = share[:, None, None].to(fbank.dtype)
    fbank = keep * fbank + (1 - keep) * fbank.flip(0)
    keep = share[:, None].to(targets.dtype)
    return fbank, frames, keep * targets + (1 - keep) * targets.flip(0)


def mask_spectrogram(
    fbank: torch.Tensor,
    frames: torch.Tensor,
    generator: torch.Generator,
    *,
    ratio: float,
) -> torch.Tensor:
    """Overwrite one frequency and one time band of every clip with 0 (as the paper).

    Args:
        fbank: Normalised log-mel (B, T, F).
        frames: Frames of each clip (B,); the time band lies inside them.
        generator: Source of widths and places.
        ratio: A width is floor(U(0, ratio * size)), size = F or the clip's frames.

    Source: cwx-worst-one/EAT@06c1c34, models/EAT_audio_classification.py
    (mask_ratio; torchaudio's FrequencyMasking and TimeMasking with iid_masks).
    """
    bins = torch.full_like(frames, fbank.shape[2])
    frequency = _band(fbank.shape[2], bins, ratio, generator)[:, None, :]
    time = _band(fbank.shape[1], frames, ratio, generator)[:, :, None]
    return fbank.masked_fill(frequency | time, 0.0)


def beta(count: int, shape: float, generator: torch.Generator) -> torch.Tensor:
    """Draw `count` numbers from Beta(shape, shape) on the generator's device."""
    # What torch.distributions.Beta draws from, under a private name: no public function
    # draws from this distribution with a generator.
    shapes = torch.full((2, count), float(shape), device=generator.device)
    gamma = torch._standard_gamma(shapes, generator)  # type: ignore[attr-defined]
    gamma = gamma.clamp(min=1e-30)
    return gamma[0] / gamma.sum(0)


def _uniform(count: int, generator: torch.Generator) -> torch.Tensor:
    """Return `count` draws from [0, 1) on the generator's device."""
    return torch.rand(count, generator=generator, device=generator.device)


def _band(
    size: int, lengths: torch.Tensor, ratio: float, generator: torch.Generator
) -> torch.Tensor:
    """Return (B, size), True in one random band inside each clip's own length."""
    width = _uniform(len(lengths), generator) * ratio * lengths
    start = (_uniform(len(lengths), generator) * (lengths - width)).floor()[:, None]
    index = torch.arange(size, device=lengths.device)
    return (index >= start) & (index < start + width.floor()[:, None])


def _roll(x: torch.Tensor, lengths: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Shift x (B, N) or (B, N, F) circularly inside each clip's own length."""
    place = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
    source = torch.remainder(place - shift[:, None], lengths[:, None])
    source = torch.where(place < lengths[:, None], source, place)
    if x.dim() == 3:
        source = source[..., None].expand(x.shape)
    return x.gather(1, source)
