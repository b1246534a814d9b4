"""Data preparation: any folder of audio files, or a table of them."""

import logging
import shutil
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
import soundfile

from espnet2_sslam import audio
from espnet2_sslam.corpus import make_dump, read_downstream, read_table
from espnet2_sslam.tasks import CropSampler
from tests.corpus_case import LOCAL, error_line, noise, prepare, script, sizes

main = script("folder").main
ESC50 = "filename,fold,target,category,esc10,src_file,take\n"


def touch(folder, *names):
    """Empty files; only their names matter here."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return folder


def test_a_tree_without_labels_gives_pretraining_sets_only(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    names = [f"sub dir/ä {i}.{form}" for i in range(5) for form in ("wav", "MP3")]
    folder = touch(tmp_path / "in", *names, "notes.txt", ".hidden/x.wav")
    splits = prepare("folder", folder, tmp_path / "data")
    assert set(splits) == {"pretrain/train", "pretrain/valid"}
    paths = [path for split in splits.values() for path in split.wav.values()]
    assert sorted(paths) == sorted(str(folder / name) for name in names)
    assert all(" " not in key for split in splits.values() for key in split.wav)
    assert read_downstream(tmp_path / "data") == [] and "no labels" in caplog.text
    # The two formats of one recording stay together.
    stems = [{key.split(".")[0] for key in split.wav} for split in splits.values()]
    assert not stems[0] & stems[1]


def test_directories_can_be_labels(tmp_path):
    names = [
        f"{label}/{label}{i}.wav" for label in ("big dog", "cat") for i in range(10)
    ]
    folder = touch(tmp_path / "in", *names)
    splits = prepare("folder", folder, tmp_path / "data", "--label_from", "parent")
    [run] = read_downstream(tmp_path / "data")
    assert run.task == "multi_class" and run.tests == ("folder/test",)
    for name, count in (("train", 8), ("valid", 1), ("test", 1)):
        found = [label for [label] in splits[f"folder/{name}"].labels.values()]
        assert found.count("big%20dog") == found.count("cat") == count
    names = (tmp_path / "data/folder/label_names.tsv").read_text()
    assert names == "big%20dog\tbig dog\ncat\tcat\n"


def test_given_splits_are_kept_and_pretraining_hears_the_training_split(tmp_path):
    lines = ["path,labels,split"]
    lines += [f"{i}.wav,{'dog;cat' if i % 2 else ''},train" for i in range(10)]
    lines += ["t0.wav,cat,eval", "t1.wav,dog,test"]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    splits = prepare(
        "folder", tmp_path / "list.csv", tmp_path / "data", "--name", "own"
    )
    assert set(splits["own/test"].wav) == {"t0", "t1"}
    assert splits["own/train"].labels["0"] == []
    assert splits["own/train"].labels["1"] == ["dog", "cat"]
    [run] = read_downstream(tmp_path / "data")
    assert (run.task, run.valid) == ("multi_label", "own/test")
    heard = {**splits["pretrain/train"].wav, **splits["pretrain/valid"].wav}
    assert set(heard) == set(splits["own/train"].wav)
    splits = prepare(
        "folder", tmp_path / "list.csv", tmp_path / "all", "--pretrain_on", "all"
    )
    assert sum(len(splits[f"pretrain/{n}"].wav) for n in ("train", "valid")) == 12


def test_a_valid_split_is_used_for_pretraining_too(tmp_path):
    rows = ["a.wav,dog,train", "b.wav,dog,val", "c.wav,dog,test"]
    (tmp_path / "list.csv").write_text("\n".join(["path,labels,split", *rows]))
    splits = prepare("folder", tmp_path / "list.csv", tmp_path / "data")
    assert list(splits["pretrain/train"].wav) == ["a"]
    assert list(splits["pretrain/valid"].wav) == ["b"]


@pytest.mark.parametrize("how", ["column", "pattern"])
def test_groups_stay_together(tmp_path, how):
    lines = ["path,labels,group"]
    for speaker in range(12):
        for take in range(3):
            group = f"s{speaker}" if how == "column" else ""
            lines.append(f"s{speaker}_{take}.wav,{'ab'[take % 2]},{group}")
    (tmp_path / "list.csv").write_text("\n".join(lines))
    pattern = ["--group_regex", "^(s[0-9]+)_"] if how == "pattern" else []
    splits = prepare("folder", tmp_path / "list.csv", tmp_path / "data", *pattern)
    speakers = [
        {key.split("_")[0] for key in splits[f"folder/{name}"].wav}
        for name in ("train", "valid", "test")
    ]
    assert sum(map(len, speakers)) == len(set.union(*speakers)) == 12


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "lists no file"),
        ("name,labels\na.wav,x\n", "its columns are: name, labels"),
        ("path\n", "lists no file"),
        ("path,labels\na.wav,x,y\n", "line 2: more cells than columns"),
        ("path,labels\n,x\n", "line 2: the path is empty"),
        ('path,labels\na.wav,"x, x"\n', "line 2: the same label twice: x"),
        ("path,labels,split\na.wav,x,foo\n", "line 2: unknown split 'foo'"),
        ("path,labels,split\na.wav,x,train\nb.wav,x,\n", "line 3: no split, but"),
        ("path,labels,split\na.wav,x,train\nb.wav,x,train\n", "only the split train"),
        ("path,split\na.wav,test\nb.wav,test\n", "no clip is in the split train"),
        ("path,labels\na.wav,x\nb.wav,x\n", "cannot be split into 3"),
        ("path,start,end\na.wav,0,1\na.wav,0,1.0001\n", "line 3: another row names"),
        (f"{ESC50}1-100032-A-0.wav,1,0,dog,True,100032,A\n", "unknown split '1'"),
        ("path,label\na.wav,caf\u00e9\n".encode("latin-1"), "line 2: no UTF-8 text"),
        ("path,label\na.wav,x\n".encode("utf-16"), "UTF-16 text: save it as UTF-8"),
    ],
)
def test_wrong_tables_are_named_errors(tmp_path, capsys, text, message):
    content = text if isinstance(text, bytes) else text.encode()
    (tmp_path / "list.csv").write_bytes(content)
    arguments = ["--corpus_dir", tmp_path / "list.csv", "--datadir", tmp_path / "data"]
    assert message in error_line(main, capsys, *arguments)


def test_other_mistakes_are_named_errors(tmp_path, capsys):
    def error(*args):
        return error_line(main, capsys, "--datadir", tmp_path / "d", *args)

    assert "neither a directory" in error("--corpus_dir", tmp_path / "nope")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "holds no audio file" in error("--corpus_dir", empty)
    tree = touch(tmp_path / "tree", "a.wav", "b.wav", "c.wav")
    parent = ("--label_from", "parent")
    assert "no label's directory" in error("--corpus_dir", tree, *parent)
    assert "--group_regex" in error("--corpus_dir", tree, "--group_regex", "z(.)")
    assert "--name" in error("--corpus_dir", tree, "--name", "pretrain")
    (tmp_path / "two.csv").write_text('path,labels\na.wav,"x,y"\nb.wav,x\nc.wav,x\n')
    words = ("--corpus_dir", tmp_path / "two.csv", "--task", "multi_class")
    assert "--task multi_class" in error(*words)


def test_files_that_would_share_an_id_get_different_ones(tmp_path):
    folder = touch(tmp_path / "in", "a b.wav", "a_b.wav", "a/b.wav", "a-b.wav", "c.wav")
    assert sum(sizes(prepare("folder", folder, tmp_path / "data")).values()) == 5


def notes_of(datadir):
    """What preparation notes."""
    return (datadir / "notes.txt").read_text()


def names_of(datadir):
    """True name of each class."""
    lines = (datadir / "folder/label_names.tsv").read_text().splitlines()
    return [line.split("\t")[1] for line in lines]


def table(folder, header, row, count=30, name="metadata.csv"):
    """A folder of files a00.wav, ... and a table with a line of each."""
    touch(folder, *(f"a{i:02d}.wav" for i in range(count)))
    lines = [header, *(row(i) for i in range(count))]
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder


def animal(number):
    """The label of a file by its number."""
    return "dog" if number % 2 else "cat"


# Shares


@pytest.mark.parametrize(
    "classes, each", [(200, 3), (100, 1), (100, 2), (100, 6), (40, 10)]
)
def test_few_clips_a_class_still_give_80_10_10(tmp_path, classes, each):
    names = [f"c{c:03d}/{c:03d}_{i}.wav" for c in range(classes) for i in range(each)]
    folder = touch(tmp_path / "in", *names)
    splits = prepare("folder", folder, tmp_path / "data", "--label_from", "parent")
    total = classes * each
    assert [sizes(splits)[f"folder/{n}"] for n in ("train", "valid", "test")] == [
        8 * total // 10,
        total // 10,
        total // 10,
    ]


# What a folder holds


def test_links_to_folders_are_followed_and_dangling_ones_counted(tmp_path):
    folder = touch(tmp_path / "in", *(f"dog/dog{i}.wav" for i in range(10)))
    for label in ("cat", "cow"):
        touch(tmp_path / "store", *(f"{label}/{label}{i}.wav" for i in range(10)))
        (folder / label).symlink_to(f"../store/{label}")
    (tmp_path / "store/cow/again").symlink_to("../../in")
    (folder / "dog/gone.wav").symlink_to("nowhere.wav")
    splits = prepare("folder", folder, tmp_path / "data", "--label_from", "parent")
    labels = [
        label
        for name in ("train", "valid", "test")
        for [label] in splits[f"folder/{name}"].labels.values()
    ]
    assert sorted(labels) == 10 * ["cat"] + 10 * ["cow"] + 10 * ["dog"]
    notes = notes_of(tmp_path / "data")
    assert "left out of folders: 1 dangling links\n" in notes


@pytest.mark.parametrize("with_av", [False, True])
def test_every_audio_suffix_is_used_or_counted(tmp_path, capsys, monkeypatch, with_av):
    find = audio.importlib.util.find_spec
    monkeypatch.setattr(
        audio.importlib.util,
        "find_spec",
        lambda name: with_av if name == "av" else find(name),
    )
    for label in ("dog", "cat"):
        touch(tmp_path / "in" / label, *(f"a{label}{i}.wav" for i in range(12)))
        touch(tmp_path / "in" / label, *(f"b{label}{i}.wave" for i in range(12)))
        touch(tmp_path / "m4a" / label, *(f"m{label}{i}.m4a" for i in range(4)))
    (tmp_path / "in/more").symlink_to(tmp_path / "m4a")
    args = ("--label_from", "parent")
    splits = prepare("folder", tmp_path / "in", tmp_path / "data", *args)
    used = sum(sizes(splits)[f"folder/{name}"] for name in ("train", "valid", "test"))
    assert used == (56 if with_av else 48)
    assert ("8 .m4a" in notes_of(tmp_path / "data")) != with_av
    if not with_av:
        words = ("--corpus_dir", tmp_path / "m4a", "--datadir", tmp_path / "d")
        line = error_line(main, capsys, *words)
        assert "8 .m4a" in line and "PyAV" in line and "ffmpeg" in line


@pytest.mark.parametrize("name", ["a\nb.wav", "b\r.wav", "c.wav\n/c.wav"])
def test_names_that_no_list_can_hold_are_refused_by_name(tmp_path, capsys, name):
    folder = touch(tmp_path / "in", name, "d.wav", "e.wav")
    words = ("--corpus_dir", folder, "--datadir", tmp_path / "data")
    line = error_line(main, capsys, *words)
    assert repr(str(folder / name)) in line and "rename the file" in line


# Tables


@pytest.mark.parametrize("column", ["subset", "set", "split", "partition", "Fold"])
def test_the_users_split_is_used_whatever_its_column_is_called(tmp_path, column):
    header = f"path,label,{column}"
    folder = table(
        tmp_path / "in",
        header,
        lambda i: f"a{i:02d}.wav,{animal(i)},{'train' if i < 20 else 'test'}",
    )
    splits = prepare("folder", folder, tmp_path / "data")
    assert set(splits["folder/train"].wav) == {f"a{i:02d}" for i in range(20)}
    assert set(splits["folder/test"].wav) == {f"a{i:02d}" for i in range(20, 30)}
    heard = set(splits["pretrain/train"].wav) | set(splits["pretrain/valid"].wav)
    assert heard == set(splits["folder/train"].wav)


@pytest.mark.parametrize(
    "header, cells",
    [
        ("filename,category", "{0},{1}"),
        ("file_name,label", "{0},{1}"),  # Hugging Face's audiofolder
        ("file_name,class", "{0},{1}"),
        ("fname;tags", "{0};{1}"),
        ("audio,event_label,labels", "{0},{1},"),
        ("filename,target,category,esc10,src_file,take", "{0},0,{1},True,1,A"),
    ],
)
def test_labels_are_used_whatever_their_column_is_called(tmp_path, header, cells):
    folder = table(
        tmp_path / "in", header, lambda i: cells.format(f"./a{i:02d}.wav", animal(i))
    )
    splits = prepare("folder", folder, tmp_path / "data")
    [run] = read_downstream(tmp_path / "data")
    assert run.task == "multi_class" and names_of(tmp_path / "data") == ["cat", "dog"]
    for name in ("train", "valid", "test"):
        for key, [label] in splits[f"folder/{name}"].labels.items():
            assert label == animal(int(key[1:]))


def test_a_blank_label_is_one_line_that_counts_and_names_it(tmp_path, capsys):
    folder = table(
        tmp_path / "in",
        "path,label",
        lambda i: f"a{i:02d}.wav,{'' if i in (7, 9) else animal(i)}",
    )
    words = ("--corpus_dir", folder, "--datadir", tmp_path / "data")
    line = error_line(main, capsys, *words)
    assert "metadata.csv, line 9: a07.wav has no label, as 2 clip(s)" in line
    assert "label or remove them, or use --task multi_label" in line
    prepare("folder", folder, tmp_path / "data", "--task", "multi_label")
    [run] = read_downstream(tmp_path / "data")
    assert run.task == "multi_label"


@pytest.mark.parametrize(
    "separator, quotes, task, names",
    [
        ("none", '"{}"', "multi_class", ["Bark, yip", "Meow, purr"]),
        ("|", '"{}"', "multi_class", ["Bark, yip", "Meow, purr"]),
        (",;", '"""{}"""', "multi_class", ["Bark, yip", "Meow, purr"]),
        (",;", '"{}"', "multi_label", ["Bark", "Meow", "purr", "yip"]),
    ],
)
def test_names_with_commas_can_be_written(tmp_path, separator, quotes, task, names):
    folder = table(
        tmp_path / "in",
        "path,label",
        lambda i: f"a{i:02d}.wav," + quotes.format(("Bark, yip", "Meow, purr")[i % 2]),
    )
    args = ("--label_separator", separator)
    prepare("folder", folder, tmp_path / "data", *args)
    [run] = read_downstream(tmp_path / "data")
    assert (run.task, names_of(tmp_path / "data")) == (task, names)
    said = "metadata.csv, line 2: 2 labels 'Bark', 'yip'; if that is one name, use "
    assert (said in notes_of(tmp_path / "data")) == (task == "multi_label")


def test_rows_of_one_file_unite_their_labels(tmp_path):
    lines = ["path,label,split", "a.wav,dog,train", "./a.wav,cat,train"]
    lines += ["b.wav,dog,test", "b.wav,dog,test", "c.wav,cat,val"]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    splits = prepare("folder", tmp_path / "list.csv", tmp_path / "data")
    assert splits["folder/train"].labels == {"a": ["dog", "cat"]}
    assert splits["folder/test"].labels == {"b": ["dog"]}


def test_audio_that_the_table_does_not_list_is_counted(tmp_path, capsys):
    folder = table(tmp_path / "in", "path", lambda i: f"a{i:02d}.wav")
    touch(folder, "more/b.wav", "more/c.wav")
    prepare("folder", folder, tmp_path / "data")
    notes = notes_of(tmp_path / "data")
    assert "2 audio files" in notes and "not used, as more/b.wav" in notes
    words = ("--corpus_dir", folder, "--datadir", tmp_path / "d")
    line = error_line(main, capsys, *words, "--label_from", "parent")
    assert "the table has no labels" in line
    (folder / "metadata.csv").rename(folder / "metadata.jsonl")
    assert "metadata.jsonl is not read" in error_line(main, capsys, *words)


@pytest.mark.parametrize("how", ["folders", "table", "names"])
def test_labels_that_look_alike_are_one_class_only_if_they_are(tmp_path, how):
    forms = [unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD")]
    labels = [*forms, "C", "C#", "c", "chirping birds", "a%b", "x/y"]
    labels = labels[:-1] if how == "folders" else labels  # no name of a folder
    for number, label in enumerate(labels):
        place = label if how == "folders" else "."
        touch(tmp_path / "in" / place, *(f"{number}_{i}.wav" for i in range(10)))
    lines = ["path,label"]
    for number, label in enumerate(labels):
        lines += [f"{number}_{i}.wav,{label}" for i in range(10)]
    if how != "folders":
        (tmp_path / "in/metadata.csv").write_text("\n".join(lines))
    args = ("--label_from", "parent") if how == "folders" else ()
    splits = prepare("folder", tmp_path / "in", tmp_path / "data", *args)
    assert names_of(tmp_path / "data") == sorted(set(labels) - {forms[1]})
    parts = [splits[f"folder/{name}"].labels for name in ("train", "valid", "test")]
    words = [label for of in parts for [label] in of.values()]
    assert words.count("caf\u00e9") == 20 and words.count("C#") == 10
    assert "'C' and 'c' are two classes" in notes_of(tmp_path / "data")


def test_a_corpus_of_one_class_is_warned_about(tmp_path):
    folder = touch(tmp_path / "in", *(f"dog/{i}.wav" for i in range(10)))
    prepare("folder", folder, tmp_path / "data", "--label_from", "parent")
    assert "'dog' is the only class" in notes_of(tmp_path / "data")


# Splits made by folders


@pytest.mark.parametrize(
    "train, valid, test", [("train", "valid", "test"), ("Training", "val", "EVAL")]
)
@pytest.mark.parametrize("label_from", ["parent", "none"])
def test_folders_called_train_and_test_are_the_splits(
    tmp_path, train, valid, test, label_from
):
    names = [
        f"{split}/{label}/{split}_{label}{i}.wav"
        for split, count in ((train, 10), (valid, 2), (test, 6))
        for label in ("dog", "cat")
        for i in range(count)
    ]
    folder = touch(tmp_path / "in", *names)
    splits = prepare("folder", folder, tmp_path / "data", "--label_from", label_from)
    assert f"{test}/ is test" in notes_of(tmp_path / "data")
    heard = {**splits["pretrain/train"].wav, **splits["pretrain/valid"].wav}
    assert len(heard) == 24 and not any(f"/{test}/" in p for p in heard.values())
    if label_from == "parent":
        assert [sizes(splits)[f"folder/{n}"] for n in ("train", "valid", "test")] == [
            *(20, 4, 12)
        ]
        assert names_of(tmp_path / "data") == ["cat", "dog"]
        for path in splits["folder/test"].wav.values():
            assert f"/{test}/" in path


@pytest.mark.parametrize(
    "names, words",
    [
        (
            ["train/dog/a.wav", "test/dog/b.wav", "cat/c.wav", "cat/d.wav"],
            "test and train look(s) like a split, but 2 file(s) lie outside, as cat/c",
        ),
        (["train/dog/a.wav", "train/cat/b.wav"], "only the split train"),
        (["test/dog/a.wav", "val/dog/b.wav"], "only the split test, valid"),
        (["dog/train/a.wav", "dog/test/b.wav", "cat/train/c.wav"], "directly below"),
        (["train/a.wav", "test/dog/b.wav"], "train/a.wav lies in no label's directory"),
    ],
)
def test_folders_that_are_half_a_split_are_one_line(tmp_path, capsys, names, words):
    folder = touch(tmp_path / "in", *names)
    args = ("--corpus_dir", folder, "--datadir", tmp_path / "data")
    assert words in error_line(main, capsys, *args, "--label_from", "parent")


@pytest.mark.parametrize("above", [False, True])
def test_tables_of_train_and_test_are_read_with_their_splits(tmp_path, capsys, above):
    lines = ["file_name,label"]
    for split, count in (("train", 20), ("test", 10)):
        table(
            tmp_path / "in" / split,
            lines[0],
            lambda i: f"a{i:02d}.wav,{animal(i)}",
            count,
        )
        lines += [f"{split}/a{i:02d}.wav,{animal(i)}" for i in range(count)]
        if above:
            (tmp_path / "in" / split / "metadata.csv").unlink()
    if above:
        (tmp_path / "in/metadata.csv").write_text("\n".join(lines))
    splits = prepare("folder", tmp_path / "in", tmp_path / "data")
    for split, count in (("train", 20), ("test", 10)):
        wav = splits[f"folder/{split}"].wav
        assert set(wav.values()) == {
            str(tmp_path / "in" / split / f"a{i:02d}.wav") for i in range(count)
        }
    words = ("--corpus_dir", tmp_path / "in", "--datadir", tmp_path / "d")
    if above:
        (tmp_path / "in/metadata.csv").write_text("\n".join([*lines, "b.wav,dog"]))
        assert "1 file(s) lie outside, as b.wav" in error_line(main, capsys, *words)
    else:
        table(
            tmp_path / "in/test", "path,label,split", lambda i: f"a{i:02d}.wav,x,test"
        )
        line = error_line(main, capsys, *words)
        assert "train/metadata.csv, line 2: no split, but others have one" in line


def test_a_table_of_one_class_does_not_hide_the_others(tmp_path):
    folder = touch(
        tmp_path / "in", *(f"{c}/{c}{i}.wav" for c in "ab" for i in range(10))
    )
    (folder / "a/metadata.csv").write_text("path,rate\na0.wav,16000\n")
    splits = prepare("folder", folder, tmp_path / "data", "--label_from", "parent")
    assert sum(sizes(splits)[f"folder/{n}"] for n in ("train", "valid", "test")) == 20
    assert "a/metadata.csv is not used" in notes_of(tmp_path / "data")


# Recordings


def test_equal_names_in_different_folders_are_different_recordings(tmp_path, capsys):
    folder = touch(tmp_path / "in", *(f"clip{i:02d}/mixture.wav" for i in range(12)))
    splits = prepare("folder", folder, tmp_path / "data")
    assert sizes(splits) == {"pretrain/train": 10, "pretrain/valid": 2}
    notes = notes_of(tmp_path / "data")
    assert "mixture is the name of files in several folders" in notes
    words = ("--corpus_dir", folder, "--datadir", tmp_path / "d")
    line = error_line(main, capsys, *words, "--group_regex", "x/(.)")
    assert "does not match clip00/mixture.wav" in line and "whole path" in line


@pytest.mark.parametrize("regex, held_out", [("", 6), ("^([^/]+)/", 6)])
def test_shares_hold_for_stems_of_songs_and_a_pattern_keeps_songs_together(
    tmp_path, regex, held_out
):
    parts = ("drums", "bass", "vocals")
    names = [f"song {n}/{part}.wav" for n in range(20) for part in parts]
    folder = touch(tmp_path / "in", *names)
    splits = prepare("folder", folder, tmp_path / "data", "--group_regex", regex)
    assert sizes(splits)["pretrain/valid"] == held_out
    songs = [
        {path.split("/")[-2] for path in splits[f"pretrain/{name}"].wav.values()}
        for name in ("train", "valid")
    ]
    if regex:
        assert not songs[0] & songs[1] and len(songs[1]) == 2


# Times


EVENTS = [(0.5, 2.0, "dog"), (2.25, 3.0, "big cat"), (7.125, 10.0, "dog")]
RECORDINGS = ("x y", "sub/x y", "sub/z")  # of 10 s, all with these events


def lines_of(*cells):
    """A line for each event, in which {0}, {1} and {2} are start, end and label."""
    return "".join(cell.format(*event) for event in EVENTS for cell in cells)


RAVEN = "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tLabel\n"
DIALECTS = {  # the end of the name of a label file, its text
    "audacity": (".txt", lines_of("{0:.6f}\t{1:.6f}\t{2}\n")),
    "audacity, spectral": (
        ".txt",
        lines_of("{0:.6f}\t{1:.6f}\t{2}\n", "\\\t90.000000\t4000.000000\n"),
    ),
    "raven": (
        ".Table.1.selections.txt",
        RAVEN
        + lines_of(
            "1\tWaveform 1\t1\t{0:.9f}\t{1:.9f}\t90.0\t{2}\n",
            "1\tSpectrogram 1\t1\t{0:.9f}\t{1:.9f}\t90.0\t{2}\n",
        ),
    ),
    "raven, short name": (
        ".selections.txt",
        RAVEN + lines_of("1\tWaveform 1\t1\t{0}\t{1}\t90.0\t{2}\n"),
    ),
    "urban-sed": (".txt", lines_of("{0} {1} {2}\n")),
    "desed": (".tsv", "onset\toffset\tevent_label\n" + lines_of("{0}\t{1}\t{2}\n")),
    "comma table": (".csv", "start,end,label\n" + lines_of("{0},{1},{2}\n")),
}
TABLES = {  # header of one table for all recordings, its lines
    "desed": ("filename\tonset\toffset\tevent_label", "{3}.wav\t{0}\t{1}\t{2}"),
    "audioset strong": ("file,start_time,end_time,label", "{3}.wav,{0},{1},{2}"),
    "decimal commas": ("path;begin;end;label", "{3}.wav;{0};{1};{2}"),
}


@pytest.fixture(scope="module")
def long_recordings(tmp_path_factory):
    """A folder of noise as 16-bit audio."""
    folder = tmp_path_factory.mktemp("long")
    for seed, name in enumerate(RECORDINGS):
        path = folder / f"{name}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, noise(160000, seed), 16000, subtype="PCM_16")
    return folder


def check_cuts(folder, tmp_path, *args):
    """Prepare and format: the dump holds exactly the samples of each event."""
    splits = prepare("folder", folder, tmp_path / "data", *args)
    make_dump(tmp_path / "data", tmp_path / "dump", max_bad=0)
    found = {}
    for name in ("train", "valid", "test"):
        labels = splits[f"folder/{name}"].labels
        # Clips of a recording stay together.
        assert len({key.rsplit("-", 2)[0] for key in labels}) == 1
        assert len(set(splits[f"folder/{name}"].speakers.values())) == 1
        for key, path in read_table(tmp_path / f"dump/folder/{name}/wav.scp").items():
            found[key] = labels[key], soundfile.read(path, dtype="float32")[0]
    assert len(found) == len(RECORDINGS) * len(EVENTS)
    for recording in RECORDINGS:
        source = soundfile.read(folder / f"{recording}.wav", dtype="float32")[0]
        stem = recording.replace("/", "_").replace(" ", "_")
        for (start, end, label), times in zip(
            EVENTS,
            ("000500-002000", "002250-003000", "007125-010000"),
            strict=True,
        ):
            words, samples = found[f"{stem}-{times}"]
            assert words == [label.replace(" ", "%20")]
            wanted = source[int(16000 * start) : int(16000 * end)]
            assert samples.shape == wanted.shape
            assert np.abs(samples - wanted).max() < 1e-4
    assert names_of(tmp_path / "data") == ["big cat", "dog"]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_label_files_beside_the_audio_cut_clips(long_recordings, tmp_path, dialect):
    folder = shutil.copytree(long_recordings, tmp_path / "in")
    end, text = DIALECTS[dialect]
    for name in RECORDINGS:
        (folder / f"{name}{end}").write_text(text)
    check_cuts(folder, tmp_path, "--label_from", "events")
    assert "no label file" not in notes_of(tmp_path / "data")


@pytest.mark.parametrize("dialect", TABLES)
def test_rows_with_times_cut_clips(long_recordings, tmp_path, dialect):
    folder = shutil.copytree(long_recordings, tmp_path / "in")
    header, line = TABLES[dialect]
    lines = [line.format(*event, name) for name in RECORDINGS for event in EVENTS]
    if dialect == "decimal commas":
        lines = [text.replace("wav", "WAV").replace(".", ",") for text in lines]
        lines = [text.replace(",WAV", ".wav") for text in lines]
    name = "metadata.tsv" if "\t" in header else "metadata.csv"
    (folder / name).write_text("\n".join([header, *lines]))
    check_cuts(folder, tmp_path)
    recordings, found = [], []
    for split in ("train", "valid", "test"):
        place = tmp_path / "data/folder" / split
        recordings += (place / "wav.scp").read_text().splitlines()
        found += (place / "segments").read_text().splitlines()
    assert len(recordings) == 3 and len(found) == 9


def test_what_sounds_in_half_of_a_cut_is_its_label_too(tmp_path):
    lines = ["path,start,end,label,split"]
    lines += [f"a.wav,{times},train" for times in ("0,2,dog", "0,9,rain", "5,5.5,bell")]
    lines += ["b.wav,0,1,dog,test", "c.wav,0,1,dog,dev"]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    splits = prepare("folder", tmp_path / "list.csv", tmp_path / "data")
    assert splits["folder/train"].labels == {
        "a-000000-002000": ["dog", "rain"],
        "a-000000-009000": ["rain"],
        "a-005000-005500": ["rain", "bell"],
    }
    notes = notes_of(tmp_path / "data")
    assert "for 2 clip(s) have several labels" in notes
    assert "list.csv, line 2: 2 labels 'dog', 'rain'" in notes


def test_recordings_without_events_are_counted(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    folder = touch(tmp_path / "in", *(f"{name}.wav" for name in "abcdefg"))
    for name in "abc":
        (folder / f"{name}.txt").write_text("0 1 dog\n1 2 cat\n")
    (folder / "d.txt").write_text("\n")
    (folder / "e.tsv").write_text("onset\toffset\tevent_label\n")
    (folder / "f.Table.1.selections.txt").write_text(RAVEN)
    splits = prepare("folder", folder, tmp_path / "data", "--label_from", "events")
    assert sum(sizes(splits)[f"folder/{n}"] for n in ("train", "valid", "test")) == 6
    notes = notes_of(tmp_path / "data")
    assert "1 of 7 audio files have no label file" in notes and "as g.wav" in notes
    assert "3 label files hold no event, as d.txt" in notes
    # Without the option the files are mentioned only.
    splits = prepare("folder", folder, tmp_path / "none")
    assert sum(sizes(splits).values()) == 7
    assert "beside 6 of 7 audio files (a.txt)" in caplog.text


@pytest.mark.parametrize(
    "name, text, words",
    [
        ("a.txt", "a transcript of speech\n", "a.txt lists no file"),
        ("a.txt", "two lines\nof speech\n", "a.txt is no label file"),
        ("a.txt", "1.0\t1.0\tdog\n", "a.txt, line 2: need 0 <= start < end"),
        ("a.csv", "label\ndog\n", "a.csv is no label file"),
        ("a.txt", "onset\toffset\n0\t1\n", "a.txt is no label file"),
        ("a.tsv", "filename\tonset\toffset\tlabel\nb.wav\t0\t1\tx\n", "it is of b.wav"),
        ("a.txt", "0 1 caf\u00e9".encode("latin-1"), "a.txt, line 1: no UTF-8 text"),
        ("b.txt", "0 1 dog", "holds no events"),
    ],
)
def test_files_that_list_no_events_are_named(tmp_path, capsys, name, text, words):
    folder = touch(tmp_path / "in", "a.wav")
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    args = ("--corpus_dir", folder, "--datadir", tmp_path / "data")
    assert words in error_line(main, capsys, *args, "--label_from", "events")
    if name == "a.txt":
        (folder / "a.tsv").write_text("")
        line = error_line(main, capsys, *args, "--label_from", "events")
        assert "has the label files a.tsv and a.txt: keep one" in line


def test_data_sh_passes_options_on_and_explains_mistakes(tmp_path):
    def run(*args):
        command = [LOCAL / "data.sh", "--python", sys.executable, *map(str, args)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    folder = touch(tmp_path / "my files", *(f"{i} x.wav" for i in range(4)))
    for args, message in (
        (("--corpus", "nope"), "use one of audioset esc50 folder"),
        (("--corpus", "esc50"), "required: --corpus_dir"),
        (("--corpus",), "--corpus needs a value"),
    ):
        result = run(*args)
        assert result.returncode == 1 and message in result.stderr
        assert len(result.stderr.splitlines()) == 1
    result = run("--corpus", "folder", "--corpus_dir", folder, "--valid_share", "0.5")
    assert result.returncode == 0, result.stderr
    assert len(read_table(tmp_path / "data/pretrain/valid/wav.scp")) == 2


def test_what_formatting_made_is_no_corpus(tmp_path):
    from collections import Counter

    from espnet2_sslam.audio import find_audio

    touch(tmp_path / "corpus/dog", "a.wav")
    touch(tmp_path / "corpus/dump/raw", "records.jsonl", "splits.txt")
    touch(tmp_path / "corpus/dump/raw/audio/07", "a.flac")
    left_out = Counter()
    assert find_audio(tmp_path / "corpus", left_out) == [
        str(tmp_path / "corpus/dog/a.wav")
    ]
    assert left_out == {"folders that formatting made": 1}


def test_one_file_under_two_spellings_of_its_path_is_one_clip(tmp_path):
    folder = touch(tmp_path / "clips", "a.wav", "b.wav", "c.wav", "cafe\u0301.wav")
    names = ["a.wav", folder / "a.wav", "b.wav", "x/../c.wav", "caf\u00e9.wav"]
    rows = [f"{name},{label}" for name, label in zip(names, "xyzzx", strict=True)]
    (folder / "metadata.csv").write_text("\n".join(["path,label", *rows]), "utf-8")
    splits = prepare("folder", folder, tmp_path / "data", "--task", "multi_label")
    wav = {
        path
        for name, split in splits.items()
        if name.startswith("folder/")
        for path in split.wav.values()
    }
    assert wav == {str(path) for path in folder.glob("*.wav")}


def test_a_pattern_that_is_none_is_one_line(tmp_path):
    folder = touch(tmp_path / "clips", "a.wav", "b.wav")
    with pytest.raises(ValueError, match="--group_regex '.': "):
        prepare("folder", folder, tmp_path / "data", "--group_regex", "(")


def test_a_single_recording_is_refused_with_a_remedy_that_works(tmp_path, capsys):
    day = noise(60 * 16_000)
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in/day.flac", day, 16_000)
    words = ["--corpus_dir", tmp_path / "in", "--datadir", tmp_path / "data"]
    line = error_line(main, capsys, *words)
    assert "cut a long one into four files or more" in line
    (tmp_path / "in/day.flac").unlink()
    for number, part in enumerate(np.split(day, 4)):
        soundfile.write(tmp_path / f"in/day{number}.flac", part, 16_000)
    found = prepare("folder", tmp_path / "in", tmp_path / "data")
    assert sizes(found) == {"pretrain/train": 2, "pretrain/valid": 2}
    make_dump(tmp_path / "data", tmp_path / "dump")
    for name in found:
        clips = read_table(tmp_path / "dump" / name / "wav.scp")
        lengths = np.full(len(clips), 15 * 16_000)
        options = {"clip_frames": 1024, "mixture": True, "min_clips_per_rank": 2}
        CropSampler(list(clips), lengths, 48, train=name.endswith("train"), **options)
