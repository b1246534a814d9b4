"""A whole training through ESPnet, with a toy: what is computed, kept and resumed."""

import errno
import itertools
import os
import shutil
import threading
from pathlib import Path

import espnet2.train.trainer
import pytest
import soundfile
import torch
from espnet2.train.distributed_utils import DistributedOption
from espnet2.train.reporter import Reporter
from espnet2.train.trainer import Trainer

from espnet2_sslam import store
from espnet2_sslam.tasks import SafeTrainer, trainer
from espnet2_sslam.tasks.trainer import precision
from tests.toy_task import ToyModel, ToyTask, arguments, assert_same, state, write_clips


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return write_clips(folder / "train", 13), write_clips(folder / "valid", 6)


@pytest.fixture
def train(data, tmp_path):
    """Return a function that trains into tmp_path/<name> and returns that folder."""

    def run(name, *more):
        ToyTask.main(cmd=arguments(*data, tmp_path / name, *more))
        return tmp_path / name

    return run


def test_validation_statistics_cover_the_whole_set_and_choose_the_best(train):
    folder = train("exp", "--best_model_criterion", "valid,clips,max")
    reporter = state(folder)["reporter"]
    stats = reporter["stats"][reporter["epoch"]]["valid"]
    assert stats["clips"] == stats["different"] == 6
    assert os.readlink(folder / "valid.clips.best.pth").endswith("epoch.pth")


def epoch(data, folder, model, batches, *more, scaler=None, distributed=False):
    """Train one epoch of given batches; returns the optimizer."""
    args = ToyTask.get_parser().parse_args(arguments(*data, folder, *more))
    [optimizer] = ToyTask.build_optimizers(args, model)
    reporter = Reporter()
    reporter.set_epoch(2)
    with reporter.observe("train") as sub_reporter:
        SafeTrainer.train_one_epoch(
            model=model,
            iterator=batches,
            optimizers=[optimizer],
            schedulers=[None],
            scaler=scaler,
            reporter=sub_reporter,
            summary_writer=None,
            options=SafeTrainer.build_options(args),
            distributed_option=DistributedOption(distributed=distributed),
        )
    return optimizer


def test_ranks_draw_different_numbers_and_the_first_as_one_process(
    data, tmp_path, monkeypatch
):
    seeds = []
    for rank in (0, 1):
        monkeypatch.setattr(trainer, "rank", lambda rank=rank: rank)
        epoch(data, tmp_path, ToyModel(), [], "--seed", "3", distributed=True)
        seeds.append(torch.initial_seed())
    assert seeds[0] == 3 + 2 and seeds[1] != seeds[0]


def test_partners_change_between_epochs(train, tmp_path):
    log = tmp_path / "clips.txt"
    train("exp", "--log_clips", str(log), "--max_epoch", "2")
    batches = [set(line.split()) for line in log.read_text().splitlines()]
    assert len(batches) == 6
    assert set.union(*batches[:3]) == set.union(*batches[3:])
    assert all(batch not in batches[:3] for batch in batches[3:])


def test_teacher_moves_once_per_real_step_and_the_steps_are_counted(train):
    states = state(train("exp", "--num_iters_per_epoch", "6", "--accum_grad", "2"))
    assert states["model"]["num_updates"] == 9
    assert states["schedulers"][0]["total_steps"] == 9
    assert states["schedulers"][0]["last_epoch"] == 9
    # the teacher is saved, and not in the optimizer
    assert any(name.startswith("teacher.") for name in states["model"])
    trained = sum(len(g["params"]) for g in states["optimizers"][0]["param_groups"])
    assert trained == sum(p.requires_grad for p in ToyModel().parameters())


BF16 = "--use_amp true --amp_dtype bf16"


@pytest.mark.parametrize("more", ["", BF16])
def test_a_skipped_step_moves_neither_teacher_nor_schedule(train, monkeypatch, more):
    clip = torch.nn.utils.clip_grad_norm_
    calls = []

    def broken_once(*args, **kwargs):
        calls.append(1)
        norm = clip(*args, **kwargs)
        return norm * float("nan") if len(calls) == 2 else norm

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", broken_once)
    states = state(train("exp", *more.split()))
    assert states["model"]["num_updates"] == 8
    assert states["schedulers"][0]["last_epoch"] == 8


@pytest.mark.parametrize("fused", [False, True])
def test_infinite_gradients_move_neither_weights_nor_teacher(data, tmp_path, fused):
    class Broken(ToyModel):
        def forward(self, speech, speech_lengths, **_):
            loss, stats, weight = super().forward(speech, speech_lengths)
            before.append([p.detach().clone() for p in self.parameters()])
            return loss * (float("inf") if len(before) in (3, 5) else 1), stats, weight

    before = []
    model = Broken()
    speech = torch.randn(4, 1600)
    batch = ("abcd", {"speech": speech, "speech_lengths": torch.full((4,), 1600)})
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    more = ("--optim_conf", f"fused={fused}")
    optimizer = epoch(data, tmp_path, model, [batch] * 6, *more, scaler=scaler)
    states = [*before, list(model.parameters())]
    moved = [not all(map(torch.equal, *pair)) for pair in itertools.pairwise(states)]
    assert moved == [True, True, False, True, False, True]
    assert float(model.num_updates) == 4
    assert {int(state["step"]) for state in optimizer.state.values()} == {4}
    assert scaler.get_scale() == 2.0 / 4


def test_mixed_precision_is_what_was_asked_for_and_said(train, caplog):
    caplog.set_level("INFO")
    folder = train("exp", *BF16.split())
    assert "precision: bf16 autocast without loss scaler" in caplog.text
    assert "amp_dtype: bf16" in (folder / "config.yaml").read_text()
    half = state(folder)
    assert half["scaler"] is None
    whole = state(train("whole"))["model"]["head.weight"]
    assert not torch.equal(half["model"]["head.weight"], whole)
    assert "precision: float32" in caplog.text


@pytest.mark.parametrize("native, dtype", [(True, "bf16"), (False, "fp16")])
def test_a_gpu_computes_in_bf16_where_it_has_it(
    data, tmp_path, monkeypatch, native, dtype
):
    def supported(including_emulation=True):
        return including_emulation or native

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    more = ("--use_amp", "true", "--ngpu", "1")
    args = ToyTask.get_parser().parse_args(arguments(*data, tmp_path, *more))
    ToyTask.check_and_complete(args)
    assert args.amp_dtype == dtype and not args.use_tf32


@pytest.mark.parametrize(
    "more, used",
    [("--ngpu 1", True), ("--ngpu 1 --use_tf32 false", False), ("", False)],
)
def test_float32_on_a_gpu_multiplies_in_tf32(data, tmp_path, more, used):
    args = ToyTask.get_parser().parse_args(arguments(*data, tmp_path, *more.split()))
    ToyTask.check_and_complete(args)
    assert args.use_tf32 is used
    said = precision(ToyTask.trainer.build_options(args))
    assert said == ("float32, products in TF32" if used else "float32")


def test_two_runs_are_equal_with_any_workers_and_another_seed_is_not(train):
    more = ("--max_samples", "1500")
    one = state(train("one", *more, "--num_workers", "0"))
    assert_same(one, state(train("other", *more, "--num_workers", "2")))
    different = state(train("different", *more, "--seed", "7"))
    assert not torch.equal(
        one["model"]["head.weight"], different["model"]["head.weight"]
    )


def test_resuming_from_a_short_epoch_equals_going_on(train):
    more = ("--scheduler_conf", "total_steps=9", "--max_samples", "1500")
    more = (*more, "--num_iters_per_epoch", "2")
    whole = state(train("whole", *more))
    train("parts", *more, "--max_epoch", "1")
    parts = state(train("parts", *more, "--resume", "true"))
    assert_same(whole, parts)


def test_a_kill_between_the_files_of_an_epoch_is_repaired(train):
    more = ("--keep_nbest_models", "3")
    folder = train("exp", *more)
    weights = torch.load(folder / "3epoch.pth")
    for name in ("3epoch.pth", "latest.pth", "valid.loss.best.pth"):
        (folder / name).unlink()
    (folder / ".checkpoint.pth.77.tmp").write_bytes(b"half")
    train("exp", *more, "--resume", "true")
    assert_same(dict(torch.load(folder / "latest.pth")), dict(weights))
    assert (folder / "valid.loss.best.pth").exists()
    assert not list(folder.glob(".*.tmp"))


@pytest.mark.parametrize("kept", [0, 500])
def test_a_broken_checkpoint_is_one_line_with_the_way_out(train, kept):
    folder = train("exp", "--max_epoch", "1")
    checkpoint = folder / "checkpoint.pth"
    checkpoint.write_bytes(checkpoint.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"damaged or truncated.*delete it") as caught:
        train("exp", "--max_epoch", "1", "--resume", "true")
    assert "\n" not in str(caught.value)


def test_resuming_a_training_that_stopped_early_trains_no_more(train):
    more = ("--patience", "0", "--early_stopping_criterion", "valid", "clips", "max")
    folder = train("exp", *more, "--max_epoch", "5")
    assert state(folder)["reporter"]["epoch"] == 2
    train("exp", *more, "--max_epoch", "5", "--resume", "true")
    assert state(folder)["reporter"]["epoch"] == 2


@pytest.mark.parametrize(
    "more, option",
    [
        (("--seed", "3"), "--seed 0, this run has 3"),
        (("--batch_size", "5"), "--batch_size 4, this run has 5"),
        (("--optim_conf", "lr=0.02"), "--optim_conf"),
        (("--max_epoch", "2"), "--max_epoch 3, this run has 2"),
        (("--valid_batch_size", "3"), "--valid_batch_size None, this run has 3"),
        (("--freeze_param", "encoder"), "--freeze_param"),
        (("--width", "5"), "--width 4"),
        (("--dist_world_size", "2", "--dist_rank", "0"), "--world_size 1, this run"),
    ],
)
def test_resuming_with_other_settings_is_refused(train, more, option):
    train("exp")
    with pytest.raises(ValueError, match=option):
        train("exp", "--resume", "true", *more)


def test_resuming_with_other_lists_is_refused(train, data, tmp_path):
    folder = train("exp", "--max_epoch", "1")
    record = (folder / "config.yaml").read_text()
    other = write_clips(tmp_path / "other", 9)
    with pytest.raises(ValueError, match="--list_sha256 train speech") as caught:
        ToyTask.main(cmd=arguments(other, data[1], folder, "--resume", "true"))
    assert "valid" not in str(caught.value)
    assert (folder / "config.yaml").read_text() == record


def test_resuming_on_other_audio_of_the_same_names_is_refused(train, data, tmp_path):
    """Where a list beside the audio's says what the clips hold, that counts."""
    other = shutil.copytree(data[0], tmp_path / "other")
    keys = [line.split()[0] for line in (other / "wav.scp").read_text().splitlines()]
    contents = other / "utt2sha256"
    contents.write_text("".join(f"{key} {key[::-1]}\n" for key in keys))
    folder = tmp_path / "exp"
    ToyTask.main(cmd=arguments(other, data[1], folder, "--max_epoch", "1"))
    contents.write_text("".join(f"{key} other\n" for key in keys))
    resume = ("--resume", "true", "--max_epoch", "1")
    with pytest.raises(ValueError, match="--list_sha256 train speech"):
        ToyTask.main(cmd=arguments(other, data[1], folder, *resume))


def test_a_changed_training_goes_on_when_asked_to_and_says_so(train, caplog):
    folder = train("exp", "--max_epoch", "1")
    more = ["--resume", "true", "--optim_conf", "lr=0.02"]
    train("exp", *more, "--keep", "true")
    assert state(folder)["reporter"]["epoch"] == 3
    [line] = (folder / "kept.txt").read_text().splitlines()
    assert line.startswith("--optim_conf lr was ") and line.endswith(", then 0.02")
    assert "(--keep true)" in caplog.text


def test_weights_to_begin_with_count_by_content(train, tmp_path):
    begin = train("begin", "--max_epoch", "1") / "latest.pth"
    first, moved = tmp_path / "first.pth", tmp_path / "moved.pth"
    shutil.copy(begin, first)
    train("exp", "--max_epoch", "1", "--init_param", str(first))
    first.rename(moved)
    train("exp", "--resume", "true", "--init_param", str(moved))
    shutil.copy(train("next", "--seed", "5") / "latest.pth", moved)
    with pytest.raises(ValueError, match="--list_sha256 init_param 1"):
        train("exp", "--resume", "true", "--init_param", str(moved))


def test_resuming_in_another_way_is_the_same_training(train, data, tmp_path):
    """Lists may lie elsewhere; how many processes load, and what is logged, is free."""
    whole = train("whole", "--scheduler_conf", "total_steps=9")
    folder = train("exp", "--scheduler_conf", "total_steps=9", "--max_epoch", "1")
    moved = shutil.copytree(data[0], tmp_path / "moved")
    lists = (moved / "wav.scp").read_text().replace(str(data[0]), str(moved))
    (moved / "wav.scp").write_text(lists)
    more = ["--resume", "true", "--num_workers", "1", "--log_interval", "1"]
    more += ["--scheduler_conf", "total_steps=9"]
    ToyTask.main(cmd=arguments(moved, data[1], folder, *more))
    assert_same(state(folder), state(whole))


def test_more_epochs_go_on_along_another_schedule(train, caplog):
    folder = train("exp", "--max_epoch", "2")
    train("exp", "--max_epoch", "4", "--resume", "true")
    assert "that of 12 updates, not 6" in caplog.text
    states = state(folder)
    assert states["reporter"]["epoch"] == 4
    assert states["schedulers"][0]["total_steps"] == 12
    assert states["schedulers"][0]["_last_lr"] == pytest.approx([0, 0], abs=1e-9)


def test_a_folder_has_one_training(train, tmp_path):
    with store.lock(tmp_path / "exp" / ".lock"):
        with pytest.raises(ValueError, match="another training works in"):
            train("exp")


@pytest.mark.parametrize(
    "more, expected",
    [
        ("--optim_conf lr=1.0e+25 --grad_clip 1.0e30", "epoch 1: .*not finite"),
        ("--grad_clip_type inf", "epoch 1: no update has a finite gradient"),
    ],
)
def test_a_broken_training_ends_with_an_error(train, monkeypatch, more, expected):
    if "inf" in more:
        nan = lambda *_, **__: torch.tensor(float("nan"))  # noqa: E731
        monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", nan)
    with pytest.raises(ValueError, match=expected) as caught:
        train("exp", *more.split())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "factor, expected", [(0, "are silent"), (1e30, "clip .* overload")]
)
def test_data_that_teach_nothing_are_refused(data, tmp_path, factor, expected):
    folder = write_clips(tmp_path / "train", 13)
    for path in folder.glob("*.wav"):
        wave, rate = soundfile.read(path)
        soundfile.write(path, wave * factor, rate, subtype="FLOAT")
    with pytest.raises(ValueError, match=expected):
        ToyTask.main(cmd=arguments(folder, data[1], tmp_path / "exp"))


def test_a_collapse_ends_with_an_error(train, data, tmp_path):
    class Collapsing(ToyModel):
        def forward(self, speech, speech_lengths, **_):
            loss, stats, weight = super().forward(speech, speech_lengths)
            return loss, {**stats, "target_var": loss.new_tensor(0.05)}, weight

    speech = torch.randn(4, 1600)
    batch = ("abcd", {"speech": speech, "speech_lengths": torch.full((4,), 1600)})
    for more in ("", "--min_target_var 0.01 --collapse_from 0"):
        epoch(data, tmp_path, Collapsing(), [batch] * 6, *more.split())
    with pytest.raises(ValueError, match="target_var is 0.05, below 0.1"):
        epoch(data, tmp_path, Collapsing(), [batch] * 6, "--collapse_from", "3")


def test_averaged_models_keep_a_sensible_counter(train):
    folder = train("exp", "--keep_nbest_models", "2")
    averaged = torch.load(folder / "valid.loss.ave_2best.pth")
    assert averaged["num_updates"] == pytest.approx((6 + 9) / 2)


def test_tensorboard_and_plots_are_written(train):
    more = ("--use_tensorboard", "true", "--use_matplotlib", "true")
    folder = train("exp", *more, "--max_epoch", "1")
    assert list((folder / "tensorboard/valid").glob("events*"))
    assert (folder / "images/loss.png").exists()


def test_a_disk_that_is_full_within_an_epoch_costs_a_checkpoint_only(
    train, monkeypatch, caplog
):
    sync, full = os.fsync, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fsync(descriptor):
        if threading.current_thread() is not threading.main_thread():
            raise full
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    folder = train("exp", "--checkpoint_updates", "1")
    assert "No space left" in caplog.text
    assert_same(state(folder), state(train("whole")))
    assert not list(folder.glob(".*.tmp"))


def test_torch_saves_as_it_did_after_a_training(train, monkeypatch):
    monkeypatch.setattr(Trainer, "run", lambda **_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train("exp")
    assert espnet2.train.trainer.torch is torch


def test_wandb_works_offline(train, monkeypatch, tmp_path):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder = train("exp", "--use_wandb", "true", "--max_epoch", "1")
    assert list(Path(folder).glob("wandb/offline-run-*"))
    assert wandb.run is None


def test_collect_stats_works(train):
    folder = train("exp", "--collect_stats", "true")
    assert len((folder / "train/speech_shape").read_text().splitlines()) == 13
