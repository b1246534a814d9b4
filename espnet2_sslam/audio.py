"""Audio: which files are audio, and any of it as mono float32 samples at 16 kHz.

soundfile reads (wav, flac, mp3, ogg and the rest of libsndfile); where it cannot, or
would hand out a part without a word, PyAV decodes as FFmpeg does, if it is installed.
Channels are averaged, `resampler` goes to 16 kHz in blocks. A file that claims more
audio than it holds is an error.
"""

import importlib.util
import io
import logging
import math
import os
import re
import struct
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from numbers import Real
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import soundfile

from espnet2_sslam.config import (
    INTEGER_PEAK,
    MAX_PEAK,
    full_scale,
    peak_problem,
    to_float,
    warn_of_peak,
)
from espnet2_sslam.resampler import MAX_RATE, MIN_RATE, resampled
from espnet2_sslam.units import FRAME_LENGTH, SAMPLE_RATE

# What libsndfile decodes, by the usual suffixes; a folder's other files are no audio.
_DECODED = """.wav .wave .bwf .rf64 .w64 .flac .ogg .oga .opus .mp3 .mp2 .aif .aiff
.aifc .au .snd .caf .sph .nist .voc .avr .paf .pvf .ircam .sf .iff .svx .8svx"""
# Audio that PyAV decodes; without it they are left out of folders, and counted.
_OTHER = ".m4a .m4b .aac .mp4 .wma .webm .mka .mkv .amr .ape .wv .ac3 .3gp .mpc"
OTHER_SUFFIXES = frozenset(_OTHER.split())
SUFFIXES = frozenset(_DECODED.split()) | OTHER_SUFFIXES
# FFmpeg's names of the containers that PyAV may open: one that names other files (a
# playlist, a concatenation) would have them read.
_CONTAINERS = """wav w64 aiff au caf flac ogg mp3 aac mov,mp4,m4a,3gp,3g2,mj2 asf amr
matroska,webm ape wv ac3 eac3 mpc mpc8"""
NAMES = ("path", "file")
BLOCK_FRAMES = 1 << 18  # frames read at once, 16 s at 16 kHz: bounds the memory
SILENCE_RANGE = 2.0**-15  # max - min of a silent clip: one step of 16-bit audio
UNKNOWN_FRAMES = 1 << 48  # libsndfile's frame count when the header has none
MP3_SLACK = 2 * 1152  # frames that an MP3's header may count more than decoders give
MP3_HEADER = 1 << 16  # bytes at the beginning in which an MP3 counts its frames
AV_SLACK = 0.25  # seconds that a container may count more than its decoder gives
MAX_CHANNELS = 8  # of an array: more rows than that are taken for a batch of clips

AudioFile = str | os.PathLike | BinaryIO
_CUT = re.compile(r"(.*)#t=([\d.e-]+),(-?[\d.e-]+)", re.DOTALL)


class AudioError(ValueError):
    """A file that cannot be used; `path`, and `reason` as `<category>: <detail>`."""

    def __init__(self, path: str | Path, reason: str):
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason

    def __reduce__(self):
        return AudioError, (self.path, self.reason)


@dataclass
class AudioSummary:
    """What was met while a file was read to its end."""

    rate: float = SAMPLE_RATE  # Hz, of the file
    num_samples: int = 0  # at 16 kHz
    lowest: float = np.inf
    highest: float = -np.inf

    def add(self, block: np.ndarray) -> None:
        """Count one more block of samples."""
        if len(block):
            self.num_samples += len(block)
            self.lowest = min(self.lowest, float(block.min()))
            self.highest = max(self.highest, float(block.max()))

    @property
    def peak(self) -> float:
        """The largest absolute value."""
        return max(-self.lowest, self.highest)

    @property
    def warning(self) -> str | None:
        """Why the clip is doubtful, as `<category>: <detail>`, or None."""
        if self.highest - self.lowest <= SILENCE_RANGE:
            return "silent: every sample has the same value"
        return peak_problem(self.peak)


def cut_name(path: str | Path, start: float, end: float) -> str:
    """What stands for a part of a file, as in web pages: `<path>#t=<start>,<end>`.

    Args:
        path: The file.
        start, end: Seconds; an `end` of -1 is the end of the file.

    Raises:
        ValueError: Not 0 <= start < end.
    """
    if (start, end) == (0, -1):
        return str(path)
    if not 0 <= start < (math.inf if end == -1 else end) <= math.inf:
        raise ValueError(f"need 0 <= start < end in seconds, got {start} and {end}")
    return f"{path}#t={start},{end}"


def split_cut(name: str) -> tuple[str, float | None, float | None]:
    """Path, start and end in seconds of what `cut_name` made; None of a whole file."""
    match = _CUT.fullmatch(name)
    if not match or os.path.exists(name):
        return name, None, None
    return match[1], float(match[2]), float(match[3])


def read_audio(path: str | Path, resampler: str = "sinc") -> np.ndarray:
    """Read a whole file as mono float32 at 16 kHz, (N,).

    Raises:
        AudioError: See `read_blocks`.
    """
    return np.concatenate(list(read_blocks(path, resampler=resampler)))


def read_blocks(
    source: AudioFile,
    summary: AudioSummary | None = None,
    name: str | None = None,
    resampler: str = "sinc",
) -> Iterator[np.ndarray]:
    """Blocks of mono float32 samples at 16 kHz, with the memory of a few seconds.

    Args:
        source: Audio file of any format, rate and number of channels: its path (of a
            part of it the `cut_name`, for which only that part is read), or an object
            open for reading bytes. Of an object everything is read, wherever
            it stands (in memory at once if it cannot seek), and it is left open.
        summary: Filled on the way; complete when the last block is out. Without one
            its warning about the peak is logged.
        name: What errors call the file; by default its path or the object's name.
        resampler: One of `config.RESAMPLERS`.

    Raises:
        AudioError: Missing, empty, not audio, truncated, with more audio than can be
            read, without or with less than 25 ms of audio, with NaN, infinite or
            integer samples. What has come out before is then to be thrown away.
    """
    if not isinstance(source, (str, os.PathLike)):
        name = name or str(getattr(source, "name", "file object"))
        file = _seekable(name, source)
        yield from _mono_blocks(name, *_decoded(name, file), resampler, summary)
        return
    name = name or str(source)
    source, *cut = split_cut(os.fspath(source))
    if not os.path.exists(source):
        raise AudioError(name, "missing: there is no such file")
    if os.path.isdir(source):
        raise AudioError(
            name,
            "missing: a folder: name its files (as audio.collect_files does)",
        )
    if not os.path.isfile(source):
        raise AudioError(
            name,
            "missing: not a file but a pipe or device; write a pipe's audio "
            "to a file first",
        )
    try:
        with open(source, "rb", buffering=0) as file:
            decoded = _decoded(name, file, *cut)
            yield from _mono_blocks(name, *decoded, resampler, summary)
    except OSError as error:
        raise AudioError(name, f"unreadable: {error.strerror or error}") from None


def read_part(
    path: str, choose: Callable[[int], tuple[int, int]]
) -> tuple[np.ndarray, int]:
    """A part of a file as it is stored, float32 (N,) or (N, channels), and its rate.

    Only that part is decoded, where libsndfile finds its place: not in MP3, Ogg and
    files that do not say how long they are.

    Args:
        path: Of a file that libsndfile reads.
        choose: The file's frames -> the first frame and the end of the part.

    Raises:
        AudioError: Truncated: less is there than the header says.
        soundfile.SoundFileError: Missing, not audio or damaged.
    """
    with soundfile.SoundFile(path) as sound:
        if not _finds_its_place(sound) or sound.frames >= UNKNOWN_FRAMES:
            samples = sound.read(dtype="float32")
            start, end = choose(len(samples))
            return samples[start:end], sound.samplerate
        start, end = choose(sound.frames)
        if start:
            sound.seek(start)
        if sound.subtype == "PCM_16":  # libsndfile's own way to floats is slower
            samples = sound.read(end - start, dtype="int16")
            samples = np.multiply(samples, np.float32(2**-15), dtype=np.float32)
        else:
            samples = sound.read(end - start, dtype="float32")
        if len(samples) < end - start and (start, end) != (0, sound.frames):
            raise AudioError(
                path,
                f"truncated: the header says {sound.frames} frames, "
                f"{start + len(samples)} are there",
            )
        return samples, sound.samplerate


def count_samples(path: str) -> int:
    """Frames of a file by its header, or by decoding it where that does not say.

    Raises:
        soundfile.SoundFileError: Missing or not audio.
    """
    with soundfile.SoundFile(path) as sound:
        if sound.frames < UNKNOWN_FRAMES:
            return sound.frames
        return len(sound.read(dtype="float32"))


def _finds_its_place(sound: soundfile.SoundFile) -> bool:
    """Whether libsndfile 1.2 can seek: not in MP3 and, near the end, Ogg."""
    return not (sound.subtype.startswith("MPEG") or sound.format == "OGG")


def duration(source: str) -> float:
    """Seconds of a file or of a part of it (`cut_name`).

    The header's number where it counts the samples; other files are decoded.

    Raises:
        AudioError: See `read_blocks`.
    """
    path, start, end = split_cut(source)
    if start is not None and end is not None and end != -1:
        return end - start
    frames, rate = 0, SAMPLE_RATE
    try:
        with open(path, "rb", buffering=0) as file, soundfile.SoundFile(path) as sound:
            frames, rate = _promised_frames(file, sound), sound.samplerate
    except (soundfile.SoundFileError, OSError):
        pass  # PyAV may read it, or the next line says why not
    if not frames:
        frames, rate = sum(map(len, read_blocks(path))), SAMPLE_RATE
    return frames / rate - (start or 0)


def is_formatted(path: str | Path) -> bool:
    """Whether a readable file is a 16 kHz mono WAV or FLAC already."""
    info = soundfile.info(str(path))
    return (info.samplerate, info.channels) == (SAMPLE_RATE, 1) and info.format in (
        "WAV",
        "WAVEX",
        "FLAC",
    )


def _mono_blocks(
    name: str,
    rate: Any,
    blocks: Iterator[np.ndarray],
    resampler: str,
    summary: AudioSummary | None = None,
) -> Iterator[np.ndarray]:
    """Mono blocks (n,) at 16 kHz of float32 blocks (n, channels) at another rate."""
    if isinstance(rate, bool) or not (
        isinstance(rate, Real) or (_is_array(rate) and rate.ndim == 0)
    ):
        raise AudioError(name, f"no rate: need a number of Hz, got {rate!r}")
    if not MIN_RATE <= float(rate) <= MAX_RATE:
        raise AudioError(
            name,
            f"no rate: need {MIN_RATE} to {MAX_RATE} samples per second (Hz, not kHz), "
            f"got {float(rate):g}",
        )
    unasked = summary is None
    summary = AudioSummary() if summary is None else summary
    summary.rate = float(rate)
    for block in resampled(_averaged(name, blocks), float(rate), resampler):
        summary.add(block)
        if summary.peak > INTEGER_PEAK:
            raise AudioError(name, str(peak_problem(summary.peak)))
        yield block
    if summary.num_samples < FRAME_LENGTH:
        raise AudioError(
            name,
            f"too short: {summary.num_samples} samples at 16 kHz, needs {FRAME_LENGTH} "
            "(25 ms)",
        )
    if unasked and summary.peak > MAX_PEAK:
        warn_of_peak(name, summary.peak)


def _averaged(name: str, blocks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """The mean over the channels (n,) of blocks (n, channels), checked to be finite."""
    frames = 0
    for block in blocks:
        if not np.isfinite(block).all():
            bad = frames + int(np.flatnonzero(~np.isfinite(block).all(1))[0])
            raise AudioError(name, f"not finite: NaN or infinity at frame {bad}")
        frames += len(block)
        yield block.mean(1) if block.shape[1] > 1 else block[:, 0]


# Decoders: a file's bytes -> its rate and blocks (n, channels)

Decoded = tuple[float, Iterator[np.ndarray]]


def _seekable(name: str, file: BinaryIO) -> BinaryIO:
    """The object itself, or what it holds where it cannot seek."""
    if not hasattr(file, "seek") or (hasattr(file, "seekable") and not file.seekable()):
        file = io.BytesIO(file.read())
    if not isinstance(file.read(0), bytes):
        raise AudioError(name, "not audio: the object gives text, open it with 'rb'")
    return file


def _decoded(
    name: str, file: BinaryIO, start: float | None = None, end: float | None = None
) -> Decoded:
    """Rate and blocks of an open file, by soundfile or, where that fails, by PyAV."""
    doubt = _check_headers(name, file)
    if not doubt:
        file.seek(0)
        try:
            # Of a real file the descriptor: its name would have libsndfile guess.
            source = os.dup(file.fileno()) if isinstance(file, io.FileIO) else file
            sound = soundfile.SoundFile(source, closefd=True)
        except (soundfile.SoundFileError, TypeError) as error:
            doubt = f"not audio: {_detail(error)}"
        else:
            if sound.frames == 0:
                raise AudioError(
                    name, "no audio: the file has a header and zero frames"
                )
            if sound.frames < UNKNOWN_FRAMES or sound.format != "FLAC":
                rate = sound.samplerate
                if start is None:
                    return rate, _soundfile_blocks(name, file, sound)
                first = round(start * rate) if _finds_its_place(sound) else 0
                blocks = _soundfile_blocks(name, file, sound, first)
                return rate, _cut(name, blocks, rate, first, start, end)
            sound.close()  # libsndfile fails at the end of such a file
            doubt = "unknown length: the header counts no samples"
    if not importlib.util.find_spec("av"):
        raise AudioError(
            name,
            f"{doubt}; if it plays elsewhere, convert it (ffmpeg -i IN OUT.wav) or "
            "install PyAV (pip install av)",
        )
    rate, blocks = _av_decoded(name, file, doubt)
    return rate, blocks if start is None else _cut(name, blocks, rate, 0, start, end)


def _cut(
    name: str,
    blocks: Iterator[np.ndarray],
    rate: float,
    position: int,
    start: float,
    end: float | None,
) -> Iterator[np.ndarray]:
    """The part from `start` to `end` of blocks that begin at frame `position`."""
    first = round(start * rate)
    last = math.inf if end in (None, -1) else round(end * rate)
    for block in blocks:
        low, high = max(first - position, 0), min(last - position, len(block))
        if low < high:
            yield block[int(low) : int(high)]
        position += len(block)
        if position >= last:
            return
    # A table may round up to a tenth of a second.
    if position < (first if last == math.inf else last - 0.1 * rate):
        raise AudioError(
            name, f"cut: it ends at {end} s, the file has {position / rate:.3f} s"
        )


def _detail(error: Exception) -> str:
    """The library's message without the path, which the caller names."""
    text = getattr(error, "error_string", None) or getattr(error, "strerror", None)
    return " ".join(str(text or error).split()).rstrip(".")


def _soundfile_blocks(
    name: str, file: BinaryIO, sound: soundfile.SoundFile, first: int = 0
) -> Iterator[np.ndarray]:
    """Blocks (n, channels) of the file's own rate; checks their number."""
    expected = _promised_frames(file, sound) - first
    # The channels share the block, so that many of them need no more memory.
    size = max(1024, BLOCK_FRAMES // sound.channels)
    frames = 0
    with sound:
        try:
            if first:
                sound.seek(min(first, sound.frames))
            while len(block := sound.read(size, dtype="float32", always_2d=True)):
                frames += len(block)
                yield block
        except soundfile.SoundFileError as error:
            reason = f"damaged or truncated: {_detail(error)}"
            raise AudioError(name, reason) from None
    if frames < expected:
        raise AudioError(
            name,
            f"truncated: the header says {expected + first} frames, {frames + first} "
            "are there",
        )


def _promised_frames(file: BinaryIO, sound: soundfile.SoundFile) -> int:
    """Frames that the header counts; 0 where the number is a mere estimate."""
    if sound.frames >= UNKNOWN_FRAMES:
        return 0
    if not sound.subtype.startswith("MPEG"):
        return sound.frames
    position = file.tell()  # where libsndfile goes on, if it reads the object
    file.seek(0)
    header = file.read(MP3_HEADER)
    file.seek(position)
    counted = any(tag in header for tag in (b"Xing", b"Info", b"VBRI"))
    return sound.frames - MP3_SLACK if counted else 0


def _av_decoded(name: str, file: BinaryIO, doubt: str) -> Decoded:
    """Rate and blocks of a file that soundfile cannot read; `doubt` says why."""
    import av
    from av.error import FFmpegError

    file.seek(0)
    # WAV: the bytes that are there count, not the size in a header that is in doubt.
    options = {"format_whitelist": ",".join(_CONTAINERS.split()), "ignore_length": "1"}
    try:
        container = av.open(file, options=options)
        stream = container.streams.audio[0]
        if stream.codec_context is None:
            raise ValueError("no decoder for this codec")
        blocks = _av_blocks(name, container, stream, doubt)
        first = next(blocks, None)
    except AudioError:
        raise
    except (FFmpegError, IndexError, ValueError):
        raise AudioError(name, f"{doubt}; FFmpeg cannot read it either") from None
    if first is None:  # some text passes for an empty container
        raise AudioError(name, f"{doubt}; FFmpeg finds no audio in it either")
    return stream.rate, chain([first], blocks)


def _av_blocks(
    name: str, container: Any, stream: Any, doubt: str
) -> Iterator[np.ndarray]:
    """Blocks (n, channels) of one stream, checked against the container's length."""
    import av

    to_float = av.AudioResampler(format="fltp")
    rate, frames, waiting, size = stream.rate, 0, [], 0
    with container:
        for frame in _frames(name, container, stream, doubt):
            if frame.sample_rate != rate or (
                waiting and frame.layout.nb_channels != len(waiting[0])
            ):
                raise AudioError(
                    name,
                    "changes: another rate or number of channels in its middle; "
                    "convert it with ffmpeg -i IN OUT.wav",
                )
            frame.pts = None  # containers round time stamps, which it would refuse
            for part in to_float.resample(frame):
                waiting.append(part.to_ndarray())
                size += waiting[-1].size
                frames += part.samples
            if size >= BLOCK_FRAMES:
                yield np.concatenate(waiting, 1).T
                waiting, size = [], 0
        # Exact indexes only: elsewhere the duration is an estimate.
        indexed = container.format.name.startswith(("mov", "matroska"))
        expected = (container.duration or 0) / 1e6 if indexed else 0
    if waiting:
        yield np.concatenate(waiting, 1).T
    if frames and frames / rate < expected - AV_SLACK:
        raise AudioError(
            name,
            f"truncated: the header says {expected:.2f} s, {frames / rate:.2f} s are "
            "there",
        )


def _frames(name: str, container: Any, stream: Any, doubt: str) -> Iterator[Any]:
    """The frames of a stream; a fault behind the first one is damage or the doubt."""
    from av.error import FFmpegError

    frames, count = container.decode(stream), 0
    while True:
        try:
            frame = next(frames, None)
        except FFmpegError as error:
            if not count:
                raise
            if doubt.startswith("not audio"):
                doubt = "damaged or truncated: get it again"
            reason = f"{doubt}; FFmpeg stops after {count} packets ({_detail(error)})"
            raise AudioError(name, reason) from None
        if frame is None:
            return
        count += 1
        yield frame


# Headers that do not tell the truth. FLAC and MP3 show it when they are decoded; the
# others name their length, and libsndfile does not compare it with the bytes there.

# By the first four bytes: a chunk's name and length, the first chunk, that of the audio
CHUNKS = {
    b"RIFF": ("<4sI", 12, b"data"),
    b"RF64": ("<4sI", 12, b"data"),
    b"RIFX": (">4sI", 12, b"data"),
    b"FORM": (">4sI", 12, b"SSND"),  # AIFF
    b"caff": (">4sq", 8, b"data"),
}
# Where two files were joined (`cat a.mp3 b.mp3`), the second's header stands in the
# middle. A frame of an MP3 without such a header is read on by the decoder.
_XING = rb"\xff[\xe2-\xff][\x10-\xef].\0{9,32}(?:Xing|Info)"
SECOND = {
    b"fLaC": rb"fLaC[\0\x80]\0\0\x22",
    b"OggS": rb"OggS\0[\0-\x07]",
    b"ID3": _XING,
    b"\xff": _XING,
}


def _check_headers(name: str, file: BinaryIO) -> str | None:
    """Refuse an open file that is empty or ends before its headers say so.

    Returns:
        Why libsndfile would not read all of it, as `<category>: <detail>`, or None.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(24).ljust(24, b"\0")
    expected, doubt = 0, None
    if size == 0:
        raise AudioError(name, "empty: the file has 0 bytes")
    if head[:4] in CHUNKS:
        return _check_chunks(name, file, size, *CHUNKS[head[:4]])
    if head[:4] == b"OggS":
        _check_ogg(name, file)
    elif head[:4] == b"riff":  # W64: the size of the whole file
        (expected,) = struct.unpack("<Q", head[16:])
    elif head[:4] == b".snd":  # AU: where its audio begins, and how long it is
        start, length = struct.unpack(">II", head[4:12])
        expected = 0 if _is_unknown(length) else start + length
        if 0 < expected < size - 8:
            doubt = _check_rest(name, file, expected, length)
    if expected > size:
        raise AudioError(name, f"truncated: {size} of {expected} bytes are there")
    for magic in SECOND:
        if head.startswith(magic):
            return _second(file, magic)
    return doubt


def _is_unknown(length: int) -> bool:
    """Whether a program that pipes wrote this, not knowing the length."""
    return length in (0x7FFFF000, 0x7FFFFFFF, 0x80000000) or length >= 0xFFFFFF00


def _more(num_bytes: int) -> str:
    return (
        f"more audio: {num_bytes} bytes stand behind what the header counts (of a WAV, "
        "ffmpeg -ignore_length 1 -i IN OUT.wav reads all)"
    )


def _second(file: BinaryIO, magic: bytes) -> str | None:
    """Say where a second file begins behind the first, if one does."""
    ogg, begun = magic == b"OggS", False
    for start, page in _matches(file, SECOND[magic]):
        # Several streams that play together begin an Ogg file: at its head, together.
        is_first_page = not ogg or page[5] & 2
        if begun and is_first_page:
            place = f"begins at byte {start} (split it there)"
            return f"more audio: a second recording {place}"
        begun = begun or not ogg or not is_first_page
    return None


def _matches(file: BinaryIO, pattern: bytes) -> Iterator[tuple[int, bytes]]:
    """Place and bytes of what matches in an open file, a MiB at a time."""
    kept, position = b"", file.seek(0)
    while data := file.read(1 << 20):
        text = kept + data
        for match in re.finditer(pattern, text, re.DOTALL):
            if match.end() > len(kept):
                yield position - len(kept) + match.start(), match.group()
        position += len(data)
        kept = text[-64:]


def _check_chunks(
    name: str, file: BinaryIO, size: int, form: str, position: int, audio: bytes
) -> str | None:
    """Compare the length of the chunk of the audio to the bytes there."""
    wide_length, header = None, struct.calcsize(form)
    while position + header <= size:
        file.seek(position)
        chunk, length = struct.unpack(form, file.read(header))
        if chunk == b"ds64":  # 64-bit sizes: of the file, then of the audio
            wide_length = struct.unpack("<QQ", file.read(16).ljust(16, b"\0"))[1]
        if chunk != audio:
            position += header + max(length, 0)
            position += position % 2 if header == 8 else 0  # CAF does not pad
            continue
        rest = size - position - header
        if length == 0xFFFFFFFF and wide_length is not None:
            length = wide_length
        elif length < 0 or (header == 8 and _is_unknown(length)):
            return None  # up to the end of the file
        if length == 0 and rest > 8:
            file.seek(4)
            if file.read(4) == b"\x08\0\0\0":  # never closed: libsndfile knows that
                return None
            return f"unfinished: the header counts no audio, {rest} bytes are there"
        # Off by a byte, or the size of the file: what some recorders write.
        if length - rest >= 8 and length != size:
            detail = f"{rest} of {length} bytes of audio are there"
            raise AudioError(
                name,
                f"truncated: {detail}; if the file is whole, convert it: ffmpeg -i IN "
                "OUT.wav",
            )
        return _check_rest(name, file, min(position + header + length, size), length)
    raise AudioError(name, "truncated: the file ends before its audio")


def _check_rest(name: str, file: BinaryIO, end: int, length: int) -> str | None:
    """What stands behind the audio must be other chunks, or padding.

    More than the audio itself is audio that the header does not count, as behind a
    length that wrapped at 4 GiB; less is left out, with a warning.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(end)
    rest = file.read(1 << 16)
    begin = rest[:5].lstrip(b"\0")[:4]  # after a byte of padding
    if size - end <= 8 or not rest.strip(b"\0") or begin in (b"", b"id3 ", b"ID3\3"):
        return None
    if begin in CHUNKS:
        at = end + rest.index(begin)
        raise AudioError(
            name, f"more audio: a second file begins at byte {at}; split them"
        )
    if re.fullmatch(rb"[\w ]{4}", begin):
        return None
    if size - end >= length:
        return _more(size - end)
    logging.warning("%s: %d bytes behind the audio are left out", name, size - end)
    return None


def _check_ogg(name: str, file: BinaryIO) -> None:
    """The last Ogg page must be whole; that it ends the stream, not all writers say."""
    size = file.seek(0, os.SEEK_END)
    file.seek(size - min(size, 4 * 65_536))  # a page is shorter than 64 KiB
    data = file.read()
    start = data.rfind(b"OggS")
    page = data[start:]
    segments = page[26] if len(page) > 26 else 255
    length = 27 + segments + sum(page[27 : 27 + segments])
    if start < 0 or len(page) < length or page[length:].strip(b"\0"):
        raise AudioError(name, "truncated: the last page of the Ogg stream is missing")


# What a Python user may hand over: besides files also arrays, with their rate.


def is_single(audio: Any) -> bool:
    """Whether this is one clip, not several.

    A list, a tuple, another iterable or an array (B, N) holds several; paths, file
    objects, arrays (N,) or (N, channels), (array, rate), a decoder and the dictionaries
    of Hugging Face's datasets are one.
    """
    if _is_array(audio):
        return audio.ndim != 2 or audio.shape[1] <= MAX_CHANNELS < audio.shape[0]
    return (
        isinstance(audio, (str, bytes, os.PathLike, Mapping))
        or hasattr(audio, "read")
        or hasattr(audio, "get_all_samples")
        or _is_pair(audio)
        or not hasattr(audio, "__iter__")
    )


def source_name(source: Any, index: int) -> str:
    """What results and errors call a source: its path, or "audio <index>"."""
    if isinstance(source, (str, os.PathLike)):
        return str(os.fspath(source))
    name = getattr(source, "name", None) if hasattr(source, "read") else None
    if isinstance(source, Mapping):
        name = source.get("path")
    return name if isinstance(name, str) and name else f"audio {index}"


def source_blocks(
    source: Any, name: str, rate: float | None, resampler: str = "sinc"
) -> Iterator[np.ndarray]:
    """Blocks (n,) of mono float32 samples at 16 kHz.

    Args:
        source: A path, an object open for reading bytes, an array (NumPy or torch),
            (array, rate), or an item of Hugging Face's datasets: {"array": ...,
            "sampling_rate": ...}, {"bytes": ..., "path": ...} or a decoder.
        name: What errors call it.
        rate: Samples per second of arrays that come without their own rate.
        resampler: One of `config.RESAMPLERS`.

    Raises:
        AudioError: What `read_blocks` says, or an array that is not audio.
    """
    audio: Any = source
    if isinstance(source, Mapping) and "array" in source:
        audio, rate = source["array"], source.get("sampling_rate", rate)
    elif isinstance(source, Mapping) and (source.get("bytes") or source.get("path")):
        data = source.get("bytes")
        audio = io.BytesIO(data) if data else source["path"]
    elif read := getattr(
        source, "get_all_samples", None
    ):  # torchcodec's, of datasets 4
        samples = read()
        audio, rate = samples.data, samples.sample_rate
    elif _is_pair(source):
        audio, rate = source
    if isinstance(audio, (str, os.PathLike)) or hasattr(audio, "read"):
        return read_blocks(audio, name=name, resampler=resampler)
    if not _is_array(audio):
        raise AudioError(
            name,
            "not audio: need a path, a file object, an array with its rate or a list "
            f"of these, got {type(audio).__name__}",
        )
    if rate is None:
        raise AudioError(
            name, "no rate: an array needs its sampling rate, give rate=... in Hz"
        )
    return _array_blocks(audio, name, rate, resampler)


def _is_array(value: Any) -> bool:
    # A tensor by what it can do: this module must not import torch, 650 MiB.
    return isinstance(value, np.ndarray) or (
        hasattr(value, "detach") and hasattr(value, "ndim")  # buffers detach, too
    )


def _is_pair(value: Any) -> bool:
    """Whether the value is (array, rate), as soundfile and torchaudio return it."""
    return (
        isinstance(value, tuple)
        and len(value) == 2
        and _is_array(value[0])
        and not (_is_array(value[1]) and value[1].ndim)
    )


def _array_blocks(
    array: Any, name: str, rate: Any, resampler: str
) -> Iterator[np.ndarray]:
    """Blocks of an array."""
    if hasattr(array, "detach"):  # a tensor of any device and dtype
        array = array.detach().cpu()
        array = (array.float() if "bfloat16" in str(array.dtype) else array).numpy()
    try:
        full_scale(array.dtype.name)
    except ValueError as error:
        raise AudioError(name, str(error)) from None
    samples = _time_first(array, name)
    pieces = (
        to_float(samples[start : start + BLOCK_FRAMES], name)
        for start in range(0, len(samples), BLOCK_FRAMES)
    )
    return _mono_blocks(name, rate, pieces, resampler)


def _time_first(array: np.ndarray, name: str) -> np.ndarray:
    """An array (N,), (N, channels) or (channels, N) as (N, channels)."""
    if array.ndim == 1:
        return array[:, None]
    if array.ndim == 2 and array.shape[0] != array.shape[1]:
        short = int(array.shape[1] < array.shape[0])
        if 1 <= array.shape[short] <= MAX_CHANNELS:
            return array if short else array.T
    raise AudioError(
        name,
        f"shape: need an array (N,), (N, channels) or (channels, N) with 1 to "
        f"{MAX_CHANNELS} channels, got {array.shape}; give several clips as a list",
    )


# What a user of the commands names: files, folders and lists.


class AudioInput(NamedTuple):
    """An audio file and what it is called in the output."""

    path: str
    name: str


def collect_files(
    paths: Sequence[str], lists: Sequence[str] = (), names: str = "path"
) -> list[AudioInput]:
    """The audio files of files, folders and lists, in the order given, each once.

    Folders are searched to any depth, in sorted order, for the suffixes of `SUFFIXES`;
    hidden files and folders are left out, links are followed, each folder once. A file
    that is named itself is taken whatever it is called, even if it does not exist (the
    reader says so).

    Args:
        paths: Files and folders.
        lists: Text files with a path per line, "-" for standard input; or, if the name
            ends in .scp, with `<name> <path>` per line as in Kaldi. Relative paths
            are relative to the working directory, as Kaldi's are.
        names: "path": a file is called by its path as given (folder included), or by
            its name in the .scp; "file": by its last part only.

    Raises:
        ValueError: No file found, two files of one name, or a list with a bad line.
        OSError: A list or a folder that cannot be read.
    """
    if names not in NAMES:
        raise ValueError(f"names must be one of {', '.join(NAMES)}, got {names!r}")
    left_out: Counter = Counter()
    items: dict[str, AudioInput] = {}
    seen = set()
    real_folder = lru_cache(maxsize=4096)(os.path.realpath)
    for item, named in _everything(paths, lists, left_out):
        folder, last = os.path.split(item.path)
        place = real_folder(folder), last
        if not named and place in seen:
            continue
        seen.add(place)
        if names == "file" and not named:
            item = item._replace(name=last)
        other = items.setdefault(item.name, item)
        if other.path != item.path:
            raise ValueError(
                f"two files are called {item.name}: {other.path} and {item.path}; "
                "give them different names (a list NAME.scp has its own)"
                + (", or names with folders: --names path" if names == "file" else "")
            )
    if left_out:
        logging.warning("%s", left_out_words(left_out))
    if not items and not (paths or lists):
        raise ValueError("no audio given: name files, folders or a --list")
    if not items:
        raise ValueError(
            f"no audio files in {', '.join([*paths, *lists])}: folders are searched "
            "for .wav, .flac, .ogg, .mp3 and whatever else libsndfile reads (the model "
            "comes before the audio)"
        )
    return list(items.values())


def _everything(
    paths: Sequence[str], lists: Sequence[str], left_out: Counter
) -> Iterator[tuple[AudioInput, bool]]:
    """Each file that is named somehow, and whether its name is from a .scp."""
    for path in paths:
        yield from ((item, False) for item in _expand(path, left_out))
    for path in lists:
        for number, line in enumerate(_lines(path), start=1):
            if path.endswith(".scp"):
                yield _scp_entry(line, f"{path}, line {number}"), True
            elif line:
                yield from ((item, False) for item in _expand(line, left_out))


def decodable_suffixes() -> frozenset[str]:
    """Those of `SUFFIXES` that can be decoded here: all of them with PyAV."""
    return SUFFIXES if importlib.util.find_spec("av") else SUFFIXES - OTHER_SUFFIXES


def find_audio(
    folder: str | Path, left_out: Counter, also: Collection[str] = ()
) -> list[str]:
    """The audio files in a folder and those below it, sorted, by `SUFFIXES`.

    Hidden files and folders are left out, links are followed, each folder once.

    Args:
        folder: Where to look.
        left_out: Counts what sounds but cannot be decoded here, and dangling links,
            by suffix or kind; see `left_out_words`.
        also: Suffixes of further files to find, such as labels.

    Raises:
        OSError: A folder that cannot be read.
    """

    def fail(error: OSError) -> None:  # os.walk would pass over it
        raise error

    suffixes = decodable_suffixes().union(also)
    paths, visited = [], set()
    for place, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in visited:  # a loop of links would not end
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        if "records.jsonl" in files and "splits.txt" in files:
            left_out["folders that formatting made"] += 1
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            if name.startswith("."):
                continue
            suffix = os.path.splitext(name)[1].lower()
            path = os.path.join(place, name)
            if not os.path.exists(path):
                left_out["dangling links"] += 1
            elif suffix in suffixes:
                paths.append(path)
            elif suffix in SUFFIXES:
                left_out[suffix] += 1
    return sorted(paths)


def left_out_words(left_out: Counter) -> str:
    """Say what `find_audio` left out, and what to do."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(left_out.items()))
    text = f"left out of folders: {kinds}"
    if any(kind.startswith(".") for kind in left_out):
        text += (
            "; formats of FFmpeg are read with PyAV (pip install av) "
            "or after ffmpeg -i IN OUT.wav"
        )
    return text


def _expand(path: str, left_out: Counter) -> Iterator[AudioInput]:
    """The file itself, or the audio files in a folder and those below it."""
    path = path[2:] if path.startswith("./") and len(path) > 2 else path
    names = find_audio(path, left_out) if os.path.isdir(path) else [path]
    yield from (AudioInput(name, name) for name in names)


def _lines(path: str) -> list[str]:
    """The lines of a list, without the blanks around them."""
    data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    if b"\0" in data:
        raise ValueError(f"{path} is not a text file: --list needs a path per line")
    # Names that are not UTF-8 come back as the same bytes when the file is opened.
    text = data.decode("utf-8-sig", errors="surrogateescape")
    return [line.strip() for line in text.rstrip("\n").split("\n")]


def _scp_entry(line: str, where: str) -> AudioInput:
    """`<name> <path>` of a wav.scp."""
    name, _, path = line.partition("\t" if "\t" in line else " ")
    path = path.strip()
    if not path:
        raise ValueError(f"{where}: need `<name> <path>`, got {line!r}")
    if path.endswith("|"):
        raise ValueError(
            f"{where}: commands are not run, {path!r}: write the audio to a file first"
        )
    return AudioInput(path, name)
