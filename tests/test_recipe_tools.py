"""The recipe's own tools: run.pl starts jobs, once.py skips work that is valid."""

import hashlib
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

    @pytest.mark.parametrize(
        "text",
        ["", "{", "5", "null", '["options"]', '{"options": {}}', '{"options": 3}'],
    )
    def test_a_damaged_record_is_none(self, tmp_path, text):
        self.count(tmp_path)
        for name in (".done", ".begun"):
            (tmp_path / "w" / name).write_text(text)
        assert [self.count(tmp_path) for _ in range(2)] == [2, 2]

    def test_an_input_counts_by_content(self, tmp_path):
        source = tmp_path / "source"
        source.write_text("a")
        self.count(tmp_path, "--input", source)
        os.utime(source, (1, 1))
        assert self.count(tmp_path, "--input", source) == 1
        source.write_text("b")
        assert self.count(tmp_path, "--input", source) == 2

    @pytest.mark.parametrize("how", ["source", "folder", "listed", "output"])
    def test_a_replacement_of_equal_size_and_time_is_noticed(self, tmp_path, how):
        source = tmp_path / "folder/source"
        source.parent.mkdir()
        source.write_text("a")
        (tmp_path / "list").write_text(f"id {source}\n")
        words = {
            "source": ["--input", source],
            "folder": ["--input", source.parent],
            "listed": ["--listed", tmp_path / "list"],
            "output": [],
        }[how]
        assert [self.count(tmp_path, *words) for _ in range(2)] == [1, 1]
        path = tmp_path / "made" if how == "output" else source
        before = path.stat()
        path.write_text("z\n" if how == "output" else "b")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert self.count(tmp_path, *words) == 2

    def test_files_of_unchanged_state_are_read_again_on_request_only(self, tmp_path):
        """A disk that loses bits changes no time."""
        source = tmp_path / "source"
        source.write_text("a")
        self.count(tmp_path, "--input", source)
        record = tmp_path / "w/.done"
        right = hashlib.sha256(b"a").hexdigest()
        wrong = record.read_text().replace(right, "0" * 64)
        record.write_text(wrong)  # as if the source had had another content
        assert self.count(tmp_path, "--input", source) == 1
        assert self.count(tmp_path, "--input", source, "--verify", "true") == 2

    def test_a_config_counts_by_what_it_decides(self, tmp_path):
        config = tmp_path / "a.yaml"
        config.write_text("b: 5e-5\na: {x: 1, y: 2}\n")
        self.count(tmp_path, "--input", config)
        config.write_text("# why\na: {y: 2, x: 1}\nb: 0.00005\nlog_interval: 3\n")
        assert self.count(tmp_path, "--input", config) == 1
        config.write_text("a: {y: 2, x: 3}\nb: 5e-5\n")
        assert self.count(tmp_path, "--input", config) == 2

    def test_an_option_counts_wherever_it_is_given(self, tmp_path):
        """As ESPnet reads it: the command line over the config; how it runs is free."""
        config, made = tmp_path / "a.yaml", tmp_path / "w/made"
        script = tmp_path / "train"
        script.write_text(f"#!/bin/sh\necho x >> {tmp_path}/count; echo y > {made}\n")
        script.chmod(0o755)

        def count(*words):
            work = ["work", tmp_path / "w", "--input", config, "--output", made, "--"]
            once(*work, script, "--config", config, *words).communicate()
            return len((tmp_path / "count").read_text().split())

        config.write_text("optim_conf: {lr: 1}\nseed: 1\n")
        assert count("--optim_conf", "lr=0.5") == 1
        config.write_text("optim_conf: {lr: 0.5}\n")
        assert count("--seed", "1", "--num_workers", "7", "--output_dir", "/x") == 1
        assert count("--seed", "2") == 2

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
