"""What a long work says of itself where there is no terminal."""

import io
import os
import re
import subprocess
import sys

import pytest

from espnet2_sslam import progress
from espnet2_sslam.corpus import parallel_map
from espnet2_sslam.progress import Progress, duration
from tests.corpus_case import ROOT, make_corpus

LINE = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d \(%s\) "


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_line_a_minute_says_what_is_done_and_how_long_the_rest_takes(clock, capsys):
    with Progress("embed", 100_000, done=40_000) as work:
        for _ in range(100):
            clock[0] += 3
            work.update(100, seconds=36_000)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5  # in 300 seconds
    match = re.fullmatch(
        LINE % "embed" + r"42,000 of 100,000 files, 200.0 h of audio, (\d+) min left",
        lines[0],
    )
    assert match and int(match[1]) == 58_000 / 100 * 3 / 60
    assert lines[-1].endswith(
        "50,000 of 100,000 files, 1,000.0 h of audio, 25 min left"
    )


def test_a_short_work_says_nothing(clock, capsys):
    with Progress("tag", 8) as work:
        work.update(8)
    assert capsys.readouterr().err == ""


def test_a_terminal_has_a_bar(monkeypatch, clock):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress("embed", 4) as work:
        clock[0] += 600
        work.update(3)
    assert "embed:" in terminal.getvalue() and "of 4 files" not in terminal.getvalue()


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0.4, "0 s"),
        (89, "89 s"),
        (90, "2 min"),
        (7100, "118 min"),
        (7500, "2 h 05 min"),
        (180_000, "2 d 2 h"),
    ],
)
def test_times_are_written_for_people(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize("nj", [1, 2])
def test_work_in_processes_is_counted(monkeypatch, capsys, nj):
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    results = parallel_map(abs, [-7200] * 32, nj, "ages", unit="clip", seconds=float)
    assert list(results) == [7200] * 32
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 32
    assert re.match(
        LINE % "ages" + r"32 of 32 clips, 64\.0 h of audio, 0 s left", lines[-1]
    )


def stderr_of(*words):
    done = subprocess.run(
        [sys.executable, "-m", *map(str, words)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "SSLAM_PROGRESS_SECONDS": "0"},
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_stages_and_commands_count_their_files(tmp_path):
    datadir, dump = make_corpus(tmp_path), tmp_path / "dump"
    package = "espnet2_sslam.bin"
    text = stderr_of(f"{package}.format_audio", "--datadir", datadir, "--outdir", dump)
    assert "(audio) 30 of 30 files, 0.0 h of audio, 0 s left" in text
    text = stderr_of(f"{package}.data_report", "--dump", dump)
    assert re.search(r"\(fbank statistics\) \d+ of \d+ files, 0.0 h of audio", text)


def test_a_training_says_what_is_left_of_the_epoch_and_of_the_run(
    tmp_path, monkeypatch, caplog
):
    toy = pytest.importorskip("tests.toy_task", reason="ESPnet is not installed")
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    caplog.set_level("INFO")
    data = [toy.write_clips(tmp_path / name, 12) for name in ("train", "valid")]
    options = "--max_epoch 2 --accum_grad 2 --num_iters_per_epoch 4".split()
    toy.ToyTask.main(cmd=toy.arguments(*data, tmp_path / "exp", *options))
    for epoch in 1, 2:
        assert re.search(
            rf"\(epoch {epoch} of 2\) 2 of \d+ updates, \d+ s left, "
            r"\d+ s of the whole run",
            caplog.text,
        ), caplog.text
        assert f"(validation of epoch {epoch}) " in caplog.text
