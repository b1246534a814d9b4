"""Which learning rate and weight decay each parameter gets, and their course."""

import copy
import json
from pathlib import Path

import pytest
import torch

from espnet2_sslam.tasks import WarmupCosine, parameter_groups
from tests.toy_task import ToyModel

GOLDEN = json.loads((Path(__file__).parent / "golden/schedules.json").read_text())


def rates(model, **options):
    """Return {name: (lr, weight decay)} for lr 1."""
    names = {id(p): name for name, p in model.named_parameters()}
    by_name = {}
    for group in parameter_groups(model, 1.0, 0.05, **options):
        for parameter in group["params"]:
            assert names[id(parameter)] not in by_name
            by_name[names[id(parameter)]] = group["lr"], group["weight_decay"]
    return by_name


def test_every_trainable_parameter_is_in_one_group_and_no_other():
    model = ToyModel()  # its teacher is frozen
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert set(rates(model, layer_decay=0.5)) == trainable
    model.encoder.requires_grad_(False)
    assert set(rates(model)) == {"head.weight", "head.bias"}


def test_standard_layer_decay_counts_the_embedding_as_lowest_layer():
    by_name = {k: lr for k, (lr, _) in rates(ToyModel(), layer_decay=0.5).items()}
    assert by_name["head.weight"] == 1.0
    assert by_name["encoder.blocks.2.weight"] == 0.5
    assert by_name["encoder.blocks.0.weight"] == 0.5**3
    for name in ("patch_embed.weight", "cls_token", "norm.weight"):
        assert by_name[f"encoder.{name}"] == 0.5**4


def test_authors_layer_decay_scales_blocks_only_by_the_published_scales():
    model = ToyModel()
    model.encoder.blocks.extend(torch.nn.Linear(4, 4) for _ in range(9))
    by_name = rates(model, layer_decay=0.65, layer_decay_style="authors")
    published = [0.005688, 0.008751, 0.013463, 0.020712, 0.031864, 0.049022]
    published += [0.075419, 0.116029, 0.178506, 0.274625, 0.4225, 0.65]
    for name, (lr, _) in by_name.items():
        is_block = "blocks" in name
        expected = published[int(name.split(".")[2])] if is_block else 1.0
        assert lr == pytest.approx(expected, abs=1e-6)


def test_biases_norms_and_cls_are_not_decayed_unless_asked():
    decay = {name: wd for name, (_, wd) in rates(ToyModel()).items()}
    assert decay["encoder.norm.weight"] == decay["head.bias"] == 0.0
    assert decay["encoder.cls_token"] == 0.0
    assert decay["head.weight"] == decay["encoder.patch_embed.weight"] == 0.05
    all_decayed = rates(ToyModel(), decay_bias_and_norm=True)
    assert {wd for _, wd in all_decayed.values()} == {0.05}


@pytest.mark.parametrize(
    "model, options, complaint",
    [
        (ToyModel(), {"layer_decay_style": "reverse"}, "standard, authors"),
        (ToyModel(), {"layer_decay": 0.0}, "layer_decay"),
        (torch.nn.Linear(2, 2), {"layer_decay": 0.5}, "encoder.blocks"),
        (ToyModel().requires_grad_(False), {}, "no trainable parameter"),
    ],
)
def test_wrong_options_of_groups_are_refused(model, options, complaint):
    with pytest.raises(ValueError, match=complaint):
        parameter_groups(model, 1.0, 0.0, **options)


def optimizer(*rates, reference=1.0):
    groups = [{"params": [torch.nn.Parameter(torch.ones(1))], "lr": lr} for lr in rates]
    return torch.optim.AdamW(groups, lr=reference)


def course(scheduler, updates):
    """Return the lr of the first group before each update, and after the last."""
    rates = []
    for _ in range(updates):
        rates.append(scheduler.optimizer.param_groups[0]["lr"])
        scheduler.optimizer.step()
        scheduler.step()
    return rates + [scheduler.optimizer.param_groups[0]["lr"]]


@pytest.mark.parametrize("name", GOLDEN)
def test_schedule_equals_the_authors(name):
    case = GOLDEN[name]
    peak = case["reference_lr"] * case["lr_scale"]
    scheduler = WarmupCosine(
        optimizer(peak, reference=case["reference_lr"]),
        warmup_steps=case["warmup_steps"],
        total_steps=case["total_steps"],
        min_lr=case["min_lr"],
        scale_min_lr=False,
    )
    for update, expected in case["lr"].items():
        scheduler.last_epoch = int(update)
        assert scheduler.get_lr()[0] == pytest.approx(expected, rel=1e-9, abs=1e-19)


def test_steps_follow_the_formula_and_stay_at_the_minimum():
    scheduler = WarmupCosine(optimizer(1.0), warmup_steps=2, total_steps=6, min_lr=0.2)
    rates = course(scheduler, 8)
    assert rates[:3] == pytest.approx([0.2, 0.6, 1.0])
    assert rates[4] == pytest.approx(0.6)
    assert rates[6:] == [0.2, 0.2, 0.2]


def test_scaled_minimum_keeps_the_ratio_of_the_groups():
    scheduler = WarmupCosine(
        optimizer(1.0, 0.25), warmup_steps=3, total_steps=9, min_lr=0.1
    )
    for _ in range(12):
        high, low = (group["lr"] for group in scheduler.optimizer.param_groups)
        assert low == pytest.approx(0.25 * high, rel=1e-12)
        scheduler.optimizer.step()
        scheduler.step()


def test_unscaled_minimum_leaves_small_groups_at_their_peak():
    scheduler = WarmupCosine(
        optimizer(0.05), warmup_steps=2, total_steps=6, min_lr=0.1, scale_min_lr=False
    )
    assert course(scheduler, 8) == [0.05] * 9


def test_resumed_schedule_continues_exactly_and_on_no_other_curve():
    options = {"warmup_steps": 3, "total_steps": 11, "min_lr": 1e-3}
    whole = course(WarmupCosine(optimizer(0.7), **options), 11)
    first = WarmupCosine(optimizer(0.7), **options)
    course(first, 5)
    second = WarmupCosine(optimizer(0.7), **options)
    second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert course(second, 6) == whole[5:]
    with pytest.raises(ValueError, match="total_steps 11, this run has 20"):
        WarmupCosine(optimizer(1.0), total_steps=20, warmup_steps=3).load_state_dict(
            first.state_dict()
        )


@pytest.mark.parametrize(
    "rate, options, complaint",
    [
        (1.0, {}, "total_steps is needed"),
        (1.0, {"total_steps": 5, "warmup_steps": 5}, "below total_steps"),
        (1.0, {"total_steps": 5, "warmup_steps": -1}, "0 or more"),
        (1.0, {"total_steps": 5, "min_lr": -1.0}, "min_lr"),
        (0.0, {"total_steps": 5}, "lr above 0"),
    ],
)
def test_wrong_options_of_the_schedule_are_refused(rate, options, complaint):
    with pytest.raises(ValueError, match=complaint):
        WarmupCosine(optimizer(rate, reference=rate), **options)


@pytest.mark.parametrize("total", [10, 400, 100_000])
def test_warm_up_may_be_a_share_of_all_updates(total):
    shared = WarmupCosine(optimizer(1.0), warmup_steps=0.25, total_steps=total)
    counted = WarmupCosine(
        optimizer(1.0), warmup_steps=round(total / 4), total_steps=total
    )
    counted.load_state_dict(shared.state_dict())
    assert shared.warmup_steps == counted.warmup_steps


def test_warm_up_of_no_whole_number_is_refused():
    with pytest.raises(ValueError, match=r"whole number of updates, or a share.*1\.5"):
        WarmupCosine(optimizer(1.0), warmup_steps=1.5, total_steps=10)
