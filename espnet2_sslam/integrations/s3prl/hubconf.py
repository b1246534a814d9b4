"""Entries of torch.hub: torch.hub.load(<this folder>, "sslam", source="local", ...)."""

from espnet2_sslam.integrations.s3prl.upstreams import (  # noqa: F401
    sslam,
    sslam_custom,
    sslam_local,
    sslam_mean,
    sslam_url,
)

dependencies = ["espnet2_sslam", "torch", "torchaudio"]
