"""Loading the golden numbers: the authors' tiny weights into our classes."""

import json
from pathlib import Path

import numpy as np
import torch

from espnet2_sslam.checkpoint import DECODER_NAMES, ENCODER_NAMES, from_authors
from espnet2_sslam.encoder import SSLAMEncoder
from espnet2_sslam.pretrain_model import SSLAMPretrainModel

GOLDEN = Path(__file__).parent / "golden"
TINY = dict(embed_dim=48, depth=3, num_heads=4, max_frames=96 * 16)
CLONES = 2
FBANK_NAMES = ["log_mel.mean", "log_mel.std"]


def load(name):
    """One golden file: a dict of arrays, or the content of a JSON file."""
    path = GOLDEN / name
    if path.suffix == ".json":
        return json.loads(path.read_text())
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def tiny_states():
    """The authors' student and teacher state dicts (their names), and the masks."""
    arrays = {
        k: torch.from_numpy(v) for k, v in load("tiny_state.npz").items() if v.ndim
    }
    states = [
        {k[len(p) :]: v for k, v in arrays.items() if k.startswith(p)}
        for p in ("state::", "ema::")
    ]
    return states[0], states[1], arrays["mask"].bool()


def tiny_fbank():
    """The normalised log-mel input of all tiny cases (3, 1024, 128)."""
    return torch.from_numpy(load("input_spec.npz")["spec"])[:, 0]


def tiny_encoder(**options):
    """Our encoder with the authors' student weights."""
    encoder = SSLAMEncoder(input_size=128, **TINY, **options)
    load_encoder(encoder, tiny_states()[0])
    return encoder


def tiny_model(**options):
    """Our pre-training model with the authors' student, decoder and teacher."""
    student, teacher, _ = tiny_states()
    model = SSLAMPretrainModel(
        tiny_encoder(),
        clone_batch=CLONES,
        decoder_conf=dict(num_layers=2, groups=4),
        **options,
    )
    model.decoder.load_state_dict(below(ours(student), "decoder."))
    load_encoder(model.teacher.encoder, teacher)
    return model.train()


def ours(state):
    """The authors' entries under our names."""
    return from_authors("the golden state", state, {**ENCODER_NAMES, **DECODER_NAMES})


def below(state, prefix):
    """The entries below a prefix, without it."""
    return {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}


def load_encoder(encoder, state):
    """Load all but the fbank mean and std, which the authors do not store."""
    report = encoder.load_state_dict(below(ours(state), "encoder."), strict=False)
    assert report.missing_keys == FBANK_NAMES and not report.unexpected_keys


def our_name(name):
    """Our parameter name in the pre-training model for one of the authors' names."""
    return next(iter(ours({name: torch.empty(0)})))


def relative_error(value, golden):
    """Norm of the difference over the norm of the golden value."""
    value = torch.as_tensor(value).detach().double()
    golden = torch.as_tensor(golden).double()
    assert value.shape == golden.shape, (value.shape, golden.shape)
    return float((value - golden).norm() / golden.norm())
