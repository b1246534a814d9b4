"""torch.compile and torch.export: one graph for every length, the numbers of eager."""

import pytest
import torch
from torch import nn

from espnet2_sslam import units
from espnet2_sslam.classifier import SSLAMClassifier
from espnet2_sslam.encoder import SSLAMEncoder

SMALL = dict(embed_dim=24, depth=2, num_heads=2, max_frames=320)
WAVEFORM, LOG_MEL = 1, units.NUM_MEL_BINS
FRAMES = [[60, 100], [61, 140, 20], [1, 310, 17, 320], [33, 200]]  # of each batch


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """Nothing compiled before; no processes that compile (they hang on few cores)."""
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")
    torch.manual_seed(0)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def batch(input_size, frames):
    """A padded batch of clips with so many frames."""
    generator = torch.Generator().manual_seed(len(frames))
    if input_size == LOG_MEL:
        shape, sizes = (len(frames), max(frames), LOG_MEL), frames
    else:
        sizes = [units.FRAME_LENGTH + units.FRAME_SHIFT * (n - 1) for n in frames]
        shape = len(sizes), max(sizes)
    return 0.1 * torch.randn(shape, generator=generator), torch.tensor(sizes)


def assert_equal_outputs(function, encoder, batches, input_size):
    for frames in batches:
        speech, lengths = batch(input_size, frames)
        wanted, wanted_lengths, _ = encoder(speech, lengths)
        found, found_lengths, _ = function(speech, lengths)
        assert torch.equal(found_lengths, wanted_lengths)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def counting(backend):
    from torch._dynamo.testing import CompileCounterWithBackend

    return CompileCounterWithBackend(backend)


@pytest.mark.parametrize(
    "input_size, time_shifts",
    [(WAVEFORM, 1), (LOG_MEL, 1), pytest.param(WAVEFORM, 4, marks=pytest.mark.slow)],
)
@torch.no_grad()
def test_the_compiled_encoder_is_one_graph_for_all_lengths(input_size, time_shifts):
    options = {"input_size": input_size, "time_shifts": time_shifts}
    encoder = SSLAMEncoder(**options, **SMALL, cls_token=True).eval()
    backend = counting("eager")
    compiled = torch.compile(encoder, fullgraph=True, dynamic=True, backend=backend)
    assert_equal_outputs(compiled, encoder, FRAMES, input_size)
    assert backend.frame_count == 1


class Logits(nn.Module):
    """A classifier's logits as a forward pass."""

    def __init__(self, **options):
        super().__init__()
        encoder = SSLAMEncoder(input_size=WAVEFORM, **SMALL, **options)
        self.model = SSLAMClassifier(encoder, ["a", "b"], pooling="mean").eval()

    def forward(self, speech, lengths):
        return self.model.inference(speech, lengths)


@pytest.mark.parametrize("options", [{}, {"target_frames": 160}])
@torch.no_grad()
def test_the_classifier_gives_the_same_logits(options):
    eager = Logits(**options).eval()
    compiled = torch.compile(eager, fullgraph=True, dynamic=True, backend="eager")
    program = exported(eager, WAVEFORM)
    for frames in ([200], [33, 170, 240]):
        speech, lengths = batch(WAVEFORM, frames)
        for function in compiled, program:
            torch.testing.assert_close(
                function(speech, lengths), eager(speech, lengths)
            )


@torch.no_grad()
def test_clips_in_chunks_are_compiled_too_though_not_in_one_graph():
    encoder = SSLAMEncoder(input_size=LOG_MEL, **SMALL, cls_token=True).eval()
    compiled = torch.compile(encoder, dynamic=True, backend="eager")
    assert_equal_outputs(compiled, encoder, [[700, 40], [500, 641]], LOG_MEL)


def test_eager_checks_and_the_filters_survive_compilation():
    encoder = SSLAMEncoder(input_size=WAVEFORM, **SMALL).eval()
    compiled = torch.compile(encoder, dynamic=True, backend="eager")
    with torch.no_grad():
        compiled(*batch(WAVEFORM, [20, 30]))
        encoder(*batch(WAVEFORM, [20, 30]))  # no traced tensor has stayed in a cache
    with pytest.raises(ValueError, match="399 samples, at least 400"):
        encoder(torch.zeros(1, 399), torch.tensor([399]))


@pytest.mark.slow
@pytest.mark.parametrize("input_size", [WAVEFORM, LOG_MEL])
@torch.no_grad()
def test_generated_code_gives_the_same(input_size):
    encoder = SSLAMEncoder(input_size=input_size, **SMALL).eval()
    backend = counting("inductor")
    compiled = torch.compile(encoder, fullgraph=True, dynamic=True, backend=backend)
    assert_equal_outputs(compiled, encoder, FRAMES[:1], input_size)
    first = backend.frame_count
    assert_equal_outputs(compiled, encoder, FRAMES[1:], input_size)
    assert backend.frame_count == first


@pytest.mark.slow
def test_gradients_of_the_compiled_encoder_are_the_same():
    encoder = SSLAMEncoder(input_size=LOG_MEL, **SMALL).train()
    # not dynamic: inductor of torch 2.11 fails on a convolution's gradient then
    compiled = torch.compile(encoder, fullgraph=True, dynamic=False)
    gradients = []
    for function in (encoder, compiled):
        encoder.zero_grad()
        function(*batch(LOG_MEL, [60, 100]))[0].square().sum().backward()
        gradients.append([p.grad.clone() for p in encoder.parameters()])
    assert not all(torch.equal(a, torch.zeros_like(a)) for a in gradients[0])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-4)


def exported(model, input_size, frames=(60, 100)):
    dynamic = torch.export.Dim.DYNAMIC
    return torch.export.export(
        model,
        batch(input_size, list(frames)),
        dynamic_shapes=({0: dynamic, 1: dynamic}, {0: dynamic}),
        strict=False,
    ).module()


@pytest.mark.parametrize("input_size", [WAVEFORM, LOG_MEL])
@torch.no_grad()
def test_the_exported_encoder_takes_any_batch_and_length(input_size):
    encoder = SSLAMEncoder(input_size=input_size, **SMALL, freq="concat").eval()
    program = exported(encoder, input_size)
    assert_equal_outputs(program, encoder, [*FRAMES, [200], [17]], input_size)
