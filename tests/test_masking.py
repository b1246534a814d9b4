"""Inverse block masks: exact counts for any grid, the authors' distribution."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet2_sslam.masking import count_visible, inverse_block_mask, split_indices
from tests.golden_data import load


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@settings(max_examples=50, deadline=None)
@given(
    steps=st.integers(1, 100),
    ratio=st.sampled_from([0.5, 0.75, 0.8, 0.85]),
    block=st.integers(1, 7),
    seed=st.integers(0, 1000),
)
def test_every_mask_hides_the_same_number_of_patches(steps, ratio, block, seed):
    mask = inverse_block_mask(
        5, steps, generator(seed), mask_ratio=ratio, mask_block_size=block
    )
    assert mask.shape == (5, steps * 8) and mask.dtype == torch.bool
    visible = int(round(steps * 8 * (1 - ratio), 6))
    assert (~mask).sum(1).tolist() == [visible] * 5


def test_paper_masks_hide_410_of_512():
    assert inverse_block_mask(8, 64, generator()).sum(1).unique().tolist() == [410]


def test_masks_repeat_with_the_seed_and_differ_without():
    one, same = (inverse_block_mask(4, 64, generator(7)) for _ in range(2))
    assert torch.equal(one, same)
    assert not torch.equal(one, inverse_block_mask(4, 64, generator(8)))
    assert not torch.equal(one[0], one[1])


@pytest.mark.parametrize("ratio", [0.0, 1.0, 0.999])
def test_ratios_that_leave_nothing_to_do_are_refused(ratio):
    with pytest.raises(ValueError, match="mask_ratio"):
        inverse_block_mask(2, 64, generator(), mask_ratio=ratio)


def test_marginal_probabilities_equal_the_authors():
    golden = load("mask_stats.json")
    mask = inverse_block_mask(50_000, 64, generator(1)).float().view(-1, 64, 8)
    frequency = np.asarray(golden["marginal_by_freq_100000"])
    time = np.asarray(golden["marginal_by_time_100000"])
    # two samples of 50,000 and 100,000 masks: the error of a row's mean is about .0007
    np.testing.assert_allclose(mask.mean((0, 1)).numpy(), frequency, atol=0.003)
    np.testing.assert_allclose(mask.mean((0, 2)).numpy(), time, atol=0.006)


def test_neighbours_are_visible_together_as_often_as_the_authors():
    golden = load("mask_stats.json")["adjacency_2000"]
    seen = ~inverse_block_mask(20_000, 64, generator(2)).view(-1, 64, 8)
    time = (seen[:, 1:] & seen[:, :-1]).sum() / seen[:, 1:].sum()
    frequency = (seen[:, :, 1:] & seen[:, :, :-1]).sum() / seen[:, :, 1:].sum()
    wanted = sorted(value for value in golden.values() if isinstance(value, float))
    found = sorted([float(time), float(frequency)])
    np.testing.assert_allclose(found, wanted[-2:], atol=0.01)


def test_split_gives_ascending_positions_of_both_kinds():
    mask = inverse_block_mask(6, 64, generator())
    visible, hidden = split_indices(mask, count_visible(64, 0.8))
    assert visible.shape == (6, 102) and hidden.shape == (6, 410)
    assert not mask.gather(1, visible).any() and mask.gather(1, hidden).all()
    assert (visible.diff() > 0).all() and (hidden.diff() > 0).all()
