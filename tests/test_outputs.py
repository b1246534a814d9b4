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


def _read_csv(path):
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.reader(file))


def test_npz_has_a_row_per_clip_in_the_order_of_the_files(tmp_path, items):
    output = tmp_path / "out.npz"
    journal = _fill(output, items, order=[3, 1, 4, 0, 2])
    write_embeddings(output, "npz", journal.rows(items), JOB)
    found = np.load(output)
    assert list(found["ids"]) == [plain(item.name) for item in items]
    assert found["values"].dtype == np.float32 and found["values"].shape == (5, 3)
    for index in range(5):
        np.testing.assert_array_equal(found["values"][index], _result(index).values[0])
    assert found["starts"].shape == found["ends"].shape == (5,)
    assert json.loads(str(found["info"])) == JOB


def test_npz_has_all_rows_of_files_of_different_lengths(tmp_path, items):
    output = tmp_path / "out.npz"
    journal = _fill(output, items, rows=lambda index: 3 * index + 1, shape=(2, 4))
    write_embeddings(output, "npz", journal.rows(items), JOB, series=True)
    found = np.load(output)
    for index, item in enumerate(items):
        own = found["ids"] == plain(item.name)
        own_result = _result(index, 3 * index + 1, (2, 4))
        np.testing.assert_array_equal(found["values"][own], own_result.values)
        np.testing.assert_array_equal(found["starts"][own], own_result.starts)
        np.testing.assert_array_equal(found["ends"][own], own_result.ends)


def test_the_same_results_give_the_same_bytes(tmp_path, items):
    for format in ("npz", "csv", "json", "jsonl", "ark"):
        contents = []
        for order in ([0, 1, 2, 3, 4], [4, 2, 0, 1, 3]):
            output = tmp_path / f"out.{format}"
            journal = _fill(output, items, order=order)
            write_embeddings(output, format, journal.rows(items), JOB)
            contents.append(output.read_bytes())
            journal.discard()
            journal.__exit__()
        assert contents[0] == contents[1]


@pytest.mark.parametrize("format, between", [("csv", ","), ("tsv", "\t")])
def test_tables_give_names_and_float32_back(tmp_path, items, format, between):
    output = tmp_path / f"out.{format}"
    journal = _fill(output, items, rows=lambda index: 2)
    write_embeddings(output, format, journal.rows(items), JOB)
    with open(output, errors="surrogateescape", newline="") as file:
        header, *table = csv.reader(file, delimiter=between)
    assert header == ["file", "start", "end", "v0", "v1", "v2"]
    assert [row[0] for row in table[::2]] == [item.name for item in items]
    assert [row[1:3] for row in table[:2]] == [["0", "0.16"], ["0.16", "0.32"]]
    values = np.array([row[3:] for row in table], np.float32).reshape(5, 2, 3)
    np.testing.assert_array_equal(values[2], _result(2, 2).values)


def test_a_table_of_all_layers_numbers_them(tmp_path, items):
    output = tmp_path / "out.csv"
    journal = _fill(output, items, rows=lambda index: 2, shape=(2, 3))
    write_embeddings(output, "csv", journal.rows(items), JOB)
    header, *table = _read_csv(output)
    assert header[3] == "layer" and [row[3] for row in table[:4]] == list("0101")
    values = np.array([row[4:] for row in table], np.float32).reshape(5, 2, 2, 3)
    np.testing.assert_array_equal(values[4], _result(4, 2, (2, 3)).values)


@pytest.mark.parametrize("shape", [(3,), (2, 3)])
def test_json_gives_names_and_values_back(tmp_path, items, shape):
    output = tmp_path / "out.json"
    journal = _fill(output, items, shape=shape)
    write_embeddings(output, "json", journal.rows(items), JOB)
    found = json.loads(output.read_text(encoding="utf-8"))
    assert [entry["file"] for entry in found] == [item.name for item in items]
    for index, entry in enumerate(found):
        own = _result(index, shape=shape).values[0]
        np.testing.assert_array_equal(np.array(entry["values"], np.float32), own)
    write_embeddings(tmp_path / "out.jsonl", "jsonl", journal.rows(items), JOB)
    lines = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == found
    assert "ü" in lines[3]


def test_ark_has_a_vector_per_clip_that_kaldiio_finds_by_its_scp(tmp_path, items):
    journal = _fill(tmp_path / "out.scp", items)
    write_embeddings(tmp_path / "out.scp", "ark", journal.rows(items), JOB)
    found = kaldiio.load_scp(str(tmp_path / "out.scp"))
    assert [os.fsencode(unquote(name, errors="surrogateescape")) for name in found] == [
        os.fsencode(item.name) for item in items
    ]
    for index, name in enumerate(found):
        assert not any(character.isspace() for character in name)
        np.testing.assert_array_equal(found[name], _result(index).values[0])
    assert not (tmp_path / "out.segments").exists()


def test_ark_has_a_matrix_per_recording_and_the_times_beside_it(tmp_path, items):
    journal = _fill(tmp_path / "out.v1.ark", items, rows=lambda index: index + 1)
    write_embeddings(
        tmp_path / "out.v1.ark", "ark", journal.rows(items), JOB, series=True
    )
    found = kaldiio.load_scp(str(tmp_path / "out.v1.scp"))
    segments = (tmp_path / "out.v1.segments").read_text().splitlines()
    assert len(segments) == 15 and segments[0] == "a.wav-000000 a.wav 0 0.16"
    for index, matrix in enumerate(found.values()):
        np.testing.assert_array_equal(matrix, _result(index, index + 1).values)


def test_ark_of_all_layers_is_a_matrix_per_clip_and_refused_for_a_series(
    tmp_path, items
):
    journal = _fill(tmp_path / "out.ark", items, shape=(2, 3))
    write_embeddings(tmp_path / "out.ark", "ark", journal.rows(items), JOB)
    assert kaldiio.load_scp(str(tmp_path / "out.scp"))["a.wav"].shape == (2, 3)
    with pytest.raises(ValueError, match="one layer"):
        write_embeddings(tmp_path / "x.ark", "ark", journal.rows(items), JOB, True)
    assert not (tmp_path / "x.ark").exists()


def test_labels_are_the_best_that_reach_their_limits(tmp_path, items):
    scores = np.array([0.4, 0.7, 0.1], np.float32)
    found = best_labels(CLASSES, 2, np.array([0.5, 0.7, 0.0]))(scores)
    assert [label for label, _ in found] == ["Rain, light"]
    found = best_labels(CLASSES, 3, np.array([0.5, 0.7, 0.0]))(scores)
    assert found[1] == ("Siren", pytest.approx(0.1))
    assert len(best_labels(CLASSES, 0, np.zeros(3))(scores)) == 3
    assert best_labels(CLASSES, 1, np.ones(3))(scores) == []


def test_scores_as_table_json_and_npz_agree(tmp_path, items):
    journal = _fill(tmp_path / "out", items)
    results = journal.rows(items)
    choose = best_labels(CLASSES, 2, np.zeros(3))
    for format in ("csv", "json", "npz", "ark"):
        path = tmp_path / f"out.{format}"
        write_scores(path, format, results, JOB, CLASSES, choose)
    _, *table = _read_csv(tmp_path / "out.csv")
    objects = json.loads((tmp_path / "out.json").read_text())
    arrays = np.load(tmp_path / "out.npz")
    assert list(arrays["classes"]) == CLASSES
    for index, entry in enumerate(objects):
        best = np.argsort(-arrays["values"][index])[:2]
        wanted = [CLASSES[i] for i in best]
        assert [label["label"] for label in entry["labels"]] == wanted
        assert [row[3] for row in table[2 * index : 2 * index + 2]] == wanted
        assert float(table[2 * index][4]) == entry["labels"][0]["score"]
    assert (tmp_path / "out.classes.txt").read_text().splitlines() == CLASSES


def test_events_as_table_and_json_agree(tmp_path, items):
    journal = _fill(tmp_path / "out", items, rows=lambda index: 4)

    events = [
        (
            rows.name,
            find_events(
                rows.values - int(rows.values[0, 0]),
                rows.starts,
                rows.ends,
                CLASSES,
                threshold=0.25,
            ),
        )
        for rows in journal.rows(items)
    ]
    for format in ("tsv", "csv", "json"):
        write_events(tmp_path / f"out.{format}", format, events)
    lines = (tmp_path / "out.tsv").read_bytes().decode(errors="surrogateescape")
    header, *table = [line.split("\t") for line in lines.splitlines()]
    assert header == ["filename", "onset", "offset", "event_label"]
    assert _read_csv(tmp_path / "out.csv")[1:] == table and len(table) > 5
    objects = json.loads((tmp_path / "out.json").read_text())
    assert [f"{entry['onset']:.3f}" for entry in objects] == [row[1] for row in table]


@pytest.mark.parametrize(
    "path, chosen, found",
    [
        ("x.NPZ", None, "npz"),
        ("x.scp", None, "ark"),
        ("x.txt", "csv", "csv"),
        ("x.csv", "json", "json"),
    ],
)
def test_the_format_is_chosen_or_follows_from_the_suffix(path, chosen, found):
    assert output_format(path, chosen, ["csv", "json", "npz", "ark"]) == found


@pytest.mark.parametrize("path, chosen", [("x.txt", None), ("x", None), ("x", "ark")])
def test_an_unknown_format_is_refused(path, chosen):
    with pytest.raises(ValueError, match="csv, npz"):
        output_format(path, chosen, ["csv", "npz"])


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, items):
    path = tmp_path / "out" / "out.csv"
    path.parent.mkdir()
    path.write_text("old")
    folder = _fill(tmp_path / "out.csv", items)

    def choose(scores):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_scores(path, "csv", folder.rows(items), JOB, CLASSES, choose)
    assert path.read_text() == "old" and os.listdir(path.parent) == ["out.csv"]


def test_what_a_killed_writer_has_left_is_removed(tmp_path, items):
    (tmp_path / ".out.csv.123.tmp").write_text("half a table")
    folder = _fill(tmp_path / "out.csv", items)
    write_embeddings(tmp_path / "out.csv", "csv", folder.rows(items), JOB)
    assert not (tmp_path / ".out.csv.123.tmp").exists()


def test_a_full_disk_is_said_with_the_place(tmp_path, items):
    with ResultFolder(tmp_path / "out.csv", JOB, items) as folder:
        folder.add(items[0], _result(0))
        folder._data.close()
        folder._data = open("/dev/full", "wb")  # noqa: SIM115
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


def test_a_job_goes_on_after_the_last_whole_result(tmp_path, items):
    output = tmp_path / "out.csv"
    _fill(output, items[:3]).__exit__()
    with ResultFolder(output, JOB, items) as folder:
        assert folder.todo == items[3:]
        for index in (3, 4):
            folder.add(items[index], _result(index))
        check(folder, items)


@pytest.mark.parametrize("name", ["index.jsonl", "data.bin"])
@pytest.mark.parametrize("lost", [1, 10, 50])
def test_what_was_cut_off_is_done_again(tmp_path, items, name, lost):
    output = tmp_path / "out.csv"
    _fill(output, items).__exit__()
    path = Path(f"{output}.part") / name
    os.truncate(path, path.stat().st_size - lost)
    with ResultFolder(output, JOB, items) as folder:
        todo = folder.todo
        assert 1 <= len(todo) <= 2 and todo == items[-len(todo) :]
        for item in todo:
            folder.add(item, _result(items.index(item)))
    with ResultFolder(output, JOB, items) as folder:
        assert folder.todo == [] and len(folder) == 5
        check(folder, items)


def test_data_that_a_crash_has_mangled_are_found(tmp_path, items):
    output = tmp_path / "out.csv"
    _fill(output, items).__exit__()
    path = Path(f"{output}.part") / "data.bin"
    data = bytearray(path.read_bytes())
    data[3 * len(data) // 5 :] = bytes(2 * len(data) // 5)  # zeros: never written
    path.write_bytes(data)
    with ResultFolder(output, JOB, items) as folder:
        assert folder.todo == items[3:]


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


def test_other_options_are_refused_with_the_difference_or_begin_anew(tmp_path, items):
    output = tmp_path / "out.csv"
    _fill(output, items).__exit__()
    other = {"command": "embed", "layer": 3}
    with pytest.raises(ValueError, match=r"layer: -1 there, 3 now.*--restart"):
        ResultFolder(output, other, items).__enter__()
    with ResultFolder(output, JOB, items) as folder:
        assert folder.todo == []
    with ResultFolder(output, other, items, restart=True) as folder:
        assert folder.todo == items
    with ResultFolder(output, other, items) as folder:
        assert len(folder) == 0
    assert not Path(f"{output}.part").exists()


def test_two_processes_do_not_write_one_output(tmp_path):
    with (
        ResultFolder(tmp_path / "out.csv", JOB, []),
        pytest.raises(ValueError, match="in use"),
    ):
        ResultFolder(tmp_path / "out.csv", JOB, []).__enter__()
    with ResultFolder(tmp_path / "out.csv", JOB, []) as folder:
        folder.discard()
    assert os.listdir(tmp_path) == []
