"""Log-mel features: Kaldi's numbers clip by clip, and statistics that stay with it."""

import logging

import numpy as np
import pytest
import torch

from espnet2_sslam import features
from espnet2_sslam.features import LogMel, fit_frames, kaldi_fbank
from tests.golden_data import load

BROKEN = (ImportError, OSError, RuntimeError)  # torchaudio beside a torch of its own


def reference(wave):
    """One clip by torchaudio, with the authors' arguments."""
    kaldi = pytest.importorskip("torchaudio.compliance.kaldi", exc_type=BROKEN)
    return kaldi.fbank(
        (wave - wave.mean())[None],
        htk_compat=True,
        sample_frequency=16_000,
        use_energy=False,
        window_type="hanning",
        num_mel_bins=128,
        dither=0.0,
        frame_shift=10,
    )


def test_a_padded_batch_equals_torchaudio_clip_by_clip():
    generator = torch.Generator().manual_seed(0)
    sizes = [400, 401, 559, 560, 2_561, 16_000, 40_123]
    waves = [torch.randn(n, generator=generator) * 0.1 + 0.05 for n in sizes]
    batch = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
    fbank, frames = kaldi_fbank(batch, torch.tensor(sizes))
    for clip, wave in enumerate(waves):
        expected = reference(wave)
        assert frames[clip] == len(expected)
        error = fbank[clip, : len(expected)] - expected
        assert float(error.abs().max()) < 1e-4
        assert not fbank[clip, len(expected) :].any()


@pytest.mark.parametrize("name", ["sine1s", "sine50ms"])
def test_fbank_equals_the_authors(name):
    golden = load("fbank.npz")
    wave = torch.from_numpy(golden[f"{name}.wave"])[None]
    fbank, _ = kaldi_fbank(wave)
    # where there is next to no energy float32 itself is only good for 4e-4 (against
    # float64), and the authors' machine rounded otherwise
    raw = golden[f"{name}.raw_fbank"]
    audible = raw > -10
    assert audible.any()
    np.testing.assert_allclose(fbank[0][audible], raw[audible], rtol=0, atol=1e-4)
    np.testing.assert_allclose(fbank[0], raw, rtol=0, atol=1e-3)
    head = golden[f"{name}.dataset_head"]  # padded, then normalised
    normalised = LogMel().normalize(fit_frames(fbank, 1024))[0]
    np.testing.assert_allclose(normalised[: len(head)], head, atol=1e-4)


def test_a_long_clip_is_computed_in_passes_with_the_same_result(monkeypatch):
    wave = torch.randn(2, 30_000, generator=torch.Generator().manual_seed(0))
    whole, _ = kaldi_fbank(wave)
    monkeypatch.setattr(features, "FRAMES_PER_PASS", 20)
    parts, _ = kaldi_fbank(wave)
    assert torch.equal(whole, parts)


def test_too_short_a_clip_is_refused():
    with pytest.raises(ValueError, match="399 samples, at least 400"):
        kaldi_fbank(torch.zeros(2, 800), torch.tensor([800, 399]))


def test_statistics_come_from_the_checkpoint_unless_said_explicitly(caplog):
    state, fresh = LogMel(-5.0, 2.0).state_dict(), LogMel()
    with caplog.at_level(logging.INFO):
        fresh.load_state_dict(state)
    assert (float(fresh.mean), float(fresh.std)) == (-5.0, 2.0)
    assert "-5.0000, 2.0000" in caplog.text
    with pytest.raises(ValueError, match="override_fbank_stats"):
        LogMel(-4.0, 2.0).load_state_dict(state)
    other = LogMel(-4.0, 2.0, override=True)
    other.load_state_dict(state)
    assert float(other.mean) == -4.0
    assert float(state["mean"]) == -5.0, "the caller's state dict was changed"


@pytest.mark.parametrize("options", [dict(mean=1.0), dict(mean=1.0, std=0.0)])
def test_incomplete_or_impossible_statistics_are_refused(options):
    with pytest.raises(ValueError, match="fbank"):
        LogMel(**options)


def test_mel_filters_are_torchaudios_to_the_bit():
    kaldi = pytest.importorskip("torchaudio.compliance.kaldi", exc_type=BROKEN)
    expected, _ = kaldi.get_mel_banks(128, 512, 16_000, 20.0, 0.0, 100.0, -500.0, 1.0)
    assert torch.equal(features.mel_filters(torch.device("cpu")), expected.T)
