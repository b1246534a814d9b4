"""The encoder on its device: pieces of audio in, tokens of the layers out."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from espnet2_sslam.encoder import EncoderOutput, SSLAMEncoder
from espnet2_sslam.features import kaldi_fbank, num_frames
from espnet2_sslam.inference.windows import pass_samples
from espnet2_sslam.units import FRAME_SHIFT_MS

DTYPES = ("float32", "bfloat16")


class States(NamedTuple):
    """Tokens of the encoder, and the frames of each piece (B,) before any padding."""

    output: EncoderOutput
    frames: torch.Tensor

    @property
    def tokens(self) -> list[torch.Tensor]:
        """Tokens (B, 1+N, D) of each layer asked for."""
        return self.output.layers or [self.output.last]

    @property
    def steps(self) -> torch.Tensor:
        """Time patches of each piece (B,)."""
        return self.output.steps


class Backbone:
    """An encoder with its device and its precision; keeps no state between calls.

    Args:
        encoder: In evaluation mode, on `device`.
        device: Where it is.
        dtype: "float32", or "bfloat16" for the matrix products of the transformer
            (autocast: weights, norms and the log-mel stay float32).
    """

    def __init__(self, encoder: SSLAMEncoder, device: torch.device, dtype: str):
        self.encoder, self.device, self.dtype = encoder, device, dtype
        self.pass_frames = encoder.config.target_frames or encoder.config.max_frames
        self.fixed = encoder.config.target_frames is not None

    @property
    def pass_seconds(self) -> float:
        """Length of the longest pass, or of the model's fixed clip length."""
        return self.pass_frames * FRAME_SHIFT_MS / 1000

    def cost(self, num_samples: int) -> int:
        """Samples that the encoder works on for a piece of so many."""
        return pass_samples(self.pass_frames) if self.fixed else num_samples

    def states(self, pieces: Sequence[np.ndarray], layer: int | str = -1) -> States:
        """Encode pieces of at most one pass each.

        Args:
            pieces: Samples (n,) of each, at 16 kHz.
            layer: -1 the last, 0 the patch embedding, 1.. the blocks, "all" all of
                these from 0 on.
        """
        lengths = torch.tensor([len(piece) for piece in pieces])
        speech = torch.zeros(len(pieces), int(lengths.max()))
        for row, piece in enumerate(pieces):
            speech[row, : len(piece)] = torch.from_numpy(piece)
        speech, lengths = speech.to(self.device), lengths.to(self.device)
        frames = num_frames(lengths)
        if self.encoder.config.input_size != 1:
            speech, lengths = kaldi_fbank(speech, lengths)
        low = self.dtype != "float32"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=low):
            out = self.encoder.hidden_states(speech, lengths, layer)
        out = out._replace(
            last=out.last.float(), layers=[state.float() for state in out.layers]
        )
        return States(out, frames)


def find_device(name: str | None) -> torch.device:
    """The device of that name; CUDA, else MPS, else the CPU without a name.

    Raises:
        ValueError: No such device here.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name is None:
        name = next(kind for kind, there in available.items() if there)
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise ValueError(f"device must be cpu, cuda or mps, got {name!r}") from None
    if not available.get(device.type, False):
        there = ", ".join(kind for kind, is_there in available.items() if is_there)
        raise ValueError(f"device {name!r} is not available here, only {there}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {name!r}: there are {torch.cuda.device_count()} CUDA devices"
        )
    return device
