"""Small models, clips and files for the tests of the inference."""

import numpy as np
import soundfile
import torch

from espnet2_sslam.classifier import SSLAMClassifier
from espnet2_sslam.encoder import SSLAMEncoder
from espnet2_sslam.inference import SSLAM

SMALL = {"embed_dim": 24, "depth": 2, "num_heads": 2}
CLASSES = ["dog", "rain", "siren", "speech"]


def encoder(seed=0, **options):
    """A random encoder whose outputs depend strongly on the audio."""
    torch.manual_seed(seed)
    model = SSLAMEncoder(**{**SMALL, **options})
    for parameter in model.blocks.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def classifier(pooling="cls", task="multi_label", weighted_layers=False, **options):
    """A random classifier whose pooling and layer weights are not the plain mean."""
    model = SSLAMClassifier(
        encoder(**options),
        CLASSES,
        task=task,
        pooling=pooling,
        weighted_layers=weighted_layers,
    )
    for name, parameter in model.named_parameters():
        if "pooling." in name or "head." in name:
            torch.nn.init.normal_(parameter)
    return model


def sslam(model=None, **options):
    """A model on the CPU."""
    return SSLAM(encoder() if model is None else model, device="cpu", **options)


def noise(seconds, rate=16_000, seed=0):
    """Noise whose loudness and colour change along time, float32."""
    generator = np.random.default_rng(seed)
    samples = generator.standard_normal(round(seconds * rate))
    time = np.arange(len(samples)) / rate
    low = np.convolve(samples, np.ones(8) / 8, "same")
    mix = 0.5 + 0.5 * np.sin(2 * np.pi * time / 1.7 + seed)
    loud = 0.05 + 0.2 * (np.sin(2 * np.pi * time / 0.9 + 2 * seed) > 0)
    return (loud * (mix * samples + (1 - mix) * low) / 2).astype(np.float32)


def write(path, samples, rate=16_000, **options):
    """An audio file; its path as a string."""
    soundfile.write(path, samples, rate, **options)
    return str(path)


@torch.no_grad()
def forward(model, samples):
    """What the encoder itself makes of a clip (T, D)."""
    length = torch.tensor([len(samples)])
    return model(torch.from_numpy(samples)[None], length)[0][0].numpy()


@torch.no_grad()
def tokens(model, samples, layer=-1):
    """Tokens of one clip (1+N, D) of a layer."""
    length = torch.tensor([len(samples)])
    states = model.hidden_states(torch.from_numpy(samples)[None], length, "all").layers
    return states[layer][0].numpy()


@torch.no_grad()
def clip_scores(model, samples):
    """What the classifier itself makes of a clip (C,)."""
    length = torch.tensor([len(samples)])
    logits = model.inference(torch.from_numpy(samples)[None], length)
    return model.scores(logits)[0].numpy()


def difference(got, wanted):
    """Relative difference of two arrays of one shape."""
    assert got.shape == wanted.shape, (got.shape, wanted.shape)
    return np.linalg.norm(got - wanted) / np.linalg.norm(wanted)
