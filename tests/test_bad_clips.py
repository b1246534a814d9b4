"""Clips that vanish, break or shrink under a training cost the clips, not the run."""

import os
import shutil
from functools import partial

import numpy as np
import pytest
import soundfile
import torch

from espnet2_sslam.tasks import SSLAMClassificationTask, SSLAMTask
from espnet2_sslam.tasks.crops import CropSampler
from espnet2_sslam.tasks.data import ClipSampler
from tests.test_real_training import PRETRAIN, SMALL, classify
from tests.test_surviving import (
    PARTS,
    at_update,
    run,
    within,
    written_then_die,
)
from tests.toy_task import (
    ToyTask,
    arguments,
    assert_same,
    fork,
    free_port,
    state,
    write_clips,
)

MIXED = [*PRETRAIN, "--model_conf", "mixture=true"]
SOME = ("--max_bad", "0.2")  # 2 of 13 clips


@pytest.fixture
def data(tmp_path):
    sets = [
        write_clips(tmp_path / name, count, shortest=9000)
        for name, count in (("train", 13), ("valid", 7))
    ]
    for path, count in zip(sets, (13, 7), strict=True):
        lines = [f"clip{i:02d} {('cat', 'dog')[i % 2]}\n" for i in range(count)]
        (path / "text").write_text("".join(lines))
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    return sets


def training(data, name, folder, *more):
    task, options = SSLAMTask, MIXED
    if name == "classify":
        task = SSLAMClassificationTask
        augmentation = "{mixup_alpha: 0.8, mask_ratio: 0.2, noise: 0.1}"
        options = classify(data, *SMALL, "--augment_conf", augmentation)
    return partial(task.main, cmd=arguments(*data, folder, *options, *more))


def lacking(ids, train):
    """Train with batches that lack some clips, in the order that they have anyway."""
    for sampler in (ClipSampler, CropSampler):

        def batch(self, order, index, plain=sampler.batch):
            clips = plain(self, order, index)
            return [c for c in clips if self.train is False or c.uid not in ids]

        sampler.batch = batch
    train()


def not_a_number(path):
    samples = soundfile.read(path, dtype="float32")[0]
    samples[100] = np.nan
    soundfile.write(path, samples, 16_000, "FLOAT")


SPOILT = {
    "vanished": (os.unlink, "No such file"),
    "not audio": (lambda path: path.write_bytes(b"no audio"), "cannot be read"),
    "cut": (lambda path: os.truncate(path, 17_000), "the list of lengths says at"),
    "empty": (lambda path: os.truncate(path, 0), "cannot be read"),
    "NaN": (not_a_number, "finite"),
}


def skipped(folder):
    return state(folder).pop("bad_clips")


@pytest.mark.parametrize(
    "name, more",
    [
        ("pretrain", "--num_workers 2"),
        ("pretrain", "--padding authors"),
        ("classify", "--num_workers 1"),
    ],
)
def test_a_training_goes_on_as_if_its_batches_lacked_the_bad_clips(
    data, tmp_path, name, more
):
    more, log = [*more.split(), *SOME], tmp_path / "log"
    ids = ["clip03", "clip08"]
    run(partial(lacking, ids, training(data, name, tmp_path / "a", *more)), 0)
    for uid in ids:
        (data[0] / f"{uid}.wav").unlink()
    run(training(data, name, tmp_path / "b", *more), 0, log)
    after = state(tmp_path / "b")
    known = after.pop("bad_clips")
    assert_same(after, state(tmp_path / "a"))
    assert sorted(known) == ids
    assert all(clip["bad"] and clip["skipped"] == 3 for clip in known.values())
    for uid in ids:
        lines = [line for line in log.read_text().splitlines() if f"clip {uid}" in line]
        assert len(lines) == 1, "listed once"
        assert f"{uid}.wav" in lines[0] and "No such file" in lines[0]


@pytest.mark.parametrize("kind", SPOILT)
@pytest.mark.parametrize("name", ["pretrain", "classify"])
def test_whatever_is_wrong_with_a_clip_is_said(data, tmp_path, name, kind):
    spoil, reason = SPOILT[kind]
    spoil(data[0] / "clip05.wav")
    run(training(data, name, tmp_path / "exp", *SOME), 0)
    [(uid, clip)] = skipped(tmp_path / "exp").items()
    assert uid == "clip05" and reason in clip["reason"]
    assert clip["file"] == str(data[0] / "clip05.wav")


@pytest.mark.parametrize("name", ["pretrain", "classify"])
def test_killed_and_resumed_with_a_bad_clip_equals_undisturbed(data, tmp_path, name):
    (data[0] / "clip05.wav").unlink()
    more = [*SOME, *PARTS, "--num_workers", "1"]
    run(training(data, name, tmp_path / "whole", *more), 0)
    train = training(data, name, tmp_path / "exp", *more)
    for _ in range(2):
        run(partial(at_update, 3, written_then_die, train), -9)
    assert within(tmp_path / "exp")[0] > 0
    run(train, 0)
    assert_same(state(tmp_path / "exp"), state(tmp_path / "whole"))


def test_a_clip_that_comes_back_is_used_again(data, tmp_path):
    clip, log = data[0] / "clip05.wav", tmp_path / "log"
    away = tmp_path / "away.wav"
    shutil.move(clip, away)
    train = training(data, "pretrain", tmp_path / "exp", *SOME)
    back = partial(shutil.move, away, clip)
    run(partial(at_update, 3, back, train), 0, log)
    [record] = skipped(tmp_path / "exp").values()
    assert not record["bad"] and record["skipped"] == 1
    assert f"clip clip05, {clip}: can be read again" in log.read_text()


@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.parametrize(
    "share, count, expected",
    [
        ("0", 1, "clip clip00 cannot be read"),
        ("0.01", 1, "clip clip00 cannot be read"),  # less than one clip
        ("0.2", 3, "3 of 13 clips cannot be used, more than --max_bad 0.2 allows"),
    ],
)
def test_too_many_bad_clips_are_one_line(
    data, tmp_path, share, count, expected, workers
):
    for number in range(count):
        (data[0] / f"clip{number:02d}.wav").unlink()
    more = ["--max_bad", share, "--num_workers", workers]
    run(training(data, "pretrain", tmp_path / "exp", *more), 1, tmp_path / "log")
    last = (tmp_path / "log").read_text().splitlines()[-1]
    assert last.startswith("error: ") and expected in last and "No such file" in last


def test_a_wrong_label_is_an_error_of_the_lists(data, tmp_path):
    path = data[0] / "text"
    path.write_text(path.read_text().replace("clip05 dog", "clip05 cow"))
    run(training(data, "classify", tmp_path / "exp", *SOME), 1, tmp_path / "log")
    last = (tmp_path / "log").read_text().splitlines()[-1]
    assert last.startswith("error: clip clip05 has the label cow")


@pytest.mark.parametrize("name", ["pretrain", "classify"])
def test_a_missing_clip_of_validation_is_one_line(data, tmp_path, name):
    (data[1] / "clip05.wav").unlink()
    more = ["--max_bad", "1"]
    run(training(data, name, tmp_path / "exp", *more), 1, tmp_path / "log")
    last = (tmp_path / "log").read_text().splitlines()[-1]
    assert last.startswith("error: clip clip05 cannot be read")


def test_batches_without_clips_are_no_updates(data, tmp_path):
    for number in range(9):
        (data[0] / f"clip{number:02d}.wav").unlink()
    more, log = ["--max_bad", "1", *PARTS], tmp_path / "log"
    run(training(data, "pretrain", tmp_path / "whole", *more), 0, log)
    after = state(tmp_path / "whole")
    count = log.read_text().count("No clip can be used")
    assert 0 < count < 9
    assert after["model"]["num_updates"] == 9 - count
    train = training(data, "pretrain", tmp_path / "exp", *more)
    run(partial(at_update, 2, written_then_die, train), -9)
    run(train, 0)
    assert_same(state(tmp_path / "exp"), after)


def two_ranks(train, *more):
    """Start two gloo ranks of train(*options); return their exit statuses."""
    more = [*more, "--dist_backend", "gloo", "--dist_world_size", "2"]
    more += ["--dist_master_addr", "localhost", "--dist_master_port", free_port()]
    ranks = [fork(train(*more, "--dist_rank", str(rank))) for rank in (0, 1)]
    for process in ranks:
        process.join()
    return [process.exitcode for process in ranks]


def test_ranks_agree_on_what_is_skipped(data, tmp_path):
    (data[0] / "clip05.wav").unlink()

    def train(folder):
        return lambda *more: training(data, "pretrain", tmp_path / folder, *more)

    more = [*SOME, *PARTS, "--batch_size", "6"]
    assert two_ranks(train("whole"), *more) == [0, 0]
    assert skipped(tmp_path / "whole")["clip05"]["skipped"] == 3

    def killed(*options):
        return partial(at_update, 2, written_then_die, train("exp")(*options))

    assert two_ranks(killed, *more) == [-9, -9]
    assert two_ranks(train("exp"), *more) == [0, 0]
    assert_same(state(tmp_path / "exp"), state(tmp_path / "whole"))
    for number in range(2):
        (data[0] / f"clip{number:02d}.wav").unlink()
    assert two_ranks(train("more"), *more) == [1, 1]


def test_a_rank_without_clips_leaves_the_update_to_the_others(data, tmp_path):
    """Of four clips a rank has two; both of one rank are bad."""
    first = ClipSampler([f"clip{i:02d}" for i in range(13)], 4, train=True).generate(0)
    ids = first[0][1::2]
    assert len(ids) == 2
    more = ["--max_bad", "0.2", "--max_epoch", "1", "--num_iters_per_epoch", "1"]

    def train(folder, *options):
        return partial(
            ToyTask.main, cmd=arguments(*data, tmp_path / folder, *more, *options)
        )

    run(partial(lacking, ids, train("one")), 0)
    for uid in ids:
        (data[0] / f"{uid}.wav").unlink()
    assert two_ranks(partial(train, "two")) == [0, 0]
    one, two = (state(tmp_path / name)["model"] for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, msg=name)


@pytest.mark.parametrize("name", ["pretrain", "classify"])
def test_a_list_that_lost_clips_is_gone_on_with(data, tmp_path, name):
    """As a training that has had no such clip since then."""
    ids, log = ["clip03", "clip08"], tmp_path / "log"
    balanced = []
    if name == "classify":
        balanced = ["--balanced_clips_per_epoch", "12"]

    def train(*more):
        return training(data, name, tmp_path / "exp", *PARTS, *balanced, *more)

    run(partial(at_update, 4, written_then_die, train()), -9)
    shutil.copytree(tmp_path / "exp", tmp_path / "reference")
    whole = training(data, name, tmp_path / "reference", *PARTS, *balanced)
    run(partial(lacking, ids, whole), 0)
    for file in ("wav.scp", "utt2num_samples", "text"):
        lines = (data[0] / file).read_text().splitlines(keepends=True)
        lines = [line for line in lines if line.split()[0] not in ids]
        (data[0] / file).write_text("".join(lines))
    run(train(), 1, log)
    assert "--list_sha256 train" in log.read_text().splitlines()[-1]
    run(partial(at_update, 3, written_then_die, train("--keep", "true")), -9)
    run(train(), 0)  # what was agreed to once need not be said again
    after = state(tmp_path / "exp")
    known = after.pop("bad_clips")
    assert_same(after, state(tmp_path / "reference"))
    assert known.keys() <= set(ids)
    assert all("is not in the list any more" in c["reason"] for c in known.values())


@pytest.mark.parametrize("change", ["more", "others"])
def test_a_list_that_did_not_only_lose_clips_is_another_one(data, tmp_path, change):
    run(training(data, "pretrain", tmp_path / "exp", "--max_epoch", "1"), 0)
    for file in ("wav.scp", "utt2num_samples"):
        text = (data[0] / file).read_text()
        other = text.replace("clip05 ", "clip99 ")
        if change == "more":
            other = text + text.splitlines()[5].replace("clip05 ", "clip99 ") + "\n"
        (data[0] / file).write_text(other)
    train = training(data, "pretrain", tmp_path / "exp", "--resume", "true")
    run(train, 1, tmp_path / "log")
    last = (tmp_path / "log").read_text().splitlines()[-1]
    assert "--list_sha256 train speech" in last
