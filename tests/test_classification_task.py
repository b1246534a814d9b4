"""The classification task and its commands, on 16 noise and tone clips."""

import shutil
from pathlib import Path

import kaldiio
import numpy as np
import pytest
import soundfile
import torch
import yaml
from sklearn.metrics import average_precision_score

from espnet2_sslam import SSLAM
from espnet2_sslam.bin import sslam_cls_inference, sslam_cls_train
from espnet2_sslam.classifier import SSLAMClassifier
from espnet2_sslam.encoder import SSLAMEncoder
from espnet2_sslam.features import kaldi_fbank
from espnet2_sslam.tasks import SSLAMClassificationTask, WarmupCosine
from tests.classification_case import CLASSES, SIZE, options, write_data

CONF = Path(__file__).parent.parent / "conf"
FEATURES = "feats.scp,speech,kaldi_ark"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


def train(data, output_dir, **changes):
    sslam_cls_train.main(options(data, output_dir, **changes))
    return torch.load(output_dir / "latest.pth", weights_only=True)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """Output directory of a short fine-tuning."""
    output_dir = tmp_path_factory.mktemp("exp") / "finetuned"
    train(data, output_dir)
    return output_dir


def test_training_saves_a_self_contained_configuration(trained):
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["class_list"] == CLASSES
    assert (trained / "valid.mAP.best.pth").exists()
    model, _ = SSLAMClassificationTask.build_model_from_file(
        trained / "config.yaml", trained / "latest.pth"
    )
    assert isinstance(model, SSLAMClassifier) and model.classes == CLASSES


def test_validation_score_is_scikit_learns_of_inference_on_every_clip(
    data, trained, tmp_path
):
    scores = infer(data, trained, tmp_path, "--batch_size", 1)["scores"]
    lines = (data / "valid" / "text").read_text().splitlines()
    targets = [[name in line.split()[1:] for name in CLASSES] for line in lines]
    checkpoint = torch.load(trained / "checkpoint.pth", weights_only=False)
    stats = checkpoint["reporter"]["stats"][2]["valid"]
    assert stats["num_clips"] == 7
    expected = average_precision_score(np.array(targets), scores)
    assert float(stats["mAP"]) == pytest.approx(expected, rel=1e-6)


def infer(data, trained, output_dir, *more):
    words = ["--config", trained / "config.yaml", "--output_dir", output_dir]
    words += ["--model_file", trained / "latest.pth", "--batch_size", 3]
    words += ["--data_path_and_name_and_type", f"{data}/valid/wav.scp,speech,sound"]
    sslam_cls_inference.main([str(word) for word in [*words, *more]])
    return np.load(output_dir / "predictions.npz")


def test_inference_keeps_the_order_of_the_list_and_every_clip(data, trained, tmp_path):
    result = infer(data, trained, tmp_path)
    assert result["ids"].tolist() == [f"valid_{index}" for index in range(7)]
    assert result["classes"].tolist() == CLASSES
    assert result["scores"].dtype == result["logits"].dtype == np.float32
    assert np.allclose(result["scores"], 1 / (1 + np.exp(-result["logits"])), atol=1e-6)
    one = infer(data, trained, tmp_path / "one", "--batch_size", 1)
    assert np.allclose(one["logits"], result["logits"], rtol=1e-5, atol=1e-6)
    (tmp_path / "keys").write_text("valid_4\nvalid_1\n")
    some = infer(data, trained, tmp_path, "--key_file", tmp_path / "keys")
    assert some["ids"].tolist() == ["valid_4", "valid_1"]
    assert np.allclose(some["logits"], result["logits"][[4, 1]], rtol=1e-5, atol=1e-6)
    assert [path.name for path in tmp_path.glob("*.tmp")] == []


def test_inference_refuses_weights_that_do_not_fit(data, trained, tmp_path):
    states = torch.load(trained / "latest.pth", weights_only=True)
    states["head.other"] = states.pop("head.bias")
    shutil.copy(trained / "config.yaml", tmp_path)
    torch.save(states, tmp_path / "latest.pth")
    with pytest.raises(ValueError, match=r"missing head\.bias; unknown head\.other"):
        infer(data, tmp_path, tmp_path)
    assert not (tmp_path / "predictions.npz").exists()


def test_resumed_training_on_kept_features_equals_an_uninterrupted_one(data, tmp_path):
    changes = {
        "model_conf": {"freeze_encoder": True, "cache_features": True},
        "scheduler_conf": {"total_steps": 6},
    }
    train(data, tmp_path / "resumed", max_epoch=1, **changes)
    resumed = train(data, tmp_path / "resumed", max_epoch=2, resume=True, **changes)
    straight = train(data, tmp_path / "straight", max_epoch=2, **changes)
    for name, value in straight.items():
        assert torch.equal(value, resumed[name]), name


def test_linear_evaluation_leaves_the_encoder_as_it_was(data, tmp_path):
    pretrained = tmp_path / "pretrained"
    pretrained.mkdir()
    conf = {**SIZE, "fbank_mean": -7.0, "fbank_std": 3.0}
    (pretrained / "config.yaml").write_text(yaml.safe_dump({"encoder_conf": conf}))
    encoder = SSLAMEncoder(**conf)
    states = {f"encoder.{key}": value for key, value in encoder.state_dict().items()}
    torch.save({**states, "teacher.x": torch.zeros(1)}, pretrained / "latest.pth")
    head = train(
        data,
        tmp_path / "linear",
        encoder_conf={},
        model_conf={"freeze_encoder": True, "cache_features": True},
        init_param=[f"{pretrained}/latest.pth:encoder:encoder"],
    )
    for name, value in states.items():
        assert torch.equal(head[name], value), name
    saved = yaml.safe_load((tmp_path / "linear" / "config.yaml").read_text())
    assert saved["encoder_conf"] == conf and saved["encoder_config"] is None


def test_training_on_features_sees_what_training_on_audio_sees(data, tmp_path):
    for split in ("train", "valid"):
        write_features(data / split)
    audio = train(data, tmp_path / "audio", max_epoch=1)
    words = options(data, tmp_path / "features", max_epoch=1, input_size=128)
    words = [word.replace("wav.scp,speech,sound", FEATURES) for word in words]
    words = [word.replace("utt2num_samples", "utt2num_frames") for word in words]
    sslam_cls_train.main(words)
    features = torch.load(tmp_path / "features" / "latest.pth", weights_only=True)
    for name, value in audio.items():
        assert torch.allclose(value, features[name], rtol=1e-3, atol=1e-4), name


def write_features(split_dir):
    """Write feats.scp and utt2num_frames: un-normalised log-mel of every clip."""
    frames = []
    ark = f"ark,scp:{split_dir}/feats.ark,{split_dir}/feats.scp"
    with kaldiio.WriteHelper(ark) as writer:
        for line in (split_dir / "wav.scp").read_text().splitlines():
            name, path = line.split()
            speech = torch.from_numpy(soundfile.read(path, dtype="float32")[0])
            fbank = kaldi_fbank(speech[None])[0][0].numpy()
            writer(name, fbank)
            frames.append(f"{name} {len(fbank)}")
    (split_dir / "utt2num_frames").write_text("\n".join(frames) + "\n")


def parse(data, folder, config=None, *more, size=SIZE, **changes):
    """Options of a training, with a file of conf/ in the place of the toy's."""
    words = options(data, folder, **changes)
    if config is not None:
        words[words.index("--config") + 1] = str(config)
        more = [f"--encoder_conf={key}={value}" for key, value in size.items()] + [
            "--encoder_conf=max_frames=1024",
            *more,
        ]
    return SSLAMClassificationTask.get_parser().parse_args([*words, *more])


def test_random_encoder_takes_its_size_from_a_pretraining(data, tmp_path):
    config = tmp_path / "pretrain.yaml"
    config.write_text(yaml.safe_dump({"encoder_conf": {**SIZE, "drop_path": 0.5}}))
    more = ("--encoder_config", str(config))
    args = parse(data, tmp_path / "random", None, *more, encoder_conf={"depth": 2})
    SSLAMClassificationTask.check_and_complete(args)
    assert args.encoder_conf == {**SIZE, "depth": 2}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model_conf": {"task": "multi_class"}}, "train_15 has 2 labels"),
        (
            {
                "model_conf": {"freeze_encoder": True, "cache_features": True},
                "max_samples": 8000,
            },
            "max_samples",
        ),
        (
            {"model_conf": {"head_norm": "batch"}, "batch_size": 1},
            "--batch_size 1 is too small: .*head_norm: batch needs 2 .*: layer takes",
        ),
    ],
)
def test_a_wrong_configuration_is_one_line(data, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train(data, tmp_path / "exp", **changes)


def test_batch_norm_needs_two_clips_to_learn_from_and_one_to_score(data, tmp_path):
    data = shutil.copytree(data, tmp_path / "data")  # the clips stay where they are
    for name in ("wav.scp", "text", "utt2num_samples"):
        for split in ("train", "valid"):
            path = data / split / name
            path.write_text(path.read_text().splitlines()[0] + "\n")
    config = {"model_conf": {"head_norm": "batch"}}
    with pytest.raises(
        ValueError, match="1 clips are too few for a batch of 2: .*; mo"
    ):
        train(data, tmp_path / "one", **config)
    train(data, tmp_path / "layer", max_epoch=1)
    path = data / "train/wav.scp"
    again = path.read_text().replace("train_0 ", "train_1 ", 1)
    path.write_text(path.read_text() + again)
    for name in ("text", "utt2num_samples"):
        path = data / "train" / name
        line = path.read_text()
        path.write_text(line + line.replace("train_0", "train_1"))
    train(data, tmp_path / "two", max_epoch=1, **config)


@pytest.mark.parametrize(
    "content, message",
    [
        ("high\nnoise\n", "has the label low"),
        ("", "classes.txt"),
        ("a\na\n", "'a'"),
        ("two words\n", "'two words'"),
        (None, "nothing.txt"),
    ],
)
def test_a_wrong_class_list_stops_the_training(data, tmp_path, content, message):
    path = tmp_path / ("nothing.txt" if content is None else "classes.txt")
    if content is not None:
        path.write_text(content)
    words = [*options(data, tmp_path / "exp"), "--class_list", str(path)]
    with pytest.raises(ValueError, match=message):
        sslam_cls_train.main(words)


def test_a_class_list_with_a_byte_order_mark_is_the_same_list(data, tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("\ufeff" + (data / "classes.txt").read_text())
    more = ("--class_list", str(path))
    args = parse(data, tmp_path / "exp", None, *more)
    SSLAMClassificationTask.check_and_complete(args)
    assert args.class_list == CLASSES


def test_true_names_of_classes_reach_the_tags_and_labels_the_scoring(data, tmp_path):
    names = ["Low, with a comma", "caf\u00e9 100 %", "C#"]
    for file in ("train", "valid"):
        shutil.copytree(data / file, tmp_path / "data" / file)
    shutil.copy(data / "classes.txt", tmp_path / "data")
    rows = [f"{word}\t{name}" for word, name in zip(CLASSES, names, strict=True)]
    (tmp_path / "data/label_names.tsv").write_text("\n".join(rows) + "\n", "utf-8")
    train(tmp_path / "data", tmp_path / "exp", max_epoch=1)
    assert SSLAM.from_pretrained(tmp_path / "exp/latest.pth").classes == names
    scored = infer(tmp_path / "data", tmp_path / "exp", tmp_path / "out")
    assert scored["classes"].tolist() == CLASSES


@pytest.mark.parametrize(
    "path",
    [*CONF.glob("finetune_*"), *CONF.glob("linear_*"), *CONF.glob("probe_*")],
    ids=lambda path: path.stem,
)
def test_every_configuration_is_accepted_and_has_its_record(data, tmp_path, path):
    args = parse(data, tmp_path / "exp", path)
    SSLAMClassificationTask.check_configuration(args)
    assert isinstance(SSLAMClassificationTask.build_model(args), SSLAMClassifier)
    header = path.read_text().split("\n\n")[0]
    assert all(f"# {word}:" in header for word in ("What", "Source", "Cost", "Result"))


UPDATES = {
    **dict.fromkeys(["finetune_as20k", "finetune_ks1", "finetune_ks2"], 40_000),
    **dict.fromkeys(["finetune_fsd50k", "linear_as20k"], 40_000),
    **dict.fromkeys(["finetune_urbansed", "linear_urbansed"], 6_250),
    **dict.fromkeys(["finetune_spass", "finetune_idmt"], 3_906),
    **dict.fromkeys(["linear_spass", "linear_idmt"], 3_906),
    "finetune_as2m": 400_000,
    "finetune_esc50": 4_000,
}


@pytest.mark.parametrize("name", UPDATES)
def test_the_papers_configurations_make_the_papers_updates(name):
    config = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    assert config["max_epoch"] * config["num_iters_per_epoch"] == UPDATES[name]
    assert config.get("accum_grad", 1) == 1


def schedule(args):
    """The model, and the scheduler on its optimizer, as the training builds them."""
    SSLAMClassificationTask.check_and_complete(args)
    model = SSLAMClassificationTask.build_model(args)
    [optimizer] = SSLAMClassificationTask.build_optimizers(args, model)
    return model, WarmupCosine(optimizer, **args.scheduler_conf)


def rates_at(scheduler, update):
    """The learning rate of every group at one update."""
    scheduler.last_epoch = update
    return scheduler.get_lr()


# the authors' TensorBoard files, `lr_default`, rounded as logged there
LOGGED_RATES = {
    "finetune_as2m": {2076: 4e-6, 52_092: 5e-5, 150_037: 4e-5, 250_063: 1.9e-5},
    "finetune_as20k": {422: 6e-6, 5570: 5e-5, 15_008: 4e-5, 25_304: 1.9e-5},
    "finetune_spass": {
        76: 1.1e-5,
        550: 5e-5,
        1498: 3.9e-5,
        2446: 1.9e-5,
        3868: 1e-6,
    },
    "linear_spass": {79: 9.99e-4, 553: 9.51e-4, 1975: 4.92e-4, 3397: 4.2e-5},
}


@pytest.mark.parametrize("name", LOGGED_RATES)
def test_the_papers_configurations_have_the_logged_learning_rates(data, tmp_path, name):
    more = "--balanced_clips_per_epoch=none"
    args = parse(data, tmp_path / "exp", CONF / f"{name}.yaml", more)
    _, scheduler = schedule(args)
    head = scheduler.base_lrs.index(max(scheduler.base_lrs))
    for update, logged in LOGGED_RATES[name].items():
        # Logged after the update, to six digits behind the point.
        rate = rates_at(scheduler, update)[head]
        assert rate == pytest.approx(logged, abs=6e-7), update


def test_the_papers_fine_tuning_has_the_authors_learning_rates(data, tmp_path):
    """Authors' curves: head 1e-6 .. 5e-5 .. 1e-6; blocks 0 to 2 below min_lr: flat."""
    size = {"embed_dim": 8, "depth": 12, "num_heads": 2}
    args = parse(data, tmp_path / "exp", CONF / "finetune_as20k.yaml", size=size)
    model, scheduler = schedule(args)
    groups = scheduler.optimizer.param_groups
    assert {group["weight_decay"] for group in groups} == {0.05}
    place = {
        id(parameter): number
        for number, group in enumerate(groups)
        for parameter in group["params"]
    }
    watched = {
        "head.weight": {0: 1e-6, 2000: 2.55e-5, 4000: 5e-5, 10_000: 4.671762e-5},
        "encoder.patch_embed.proj.weight": {4000: 5e-5},
        "encoder.blocks.11.mlp.fc1.bias": {4000: 5e-5 * 0.65},
        "encoder.blocks.2.norm1.weight": {0: 6.731e-7, 4000: 6.731e-7, 9_000: 6.731e-7},
        "encoder.blocks.0.attn.qkv.weight": {0: 2.844e-7, 39_999: 2.844e-7},
    }
    for name, curve in watched.items():
        group = place[id(model.get_parameter(name))]
        for update, expected in curve.items():
            rate = rates_at(scheduler, update)[group]
            assert rate == pytest.approx(expected, rel=2e-4), (name, update)
