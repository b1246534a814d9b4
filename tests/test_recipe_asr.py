"""The recipe for ASR of digits: its data, its scores, and (slow) all of its stages."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml

from espnet2_sslam.checkpoint import save_model
from espnet2_sslam.corpus import read_table
from espnet2_sslam.encoder import SSLAMEncoder
from tests.corpus_case import real_audio, run_recipe

RECIPE = Path(__file__).resolve().parent.parent / "egs2" / "sslam" / "asr"


def script(name):
    """A script of the recipe as a module."""
    path = RECIPE / "local" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"asr_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


digits, score = script("digits"), script("score")
SETS = ("train", "valid", "test_known", "test_new")


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Ten 8 kHz recordings of each digit by two speakers; each has its own constant."""
    folder = tmp_path_factory.mktemp("fsdd") / "recordings"
    folder.mkdir()
    for number in range(200):
        digit, index = number % 10, number // 10
        speaker = ("ann", "bob")[index // 10]
        name = f"{digit}_{speaker}_{index % 10}.wav"
        wave = np.full(400, (number + 1) / 400, dtype=np.float32)
        soundfile.write(folder / name, wave, 8_000, subtype="FLOAT")
    return folder.parent


def make(monkeypatch, corpus, out, *more):
    words = ["--corpus_dir", corpus, "--datadir", out, "--test_speaker", "bob"]
    words += ["--num_train", "12", "--num_test", "6", *more]
    monkeypatch.setattr(sys, "argv", ["digits.py", *map(str, words)])
    digits.main()
    return {name: read_table(out / name / "text") for name in SETS}


def test_no_recording_is_in_two_sets_and_one_speaker_in_a_single_one(recordings):
    sets = digits.split(digits.find_recordings(recordings), "bob")
    files = {
        name: {
            path for digits in speakers.values() for paths in digits for path in paths
        }
        for name, speakers in sets.items()
    }
    assert [len(files[name]) for name in SETS] == [80, 10, 10, 100]
    assert len(set().union(*files.values())) == 200
    assert [name for name in sets if "bob" in sets[name]] == ["test_new"]


def test_strings_say_what_their_text_says(recordings, tmp_path, monkeypatch):
    sets = make(monkeypatch, recordings, tmp_path)
    assert [len(sets[name]) for name in sets] == [12, 6, 6, 6]
    for name, texts in sets.items():
        scp = read_table(tmp_path / name / "wav.scp")
        for key, text in texts.items():
            assert 2 <= len(text.split()) <= 5
            wave, rate = soundfile.read(scp[key])
            assert rate == 16_000
            loud = np.abs(wave) > 1e-3
            starts = np.flatnonzero(loud[1:] & ~loud[:-1])
            # the middle of each recording tells which one it is
            found = [round(400 * wave[start + 400]) - 1 for start in starts]
            assert [digits.WORDS[number % 10] for number in found] == text.split()


def test_wrong_corpora_are_one_line(recordings, tmp_path):
    with pytest.raises(ValueError, match="has no recordings"):
        digits.find_recordings(tmp_path)
    with pytest.raises(ValueError, match=r"--test_speaker eve must be one .* ann, bob"):
        digits.split(digits.find_recordings(recordings), "eve")


def test_error_rates_count_words_and_characters():
    reference = {"a": "one two", "b": "six"}
    word, character = score.error_rates(reference, {"a": "one too", "b": "six six"})
    assert word == pytest.approx(100 * 2 / 3)
    assert character == pytest.approx(100 * 5 / 10)
    with pytest.raises(ValueError, match="1 utterances were decoded, 2 were expected"):
        score.error_rates(reference, {"a": "one two"})


@pytest.mark.parametrize("config", sorted(RECIPE.glob("conf/asr_*.yaml")), ids=str)
def test_the_table_says_where_sslam_is_and_what_its_weights_are(config):
    options = yaml.safe_load(config.read_text())
    options = {"frontend": "default", **options}
    name, weights = score.describe(options)
    assert ("sslam" in name) == ("sslam" in config.name)
    if "sslam" in config.name:
        place = "encoder" if "encoder" in config.name else "frontend"
        assert name.startswith(f"{place} sslam") and weights.startswith("random")
        options[f"{place}_conf"]["pretrained"] = "some/model"
        assert score.describe(options)[1].startswith("pre-trained")


@pytest.mark.slow
def test_all_stages_end_with_a_table_and_a_second_run_has_nothing_to_do(tmp_path):
    torch.manual_seed(0)
    encoder = SSLAMEncoder(embed_dim=48, depth=1, num_heads=3, mlp_ratio=1.0)
    words = ["--corpus_dir", real_audio("fsdd-mini")]
    words += ["--datadir", tmp_path / "data", "--expdir", tmp_path / "exp"]
    words += ["--num_train", 20, "--num_test", 3, "--nbpe", 30]
    configs = ("asr_conformer_tiny", "asr_sslam_frontend_tiny")
    words += ["--asr_configs", " ".join(f"conf/{name}.yaml" for name in configs)]
    words += ["--pretrained", save_model(encoder, tmp_path / "model")]
    words += ["--asr_args", "--max_epoch 1"]
    words += ["--inference_args", "--beam_size 1 --maxlenratio -4"]
    for _ in range(2):
        printed = run_recipe(*words, script="asr/run.sh")
        rows = (tmp_path / "exp" / "RESULTS.md").read_text().splitlines()[4:]
        assert rows[0].startswith("| encoder conformer |  | ")
        assert rows[1].startswith(
            "| frontend sslam under e_branchformer | pre-trained, trained | "
        )
    assert printed.count("up to date") == 2 + 2 + 2 + 4
    assert "started" not in printed
