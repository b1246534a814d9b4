"""Whole files or the ones from before: kills, full disks, locks, torn lines."""

import errno
import os
import resource
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch

from espnet2_sslam import store

ROOT = Path(__file__).resolve().parent.parent


def python(code, *words):
    """Run code in a process of its own: (exit status, stdout)."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import os, sys\nfrom espnet2_sslam import store\n{code}",
        ]
        + [str(word) for word in words],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    return done.returncode, done.stdout


@pytest.fixture
def old(tmp_path):
    path = tmp_path / "folder" / "file.txt"
    store.write_text(path, "old")
    return path


def assert_untouched(path):
    assert path.read_text() == "old" and os.listdir(path.parent) == [path.name]


KILLED = """
with store.writing(sys.argv[1]) as stream:
    stream.write("half")
    stream.flush()
    os.kill(os.getpid(), 9)
"""


def test_a_killed_writer_leaves_the_old_file_and_its_leftovers_can_be_removed(old):
    assert python(KILLED, old)[0] == -signal.SIGKILL
    assert old.read_text() == "old" and len(os.listdir(old.parent)) == 2
    store.remove_leftovers(old.parent, "other*")
    assert len(os.listdir(old.parent)) == 2
    store.remove_leftovers(old.parent, "file*")
    assert_untouched(old)


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(old):
    def lines():
        yield "new"
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space left"):
        store.write_lines(old, lines())
    assert_untouched(old)
    with pytest.raises(ValueError, match="JSON"):
        store.write_json(old, {"score": float("nan")})
    assert_untouched(old)


def test_a_disk_that_fills_up_within_a_file_leaves_the_old_one(old):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            store.write_bytes(old, bytes(1_000_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_untouched(old)


def test_a_folder_is_replaced_whole_or_not_at_all(old):
    with pytest.raises(KeyboardInterrupt), store.replacing_folder(old.parent) as new:
        (new / "other.txt").write_text("half")
        raise KeyboardInterrupt
    assert_untouched(old)
    with store.replacing_folder(old.parent) as new:
        (new / "other.txt").write_text("whole")
    assert os.listdir(old.parent.parent) == ["folder"]
    assert os.listdir(old.parent) == ["other.txt"]


def test_a_link_is_moved_to_another_target(old):
    path = old.with_name("latest")
    for target in ("file.txt", "gone.txt"):
        store.link(path, target)
        assert os.readlink(path) == target
    assert sorted(os.listdir(old.parent)) == ["file.txt", "latest"]


def test_text_is_utf_8_with_its_line_feeds_and_the_digest_is_that_of_the_bytes(old):
    store.write_csv(old, ["name", "note"], [["ä", "a,b"], [1, "c\r\nd"]])
    assert old.read_bytes() == 'name,note\nä,"a,b"\n1,"c\r\nd"\n'.encode()
    store.write_bytes(old, b"abc")
    assert store.sha256(old).startswith("ba7816bf8f01cfea")


TAKE = """
try:
    with store.lock(sys.argv[1], "in use" if sys.argv[2] == "ask" else None):
        print("taken")
except ValueError as error:
    print(error)
"""


def test_one_process_holds_a_lock_at_a_time(tmp_path):
    path = tmp_path / "new" / "lock"
    with store.lock(path):
        assert python(TAKE, path, "ask")[1] == "in use\n"
        waiting = subprocess.Popen(
            [
                sys.executable,
                "-c",
                f"import sys\nfrom espnet2_sslam import store\n{TAKE}",
            ]
            + [str(path), "wait"],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.communicate(timeout=1)
    assert waiting.communicate(timeout=60)[0] == "taken\n"
    assert python(TAKE, path, "ask")[1] == "taken\n"  # also after a kill: it is flock


@pytest.mark.parametrize("tail", [b'{"piece": 2', b'{"piece": 2}', b"\xff\n", b"[2]\n"])
def test_a_torn_line_does_not_count_and_the_next_record_does(tmp_path, tail):
    path = tmp_path / "folder" / "journal.jsonl"
    with store.Journal(path) as journal:
        assert list(journal) == []
        journal.append({"piece": 1})
    with open(path, "ab") as file:
        file.write(tail)  # killed here
    with store.Journal(path) as journal:
        place = journal.append({"piece": 3})
        assert journal.read(place) == {"piece": 3}
        records = dict(journal)
        assert list(records.values())[:1] == [{"piece": 1}]
        assert {"piece": 3} in records.values()
        assert all(journal.read(place) == record for place, record in records.items())


def test_a_journal_is_rewritten_from_its_own_records(tmp_path):
    with store.Journal(tmp_path / "journal.jsonl") as journal:
        places = [journal.append({"piece": piece}) for piece in range(4)]
        journal.rewrite(journal.read(place) for place in places[::-2])
        assert [record["piece"] for _, record in journal] == [3, 1]
        journal.append({"piece": 9})
        assert [record["piece"] for _, record in journal] == [3, 1, 9]


def test_a_checkpoint_of_a_training_is_read_without_running_code(tmp_path):
    states = {"reporter": {1: {"time": timedelta(seconds=2), "mAP": np.float64(0.5)}}}
    torch.save({**states, "model": torch.ones(2)}, tmp_path / "checkpoint.pth")
    content = store.read_pickle(tmp_path / "checkpoint.pth")
    assert {"reporter": content["reporter"]} == states
    torch.save({**states, "schedule": Path("x")}, tmp_path / "checkpoint.pth")
    with pytest.raises(ValueError, match=r"asks for pathlib\S*Path: .*not read"):
        store.read_pickle(tmp_path / "checkpoint.pth")


@pytest.mark.parametrize("size", (9, 30))
def test_yaml_whose_aliases_stand_for_more_than_it_holds_is_refused(tmp_path, size):
    lines = ["l0: &l0 [x]"]
    lines += [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]" for i in range(1, size)]
    (tmp_path / "a.yaml").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"a.yaml is not valid YAML: its aliases"):
        store.read_yaml(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text("x: &x {y: *x}\n")
    with pytest.raises(ValueError, match=r"b.yaml is not valid YAML: an alias"):
        store.read_yaml(tmp_path / "b.yaml")
    (tmp_path / "c.yaml").write_text("betas: &b [0.9, 0.95]\nothers: *b\n")
    assert store.read_yaml(tmp_path / "c.yaml")["others"] == [0.9, 0.95]
