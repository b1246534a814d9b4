"""The recipe's own tools: run.pl starts jobs, once.py skips work that is valid."""

import json
import os
import signal
import subprocess
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

    def test_each_job_has_its_number(self, tmp_path):
        assert self.run("JOB=2:4", tmp_path / "JOB.log", "echo", "nJOB").returncode == 0
        assert [p.name for p in sorted(tmp_path.iterdir())] == [
            "2.log",
            "3.log",
            "4.log",
        ]
        assert "\nn3\n" in (tmp_path / "3.log").read_text()

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


class TestOnce:
    """utils/once.py skips only what is still valid."""

    def run(self, *words):
        return subprocess.run(
            [RECIPE / "utils/once.py", *map(str, words)], capture_output=True, text=True
        )

    def count(self, folder, *words):
        """Run a command that appends to a file; return how often it has run."""
        made = folder / "made"
        script = f"echo x >> {folder}/count; echo y > {made}"
        self.run(
            *("--name", "work", "--dir", folder / "w", "--output", made),
            *(*words, "--", "sh", "-c", script),
        )
        return len((folder / "count").read_text().split())

    def test_valid_work_is_not_done_twice(self, tmp_path):
        assert [self.count(tmp_path) for _ in range(3)] == [1, 1, 1]

    @pytest.mark.parametrize("damage", ["other", None])
    def test_a_changed_or_missing_output_is_made_again(self, tmp_path, damage):
        self.count(tmp_path)
        if damage is None:
            (tmp_path / "made").unlink()
        else:
            (tmp_path / "made").write_text(damage)
        assert self.count(tmp_path) == 2

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

    def test_a_damaged_record_is_no_record(self, tmp_path):
        self.count(tmp_path)
        record = tmp_path / "w" / ".done"
        record.write_text(json.dumps(json.loads(record.read_text()))[:-5])
        assert self.count(tmp_path) == 2

    def test_a_missing_input_is_one_line(self, tmp_path):
        done = self.run("--name", "w", "--dir", tmp_path, "--input", "no", "--", "true")
        assert done.returncode == 1 and done.stderr.count("\n") == 1
        assert "no is not there" in done.stderr

    def test_two_runs_do_not_work_in_one_folder(self, tmp_path):
        words = ["--name", "w", "--dir", str(tmp_path / "w"), "--"]
        flag = tmp_path / "flag"
        first = subprocess.Popen(
            [RECIPE / "utils/once.py", *words, "sh", "-c", f"touch {flag}; sleep 60"],
            start_new_session=True,
            stdout=subprocess.DEVNULL,
        )
        try:
            while not flag.exists():
                time.sleep(0.05)
            second = self.run(*words, "true")
        finally:
            os.killpg(first.pid, signal.SIGKILL)
            first.wait()
        assert second.returncode == 1 and "another run works in" in second.stderr

    def test_a_kill_leaves_no_record_of_success(self, tmp_path):
        flag = tmp_path / "flag"
        words = ["--name", "w", "--dir", str(tmp_path / "w"), "--"]
        first = subprocess.Popen(
            [RECIPE / "utils/once.py", *words, "sh", "-c", f"touch {flag}; sleep 60"],
            start_new_session=True,
            stdout=subprocess.DEVNULL,
        )
        while not flag.exists():
            time.sleep(0.05)
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
        assert not (tmp_path / "w" / ".done").exists()
