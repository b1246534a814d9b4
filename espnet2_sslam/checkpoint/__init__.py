"""Weights in and out: the authors' files, our trainings, and our own format."""

from espnet2_sslam.checkpoint.errors import CheckpointError
from espnet2_sslam.checkpoint.folder import (
    build_model,
    model_config,
    model_state,
    save_model,
)
from espnet2_sslam.checkpoint.load import Loaded, load_model, read_parts
from espnet2_sslam.checkpoint.names import (
    decoder_state_from_authors,
    encoder_state_from_authors,
)

__all__ = [
    "CheckpointError",
    "Loaded",
    "build_model",
    "decoder_state_from_authors",
    "encoder_state_from_authors",
    "load_model",
    "model_config",
    "model_state",
    "read_parts",
    "save_model",
]
