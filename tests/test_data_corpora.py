"""Data preparation for every corpus of the paper, on miniatures of their layouts."""

import csv
import re
import shutil
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from espnet2_sslam import audio
from espnet2_sslam.bin.data_report import write_report
from espnet2_sslam.corpus import (
    label_name,
    label_word,
    make_dump,
    read_downstream,
    read_table,
)
from tests.corpora import (
    audioset,
    fsd50k,
    idmt_desed_fl,
    manifest,
    spass,
    speechcommands,
    urbansed,
)
from tests.corpus_case import LOCAL, error_line, prepare, script, sizes

CORPORA = [audioset, fsd50k, idmt_desed_fl, manifest, spass, speechcommands, urbansed]
NAMES = [module.__name__.split(".")[-1] for module in CORPORA]


@pytest.fixture(scope="session")
def trees(tmp_path_factory):
    """The miniature of every corpus, made once; tests that change one copy it."""
    folder = tmp_path_factory.mktemp("corpora")
    for name, module in zip(NAMES, CORPORA, strict=True):
        module.make(folder / name)
    return folder


def failure(corpus, capsys, folder, tmp_path, *args):
    """The line that preparation fails with."""
    words = ["--corpus_dir", folder, "--datadir", tmp_path / "data", *args]
    return error_line(script(corpus).main, capsys, *words)


def copy_of(folder, tmp_path):
    """A tree that a test may change."""
    return shutil.copytree(folder, tmp_path / "copy")


def missing(datadir, split):
    """Rows of a split's missing.csv."""
    with open(datadir / split / "missing.csv", newline="") as file:
        return list(csv.DictReader(file))


def classes_of(datadir, name):
    """The class list of a set."""
    return (datadir / name / "classes.txt").read_text().split()


def notes_of(datadir):
    """What preparation notes."""
    return (datadir / "notes.txt").read_text()


def edit(path, old, new, count=1):
    """Replace text in a file, which must hold it."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, count))


# AudioSet


def test_audioset_finds_clips_under_any_name_and_folder(trees, tmp_path):
    datadir = tmp_path / "data"
    splits = prepare("audioset", trees / "audioset", datadir)
    assert sizes(splits) == {"as20k/train": 23, "as20k/eval": 19}
    for part, split in (("balanced", "as20k/train"), ("eval", "as20k/eval")):
        segments = audioset.segments(part)[audioset.MISSING[part] :]
        assert splits[split].labels == {f"Y{ytid}": of for ytid, _, of in segments}
        assert all(key[1:] in path for key, path in splits[split].wav.items())
    [run] = read_downstream(datadir)
    assert (run.name, run.task, run.valid) == ("as20k", "multi_label", "as20k/eval")
    assert classes_of(datadir, "as20k") == [mid for mid, _ in audioset.CLASSES]
    names = (datadir / "as20k/label_names.tsv").read_text().splitlines()
    assert names[1] == "/m/05zppz\tMale speech, man speaking"
    lost = sorted(f"Y{ytid}" for ytid, _, _ in audioset.segments("balanced")[:2])
    assert [row["id"] for row in missing(datadir, "as20k/train")] == lost
    notes = notes_of(datadir)
    assert "as20k/train: 2 of 25 clips are missing" in notes
    assert "1 files are a second copy of a clip and not used, for example zz_" in notes
    assert "1 audio files are not named like a clip" in notes


def test_audioset_2m_has_weights_by_the_published_formula(trees, tmp_path):
    args = ("--subsets", "2m", "--pretrain_valid", "4")
    splits = prepare("audioset", trees / "audioset", tmp_path / "data", *args)
    assert sizes(splits) == {
        "as2m/train": 50,
        "as2m/eval": 19,
        "pretrain/train": 46,
        "pretrain/valid": 4,
    }
    labels = splits["as2m/train"].labels
    counts = Counter(label for of_clip in labels.values() for label in of_clip)
    assert counts[audioset.ONCE] == 1
    weights = read_table(tmp_path / "data/as2m/train/weights")
    assert set(weights) == set(labels)
    for key, of_clip in labels.items():
        expected = sum(1000 / (counts[label] + 0.01) for label in of_clip)
        assert float(weights[key]) == pytest.approx(expected, rel=1e-8)
    assert splits["pretrain/train"].labels is None
    pretrain = {**splits["pretrain/train"].wav, **splits["pretrain/valid"].wav}
    assert pretrain == splits["as2m/train"].wav
    assert not (tmp_path / "data/as2m/eval/weights").exists()


@pytest.mark.parametrize("with_av", [False, True])
def test_audioset_in_m4a_is_found_or_counted(
    trees, tmp_path, capsys, monkeypatch, with_av
):
    find = audio.importlib.util.find_spec
    monkeypatch.setattr(
        audio.importlib.util,
        "find_spec",
        lambda name: with_av if name == "av" else find(name),
    )
    folder = copy_of(trees / "audioset", tmp_path)
    for path in [*folder.glob("videos/*.wav")]:  # what downloaders write
        path.rename(path.with_suffix(".m4a"))
    splits = prepare("audioset", folder, tmp_path / "data")
    found = [path for split in splits.values() for path in split.wav.values()]
    assert (len(found) == 42) == with_av
    assert any(path.endswith(".m4a") for path in found) == with_av
    assert ("m4a; formats of FFmpeg" in notes_of(tmp_path / "data")) != with_av
    if not with_av:
        for path in [*folder.rglob("*.wav"), *folder.rglob("*.flac")]:
            path.rename(path.with_suffix(".m4a"))
        line = failure("audioset", capsys, folder, tmp_path)
        assert re.search(r"left out of folders: \d\d \.m4a; .*PyAV.*ffmpeg -i", line)


def test_a_second_scan_lists_only_changed_directories(trees, tmp_path, caplog):
    folder = copy_of(trees / "audioset", tmp_path)
    caplog.set_level("INFO")
    first = prepare("audioset", folder, tmp_path / "data")
    assert "12 directories, 12 of them listed now" in caplog.text
    ytid = audioset.segments("balanced")[0][0]
    shutil.copy(next(folder.rglob("Y*.wav")), folder / "videos" / f"{ytid}.wav")
    journal = tmp_path / "data/.index.jsonl"
    journal.write_bytes(journal.read_bytes() + b'{"folder": "vid')  # killed here
    caplog.clear()
    second = prepare("audioset", folder, tmp_path / "data")
    assert "12 directories, 1 of them listed now" in caplog.text
    new = set(second["as20k/train"].wav) - set(first["as20k/train"].wav)
    assert new == {f"Y{ytid}"}


def test_odd_and_wrong_segments_are_read_or_named(trees, tmp_path, capsys):
    folder = copy_of(trees / "audioset", tmp_path)
    path = folder / "balanced_train_segments.csv"
    good = path.read_text()
    lines = good.splitlines()
    # BOM, an empty line, labels without quotes, and a clip listed again
    odd = [*lines, "", lines[5], lines[6].replace('"', "")]
    path.write_text("\ufeff" + "\r\n".join(odd))
    old = next(path for path in sorted(folder.rglob("videos/*_20.000_*")))
    old.rename(old.with_name(old.name.replace("_20.000_30.000", "_50.000_60.000")))
    splits = prepare("audioset", folder, tmp_path / "data", "--subsets", "2m", "20k")
    assert len(splits["as20k/train"].wav) == 23
    notes = notes_of(tmp_path / "data")
    assert "2 lines list a clip again" in notes
    assert "1 files have another start time in their names" in notes

    other = lines[5].split('"')[0] + '"/m/0bt9lr"'
    path.write_text(good + other + "\n")
    line = failure("audioset", capsys, folder, tmp_path)
    assert "listed twice with different labels" in line


# Speech Commands


def test_ks1_has_twelve_classes_and_the_official_test_archive(trees, tmp_path):
    args = ("--task", "ks1")
    splits = prepare("speechcommands", trees / "speechcommands", tmp_path / "d", *args)
    classes = classes_of(tmp_path / "d", "ks1")
    assert classes == [*speechcommands.KEYWORDS, "_unknown_", "_silence_"]
    # 30 words x (3, 1) clips, and 3 recordings of 5 whole seconds of noise
    assert sizes(splits) == {"ks1/train": 104, "ks1/valid": 31, "ks1/test": 24}
    train, test = (
        Counter(label for [label] in splits[f"ks1/{name}"].labels.values())
        for name in ("train", "test")
    )
    assert [train[name] for name in ("yes", "_unknown_", "_silence_")] == [3, 60, 14]
    assert test == dict.fromkeys(classes, 2)
    # The clips of testing_list.txt are used nowhere.
    used = [path for split in splits.values() for path in split.wav.values()]
    assert not any("0000000c_nohash" in path for path in used)
    weights = read_table(tmp_path / "d/ks1/train/weights")
    total = Counter()
    for key, [label] in splits["ks1/train"].labels.items():
        total[label] += float(weights[key])
    assert {round(found) for found in total.values()} <= {997, 999, 1000}


def test_silence_is_cut_by_the_seed_and_shared_by_no_two_splits(trees, tmp_path):
    found = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        args = ("--task", "ks1", "--seed", seed)
        folder = trees / "speechcommands"
        splits = prepare("speechcommands", folder, tmp_path / name, *args)
        pieces = [
            {key for key, [label] in splits[s].labels.items() if label == "_silence_"}
            for s in ("ks1/train", "ks1/valid")
        ]
        assert not pieces[0] & pieces[1] and len(pieces[0] | pieces[1]) == 15
        found[name] = pieces[1]
        [key] = pieces[1]
        info = soundfile.info(splits["ks1/valid"].wav[key])
        assert (info.frames, info.samplerate) == (16000, 16000)
    assert found["a"] == found["b"] != found["c"]


# SPASS


def test_spass_scenes_are_split_by_name_as_the_authors_do(trees, tmp_path):
    splits = prepare("spass", trees / "spass", tmp_path / "data")
    for scene in spass.SCENES:
        name = scene.lower()
        train, test = (splits[f"spass_{name}/{s}"] for s in ("train", "test"))
        lost = 1 if scene == "Park" else 0
        assert (len(train.wav), len(test.wav)) == (12 - lost, 4)
        assert max(train.wav) < min(test.wav) == f"{name}-{name}00013"
        classes = classes_of(tmp_path / "data", f"spass_{name}")
        rare = [spass.RARE] if scene == "Waterfront" else []
        assert classes == sorted(spass.CLASSES[scene] + rare)
        labels = {**train.labels, **test.labels}
        rows = [label for n, label in spass.events(scene) if n == f"{name}00001.wav"]
        assert labels[f"{name}-{name}00001"] == list(dict.fromkeys(rows))
    runs = {run.name: run for run in read_downstream(tmp_path / "data")}
    assert runs["spass_street"].class_list == "spass_street/classes.txt"
    assert missing(tmp_path / "data", "spass_park/train")[0]["id"].endswith("00003")
    assert "market99999.wav" in notes_of(tmp_path / "data")


def test_spass_labels_of_test_clips_only_and_clips_without_are_noted(trees, tmp_path):
    folder = copy_of(trees / "spass", tmp_path)
    (folder / "Market audio files/market00004.wav").unlink()  # does not move the split
    table = folder / "SPASS_META_DATA/1_MatrixLabelsMarket.csv"
    with open(table, "a") as file:
        file.write("99,market00016.wav,new label,1,2\n98,market99999.wav,,1,2\n")
    splits = prepare("spass", folder, tmp_path / "data", "--scenes", "market")
    assert sizes(splits) == {"spass_market/train": 11, "spass_market/test": 5}
    notes = notes_of(tmp_path / "data")
    assert "only test clips have the label(s) new%20label" in notes
    assert "1 clips have no label, as market99999.wav" in notes
    assert splits["spass_market/test"].labels["market-market99999"] == []
    names = (tmp_path / "data/spass_market/label_names.tsv").read_text()
    assert "new%20label\tnew label\n" in names


# URBAN-SED and IDMT-DESED-FL


def test_urbansed_labels_are_those_of_the_events(trees, tmp_path):
    splits = prepare("urbansed", trees / "urbansed", tmp_path / "data")
    assert sizes(splits) == {
        "urbansed/train": 12,
        "urbansed/valid": 5,
        "urbansed/test": 6,
    }
    assert splits["urbansed/train"].labels[urbansed.SILENT] == []
    expected = sorted({label for *_, label in urbansed.clip_events(2)})
    assert splits["urbansed/test"].labels[urbansed.JAMS_ONLY] == expected
    assert classes_of(tmp_path / "data", "urbansed") == urbansed.CLASSES
    notes = notes_of(tmp_path / "data")
    assert f"have no annotation and are not used, as {urbansed.BARE}" in notes
    assert missing(tmp_path / "data", "urbansed/valid")[0]["id"] == urbansed.MISSING
    [run] = read_downstream(tmp_path / "data")
    assert run.tests == ("urbansed/test", "urbansed/valid")

    folder = copy_of(trees / "urbansed", tmp_path)
    for path in folder.rglob("*.txt"):
        path.unlink()
    for name, split in prepare("urbansed", folder, tmp_path / "b").items():
        assert splits[name].labels == split.labels  # from jams


@pytest.mark.parametrize("tables", [False, True])
def test_idmt_desed_fl_is_read_in_each_assumed_form(trees, tmp_path, tables):
    folder = trees / "idmt_desed_fl"
    if tables:
        folder = tmp_path / "tables"
        idmt_desed_fl.make_tables(folder)
    splits = prepare("idmt_desed_fl", folder, tmp_path / "data")
    assert sizes(splits) == {
        "idmt_desed_fl/train": 12,
        "idmt_desed_fl/valid": 4,
        "idmt_desed_fl/test": 6,
    }
    for number in range(6):
        expected = sorted({e[2] for e in idmt_desed_fl.clip_events(number)})
        labels = splits["idmt_desed_fl/test"].labels
        [key] = [key for key in labels if key.endswith(f"test_{number}")]
        assert labels[key] == expected
    assert classes_of(tmp_path / "data", "idmt_desed_fl") == idmt_desed_fl.CLASSES
    assert "its layout is not documented" in notes_of(tmp_path / "data")


def test_idmt_desed_fl_is_found_behind_links(trees, tmp_path):
    folder = copy_of(trees / "idmt_desed_fl", tmp_path)
    for name in ("train", "annotations"):
        (folder / name).rename(tmp_path / name)
        (folder / name).symlink_to(tmp_path / name)
    (tmp_path / "train/back").symlink_to(folder)
    splits = prepare("idmt_desed_fl", folder, tmp_path / "data")
    whole = prepare("idmt_desed_fl", trees / "idmt_desed_fl", tmp_path / "whole")
    assert {n: s.labels for n, s in splits.items()} == {
        n: s.labels for n, s in whole.items()
    }


def test_idmt_desed_fl_without_split_folders_needs_a_made_split(
    trees, tmp_path, capsys
):
    folder = copy_of(trees / "idmt_desed_fl", tmp_path)
    for old, new in (("train", "a"), ("test", "b"), ("validation", "c")):
        (folder / old).rename(folder / new)
        (folder / "annotations" / old).rename(folder / "annotations" / new)
    assert "--make_split true" in failure("idmt_desed_fl", capsys, folder, tmp_path)
    args = ("--make_split", "true")
    splits = prepare("idmt_desed_fl", folder, tmp_path / "data", *args)
    assert sum(sizes(splits).values()) == 22
    assert "not the authors' splits" in notes_of(tmp_path / "data")


# FSD50K and the authors' manifests


def test_manifests_take_another_root_other_classes_and_weights(trees, tmp_path):
    manifest.make(tmp_path / "m", root="/path/to/audioset")
    (tmp_path / "m/label_descriptors.csv").unlink()
    (tmp_path / "weights.csv").write_text("".join(f"{i}.5\n" for i in range(25)))
    splits = prepare(
        *("manifest", tmp_path / "m", tmp_path / "data"),
        *("--audio_root", tmp_path / "m/wav", "--weights", tmp_path / "weights.csv"),
        *("--label_descriptors", trees / "audioset/class_labels_indices.csv"),
    )
    assert sizes(splits)["manifest/train"] == 25
    weights = read_table(tmp_path / "data/manifest/train/weights")
    for number, (ytid, _, _) in enumerate(audioset.segments("balanced")):
        assert weights[f"Y{ytid}"] == f"{number}.5"


def test_manifests_without_labels_are_for_pretraining(trees, tmp_path):
    folder = copy_of(trees / "manifest", tmp_path)
    for path in folder.glob("*.lbl"):
        path.unlink()
    splits = prepare("manifest", folder, tmp_path / "data")
    assert sizes(splits)["pretrain/train"] == 25
    assert read_downstream(tmp_path / "data") == []


def test_ids_of_a_manifest_that_differ_in_marks_only_stay_two_clips(trees, tmp_path):
    folder = copy_of(trees / "manifest", tmp_path)
    before = prepare("manifest", folder, tmp_path / "before")["manifest/train"]
    for name, lines in (
        (
            "train.tsv",
            ("_0abc.wav\t1\n", "0abc.wav\t1\n", "a/b.wav\t1\n", "a_b.wav\t1\n"),
        ),
        ("train.lbl", ("_0abc\t", "0abc\t", "a/b\t", "a_b\t")),
    ):
        path = folder / name
        more = [line + "/m/09x0r\n" * (name[-3:] == "lbl") for line in lines]
        path.write_text(path.read_text().rstrip("\n") + "\n" + "".join(more))
    root = Path((folder / "train.tsv").read_text().splitlines()[0])
    for line in ("_0abc", "0abc", "a/b", "a_b"):
        (root / f"{line}.wav").parent.mkdir(parents=True, exist_ok=True)
        (root / f"{line}.wav").write_bytes(b"")
    after = prepare("manifest", folder, tmp_path / "data")["manifest/train"]
    assert {key: after.wav[key] for key in before.wav} == before.wav
    added = {key: path for key, path in after.wav.items() if key not in before.wav}
    assert sorted(added.values()) == sorted(
        str(root / f"{name}.wav") for name in ("_0abc", "0abc", "a/b", "a_b")
    )


# All corpora


SC = "speech_commands_v0.02"
WRONG = [  # corpus and options, file, what stands in it and should not, complaint
    (
        "speechcommands",
        f"{SC}/testing_list.txt",
        "no/",
        "no/a/",
        "is not <word>/<file>",
    ),
    (
        "speechcommands",
        f"{SC}/testing_list.txt",
        "0000000c",
        "0000000b",
        "listed twice",
    ),
    ("speechcommands --task ks1", "*test_set*1", None, None, "official test archive"),
    ("spass", "1_MatrixLabelsMarket.csv", None, None, "is not in"),
    ("spass", "Street audio files", None, None, "street_audio_files is not in"),
    ("spass", "1_MatrixLabelsMarket.csv", "class", "x", "lacks the column(s) class"),
    (
        "urbansed",
        "annotations/train/*.txt",
        "car_horn",
        "x",
        "'x' is not in URBAN-SED's",
    ),
    ("urbansed", "annotations/train/*.txt", "0.0\t1.25", "now\t1.25", "line 1: 'now"),
    ("urbansed", "annotations/train/*.txt", "0.0\t1.25", "2\t1.25", "ends before it"),
    (
        "manifest",
        "train.lbl",
        "YYbal_-00000",
        "Yother",
        "both must list the same clips",
    ),
    ("manifest", "train.lbl", "/m/09x0r", "/m/x", "is not in the label descriptors"),
    ("manifest", "train.tsv", "\t32000", " 32000", "is not path and number"),
    ("manifest", "label_descriptors.csv", "\n5,", "\n7,", "its classes 0 to 5"),
    ("fsd50k", "dev.csv", ",val", ",dev", "the split is 'dev', not train or val"),
    ("audioset", "balanced_*.csv", "/m/09x0r", "/m/x", "line 4: the label '/m/x'"),
    ("audioset", "balanced_*.csv", "Ybal_-00000,", "bal,", "line 4: it must read YTID"),
]


@pytest.mark.parametrize("command, file, old, new, complaint", WRONG)
def test_what_is_wrong_is_named(
    trees, tmp_path, capsys, command, file, old, new, complaint
):
    corpus, *args = command.split()
    folder = copy_of(trees / corpus, tmp_path)
    paths = sorted(folder.rglob(file))
    if old is None:
        [path] = paths
        path.rename(tmp_path / path.name)
    else:
        edit(next(path for path in paths if old in path.read_text()), old, new)
    assert complaint in failure(corpus, capsys, folder, tmp_path, *args)


@pytest.mark.parametrize("corpus", NAMES)
def test_a_wrong_folder_says_what_was_expected(corpus, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    line = failure(corpus, capsys, tmp_path / "empty", tmp_path)
    assert "--corpus_dir with" in line or "holds no" in line
    assert str(tmp_path / "empty") in line
    assert not (tmp_path / "data/downstream.txt").exists()


def test_every_corpus_has_a_line_in_db_sh():
    scripts = sorted(path.stem[5:] for path in LOCAL.glob("data_*.py"))
    db = (LOCAL.parent / "db.sh").read_text()
    for name in set(scripts) - {"mini", "folder", "polyphony"}:
        assert f"\n{name.upper()}=" in db, name


@pytest.mark.parametrize(
    "corpus, args",
    [
        ("audioset", ["--subsets", "2m"]),
        ("spass", []),
        ("speechcommands", ["--task", "ks1"]),
    ],
)
def test_prepared_miniatures_pass_stages_2_and_3(trees, tmp_path, corpus, args):
    splits = prepare(corpus, trees / corpus, tmp_path / "data", *args)
    make_dump(tmp_path / "data", tmp_path / "dump", max_bad=0)
    report = write_report(tmp_path / "dump", nj=1)
    for name, split in splits.items():
        found = report["splits"][name]
        assert found["usable"] == len(split.wav)
        assert found["compared"]["is_part"] or found["compared"]["expected"] is None
    text = (tmp_path / "dump/report/report.txt").read_text()
    assert "DIFFERENT" not in text
    if corpus == "audioset":
        assert report["splits"]["as2m/train"]["missing"] == 5
        weights = (
            tmp_path / folder / "as2m/train/weights" for folder in ("dump", "data")
        )
        assert read_table(next(weights)) == read_table(next(weights))


@given(st.text(min_size=1).filter(lambda text: text.strip()))
def test_labels_become_single_words_and_come_back(text):
    word = label_word(text)
    assert len(word.split()) == 1
    assert label_name(word) == unicodedata.normalize("NFC", text.strip())
