"""Which learning rate and weight decay each parameter gets."""

import pytest
import torch

from espnet2_sslam.tasks import parameter_groups
from tests.toy_task import ToyModel


def rates(model, **options):
    """Return {name: (lr, weight decay)} for lr 1."""
    names = {id(p): name for name, p in model.named_parameters()}
    groups = parameter_groups(model, 1.0, 0.05, **options)
    found = {}
    for group in groups:
        for parameter in group["params"]:
            assert names[id(parameter)] not in found
            found[names[id(parameter)]] = group["lr"], group["weight_decay"]
    return found


def test_every_trainable_parameter_is_in_one_group_and_the_teacher_in_none():
    model = ToyModel()
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert set(rates(model, layer_decay=0.5)) == trainable
    assert not any(name.startswith("teacher") for name in trainable)


def test_frozen_parameters_are_left_out():
    model = ToyModel()
    model.encoder.requires_grad_(False)
    assert set(rates(model)) == {"head.weight", "head.bias"}


def test_standard_layer_decay_counts_the_embedding_as_lowest_layer():
    found = {k: lr for k, (lr, _) in rates(ToyModel(), layer_decay=0.5).items()}
    assert found["head.weight"] == 1.0
    assert found["encoder.blocks.2.weight"] == 0.5
    assert found["encoder.blocks.0.weight"] == 0.5**3
    for name in ("patch_embed.weight", "cls_token", "norm.weight"):
        assert found[f"encoder.{name}"] == 0.5**4


def test_authors_layer_decay_scales_blocks_only():
    options = {"layer_decay": 0.65, "layer_decay_style": "authors"}
    found = {k: lr for k, (lr, _) in rates(ToyModel(), **options).items()}
    for name, lr in found.items():
        if "blocks" in name:
            assert lr == pytest.approx(0.65 ** (3 - int(name.split(".")[2])))
        else:
            assert lr == 1.0


def test_twelve_blocks_get_the_authors_published_scales():
    model = ToyModel()
    model.encoder.blocks.extend(torch.nn.Linear(4, 4) for _ in range(9))
    found = rates(model, layer_decay=0.65, layer_decay_style="authors")
    published = [0.005688, 0.008751, 0.013463, 0.020712, 0.031864, 0.049022]
    published += [0.075419, 0.116029, 0.178506, 0.274625, 0.4225, 0.65]
    for i, scale in enumerate(published):
        got = found[f"encoder.blocks.{i}.weight"][0]
        assert got == pytest.approx(scale, abs=1e-6)


def test_biases_norms_and_cls_are_not_decayed_unless_asked():
    decay = {name: wd for name, (_, wd) in rates(ToyModel()).items()}
    assert decay["encoder.norm.weight"] == decay["head.bias"] == 0.0
    assert decay["encoder.cls_token"] == 0.0
    assert decay["head.weight"] == decay["encoder.patch_embed.weight"] == 0.05
    all_decayed = rates(ToyModel(), decay_bias_and_norm=True)
    assert {wd for _, wd in all_decayed.values()} == {0.05}


@pytest.mark.parametrize(
    "options, complaint",
    [
        ({"layer_decay_style": "reverse"}, "standard, authors"),
        ({"layer_decay": 0.0}, "layer_decay"),
    ],
)
def test_wrong_options_are_refused(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        parameter_groups(ToyModel(), 1.0, 0.0, **options)


def test_layer_decay_without_blocks_is_refused():
    with pytest.raises(ValueError, match="encoder.blocks"):
        parameter_groups(torch.nn.Linear(2, 2), 1.0, 0.0, layer_decay=0.5)


def test_nothing_to_train_is_refused():
    with pytest.raises(ValueError, match="no trainable parameter"):
        parameter_groups(ToyModel().requires_grad_(False), 1.0, 0.0)
