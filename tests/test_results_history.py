"""Reading training runs: both ESPnets' checkpoints, logs, resume."""

import re

import pytest
import yaml

from espnet2_sslam.bin import sslam_curves
from espnet2_sslam.results import health, read_history
from tests.results_case import write_history


@pytest.mark.parametrize("native", [True, False], ids=["202511", "202611"])
def test_epoch_means_time_and_versions_are_read(tmp_path, native):
    write_history(tmp_path, [3.0, 2.0], native=native)
    run = read_history(tmp_path)
    assert (run.epochs, run.updates, run.finished) == (2, 20, True)
    assert run.hours == pytest.approx(4 * 90 / 3600)
    assert run.torch_version == "2.11.0"
    steps, values = run.epoch_curve("valid", "loss")
    assert steps.tolist() == [10, 20] and values.tolist() == [4.0, 3.0]
    assert len(run.epoch_curve("train", "loss_retention")[0]) == 0


def test_the_machines_of_all_starts_are_read(tmp_path):
    write_history(tmp_path, [3.0])
    line = "[x] (trainer:40) INFO: machine: B, 16 cores, 128 GiB; 1 x GPU\n"
    (tmp_path / "train.1.log").write_text(2 * line)
    here, there = read_history(tmp_path).machines
    assert (here, there) == ("A CPU, 2 cores, 24 GiB", "B, 16 cores, 128 GiB; 1 x GPU")


def test_a_run_cut_short_is_not_finished_unless_it_may_stop_early(tmp_path):
    write_history(tmp_path, [3.0, 2.0], max_epoch=9)
    assert not read_history(tmp_path).finished
    assert read_history(tmp_path).updates == 20
    write_history(tmp_path, [3.0, 2.0], max_epoch=9, patience=1, accum_grad=5)
    assert read_history(tmp_path).finished
    assert read_history(tmp_path).updates == 4  # iterations over accumulation


def test_settings_hash_ignores_seed_and_paths_and_nothing_else(tmp_path):
    hashes = []
    for name, change in (
        ("a", {}),
        ("b", {"seed": 7, "init_param": ["exp/x.pth:encoder:encoder"], "ngpu": 2}),
        ("c", {"model_conf": {"mask_ratio": 0.7}}),
        ("d", {"batch_size": 3}),
    ):
        write_history(tmp_path / name, [1.0], **change)
        hashes.append(read_history(tmp_path / name).settings_hash)
    assert hashes[0] == hashes[1] and len(set(hashes)) == 3


@pytest.mark.parametrize(
    "name, content",
    [
        ("checkpoint.pth", b""),
        ("checkpoint.pth", b"PK\x03\x04half"),
        ("config.yaml", b""),
        ("config.yaml", b"optim_conf: {lr: "),
    ],
)
def test_a_damaged_file_is_named_in_one_line(tmp_path, name, content):
    write_history(tmp_path, [1.0])
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} is not a readable") as error:
        read_history(tmp_path)
    assert "\n" not in str(error.value)


def test_a_run_without_an_epoch_says_so(tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"max_epoch": 1}))
    with pytest.raises(FileNotFoundError, match="no finished epoch"):
        read_history(tmp_path)


@pytest.mark.parametrize(
    "patch, targets, predictions, said",
    [
        ([9.8, 5.0], 0.98, 0.6, "47 % is explained"),
        ([9.8, 9.3], 0.98, 0.3, "LITTLE IS LEARNT after 20 updates: "),
        ([9.8, 0.01], 0.05, 0.3, "COLLAPSED: the targets are nearly the same"),
        ([9.8, 9.3], 0.98, 0.001, "COLLAPSED: the predictions are nearly the same"),
    ],
    ids=["good", "little", "targets", "predictions"],
)
def test_a_pre_training_is_drawn_and_said_to_be_healthy_or_not(
    tmp_path, capsys, patch, targets, predictions, said
):
    spreads = {"target_var": targets, "prediction_var": predictions}
    more = [{"loss_patch": loss, **spreads} for loss in patch]
    write_history(tmp_path, patch, more=more, encoder_conf={"embed_dim": 96})
    sslam_curves.main([str(tmp_path)])
    printed = capsys.readouterr().out
    assert said in printed
    warned = re.findall("^[A-Z]{6,}", printed, re.MULTILINE)
    assert len(warned) == (0 if "explained" in said else 1)
    assert (tmp_path / "curves/curves.png").stat().st_size > 10_000


def test_a_training_that_is_no_pre_training_has_no_health(tmp_path):
    write_history(tmp_path, [3.0], more=[{"loss": 3.0}])
    with pytest.raises(ValueError, match="recorded no prediction_var"):
        health(read_history(tmp_path))
