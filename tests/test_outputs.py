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

from espnet2_sslam.inference import (
    AudioInput,
    FileResult,
    ResultFolder,
    best_labels,
    find_events,
    output_format,
    plain,
    write_embeddings,
    write_events,
    write_scores,
)

JOB = {"command": "embed", "layer": -1}
CLASSES = ["Dog", "Rain, light", "Siren"]


@pytest.fixture
def items(tmp_path):
    """Five files with names of all sorts."""
    names = ["a.wav", "b, c.wav", 'd "e" f.wav', "ü 100%.wav", os.fsdecode(b"\xff.wav")]
    found = []
    for name in names:
        (tmp_path / name).write_bytes(b"audio of " + os.fsencode(name))
        found.append(AudioInput(str(tmp_path / name), name))
    return found


def _result(index, rows=1, shape=(3,)):
    """Starts, ends and values that tell whose they are."""
    starts = np.arange(rows) * 0.16
    values = index + np.random.default_rng(index).random((rows, *shape)) / 2
    values = values.astype(np.float32)
    return FileResult(index, "", None, starts, starts + 0.16, values)


def _fill(output, items, rows=lambda index: 1, shape=(3,), order=None):
    """A folder with all results, added in some order."""
    folder = ResultFolder(output, JOB, items).__enter__()
    for index in order or range(len(items)):
        folder.add(items[index], _result(index, rows(index), shape))
    return folder


def _written(output, format, items, **options):
    """What `write_embeddings` writes, read back: ids, starts, values of all rows."""
    folder = _fill(output, items, order=[3, 1, 4, 0, 2], **options)
    series = "rows" in options
    write_embeddings(output, format, folder.rows(items), JOB, series)
    if format == "npz":
        arrays = np.load(output)
        assert json.loads(str(arrays["info"])) == JOB
        return [arrays[name] for name in ("ids", "starts", "values")]
    if format == "ark":
        found = kaldiio.load_scp(str(output.with_suffix(".scp")))
        names = [unquote(name, errors="surrogateescape") for name in found]
        values = [found[name].reshape(-1, 3) for name in found]
        names = np.repeat(names, [len(each) for each in values])
        if not series:
            return names, None, np.concatenate(values)
        segments = output.with_suffix(".segments").read_text("utf-8", "surrogateescape")
        starts = [float(line.split()[2]) for line in segments.splitlines()]
        return names, starts, np.concatenate(values)
    text = output.read_text("utf-8", "surrogateescape")
    if "json" in format:
        lines = text.splitlines() if format == "jsonl" else []
        found = [json.loads(line) for line in lines] or json.loads(text)
        return [[entry[key] for entry in found] for key in ("file", "start", "values")]
    lines = text.splitlines()
    header, *table = csv.reader(lines, delimiter="\t" if format == "tsv" else ",")
    assert header[:3] == ["file", "start", "end"] and header[-1] == "v2"
    values = np.array([row[3:] for row in table], np.float32)
    return [row[0] for row in table], [float(row[1]) for row in table], values


FORMATS = ["npz", "csv", "tsv", "json", "jsonl", "ark"]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("series", [False, True])
def test_every_row_has_its_name_time_and_exact_values(tmp_path, items, format, series):
    def rows(index):
        return 3 * index + 1

    options = {"rows": rows} if series else {}
    counts = [rows(index) if series else 1 for index in range(5)]
    results = [_result(index, count) for index, count in enumerate(counts)]
    names, starts, values = _written(
        tmp_path / f"out.{format}", format, items, **options
    )
    expected = [plain(item.name) if format == "npz" else item.name for item in items]
    assert list(names) == list(np.repeat(expected, counts))
    if starts is not None:
        expected = np.concatenate([result.starts for result in results])
        np.testing.assert_allclose(starts, expected)
    expected = np.concatenate([result.values for result in results])
    np.testing.assert_array_equal(np.array(values, np.float32), expected)


def test_all_layers_are_an_axis_or_numbered_rows(tmp_path, items):
    results = _fill(tmp_path / "out", items, shape=(2, 3)).rows(items)
    expected = np.stack([_result(index, shape=(2, 3)).values[0] for index in range(5)])
    for format in ("npz", "json", "csv", "ark"):
        write_embeddings(tmp_path / f"out.{format}", format, results, JOB)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npz")["values"], expected)
    entries = json.loads((tmp_path / "out.json").read_text())
    values = np.array([entry["values"] for entry in entries], np.float32)
    np.testing.assert_array_equal(values, expected)
    header, *table = csv.reader((tmp_path / "out.csv").open(errors="surrogateescape"))
    assert header[3] == "layer" and [row[3] for row in table[:4]] == list("0101")
    values = np.array([row[4:] for row in table], np.float32).reshape(5, 2, 3)
    np.testing.assert_array_equal(values, expected)
    assert kaldiio.load_scp(str(tmp_path / "out.scp"))["a.wav"].shape == (2, 3)
    with pytest.raises(ValueError, match="one layer"):
        write_embeddings(tmp_path / "x.ark", "ark", results, JOB, True)
    assert not (tmp_path / "x.ark").exists()


def test_labels_and_events_are_the_same_in_every_format(tmp_path, items):
    results = _fill(tmp_path / "out", items, rows=lambda index: 4).rows(items)
    choose = best_labels(CLASSES, 2, np.zeros(3))
    for format in ("csv", "json", "npz", "ark"):
        path = tmp_path / f"out.{format}"
        write_scores(path, format, results, JOB, CLASSES, choose, True)
    _, *table = csv.reader((tmp_path / "out.csv").open(errors="surrogateescape"))
    objects = json.loads((tmp_path / "out.json").read_text())
    arrays = np.load(tmp_path / "out.npz")
    assert list(arrays["classes"]) == CLASSES
    for index, entry in enumerate(objects):
        best = np.argsort(-arrays["values"][index])[:2]
        expected = [CLASSES[i] for i in best]
        assert [label["label"] for label in entry["labels"]] == expected
        assert [row[3] for row in table[2 * index : 2 * index + 2]] == expected
        assert float(table[2 * index][4]) == entry["labels"][0]["score"]
    assert (tmp_path / "out.classes.txt").read_text().splitlines() == CLASSES

    events = [
        (name, find_events(scores % 1, starts, ends, CLASSES, threshold=0.25))
        for name, starts, ends, scores in results
    ]
    for format in ("tsv", "csv", "json"):
        write_events(tmp_path / f"events.{format}", format, events)
    lines = (tmp_path / "events.tsv").read_bytes().decode(errors="surrogateescape")
    header, *table = [line.split("\t") for line in lines.splitlines()]
    assert header == ["filename", "onset", "offset", "event_label"] and len(table) > 5
    rows = list(csv.reader((tmp_path / "events.csv").open(errors="surrogateescape")))
    assert rows == [header, *table]
    objects = json.loads((tmp_path / "events.json").read_text())
    assert [f"{entry['onset']:.3f}" for entry in objects] == [row[1] for row in table]


@pytest.mark.parametrize(
    "path, chosen, format",
    [
        ("x.NPZ", None, "npz"),
        ("x.scp", None, "ark"),
        ("x.txt", "csv", "csv"),
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


def test_labels_are_the_best_that_reach_their_limits(tmp_path, items):
    scores = np.array([0.4, 0.7, 0.1], np.float32)
    found = best_labels(CLASSES, 2, np.array([0.5, 0.7, 0.0]))(scores)
    assert [label for label, _ in found] == ["Rain, light"]
    found = best_labels(CLASSES, 3, np.array([0.5, 0.7, 0.0]))(scores)
    assert found[1] == ("Siren", pytest.approx(0.1))
    assert len(best_labels(CLASSES, 0, np.zeros(3))(scores)) == 3
    assert best_labels(CLASSES, 1, np.ones(3))(scores) == []


def test_a_full_disk_is_said_with_the_place(tmp_path, items):
    with ResultFolder(tmp_path / "out.csv", JOB, items) as folder:
        folder.add(items[0], _result(0))
        folder._data.close()
        folder._data = open("/dev/full", "wb")
        with pytest.raises(OSError) as failure:
            for _ in range(3):
                folder.add(items[1], _result(1, rows=10_000))
        assert failure.value.errno == errno.ENOSPC
        assert failure.value.filename == str(tmp_path / "out.csv.part")
    with ResultFolder(tmp_path / "out.csv", JOB, items) as again:
        assert again.todo == items[1:]
        assert next(iter(again.rows(items))).name == "a.wav"


def check(folder, items):
    """Every result of the folder is its file's."""
    for index, rows in enumerate(folder.rows(items)):
        np.testing.assert_array_equal(rows.values, _result(index).values)


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
        todo = folder.todo
        assert 1 <= len(todo) <= 2 and todo == items[-len(todo) :]
        for item in todo:
            folder.add(item, _result(items.index(item)))
    with ResultFolder(output, JOB, items) as folder:
        assert folder.todo == [] and len(folder) == 5
        check(folder, items)


def test_a_changed_file_is_done_again(tmp_path, items):
    output = tmp_path / "out.csv"
    _fill(output, items).__exit__()
    Path(items[1].path).write_bytes(b"another recording")
    os.utime(items[3].path, ns=(1, 1))
    os.remove(items[4].path)
    with ResultFolder(output, JOB, items) as folder:
        assert folder.todo == [items[1], items[3], items[4]]
        assert folder.rows(items).names == [items[0].name, items[2].name]
        folder.add(items[1], _result(7))
    with ResultFolder(output, JOB, items) as folder:
        assert folder.todo == [items[3], items[4]]
        values = [rows.values for rows in folder.rows(items)]
        np.testing.assert_array_equal(values[1], _result(7).values)


def test_more_files_and_another_order_keep_what_is_done(tmp_path, items):
    output = tmp_path / "out.csv"
    _fill(output, items[1:4]).__exit__()
    turned = items[::-1]
    with ResultFolder(output, JOB, turned) as folder:
        assert folder.todo == [items[4], items[0]]
        values = [rows.values for rows in folder.rows(turned)]
        np.testing.assert_array_equal(values[0], _result(2).values)


def test_two_processes_do_not_write_one_output(tmp_path):
    with (
        ResultFolder(tmp_path / "out.csv", JOB, []),
        pytest.raises(ValueError, match="in use"),
    ):
        ResultFolder(tmp_path / "out.csv", JOB, []).__enter__()
    with ResultFolder(tmp_path / "out.csv", JOB, []) as folder:
        folder.discard()
    assert os.listdir(tmp_path) == []
