"""Reading any audio file, and refusing what cannot be used."""

import pickle
import struct

import numpy as np
import pytest
import soundfile

from espnet2_sslam import audio
from espnet2_sslam.audio import AudioError, AudioSummary, read_audio, read_blocks
from tests.corpus_case import cut, make_bad, noise, real_audio

LOSSLESS = ["wav", "flac", "aiff", "w64", "caf", "au"]
CHECKED = [*LOSSLESS, "rf64", "ogg"]  # whose length is in the file, or decoded


@pytest.mark.parametrize("form", LOSSLESS)
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_samples_are_kept_and_channels_averaged(tmp_path, form, channels):
    samples = np.round(noise(5000, channels=channels) * 32768).astype(np.int16)
    soundfile.write(tmp_path / f"a.{form}", samples, 16000, subtype="PCM_16")
    expected = samples.reshape(5000, -1).astype(np.float32) / 32768
    got = read_audio(tmp_path / f"a.{form}")
    np.testing.assert_allclose(got, expected.mean(1), atol=1e-7)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_integers_and_floats_have_the_same_scale(tmp_path, subtype):
    samples = noise(4000)
    soundfile.write(tmp_path / "a.wav", samples, 16000, subtype=subtype)
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav"), samples, atol=8e-3)


@pytest.mark.parametrize("form", [*LOSSLESS, "mp3", "ogg"])
@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000])
def test_read_audio_resamples_along_time(tmp_path, form, rate):
    t = np.arange(rate) / rate
    tone = 0.5 * np.sin(2 * np.pi * 1000 * t)
    soundfile.write(tmp_path / f"a.{form}", np.stack([tone, tone], 1), rate)
    samples = read_audio(tmp_path / f"a.{form}")
    assert samples.dtype == np.float32 and samples.shape == (16000,)
    spectrum = np.abs(np.fft.rfft(samples[2000:14000]))
    assert abs(spectrum.argmax() * 16000 / 12000 - 1000) < 2
    assert 0.4 < np.abs(samples[2000:14000]).max() < 0.6


@pytest.mark.parametrize("rate", [16000, 44100])
def test_read_blocks_give_the_same_samples_in_any_block_size(
    tmp_path, monkeypatch, rate
):
    soundfile.write(tmp_path / "a.wav", noise(50000, channels=2), rate)
    whole = read_audio(tmp_path / "a.wav")
    monkeypatch.setattr(audio, "BLOCK_FRAMES", 3000)
    blocks = list(read_blocks(tmp_path / "a.wav"))
    assert len(blocks) > 10
    np.testing.assert_allclose(np.concatenate(blocks), whole, atol=1e-6)


@pytest.mark.parametrize(
    "kind, reason",
    [
        ("missing", "missing"),
        ("directory", "missing"),
        ("empty", "empty"),
        ("text", "not audio"),
        ("no_frames", "no audio"),
        ("one_sample", "too short"),
        ("short", "too short: 399 samples"),
        ("header_only", "truncated"),
        ("nan", "not finite: NaN or infinity at frame 12345"),
        ("infinity", "not finite"),
        ("truncated.wav", "truncated"),
        ("truncated.flac", "truncated"),
        ("truncated.ogg", "truncated"),
        ("truncated.mp3", "truncated"),
        ("truncated.aiff", "truncated"),
        ("truncated.w64", "truncated"),
        ("truncated.caf", "truncated"),
        ("truncated.rf64", "truncated"),
    ],
)
def test_read_audio_names_the_file_and_the_reason(tmp_path, kind, reason):
    path = make_bad(tmp_path, kind)
    with pytest.raises(AudioError) as caught:
        read_audio(path)
    assert str(path) in str(caught.value) and reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "form, share",
    [
        *((f, share) for f in CHECKED for share in (0.999, 0.5, 0.05)),
        # Decoders may leave out the last bytes of an MP3.
        *(("mp3", share) for share in (0.95, 0.5, 0.05)),
    ],
)
def test_read_audio_never_reads_a_cut_file_as_whole(tmp_path, form, share):
    path = tmp_path / f"a.{form}"
    soundfile.write(path, noise(160000), 16000)
    assert len(read_audio(path)) == 160000
    with pytest.raises(AudioError):
        read_audio(cut(path, share))


def test_read_audio_reads_wav_files_that_were_written_to_a_pipe(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, noise(16000), 16000)
    data = bytearray(path.read_bytes())
    at = data.index(b"data") + 4
    data[4:8] = data[at : at + 4] = struct.pack("<I", 0xFFFFFFFF)
    path.write_bytes(data)
    assert len(read_audio(path)) == 16000


def test_summary_warns_about_silence_and_overload(tmp_path):
    for name, samples, warning in (
        ("silent", np.zeros(4000), "silent"),
        ("constant", np.full(4000, 0.25), "silent"),
        ("loud", noise(4000) * 100, "overload"),
        ("fine", noise(4000), None),
    ):
        path = tmp_path / f"{name}.wav"
        soundfile.write(path, samples, 16000, subtype="FLOAT")
        summary = AudioSummary()
        assert sum(map(len, read_blocks(path, summary))) == summary.num_samples == 4000
        assert (summary.warning or "").split(":")[0] == (warning or "")


def test_audio_error_survives_a_process_boundary():
    error = pickle.loads(pickle.dumps(AudioError("a.wav", "empty: 0 bytes")))
    assert (error.path, error.reason) == ("a.wav", "empty: 0 bytes")


def test_read_audio_reads_real_clips():
    clips = sorted(real_audio("esc50-mini").glob("audio/*.flac"))[:5]
    assert all(len(read_audio(clip)) == 80000 for clip in clips)
    digits = sorted(real_audio("fsdd-mini").glob("recordings/*.flac"))[:5]
    for clip in digits:  # 8 kHz
        assert len(read_audio(clip)) == 2 * soundfile.info(str(clip)).frames
