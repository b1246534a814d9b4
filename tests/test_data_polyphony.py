"""Mixtures of a known number of sounds: labels, levels, and who hears what."""

import csv
import shutil
from collections import defaultdict

import numpy as np
import pytest
import soundfile

from espnet2_sslam.corpus import (
    class_names,
    mixtures,
    read_classes,
    read_downstream,
    read_table,
)
from espnet2_sslam.corpus.mixtures import Part, Source
from tests.corpora import esc50
from tests.corpus_case import error_line, noise, prepare, real_audio, script

data_polyphony = script("polyphony")
SMALL = "--train_clips 12 --valid_clips 6 --test_clips 4 --degrees 1 2 4".split()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """The data directory of a small ESC-50: four classes."""
    folder = tmp_path_factory.mktemp("corpus")
    esc50.make(folder / "esc50")
    prepare("esc50", folder / "esc50", folder / "data")
    return folder / "data"


def make(corpus, datadir, *options):
    prepare("polyphony", corpus, datadir, "--seconds", 0.4, *SMALL, *options)
    return datadir


@pytest.fixture(scope="module")
def made(corpus, tmp_path_factory):
    return make(corpus, tmp_path_factory.mktemp("made"))


def sources_of(datadir):
    """{mixture: [row of mixtures.csv, ...]}"""
    found = defaultdict(list)
    with open(datadir / "mixtures.csv", newline="") as file:
        for row in csv.DictReader(file):
            found[row["mixture"]].append(row)
    return found


def test_a_mixture_of_degree_k_has_k_labels_of_k_recordings(made):
    sources = sources_of(made)
    for degree in 1, 2, 4:
        text = read_table(made / f"polyphony/degree_{degree}/text")
        assert 1 <= len(text) <= 4
        for key, labels in text.items():
            assert sorted(row["label"] for row in sources[key]) == labels.split()
            assert len(set(labels.split())) == degree
            assert len({row["recording"] for row in sources[key]}) == degree


def test_the_classes_keep_the_names_that_the_source_has(corpus, made):
    known = dict(
        zip(
            read_classes(corpus / "esc50/classes.txt"),
            class_names(corpus / "esc50/classes.txt"),
            strict=True,
        )
    )
    words = read_classes(made / "polyphony/classes.txt")
    assert class_names(made / "polyphony/classes.txt") == [known[w] for w in words]
    assert any(" " in known[word] for word in words)


def test_no_recording_is_heard_in_two_parts(made):
    heard = defaultdict(set)
    for key, rows in sources_of(made).items():
        part = key.split("_")[0].replace("degree", "test")
        heard[part] |= {row["recording"] for row in rows}
    for split in "train", "valid":
        speakers = read_table(made / f"pretrain/{split}/utt2spk").values()
        heard[split] |= set(speakers)
    assert all(heard[name] for name in ("train", "valid", "test"))
    for one, other in ("train", "test"), ("valid", "test"), ("train", "valid"):
        assert not heard[one] & heard[other]


def test_training_has_all_degrees_in_equal_shares_and_each_is_a_test_split(made):
    sources = sources_of(made)
    degrees = [len(sources[key]) for key in read_table(made / "polyphony/train/text")]
    assert {d: degrees.count(d) for d in (1, 2, 4)} == {1: 4, 2: 4, 4: 4}
    contents = [
        (key.split("_")[0], frozenset(row["source"] for row in rows))
        for key, rows in sources.items()
    ]
    assert len(contents) == len(set(contents))  # no mixture is made twice
    [run] = read_downstream(made)
    assert (run.name, run.task) == ("polyphony", "multi_label")
    assert run.tests == tuple(f"polyphony/degree_{d}" for d in (1, 2, 4))
    classes = (made / "polyphony/classes.txt").read_text().split()
    assert classes == sorted(esc50.CLASSES.values())


def test_the_same_seed_gives_the_same_files_and_another_one_others(
    corpus, made, tmp_path
):
    again = make(corpus, tmp_path / "again", "--nj", 2)
    other = make(corpus, tmp_path / "other", "--seed", 1)
    name = "audio/polyphony/degree_4/degree_4_00000.flac"
    assert (again / name).read_bytes() == (made / name).read_bytes()
    assert (again / "mixtures.csv").read_text() == (made / "mixtures.csv").read_text()
    assert (other / "mixtures.csv").read_text() != (made / "mixtures.csv").read_text()


def test_levels_differ_by_the_signal_to_noise_ratio(tmp_path):
    parts = []
    for number, snr in enumerate((0.0, -6.0)):
        path = tmp_path / f"{number}.wav"
        # Silence beside a sound must not change its level.
        sound = np.concatenate([np.zeros(8000), noise(8000, seed=number)])
        soundfile.write(path, 0.1**number * sound, 16000, subtype="FLOAT")
        source = Source(str(number), str(path), str(number), str(number))
        parts.append(Part(source, snr, 0.0))
    both = mixtures.mix(parts, 16000)
    first = mixtures.mix(parts[:1], 16000)
    assert both.dtype == np.float32 and both.shape == (16000,)
    assert mixtures.sounding_level(first) == pytest.approx(mixtures.LEVEL, rel=1e-3)
    ratio = mixtures.sounding_level(both - first) / mixtures.sounding_level(first)
    assert 20 * np.log10(ratio) == pytest.approx(-6.0, abs=0.01)


def test_a_mixture_is_never_clipped(tmp_path):
    path = tmp_path / "click.wav"
    click = np.full(16000, 0.01)
    click[8000] = 1.0
    soundfile.write(path, click, 16000, subtype="FLOAT")
    parts = [Part(Source("a", str(path), "a", "a"), 30.0, 0.0)]
    assert np.abs(mixtures.mix(parts, 16000)).max() == pytest.approx(10 ** (-1 / 20))


def test_labels_with_too_few_recordings_are_left_out_and_noted(corpus, tmp_path):
    shutil.copytree(corpus, tmp_path / "rare")
    for path in sorted((tmp_path / "rare").rglob("text")):
        lines = path.read_text().splitlines()
        rare = [
            line for line in lines if line.endswith(" rain") and "-10010-" not in line
        ]
        for name in ("text", "wav.scp", "utt2spk"):
            drop = {line.split()[0] for line in rare}
            kept = path.with_name(name).read_text().splitlines()
            kept = [line for line in kept if line.split()[0] not in drop]
            path.with_name(name).write_text("\n".join(kept) + "\n")
    make(tmp_path / "rare", tmp_path / "made", "--degrees", 1, 2)
    classes = (tmp_path / "made/polyphony/classes.txt").read_text().split()
    assert classes == ["dog", "hand_saw", "mouse_click"]
    notes = (tmp_path / "made/notes.txt").read_text()
    assert "1 of 4 labels have too few recordings for train and test" in notes
    assert notes.strip().endswith("are left out: rain")


@pytest.mark.parametrize(
    "options, complaint",
    [
        ("--degrees 1 5", "a mixture of 5 sources needs 5 labels"),
        ("--degrees 0 1", "--degrees are different numbers from 1 on"),
        ("--snr 5 -5", "--snr needs the lower number first"),
        ("--test_clips 1", "must be at least 3"),
        ("--shares 1 1 0", "--shares must be positive"),
        ("--shares 98 1 1", "a mixture of 2 sources needs 2 labels"),
    ],
)
def test_wrong_options_are_one_line(corpus, tmp_path, capsys, options, complaint):
    words = ["--corpus_dir", corpus, "--datadir", tmp_path / "x", *SMALL]
    line = error_line(data_polyphony.main, capsys, *words, *options.split())
    assert complaint in line
    assert not (tmp_path / "x/downstream.txt").exists()


def test_real_clips_give_ten_different_sounds(tmp_path):
    folder = real_audio("esc50-mini")
    prepare("esc50", folder, tmp_path / "esc")
    words = "--degrees 1 10 --train_clips 2 --valid_clips 2 --test_clips 3".split()
    prepare("polyphony", tmp_path / "esc", tmp_path / "poly", *words)
    text = read_table(tmp_path / "poly/polyphony/degree_10/text")
    assert [len(labels.split()) for labels in text.values()] == [10] * 3
