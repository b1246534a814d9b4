"""What a file is, from its first bytes."""

import struct
import zipfile
from pathlib import Path

from espnet2_sslam.checkpoint.errors import CheckpointError

LFS_POINTER = b"version https://git-lfs"
LARGEST_HEADER = 100_000_000  # bytes of JSON that safetensors allows


def kind_of(path: Path) -> str:
    """Say how to read a file of weights.

    Returns:
        "pickle" (torch.save, in a zip archive or not) or "safetensors".

    Raises:
        CheckpointError: What it is instead: missing, empty, a folder, a Git LFS
            pointer, a web page, truncated, or no checkpoint at all.
    """
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, a file of weights is needed")
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}")
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(64)
    if size == 0:
        raise CheckpointError(f"{path} is empty (0 bytes): get it again")
    if head.startswith(LFS_POINTER):
        raise CheckpointError(
            f"{path} is a Git LFS pointer, not the weights: run `git lfs pull` there"
        )
    if head.lstrip()[:1] == b"<":
        raise CheckpointError(f"{path} is a web page, not a checkpoint: get it again")
    # first: the length of the header may begin like a pickle
    if size > 8 and head[8:9] == b"{":
        if struct.unpack("<Q", head[:8])[0] <= min(size, LARGEST_HEADER):
            return "safetensors"
    if head[:4] == b"PK\x03\x04":
        if not zipfile.is_zipfile(path):
            raise CheckpointError(
                f"{path} is a truncated checkpoint ({size} bytes): get it again"
            )
        return "pickle"
    if head[:1] == b"\x80":
        return "pickle"
    raise CheckpointError(
        f"{path} is not a checkpoint: neither safetensors nor a file of torch.save"
    )
