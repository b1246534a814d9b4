"""Entries of torch.hub: torch.hub.load(<this folder>, "sslam", source="local", ...)."""

from espnet2_sslam.integrations.s3prl.expert import UPSTREAMS

dependencies = ["espnet2_sslam", "torch", "torchaudio"]
globals().update(UPSTREAMS)
