"""`sslam tag` and `sslam plot`: labels, windows, time steps, events and pictures."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from espnet2_sslam.bin import cli
from espnet2_sslam.inference import FileResult
from tests.command_case import CLASSES, FakeSSLAM, command, install, make_clips

needs_matplotlib = pytest.mark.skipif(
    not importlib.util.find_spec("matplotlib"), reason="matplotlib is not installed"
)


@pytest.fixture
def clips(tmp_path, monkeypatch):
    """Three clips in `clips`; the commands load the stand-in."""
    install(monkeypatch)
    make_clips(tmp_path / "clips", 3)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "clips"


def _tag(capsys, *options):
    return command(capsys, "tag", "model", *options)


def _plot(capsys, *options):
    return command(capsys, "plot", "model", *options)


def _scores(path):
    """What the stand-in gives for a file, the best label first."""
    [result] = FakeSSLAM().tag_files([path])
    order = np.argsort(-result.values[0])
    return [(CLASSES[i], float(result.values[0][i])) for i in order]


def test_without_output_the_labels_are_printed_the_best_first(clips, capsys):
    status, out, err = _tag(capsys, "clips", "--top_k", "2")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "clips/clip000.wav" and len(lines) == 9
    best = _scores("clips/clip000.wav")
    assert lines[1:3] == [f"  {score:.3f}  {label}" for label, score in best[:2]]
    _, out, _ = _tag(capsys, "clips/clip000.wav", "--chunk", "0.1", "--top_k", "1")
    _, first, second = out.splitlines()
    assert first.startswith("       0.00 -      0.10 s  0.0")
    assert second.startswith("       0.10 -      0.20 s  0.0")
    _, out, _ = _tag(capsys, "clips/clip000.wav", "--threshold", "0.99")
    assert out.splitlines()[1] == "  no label reaches the threshold"


def test_thresholds_by_label_and_from_a_file(clips, capsys):
    Path("limits.json").write_text(json.dumps({"Dog": 0.0, "Siren": 0.99}))
    options = ["--threshold", "0.99", "--threshold", "Rain, light=0"]
    _tag(capsys, "clips", "-o", "a.json", *options)
    _tag(capsys, "clips", "-o", "b.json", "--threshold", "limits.json")
    found = [json.loads(Path(f"{name}.json").read_text()) for name in "ab"]
    labels = [{label["label"] for label in clip["labels"]} for clip in found[0]]
    assert labels == [{"Rain, light"}] * 3
    labels = [{label["label"] for label in clip["labels"]} for clip in found[1]]
    assert labels == [{"Dog", "Rain, light"}] * 3


def test_events_are_a_desed_table(clips, capsys):
    options = "--events --names file --threshold 0.05 --threshold Dog=1".split()
    assert _tag(capsys, "clips", *options, "-o", "out.tsv")[0] == 0
    status, out, _ = _tag(capsys, "clips", *options)
    lines = Path("out.tsv").read_text().splitlines()
    assert status == 0 and out.splitlines() == lines
    assert lines[0] == "filename\tonset\toffset\tevent_label"
    assert lines[1] == "clip001.wav\t0.000\t0.200\tRain, light"
    assert not any("Dog" in line for line in lines)


def test_events_can_be_filtered_joined_and_dropped(clips, capsys, monkeypatch):
    def steps(self, files, *, resolution=0.16, window=None):
        starts = np.arange(8) * resolution
        column = np.array([1, 0, 1, 1, 0, 0, 0, 1], np.float32)
        values = np.stack([column, 0 * column, 0 * column], 1)
        yield FileResult(0, files[0], None, starts, starts + resolution, values)

    monkeypatch.setattr(FakeSSLAM, "tag_frames", steps)

    def events(*options):
        _, out, _ = _tag(capsys, "clips/clip000.wav", "--events", *options)
        return [line.split("\t")[1:3] for line in out.splitlines()[1:]]

    assert len(events()) == 3
    joined = events("--merge_gap", "0.16", "--min_duration", "0.3")
    assert joined == [["0.000", "0.640"]]
    # The filter repeats the ends: the first step joins, the last one stays.
    assert events("--median", "0.48") == [["0.000", "0.640"], ["1.120", "1.280"]]


def test_unreadable_files_are_listed_after_the_labels(clips, capsys):
    (clips / "clip001.wav").write_text("no audio")
    status, out, err = _tag(capsys, "clips", "gone.wav")
    assert status == 1 and out.count("clips/") == 2
    first, second, last = err.splitlines()
    assert first.startswith("  clips/clip001.wav: not audio")
    assert second == "  gone.wav: missing: there is no such file"
    assert last == "error: 2 of 4 files could not be used (listed above)"


def test_events_go_on_from_the_scores_of_a_stopped_run(clips, capsys):
    """Scores do not depend on what is made of them: nothing is computed again."""
    (clips / "clip001.wav").write_text("no audio")
    assert _tag(capsys, "clips", "--events", "-o", "out.tsv")[0] == 1
    options = ["--events", "--threshold", "0.01", "--median", "0.48", "-o", "out.tsv"]
    status, _, err = _tag(capsys, "clips", *options)
    assert status == 1 and "2 of 3 files are done already" in err
    assert Path("out.tsv").read_text().count("clip002.wav") == 3
    assert "resolution: 0.16 there" in _tag(capsys, "clips", "-o", "out.tsv")[2]


@pytest.mark.parametrize(
    "options, words",
    [
        ("clips --events -o out.npz", "formats tsv, csv, json, jsonl"),
        ("clips --median 1", "need --events"),
        ("clips --events --top_k 3", "--events has --threshold"),
        ("clips --events --chunk 1", "--window"),
        ("clips --frames --chunk 1", "choose one"),
        ("clips --window 1", "need --frames or --events"),
        ("clips --top_k -1", "--top_k must be"),
        ("clips --threshold high", "LABEL=NUMBER"),
        ("clips --threshold =0.5", "LABEL=NUMBER"),
        ("clips --threshold Cat=0.5", "no such class"),
        ("clips --threshold 2", "0..1"),
        ("clips --threshold gone.json", "No such file"),
        ("clips --threshold list.json", "LABEL=NUMBER or a .json"),
        ("clips --events --merge_gap -1", "invalid seconds value"),
        ("clips --format csv", "--format needs -o"),
    ],
)
def test_wrong_options_are_one_line(clips, capsys, options, words):
    Path("list.json").write_text("[1, 2]")
    status, out, err = _tag(capsys, *options.split())
    assert (status, out, err.count("\n")) == (1, "", 1) and words in err


def test_a_model_without_a_classifier_is_refused(clips, capsys):
    status, out, err = command(capsys, "tag", "encoder", "clips")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert "no classifier" in err and "sslam embed" in err


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
    monkeypatch.setattr(cli, "PLOT_SHORT", 0.1)
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


@needs_matplotlib
@pytest.mark.parametrize(
    "options, words",
    [
        ("clips/clip001.wav -o a.jpg", ".png, .svg, .pdf"),
        ("clips/clip001.wav -o a.png --top_k 0", "--top_k"),
        ("clips/clip001.wav -o a.png --label Cat", "no label Cat"),
        ("clips/clip001.wav -o a.png --chunk 1 --frames", "choose one"),
        ("clips/clip001.wav -o a.png --hop 1", "--hop needs --chunk"),
        ("gone.wav -o a.png", "gone.wav: missing"),
        ("clips -o a.png", "clips is a folder"),
    ],
)
def test_wrong_options_of_a_picture_are_one_line(clips, capsys, options, words):
    status, out, err = _plot(capsys, *options.split())
    assert (status, out, err.count("\n")) == (1, "", 1) and words in err
    assert not Path("a.png").exists()
