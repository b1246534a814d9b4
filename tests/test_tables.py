"""Users' tables: every usual dialect is read, the rest is refused by name."""

import pytest

from espnet2_sslam.corpus.tables import Row, merged, read_annotations, split_labels


def read(tmp_path, text, name="t.csv", **options):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_annotations(path, **options)


@pytest.mark.parametrize("path", "path file_name filename file fname audio".split())
@pytest.mark.parametrize(
    "label", "label labels category class tags event_label".split()
)
@pytest.mark.parametrize("split", "split subset set partition".split())
@pytest.mark.parametrize("cells", ["{},{},{}", "{};{};{}", "{}\t{}\t{}"])
def test_columns_of_every_usual_name_are_used(tmp_path, path, label, split, cells):
    lines = [(path, label.upper(), split), ("a.wav", "dog", "Train"), ("b", "", "val")]
    text = "\ufeff" + "\r\n".join(cells.format(*line) for line in lines)
    a, b = read(tmp_path, text)
    assert (a.name, a.labels, a.split) == ("a.wav", ["dog"], "train")
    assert (b.name, b.labels, b.split) == ("b", [], "valid")
    assert a.where.endswith("t.csv, line 2")


@pytest.mark.parametrize(
    "text, name, recording",
    [
        ("filename\tonset\toffset\tevent_label\nx.wav\t0.5\t2\tdog", "d.tsv", None),
        ("file,start_time,end_time,label\nx.wav,0.5,2,dog", "t.csv", None),
        (
            "Selection\tView\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tBegin File\t"
            "Annotation\n1\tWaveform 1\t0.5\t2\t90\tx.wav\tdog",
            "x.Table.1.selections.txt",
            None,
        ),
        (
            "Selection\tBegin Time (s)\tEnd Time (s)\tSpecies\n1\t0.5\t2\tdog",
            "x.txt",
            "x.wav",
        ),
        ("0.500000\t2.000000\tdog\n\\\t90.0\t4000.0\n", "x.txt", "x.wav"),
        ("0.5 2 dog", "x.txt", "x.wav"),
        ("file,start_seconds,end_seconds,label\nx.wav,0.5,2,dog", "t.csv", None),
        ("file,start [s],end (sec),label\nx.wav,0.5,2,dog", "t.csv", None),
        (  # Raven, of the second of several files
            "Begin Time (s)\tEnd Time (s)\tBegin File\tFile Offset (s)\tSpecies\n"
            "60.5\t62\tx.wav\t0.5\tdog",
            "x.txt",
            None,
        ),
    ],
)
def test_events_with_times_are_read_in_every_dialect(tmp_path, text, name, recording):
    rows = read(tmp_path, text, name, recording=recording)
    assert [(r.name, r.start, r.end, r.labels) for r in rows] == [
        ("x.wav", 0.5, 2.0, ["dog"])
    ]


@pytest.mark.parametrize(
    "cell, separator, labels",
    [
        ("dog, cat;pig", ",;", ["dog", "cat", "pig"]),
        ('"Bark, yip";Dog', ",;", ["Bark, yip", "Dog"]),
        ("Bark, yip|Dog", "|", ["Bark, yip", "Dog"]),
        ("Bark, yip", "", ["Bark, yip"]),
        ("cafe\u0301, C#,C", ",;", ["caf\u00e9", "C#", "C"]),
        ("", ",;", []),
    ],
)
def test_names_with_commas_can_be_written(cell, separator, labels):
    assert split_labels(cell, separator) == labels


def test_both_spellings_of_an_accent_are_one_label():
    with pytest.raises(ValueError, match="the same label twice: café"):
        split_labels("cafe\u0301,caf\u00e9")


@pytest.mark.parametrize(
    "text, words",
    [
        ("name,label\na,b", "needs a column `path`.*its columns are: name, label"),
        ("path,label,tags\na,b,c", "'label' and 'tags' both look like the labels"),
        ("path,fold\na,1", "line 2: unknown split '1'"),
        ("path,split\na,train\nb,", "line 3: no split, but others have one"),
        ("path,onset,label\na,1,b", "'onset' looks like a time"),
        ("path,start,end\na,2,1", "line 2: need 0 <= start < end"),
        ("path,start,end\na,x,1", "line 2: the times 'x' and '1' are not seconds"),
        ("path,label\na,b,c", "line 2: more cells than columns; .* double quotes"),
        ("path,label\n,b", "line 2: the path is empty"),
        ("path,label\na,b;b", "line 2: the same label twice: b"),
        ("path,label", "lists no file"),
        ("path,label\na,caf\u00e9".encode("latin-1"), "line 2: no UTF-8 text"),
        ("path,label\na,b".encode("utf-16"), "UTF-16 text: save it as UTF-8"),
        (b"path\n\0\0", "no text file"),
        ('path,label\na,"b\nc,d', "quote not closed"),
        ('path,label\na,"b\nc"', "line 3: a cell with a line break"),
        ("path,label,Dataset\na,x,train\nb,y,test", "'Dataset' looks like a split"),
        ("path,label,is_test\na,x,0\nb,y,1", "'is_test' looks like a split"),
        ("path,label,where\na,x,train\nb,y,test", "'where' looks like a split"),
        ("path,start_ms,end_ms\na,0,1000", "'start_ms' looks like a time"),
        ("path,from,to\na,0,1", "'from' looks like a time"),
        ("path,start (ms),end (ms)\na,0,1000", "'start .ms.' is not in seconds"),
        ("path,onset [samples],offset [samples]\na,0,9", "is not in seconds"),
        ("path,primary_label\na,x", "'primary_label' looks like a label"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(tmp_path, text, words):
    with pytest.raises(ValueError, match=words) as caught:
        read(tmp_path, text)
    assert "t.csv" in str(caught.value) and "\n" not in str(caught.value)


def test_an_empty_column_gives_way_to_a_filled_one(tmp_path):
    [row] = read(tmp_path, "path,label,labels\na,,dog")
    assert row.labels == ["dog"]
    [row] = read(tmp_path, "path,label,labels\na,dog,")
    assert row.labels == ["dog"]


def test_rows_of_one_file_unite_their_labels():
    rows = [Row("a", "l1", ["x"]), Row("b", "l2", ["y"]), Row("a", "l3", ["y", "x"])]
    assert [(r.name, r.labels) for r in merged(rows)] == [
        ("a", ["x", "y"]),
        ("b", ["y"]),
    ]


def test_an_event_that_sounds_in_half_of_a_clip_is_its_label_too():
    rows = [
        Row("a", "l1", ["dog"], start=0.0, end=2.0),
        Row("a", "l2", ["rain"], start=0.0, end=9.0),
        Row("a", "l3", ["bell"], start=1.5, end=1.6),
    ]
    assert [r.labels for r in merged(rows)] == [
        ["dog", "rain"],
        ["rain"],
        ["dog", "rain", "bell"],
    ]


@pytest.mark.parametrize(
    "one, two, words",
    [
        (Row("a", "l1", split="train"), Row("a", "l2", split="test"), "another split"),
        (Row("a", "l1", group="g"), Row("a", "l2"), "another group"),
        (Row("a", "l1", start=0.0, end=1.0), Row("a", "l2"), "one row of a has times"),
        (Row("a", "l1"), Row("a", "l2", start=0.0, end=1.0), "one row of a"),
    ],
)
def test_rows_of_one_file_must_not_contradict_one_another(one, two, words):
    with pytest.raises(ValueError, match=f"l2: {words}"):
        merged([one, two])
