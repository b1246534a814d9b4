"""Data preparation: ESC-50, with the official folds or with folds made anew."""

import csv
from collections import defaultdict

import numpy as np
import pytest

from espnet2_sslam.corpus import (
    Format,
    hold_out,
    make_dump,
    partition_groups,
    read_downstream,
    read_table,
)
from tests.corpora.esc50 import HEADER
from tests.corpus_case import error_line, prepare, real_audio, script


def make_esc50(folder, folds, sources=10, takes=2):
    """An ESC-50 directory of three classes (without the audio); its path."""
    lines = [HEADER]
    for source in range(sources):
        for target, category in enumerate(("dog", "door wood knock", "rain")):
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


def test_a_seed_gives_the_same_folds_and_another_gives_others(tmp_path):
    folder = make_esc50(tmp_path / "esc", [4])
    lists = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        prepare("esc50", folder, tmp_path / name, "--seed", str(seed))
        lists.append(list(read_table(tmp_path / name / "esc50/fold1/test/wav.scp")))
    assert lists[0] == lists[1] != lists[2]


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


def test_hold_out_of_a_tiny_corpus_keeps_one_group_in_each_part():
    parts = hold_out({"a": "a", "b": "b"}, 0.1, np.random.default_rng(0))
    assert sorted(parts.values()) == [0, 1]
    with pytest.raises(ValueError, match="1 recording"):
        hold_out({"a": "a", "b": "a"}, 0.1, np.random.default_rng(0))


def test_real_esc50_clips_give_balanced_folds(tmp_path):
    folder = real_audio("esc50-mini")
    splits = prepare("esc50", folder, tmp_path / "data")
    with open(folder / "meta/esc50.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    sources = defaultdict(set)
    for row in rows:
        sources[row["category"]].add(row["src_file"])
    lacking = defaultdict(int)
    for fold in range(1, 6):
        labels = splits[f"esc50/fold{fold}/test"].labels
        assert len(labels) == 40
        for category in set(sources) - {label for [label] in labels.values()}:
            lacking[category] += 1
    # A class is missing in no more folds than its number of recordings makes needed.
    assert lacking == {c: 5 - len(s) for c, s in sources.items() if len(s) < 5}
    summary = make_dump(
        tmp_path / "data", tmp_path / "dump", form=Format(link_ok=True), max_bad=0
    )
    assert "1200 clips in 12 splits: 1200 usable" in summary
