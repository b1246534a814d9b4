"""Checkpoints survive kills and full disks."""

import errno
import os
import resource

import pytest
import torch

from espnet2_sslam.tasks import save_whole


@pytest.fixture
def old(tmp_path):
    path = tmp_path / "checkpoint.pth"
    save_whole({"epoch": 0}, path)
    save_whole({"epoch": 1}, str(path))
    return path


def assert_untouched(path):
    assert torch.load(path) == {"epoch": 1}
    assert list(path.parent.iterdir()) == [path]


def test_a_whole_file_replaces_the_old_one(old):
    assert_untouched(old)


def test_an_interrupted_write_leaves_the_old_file(old, monkeypatch):
    def interrupted(states, stream):
        stream.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_whole({"epoch": 2}, old)
    assert_untouched(old)


def test_a_full_disk_is_one_line_and_leaves_the_old_file(old, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left .*--resume true") as error:
        save_whole({"epoch": 2}, old)
    assert "\n" not in str(error.value)
    assert_untouched(old)


def test_a_disk_that_fills_up_within_a_file_leaves_the_old_one(old):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as error:
            save_whole(torch.zeros(1_000_000), old)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(error.value)
    assert_untouched(old)
