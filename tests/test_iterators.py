"""Which clips make up a batch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet2_sslam.corpus import class_balanced_weights
from espnet2_sslam.tasks import (
    BalancedSampler,
    ClipSampler,
    EpochIterFactory,
    batches_per_pass,
)


def names(count):
    return [f"clip{number}" for number in range(count)]


class Clips:
    """A dataset whose pre-processor remembers the epoch."""

    def __init__(self):
        self.preprocess = self
        self.epoch = None

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __getitem__(self, uid):
        return uid


def epoch(sampler, number, **options):
    factory = EpochIterFactory(Clips(), sampler, collate_fn=list, **options)
    return list(factory.build_iter(number))


def test_partners_change_between_passes_and_every_clip_comes_once():
    sampler = ClipSampler(names(24), 4, train=True, seed=1)
    first, second = sampler.generate(0), sampler.generate(1)
    for batches in (first, second):
        assert sorted(sum(batches, [])) == sorted(names(24))
        assert [len(batch) for batch in batches] == [4] * 6
    assert {frozenset(batch) for batch in first}.isdisjoint(map(frozenset, second))


def test_order_depends_on_seed_and_pass_alone():
    def make(seed):
        return ClipSampler(names(9), 3, train=True, seed=seed)

    assert make(5).generate(2) == make(5).generate(2)
    assert make(5).generate(2) != make(6).generate(2)
    assert make(5).generate(6) != make(6).generate(5)


@settings(deadline=None)
@given(
    clips=st.integers(1, 60),
    size=st.integers(1, 20),
    world=st.integers(1, 3),
    least=st.integers(1, 2),
    train=st.booleans(),
    drop=st.booleans(),
)
def test_ranks_share_each_batch_and_none_gets_too_few(
    clips, size, world, least, train, drop
):
    options = {"train": train, "drop_last": drop, "min_clips_per_rank": least}
    try:
        ranks = [
            ClipSampler(names(clips), size, rank=r, world_size=world, **options)
            for r in range(world)
        ]
    except ValueError:
        too_small = min(size, clips) < least * world
        assert too_small or (train and drop and clips < size)
        return
    batches = [sampler.generate(3) for sampler in ranks]
    assert len({len(own) for own in batches}) == 1
    for parts in zip(*batches):
        assert min(map(len, parts)) >= least
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        if not train:
            assert sum(map(len, parts)) <= max(size, 2 * least * world - 1)
    seen = [uid for own in batches for batch in own for uid in batch]
    assert len(seen) == len(set(seen))
    assert len(seen) == (clips // size * size if train and drop else clips)


def test_left_over_clips_are_spread_as_espnet_does():
    assert batches_per_pass(24, 5, train=True) == 4
    sampler = ClipSampler(names(24), 5, train=True)
    assert [len(batch) for batch in sampler.generate(0)] == [6, 6, 6, 6]
    sampler = ClipSampler(names(24), 5, train=True, drop_last=True)
    assert [len(batch) for batch in sampler.generate(0)] == [5, 5, 5, 5]


@pytest.mark.parametrize(
    "clips, size, options, complaint",
    [
        (10, 1, {"min_clips_per_rank": 2}, "--batch_size 1 is too small"),
        (1, 8, {"min_clips_per_rank": 2}, "1 clips are too few"),
        (3, 8, {"world_size": 4}, "3 clips are too few"),
        (3, 8, {"drop_last": True}, "batch of 8"),
    ],
)
def test_too_few_clips_are_refused(clips, size, options, complaint):
    with pytest.raises(ValueError, match=complaint):
        ClipSampler(names(clips), size, train=True, **options)


def test_validation_keeps_the_order_in_every_epoch():
    sampler = ClipSampler(names(7), 3, train=False)
    assert sum(epoch(sampler, 1), []) == sum(epoch(sampler, 5), []) == names(7)


def test_short_epochs_go_on_through_the_passes():
    sampler = ClipSampler(names(10), 2, train=True)
    passes = sampler.generate(0) + sampler.generate(1)
    short = sum((epoch(sampler, e, num_iters_per_epoch=2) for e in range(1, 6)), [])
    assert short == passes
    assert epoch(sampler, 1, num_iters_per_epoch=10) == passes


@pytest.mark.parametrize("num_workers", [0, 2])
def test_preprocessor_learns_the_epoch_before_the_workers_start(num_workers):
    class Epochs(Clips):
        def __getitem__(self, uid):
            return self.epoch

    sampler = ClipSampler(names(4), 2, train=True)
    factory = EpochIterFactory(
        Epochs(), sampler, collate_fn=list, num_workers=num_workers
    )
    for number in (1, 2):
        assert list(factory.build_iter(number)) == [[number] * 2] * 2


def test_max_batches_ends_an_epoch_early():
    sampler = ClipSampler(names(10), 1, train=False)
    assert epoch(sampler, 3, max_batches=2) == [["clip0"], ["clip1"]]


def test_ids_may_hold_any_letters():
    keys = ["Straße/ä.wav", "日本", "plain"]
    assert ClipSampler(keys, 3, train=False).generate(0) == [keys]


def test_weights_are_the_published_sum_over_labels():
    weights = class_balanced_weights([["a"], ["a", "b"], []])
    rare, common = 1000 / 1.01, 1000 / 2.01
    assert weights == pytest.approx([common, common + rare, 0.0])


def test_balanced_sampling_draws_rare_classes_more_often_without_repeats():
    labels = [["common"]] * 95 + [["rare"]] * 5
    weights = class_balanced_weights(labels)
    sampler = BalancedSampler(names(100), 5, weights=weights, num_samples=10)
    rare = 0
    for number in range(200):
        drawn = sum(sampler.generate(number), [])
        assert len(drawn) == len(set(drawn)) == 10
        rare += sum(int(uid[4:]) >= 95 for uid in drawn)
    # 3.67 of 10: numpy's Generator.choice(replace=False, p=weights), 20000 times.
    assert rare / 200 == pytest.approx(3.67, abs=0.3)


def test_balanced_sampling_never_draws_a_clip_without_label():
    weights = np.array([1.0, 0.0, 1.0, 1.0])
    sampler = BalancedSampler(names(4), 3, weights=weights, num_samples=3)
    assert set(sum(sampler.generate(0), [])) == {"clip0", "clip2", "clip3"}
    with pytest.raises(ValueError, match="from 1 to 3"):
        BalancedSampler(names(4), 3, weights=weights, num_samples=4)


def test_balanced_ranks_share_the_same_draw():
    weights = np.ones(20)
    options = {"weights": weights, "num_samples": 8, "world_size": 2}
    parts = [
        BalancedSampler(names(20), 4, rank=r, **options).generate(1) for r in (0, 1)
    ]
    drawn = [uid for own in parts for batch in own for uid in batch]
    assert len(set(drawn)) == 8
