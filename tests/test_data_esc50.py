"""Data preparation: ESC-50, with the official folds or with folds made anew."""

from collections import defaultdict

import numpy as np
import pytest

from espnet2_sslam.corpus import class_names, partition_groups, read_downstream
from tests.corpora.esc50 import HEADER
from tests.corpus_case import error_line, prepare, script


def make_esc50(folder, folds, sources=10, takes=2):
    """An ESC-50 directory of three classes (without the audio); its path."""
    lines = [HEADER]
    for source in range(sources):
        for target, category in enumerate(("dog", "door_wood_knock", "rain")):
            for take in "ABCD"[:takes]:
                fold = folds[source % len(folds)]
                number = 100 * target + source
                name = f"{fold}-{number}-{take}-{target}.wav"
                lines.append(f"{name},{fold},{target},{category},False,{number},{take}")
    (folder / "meta").mkdir(parents=True)
    (folder / "meta/esc50.csv").write_text("\r\n".join(lines) + "\r\n")
    return folder


def test_official_folds_are_kept_when_all_are_there(tmp_path):
    folder = make_esc50(tmp_path / "esc", [1, 2, 3, 4, 5])
    splits = prepare("esc50", folder, tmp_path / "data")
    for fold in range(1, 6):
        test, train = (splits[f"esc50/fold{fold}/{of}"] for of in ("test", "train"))
        assert all(key.startswith(f"{fold}-") for key in test.wav)
        assert len(test.wav) == 12 and len(train.wav) == 48
        assert not set(test.wav) & set(train.wav)
    assert "official five folds" in (tmp_path / "data/notes.txt").read_text()
    runs = read_downstream(tmp_path / "data")
    assert [run.name for run in runs] == [f"esc50/fold{k}" for k in range(1, 6)]
    assert runs[0].class_list == "esc50/classes.txt"
    classes = (tmp_path / "data/esc50/classes.txt").read_text().split()
    assert classes == ["dog", "door_wood_knock", "rain"]
    names = class_names(tmp_path / "data/esc50/classes.txt")
    assert names == ["dog", "door wood knock", "rain"]


def test_missing_folds_are_made_anew_and_keep_recordings_together(tmp_path):
    folder = make_esc50(tmp_path / "esc", [4])
    splits = prepare("esc50", folder, tmp_path / "data", "--num_folds", "5")
    folds_of = defaultdict(set)
    for fold in range(1, 6):
        test = splits[f"esc50/fold{fold}/test"]
        assert len(test.wav) == 12
        counts = [
            sum([c] == of for of in test.labels.values()) for c in ("dog", "rain")
        ]
        assert counts == [4, 4]
        for source in test.speakers.values():
            folds_of[source].add(fold)
    assert {len(folds) for folds in folds_of.values()} == {1}
    assert "made anew" in (tmp_path / "data/notes.txt").read_text()


def test_pretraining_hears_every_clip_and_holds_out_recordings(tmp_path):
    splits = prepare("esc50", make_esc50(tmp_path / "esc", [1, 2]), tmp_path / "data")
    train, valid = splits["pretrain/train"], splits["pretrain/valid"]
    assert len(train.wav) == 54 and len(valid.wav) == 6
    assert not set(train.speakers.values()) & set(valid.speakers.values())
    assert train.labels is None
    assert "test clips included" in (tmp_path / "data/notes.txt").read_text()


def test_wrong_metadata_are_named_errors(tmp_path, capsys):
    words = ["--corpus_dir", tmp_path / "esc", "--datadir", tmp_path / "data"]
    path = tmp_path / "esc/meta/esc50.csv"

    def error(edit, *args):
        if path.exists():
            path.write_text(edit(good))
        return error_line(script("esc50").main, capsys, *words, *args)

    def same(text):
        return text

    (tmp_path / "esc").mkdir()
    assert "esc50.csv is missing" in error(same)
    make_esc50(tmp_path / "esc", [1, 2])
    good = path.read_text()
    assert "src_file" in error(lambda text: text.replace("src_file", "source"))
    assert "occurs twice" in error(lambda text: text + text.splitlines()[1] + "\n")
    assert "'x' is not a number" in error(lambda text: text.replace(",1,0,", ",x,0,"))
    assert "line 2" in error(lambda text: text.replace(",dog,", ",,", 1))
    assert "lists no clip" in error(lambda text: HEADER)
    assert "--num_folds" in error(same, "--num_folds", 1)
    assert "cannot be split" in error(same, "--num_folds", 99)


@pytest.mark.parametrize("seed", range(10))
def test_partition_never_divides_a_group_and_keeps_the_shares(seed):
    rng = np.random.default_rng(seed)
    groups = {f"clip{i}": f"group{rng.integers(40)}" for i in range(200)}
    labels = {clip: [f"class{rng.integers(3)}"] for clip in groups}
    parts = partition_groups(groups, labels, [0.8, 0.1, 0.1], rng)
    assert set(parts) == set(groups)
    by_group = defaultdict(set)
    for clip, part in parts.items():
        by_group[groups[clip]].add(part)
    assert {len(found) for found in by_group.values()} == {1}
    sizes = np.bincount(list(parts.values()), minlength=3) / 200
    assert np.abs(sizes - [0.8, 0.1, 0.1]).max() < 0.05
