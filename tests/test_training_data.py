"""From lists to batches: how one clip is made ready, which clips make up a batch."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet2_sslam.corpus import class_balanced_weights
from espnet2_sslam.tasks import (
    ClipDataset,
    ClipError,
    ClipPreprocessor,
    ClipSampler,
    EpochIterFactory,
    batches_per_pass,
    collate_clips,
    read_keys,
    read_labels,
    read_weights,
)
from tests.toy_task import write_clips


def wave(size=1000, dtype=np.float32):
    return np.linspace(-0.5, 0.5, size).astype(dtype)


def speech(preprocess, array, uid="a"):
    return preprocess(uid, {"speech": array})["speech"]


def names(count):
    return [f"clip{number}" for number in range(count)]


def flat(batches):
    return [uid for batch in batches for uid in batch]


def test_whole_numbers_become_audio_between_minus_one_and_one():
    numbers = np.array([-32768, 0, 16384] * 200, dtype=np.int16)
    result = speech(ClipPreprocessor(False), numbers)
    assert result.dtype == np.float32
    assert result[:3] == pytest.approx([-1.0, 0.0, 0.5])
    long = numbers.astype(np.int32) * 65536
    assert (speech(ClipPreprocessor(False), long) == result).all()


@pytest.mark.parametrize(
    "array, complaint",
    [
        (np.zeros((1000, 2), np.float32), r"clip bad has shape \(1000, 2\), mono"),
        (np.zeros(1, np.float32), "clip bad has 1 samples, 400"),
        (np.zeros(0, np.float32), "clip bad has 0 samples"),
        (np.full(1000, np.nan, np.float32), "clip bad: not finite: NaN"),
        (np.zeros(1000, np.int64), "clip bad: not audio: .* got int64"),
    ],
)
def test_unusable_audio_is_an_error_that_names_the_clip(array, complaint):
    with pytest.raises(ClipError, match=complaint):
        speech(ClipPreprocessor(True), array, "bad")


def test_crops_are_keyed_by_seed_epoch_and_clip():
    def crop(seed=0, epoch=1, uid="a"):
        preprocess = ClipPreprocessor(True, max_samples=400, seed=seed)
        preprocess.set_epoch(epoch)
        speech(preprocess, wave(), "other")
        return speech(preprocess, wave(), uid)[0]

    np.random.seed(0)
    first = crop()
    np.random.seed(1)
    assert crop() == first
    assert len({first, crop(seed=1), crop(epoch=2), crop(uid="b")}) == 4


def test_crops_reach_both_ends_in_training_and_are_the_start_in_validation():
    preprocess = ClipPreprocessor(True, max_samples=400)
    starts = set()
    for epoch in range(60):
        preprocess.set_epoch(epoch)
        first = speech(preprocess, np.arange(403, dtype=np.float32) / 1024)[0]
        starts.add(int(first * 1024))
    assert starts == {0, 1, 2, 3}
    assert len(speech(preprocess, wave(400))) == 400
    start = speech(ClipPreprocessor(False, max_samples=400), wave())
    assert (start == wave()[:400]).all()


def test_log_mel_input_is_cut_in_frames():
    preprocess = ClipPreprocessor(False, max_samples=1600, input_size=128)
    result = speech(preprocess, np.ones((20, 128), np.float64))
    assert result.shape == (10, 128) and result.dtype == np.float32
    with pytest.raises(ClipError, match="log-mel"):
        speech(preprocess, np.ones((20, 80), np.float32))


def test_labels_become_a_vector_in_class_order():
    preprocess = ClipPreprocessor(True, class_list=["cat", "dog", "owl"])
    assert preprocess("a", {"label": "owl cat"})["label"].tolist() == [1.0, 0.0, 1.0]
    assert preprocess("a", {"label": ""})["label"].tolist() == [0.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="twice"):
        ClipPreprocessor(True, class_list=["cat", "cat"])


@pytest.mark.parametrize(
    "options, text, complaint",
    [
        ({"class_list": ["cat"]}, "dog", "clip a has the label dog"),
        ({"class_list": ["cat"], "single_label": True}, "", "clip a has 0 labels"),
        ({}, "cat", "class list"),
    ],
)
def test_wrong_labels_are_an_error_that_names_the_clip(options, text, complaint):
    with pytest.raises(ClipError, match=complaint):
        ClipPreprocessor(True, **options)("a", {"label": text})


def test_collate_pads_with_zeros_and_counts():
    clips = [
        ("a", {"speech": wave(5), "label": np.array([1.0, 0.0], np.float32)}),
        ("b", {"speech": wave(3), "label": np.array([0.0, 1.0], np.float32)}),
    ]
    ids, batch = collate_clips(clips)
    assert ids == ["a", "b"]
    assert batch["speech"].shape == (2, 5) and batch["speech"][1, 3:].tolist() == [0, 0]
    assert batch["speech_lengths"].tolist() == [5, 3]
    assert batch["label"].tolist() == [[1.0, 0.0], [0.0, 1.0]]
    frames = [("a", {"speech": np.ones((4, 128), np.float32)})]
    assert collate_clips(frames)[1]["speech"].shape == (1, 4, 128)


def test_a_byte_order_mark_is_no_part_of_an_id_or_said_to_be_there(tmp_path):
    folder = write_clips(tmp_path / "clips", 2)
    text, weights, wav = folder / "text", folder / "weights", folder / "wav.scp"
    text.write_text("\ufeffclip00 cat\nclip01 dog cat\n")
    weights.write_text("\ufeffclip00 1\nclip01 0.5\n")
    wav.write_text("\ufeff" + wav.read_text())
    keys = read_keys(wav)
    assert keys == ["clip00", "clip01"]
    assert read_labels([(text, "label", "text")], keys) == [["cat"], ["dog", "cat"]]
    assert read_weights(weights, keys).tolist() == [1.0, 0.5]
    dataset = ClipDataset([(str(wav), "speech", "sound")])
    with pytest.raises(ValueError, match="begins with a byte order mark"):
        dataset.check_keys(keys)


class Clips:
    """A dataset whose pre-processor remembers the epoch, which is also its content."""

    def __init__(self, content=None):
        self.preprocess = self
        self.content = content

    def set_epoch(self, epoch):
        self.epoch = epoch

    @property
    def process(self):
        return os.getpid()

    def __getitem__(self, uid):
        return uid if self.content is None else getattr(self, self.content)


def epoch(sampler, number, **options):
    factory = EpochIterFactory(Clips(), sampler, collate_fn=list, **options)
    return list(factory.build_iter(number))


def test_partners_change_between_passes_and_every_clip_comes_once():
    sampler = ClipSampler(names(24), 4, train=True, seed=1)
    first, second = sampler.generate(0), sampler.generate(1)
    for batches in (first, second):
        assert sorted(flat(batches)) == sorted(names(24))
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
    for parts in zip(*batches, strict=True):
        assert min(map(len, parts)) >= least
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        if not train:
            assert sum(map(len, parts)) <= max(size, 2 * least * world - 1)
    seen = [uid for own in batches for batch in own for uid in batch]
    assert len(seen) == len(set(seen))
    assert len(seen) == (clips // size * size if train and drop else clips)


def test_left_over_clips_are_spread_as_espnet_does():
    assert batches_per_pass(24, 5, train=True) == 4
    for drop_last, sizes in ((False, [6] * 4), (True, [5] * 4)):
        sampler = ClipSampler(names(24), 5, train=True, drop_last=drop_last)
        assert [len(batch) for batch in sampler.generate(0)] == sizes


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


def test_validation_keeps_the_order_in_every_epoch_of_any_ids():
    keys = ["Straße/ä.wav", "日本", *names(5)]
    sampler = ClipSampler(keys, 3, train=False)
    assert flat(epoch(sampler, 1)) == flat(epoch(sampler, 5)) == keys
    assert epoch(sampler, 3, max_batches=1) == [sampler.generate(0)[0]]


def test_short_epochs_go_on_through_the_passes():
    sampler = ClipSampler(names(10), 2, train=True)
    passes = sampler.generate(0) + sampler.generate(1)
    short = flat(epoch(sampler, e, num_iters_per_epoch=2) for e in range(1, 6))
    assert short == passes
    assert epoch(sampler, 1, num_iters_per_epoch=10) == passes


@pytest.mark.parametrize("num_workers", [0, 2])
def test_preprocessor_learns_the_epoch_with_every_clip(num_workers):
    options = {"collate_fn": list, "num_workers": num_workers}
    sampler = ClipSampler(names(4), 2, train=True)
    factory = EpochIterFactory(Clips("epoch"), sampler, **options)
    for number in (1, 2):
        assert list(factory.build_iter(number)) == [[number] * 2] * 2


@pytest.mark.parametrize("train", [True, False])
def test_the_workers_of_a_training_stay_from_epoch_to_epoch(train):
    sampler = ClipSampler(names(12), 2, train=train)
    options = {"collate_fn": list, "num_workers": 2}
    factory = EpochIterFactory(Clips("process"), sampler, **options)
    numbers = [set(flat(factory.build_iter(epoch))) for epoch in (1, 2, 3)]
    assert all(len(each) == 2 and os.getpid() not in each for each in numbers)
    assert (numbers[0] == numbers[1] == numbers[2]) == train


def test_an_epoch_that_was_left_early_does_not_reach_into_the_next():
    sampler = ClipSampler(names(40), 2, train=True)
    options = {"collate_fn": list, "num_workers": 2}
    factory = EpochIterFactory(Clips(), sampler, **options)
    for _ in zip(range(3), factory.build_iter(1), strict=False):
        pass
    assert list(factory.build_iter(2)) == epoch(sampler, 2)


def test_a_loader_draws_as_much_whether_its_workers_are_new_or_not():
    sampler = ClipSampler(names(4), 2, train=True)
    options = {"collate_fn": list, "num_workers": 1}
    factory, draws = EpochIterFactory(Clips(), sampler, **options), []
    for each in (factory, factory, EpochIterFactory(Clips(), sampler, **options)):
        torch.manual_seed(1)
        list(each.build_iter(2))
        draws.append(float(torch.rand(())))
    assert len(set(draws)) == 1


ORPHANS = """
import os, time
from espnet2_sslam.tasks import ClipSampler, EpochIterFactory
from tests.test_training_data import Clips
sampler = ClipSampler([f"clip{i}" for i in range(12)], 2, train=True)
factory = EpochIterFactory(Clips("process"), sampler, collate_fn=list, num_workers=2)
print(*sorted({i for batch in factory.build_iter(1) for i in batch}), flush=True)
time.sleep(60)
"""


@pytest.mark.slow
def test_workers_die_with_their_parent():
    process = subprocess.Popen(
        [sys.executable, "-c", ORPHANS], stdout=subprocess.PIPE, text=True
    )
    workers = [int(word) for word in process.stdout.readline().split()]
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 10
    while any(map(alive, workers)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert len(workers) == 2


def alive(number):
    """Whether a process runs: one that is dead may wait for its new parent."""
    try:
        state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_weights_are_the_published_sum_over_labels():
    weights = class_balanced_weights([["a"], ["a", "b"], []])
    rare, common = 1000 / 1.01, 1000 / 2.01
    assert weights == pytest.approx([common, common + rare, 0.0])


def balanced(count, size, **options):
    return ClipSampler(names(count), size, train=True, **options)


def test_balanced_sampling_draws_rare_classes_more_often_without_repeats():
    weights = class_balanced_weights([["common"]] * 95 + [["rare"]] * 5)
    sampler = balanced(100, 5, weights=weights, num_samples=10)
    rare = 0
    for number in range(200):
        drawn = flat(sampler.generate(number))
        assert len(drawn) == len(set(drawn)) == 10
        rare += sum(int(uid[4:]) >= 95 for uid in drawn)
    # 3.67 of 10: numpy's Generator.choice(replace=False, p=weights), 20000 times.
    assert rare / 200 == pytest.approx(3.67, abs=0.3)


def test_balanced_sampling_never_draws_a_clip_without_label():
    weights = np.array([1.0, 0.0, 1.0, 1.0])
    sampler = balanced(4, 3, weights=weights, num_samples=3)
    assert set(flat(sampler.generate(0))) == {"clip0", "clip2", "clip3"}
    with pytest.raises(ValueError, match="from 1 to 3"):
        balanced(4, 3, weights=weights, num_samples=4)


def test_balanced_ranks_share_the_same_draw():
    options = {"weights": np.ones(20), "num_samples": 8, "world_size": 2}
    ranks = [balanced(20, 4, rank=r, **options) for r in (0, 1)]
    drawn = [uid for rank in ranks for batch in rank.generate(1) for uid in batch]
    assert len(set(drawn)) == len(drawn) == 8
