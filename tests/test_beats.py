"""BEATs through ESPnet's encoder, with random weights in BEATs' own layout."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from espnet2_sslam.classifier import SSLAMClassifier
from tests.classification_case import CLASSES, options, write_data
from tests.corpus_case import error_line

RECIPE = Path(__file__).resolve().parent.parent / "egs2" / "sslam"
sys.path.insert(0, str(RECIPE / "beats"))
import beats_cls_train  # noqa: E402
from beats_cls_train import (  # noqa: E402
    BeatsClassifier,
    BeatsTokens,
    espnet_encoder,
)

SMALL = {
    "encoder_layers": 1,
    "encoder_embed_dim": 32,
    "encoder_ffn_embed_dim": 64,
    "encoder_attention_heads": 4,
    "embed_dim": 16,
    "conv_pos": 16,
    "conv_pos_groups": 4,
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
        assert not out.last[:, 0].any()
        for row, length in enumerate(lengths.tolist()):
            clip = speech[row : row + 1, :length], lengths[row : row + 1]
            alone = BeatsTokens(encoder).hidden_states(*clip)
            assert out.steps[row] == alone.steps[0]
            assert out.real()[row].sum() == alone.real().sum()
            tokens = out.last[row, : alone.last.shape[1]]
            torch.testing.assert_close(tokens, alone.last[0], rtol=1e-4, atol=1e-5)


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
        "encoder_conf": {},
        "max_epoch": 1,
    }
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


@pytest.mark.parametrize(
    "wrong", [{"pooling": "cls"}, {"pooling": "mean", "weighted_layers": True}]
)
def test_what_beats_does_not_have_is_refused(checkpoint, wrong):
    tokens = BeatsTokens(espnet_encoder(str(checkpoint)))
    with pytest.raises(ValueError, match=r"BEATs has no .* use conf/probe_mean.yaml"):
        BeatsClassifier(tokens, CLASSES, **wrong)
    assert issubclass(BeatsClassifier, SSLAMClassifier)


def test_other_files_and_configurations_are_one_line(checkpoint, tmp_path, capsys):
    torch.save({"model": {}}, tmp_path / "x.pt")
    data = write_data(tmp_path)
    plain = options(data, tmp_path / "exp", {"encoder_conf": {}})
    for words, complaint in (
        (plain, "--beats_checkpoint is needed"),
        ([*plain, "--beats_checkpoint", "none.pt"], "none.pt is not there"),
        ([*plain, "--beats_checkpoint", tmp_path / "x.pt"], "not a BEATs checkpoint"),
        (
            [*options(data, tmp_path / "y"), "--beats_checkpoint", checkpoint],
            "no encoder_conf: use a config without it",
        ),
    ):
        assert complaint in error_line(beats_cls_train.main, capsys, *words)
