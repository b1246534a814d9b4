"""Results reach the output whole, in order, and under their own names."""

import csv
import errno
import json
import os
from pathlib import Path
from urllib.parse import unquote

import kaldiio
import numpy as np
import pytest

from espnet2_sslam.corpus.tables import read_annotations
from espnet2_sslam.inference import (
    AudioInput,
    Event,
    FileResult,
    ResultFolder,
    best_labels,
    find_events,
    output_format,
    plain,
    recording_path,
    write_embeddings,
    write_events,
    write_score_tables,
    write_scores,
)

JOB = {"command": "embed", "layer": -1}
CLASSES = ["Dog", "Rain, light", "Siren"]


@pytest.fixture
def items(tmp_path):
    """Five files with names of all sorts."""
    names = ["a.wav", "b, c.wav", 'd "e" f.wav', "ü 100%.wav", os.fsdecode(b"\xff.wav")]
    for name in names:
        (tmp_path / name).write_bytes(b"audio of " + os.fsencode(name))
    return [AudioInput(str(tmp_path / name), name) for name in names]


def _result(index, rows=1, shape=(3,)):
    """Starts, ends and values that tell whose they are."""
    starts = np.arange(rows) * 0.16
    values = index + np.random.default_rng(index).random((rows, *shape)) / 2
    return FileResult(index, "", None, starts, starts + 0.16, np.float32(values))


def _fill(output, items, rows=lambda index: 1, shape=(3,)):
    """A folder with all results, not added in the order of the items."""
    folder = ResultFolder(output, JOB, items).__enter__()
    for index in sorted(range(len(items)), key=lambda index: index * 3 % 5):
        folder.add(items[index], _result(index, rows(index), shape))
    return folder


def _table(path):
    """Rows of a csv or tsv file, the header first."""
    text = path.read_text("utf-8", "surrogateescape")
    if path.suffix == ".tsv":
        return [line.split("\t") for line in text.splitlines()]
    return list(csv.reader(text.splitlines()))


def _objects(path):
    """Rows of a json or jsonl file."""
    text = path.read_text("utf-8")
    if path.suffix == ".json":
        return json.loads(text)
    return [json.loads(line) for line in text.splitlines()]


def _read(path, series):
    """What `write_embeddings` has written: ids, starts, values of all rows."""
    if path.suffix == ".npz":
        arrays = np.load(path)
        assert json.loads(str(arrays["info"])) == JOB
        return [arrays[name] for name in ("ids", "starts", "values")]
    if path.suffix == ".ark":
        arrays = dict(kaldiio.load_scp(str(path.with_suffix(".scp"))))
        names = [unquote(name, errors="surrogateescape") for name in arrays]
        values = [array.reshape(-1, 3) for array in arrays.values()]
        names = np.repeat(names, [len(each) for each in values])
        if not series:
            return names, np.zeros(len(names)), np.concatenate(values)
        text = path.with_suffix(".segments").read_text("utf-8", "surrogateescape")
        starts = [float(line.split()[2]) for line in text.splitlines()]
        return names, starts, np.concatenate(values)
    if "json" in path.suffix:
        keys = "file", "start", "values"
        return [[row[key] for row in _objects(path)] for key in keys]
    header, *table = _table(path)
    assert header == ["file", "start", "end", "v0", "v1", "v2"]
    values = [[float(cell) for cell in row[3:]] for row in table]
    return [row[0] for row in table], [float(row[1]) for row in table], values


@pytest.mark.parametrize("format", ["npz", "csv", "tsv", "json", "jsonl", "ark"])
@pytest.mark.parametrize("series", [False, True])
def test_every_row_has_its_name_time_and_exact_values(tmp_path, items, format, series):
    counts = [3 * index + 1 if series else 1 for index in range(5)]
    path = tmp_path / f"out.{format}"
    results = _fill(path, items, counts.__getitem__).rows(items)
    write_embeddings(path, format, results, JOB, series)
    names, starts, values = _read(path, series)
    expected = [plain(item.name) if format == "npz" else item.name for item in items]
    assert list(names) == list(np.repeat(expected, counts))
    rows = [_result(index, count) for index, count in enumerate(counts)]
    np.testing.assert_allclose(starts, np.concatenate([row.starts for row in rows]))
    expected = np.concatenate([row.values for row in rows])
    np.testing.assert_array_equal(np.array(values, np.float32), expected)


def test_all_layers_are_an_axis_or_numbered_rows(tmp_path, items):
    results = _fill(tmp_path / "out", items, shape=(2, 3)).rows(items)
    expected = np.stack([_result(index, shape=(2, 3)).values[0] for index in range(5)])
    for format in ("npz", "json", "csv", "ark"):
        write_embeddings(tmp_path / f"out.{format}", format, results, JOB)
    header, *table = _table(tmp_path / "out.csv")
    assert header[3] == "layer" and [row[3] for row in table[:4]] == list("0101")
    for values in (
        np.load(tmp_path / "out.npz")["values"],
        [row["values"] for row in _objects(tmp_path / "out.json")],
        np.reshape([[float(cell) for cell in row[4:]] for row in table], (5, 2, 3)),
        list(dict(kaldiio.load_scp(str(tmp_path / "out.scp"))).values()),
    ):
        np.testing.assert_array_equal(np.array(values, np.float32), expected)
    with pytest.raises(ValueError, match="one layer"):
        write_embeddings(tmp_path / "x.ark", "ark", results, JOB, True)
    assert not (tmp_path / "x.ark").exists()


def test_labels_are_the_same_in_every_format(tmp_path, items):
    results = _fill(tmp_path / "out", items, rows=lambda index: 4).rows(items)
    choose = best_labels(CLASSES, 2)
    for format in ("csv", "json", "npz", "ark"):
        path = tmp_path / f"out.{format}"
        write_scores(path, format, results, JOB, CLASSES, choose, True)
    _, *table = _table(tmp_path / "out.csv")
    arrays = np.load(tmp_path / "out.npz")
    assert list(arrays["classes"]) == CLASSES
    for index, row in enumerate(_objects(tmp_path / "out.json")):
        best = [CLASSES[i] for i in np.argsort(-arrays["values"][index])[:2]]
        assert [label["label"] for label in row["labels"]] == best
        assert [cells[3] for cells in table[2 * index : 2 * index + 2]] == best
        assert float(table[2 * index][4]) == row["labels"][0]["score"]
    assert (tmp_path / "out.classes.txt").read_text().splitlines() == CLASSES


def test_events_are_the_same_in_every_format(tmp_path, items):
    results = _fill(tmp_path / "out", items, rows=lambda index: 4).rows(items)
    events = [
        (name, find_events(scores % 1, starts, ends, CLASSES, threshold=0.25))
        for name, starts, ends, scores in results
    ]
    for format in ("tsv", "csv", "json"):
        write_events(tmp_path / f"events.{format}", format, events)
    header, *table = _table(tmp_path / "events.tsv")
    assert header == ["filename", "onset", "offset", "event_label", "confidence"]
    assert len(table) > 5 and all(0.25 <= float(cells[4]) <= 1 for cells in table)
    assert _table(tmp_path / "events.csv") == [header, *table]
    objects = _objects(tmp_path / "events.json")
    assert [f"{row['onset']:.3f}" for row in objects] == [cells[1] for cells in table]
    assert [row["confidence"] for row in objects] == [
        pytest.approx(float(cells[4]), abs=1e-4) for cells in table
    ]


LABELS = [Event(0.16, 1.28, "big cat", 0.91239), Event(0.5, 10, "Rain, light", 0.5)]


def test_audacity_has_onset_offset_and_label(tmp_path):
    write_events(tmp_path / "a.txt", "audacity", [("x/a.wav", LABELS)])
    text = "0.160\t1.280\tbig cat\n0.500\t10.000\tRain, light\n"
    assert (tmp_path / "a.txt").read_text() == text


def test_raven_has_a_selection_for_each_event(tmp_path):
    write_events(tmp_path / "a.txt", "raven", [("x/a.wav", LABELS)])
    header, _, second = (tmp_path / "a.txt").read_text().splitlines()
    row = dict(zip(header.split("\t"), second.split("\t"), strict=True))
    assert row == {
        "Selection": "2",
        "View": "Spectrogram 1",
        "Channel": "1",
        "Begin Time (s)": "0.500",
        "End Time (s)": "10.000",
        "Low Freq (Hz)": "0",
        "High Freq (Hz)": "8000",
        "Begin File": "a.wav",
        "File Offset (s)": "0.500",
        "Annotation": "Rain, light",
        "Confidence": "0.5000",
    }


@pytest.mark.parametrize("format", ["audacity", "raven", "tsv", "csv"])
def test_what_is_written_can_be_edited_and_trained_with(tmp_path, format):
    events = [LABELS[0], Event(0.5, 10.0, "dog", 0.5)]
    write_events(tmp_path / f"a.{format}", format, [("a.wav", events)])
    rows = read_annotations(tmp_path / f"a.{format}", recording="a.wav")
    assert [(row.name, row.start, row.end, row.labels) for row in rows] == [
        ("a.wav", 0.16, 1.28, ["big cat"]),
        ("a.wav", 0.5, 10.0, ["dog"]),
    ]


def test_tables_of_scores_have_steps_that_touch_and_exact_values(tmp_path, items):
    """What sed_scores_eval demands of them."""
    items = [item._replace(name=f"sub/{item.name}") for item in items]
    results = _fill(tmp_path / "out", items, rows=lambda index: 50).rows(items)
    write_score_tables(tmp_path / "scores", results, CLASSES)
    for index, item in enumerate(items):
        path = recording_path(tmp_path / "scores", item.name, "scores")
        assert path.parent.name == "sub" and path.stem == Path(item.name).stem
        header, *table = _table(path)
        assert header == ["onset", "offset", *CLASSES] and len(table) == 50
        assert [row[0] for row in table[1:]] == [row[1] for row in table[:-1]]
        assert table[0][0] == "0" and float(table[-1][1]) == pytest.approx(8.0)
        values = np.array([row[2:] for row in table], np.float32)
        np.testing.assert_array_equal(values, _result(index, 50).values)


@pytest.mark.parametrize(
    "name, path",
    [
        ("a.wav", "f/a.tsv"),
        ("x/../a.b.FLAC", "f/x/a.b.tsv"),
        ("/data/a.mp3", "f/data/a.tsv"),
        ("../utt.1", "f/utt.1.tsv"),  # of a .scp: no suffix
    ],
)
def test_the_file_of_a_recording_lies_in_the_folder(name, path):
    assert recording_path(Path("f"), name, "scores") == Path(path)


@pytest.mark.parametrize(
    "path, chosen, format",
    [
        ("x.NPZ", None, "npz"),
        ("x.scp", None, "ark"),
        ("x.csv", "npz", "npz"),
        ("x.txt", None, None),
        ("x", "json", None),
    ],
)
def test_the_format_is_chosen_or_follows_from_the_suffix(path, chosen, format):
    if format is None:
        with pytest.raises(ValueError, match="csv, npz, ark"):
            output_format(path, chosen, ["csv", "npz", "ark"])
    else:
        assert output_format(path, chosen, ["csv", "npz", "ark"]) == format


def test_labels_are_the_best_that_reach_their_limits():
    scores = np.array([0.4, 0.7, 0.1], np.float32)
    labels = best_labels(CLASSES, 3, np.array([0.5, 0.7, 0.0]))(scores)
    assert [label for label, _ in labels] == ["Rain, light", "Siren"]
    assert len(best_labels(CLASSES, 0)(scores)) == 3
    assert best_labels(CLASSES, 1, 1.0)(scores) == []


def test_a_full_disk_is_said_with_the_place(tmp_path, items):
    with ResultFolder(tmp_path / "out.csv", JOB, items) as folder:
        folder.add(items[0], _result(0))
        folder._data.close()
        folder._data = open("/dev/full", "wb")
        with pytest.raises(OSError) as failure:
            folder.add(items[1], _result(1, rows=10_000))
        assert failure.value.errno == errno.ENOSPC
        assert failure.value.filename == str(tmp_path / "out.csv.part")
    with ResultFolder(tmp_path / "out.csv", JOB, items) as again:
        assert again.todo == items[1:]
        assert next(iter(again.rows(items))).name == "a.wav"


@pytest.mark.parametrize("name", ["index.jsonl", "data.bin"])
@pytest.mark.parametrize("lost", [1, 10, 50])
@pytest.mark.parametrize("mangled", [False, True])
def test_what_was_cut_off_or_mangled_is_done_again(
    tmp_path, items, name, lost, mangled
):
    output = tmp_path / "out.csv"
    _fill(output, items).__exit__()
    path = Path(f"{output}.part") / name
    size = path.stat().st_size
    os.truncate(path, size - lost)
    if mangled:  # zeros: a crashed machine had not written them yet
        os.truncate(path, size)
    with ResultFolder(output, JOB, items) as folder:
        assert 1 <= len(folder.todo) <= 2
        for item in folder.todo:
            folder.add(item, _result(items.index(item)))
    with ResultFolder(output, JOB, items) as folder:
        assert folder.todo == [] and len(folder) == 5
        for index, rows in enumerate(folder.rows(items)):
            np.testing.assert_array_equal(rows.values, _result(index).values)


def test_changed_and_new_files_are_done_again_in_any_order(tmp_path, items):
    output = tmp_path / "out.csv"
    _fill(output, items[:4]).__exit__()
    Path(items[1].path).write_bytes(b"another recording")
    os.utime(items[3].path, ns=(1, 1))
    turned = items[::-1]
    with ResultFolder(output, JOB, turned) as folder:
        assert folder.todo == [items[4], items[3], items[1]]
        assert folder.rows(turned).names == [items[2].name, items[0].name]
        folder.add(items[1], _result(7))
    os.remove(items[2].path)
    with ResultFolder(output, JOB, items) as folder:
        assert folder.todo == [items[2], items[3], items[4]]
        values = [rows.values for rows in folder.rows(items)]
        np.testing.assert_array_equal(values[1], _result(7).values)


def test_two_processes_do_not_write_one_output(tmp_path):
    with (
        ResultFolder(tmp_path / "out.csv", JOB, []),
        pytest.raises(ValueError, match="in use"),
    ):
        ResultFolder(tmp_path / "out.csv", JOB, []).__enter__()
    assert os.listdir(tmp_path) == []
