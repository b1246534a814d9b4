"""SSLAM in the harnesses that compare encoders: HEAR, X-ARES, MTEB; and scikit-learn."""

import csv
import json
import re
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from espnet2_sslam.bin import sslam
from espnet2_sslam.checkpoint import load_model, save_model
from espnet2_sslam.inference import SSLAM
from espnet2_sslam.integrations import hear
from espnet2_sslam.integrations.xares import XaresEncoder
from examples import features_sklearn
from tests.checkpoint_case import PRETRAIN, small_encoder, unpack
from tests.corpus_case import error_line, real_audio
from tests.inference_case import noise

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a small model."""
    return save_model(small_encoder(max_frames=160), tmp_path_factory.mktemp("m") / "m")


def clips(seconds, number=2):
    """Waveforms (B, N)."""
    waves = [noise(seconds, seed=seed) for seed in range(number)]
    return torch.from_numpy(np.stack(waves))


@pytest.mark.parametrize("seconds", [0.7, 1.0, 2.0, 4.3])
@pytest.mark.parametrize("steps", [1, 3, 4])
def test_hear_times_are_regular_and_none_is_past_the_end(model, seconds, steps):
    loaded = hear.load_model(model, steps=steps)
    vectors, times = hear.get_timestamp_embeddings(clips(seconds), loaded)
    assert vectors.shape == (*times.shape, loaded.timestamp_embedding_size)
    assert vectors.dtype == torch.float32 and not vectors.requires_grad
    gaps = times.diff()
    assert (gaps - 160 / steps).abs().max() < 1e-3
    assert times.min() > 0 and times.max() <= 1000 * seconds
    assert times.max() + gaps.max() + 160 > 1000 * seconds  # the end is not forgotten


@pytest.mark.parametrize("options", [{}, {"freq": "concat"}, {"layer": 1}])
@pytest.mark.parametrize("seconds", [0.02, 1.3, 1.6, 3.0])
def test_hear_scenes_are_the_mean_over_time(model, seconds, options):
    loaded = hear.load_model(model, **options)
    scenes = hear.get_scene_embeddings(clips(seconds), loaded)
    assert scenes.shape == (2, loaded.scene_embedding_size)
    if seconds < 0.025:  # padded to the shortest clip that there is
        return
    api = SSLAM.from_pretrained(model, device="cpu", **options)
    layer = options.get("layer", -1)
    frames = [api.embed(x.numpy(), rate=16_000, pooling="frames", layer=layer)
              for x in clips(seconds)]
    expected = np.stack([values.mean(0) for values in frames])
    np.testing.assert_allclose(scenes.numpy(), expected, rtol=1e-4, atol=1e-5)
