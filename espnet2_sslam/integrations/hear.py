"""SSLAM behind the HEAR API: this module is what HEAR's commands ask for."""

from pathlib import Path
from typing import Any

import torch

from espnet2_sslam.integrations.xares import XaresEncoder, whole
from espnet2_sslam.units import FRAME_SHIFT_MS, PATCH_SIZE, SAMPLE_RATE


class HearModel(XaresEncoder):
    """An encoder with the attributes that HEAR asks for."""

    sample_rate = SAMPLE_RATE

    @property
    def scene_embedding_size(self) -> int:
        """Channels of a clip's embedding."""
        return self.output_dim

    @property
    def timestamp_embedding_size(self) -> int:
        """Channels of a time step's embedding."""
        return self.output_dim


def load_model(
    model_file_path: str | Path = "", time_shifts: int = 4, **options: Any
) -> HearModel:
    """Load a model; see `XaresEncoder`.

    Args:
        model_file_path: The source.
        time_shifts: Timestamps for each 160 ms; HEAR suggests steps of at most 50 ms.
        options: See there; heareval hands them on from --model-options.
    """
    if not str(model_file_path):
        raise ValueError("HEAR's --model needs a checkpoint's folder, file or hub id")
    return HearModel(model_file_path, time_shifts, **options)


@torch.no_grad()
def get_scene_embeddings(audio: torch.Tensor, model: HearModel) -> torch.Tensor:
    """The mean (B, D) over the time of clips (B, N), as `SSLAM.embed` gives it."""
    encoder = model.encoder
    output = encoder.hidden_states(*whole(audio), encoder.config.layer, time_shifts=1)
    return encoder.shaped(output.last, output.steps)[0].mean(1)


@torch.no_grad()
def get_timestamp_embeddings(
    audio: torch.Tensor, model: HearModel
) -> tuple[torch.Tensor, torch.Tensor]:
    """Time steps (B, T, D) of clips (B, N), and their centres (B, T) in ms.

    Steps whose centre lies past the end of the audio are left out.
    """
    steps = model(audio)
    begins = torch.arange(steps.shape[1], device=steps.device) * model.hop_size_in_ms
    centres = begins + PATCH_SIZE * FRAME_SHIFT_MS / 2
    inside = centres <= 1000 * audio.shape[-1] / SAMPLE_RATE
    return steps[:, inside], centres[inside].expand(len(steps), -1)
