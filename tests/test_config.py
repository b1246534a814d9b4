"""The configurations of encoder and head: what they refuse, how they change."""

import dataclasses

import pytest

from espnet2_sslam import EncoderConfig, HeadConfig
from espnet2_sslam.config import SIZES, check_keywords


def test_an_unknown_key_is_named_with_its_section_and_the_right_ones():
    with pytest.raises(ValueError, match=r"^encoder_conf has no key dim: use .*depth"):
        EncoderConfig.from_dict({"dim": 96}, "encoder_conf")
    with pytest.raises(ValueError, match="HeadConfig has no key poling"):
        HeadConfig.from_dict({"classes": ["a"], "poling": "cls"})


@pytest.mark.parametrize(
    "options, message",
    [
        ({"input_size": 80}, "input_size .* must be one of 1, 128, got 80"),
        ({"freq": "sum"}, "freq must be one of mean, concat, flatten, got 'sum'"),
        ({"max_frames": 100}, "max_frames must be a positive multiple of 16"),
        ({"target_frames": 0}, "target_frames must be a positive multiple"),
        ({"target_frames": 640, "max_frames": 320}, "640 is above max_frames 320"),
        ({"layer": 13}, "layer must be one of all, -1, 0, 1, .*, got 13"),
        ({"layer": "last"}, "layer must be"),
        ({"max_layer": 0}, "max_layer must be one of None, 1, .*, 12, got 0"),
        ({"num_heads": 5}, "768 is not a multiple of num_heads 5"),
        ({"embed_dim": 18}, "embed_dim 18 is not a multiple of 4"),
        ({"depth": 0}, "depth must be above 0"),
        ({"upsample": 0}, "upsample must be above 0"),
        ({"time_shifts": 3}, "time_shifts must be one of 1, 2, 4, 8, 16, got 3"),
        ({"drop_path": 1.0}, "drop_path < 1"),
    ],
)
def test_impossible_options_of_the_encoder_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        EncoderConfig(**options)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"classes": []}, "need at least one class"),
        ({"classes": ["a", "a"]}, "each once, got"),
        ({"classes": "ab", "task": "regression"}, "task must be one of multi_label"),
        ({"classes": "ab", "pooling": "max"}, "pooling must be one of cls, mean"),
        ({"classes": "ab", "head_norm": "group"}, "head_norm must be one of layer"),
    ],
)
def test_impossible_options_of_the_head_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        HeadConfig(**options)


def test_a_configuration_survives_a_dictionary_and_changes_only_as_a_copy():
    config = EncoderConfig(depth=2, mlp_ratio=2, max_layer=1)
    assert EncoderConfig.from_dict(config.to_dict()) == config
    assert config.to_dict(SIZES)["depth"] == 2 and set(config.to_dict(SIZES)) == {
        *SIZES
    }
    changed = config.replace(max_layer=None)
    assert (config.num_blocks, changed.num_blocks) == (1, 2)
    with pytest.raises(ValueError, match="max_layer"):
        config.replace(max_layer=3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.depth = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    "conf, message",
    [
        ({"rate": 1}, "--optim_conf has no key rate: use one of lr, momentum"),
        ({"lr": "5e-5"}, "lr is the text '5e-5', not a number: .* 5.0e-05"),
        ({"params": 1}, "has no key params"),
    ],
)
def test_a_section_for_a_class_is_checked_against_its_keywords(conf, message):
    def optimizer(params, lr=0.1, momentum=0.0):
        """Not called."""

    with pytest.raises(ValueError, match=message):
        check_keywords(optimizer, conf, "optim_conf", ["params"])
    check_keywords(optimizer, {"lr": 1.0, "momentum": 0.9}, "optim_conf", ["params"])
