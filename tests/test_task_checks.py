"""What a task refuses before it starts, each in one line."""

import gc
import re

import numpy as np
import pytest
import soundfile
import torch

from espnet2_sslam.checkpoint import check_init_param
from espnet2_sslam.tasks import save_whole
from tests.toy_task import ToyModel, ToyTask, arguments, write_clips


@pytest.fixture
def data(tmp_path):
    return write_clips(tmp_path / "train", 5), write_clips(tmp_path / "valid", 2)


@pytest.fixture
def complaint(data, tmp_path):
    """Return a function that trains and returns the error's text."""

    def run(*more):
        with pytest.raises((ValueError, OSError)) as caught:
            ToyTask.main(cmd=arguments(*data, tmp_path / "exp", *more))
        text = str(caught.value)
        del caught
        gc.collect()  # ends the workers that the traceback keeps alive
        assert "\n" not in text
        return text

    return run


@pytest.mark.parametrize(
    "more, expected",
    [
        ("--iterator_type chunk", "--iterator_type chunk is not supported"),
        ("--valid_iterator_type none", "--valid_iterator_type"),
        ("--batch_type folded", "--batch_type folded .* unsorted"),
        ("--multiple_iterator true", "--multiple_iterator"),
        ("--max_cache_size 1MB", "--max_cache_size"),
        ("--use_deepspeed true", "--multiprocessing_distributed true"),
        ("--train_dtype float16", "--use_amp true"),
        ("--use_amp true --use_tf32 true", "does not go with"),
        ("--amp_dtype bf16", "--use_amp true"),
        ("--use_amp true --amp_dtype fp16", "needs a GPU"),
        ("--exclude_weight_decay true", "--optim_groups_conf"),
        ("--ngpu 2", "--multiprocessing_distributed true"),
        ("--batch_size 0", "--batch_size must be a whole number"),
        ("--num_iters_per_epoch 3 --accum_grad 2", "--num_iters_per_epoch 2"),
        ("--num_iters_per_epoch 1 --accum_grad 2", "--num_iters_per_epoch 2"),
        ("--optim_conf lrr=1", "optim_conf has no key lrr: use one of .*lr"),
        ("--optim_conf lr=5e-5", "the text '5e-5', not a number.*5.0e-05"),
        ("--scheduler_conf warmup_steps=99", "below total_steps"),
        ("--balanced_clips_per_epoch 4", "balanced clips need labels"),
        ("--sample_weights none.txt", "none.txt does not exist: .*--sample_weights"),
        ("--init_param nothing.pth", "nothing.pth does not exist"),
    ],
)
def test_a_wrong_configuration_is_one_line(complaint, more, expected):
    assert re.search(expected, complaint(*more.split()))


def test_a_missing_output_folder_is_one_line():
    with pytest.raises(ValueError, match="--output_dir is needed"):
        ToyTask.main(cmd=[])


@pytest.mark.parametrize(
    "content, expected",
    [
        ("optim: [adam\n", "not valid YAML"),
        ("accum_grad: 1.5\n", "accum_grad must be a whole number"),
    ],
)
def test_a_wrong_configuration_file_is_one_line(complaint, tmp_path, content, expected):
    config = tmp_path / "conf.yaml"
    config.write_text(content)
    assert expected in complaint("--config", str(config))


@pytest.mark.parametrize("line", ["clip09 touch RAN |", "clip09 |touch RAN"])
def test_a_command_in_a_list_is_refused_and_not_run(
    complaint, tmp_path, monkeypatch, line
):
    monkeypatch.chdir(tmp_path)
    with open(tmp_path / "train/wav.scp", "a") as file:
        file.write(f"{line}\n")
    assert "wav.scp, line 6: commands are not run" in complaint()
    assert not (tmp_path / "RAN").exists()


def test_audio_of_another_resampler_than_the_encoders_is_refused(complaint, tmp_path):
    (tmp_path / "train/resampler").write_text("soxr\n")
    assert "was resampled by soxr, encoder_conf says sinc" in complaint()


def test_missing_kinds_of_data_are_named(complaint, monkeypatch):
    names = classmethod(lambda cls: ("speech", "label"))
    monkeypatch.setattr(ToyTask, "required_data_names", names)
    assert "gives speech, but label is needed" in complaint()


@pytest.mark.parametrize(
    "path, line, expected",
    [
        ("train/wav.scp", "clip01 elsewhere.wav", "clip01"),
        ("valid/wav.scp", None, "valid/wav.scp does not exist: prepare the data"),
        ("train/utt2num_samples", "", "train/utt2num_samples is empty"),
        ("train/utt2num_samples", "clip01 1600", "holds the clip clip01 twice"),
        (
            "train/utt2num_samples",
            "ghost 1600",
            "wav.scp lacks 1 of 6 clips, the first is ghost",
        ),
    ],
)
def test_a_wrong_list_is_refused_before_training(
    complaint, data, tmp_path, path, line, expected
):
    if line is None:
        (tmp_path / path).unlink()
    else:
        before = (tmp_path / path).read_text() if line else ""
        (tmp_path / path).write_text(f"{before}{line}\n" if line else "")
    assert expected in complaint()


@pytest.mark.parametrize(
    "spoil, expected",
    [
        (lambda p: p.unlink(), "^clip clip03 cannot be read .*No such file"),
        (lambda p: p.write_bytes(b""), "^clip clip03 cannot be read"),
        (lambda p: soundfile.write(p, np.zeros(800), 8000), "^clip clip.. .*8000"),
        (
            lambda p: soundfile.write(p, np.zeros((1920, 2)), 16000),
            "^clip clip03 .*mono",
        ),
        (
            lambda p: soundfile.write(p, np.zeros(1), 16000),
            "^clip clip03 has 1 samples",
        ),
    ],
)
def test_an_unusable_clip_is_one_line_that_names_it(complaint, data, spoil, expected):
    spoil(data[0] / "clip03.wav")
    assert re.search(expected, complaint())


def test_an_unusable_clip_in_a_worker_is_one_line_too(complaint, data):
    (data[0] / "clip03.wav").unlink()  # torch takes 5 s to end a worker that failed
    assert re.search("^clip clip03 cannot be read", complaint("--num_workers", "1"))


def test_a_set_at_another_rate_is_refused(tmp_path):
    folders = [write_clips(tmp_path / name, 4, rate=8000) for name in "tv"]
    with pytest.raises(ValueError, match="8000 Hz, 16000 Hz are needed"):
        ToyTask.main(cmd=arguments(*folders, tmp_path / "exp"))


@pytest.fixture
def trained(tmp_path):
    path = tmp_path / "model.pth"
    torch.save(ToyModel().state_dict(), path)
    return path


@pytest.mark.parametrize(
    "fields, expected",
    [
        (":encodr:encoder", "has nothing named encodr: it holds encoder, head"),
        (":encoder:encodr", "the model has no encodr"),
        (":head:encoder", "missing blocks.0.bias, .*; unknown bias, weight"),
        (":encoder:head", "unknown"),
        (":::encoder.,teacher.,head.,num_updates", r"has nothing named \?"),
    ],
)
def test_a_misspelt_init_param_is_refused(trained, fields, expected):
    with pytest.raises(ValueError, match=expected):
        check_init_param(ToyModel(), f"{trained}{fields}")


def test_init_param_of_another_size_is_refused(trained):
    with pytest.raises(ValueError, match=r"has shape .*4.* needed is .*6"):
        check_init_param(ToyModel(width=6), f"{trained}:encoder:encoder")


@pytest.mark.parametrize(
    "fields", ["", ":encoder:encoder", ":encoder:teacher", ":::num_updates", ":::head"]
)
def test_a_right_init_param_is_accepted(trained, fields):
    check_init_param(ToyModel(), f"{trained}{fields}")


def test_init_param_loads_what_it_names_and_leaves_the_rest(data, tmp_path, trained):
    states = torch.load(trained)
    states["num_updates"] += 50
    torch.save(states, trained)
    more = ("--init_param", f"{trained}:::num_updates", "--optim_conf", "lr=1.0e-30")
    ToyTask.main(cmd=arguments(*data, tmp_path / "exp", *more, "--max_epoch", "1"))
    result = torch.load(tmp_path / "exp/latest.pth")
    assert torch.equal(result["head.weight"], states["head.weight"])
    assert result["num_updates"] == 1


def test_a_trained_model_is_built_again_from_its_files(data, tmp_path):
    ToyTask.main(cmd=arguments(*data, tmp_path / "exp"))
    latest = tmp_path / "exp/latest.pth"
    model, args = ToyTask.build_model_from_file(model_file=latest)
    states = torch.load(latest)
    assert all(torch.equal(v, states[k]) for k, v in model.state_dict().items())
    assert args.max_epoch == 3


def test_a_model_file_that_does_not_fit_is_refused(data, tmp_path):
    ToyTask.main(cmd=arguments(*data, tmp_path / "exp", "--max_epoch", "1"))
    latest = tmp_path / "exp/1epoch.pth"
    for change, expected in (
        (lambda s: s.pop("head.bias"), r"missing head\.bias; unknown nothing"),
        (lambda s: s.update(new=torch.ones(1)), r"missing head\.bias; unknown new"),
    ):
        states = torch.load(latest)
        change(states)
        save_whole(states, latest)
        with pytest.raises(ValueError, match=expected):
            ToyTask.build_model_from_file(model_file=latest)
    with pytest.raises(ValueError, match=r"<N>epoch\.pth or latest\.pth"):
        ToyTask.build_model_from_file(model_file=tmp_path / "exp/checkpoint.pth")
    with pytest.raises(ValueError, match="does not exist: train"):
        ToyTask.build_model_from_file(model_file=tmp_path / "exp/9epoch.pth")


def test_balanced_training_uses_the_asked_number_of_clips(data, tmp_path):
    lines = [f"clip{number:02d} cat\n" for number in range(5)]
    (data[0] / "text").write_text("".join(lines))
    log = tmp_path / "clips.txt"
    more = ["--train_data_path_and_name_and_type", f"{data[0]}/text,label,text"]
    more += ["--balanced_clips_per_epoch", "3", "--log_clips", str(log)]
    more += ["--batch_size", "3", "--max_epoch", "2"]

    class LabelTask(ToyTask):
        @classmethod
        def build_preprocess_fn(cls, args, train):
            preprocess = super().build_preprocess_fn(args, train)
            preprocess.classes = {"cat": 0}
            return preprocess

    LabelTask.main(cmd=arguments(*data, tmp_path / "exp", *more))
    assert [len(set(line.split())) for line in log.read_text().splitlines()] == [3, 3]

    weights = data[0] / "weights"
    lines = [f"clip{number:02d} {float(number > 1)}\n" for number in range(5)]
    weights.write_text("".join(lines))
    log.unlink()
    more += ["--sample_weights", str(weights)]
    LabelTask.main(cmd=arguments(*data, tmp_path / "weighted", *more))
    drawn = [set(line.split()) for line in log.read_text().splitlines()]
    assert drawn == [{"clip02", "clip03", "clip04"}] * 2
