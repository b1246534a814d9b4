"""Odd files: all audio of a file is read, or one line says why not and what to do.

Reference values are the signals that the files were made of.
"""

import io
import os
import struct
import threading

import numpy as np
import pytest
import soundfile

from espnet2_sslam import audio
from espnet2_sslam.audio import (
    AudioError,
    AudioSummary,
    find_audio,
    is_single,
    read_audio,
    source_blocks,
)

RATE = 16000
TONE = (0.3 * np.sin(2 * np.pi * 500 * np.arange(4 * RATE) / RATE)).astype(np.float32)


def encoded(form, subtype=None, wave=TONE):
    file = io.BytesIO()
    soundfile.write(file, wave, RATE, format=form, subtype=subtype)
    return file.getvalue()


def wav(size=None, riff=None, behind=b""):
    """A 16-bit WAV of 4 s, whose headers may say another size."""
    data = encoded("WAV", "PCM_16")
    size = len(data) - 44 if size is None else size
    riff = (size + 36) & 0xFFFFFFFF if riff is None else riff
    head = data[:4] + struct.pack("<I", riff) + data[8:40] + struct.pack("<I", size)
    return head + data[44:] + behind


def rf64(size):
    data = bytearray(encoded("RF64", "PCM_16"))
    at = data.index(b"ds64") + 16
    data[at : at + 8] = struct.pack("<Q", size)
    return bytes(data)


def unknown_flac():
    data = bytearray(encoded("FLAC"))
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    return bytes(data)


def ogg_without_end():
    data = bytearray(encoded("OGG", "VORBIS"))
    start = data.rfind(b"OggS")
    data[start + 5] &= ~4
    data[start + 22 : start + 26] = bytes(4)
    checksum = 0
    for byte in data[start:]:
        checksum ^= byte << 24
        for _ in range(8):
            polynomial = 0x04C11DB7 if checksum >> 31 else 0
            checksum = (checksum << 1) & 0xFFFFFFFF ^ polynomial
    data[start + 22 : start + 26] = struct.pack("<I", checksum)
    return bytes(data)


def by_ffmpeg(codec, form, rate=RATE):
    """The tone in a container of FFmpeg's."""
    av = pytest.importorskip("av", reason="PyAV is not installed")
    file = io.BytesIO()
    with av.open(file, "w", format=form) as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        stream.bit_rate = 64000
        frame = av.AudioFrame.from_ndarray(TONE[None], format="fltp", layout="mono")
        frame.sample_rate = RATE
        to_codec = av.AudioResampler(stream.codec_context.format.name, "mono", rate)
        fifo = av.AudioFifo()
        for part in [*to_codec.resample(frame), *to_codec.resample(None)]:
            fifo.write(part)
        size = stream.codec_context.frame_size or 1024
        while (part := fifo.read(size, partial=True)) is not None:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return file.getvalue()


@pytest.fixture
def without_av(monkeypatch):
    find = audio.importlib.util.find_spec
    monkeypatch.setattr(
        audio.importlib.util, "find_spec", lambda name: name != "av" and find(name)
    )


def is_tone(samples, seconds):
    """The tone, so long, with its level; codecs add up to a fifth of a second."""
    assert seconds - 0.01 <= len(samples) / RATE < seconds + 0.2
    middle = samples[3000 : int(3.5 * RATE)]
    spectrum = np.abs(np.fft.rfft(middle))
    assert abs(spectrum.argmax() * RATE / len(middle) - 500) < 1
    assert np.sqrt(2 * (middle**2).mean()) == pytest.approx(0.3, rel=0.05)


# What libsndfile reads alone, once its header is not believed word by word
READ = {
    "size 0x7FFFFFFF.wav": lambda: wav(0x7FFFFFFF),
    "size 0x80000000.wav": lambda: wav(0x80000000),
    "size 0xFFFFFFDB.wav": lambda: wav(0xFFFFFFDB),
    "size 0xFFFFFF00.wav": lambda: wav(0xFFFFFF00),
    "size of the file.wav": lambda: wav(len(wav())),
    "a byte too many.wav": lambda: wav(len(wav()) - 44 + 1),
    "closed never.wav": lambda: wav(0, riff=8),
    "zeros behind.wav": lambda: wav(behind=bytes(300)),
    "junk behind.wav": lambda: wav(behind=b"\xff" * 4096),
    "junk behind.au": lambda: encoded("AU", "PCM_16") + b"\xff" * 4000,
    "a list behind.wav": lambda: wav(behind=b"LIST\4\0\0\0INFO"),
    "no end flag.ogg": ogg_without_end,
    "zeros behind.ogg": lambda: encoded("OGG", "VORBIS") + bytes(5000),
    "named wrongly.mp3": lambda: encoded("WAV", "PCM_16"),
}
# What only PyAV reads whole: maker, seconds, and the line without PyAV
READ_BY_AV = {
    "joined.ogg": (
        lambda: encoded("OGG", "VORBIS") * 2,
        8,
        "a second recording begins",
    ),
    "joined.opus": (lambda: encoded("OGG", "OPUS") * 2, 8, "a second recording begins"),
    "joined.flac": (lambda: encoded("FLAC") * 2, 8, "a second recording begins"),
    "joined.mp3": (lambda: encoded("MP3") * 2, 8, "a second recording begins"),
    "wrapped.wav": (lambda: wav(RATE), 4, "112000 bytes stand behind"),
    "wrapped.rf64": (lambda: rf64(RATE), 4, "bytes stand behind"),
    "size 0.wav": (lambda: wav(0), 4, "unfinished: the header counts no audio"),
    "unknown.flac": (unknown_flac, 4, "unknown length"),
    "flac in.ogg": (lambda: by_ffmpeg("flac", "ogg"), 4, "not audio"),
    "phone.m4a": (lambda: by_ffmpeg("aac", "ipod"), 4, "not audio"),
    "phone.aac": (lambda: by_ffmpeg("aac", "adts"), 4, "not audio"),
    "browser.webm": (lambda: by_ffmpeg("libopus", "webm", 48000), 4, "not audio"),
    "old.wma": (lambda: by_ffmpeg("wmav2", "asf", 44100), 4, "not audio"),
    "film.mov": (lambda: by_ffmpeg("pcm_s16le", "mov"), 4, "not audio"),
}
REFUSED = {
    "joined.wav": (lambda: wav() + wav(), "a second file begins at byte 128044; split"),
    "twice the size.wav": (lambda: wav(256000), "truncated.* ffmpeg -i IN OUT.wav"),
    "page.au": (lambda: b"<html><body>404</body></html>\n" * 200, "not audio"),
    "page.vox": (lambda: b"<html><body>404</body></html>\n" * 200, "not audio"),
    "text.mp3": (lambda: b"not an MP3\n" * 2000, "not audio: Format not recognised"),
    "speech.raw": (lambda: bytes(32000), "not audio: Format not recognised"),
    "half.ogg": (lambda: encoded("OGG", "VORBIS")[:5000], "last page"),
    "half.au": (lambda: encoded("AU", "PCM_16")[:9000], "truncated: 9000 of"),
    "half.m4a": (lambda: by_ffmpeg("aac", "ipod")[:9000], "not audio"),
    "half.webm": (
        lambda: (w := by_ffmpeg("libopus", "webm", 48000))[: len(w) // 2],
        "truncated: the header says 4.0",
    ),
    "unknown and cut.flac": (lambda: unknown_flac()[:20000], "unknown length|damaged"),
    "float.wav": (
        lambda: encoded("WAV", "FLOAT", 10000 * TONE),
        "overload: peak .*divide integers .* by their full scale",
    ),
}


@pytest.mark.parametrize("name", READ)
def test_a_whole_file_is_read_whatever_its_header_says(tmp_path, name, without_av):
    (tmp_path / name).write_bytes(READ[name]())
    is_tone(read_audio(tmp_path / name), 4)


@pytest.mark.parametrize("name", READ_BY_AV)
def test_what_soundfile_cannot_read_whole_pyav_reads(tmp_path, name):
    pytest.importorskip("av", reason="PyAV is not installed")
    make, seconds, _ = READ_BY_AV[name]
    (tmp_path / name).write_bytes(make())
    is_tone(read_audio(tmp_path / name), seconds)
    with open(tmp_path / name, "rb") as file:  # an object of the same bytes
        samples = np.concatenate(list(source_blocks(file, "a", None)))
    is_tone(samples, seconds)


@pytest.mark.parametrize("name", READ_BY_AV)
def test_without_pyav_one_line_says_why_and_what_to_do(tmp_path, name, without_av):
    make, _, words = READ_BY_AV[name]
    (tmp_path / name).write_bytes(make())
    with pytest.raises(AudioError, match=words) as caught:
        read_audio(tmp_path / name)
    assert "ffmpeg -i IN OUT.wav" in str(caught.value)
    assert "pip install av" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("av_there", [True, False])
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_whole_file_is_refused_in_one_line(
    tmp_path, name, av_there, request
):
    if name.endswith((".webm", ".m4a")) or av_there:
        pytest.importorskip("av", reason="PyAV is not installed")
    make, words = REFUSED[name]
    (tmp_path / name).write_bytes(make())
    if not av_there:
        request.getfixturevalue("without_av")
        words = "|".join([words, "not audio"] if "webm" in name else [words])
    with pytest.raises(AudioError, match=words) as caught:
        read_audio(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["junk behind.wav", "junk behind.au"])
def test_what_is_left_out_behind_the_audio_is_said(tmp_path, caplog, name):
    (tmp_path / name).write_bytes(READ[name]())
    assert len(read_audio(tmp_path / name)) == 4 * RATE
    assert "bytes behind the audio are left out" in caplog.text


def test_a_chain_of_two_rates_says_what_it_is(tmp_path):
    pytest.importorskip("av", reason="PyAV is not installed")
    file = io.BytesIO()
    soundfile.write(file, TONE, 22050, format="OGG")
    (tmp_path / "a.ogg").write_bytes(encoded("OGG", "VORBIS") + file.getvalue())
    with pytest.raises(AudioError, match="begins at byte .* .split it there.; FFmpeg"):
        read_audio(tmp_path / "a.ogg")


def test_a_playlist_does_not_have_other_files_read(tmp_path):
    (tmp_path / "secret.wav").write_bytes(wav())
    for name, text in (
        ("list.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\nsecret.wav\n"),
        ("list.ffconcat", "ffconcat version 1.0\nfile secret.wav\n"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(AudioError, match="not audio"):
            read_audio(tmp_path / name)


def test_a_pipe_and_a_folder_are_named_for_what_they_are(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    with pytest.raises(AudioError, match="not a file but a pipe or device"):
        read_audio(tmp_path / "pipe.wav")
    with pytest.raises(AudioError, match="a folder: name its files"):
        read_audio(tmp_path)


def test_an_object_that_cannot_seek_is_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(wav(),))
    writer.start()
    with open(tmp_path / "pipe", "rb") as file:
        is_tone(np.concatenate(list(source_blocks(file, "a", None))), 4)
    writer.join()


@pytest.mark.parametrize(
    "peak, word", [(1.9, None), (2.1, "overload"), (99, "overload")]
)
def test_one_rule_for_loud_samples_in_files_and_arrays(tmp_path, caplog, peak, word):
    wave = TONE / 0.3 * peak
    soundfile.write(tmp_path / "a.wav", wave, RATE, subtype="FLOAT")
    summary = AudioSummary()
    samples = np.concatenate(list(audio.read_blocks(tmp_path / "a.wav", summary)))
    np.testing.assert_array_equal(samples, wave)  # neither limited nor scaled
    assert (summary.warning or "").startswith(word or "")
    assert bool(summary.warning) == bool(word)
    assert len(list(source_blocks(wave, "a", RATE))) == 1
    assert (word or "") in caplog.text and bool(caplog.text) == bool(word)


def test_float_arrays_in_the_range_of_integers_are_refused():
    with pytest.raises(AudioError, match="divide integers"):
        list(source_blocks(TONE * 32768, "a", RATE))


def test_items_of_hugging_face_datasets_are_read(tmp_path):
    class Decoder:
        def get_all_samples(self):
            return type("Samples", (), {"data": TONE[None], "sample_rate": RATE})

    (tmp_path / "a.wav").write_bytes(wav())
    for item in (
        {"bytes": wav(), "path": None},
        {"bytes": None, "path": str(tmp_path / "a.wav")},
        {"array": TONE, "sampling_rate": RATE},
        Decoder(),
        (TONE, RATE),
    ):
        assert is_single(item)
        is_tone(np.concatenate(list(source_blocks(item, "a", None))), 4)


def test_rows_of_an_array_are_clips_unless_a_rate_comes_with_it():
    batch = np.stack([TONE, 0 * TONE])
    assert not is_single(batch) and is_single(batch.T) and is_single((batch, RATE))
    (samples,) = source_blocks((batch, RATE), "a", None)
    np.testing.assert_allclose(samples, TONE / 2, atol=1e-7)


def test_folders_follow_links_end_loops_and_name_what_is_left_out(tmp_path, without_av):
    for name in ("a/x.wav", "a/y.WAVE", "a/z.m4a", "real/b.flac", "a/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a/linked").symlink_to(tmp_path / "real")
    (tmp_path / "real/loop").symlink_to(tmp_path / "a")
    (tmp_path / "a/README").symlink_to(tmp_path / "gone")
    left_out = audio.Counter()
    paths = find_audio(tmp_path / "a", left_out)
    names = [os.path.relpath(path, tmp_path) for path in paths]
    assert names == ["a/linked/b.flac", "a/x.wav", "a/y.WAVE"]
    assert left_out == {".m4a": 1, "dangling links": 1}
    words = audio.left_out_words(left_out)
    assert "1 .m4a, 1 dangling links" in words and "ffmpeg" in words
