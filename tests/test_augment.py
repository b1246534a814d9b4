"""Augmentation of fine-tuning: what may change, what must stay, which distribution.

Figures of the authors' code: ta012/SSLAM@0a3c0ff, 20,000 mixup shares and 2,000
spectrogram masks (mask_ratio 0.2 on 1024 frames x 128 bins).
"""

import pytest
import torch

from espnet2_sslam import augment
from espnet2_sslam.masking import keyed_generator

AUTHORS_MIXUP = {"share_unmixed": 0.09705, "mean": 0.54848, "std": 0.33051}
AUTHORS_MASKS = {"frequency_mean": 12.25, "time_mean": 101.90}


def generator(*key):
    return keyed_generator(torch.device("cpu"), *key)


def test_keyed_generator_differs_for_every_number_of_the_key():
    keys = [(0, 1, 2), (0, 1, 3), (0, 2, 2), (1, 1, 2)]
    draws = {float(torch.rand(1, generator=generator(*key))) for key in keys}
    again = torch.rand(1, generator=generator(0, 1, 2))
    assert len(draws) == 4 and float(again) in draws


def test_roll_and_gain_keeps_every_sample_of_a_clip_and_its_padding():
    speech = torch.randn(4, 50, generator=generator(0))
    lengths = torch.tensor([50, 31, 7, 1])
    for row, length in enumerate(lengths):
        speech[row, length:] = 0
    result = augment.roll_and_gain(speech, lengths, generator(1))
    for row, length in enumerate(lengths[:3]):
        clip = speech[row, :length] - speech[row, :length].mean()
        rolled = result[row, :length]
        gain = rolled.norm() / clip.norm()
        shifts = [torch.roll(clip, s) * gain for s in range(length)]
        assert min(float((rolled - s).abs().max()) for s in shifts) < 1e-5
        assert 0.5 <= gain <= 1.5
        assert not result[row, length:].any()
    assert not result[3].any()  # one sample is its own mean


def test_roll_and_gain_has_the_authors_distribution():
    speech = torch.zeros(4000, 10)
    speech[:, 0], speech[:, 5] = 1.0, -1.0
    result = augment.roll_and_gain(speech, torch.full((4000,), 10), generator(2))
    gain = result.amax(1)
    assert gain.mean() == pytest.approx(1.0, abs=0.01)
    assert gain.std() == pytest.approx((1 / (4 * 21)) ** 0.5, abs=0.005)
    assert torch.bincount(result.argmax(1), minlength=10).min() > 320


def test_noise_is_bounded_shifts_by_at_most_ten_frames_and_leaves_the_padding():
    fbank, frames = torch.zeros(3, 40, 8), torch.tensor([40, 20, 1])
    result = augment.add_noise(fbank, frames, generator(3))
    assert 0 < result.max() <= 0.1 and result.min() >= 0
    assert not result[1, 20:].any() and not result[2, 1:].any()
    fbank = torch.arange(40.0).repeat(300, 1)[..., None]
    frames = torch.full((300,), 40)
    result = augment.add_noise(fbank, frames, generator(4), amount=0.0)
    shift = (result[:, 20, 0] - 20).neg()
    assert set(shift.int().tolist()) == set(range(-10, 10))


def test_mixup_shares_have_the_authors_distribution():
    source = generator(5)
    shares = augment.mixup_weights(20_000, source, alpha=0.8, per="clip")
    unmixed = (shares == 1).float().mean()
    assert unmixed == pytest.approx(AUTHORS_MIXUP["share_unmixed"], abs=0.01)
    assert shares.mean() == pytest.approx(AUTHORS_MIXUP["mean"], abs=0.01)
    assert shares.std() == pytest.approx(AUTHORS_MIXUP["std"], abs=0.01)
    assert len(augment.mixup_weights(6, source, alpha=0.8).unique()) == 1  # per batch


def test_mixup_is_a_weighted_sum_with_the_mirrored_clip():
    fbank = torch.randn(5, 6, 4, generator=generator(7))
    targets, frames = torch.eye(5), torch.tensor([6, 5, 4, 3, 2])
    share = torch.tensor([0.25, 0.5, 0.3, 1.0, 0.75])
    mixed, mixed_frames, mixed_targets = augment.mixup(fbank, frames, targets, share)
    assert torch.allclose(mixed[0], 0.25 * fbank[0] + 0.75 * fbank[4])
    assert torch.equal(mixed[3], fbank[3])
    assert torch.allclose(mixed[2], fbank[2])  # middle of an odd batch
    assert mixed_frames.tolist() == [6, 5, 4, 3, 6]
    assert torch.allclose(mixed_targets.sum(1), torch.ones(5))
    assert mixed_targets[0, 4] == 0.75


def test_spectrogram_masks_have_the_authors_distribution():
    frames = torch.full((2000,), 1024)
    source = generator(8)
    frequency = augment._band(128, torch.full((2000,), 128), 0.2, source).sum(1).float()
    time = augment._band(1024, frames, 0.2, source).sum(1).float()
    assert frequency.mean() == pytest.approx(AUTHORS_MASKS["frequency_mean"], abs=0.6)
    assert (frequency.min(), frequency.max()) == (0, 25)
    assert time.mean() == pytest.approx(AUTHORS_MASKS["time_mean"], abs=5)
    assert time.max() <= 204 and time.max() > 195


def test_spectrogram_mask_is_one_band_per_axis_inside_the_clip():
    fbank = torch.ones(50, 40, 16)
    frames = torch.full((50,), 24)
    masked = augment.mask_spectrogram(fbank, frames, generator(9), ratio=0.5) == 0
    columns, rows = masked[:, 30:].all(1), masked.all(2)
    assert not rows[:, 24:].any() and rows.any()
    for band in (columns, rows):
        starts = (band[:, 1:] & ~band[:, :-1]).sum(1) + band[:, 0]
        assert starts.max() == 1
    assert torch.equal(masked, rows[:, :, None] | columns[:, None, :])
