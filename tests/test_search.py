"""The nearest rows of what `sslam embed` wrote."""

import json
import re

import numpy as np
import pytest

from espnet2_sslam.checkpoint import save_model
from espnet2_sslam.inference import EmbeddingIndex, search
from tests.command_case import command
from tests.inference_case import encoder, noise, sslam, write

FORMATS = ("npz", "csv", "tsv", "json", "jsonl")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A model, another one, and five clips in `clips`, of 1 to 3 s."""
    monkeypatch.chdir(tmp_path)
    save_model(encoder(), "model")
    save_model(encoder(seed=1), "other")
    save_model(encoder(embed_dim=32), "wide")
    (tmp_path / "clips").mkdir()
    for index in range(5):
        write(f"clips/a b{index}.wav", noise(1 + index / 2, seed=index))
    return tmp_path


def rows(out):
    """Score, start, end and file of each row that was printed."""
    line = re.compile(r"  (\S+) +(\S+) - +(\S+) s  (.+)")
    found = [line.fullmatch(text).groups() for text in out.splitlines()[1:]]
    return [(*map(float, numbers), file) for *numbers, file in found]


@pytest.mark.parametrize("format", FORMATS)
def test_the_clip_itself_is_nearest_and_scores_fall(folder, capsys, format):
    command(capsys, "embed", "model", "clips", "-o", f"o.{format}")
    options = [] if format == "npz" else ["--model", "model"]
    clip = "clips/a b3.wav"
    status, out, err = command(capsys, "search", f"o.{format}", clip, *options)
    assert (status, err, out.splitlines()[0]) == (0, "", clip)
    found = rows(out)
    assert len(found) == 5 and found[0] == (1.0, 0.0, 2.5, clip)
    scores = [row[0] for row in found]
    assert scores == sorted(scores, reverse=True) and scores[1] < 0.9999


def test_scores_are_cosines(folder, capsys):
    command(capsys, "embed", "model", "clips", "-o", "o.npz")
    values = np.load("o.npz")["values"].astype(np.float64)
    unit = values / np.linalg.norm(values, axis=1, keepdims=True)
    for number in range(5):
        matches = search("o.npz", f"clips/a b{number}.wav", 3, device="cpu")
        expected = unit @ unit[number]
        order = np.argsort(-expected)[:3]
        assert [m.file for m in matches] == [f"clips/a b{i}.wav" for i in order]
        assert [m.score for m in matches] == pytest.approx(expected[order], abs=1e-5)


def test_windows_have_their_seconds(folder, capsys):
    piece = noise(6, seed=7)
    write("long.wav", piece)
    write("part.wav", piece[2 * 16_000 : 4 * 16_000])
    options = ["--chunk", "2", "--hop", "1", "--pooling", "cls", "--layer", "1"]
    command(capsys, "embed", "model", "clips", "long.wav", "-o", "o.npz", *options)
    status, out, _ = command(capsys, "search", "o.npz", "part.wav", "-k", "1")
    assert status == 0 and rows(out) == [(1.0, 2.0, 4.0, "long.wav")]


def test_silence_has_no_neighbour_but_no_error():
    index = EmbeddingIndex(["a", "b"], [0, 0], [1, 1], np.array([[0, 0], [3, 4]]))
    assert [m.score for m in index.search(np.zeros(2))] == [0, 0]
    assert index.search(np.array([6, 8]), 1)[0] == ("b", 0, 1, pytest.approx(1))


@pytest.mark.parametrize(
    "made, words, complaint",
    [
        ("o.npz", ["--model", "other"], "the index was made by model (weights "),
        ("o.csv", ["--model", "wide"], "vectors of 24 values, the model makes 32"),
        ("o.csv", [], "o.csv does not name its model: give --model"),
        ("o.npz", ["-k", "0"], "-k must be 1 or more, got 0"),
        ("o.npz", ["--model", "nothing"], "nothing"),
        ("o.ark", [], "need an output of sslam embed with suffix npz, csv"),
    ],
)
def test_what_does_not_fit_is_one_line(folder, capsys, made, words, complaint):
    command(capsys, "embed", "model", "clips", "-o", made)
    status, out, err = command(capsys, "search", made, "clips/a b0.wav", *words)
    assert (status, out) == (1, "") and err.count("\n") == 1 and complaint in err


@pytest.mark.parametrize(
    "content", ["", "file,start\na,1\n", "file,start,end,layer,v0"]
)
def test_another_table_is_refused(tmp_path, content):
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(ValueError, match="is no output of sslam embed"):
        EmbeddingIndex.read(tmp_path / "t.csv")


def test_other_arrays_and_all_layers_are_refused(folder, capsys):
    np.savez("t.npz", x=np.zeros(2))
    with pytest.raises(ValueError, match="is no output of sslam embed"):
        EmbeddingIndex.read("t.npz")
    (folder / "u.npz").write_bytes(b"PK\3\4 cut off")
    with pytest.raises(ValueError, match="is no output of sslam embed"):
        EmbeddingIndex.read("u.npz")
    command(capsys, "embed", "model", "clips", "-o", "o.npz", "--layer", "all")
    with pytest.raises(ValueError, match="choose one layer"):
        EmbeddingIndex.read("o.npz")


def test_the_index_says_where_its_model_was(folder, capsys):
    command(capsys, "embed", "model", "clips", "-o", "o.npz")
    info = json.loads(str(np.load("o.npz")["info"]))
    assert (info["model"], info["weights"], info["revision"]) == (
        *("model", "student"),
        None,
    )
    index = EmbeddingIndex.read("o.npz")
    vector = index.embed(sslam(encoder()), noise(1), rate=16_000)
    assert len(index) == 5 and len(index.search(vector, 9)) == 5
