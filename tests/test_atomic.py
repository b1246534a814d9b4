"""Checkpoints survive kills, full disks and threads."""

import errno
import os
import resource
import threading

import pytest
import torch

from espnet2_sslam.tasks import atomic, atomic_torch_save, link_atomically


@pytest.fixture
def old(tmp_path):
    path = tmp_path / "checkpoint.pth"
    torch.save({"epoch": 1}, path)
    return path


def assert_untouched(path):
    assert torch.load(path) == {"epoch": 1}
    assert list(path.parent.iterdir()) == [path]


def test_a_whole_file_replaces_the_old_one(old):
    with atomic_torch_save():
        torch.save({"epoch": 2}, old)
        torch.save({"epoch": 3}, str(old))
    assert torch.load(old) == {"epoch": 3}
    assert list(old.parent.iterdir()) == [old]


def test_an_interrupted_write_leaves_the_old_file(old, monkeypatch):
    def interrupted(obj, stream):
        stream.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(atomic, "_plain_save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        atomic.save_atomically({"epoch": 2}, old)
    monkeypatch.undo()
    assert_untouched(old)


def test_a_full_disk_is_one_line_and_leaves_the_old_file(old, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with atomic_torch_save(), pytest.raises(OSError) as caught:
        torch.save({"epoch": 2}, old)
    assert "No space left on device" in str(caught.value)
    assert "--resume true" in str(caught.value) and "\n" not in str(caught.value)
    assert_untouched(old)


def test_a_disk_that_fills_up_within_a_file_leaves_the_old_one(old):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with atomic_torch_save(), pytest.raises(OSError) as caught:
            torch.save(torch.zeros(1_000_000), old)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "File too large" in str(caught.value) and "\n" not in str(caught.value)
    assert_untouched(old)


def test_torch_save_is_restored_by_the_last_thread():
    plain = torch.save
    inside, leave = threading.Barrier(3), threading.Event()

    def work():
        with atomic_torch_save():
            inside.wait()
            leave.wait()

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    inside.wait()
    with atomic_torch_save():
        pass
    assert torch.save is not plain
    leave.set()
    for thread in threads:
        thread.join()
    assert torch.save is plain


def test_torch_save_is_restored_after_an_error():
    plain = torch.save
    with pytest.raises(RuntimeError), atomic_torch_save():
        raise RuntimeError
    assert torch.save is plain


def test_links_are_replaced(tmp_path):
    link = tmp_path / "latest.pth"
    link_atomically(link, "1epoch.pth")
    link_atomically(link, "2epoch.pth")
    assert os.readlink(link) == "2epoch.pth"
    assert len(list(tmp_path.iterdir())) == 1
