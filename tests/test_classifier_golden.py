"""The classifier computes what the authors' fine-tuning model computes.

Origin of the numbers: ta012/SSLAM@0a3c0ff run in float32 (see golden/README.md).
"""

import numpy as np
import pytest
import torch

from espnet2_sslam import augment
from espnet2_sslam.classifier import SSLAMClassifier
from espnet2_sslam.losses import classification_loss, loss_weight
from tests.golden_data import load, our_name, tiny_encoder, tiny_fbank

POOLINGS = {"cls": "CLS_TOKEN", "mean": "MEAN_POOLING", "lin_softmax": "LIN_SOFTMAX"}


@pytest.fixture(scope="module")
def golden():
    return load("tiny_classifier.npz")


@pytest.fixture(scope="module")
def fbank():
    return tiny_fbank()


def build(golden, **options):
    """The tiny model with the authors' weights; it takes fbank as it is."""
    encoder = tiny_encoder(fbank_mean=0.0, fbank_std=0.5)
    model = SSLAMClassifier(encoder, [str(i) for i in range(11)], **options)
    for part in ("fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"):
        model.get_parameter(part).data = torch.from_numpy(golden[part])
    return model


def run(model, fbank, labels):
    lengths = torch.full((len(fbank),), fbank.shape[1])
    return model(fbank, lengths, torch.from_numpy(labels))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_logits_and_loss_equal_the_authors(golden, fbank, pooling):
    name = POOLINGS[pooling]
    model = build(golden, pooling=pooling).eval()
    with torch.no_grad():
        logits = model.inference(fbank, torch.full((3,), 1024))
    expected = golden[f"logits_{name}"]
    assert np.abs(logits.numpy() - expected).max() < 1e-5 * np.abs(expected).max()
    for mode in ("eval", "train"):
        model.train(mode == "train")
        loss, _, weight = run(model, fbank, golden["labels_multi"])
        total, positives, mean = golden[f"bce_{mode}_{name}"]
        assert loss.item() == pytest.approx(mean, rel=1e-5)
        assert weight.item() == positives
        assert (loss * weight).item() == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_gradient_norms_equal_the_authors(golden, fbank, pooling):
    model = build(golden, pooling=pooling).train()
    run(model, fbank, golden["labels_multi"])[0].backward()
    names = golden["bce_train_gradnorm_names"]
    norms = golden[f"bce_train_gradnorm_{POOLINGS[pooling]}"]
    expected = {_own_name(str(name)): norm for name, norm in zip(names, norms)}
    for name, parameter in model.named_parameters():
        norm = float(parameter.grad.norm())
        assert norm == pytest.approx(expected.pop(name), rel=1e-4, abs=1e-9), name
    assert not expected


def _own_name(name):
    """Our name of a parameter of the authors' classifier."""
    theirs = name.removeprefix("model.")
    return name if theirs == name else our_name(theirs)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_cross_entropy_equals_the_authors(golden, fbank, mode, smoothing):
    options = {"task": "multi_class", "label_smoothing": smoothing}
    model = build(golden, **options).train(mode == "train")
    loss, _, weight = run(model, fbank, golden["labels_onehot"])
    total, clips, mean = golden[f"ce_{mode}_ls{smoothing}"]
    assert (loss.item(), weight.item()) == (pytest.approx(mean, rel=1e-5), clips)
    assert (loss * weight).item() == pytest.approx(total, rel=1e-5)


def test_speech_commands_loss_equals_the_authors(golden, fbank):
    options = {"task": "multi_class", "loss": "binary_cross_entropy"}
    model = build(golden, **options).eval()
    loss, _, weight = run(model, fbank, golden["labels_onehot"])
    _, clips, mean = golden["spcv2_bce_eval"]
    assert (loss.item(), weight.item()) == (pytest.approx(mean, rel=1e-5), clips)


def test_mixup_equals_the_authors(golden, fbank):
    total, positives, mean, share = golden["mixup_train_bce_seed5"]
    model = build(golden).eval()
    frames, labels = torch.full((2,), 1024), torch.from_numpy(golden["labels_multi"])
    mixed, frames, targets = augment.mixup(
        fbank[:2], frames, labels[:2], torch.full((2,), share)
    )
    logits = model.inference(mixed, frames)
    weight = loss_weight(targets, "positives")
    loss = classification_loss(logits, targets, "binary_cross_entropy")
    assert loss.item() == pytest.approx(total, rel=1e-5)
    assert weight.item() == pytest.approx(positives, rel=1e-6)
    assert (loss / weight).item() == pytest.approx(mean, rel=1e-5)
