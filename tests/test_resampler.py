"""Audio at any rate comes to 16 kHz by the authors' filter, also block by block."""

import tracemalloc

import numpy as np
import pytest
import soundfile
import torch

from espnet2_sslam import audio
from espnet2_sslam.audio import AudioError, read_audio, source_blocks
from espnet2_sslam.resampler import resampled
from tests.golden_data import load


def noise(rate, seconds=1.0, seed=0):
    size = int(rate * seconds) + 37
    return 0.1 * np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def whole(wave, rate, **options):
    return np.concatenate(list(resampled(iter([wave]), rate, **options)))


@pytest.mark.parametrize(
    "rate",
    [1000, 4000, 8000, 11025, 12000, 16000, 22050, 24000, 32000, 37800, 44100]
    + [48000, 88200, 96000, 192000, 384000],
)
def test_the_filter_is_torchaudios(rate):
    wave = noise(rate)
    broken = (ImportError, OSError, RuntimeError)  # beside a torch of its own
    torchaudio = pytest.importorskip("torchaudio", exc_type=broken)
    expected = torchaudio.functional.resample(torch.from_numpy(wave), rate, 16000)
    ours = whole(wave, rate)
    assert len(ours) == len(expected)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_a_golden_clip_of_the_authors_at_32_khz_comes_out():
    golden = load("fbank.npz")
    ours = whole(golden["sine32k.wave"], 32000)
    np.testing.assert_allclose(ours, golden["sine32k.resampled16k"], atol=1e-5)


@pytest.mark.parametrize("rate", [8000, 44100, 48000, 44101, 22050.5])
def test_blocks_of_any_size_give_the_same_samples(rate):
    wave, generator = noise(rate, 2), np.random.default_rng(1)
    places = np.sort(generator.integers(0, len(wave), 40))
    blocks = list(resampled(iter(np.split(wave, places)), rate))
    np.testing.assert_allclose(np.concatenate(blocks), whole(wave, rate), atol=1e-6)


@pytest.mark.parametrize("rate", [44101, 44056, 15999, 383999])
def test_odd_rates_follow_the_formula_in_bounded_memory(rate):
    wave = noise(rate, 0.3)
    tracemalloc.start()
    ours = whole(wave, rate)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300 << 20  # torchaudio's table for 44,101 Hz: 5.6 GB
    cutoff = min(1.0, 16000 / rate) * 0.99
    for index in (100, 1234, 4321):
        time = (np.arange(len(wave)) - index * rate / 16000) * cutoff
        window = np.cos(np.clip(time / 6, -1, 1) * np.pi / 2) ** 2
        assert ours[index] == pytest.approx(
            float((wave * np.sinc(time) * window * cutoff).sum()),
            abs=5e-5,  # the phases are float32, as torchaudio has them
        )


def test_a_file_and_an_array_of_it_give_the_same_samples(tmp_path, monkeypatch):
    monkeypatch.setattr(audio, "BLOCK_FRAMES", 5000)
    wave = noise(44100)
    soundfile.write(tmp_path / "a.wav", wave, 44100, subtype="FLOAT")
    array = np.concatenate(list(source_blocks((wave, 44100), "a", None)))
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav"), array, atol=1e-6)
    np.testing.assert_allclose(array, whole(wave, 44100), atol=1e-6)


def test_soxr_is_an_option_with_a_steeper_end():
    pytest.importorskip("soxr", reason="soxr is not installed")
    wave = noise(32000, 5)
    sinc, soxr = (
        np.abs(np.fft.rfft(whole(wave, 32000, resampler=name)[:80000]))
        for name in ("sinc", "soxr")
    )
    assert soxr[35000:36000].mean() > 1.1 * sinc[35000:36000].mean()  # at 7.1 kHz
    assert soxr[39500:].mean() < 0.1 * sinc[39500:].mean()  # at 7.95 kHz


@pytest.mark.parametrize(
    "rate, words",
    [
        ("16000", "need a number of Hz, got '16000'"),
        (True, "need a number of Hz"),
        (16, r"samples per second \(Hz, not kHz\), got 16"),
        (44.1, "not kHz"),
        (0, "got 0"),
        (-8000, "got -8000"),
        (float("nan"), "got nan"),
        (2**31, "1000 to 1000000"),
        (torch.tensor([16000, 8000]), "need a number of Hz"),
        (None, "an array needs its sampling rate"),
    ],
)
def test_a_rate_that_is_none_is_refused(rate, words):
    with pytest.raises(AudioError, match=words):
        list(source_blocks(noise(16000), "a", rate))


@pytest.mark.parametrize("rate", [np.int64(8000), torch.tensor(8000), 8000.0])
def test_a_rate_may_be_of_numpy_or_torch(rate):
    wave = noise(8000)
    blocks = source_blocks(wave, "a", rate)
    np.testing.assert_array_equal(np.concatenate(list(blocks)), whole(wave, 8000))
