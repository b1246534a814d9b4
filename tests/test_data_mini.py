"""Data preparation: the embedded corpus."""

from collections import Counter

import numpy as np
import pytest
import soundfile

from espnet2_sslam.corpus import read_classes, read_corpus, read_downstream, read_table
from espnet2_sslam.units import FRAME_LENGTH
from tests.corpus_case import error_line, script

data_mini = script("mini")
KINDS = data_mini.KINDS
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


def test_mini_has_single_sounds_and_scenes_of_two_to_six(corpus):
    splits = {split.name: split for split in read_corpus(corpus)}
    assert set(splits) == set(data_mini.SPLITS)
    assert splits["pretrain/train"].labels is None
    [run] = read_downstream(corpus)
    assert (run.name, run.task) == ("mini", "multi_label")
    assert run.tests == ("mini/test_single", "mini/test_poly")
    assert read_classes(corpus / "mini/classes.txt") == sorted(KINDS)
    counts = {
        name: Counter(map(len, splits[f"mini/{name}"].labels.values()))
        for name in ("train", "test_single", "test_poly")
    }
    assert set(counts["test_single"]) == {1}
    assert set(counts["test_poly"]) <= {2, 3, 4, 5, 6}
    assert abs(2 * counts["train"][1] - counts["train"].total()) <= 1


def test_every_kind_gets_its_turn():
    number_of_kinds = len(KINDS)
    rng = np.random.default_rng(0)
    first = [data_mini.make_clip(rng, False, i)[1][0] for i in range(number_of_kinds)]
    assert sorted(first) == sorted(KINDS)


def test_clips_differ_and_depend_on_nothing_but_the_seed(corpus, tmp_path):
    def make(name, *words):
        data_mini.main(["--datadir", str(tmp_path / name), *map(str, words)])
        return audio_of(tmp_path / name)

    first = audio_of(corpus)
    assert min(map(len, first.values())) >= FRAME_LENGTH
    assert len({clip.tobytes() for clip in first.values()}) == len(first)
    larger = make("larger", "--mini_scale", 1.5 * SCALE, "--nj", 2)
    assert len(larger) > len(first)
    assert all(np.array_equal(larger[key], first[key]) for key in first)
    labels = read_table(corpus / "mini/train/text")
    assert labels.items() <= read_table(tmp_path / "larger/mini/train/text").items()
    other = make("other", "--mini_scale", SCALE, "--seed", 1)
    assert not any(np.array_equal(other[key], first[key]) for key in first)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_sounds_and_varies(kind):
    sound, other = (KINDS[kind](np.random.default_rng(i), 12000) for i in range(2))
    assert sound.shape == (12000,) and np.isfinite(sound).all()
    assert np.sqrt(np.mean(sound**2)) > 1e-3
    assert not np.allclose(sound, other)


def test_a_scale_of_zero_is_an_error(tmp_path, capsys):
    line = error_line(
        data_mini.main, capsys, "--mini_scale", 0, "--datadir", tmp_path / "data"
    )
    assert "positive" in line
