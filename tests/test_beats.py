"""BEATs through ESPnet's encoder, with random weights in BEATs' own layout."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from espnet2_sslam.optim import parameter_groups
from tests.classification_case import CLASSES, options, write_data
from tests.corpus_case import error_line

RECIPE = Path(__file__).resolve().parent.parent / "egs2" / "sslam"
CONF = RECIPE / "conf"
sys.path.insert(0, str(RECIPE / "beats"))
import beats_cls_train  # noqa: E402
from beats_cls_train import BeatsTokens, espnet_encoder  # noqa: E402

SMALL = {
    "encoder_layers": 2,
    "encoder_embed_dim": 32,
    "encoder_ffn_embed_dim": 64,
    "encoder_attention_heads": 4,
    "embed_dim": 16,
    "conv_pos": 16,
    "conv_pos_groups": 4,
    "dropout": 0.3,
    "attention_dropout": 0.0,
    "relative_position_embedding": True,
    "gru_rel_pos": True,
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A file as BEATs' authors publish it: cfg, model, a predictor's weights."""
    torch.manual_seed(0)
    encoder = beats_cls_train.beats_module().BeatsEncoder(1, beats_config=SMALL)
    states = {k: v for k, v in encoder.state_dict().items() if "_pad." not in k}
    states["predictor.weight"] = torch.zeros(3, 32)
    path = tmp_path_factory.mktemp("beats") / "BEATs.pt"
    torch.save({"cfg": SMALL, "model": states}, path)
    return path


def clips(*lengths):
    generator = torch.Generator().manual_seed(1)
    speech = torch.zeros(len(lengths), max(lengths))
    for row, length in enumerate(lengths):
        speech[row, :length] = 0.1 * torch.randn(length, generator=generator)
    return speech, torch.tensor(lengths)


def test_tokens_are_those_of_espnets_encoder_whatever_else_is_in_the_batch(checkpoint):
    encoder = espnet_encoder(str(checkpoint)).eval()
    speech, lengths = clips(16_000, 9_000, 1_000, 16_000)
    with torch.no_grad():
        expected, _, _ = encoder(speech[:1], lengths[:1])
        out = BeatsTokens(encoder).hidden_states(speech, lengths)
        assert out.steps[0] == 98 // 16 and out.last.shape == (4, 1 + 6 * 8, 32)
        torch.testing.assert_close(out.last[:1, 1:], expected)
        torch.testing.assert_close(out.last[:1, 0], expected.mean(1))
        for row, length in enumerate(lengths.tolist()):
            clip = speech[row : row + 1, :length], lengths[row : row + 1]
            alone = BeatsTokens(encoder).hidden_states(*clip)
            assert out.steps[row] == alone.steps[0]
            assert out.real()[row].sum() == alone.real().sum()
            tokens = out.last[row, : alone.last.shape[1]]
            torch.testing.assert_close(tokens, alone.last[0], rtol=1e-4, atol=1e-5)


def test_every_layer_and_the_normalised_log_mel_are_those_of_espnets_encoder(
    checkpoint,
):
    encoder = espnet_encoder(str(checkpoint)).eval()
    speech, lengths = clips(16_000, 9_000)
    tokens = BeatsTokens(encoder)
    with torch.no_grad():
        out = tokens.hidden_states(speech, lengths, "all")
        assert len(out.layers) == 3
        torch.testing.assert_close(out.layers[-1], out.last)
        for number in (
            0,
            1,
        ):  # of ESPnet's list, whose first is the first layer's input
            encoder.max_layer = number
            expected = encoder(speech[:1], lengths[:1])[0]
            torch.testing.assert_close(out.layers[number][:1, 1:], expected)
        fbank, frames = tokens.fbank(speech, lengths)
        torch.testing.assert_close(fbank[:1], encoder.preprocess(speech[:1]))
    assert frames.tolist() == [98, 54] and not fbank[1, 54:].any()


def finetuning(checkpoint, name="finetune_base", **changes):
    """BEATs by one of SSLAM's configs, and its parameter groups."""
    config = yaml.safe_load((CONF / f"{name}.yaml").read_text()) | changes
    model = beats_cls_train.classifier_from_config(
        {
            "beats_checkpoint": str(checkpoint),
            "class_list": CLASSES,
            "seed": 1,
            "encoder_conf": {},
            "augment_conf": {},
            **config,
        }
    )
    optim = {k: v for k, v in config["optim_conf"].items() if k != "betas"}
    groups = parameter_groups(model, **optim, **config.get("optim_groups_conf", {}))
    return model.train(), groups


def test_sslams_configs_decay_the_rate_from_layer_to_layer_and_drop_whole_layers(
    checkpoint,
):
    model, groups = finetuning(checkpoint, encoder_conf={"drop_path": 0.25})
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    powers = {
        "head.weight": 0,
        "encoder.beats.encoder.layers.1.fc1.weight": 1,
        "encoder.beats.encoder.layers.0.fc1.weight": 2,
        "encoder.beats.encoder.layers.0.self_attn.relative_attention_bias.weight": 2,
        "encoder.beats.patch_embedding.weight": 3,
        "encoder.beats.encoder.layer_norm.weight": 3,
    }
    parameters = dict(model.named_parameters())
    for name, power in powers.items():
        assert rates[id(parameters[name])] == pytest.approx(5e-5 * 0.75**power), name
    trained = [p for p in model.parameters() if p.requires_grad]
    assert sorted(map(id, trained)) == sorted(rates)
    assert model.encoder.beats.encoder.layerdrop == 0.25
    dropouts = [m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)]
    assert set(dropouts) == {0.0}  # the checkpoint has 0.3


@pytest.mark.parametrize("name", ["finetune_base", "finetune_as20k", "probe_gated"])
def test_a_step_by_a_config_of_sslam_learns_and_does_not_see_padding(checkpoint, name):
    model, groups = finetuning(checkpoint, name)
    speech, lengths = clips(16_000, 9_000, 5_000, 1_000)
    label = torch.eye(3)[torch.arange(4) % 3]
    optimizer = torch.optim.AdamW(groups, lr=1.0)
    for group in optimizer.param_groups:
        group["lr"] = min(group["lr"] * 20, 1e-3)
    losses = []
    for _ in range(30):
        loss, _, _ = model(speech, lengths, label)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    noisy = torch.where(torch.arange(16_000) < lengths[:, None], speech, 1.0)
    model.eval()
    with torch.no_grad():
        logits = model.inference(speech, lengths)
        torch.testing.assert_close(model.inference(noisy, lengths), logits)


@pytest.mark.parametrize("frozen", [True, False])
def test_training_and_inference_run_and_a_frozen_encoder_stays(
    checkpoint, tmp_path, frozen
):
    data = write_data(tmp_path)
    config = {
        "model_conf": {
            "pooling": "mean",
            "freeze_encoder": frozen,
            "cache_features": frozen,
        },
        "encoder_conf": {"drop_path": 0.1, "target_frames": 1024},
        "max_epoch": 1,
    }
    if not frozen:
        config["augment_conf"] = {"mixup_alpha": 0.8, "mask_ratio": 0.2}
        config["optim_groups_conf"] = {"layer_decay": 0.75}
    words = options(data, tmp_path / "exp", config)
    beats_cls_train.main([*words, "--beats_checkpoint", str(checkpoint)])
    before = espnet_encoder(str(checkpoint)).state_dict()
    after = torch.load(tmp_path / "exp/latest.pth")
    name = "encoder.layers.0.fc1.weight"
    same = torch.equal(before[name], after[f"encoder.beats.{name}"])
    assert same == frozen
    assert yaml.safe_load((tmp_path / "exp/config.yaml").read_text())["class_list"]
    words = [
        *("--config", tmp_path / "exp/config.yaml", "--output_dir", tmp_path / "out"),
        *("--checkpoint", f"last={tmp_path}/exp/latest.pth"),
        *("--test_dir", data / "valid", "--task", "multi_label"),
        *("--class_list", data / "classes.txt"),
    ]
    score = [sys.executable, RECIPE / "utils" / "score_model.py", *words]
    subprocess.run(list(map(str, score)), check=True)
    predictions = np.load(tmp_path / "out/last/valid/predictions.npz")
    assert predictions["scores"].shape == (7, 3)


def test_a_resumed_training_drops_what_an_uninterrupted_one_drops(checkpoint, tmp_path):
    data = write_data(tmp_path)
    states = []
    for folder, epochs in (("whole", [2]), ("parts", [1, 2])):
        for max_epoch in epochs:
            config = {"encoder_conf": {"drop_path": 0.5}, "max_epoch": max_epoch}
            config["scheduler_conf"] = {"total_steps": 100}
            words = options(data, tmp_path / folder, config)
            words += ["--beats_checkpoint", str(checkpoint), "--resume", "true"]
            beats_cls_train.main([*words, "--keep", "true"])
        states.append(torch.load(tmp_path / folder / "latest.pth"))
    assert all(torch.equal(states[0][name], x) for name, x in states[1].items())


@pytest.mark.parametrize(
    "refuse", [lambda m: m.compile_step(), lambda m: m.checkpoint_activations("all")]
)
def test_what_beats_does_not_have_is_refused(checkpoint, refuse):
    with pytest.raises(ValueError, match="BEATs"):
        refuse(finetuning(checkpoint)[0])


def test_other_files_and_configurations_are_one_line(checkpoint, tmp_path, capsys):
    torch.save({"model": {}}, tmp_path / "x.pt")
    data = write_data(tmp_path)
    plain = options(data, tmp_path / "exp", {"encoder_conf": {}})
    for words, complaint in (
        (plain, "--beats_checkpoint is needed"),
        ([*plain, "--beats_checkpoint", "none.pt"], "none.pt is not there"),
        ([*plain, "--beats_checkpoint", tmp_path / "x.pt"], "not a BEATs checkpoint"),
        (
            [*plain, "--beats_checkpoint", checkpoint, "--input_size", "128"],
            "BEATs takes waveforms: --input_size 1, not 128",
        ),
        (
            [*plain, "--beats_checkpoint", checkpoint, "--encoder_conf", "dropp=1"],
            "encoder_conf has no key dropp",
        ),
    ):
        assert complaint in error_line(beats_cls_train.main, capsys, *words)
