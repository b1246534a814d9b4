"""The pre-training task: its configurations, its checks, its clip length."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from espnet2_sslam.features import kaldi_fbank
from espnet2_sslam.tasks import CropSampler, SSLAMTask, pretrain
from espnet2_sslam.teacher import ema_decay, movement
from tests.test_crops import write_corpus
from tests.toy_task import arguments, write_clips

CONF = Path(__file__).resolve().parent.parent / "conf"
CONFIGS = sorted(CONF.glob("pretrain_*.yaml"))
UPDATES = {
    "pretrain_eat_base": 400_000,
    "pretrain_sslam_base": 200_000,
    "pretrain_eat_tiny": 400,
    "pretrain_sslam_tiny": 200,
    "pretrain_eat_small": 40_000,
    "pretrain_sslam_small": 20_000,
    "pretrain_eat_own": 40_000,
    "pretrain_sslam_own": 20_000,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    return write_clips(folder / "train", 48), write_clips(folder / "valid", 4)


def parse(data, folder, config, *more):
    """Options of a training, checked as main() does it."""
    command = [*arguments(*data, folder), "--batch_size", "48", "--config", str(config)]
    parser = SSLAMTask.get_parser()
    args = parser.parse_args([*command, *more])
    args.max_epoch = yaml.safe_load(config.read_text())["max_epoch"]
    SSLAMTask.check_and_complete(args)
    return args


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_is_accepted_and_makes_its_updates(data, tmp_path, config):
    args = parse(data, tmp_path, config)
    assert args.scheduler_conf["total_steps"] == UPDATES[config.stem]
    head = config.read_text()
    for field in ("# What:", "# Source:", "# Cost:", "# Result:"):
        assert field in head
    assert SSLAMTask.min_clips_per_rank(args) == (2 if "sslam" in config.stem else 1)


def ratios_of(data, tmp_path, config, processes=1, *more):
    """Ratios of a training as it would start, and what it is warned of."""
    own = yaml.safe_load(config.read_text())
    size = ["--batch_size", str(own["batch_size"])]
    args = parse(data, tmp_path, config, *size, *more)
    # the weights are not looked at
    args.encoder_conf |= {"embed_dim": 48, "depth": 1, "num_heads": 2}
    model = SSLAMTask.build_model(args)
    mixture = args.model_conf["mixture"]
    ratios = pretrain.ratios(model, args, args.batch_size / processes)
    total, paper = args.scheduler_conf["total_steps"], pretrain.paper_ratios(mixture)
    return ratios, list(pretrain.advice(ratios, paper, model, total, mixture))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_keeps_the_ratios_of_the_paper(data, tmp_path, config):
    processes = 4 if "base" in config.stem else 1
    (moved, rows, warmup), warnings = ratios_of(data, tmp_path, config, processes)
    phase2 = "sslam" in config.stem
    # by the authors' schedules, summed one by one: 13.4999 and 11.4999
    assert moved == pytest.approx(11.5 if phase2 else 13.5, rel=0.01)
    # 400 updates are too few for the paper's weight: measured, see the header
    expected = 1 if "tiny" in config.stem else 192
    assert rows == expected
    assert warmup == pytest.approx(0.125 if phase2 else 53_333 / 400_000, abs=0.003)
    assert warnings == []
    if "base" not in config.stem:  # said in the header, too
        head = " ".join(config.read_text().split("# Cost:")[0].split())
        head = head.replace(" # ", " ")
        assert "Ratios:" in head and f"counts as {expected} row" in head
        assert f"moves by {moved:.1f}" in head


def test_the_movement_is_the_sum_over_all_updates():
    for schedule in (0.9, 0.99, 100), (0.9, 0.99, 7), (0.5, 0.5, 0), (0.9, 0.99, 1):
        summed = sum(1 - ema_decay(n, *schedule) for n in range(1, 51))
        assert movement(50, *schedule) == pytest.approx(summed)


@pytest.mark.parametrize("name, remedy", [("eat", "3"), ("sslam", "3")])
def test_another_number_of_clips_per_gpu_is_warned_of(data, tmp_path, name, remedy):
    config = CONF / f"pretrain_{name}_small.yaml"
    few = "--batch_size", "8"
    (_, rows, _), (warning,) = ratios_of(data, tmp_path, config, 1, *few)
    assert rows == 48 and f"utterance_loss_weight={remedy}" in warning
    mended = "--model_conf", f"utterance_loss_weight={remedy}"
    assert ratios_of(data, tmp_path, config, 1, *few, *mended)[1] == []


def test_another_number_of_updates_is_warned_of_with_the_schedule_that_mends_it(
    data, tmp_path
):
    config = CONF / "pretrain_eat_small.yaml"
    few = "--num_iters_per_epoch", "1000"
    (_, _, warmup), (warning,) = ratios_of(data, tmp_path, config, 1, *few)
    assert warmup == pytest.approx(0.1333, abs=1e-3)  # it follows by itself
    assert (
        "ema_decay=0.996, ema_end_decay=0.9998 and ema_anneal_updates=5000" in warning
    )
    mended = []
    for option in re.findall(r"ema_\w+=[\d.]+", warning):
        mended += ["--model_conf", option]
    ratios, warnings = ratios_of(data, tmp_path, config, 1, *few, *mended)
    assert ratios.movement == pytest.approx(13.5, rel=1e-3) and warnings == []


def test_the_documented_shorter_training_keeps_the_ratios(data, tmp_path):
    text = (CONF.parent / "docs/sizes.md").read_text()
    options = next(x for x in text.splitlines() if "ema_decay=" in x).split()
    config = CONF / "pretrain_eat_small.yaml"
    few = "--num_iters_per_epoch", "500", *options  # x 20 epochs
    ratios, warnings = ratios_of(data, tmp_path, config, 1, *few)
    assert ratios.movement == pytest.approx(13.5, rel=1e-3) and warnings == []


@pytest.mark.parametrize("phase", ["eat", "sslam"])
def test_the_documented_way_to_less_memory_keeps_updates_and_ratios(
    data, tmp_path, phase
):
    text = (CONF.parent / "docs/own-data.md").read_text()
    options = next(x for x in text.splitlines() if "--accum_grad 8" in x).split()
    config = CONF / f"pretrain_{phase}_own.yaml"
    own = yaml.safe_load(config.read_text())
    less = parse(data, tmp_path, config, *options)
    assert less.scheduler_conf["total_steps"] == UPDATES[config.stem]
    assert less.batch_size * less.accum_grad == own["batch_size"] * own["accum_grad"]
    _, warnings = ratios_of(data, tmp_path, config, 1, *options)
    assert warnings == []


def test_the_documented_options_of_speed_are_options(data, tmp_path):
    text = (CONF.parent / "docs/sizes.md").read_text()
    options = re.search("`(--compile .*?)`, `(--model_conf .*?)`", text)
    config = CONF / "pretrain_sslam_own.yaml"
    args = parse(data, tmp_path, config, *" ".join(options.groups()).split())
    decoder = yaml.safe_load(config.read_text())["model_conf"]["decoder_conf"]
    assert args.compile
    assert args.model_conf["decoder_conf"] == {**decoder, "half_precision": True}


@pytest.mark.parametrize(
    "phase, lr, warmup, clones, mixture",
    [("eat", 5e-4, 53_333, 16, False), ("sslam", 5e-5, 25_000, 8, True)],
)
def test_base_configurations_have_the_papers_values(phase, lr, warmup, clones, mixture):
    config = yaml.safe_load((CONF / f"pretrain_{phase}_base.yaml").read_text())
    assert config["optim_conf"] == {
        "lr": lr,
        "betas": [0.9, 0.95],
        "weight_decay": 0.05,
    }
    assert config["scheduler_conf"]["warmup_steps"] == warmup
    assert config["grad_clip"] == 4.0 and config["batch_size"] == 48
    model = config["model_conf"]
    assert (model["clone_batch"], model["mixture"]) == (clones, mixture)
    assert model["mask_ratio"] == 0.8 and model["mask_ratio_adjust"] == 0.07
    assert model["mask_block_size"] == 5 and model["clip_frames"] == 1024
    assert model["ema_decay"] == 0.9998 and model["ema_end_decay"] == 0.99999
    assert model["utterance_loss_reduction"] == "sum"


def test_clips_are_cut_to_exactly_the_models_frames(data, tmp_path):
    args = parse(data, tmp_path, CONF / "pretrain_sslam_tiny.yaml")
    preprocess = SSLAMTask.build_preprocess_fn(args, train=True)
    long = {"speech": np.random.default_rng(0).normal(size=80_000).astype("float32")}
    cut = torch.from_numpy(preprocess("clip", long)["speech"])[None]
    assert kaldi_fbank(cut)[1].tolist() == [256]


def test_a_model_is_built_with_the_seed_of_the_training(data, tmp_path):
    args = parse(data, tmp_path, CONF / "pretrain_sslam_tiny.yaml", "--seed", "5")
    model = SSLAMTask.build_model(args)
    assert model.seed == 5 and model.streams == ("unmixed", "mixed")
    assert model.encoder.config.embed_dim == 96


TERMS = {
    "unmixed": {"loss_utterance", "loss_patch"},
    "mixed": {"loss_utterance", "loss_patch"},
    "both": {"loss_utterance", "loss_patch"},
    None: {"loss_utterance", "loss_patch", "loss_retention"},
}
SAME = "optim optim_conf optim_groups_conf scheduler scheduler_conf grad_clip".split()
SAME += "max_epoch num_iters_per_epoch batch_size accum_grad seed".split()


@pytest.mark.parametrize("size", ["tiny", "base"])
def test_variants_of_phase_2_differ_in_the_objective_alone(data, tmp_path, size):
    config = CONF / f"pretrain_sslam_{size}.yaml"
    clones, arms = ["--model_conf", "clone_batch=4"], {}
    for variant in TERMS:
        more = [] if variant is None else ["--variant", variant]
        args = parse(data, tmp_path, config, *clones, *more)
        facts = {name: getattr(args, name) for name in SAME}
        # as large as can be built in a test
        args.encoder_conf |= {"embed_dim": 48, "depth": 2, "num_heads": 3}
        args.model_conf["clip_frames"] = 128
        model = SSLAMTask.build_model(args).train()
        rows, predict = [], model.predict

        def counted(*inputs, rows=rows, predict=predict):
            predictions = predict(*inputs)
            rows.append(predictions.patch.shape[:2])
            return predictions

        model.predict = counted
        speech = torch.randn(4, 20_560)
        _, stats, _ = model(speech, torch.full((4,), 20_560))
        assert {name for name in stats if name.startswith("loss_")} == TERMS[variant]
        facts |= {"rows": rows, "schedule": model.teacher.schedule}
        facts["layers"] = model.target_layers, model.utterance_target_layers
        arms[variant] = facts, model.streams
    assert all(facts == arms[None][0] for facts, _ in arms.values())
    assert arms[None][0]["rows"][0][0] == 4 * 2 * 4
    assert [streams for _, streams in arms.values()] == [
        *(("unmixed",), ("mixed",)),
        *[("unmixed", "mixed")] * 2,
    ]


def test_the_configuration_of_a_variant_is_that_variant_again(data, tmp_path):
    config, variant = CONF / "pretrain_sslam_tiny.yaml", ["--variant", "unmixed"]
    variant += ["--padding", "authors"]  # for clips as short as these
    first = parse(data, tmp_path, config, *variant).model_conf
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"model_conf": first, "max_epoch": 1}))
    again = parse(data, tmp_path, config, *variant, "--scheduler", "none").model_conf
    assert again == first


@pytest.mark.parametrize(
    "config, more, complaint",
    [
        ("pretrain_eat_tiny", "mixed", "needs mixture: true"),
        (
            "pretrain_sslam_tiny",
            "both --model_conf streams=mixed " "--model_conf clone_batch=3",
            "clone_batch 3 must be even",
        ),
    ],
)
def test_a_variant_that_cannot_be_is_one_line(data, tmp_path, config, more, complaint):
    words = ["--variant", *more.split()]
    with pytest.raises(ValueError, match=complaint) as error:
        parse(data, tmp_path, CONF / f"{config}.yaml", *words)
    assert "\n" not in str(error.value)


def test_the_schedule_counts_the_batches_of_all_ranks(data, tmp_path):
    """Fewer crops of a recording can be kept apart where each rank has a share."""
    seconds = [1.3, 1.3, 3.0, 20.0, 3.0, 20.0]
    folder = write_corpus(tmp_path / "long", seconds)
    config = tmp_path / "config.yaml"
    own = yaml.safe_load((CONF / "pretrain_sslam_tiny.yaml").read_text())
    own["model_conf"]["clip_frames"] = 64
    config.write_text(yaml.safe_dump({**own, "num_iters_per_epoch": None}))
    more = ["--batch_size", "6"]
    counts = {}
    for ranks in (1, 2):
        options = [*more, "--dist_world_size", str(ranks)]
        args = parse((folder, data[1]), tmp_path, config, *options)
        lengths = (np.array(seconds) * 16_000).astype(int)
        sampler = CropSampler(
            [str(n) for n in range(len(seconds))],
            lengths,
            6,
            clip_frames=64,
            mixture=True,
            train=True,
            min_clips_per_rank=2,
            world_size=ranks,
        )
        counts[ranks] = len(sampler)
        assert SSLAMTask.iterations_per_epoch(args) == len(sampler)
    assert counts[1] != counts[2]


@pytest.mark.parametrize("phase, least", [("eat", 2800), ("sslam", 7920)])
def test_max_samples_below_the_shortest_crop_is_refused(data, tmp_path, phase, least):
    config = CONF / f"pretrain_{phase}_tiny.yaml"
    with pytest.raises(ValueError, match=f"max_samples {least - 1} .* give {least} "):
        parse(data, tmp_path, config, "--max_samples", str(least - 1))
    parse(data, tmp_path, config, "--max_samples", str(least))
