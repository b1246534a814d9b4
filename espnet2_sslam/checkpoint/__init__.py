"""The authors' weights in and out, and our own format."""

from espnet2_sslam.checkpoint.names import (
    decoder_state_from_authors,
    encoder_state_from_authors,
)

__all__ = ["decoder_state_from_authors", "encoder_state_from_authors"]
