"""What the ONNX file computes: the encoder written without loops, FFT or branches.

Shapes: B clips, T frames, S time patches, D channels.
"""

import copy
import math

import torch
from torch import nn

from espnet2_sslam.classifier import Pooling, SSLAMClassifier
from espnet2_sslam.encoder import EncoderOutput, SSLAMEncoder
from espnet2_sslam.features import mel_filters, num_frames, zero_padding
from espnet2_sslam.units import (
    FFT_SIZE,
    FRAME_LENGTH,
    FRAME_SHIFT,
    PATCHES_PER_STEP,
    PRE_EMPHASIS,
)


class TraceableFbank(nn.Module):
    """`features.kaldi_fbank` with the Fourier transform as a matrix product.

    Waveforms (B, samples) and lengths (B,) -> log-mel (B, T, 128), zero beyond a clip's
    end, T as many as the padded waveforms allow, and frames (B,). In float32 the
    product is as close to the exact transform as an FFT is.
    """

    def __init__(self):
        super().__init__()
        sample = torch.arange(FRAME_LENGTH)
        turns = sample[:, None] * torch.arange(FFT_SIZE // 2) % FFT_SIZE
        angle = 2 * math.pi * turns.double() / FFT_SIZE
        dft = torch.cat([angle.cos(), angle.sin()], 1).float()
        self.register_buffer("sample", sample)
        self.register_buffer("dft", dft)
        self.register_buffer("window", torch.hann_window(FRAME_LENGTH, False))
        self.register_buffer("mel", mel_filters(torch.device("cpu")).clone())

    def forward(
        self, speech: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        speech = zero_padding(speech, lengths)
        mean = speech.sum(1, keepdim=True) / lengths[:, None].float()
        speech = zero_padding(speech - mean, lengths)
        count = (speech.shape[1] - FRAME_LENGTH) // FRAME_SHIFT + 1
        starts = torch.arange(count, device=speech.device) * FRAME_SHIFT
        windows = speech[:, starts[:, None] + self.sample]
        windows = windows - windows.mean(-1, keepdim=True)
        before = torch.cat([windows[..., :1], windows[..., :-1]], -1)
        windows = (windows - PRE_EMPHASIS * before) * self.window
        power = (windows @ self.dft).square()
        half = FFT_SIZE // 2
        energies = (power[..., :half] + power[..., half:]) @ self.mel
        fbank = energies.clamp(min=torch.finfo(torch.float32).eps).log()
        frames = num_frames(lengths)
        return zero_padding(fbank, frames), frames


class TraceableEncoder(SSLAMEncoder):
    """An SSLAMEncoder for waveforms of at most `max_frames`, as the exporter needs it.

    Its network may be float16; the log-mel and the output stay float32.
    """

    @classmethod
    def copy_of(cls, encoder: SSLAMEncoder, half: bool = False) -> "TraceableEncoder":
        """Copy an encoder; `half` makes its network float16."""
        new = copy.deepcopy(encoder)
        new.__class__ = cls
        if half:
            new.half()
            new.log_mel.float()
        new.waveform_fbank = TraceableFbank()
        return new

    def raw_fbank(self, xs_pad, ilens):
        return self.waveform_fbank(xs_pad, ilens)

    def embed(self, fbank):
        return super().embed(fbank.to(self.positions.dtype))

    def encode(self, *args, **kwargs):
        out = super().encode(*args, **kwargs)
        hidden = [state.float() for state in out.hidden]
        return EncoderOutput(out.tokens.float(), hidden, out.ffn)


class FeatureGraph(nn.Module):
    """Waveforms and their lengths -> features, their lengths and one vector per clip.

    Args:
        encoder: A TraceableEncoder for the ONNX file, an SSLAMEncoder to compare with.
            Its options (layer, freq, cls_token, upsample) say what the features are:
            (B, L, output_size), or (B, depth, L, output_size) with layer "all".
        pooling: "mean" over the patches or "cls", of the same layer: (B, D) or
            (B, depth, D).
    """

    outputs = ("features", "feature_lengths", "embedding")

    def __init__(self, encoder: SSLAMEncoder, pooling: str = "mean"):
        super().__init__()
        self.encoder = encoder
        self.pooling = Pooling(pooling, encoder.config.embed_dim)

    def forward(self, speech: torch.Tensor, speech_lengths: torch.Tensor):
        layer, last = self.encoder.layer, self.encoder.config.num_blocks
        everything = layer == "all"
        wanted = last if everything or layer == -1 else min(layer, last)
        states, steps = self.encoder.hidden_states(
            speech, speech_lengths, max(wanted, 1)
        )
        states = states[1:] if everything else [states[wanted]]
        index = torch.arange(states[0].shape[1] - 1, device=steps.device)
        real = index < steps[:, None] * PATCHES_PER_STEP
        features = [self.encoder.shaped(state, steps)[0] for state in states]
        lengths = self.encoder.shaped(states[0], steps)[1]
        vectors = [self.pooling([state], real) for state in states]
        if everything:
            return torch.stack(features, 1), lengths, torch.stack(vectors, 1)
        return features[0], lengths, vectors[0]


class ScoreGraph(nn.Module):
    """Waveforms and their lengths -> logits (B, C) and scores in 0..1 (B, C).

    Args:
        classifier: With a TraceableEncoder for the ONNX file, else to compare with.
    """

    outputs = ("logits", "scores")

    def __init__(self, classifier: SSLAMClassifier):
        super().__init__()
        self.classifier = classifier

    def forward(self, speech: torch.Tensor, speech_lengths: torch.Tensor):
        logits = self.classifier.inference(speech, speech_lengths)
        return logits, self.classifier.scores(logits)


def reference(model: nn.Module, pooling: str = "mean") -> nn.Module:
    """What PyTorch computes: the graph around a plain float32 copy of the model."""
    model = copy.deepcopy(model).float().eval().requires_grad_(False)
    if isinstance(model, SSLAMClassifier):
        model.encoder.config.input_size = 1
        return ScoreGraph(model)
    model.input_size = 1
    return FeatureGraph(model, pooling)


def traceable(model: nn.Module, pooling: str = "mean", half: bool = False) -> nn.Module:
    """The same graph for the exporter; `half`: the encoder's network in float16."""
    graph = reference(model, pooling)
    owner = graph.classifier if isinstance(graph, ScoreGraph) else graph
    owner.encoder = TraceableEncoder.copy_of(owner.encoder, half)
    return graph
