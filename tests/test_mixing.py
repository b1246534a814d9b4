"""Partial mixtures: what is mixed, what is kept, for every length and rule."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet2_sslam import mixing


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@settings(max_examples=100, deadline=None)
@given(steps=st.integers(3, 200), seed=st.integers(0, 10_000))
def test_two_regions_never_overlap_and_the_last_patch_is_mixed(steps, seed):
    regions = mixing.draw_regions(steps, generator(seed), num_clips=4)
    keep = mixing.unmixed_steps(regions, steps)
    width = mixing.region_steps(steps)
    assert keep.shape == (4, steps)
    assert keep.sum(1).tolist() == [2 * width] * 4
    assert not keep[:, -1].any()
    assert mixing.mixed_patches(regions, steps).shape == (4, 8 * (steps - 2 * width))


def test_paper_regions_are_15_of_64_patches_and_cover_all_starts():
    assert mixing.region_steps(64) == 15
    regions = mixing.draw_regions(64, generator(), num_clips=20_000)
    first, second = regions.unbind(1)
    assert sorted(first.unique().tolist()) == list(range(32))
    assert second.max() == 48 and (second - first).min() == 15
    after_zero = second[first == 0].unique()
    assert len(after_zero) == 34  # the authors' count for idx_1 = 0
    assert len(second[first == 31].unique()) == 3


def test_mix_partially_keeps_unmixed_frames():
    fbank = torch.randn(4, 1024, 128)
    regions = torch.tensor([[3, 30]])
    mixed = mixing.mix_partially(fbank, regions, "max", torch.tensor(4.5))
    keep = mixing.unmixed_steps(regions, 64).repeat_interleave(16, 1)[0]
    assert keep.sum() == 480
    assert torch.equal(mixed[:, keep], fbank[:, keep])
    other = torch.roll(fbank, 1, 0)
    assert torch.equal(mixed[:, ~keep], torch.maximum(fbank, other)[:, ~keep])


def test_logsumexp_adds_power_of_the_unnormalised_spectra():
    mean, std = -4.268, 4.569
    raw = torch.randn(2, 64, 128) * 3 - 5
    fbank = (raw - mean) / (2 * std)
    regions = torch.tensor([[0, 1]])
    mixed = mixing.mix_partially(fbank, regions, "logsumexp", torch.tensor(std))
    power = raw[:, 48:].exp() + torch.roll(raw, 1, 0)[:, 48:].exp()
    back = mixed[:, 48:] * 2 * std + mean
    torch.testing.assert_close(back.exp(), power, rtol=1e-4, atol=1e-6)


def test_waveforms_are_added_at_the_snr_and_only_in_mixed_regions():
    speech = torch.randn(3, 160_000, generator=generator())
    lengths = torch.full((3,), 160_000)
    regions = torch.tensor([[10, 40]])
    snr = torch.tensor([0.0, 6.0, -6.0])
    mixture = mixing.mix_waveforms(speech, lengths, regions, 64, snr)
    added = mixture - speech
    step = 16 * 160
    for start in (10, 40):  # whole windows of the region stay clean
        assert (added[:, start * step : (start + 15) * step + 240] == 0).all()
    sample = slice(0, 10 * step)
    ratio = speech[:, sample].square().mean(1) / added[:, sample].square().mean(1)
    for found, wanted in zip((10 * ratio.log10()).tolist(), snr.tolist()):
        assert math.isclose(found, wanted, abs_tol=0.2)


def test_regions_per_clip_drop_and_splice_each_clip_by_its_own():
    patches = torch.randn(3, 8 * 20, 4)
    regions = torch.tensor([[0, 5], [3, 10], [9, 14]])
    index = mixing.mixed_patches(regions, 20)
    kept = mixing.drop_unmixed(patches, index)
    width = mixing.region_steps(20)
    for clip, (first, second) in enumerate(regions.tolist()):
        steps = [
            step
            for step in range(20)
            if not (first <= step < first + width or second <= step < second + width)
        ]
        wanted = patches[clip].view(20, 8, 4)[steps].flatten(0, 1)
        assert torch.equal(kept[clip], wanted)
    spliced = mixing.splice(torch.zeros_like(patches), kept, index)
    assert torch.equal(mixing.drop_unmixed(spliced, index), kept)
    assert spliced.count_nonzero() == kept.count_nonzero()


def test_a_single_clip_is_refused():
    with pytest.raises(ValueError, match="at least 2 clips"):
        mixing.mix_partially(
            torch.zeros(1, 64, 128), torch.tensor([[0, 1]]), "max", torch.tensor(1.0)
        )


def test_clips_too_short_for_regions_are_refused():
    with pytest.raises(ValueError, match="at least 3 time patches"):
        mixing.draw_regions(2, generator())
