"""A full disk within a training; what else may happen to a file is in test_store."""

import errno
import os

import pytest
import torch

from espnet2_sslam import store
from espnet2_sslam.tasks import save_whole


def test_a_full_disk_is_one_line_and_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pth"
    save_whole({"epoch": 1}, path)

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left .*--resume true") as error:
        save_whole({"epoch": 2}, path)
    assert "\n" not in str(error.value)
    assert torch.load(path) == {"epoch": 1}
    assert not list(path.parent.glob(".*.tmp"))
    assert store.check(path)
