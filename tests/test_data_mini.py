"""Data preparation: the embedded corpus."""

import sys
from collections import Counter

import numpy as np
import pytest
import soundfile

from espnet2_sslam.corpus import read_classes, read_corpus, read_downstream, read_table
from espnet2_sslam.units import FRAME_LENGTH
from tests.corpus_case import LOCAL, error_line

sys.path.insert(0, str(LOCAL))
import data_mini
from data_mini import KINDS

SCALE = 0.02


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """The corpus at a small scale."""
    datadir = tmp_path_factory.mktemp("mini") / "data"
    data_mini.main(["--datadir", str(datadir), "--mini_scale", str(SCALE)])
    return datadir


def audio_of(datadir):
    """Samples of every clip by id."""
    return {
        key: soundfile.read(path, dtype="int16")[0]
        for split in read_corpus(datadir)
        for key, path in split.wav.items()
    }


def test_mini_has_the_promised_sets(corpus):
    splits = {split.name: split for split in read_corpus(corpus)}
    assert set(splits) == set(data_mini.SPLITS)
    assert splits["pretrain/train"].labels is None
    [run] = read_downstream(corpus)
    assert (run.name, run.task) == ("mini", "multi_label")
    assert run.tests == ("mini/test_single", "mini/test_poly")
    assert read_classes(corpus / "mini/classes.txt") == sorted(KINDS)
    assert len(KINDS) >= 10


def test_mini_labels_one_sound_or_scenes_of_two_to_six(corpus):
    splits = {split.name: split for split in read_corpus(corpus)}
    single = splits["mini/test_single"].labels.values()
    scenes = splits["mini/test_poly"].labels.values()
    assert {len(labels) for labels in single} == {1}
    assert {len(labels) for labels in scenes} <= {2, 3, 4, 5, 6}
    mixed = Counter(len(labels) > 1 for labels in splits["mini/train"].labels.values())
    assert abs(mixed[True] - mixed[False]) <= 1


def test_every_kind_gets_its_turn():
    number_of_kinds = len(KINDS)
    rng = np.random.default_rng(0)
    first = [data_mini.make_clip(rng, False, i)[1][0] for i in range(number_of_kinds)]
    assert sorted(first) == sorted(KINDS)


def test_mini_clips_have_several_lengths_and_are_all_different(corpus):
    clips = audio_of(corpus)
    assert min(map(len, clips.values())) >= FRAME_LENGTH
    assert len({len(clip) for clip in clips.values()}) > len(clips) / 2
    assert len({clip.tobytes() for clip in clips.values()}) == len(clips)


def test_mini_is_the_same_bit_for_bit_with_any_number_of_processes(corpus, tmp_path):
    arguments = ["--datadir", str(tmp_path / "data"), "--mini_scale", str(SCALE)]
    data_mini.main([*arguments, "--nj", "2"])
    again, first = audio_of(tmp_path / "data"), audio_of(corpus)
    assert all(np.array_equal(again[key], first[key]) for key in first | again)
    for split in data_mini.SPLITS:
        for name in ("utt2spk", "text"):
            path = corpus / split / name
            if path.exists():
                assert (
                    path.read_bytes() == (tmp_path / "data" / split / name).read_bytes()
                )


def test_a_larger_mini_keeps_the_clips_of_a_smaller_one(corpus, tmp_path):
    data_mini.main(["--datadir", str(tmp_path), "--mini_scale", str(1.5 * SCALE)])
    large, small = audio_of(tmp_path), audio_of(corpus)
    assert len(large) > len(small)
    assert all(np.array_equal(large[key], small[key]) for key in small)
    labels = read_table(corpus / "mini/train/text")
    assert labels.items() <= read_table(tmp_path / "mini/train/text").items()


def test_another_seed_gives_other_clips(corpus, tmp_path):
    arguments = ["--mini_scale", str(SCALE), "--seed", "1"]
    data_mini.main(["--datadir", str(tmp_path), *arguments])
    other, first = audio_of(tmp_path), audio_of(corpus)
    assert not any(np.array_equal(other[key], first[key]) for key in first)


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("seed", range(5))
def test_every_kind_sounds_and_varies(kind, seed):
    sound, other = (
        KINDS[kind](np.random.default_rng([seed, i]), 12000) for i in range(2)
    )
    assert sound.shape == (12000,) and np.isfinite(sound).all()
    assert np.sqrt(np.mean(sound**2)) > 1e-3
    assert not np.allclose(sound, other)


def test_a_scale_of_zero_is_an_error(tmp_path, capsys):
    line = error_line(
        data_mini.main, capsys, "--mini_scale", 0, "--datadir", tmp_path / "data"
    )
    assert "positive" in line
