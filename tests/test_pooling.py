"""Pooling: which tokens count, and with which weight."""

import pytest
import torch

from espnet2_sslam.classifier import Pooling
from espnet2_sslam.config import POOLINGS
from espnet2_sslam.encoder import EncoderOutput

STATES = [
    torch.randn(2, 17, 4, generator=torch.Generator().manual_seed(i)) for i in (1, 2)
]


def pool(pooling, states, real=None):
    """Pool the tokens of an encoder, all layers in order."""
    return pooling(EncoderOutput(states[-1], states, [], real))


REAL = torch.tensor([[True] * 16, [True] * 8 + [False] * 8])


@pytest.mark.parametrize("kind", POOLINGS)
def test_padding_never_counts(kind):
    pooling = Pooling(kind, 4)
    changed = STATES[0].clone()
    changed[1, 9:] = 100.0
    assert torch.equal(pool(pooling, [STATES[0]], REAL), pool(pooling, [changed], REAL))


@pytest.mark.parametrize("kind", POOLINGS)
def test_no_mask_means_that_every_patch_is_real(kind):
    pooling, everything = Pooling(kind, 4), torch.ones(2, 16, dtype=torch.bool)
    assert torch.equal(
        pool(pooling, [STATES[0]]), pool(pooling, [STATES[0]], everything)
    )


def test_cls_takes_the_first_token():
    assert torch.equal(pool(Pooling("cls", 4), STATES[:1]), STATES[0][:, 0])


@pytest.mark.parametrize("kind", ["mean", "attentive"])
def test_mean_of_the_patches_without_cls(kind):
    expected = torch.stack([STATES[0][0, 1:].mean(0), STATES[0][1, 1:9].mean(0)])
    assert torch.allclose(pool(Pooling(kind, 4), STATES[:1], REAL), expected, atol=1e-6)


def test_concat_is_the_mean_over_time_with_frequencies_side_by_side():
    pooling = Pooling("concat", 4)
    pooled = pool(pooling, STATES[:1], REAL)
    assert pooled.shape == (2, pooling.output_size) == (2, 32)
    both = (STATES[0][0, 1:9] + STATES[0][0, 9:]) / 2
    torch.testing.assert_close(pooled[0].view(8, 4), both)
    torch.testing.assert_close(pooled[1].view(8, 4), STATES[0][1, 1:9])


def test_attentive_pooling_learns_its_weights():
    pooling = Pooling("attentive", 4)
    pool(pooling, STATES[:1], REAL).square().sum().backward()
    assert pooling.attention.weight.grad.abs().max() > 0


def test_weighted_layers_start_as_their_mean_and_are_learnt():
    pooling = Pooling("cls", 4, num_layers=2)
    result = pool(pooling, STATES)
    assert torch.allclose(result, (STATES[0] + STATES[1])[:, 0] / 2)
    result.square().sum().backward()
    assert pooling.layer_weights.grad.abs().min() > 0


def test_linear_softmax_of_a_constant_is_that_constant():
    tokens = torch.full((1, 5, 3), 0.7)
    result = pool(Pooling("lin_softmax", 3), [tokens])
    assert torch.allclose(result, torch.full((1, 3), 0.7), atol=1e-4)
