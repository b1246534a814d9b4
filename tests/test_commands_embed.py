"""`sslam embed`: every file's features, under its own name, whatever happens."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

from espnet2_sslam.audio import read_audio
from tests import command_case
from tests.command_case import FakeSSLAM, command, embed_apart, install, make_clips


@pytest.fixture
def clips(tmp_path, monkeypatch):
    """Eight clips in `clips`; the commands load the stand-in."""
    install(monkeypatch)
    make_clips(tmp_path / "clips", 8)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "clips"


@pytest.fixture
def broken(monkeypatch):
    """NaN at the fourth clip; at the sixth the error that is put into this list."""
    errors, original = [], FakeSSLAM.embed_files

    def embed_files(self, files, **options):
        for result in original(self, files, **options):
            if result.index == 3:
                result.values[0, 1] = np.nan
            if result.index == 5 and errors:
                raise errors[0]
            yield result

    monkeypatch.setattr(FakeSSLAM, "embed_files", embed_files)
    return errors


def _embed(capsys, *options):
    return command(capsys, "embed", "model", *options)


def test_a_folder_becomes_one_row_per_clip(clips, capsys):
    status, out, err = _embed(capsys, "clips", "-o", "out.npz")
    assert (status, out) == (0, "") and "8 of 8 files, 8 rows" in err
    found = np.load("out.npz")
    assert list(found["ids"]) == [f"clips/clip{i:03d}.wav" for i in range(8)]
    assert list(found["ends"]) == [pytest.approx(0.2)] * 8
    own = np.concatenate([r.values for r in FakeSSLAM().embed_files(found["ids"])])
    np.testing.assert_array_equal(found["values"], own)
    assert not Path("out.npz.part").exists()


def test_the_options_reach_the_model_and_the_record(clips, capsys):
    options = "--weights teacher --revision v1 --device cpu --dtype bfloat16 "
    options += "--batch_seconds 20 --target_frames 1024 --layer 3 --pooling cls"
    assert _embed(capsys, "clips", "-o", "o.npz", *options.split())[0] == 0
    [(source, loaded)] = FakeSSLAM.asked
    assert source == "model" and loaded == {
        "revision": "v1",
        "weights": "teacher",
        "device": "cpu",
        "dtype": "bfloat16",
        "batch_seconds": 20.0,
        "target_frames": 1024,
    }
    record = json.loads(str(np.load("o.npz")["info"]))
    assert (record["layer"], record["pooling"]) == (3, "cls")
    assert len(record["weights_sha256"]) == 64


def test_unreadable_files_are_listed_and_all_others_done(clips, capsys):
    (clips / "clip002.wav").write_text("no audio")
    (clips / "clip005.wav").write_bytes(b"")
    status, out, err = _embed(capsys, "clips", "gone.wav", "-o", "out.csv")
    assert (status, out) == (1, "")
    *_, first, second, third, last = err.splitlines()
    assert first.startswith("  clips/clip002.wav: not audio")
    assert second == "  clips/clip005.wav: empty: the file has 0 bytes"
    assert third == "  gone.wav: missing: there is no such file"
    assert last.startswith("error: 3 of 9 files could not be used (listed above)")
    names = [row.split(",")[0] for row in Path("out.csv").read_text().splitlines()]
    assert names[1:] == [f"clips/clip{i:03d}.wav" for i in (0, 1, 3, 4, 6, 7)]


def test_after_a_repair_only_the_repaired_files_are_read(clips, capsys):
    whole = (clips / "clip002.wav").read_bytes()
    assert _embed(capsys, "clips", "-o", "whole.csv")[0] == 0
    (clips / "clip002.wav").write_text("no audio")
    assert _embed(capsys, "clips", "-o", "out.csv")[0] == 1
    (clips / "clip002.wav").write_bytes(whole)
    with mock.patch.object(command_case, "read_audio", wraps=read_audio) as reads:
        status, _, err = _embed(capsys, "clips", "-o", "out.csv")
    assert status == 0 and reads.mock_calls == [mock.call("clips/clip002.wav")]
    assert "7 of 8 files are done already, 1 to go" in err
    assert Path("out.csv").read_bytes() == Path("whole.csv").read_bytes()
    assert not Path("out.csv.part").exists()


def test_no_usable_file_leaves_no_output(clips, capsys):
    status, _, err = _embed(capsys, "gone.wav", "-o", "out.csv")
    assert status == 1 and "out.csv is not written" in err
    assert not Path("out.csv").exists() and not Path("out.csv.part").exists()


def test_a_refused_option_leaves_nothing_that_stands_in_the_way(clips, capsys):
    status, _, err = _embed(capsys, "clips", "-o", "out.csv", "--layer", "99")
    assert status == 1 and "layer" in err and err.count("\n") == 1
    assert [path.name for path in Path().iterdir()] == ["clips"]


def test_values_that_are_not_finite_are_a_failure(clips, capsys, broken):
    status, _, err = _embed(capsys, "clips", "-o", "out.json")
    assert status == 1 and "  clips/clip003.wav: not finite: the model" in err
    assert len(json.loads(Path("out.json").read_text())) == 7


@pytest.mark.parametrize("error", [RuntimeError("ours"), torch.OutOfMemoryError("GPU")])
def test_a_model_that_fails_leaves_what_is_done(clips, capsys, broken, error):
    broken.append(error)
    if isinstance(error, torch.OutOfMemoryError):
        status, _, err = _embed(capsys, "clips", "-o", "out.json")
        assert status == 1 and err.count("\n") == 1 and "--batch_seconds" in err
    else:
        with pytest.raises(RuntimeError):
            _embed(capsys, "clips", "-o", "out.json")
    index = Path("out.json.part/index.jsonl")
    assert len(index.read_text().splitlines()) == 4


def test_other_options_do_not_mix_with_a_stopped_run(clips, capsys):
    (clips / "clip002.wav").write_text("no audio")
    assert _embed(capsys, "clips", "-o", "out.csv")[0] == 1
    for options in (["--layer", "1"], ["--pooling", "cls"], ["--dtype", "bfloat16"]):
        status, _, err = _embed(capsys, "clips", "-o", "out.csv", *options)
        assert status == 1 and err.count("\n") == 1
        assert f"{options[0][2:]}: " in err and "--restart" in err
    other = ["other model", "clips", "-o", "out.csv"]
    status, _, err = command(capsys, "embed", *other)
    assert status == 1 and "weights_sha256" in err
    status, _, err = _embed(capsys, "clips", "-o", "out.csv", "--layer=1", "--restart")
    assert status == 1 and "7 of 8 files, 7 rows" in err


@pytest.mark.parametrize(
    "options, words",
    [
        (["clips", "-o", "out.xyz"], "need one of the formats npz, csv"),
        (["clips", "-o", "clips"], "formats"),
        (["clips", "-o", "out.csv", "--hop", "1"], "--hop needs --chunk"),
        (["clips", "-o", "out.csv", "--chunk", "0"], "invalid positive_seconds value"),
        (["clips", "-o", "out.csv", "--layer", "last"], "invalid number_or_all value"),
        (["clips"], "-o/--output"),
        (["-o", "out.csv"], "no audio given"),
        (["empty", "-o", "out.csv"], "no audio files in empty"),
        (
            ["clips", "-o", "out.ark", "--layer", "all", "--pooling", "frames"],
            "choose one --layer",
        ),
    ],
)
def test_wrong_options_are_one_line(clips, capsys, options, words):
    Path("empty").mkdir()
    status, out, err = _embed(capsys, *options)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert words in err and err.startswith("error: ")
    assert FakeSSLAM.asked == []


# Children of a server that has imported torch, which takes a fresh process seconds.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.command_case", "espnet2_sslam.inference"])


def _start(pause, *options):
    """Run the command with the stand-in in a process, its stderr in `log`."""
    child = SERVER.Process(target=embed_apart, args=(os.getcwd(), pause, options))
    child.start()
    return child


def _wait_for(index, lines):
    """Wait until so many results are on the disk."""
    for _ in range(6000):
        if index.exists() and index.read_bytes().count(b"\n") >= lines:
            return
        time.sleep(0.005)
    raise AssertionError("no results")


@pytest.mark.parametrize("format", ["npz", "csv", "ark"])
def test_a_run_killed_again_and_again_ends_with_the_same_bytes(clips, format):
    for path in make_clips(clips, 60, seconds=0.1)[7::20]:
        path.write_text("no audio")
    output, log = Path(f"out.{format}"), Path("log")
    index = Path(f"{output}.part") / "index.jsonl"
    for lines, end in ((5, signal.SIGKILL), (21, signal.SIGINT), (40, signal.SIGKILL)):
        child = _start(0.01, "clips", "-o", str(output))
        _wait_for(index, lines)
        os.kill(child.pid, end)
        child.join()
        assert child.exitcode == (130 if end == signal.SIGINT else -end)
        if end == signal.SIGINT:
            assert f"of 60 files are done and kept in {output}.part" in log.read_text()
            assert log.read_text().endswith("error: interrupted\n")
        assert not output.exists()
    child = _start(0, "clips", "-o", str(output))
    child.join()
    assert child.exitcode == 1 and "files are done already" in log.read_text()
    assert "57 of 60 files, 57 rows" in log.read_text()
    interrupted = output.read_bytes()
    output.unlink()
    child = _start(0, "clips", "-o", str(output), "--restart")
    child.join()
    assert child.exitcode == 1 and "done already" not in log.read_text()
    assert output.read_bytes() == interrupted
