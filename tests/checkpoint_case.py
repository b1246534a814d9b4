"""The authors' tiny checkpoints, unpacked, and small models of our own."""

import lzma
from pathlib import Path

import torch

from espnet2_sslam.classifier import SSLAMClassifier
from espnet2_sslam.encoder import SSLAMEncoder
from tests.golden_data import GOLDEN

PRETRAIN = "tiny_fairseq_pretrain.pt"
FINETUNED = "tiny_fairseq_finetuned.pt"
VARIANTS = (
    "tiny_fairseq_pretrain_variant_namespace.pt",
    "tiny_fairseq_pretrain_variant_omegaconf.pt",
)


def unpack(name: str, folder: Path) -> Path:
    """Unpack one of the authors' checkpoints into a folder."""
    path = Path(folder) / name
    path.write_bytes(lzma.decompress((GOLDEN / f"{name}.xz").read_bytes()))
    return path


def small_encoder(**options) -> SSLAMEncoder:
    """An encoder with random weights from a fixed seed."""
    torch.manual_seed(0)
    sizes = dict(embed_dim=32, depth=2, num_heads=4, max_frames=2048)
    return SSLAMEncoder(**{**sizes, **options}).eval()


def small_classifier(num_classes: int = 4, **options) -> SSLAMClassifier:
    """A classifier with random weights from a fixed seed."""
    encoder = small_encoder()
    names = [f"sound {index}" for index in range(num_classes)]
    return SSLAMClassifier(encoder, names, **options).eval()
