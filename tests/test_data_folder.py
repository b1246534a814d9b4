"""Data preparation: any folder of audio files, or a table of them."""

import logging
import subprocess
import sys

import pytest

from espnet2_sslam.corpus import read_downstream, read_table
from tests.corpus_case import LOCAL, error_line, prepare, script, sizes

main = script("folder").main


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
        assert found.count("big_dog") == found.count("cat") == count
    names = (tmp_path / "data/folder/label_names.tsv").read_text()
    assert names == "big_dog\tbig dog\ncat\tcat\n"


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize(
    "name, header, row",
    [
        ("a.csv", "path,labels,split", '{},"dog, cat",train'),
        ("a.csv", "path, labels, split", '{}, "dog; cat", train'),
        ("a.csv", "path;labels;split", "{};dog,cat;train"),
        ("a.tsv", "path\tlabels\tsplit", "{}\tdog;cat\ttrain"),
        ("a.tsv", "Split\tLABEL\tfile\tother", 'Training\t"dog, cat"\t{}\tx'),
    ],
)
def test_odd_tables_are_read(tmp_path, name, header, row, bom, newline):
    files = ["a b.wav", "schön/音 1.flac", "c.ogg"]
    lines = [header, *(row.format(file) for file in files), "", "   "]
    (tmp_path / name).write_bytes((bom + newline.join(lines)).encode())
    clips = script("folder").read_metadata(tmp_path / name)
    assert [(clip.name, clip.path) for clip in clips] == [
        (file, tmp_path / file) for file in files
    ]
    assert all((of.labels, of.split) == (["dog", "cat"], "train") for of in clips)


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
        ("", "lacks the column(s) path; it has: none"),
        ("name,labels\na.wav,x\n", "it has: name, labels"),
        ("path\n", "lists no file"),
        ("path,labels\na.wav,x\na.wav,y\n", "line 3: a.wav occurs twice"),
        ("path,labels\na.wav,x,y\n", "line 2: more fields than columns"),
        ("path,labels\n,x\n", "line 2: the path is empty"),
        ('path,labels\na.wav,"x, x"\n', "same label twice"),
        ("path,labels,split\na.wav,x,foo\n", "unknown split 'foo'"),
        ("path,labels,split\na.wav,x,train\nb.wav,x,\n", "b.wav has no split"),
        ("path,labels,split\na.wav,x,train\nb.wav,x,train\n", "train only"),
        ("path,labels\na.wav,x y\nb.wav,x_y\nc.wav,x\n", "both become 'x_y'"),
        ("path,labels\na.wav,x\nb.wav,x\n", "cannot be split into 3"),
    ],
)
def test_wrong_tables_are_named_errors(tmp_path, capsys, text, message):
    (tmp_path / "list.csv").write_text(text)
    arguments = ["--corpus_dir", tmp_path / "list.csv", "--datadir", tmp_path / "data"]
    assert message in error_line(main, capsys, *arguments)


def test_other_mistakes_are_named_errors(tmp_path, capsys):
    def error(*args):
        return error_line(main, capsys, "--datadir", tmp_path / "d", *args)

    assert "neither a directory" in error("--corpus_dir", tmp_path / "nope")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "holds no audio file" in error("--corpus_dir", empty)
    (tmp_path / "latin.csv").write_bytes("path\nsch\xf6n.wav\n".encode("latin-1"))
    assert "no UTF-8" in error("--corpus_dir", tmp_path / "latin.csv")
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
