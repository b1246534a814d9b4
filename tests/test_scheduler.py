"""The warm-up cosine schedule: the authors' values, groups, resume."""

import copy
import json
from pathlib import Path

import pytest
import torch

from espnet2_sslam.tasks import WarmupCosine

GOLDEN = json.loads((Path(__file__).parent / "golden/schedules.json").read_text())


def optimizer(*rates, reference=1.0):
    groups = [{"params": [torch.nn.Parameter(torch.ones(1))], "lr": lr} for lr in rates]
    return torch.optim.AdamW(groups, lr=reference)


def rates_of(scheduler, updates):
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
    rates = rates_of(scheduler, 8)
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
    assert rates_of(scheduler, 8) == [0.05] * 9


def test_resumed_schedule_continues_exactly():
    options = {"warmup_steps": 3, "total_steps": 11, "min_lr": 1e-3}
    whole = rates_of(WarmupCosine(optimizer(0.7), **options), 11)
    first = WarmupCosine(optimizer(0.7), **options)
    rates_of(first, 5)
    second = WarmupCosine(optimizer(0.7), **options)
    second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert rates_of(second, 6) == whole[5:]


def test_resuming_another_curve_is_refused():
    state = WarmupCosine(optimizer(1.0), total_steps=10).state_dict()
    with pytest.raises(ValueError, match="total_steps 10, this run has 20"):
        WarmupCosine(optimizer(1.0), total_steps=20).load_state_dict(state)


@pytest.mark.parametrize(
    "options, complaint",
    [
        ({}, "total_steps is needed"),
        ({"total_steps": 5, "warmup_steps": 5}, "below total_steps"),
        ({"total_steps": 5, "warmup_steps": -1}, "0 or more"),
        ({"total_steps": 5, "min_lr": -1.0}, "min_lr"),
    ],
)
def test_wrong_options_are_refused(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        WarmupCosine(optimizer(1.0), **options)


def test_a_rate_of_zero_is_refused():
    with pytest.raises(ValueError, match="lr above 0"):
        WarmupCosine(optimizer(0.0, reference=0.0), total_steps=5)
