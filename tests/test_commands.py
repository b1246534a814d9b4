"""`sslam embed`, `tag` and `plot`: every file under its own name, whatever happens."""

import importlib.util
import json
import multiprocessing
import os
import re
import signal
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

from espnet2_sslam.audio import read_audio
from tests import command_case
from tests.command_case import (
    CLASSES,
    FakeSSLAM,
    command,
    install,
    make_clips,
    run_apart,
)

needs_matplotlib = pytest.mark.skipif(
    not importlib.util.find_spec("matplotlib"), reason="matplotlib is not installed"
)


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


def _tag(capsys, *options):
    return command(capsys, "tag", "model", *options)


def _plot(capsys, *options):
    return command(capsys, "plot", "model", *options)


def test_a_folder_becomes_one_row_per_clip(clips, capsys):
    status, out, err = _embed(capsys, "clips", "-o", "out.npz")
    assert (status, out) == (0, "") and "8 of 8 files, 8 rows" in err
    arrays = np.load("out.npz")
    assert list(arrays["ids"]) == [f"clips/clip{i:03d}.wav" for i in range(8)]
    assert list(arrays["ends"]) == [pytest.approx(0.2)] * 8
    own = np.concatenate([r.values for r in FakeSSLAM().embed_files(arrays["ids"])])
    np.testing.assert_array_equal(arrays["values"], own)
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
        "compile": False,
        "batch_seconds": 20.0,
        "target_frames": 1024,
    }
    record = json.loads(str(np.load("o.npz")["info"]))
    assert (record["layer"], record["pooling"]) == (3, "cls")
    assert len(record["weights_sha256"]) == 64


def test_finer_time_is_asked_of_the_model_and_recorded(clips, capsys):
    options = ("clips", "-o", "o.npz", "--time_shifts", "4")
    assert _embed(capsys, *options, "--pooling", "frames")[0] == 0
    assert FakeSSLAM.asked[-1][1]["time_shifts"] == 4
    assert json.loads(str(np.load("o.npz")["info"]))["time_shifts"] == 4
    assert _tag(capsys, *options, "--frames", "--restart")[0] == 0
    by_shifts = np.load("o.npz")
    assert _tag(capsys, *options[:3], "--frames", "--resolution", "0.04")[0] == 0
    assert np.array_equal(by_shifts["starts"], np.load("o.npz")["starts"])


def test_a_precision_that_was_chosen_is_said_and_recorded(clips, capsys):
    for options, precision in (("", "float32"), ("--compile", "bfloat16")):
        status, _, err = _embed(capsys, "clips", "-o", "o.npz", *options.split())
        assert status == 0
        assert json.loads(str(np.load("o.npz")["info"]))["dtype"] == precision
        assert ("computing in bfloat16" in err) == (precision == "bfloat16")
    assert FakeSSLAM.asked[-1][1]["compile"] is True


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
    status, out, err = _tag(capsys, "clips", "gone.wav")
    assert status == 1 and out.count("clips/") == 6
    assert err.endswith("error: 3 of 9 files could not be used (listed above)\n")


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


@pytest.mark.parametrize("options", ["gone.wav", "clips --layer 99"])
def test_a_run_without_results_leaves_nothing(clips, capsys, options):
    status, _, err = _embed(capsys, *options.split(), "-o", "out.csv")
    assert status == 1 and err.splitlines()[-1].startswith("error: ")
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
    output = ["clips", "-o", "out.csv"]
    assert _embed(capsys, *output)[0] == 1
    for options in (["--layer", "1"], ["--pooling", "cls"], ["--dtype", "bfloat16"]):
        status, _, err = _embed(capsys, *output, *options)
        assert status == 1 and err.count("\n") == 1
        assert f"{options[0][2:]}: " in err and "--restart" in err
    status, _, err = command(capsys, "embed", "other model", *output)
    assert status == 1 and "weights_sha256" in err
    status, _, err = _embed(capsys, *output, "--layer=1", "--restart")
    assert status == 1 and "7 of 8 files, 7 rows" in err


def test_events_go_on_from_the_scores_of_a_stopped_run(clips, capsys):
    """Scores do not depend on what is made of them: nothing is computed again."""
    (clips / "clip001.wav").write_text("no audio")
    assert _tag(capsys, "clips", "--events", "-o", "out.tsv")[0] == 1
    options = ["--events", "--threshold", "0.01", "--median", "0.48", "-o", "out.tsv"]
    status, _, err = _tag(capsys, "clips", *options)
    assert status == 1 and "7 of 8 files are done already" in err
    assert Path("out.tsv").read_text().count("clip002.wav") == 3
    assert "resolution: 0.16 there" in _tag(capsys, "clips", "-o", "out.tsv")[2]


def test_without_output_the_labels_are_printed_the_best_first(clips, capsys):
    status, out, err = _tag(capsys, "clips", "--top_k", "2")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "clips/clip000.wav" and len(lines) == 3 * 8
    [result] = FakeSSLAM().tag_files(["clips/clip000.wav"])
    [scores] = result.values
    best = [f"  {scores[i]:.3f}  {CLASSES[i]}" for i in np.argsort(-scores)[:2]]
    assert lines[1:3] == best
    _, out, _ = _tag(capsys, "clips/clip000.wav", "--chunk", "0.1", "--top_k", "1")
    _, first, second = out.splitlines()
    assert first.startswith("       0.00 -      0.10 s  0.0")
    assert second.startswith("       0.10 -      0.20 s  0.0")
    _, out, _ = _tag(capsys, "clips/clip000.wav", "--threshold", "0.99")
    assert out.splitlines()[1] == "  no label reaches the threshold"


@pytest.mark.parametrize(
    "thresholds, labels",
    [
        (["0.99", "Rain, light=0"], {"Rain, light"}),
        (["limits.json"], {"Dog", "Rain, light"}),
        (["limits.yaml"], {"Dog", "Rain, light"}),
        (["limits.csv"], {"Dog", "Rain, light"}),
        (["0.99", "limits.tsv"], {"Rain, light"}),
    ],
)
def test_thresholds_by_label_and_from_a_file(clips, capsys, thresholds, labels):
    Path("limits.json").write_text(json.dumps({"Dog": 0.0, "Siren": 0.99}))
    Path("limits.yaml").write_text("Dog: 0\nSiren: 0.99\n")
    Path("limits.csv").write_text('label,threshold\nDog,0\n"Siren",0.99\n')
    Path("limits.tsv").write_text("Rain, light\t0\n\n")
    options = [word for text in thresholds for word in ("--thresholds", text)]
    assert _tag(capsys, "clips", "-o", "out.json", *options)[0] == 0
    for row in json.loads(Path("out.json").read_text()):
        assert {label["label"] for label in row["labels"]} == labels


def test_events_are_a_desed_table(clips, capsys):
    options = "--events --threshold 0.05 --threshold Dog=1".split()
    status, _, err = _tag(capsys, "clips", *options, "-o", "out.tsv")
    status, out, _ = _tag(capsys, "clips", *options)
    lines = Path("out.tsv").read_text().splitlines()
    assert status == 0 and out.splitlines() == lines
    assert f"out.tsv: 8 of 8 files, {len(lines) - 1} events" in err
    assert lines[0] == "filename\tonset\toffset\tevent_label\tconfidence"
    assert lines[1].startswith("clip001.wav\t0.000\t0.200\tRain, light\t0.0")
    assert not any("Dog" in line for line in lines)


def _all_formats(folder):
    return (
        f"clips --events --threshold 0.05 -o {folder}/e.tsv -o {folder}/e.json "
        f"--scores {folder}/scores --audacity {folder}/labels --raven {folder}/labels"
    ).split()


def _contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in Path(folder).rglob("*")
        if path.is_file()
    }


def test_events_come_in_several_formats_at_once(clips, capsys):
    (clips / "clip003.wav").write_text("no audio")
    status, out, err = _tag(capsys, *_all_formats("a"))
    lines = Path("a/e.tsv").read_text().splitlines()
    count = f"7 of 8 files, {len(lines) - 1} events"
    names = "a/e.tsv, a/e.json, a/labels, a/scores"
    assert (status, out) == (1, "") and f"{names}: {count}\n" in err
    assert len(json.loads(Path("a/e.json").read_text())) == len(lines) - 1 > 7
    stems = [f"clip{index:03d}" for index in (0, 1, 2, 4, 5, 6, 7)]
    for pattern in (
        "labels/*0?.txt",
        "labels/*.Table.1.selections.txt",
        "scores/*.tsv",
    ):
        files = sorted(Path("a").glob(pattern))
        assert [path.name.split(".")[0] for path in files] == stems
    for pattern, header in (("clip0??.txt", 0), ("*.selections.txt", 1)):
        texts = [path.read_text() for path in Path("a/labels").glob(pattern)]
        rows = sum(len(text.splitlines()) - header for text in texts)
        assert rows == len(lines) - 1


def test_frame_scores_come_as_tables(clips, capsys):
    _, _, err = _tag(capsys, "clips", "--frames", "-o", "s.npz", "--scores", "scores")
    assert "s.npz, scores: 8 of 8 files, 16 rows" in err
    tables = [
        np.loadtxt(path, delimiter="\t", skiprows=1, dtype=np.float32)[:, 2:]
        for path in sorted(Path("scores").iterdir())
    ]
    np.testing.assert_array_equal(np.concatenate(tables), np.load("s.npz")["values"])


def test_label_files_that_may_be_edited_are_not_replaced_unasked(clips, capsys):
    words = ["clips", "--events", "--audacity", "labels"]
    assert _tag(capsys, *words)[0] == 0
    Path("labels/clip001.txt").write_text("0.1\t0.2\tDog\n")
    status, _, err = _tag(capsys, *words)
    assert status == 1 and "labels/clip000.txt is there already" in err
    assert Path("labels/clip001.txt").read_text() == "0.1\t0.2\tDog\n"
    assert _tag(capsys, *words, "--restart")[0] == 0
    assert Path("labels/clip001.txt").read_text() == ""


def test_equal_file_names_are_refused_with_the_remedy(clips, capsys):
    for folder in ("a", "b"):
        make_clips(Path(folder), 1)
    words = ["a", "b", "--events", "--audacity", "labels", "-o", "e.tsv"]
    words += ["--threshold", "0"]
    status, _, err = _tag(capsys, *words)
    assert status == 1 and "--names path" in err and not Path("e.tsv").exists()
    assert _tag(capsys, *words, "--names", "path")[0] == 0
    assert "\nb/clip000.wav\t0.000\t" in Path("e.tsv").read_text()
    names = [str(path) for path in sorted(Path("labels").rglob("*.txt"))]
    assert names == ["labels/a/clip000.txt", "labels/b/clip000.txt"]
    Path("a/clip000.wav").rename("a/x.wav")
    Path("b/clip000.wav").rename("b/x.flac")
    status, _, err = _tag(capsys, *words)
    assert status == 1 and "would both have labels/x.txt" in err


@needs_matplotlib
@pytest.mark.parametrize(
    "options, shown, hidden",
    [
        ("", ["clip001.wav", "every 0.16 s", "frequency (Hz)", "Siren"], []),
        ("--top_k 2", ["model: model", "Siren"], ["Dog"]),
        ("--chunk 0.1 --hop 0.05", ["windows of 0.1 s every 0.05 s"], []),
        ("--label Dog", ["Dog"], ["Siren"]),
    ],
)
def test_a_picture_of_a_clip(clips, capsys, options, shown, hidden):
    words = ["clips/clip001.wav", "-o", "pictures/a.svg", *options.split()]
    status, out, err = _plot(capsys, *words)
    assert (status, out, err) == (0, "wrote pictures/a.svg\n", "")
    svg = Path("pictures/a.svg").read_text(encoding="utf-8")
    assert all(text in svg for text in shown)
    assert not any(text in svg for text in hidden)


@needs_matplotlib
def test_a_long_recording_is_drawn_by_windows(clips, capsys, monkeypatch):
    monkeypatch.setattr("espnet2_sslam.inference.plot.SHORT", 0.1)
    assert _plot(capsys, "clips/clip001.wav", "-o", "a.svg")[0] == 0
    assert "windows of 10 s" in Path("a.svg").read_text()
    assert _plot(capsys, "clips/clip001.wav", "-o", "a.svg", "--frames")[0] == 0
    assert "every 0.16 s" in Path("a.svg").read_text()


@needs_matplotlib
def test_a_model_without_a_classifier_draws_the_spectrogram(clips, capsys):
    options = ["encoder", "clips/clip001.wav", "-o", "a.svg"]
    assert command(capsys, "plot", *options)[0] == 0
    svg = Path("a.svg").read_text()
    assert "no labels: this model has no classifier" in svg
    assert "frequency (Hz)" in svg and "score" not in svg


@pytest.mark.parametrize(
    "words, complaint",
    [
        ("embed model clips -o out.xyz", "need one of the formats npz, csv"),
        ("embed model clips -o clips", "formats"),
        ("embed model clips -o out.csv --hop 1", "--hop needs --chunk"),
        ("embed model clips -o out.csv --chunk 0", "invalid positive_seconds value"),
        ("embed model clips -o out.csv --layer last", "invalid number_or_all value"),
        ("embed model clips", "-o/--output"),
        ("embed model clips -o out.csv --time_shifts 4", "needs --pooling frames"),
        ("embed model clips -o out.csv --time_shifts 3", "invalid choice: 3"),
        ("tag model clips --time_shifts 4", "need --frames or --events"),
        ("tag model clips --events --time_shifts 4 --resolution 0.04", "give one"),
        ("embed model -o out.csv", "no audio given"),
        (
            "embed clip.wav -o out.csv",
            "the model comes first, sslam embed MODEL clip.wav",
        ),
        ("tga model clips", "did you mean tag?"),
        ("cook model clips", "it is one of embed, tag"),
        ("tag model clips --top-k 3", "did you mean --top_k?"),
        ("tag model clips --theshold=3", "did you mean --threshold?"),
        ("tag model clips --qwertz", "--qwertz; --help lists the options"),
        ("embed model empty -o out.csv", "no audio files in empty"),
        ("embed model clips -o x.ark --layer all --chunk 1", "choose one --layer"),
        ("tag encoder clips", "no classifier"),
        ("tag model clips --events -o out.npz", "formats tsv, csv, json, jsonl"),
        ("tag model clips --median 1", "needs --events"),
        ("tag model clips --raven r", "needs --events"),
        ("tag model clips --scores s", "needs --frames or --events"),
        ("tag model clips --events --median dog=1", "did you mean Dog?"),
        ("tag model clips --events --threshold dog=1", "did you mean Dog?"),
        ("tag model clips -o a.csv b.json", "b.json is no file: every output needs"),
        ("tag model clips --threshold Dog=1 Cat=1", "its own --threshold"),
        ("tag model clips -o a.csv -o b.json --format csv", "--format needs one -o"),
        ("tag model clips --events --raven list.json", "is a file: name a folder"),
        ("tag model clips --events --top_k 3", "--events has --threshold"),
        ("tag model clips --events --chunk 1", "--window"),
        ("tag model clips --frames --chunk 1", "choose one"),
        ("tag model clips --window 1", "need --frames or --events"),
        ("tag model clips --top_k -1", "--top_k must be"),
        ("tag model clips --threshold high", "LABEL=NUMBER"),
        ("tag model clips --threshold =0.5", "LABEL=NUMBER"),
        ("tag model clips --threshold Cat=0.5", "no such class"),
        ("tag model clips --threshold 2", "0..1"),
        ("tag model clips --threshold gone.json", "No such file"),
        ("tag model clips --threshold list.json", "LABEL=NUMBER or a .json"),
        ("tag model clips --events --merge_gap -1", "invalid seconds value"),
        ("tag model clips --format csv", "--format needs one -o"),
        ("plot model clips/clip001.wav -o a.jpg", ".png, .svg, .pdf"),
        ("plot model clips/clip001.wav -o a.png --top_k 0", "--top_k"),
        ("plot model clips/clip001.wav -o a.png --label Cat", "no label Cat"),
        ("plot model clips/clip001.wav -o a.png --chunk 1 --frames", "choose one"),
        ("plot model gone.wav -o a.png", "gone.wav: missing"),
        ("plot model clips -o a.png", "clips is a folder"),
        ("play model", "no command 'play'"),
    ],
)
def test_wrong_options_are_one_line(clips, capsys, words, complaint):
    if words.startswith("plot"):
        pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    Path("empty").mkdir()
    Path("list.json").write_text("[1, 2]")
    status, out, err = command(capsys, *words.split())
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert complaint in err and err.startswith("error: ")
    assert {path.name for path in Path().iterdir()} == {"clips", "empty", "list.json"}


@pytest.mark.parametrize("name", ["-0abc.wav", "-oabc.csv", "--hx.wav", "-hey.wav"])
def test_a_file_whose_name_begins_like_an_option(clips, capsys, name):
    Path("clips/clip001.wav").rename(name)
    status, out, err = command(capsys, "tag", "model", name, "clips")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert f"{name} is a file" in err and f"./{name}, or -- before" in err
    words = ("tag", "model", "--top_k", "1")
    for more in ((f"./{name}",), ("--", name)):
        status, out, _ = command(capsys, *words, *more)
        assert (status, name in out) == (0, True) or name.endswith(".csv")


# Children of a server that has imported torch, which takes a fresh process seconds.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.command_case", "espnet2_sslam.inference"])


def _start(pause, *options, command="embed"):
    """Run the command with the stand-in in a process, its stderr in `log`."""
    words = (command, "model", *options)
    child = SERVER.Process(target=run_apart, args=(os.getcwd(), pause, words))
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


def test_events_of_all_formats_survive_kills_with_the_same_bytes(clips):
    make_clips(clips, 12, seconds=0.1)
    child = _start(0, *_all_formats("whole"), command="tag")
    child.join()
    index = Path("a/e.tsv.part/index.jsonl")
    for lines in (3, 8):
        child = _start(0.02, *_all_formats("a"), command="tag")
        _wait_for(index, lines)
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        assert not Path("a/labels").exists()
    # the third one while it writes: some files are there, one is half written
    Path("a/labels").mkdir()
    Path("a/labels/clip000.txt").write_text("from before")
    Path("a/labels/.clip001.txt.1.tmp").write_text("half")
    Path("a/labels/.other.txt.1.tmp").write_text("another process's")
    child = _start(0, *_all_formats("a"), command="tag")
    child.join()
    assert child.exitcode == 0 and "done already" in Path("log").read_text()
    Path("a/labels/.other.txt.1.tmp").unlink()
    assert _contents("a") == _contents("whole") and len(_contents("a")) == 2 + 3 * 12


@pytest.mark.parametrize(
    "output, more, words",
    [
        ("model/config.csv", ("clips/00.wav",), "is .in. the model"),
        ("clips.txt", ("--list", "clips.txt"), "is a list or a file of thresholds"),
        ("clips/00.wav", ("clips/00.wav",), "is one of the recordings"),
        ("link.csv", ("clips/00.wav",), "is one of the recordings"),
    ],
)
def test_an_output_never_replaces_what_is_read(clips, capsys, output, more, words):
    first = sorted(clips.iterdir())[0]
    first.rename(clips / "00.wav")
    Path("model").mkdir()
    Path("model/config.csv").write_text("precious")
    Path("clips.txt").write_text("clips/00.wav\n")
    Path("link.csv").symlink_to("clips/00.wav")
    before = Path(output).read_bytes()
    status, _, error = _embed(capsys, *more, "-o", output, "--format", "csv")
    assert status == 1 and re.search(words, error)
    assert Path(output).read_bytes() == before
