"""SSLAM's features as `frontend: sslam`, and pre-trained weights in ESPnet's tasks."""

import copy
import pickle

import pytest
import torch

from espnet2_sslam.checkpoint import CheckpointError, save_model
from espnet2_sslam.encoder import SSLAMEncoder
from espnet2_sslam.integrations.espnet import (
    PretrainedEncoder,
    SSLAMFrontend,
    weights_follow,
    with_sizes,
)

TINY = {"embed_dim": 48, "depth": 2, "num_heads": 3, "mlp_ratio": 2.0}
SIZES = {**TINY, "max_frames": 64}


def waves(*lengths, seed=0):
    """Noise (B, samples), zero beyond each clip's end, and the lengths."""
    generator = torch.Generator().manual_seed(seed)
    batch = 0.1 * torch.randn(len(lengths), max(lengths), generator=generator)
    for clip, length in zip(batch, lengths):
        clip[length:] = 0
    return batch, torch.tensor(lengths)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A folder with a tiny model with fbank statistics of its own."""
    torch.manual_seed(3)
    encoder = SSLAMEncoder(**SIZES, fbank_mean=-5.0, fbank_std=4.0)
    return str(save_model(encoder, tmp_path_factory.mktemp("model")))


@pytest.mark.parametrize("freq, width", [("concat", 8 * 48), ("mean", 48)])
@pytest.mark.parametrize("upsample", [1, 3])
def test_features_have_the_size_and_the_lengths_that_are_promised(
    freq, width, upsample
):
    frontend = SSLAMFrontend(**TINY, freq=freq, upsample=upsample)
    batch, samples = waves(16_000, 2_960, 400)
    features, lengths = frontend.eval()(batch, samples)
    assert frontend.output_size() == width == features.shape[2]
    # 98, 17 and 1 frames of 10 ms: 7, 2 and 1 steps of 160 ms
    assert lengths.tolist() == [7 * upsample, 2 * upsample, upsample]
    assert features.shape[1] == 7 * upsample
    for clip, length in zip(features, lengths):
        assert (clip[length:] == 0).all() and (clip[:length] != 0).any()
    alone, _ = frontend(batch[1:2, :2_960], samples[1:2])
    assert torch.allclose(features[1:2, : 2 * upsample], alone, atol=1e-5)
    steps = features.unflatten(1, (-1, upsample))  # each is repeated
    assert torch.equal(steps, steps[:, :, :1].expand_as(steps))


def test_shifted_features_are_those_of_the_encoder_and_can_be_trained():
    frontend = SSLAMFrontend(**TINY, freeze=False, freq="mean", time_shifts=4)
    batch = waves(16_000, 2_960, 400)
    features, lengths = frontend(*batch)
    # 98, 17 and 1 frames of 10 ms: a step begins every 4
    assert lengths.tolist() == [25, 5, 1] and features.shape[1] == 25
    states = frontend.encoder(batch[0], batch[1])[0]
    frontend.layer = 0
    frontend.encoder.config = frontend.encoder.config.replace(layer=0)
    assert torch.equal(frontend(*batch)[0], frontend.encoder(*batch)[0])
    assert states.shape == features.shape
    features.sum().backward()
    assert all(w.grad is not None for w in frontend.encoder.blocks.parameters())


def test_features_start_as_the_mean_of_all_layers_patch_embedding_included():
    frontend = SSLAMFrontend(**TINY, freq="mean")
    batch = waves(8_000)
    states = frontend.encoder.hidden_states(*batch, "all").layers
    assert len(states) == 3
    mean = torch.stack(states).mean(0)[:, 1:].unflatten(1, (-1, 8)).mean(2)
    assert torch.allclose(frontend(*batch)[0], mean, atol=1e-6)


@pytest.mark.parametrize("layer", [0, 1, -1])
def test_a_single_layer_is_that_of_the_encoder(layer):
    frontend = SSLAMFrontend(**TINY, layer=layer, freq="mean")
    assert not hasattr(frontend, "layer_weights")
    batch = waves(8_000)
    states = frontend.encoder.hidden_states(*batch, "all").layers
    expected, _ = frontend.encoder.shaped(states[layer], torch.tensor([3]))
    assert torch.allclose(frontend(*batch)[0], expected, atol=1e-6)


def test_a_frozen_model_stays_in_evaluation_mode_and_gets_no_gradient():
    frontend = SSLAMFrontend(**TINY, drop_path=0.5).train()
    assert frontend.training and not any(m.training for m in frontend.encoder.modules())
    batch = waves(8_000)
    features, _ = frontend(*batch)
    features.square().sum().backward()
    assert frontend.layer_weights.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in frontend.encoder.parameters())
    assert torch.equal(frontend(*batch)[0], features)


def test_a_frozen_model_keeps_nothing_but_the_layers_for_the_backward_pass():
    def kept(freeze):
        saved = []
        frontend = SSLAMFrontend(**TINY, freeze=freeze)
        own = {weight.data_ptr() for weight in frontend.parameters()}
        keep = torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor
        )
        with keep:
            features, _ = frontend(*waves(32_000))
        assert features.requires_grad
        return sum(t.numel() for t in saved if t.data_ptr() not in own)

    tokens = 1 + 8 * 13
    assert kept(True) <= 3 * tokens * 48 + 10 * tokens  # three layers, a mask
    assert kept(False) > 5 * kept(True)


@pytest.mark.parametrize("options", [{}, {"layer": 1}])  # blocks above: no gradient
def test_not_frozen_every_weight_that_is_used_gets_a_gradient(options):
    frontend = SSLAMFrontend(**TINY, freeze=False, **options).train()
    frontend(*waves(8_000))[0].square().sum().backward()
    unused = {n for n, w in frontend.named_parameters() if not w.requires_grad}
    assert all(name.startswith("encoder.blocks.1.") for name in unused)
    assert bool(unused) == bool(options)
    for name, weight in frontend.named_parameters():
        assert weight.requires_grad == (weight.grad is not None), name


def test_weights_sizes_and_statistics_are_those_of_the_source(source):
    frontend = SSLAMFrontend(pretrained=source)
    assert frontend.output_size() == 8 * 48 and frontend.encoder.config.max_frames == 64
    assert float(frontend.encoder.log_mel.mean) == -5.0
    encoder = PretrainedEncoder(1, pretrained=source, upsample=2)
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, frontend.encoder.state_dict()[name]), name
    assert encoder.config.upsample == 2
    batch = waves(8_000)
    for again in copy.deepcopy(frontend), pickle.loads(pickle.dumps(frontend)):
        assert torch.equal(again(*batch)[0], frontend(*batch)[0])


def test_what_contradicts_the_source_is_an_error(source):
    with pytest.raises(CheckpointError, match="depth is 3 .* but 2 in .*: leave depth"):
        SSLAMFrontend(pretrained=source, depth=3)
    with pytest.raises(CheckpointError, match="embed_dim is 96"):
        PretrainedEncoder(1, pretrained=source, embed_dim=96)
    with pytest.raises(CheckpointError, match="num_heads is 2"):
        with_sizes({"pretrained": source, "num_heads": 2})
    options = {"fbank_mean": 0.0, "fbank_std": 1.0}
    with pytest.raises(ValueError, match="fbank mean/std .* override_fbank_stats"):
        SSLAMFrontend(pretrained=source, **options)
    SSLAMFrontend(pretrained=source, **options, override_fbank_stats=True)


def test_a_source_that_is_not_there_is_one_line(tmp_path):
    gone = str(tmp_path / "gone")
    for build in SSLAMFrontend, PretrainedEncoder:
        with pytest.raises(CheckpointError, match="^pretrained: .*gone") as error:
            build(pretrained=gone)
        assert "\n" not in str(error.value)


def test_the_sizes_let_a_model_be_built_without_its_source(source, tmp_path):
    conf = with_sizes({"pretrained": source, "freq": "mean"})
    assert conf == {"pretrained": source, "freq": "mean", **SIZES}
    gone = {**conf, "pretrained": str(tmp_path / "gone")}
    with weights_follow():
        assert with_sizes(gone) == gone
        frontend, encoder = SSLAMFrontend(**gone), PretrainedEncoder(1, **gone)
    frontend.load_state_dict(SSLAMFrontend(**conf).state_dict())
    assert encoder.output_size() == 48
    with pytest.raises(CheckpointError):
        SSLAMFrontend(**gone)


def test_initialised_weights_can_be_loaded_again(source):
    for module in SSLAMFrontend(pretrained=source), PretrainedEncoder(
        pretrained=source
    ):
        before = copy.deepcopy(module.state_dict())
        for name, weight in module.named_parameters():
            if name != "layer_weights":
                weight.data.zero_()
        module.reload_pretrained_parameters()
        for name, value in module.state_dict().items():
            assert torch.equal(value, before[name]), name


@pytest.mark.parametrize(
    "options, complaint",
    [
        ({"fs": "8k"}, "needs audio at 16000 Hz, fs is 8k"),
        ({"fs": "fast"}, "fs must be a rate"),
        ({"freq": "flatten"}, "freq must be one of concat, mean"),
        ({"layer": 3}, "layer must be in -1..2"),
        ({"upsample": 0}, "upsample must be above 0"),
        ({"cls_token": True}, "has no key cls_token"),
    ],
)
def test_wrong_options_are_refused(options, complaint):
    for fs in (16_000, "16000", "16k", "16 kHz"):
        SSLAMFrontend(fs, **TINY)
    with pytest.raises(ValueError, match=complaint):
        SSLAMFrontend(**{**TINY, **options})
