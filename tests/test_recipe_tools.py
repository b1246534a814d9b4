"""The recipe's own tools: run.pl starts jobs, once.py skips work that is valid."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

RECIPE = Path(__file__).resolve().parent.parent / "egs2" / "sslam"


class TestRunPl:
    """utils/run.pl does what ESPnet's launcher and Kaldi scripts expect of it."""

    def run(self, *words):
        return subprocess.run(
            [RECIPE / "utils/run.pl", *map(str, words)], capture_output=True, text=True
        )

    def test_output_and_status_go_to_the_log(self, tmp_path):
        log = tmp_path / "new" / "a.log"
        done = self.run("--gpu", 0, log, "sh", "-c", "echo to; echo err >&2; exit 3")
        assert done.returncode == 1 and str(log) in done.stderr
        assert "\nto\nerr\n" in log.read_text() and "(code 3)" in log.read_text()

    def test_a_missing_command_is_in_the_log(self, tmp_path):
        assert self.run(tmp_path / "a.log", "no-such-command").returncode == 1
        assert "cannot start no-such-command" in (tmp_path / "a.log").read_text()

    def test_words_with_blanks_stay_words(self, tmp_path):
        self.run(tmp_path / "a.log", "printf", "<%s>", "a b", "*", "$HOME")
        assert "<a b><*><$HOME>" in (tmp_path / "a.log").read_text()

    def test_a_signal_ends_the_job_too(self, tmp_path):
        log = tmp_path / "a.log"
        runner = subprocess.Popen(
            [RECIPE / "utils/run.pl", log, "sh", "-c", "echo pid=$$; exec sleep 60"],
            stderr=subprocess.DEVNULL,
        )
        while not (log.exists() and "pid=" in log.read_text().split("\n#\n")[-1]):
            time.sleep(0.05)
        child = int(log.read_text().split("\npid=")[1].split()[0])
        runner.send_signal(signal.SIGTERM)
        assert runner.wait(timeout=20) != 0
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)


def once(*words, **options):
    """A running utils/once.py."""
    return subprocess.Popen(
        [sys.executable, RECIPE / "utils/once.py", *map(str, words)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


class TestOnce:
    """utils/once.py skips only what is still valid."""

    def count(self, folder, *words):
        """Run a command that appends to a file; return how often it has run."""
        script = f"echo x >> {folder}/count; echo y > {folder}/made"
        words = ["work", folder / "w", "--output", folder / "made", *words]
        once(*words, "--", "sh", "-c", script).communicate()
        return len((folder / "count").read_text().split())

    def test_valid_work_is_not_done_twice(self, tmp_path):
        assert [self.count(tmp_path) for _ in range(2)] == [1, 1]
        (tmp_path / "made").write_text("changed")
        assert self.count(tmp_path) == 2
        (tmp_path / "made").unlink()
        assert self.count(tmp_path) == 3

    def test_an_input_counts_by_content(self, tmp_path):
        source = tmp_path / "source"
        source.write_text("a")
        self.count(tmp_path, "--input", source)
        os.utime(source, (1, 1))
        assert self.count(tmp_path, "--input", source) == 1
        source.write_text("b")
        assert self.count(tmp_path, "--input", source) == 2

    def test_a_folder_counts_by_names_sizes_and_times(self, tmp_path):
        source = tmp_path / "source"
        (source / "sub").mkdir(parents=True)
        self.count(tmp_path, "--input", source)
        (source / ".hidden").write_text("no matter")
        assert self.count(tmp_path, "--input", source) == 1
        (source / "sub" / "new").write_text("")
        assert self.count(tmp_path, "--input", source) == 2

    def test_links_in_a_folder_are_followed_and_need_not_end(self, tmp_path):
        source, store = tmp_path / "source", tmp_path / "store"
        source.mkdir()
        store.mkdir()
        (source / "linked").symlink_to(store)
        (store / "back").symlink_to(source)
        (source / "gone").symlink_to("nowhere")
        (source / os.fsdecode(b"caf\xe9")).touch()
        assert [self.count(tmp_path, "--input", source) for _ in range(2)] == [1, 1]
        (store / "new").touch()
        assert self.count(tmp_path, "--input", source) == 2

    def test_a_damaged_record_is_no_record(self, tmp_path):
        self.count(tmp_path)
        record = tmp_path / "w" / ".done"
        record.write_text(record.read_text()[:-5])
        assert self.count(tmp_path) == 2

    def test_a_missing_input_is_one_line(self, tmp_path):
        _, error = once("w", tmp_path, "--input", "no", "--", "true").communicate()
        assert error.count("\n") == 1 and "no is not there" in error

    def test_the_error_of_the_log_is_shown(self, tmp_path):
        log = tmp_path / "w/train.log"
        script = f"echo 'ValueError: too few' >{log}; echo '# Ended' >>{log}; exit 3"
        work = once("w", tmp_path / "w", "--log", log, "--", "sh", "-c", script)
        assert f"w: failed: ValueError: too few (log: {log})" in work.communicate()[1]
        assert work.returncode == 1

    def test_two_do_not_work_in_one_folder_and_a_kill_is_no_success(self, tmp_path):
        flag, work = tmp_path / "flag", ["w", tmp_path / "w", "--"]
        script = f"touch {flag}; sleep 60"
        first = once(*work, "sh", "-c", script, start_new_session=True)
        try:
            while not flag.exists():
                time.sleep(0.05)
            second = once(*work, "true")
            assert "another run works in" in second.communicate()[1]
            assert second.returncode == 1
        finally:
            os.killpg(first.pid, signal.SIGKILL)
            first.communicate()
        assert not (tmp_path / "w" / ".done").exists()
