"""SSLAM as X-ARES wants an encoder: waveforms in, a vector for each time step out.

docs/hosts.md shows the file in which X-ARES' command looks for it.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from espnet2_sslam.checkpoint import load_model
from espnet2_sslam.units import FRAME_LENGTH, FRAME_SHIFT_MS, PATCH_SIZE, SAMPLE_RATE

# What harnesses decide: waveforms in, a vector for each time step and no token without
# a time, nothing is trained.
DECIDED = {"input_size": 1, "cls_token": False, "upsample": 1, "freeze": True}


class XaresEncoder(nn.Module):
    """An encoder behind X-ARES' interface; HEAR's model is one, too.

    Args:
        source: A model, as for `checkpoint.load_model`.
        time_shifts: Time steps for each 160 ms: 1, 2, 4, 8 or 16.
        options: Others of `checkpoint.load_model` and `EncoderConfig`, as one `layer`
            and `freq` ("mean" or "concat"). Clips have their own length, unless
            `target_frames` is given.

    Raises:
        CheckpointError: What cannot be loaded, and why.
        ValueError: An option outside its range, or one that a harness decides.
    """

    sampling_rate = SAMPLE_RATE

    def __init__(self, source: str | Path, time_shifts: int = 1, **options: Any):
        super().__init__()
        wrong = [name for name in DECIDED if name in options]
        if options.get("layer") == "all" or options.get("freq") == "flatten":
            wrong.append("layer: all and freq: flatten")
        if wrong:
            raise ValueError(
                f"a harness takes one vector for each time step: leave {wrong[0]} out"
            )
        options = {"target_frames": None, "time_shifts": time_shifts, **options}
        self.encoder = load_model(source, **DECIDED, **options).encoder
        self.output_dim = self.encoder.output_size()
        self.hop_size_in_ms = PATCH_SIZE * FRAME_SHIFT_MS / time_shifts

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        """Steps (B, T, output_dim) of waveforms (B, N) or (N,), all N samples of them.

        Clips below 25 ms are padded to it.
        """
        return self.encoder(*whole(audio))[0]


def whole(audio: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Waveforms (B, N) and lengths (B,) of a batch (B, N) or (N,) without padding."""
    audio = torch.atleast_2d(audio)
    audio = F.pad(audio, (0, max(0, FRAME_LENGTH - audio.shape[1])))
    return audio, torch.full((len(audio),), audio.shape[1], device=audio.device)
