"""Audio: which files are audio, and any of it as mono float32 samples at 16 kHz.

soundfile reads (wav, flac, mp3, ogg and the rest of libsndfile), channels are
averaged, soxr resamples in blocks. A file that claims more audio than it holds is an
error here: libsndfile would hand out what is left without a word.
"""

import io
import logging
import os
import struct
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from numbers import Real
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import soundfile
import soxr

from espnet2_sslam.units import FRAME_LENGTH, SAMPLE_RATE

# What libsndfile decodes, by the usual suffixes; a folder's other files are no audio.
_DECODED = """.wav .wave .bwf .rf64 .w64 .flac .ogg .oga .opus .mp3 .mp2 .aif .aiff
.aifc .au .snd .caf .sph .nist .voc .avr .paf .pvf .ircam .sf .iff .svx .8svx .sd2"""
SUFFIXES = frozenset(_DECODED.split())
# Audio that it does not decode: left out of folders as well, but not silently.
_OTHER = ".m4a .m4b .aac .mp4 .wma .webm .mka .mkv .amr .ape .wv .ac3 .3gp .mpc"
OTHER_AUDIO = frozenset(_OTHER.split())
NAMES = ("path", "file")
BLOCK_FRAMES = 1 << 18  # frames read at once, 16 s at 16 kHz: bounds the memory
SILENCE_RANGE = 2.0**-15  # max - min of a silent clip: one step of 16-bit audio
MAX_PEAK = 2.0  # float samples beyond are not scaled to [-1, 1]
UNKNOWN_FRAMES = 1 << 48  # libsndfile's frame count when the header has none
MP3_SLACK = 2 * 1152  # frames that an MP3's header may count more than decoders give
MP3_HEADER = 1 << 16  # bytes at the beginning in which an MP3 counts its frames
STREAM_SIZES = (0x7FFFF000, 0x7FFFFFFF, 0xFFFFFFFF)  # written by programs that pipe
MAX_CHANNELS = 8  # of an array: more rows than that are taken for a batch of clips
SCALES = {"int16": 2**15, "int32": 2**31, "uint8": 2**7}  # full scale of integers

AudioFile = str | os.PathLike | BinaryIO


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
        if self.peak > MAX_PEAK:
            return f"overload: peak {self.peak:.1f}, samples beyond [-1, 1] are limited"
        return None


def read_audio(path: str | Path) -> np.ndarray:
    """Read a whole file as mono float32 at 16 kHz, (N,).

    Raises:
        AudioError: See `read_blocks`.
    """
    return np.concatenate(list(read_blocks(path)))


def read_blocks(
    source: AudioFile,
    summary: AudioSummary | None = None,
    name: str | None = None,
) -> Iterator[np.ndarray]:
    """Blocks of mono float32 samples at 16 kHz, with the memory of a few seconds.

    Args:
        source: Audio file of any format, rate and number of channels: its path, or an
            object open for reading bytes. Of an object everything is read, wherever
            it stands (in memory at once if it cannot seek), and it is left open.
        summary: Filled on the way; complete when the last block is out.
        name: What errors call the file; by default its path or the object's name.

    Raises:
        AudioError: Missing, empty, not audio, truncated, without or with less than
            25 ms of audio, or with NaN or infinite samples. What has come out before
            is then to be thrown away.
    """
    if isinstance(source, (str, os.PathLike)):
        name, opened = name or str(source), os.fspath(source)
        if not Path(source).is_file():
            raise AudioError(name, "missing: there is no such file")
        try:
            with open(source, "rb") as raw:
                _check_headers(name, raw)
        except OSError as error:
            raise AudioError(name, f"unreadable: {error.strerror}") from None
    else:
        name = name or str(getattr(source, "name", "file object"))
        opened = source = _seekable(name, source)
        _check_headers(name, source)
        source.seek(0)
    try:
        file = soundfile.SoundFile(opened)
    except soundfile.SoundFileError as error:
        raise AudioError(name, f"not audio: {_detail(error)}") from None
    try:
        with file:
            blocks = _file_blocks(name, source, file)
            yield from _mono_blocks(name, blocks, file.samplerate, summary)
    except soundfile.SoundFileError as error:
        raise AudioError(name, f"damaged or truncated: {_detail(error)}") from None


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
    blocks: Iterator[np.ndarray],
    rate: float,
    summary: AudioSummary | None = None,
) -> Iterator[np.ndarray]:
    """Mono blocks (n,) at 16 kHz of float32 blocks (n, channels) at another rate."""
    summary = AudioSummary() if summary is None else summary
    for block in _resampled(_averaged(name, blocks), rate):
        summary.add(block)
        yield block
    if summary.num_samples < FRAME_LENGTH:
        raise AudioError(
            name,
            f"too short: {summary.num_samples} samples at 16 kHz, needs {FRAME_LENGTH} "
            "(25 ms)",
        )


def _detail(error: Exception) -> str:
    """The library's message without the path, which the caller names."""
    return str(getattr(error, "error_string", error)).strip().rstrip(".")


def _seekable(name: str, file: BinaryIO) -> BinaryIO:
    """The object itself, or what it holds where it cannot seek."""
    if not hasattr(file, "seek") or (hasattr(file, "seekable") and not file.seekable()):
        file = io.BytesIO(file.read())
    if not isinstance(file.read(0), bytes):
        raise AudioError(name, "not audio: the object gives text, open it with 'rb'")
    return file


def _file_blocks(
    name: str, source: AudioFile, file: soundfile.SoundFile
) -> Iterator[np.ndarray]:
    """Blocks (n, channels) of the file's own rate; checks their number."""
    if file.frames == 0:
        raise AudioError(name, "no audio: the file has a header and zero frames")
    expected = _promised_frames(source, file)
    # The channels share the block, so that many of them need no more memory.
    size = max(1024, BLOCK_FRAMES // file.channels)
    frames = 0
    while len(block := file.read(size, dtype="float32", always_2d=True)):
        frames += len(block)
        yield block
    if frames < expected:
        raise AudioError(
            name, f"truncated: the header says {expected} frames, {frames} are there"
        )


def _promised_frames(source: AudioFile, file: soundfile.SoundFile) -> int:
    """Frames that the header counts; 0 where the number is a mere estimate."""
    if file.frames >= UNKNOWN_FRAMES:
        return 0
    if file.format != "MP3":
        return file.frames
    if isinstance(source, (str, os.PathLike)):
        with open(source, "rb") as raw:
            head = raw.read(MP3_HEADER)
    else:
        position = source.tell()  # where libsndfile goes on
        source.seek(0)
        head = source.read(MP3_HEADER)
        source.seek(position)
    counted = any(tag in head for tag in (b"Xing", b"Info", b"VBRI"))
    return file.frames - MP3_SLACK if counted else 0


def _averaged(name: str, blocks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """The mean over the channels (n,) of blocks (n, channels), checked to be finite."""
    frames = 0
    for block in blocks:
        if not np.isfinite(block).all():
            bad = frames + int(np.flatnonzero(~np.isfinite(block).all(1))[0])
            raise AudioError(name, f"not finite: NaN or infinity at frame {bad}")
        frames += len(block)
        yield block.mean(1) if block.shape[1] > 1 else block[:, 0]


def _resampled(blocks: Iterator[np.ndarray], rate: float) -> Iterator[np.ndarray]:
    """The same audio at 16 kHz."""
    if rate == SAMPLE_RATE:
        yield from blocks
        return
    stream = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32")
    for block in blocks:
        yield stream.resample_chunk(np.ascontiguousarray(block))
    yield stream.resample_chunk(np.zeros(0, np.float32), last=True)


# Files that end before their own headers say so. These formats name their length and
# libsndfile does not compare it; FLAC and MP3 show it when they are decoded.

# By the first four bytes: a chunk's name and length, the first chunk, that of the audio
CHUNKS = {
    b"RIFF": ("<4sI", 12, b"data"),
    b"RF64": ("<4sI", 12, b"data"),
    b"RIFX": (">4sI", 12, b"data"),
    b"FORM": (">4sI", 12, b"SSND"),  # AIFF
    b"caff": (">4sq", 8, b"data"),
}


def _check_headers(name: str, file: BinaryIO) -> None:
    """Refuse an open file that is empty or ends before its headers say so."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(24).ljust(24, b"\0")
    expected = 0
    if size == 0:
        raise AudioError(name, "empty: the file has 0 bytes")
    if head[:4] in CHUNKS:
        _check_chunks(name, file, size, *CHUNKS[head[:4]])
    elif head[:4] == b"OggS":
        _check_ogg(name, file, size)
    elif head[:4] == b"riff":  # W64: the size of the whole file
        (expected,) = struct.unpack("<Q", head[16:])
    elif head[:4] == b".snd":  # AU: where its audio begins, and how long it is
        start, length = struct.unpack(">II", head[4:12])
        expected = 0 if length in STREAM_SIZES else start + length
    if expected > size:
        raise AudioError(name, f"truncated: {size} of {expected} bytes are there")


def _check_chunks(
    name: str, file: BinaryIO, size: int, form: str, position: int, audio: bytes
) -> None:
    """Compare the length of the chunk of the audio to the bytes there."""
    wide_length, header = None, struct.calcsize(form)
    while position + header <= size:
        file.seek(position)
        chunk, length = struct.unpack(form, file.read(header))
        if chunk == b"ds64":  # 64-bit sizes: of the file, then of the audio
            wide_length = struct.unpack("<QQ", file.read(16).ljust(16, b"\0"))[1]
        if chunk == audio:
            if length == 0xFFFFFFFF and wide_length is not None:
                length = wide_length
            rest = size - position - header
            if length in STREAM_SIZES or length < 0:  # up to the end of the file
                return
            if length == 0 and rest > 8:
                detail = f"the header was never finished ({rest} bytes)"
            elif length > rest:
                detail = f"{rest} of {length} bytes of audio are there"
            else:
                return
            raise AudioError(name, f"truncated: {detail}")
        position += header + max(length, 0)
        position += position % 2 if header == 8 else 0  # CAF does not pad its chunks
    raise AudioError(name, "truncated: the file ends before its audio")


def _check_ogg(name: str, file: BinaryIO, size: int) -> None:
    """The last Ogg page must be whole and say that the stream ends."""
    tail = min(size, 2 * 65_536)  # a page is shorter than 64 KiB
    file.seek(size - tail)
    data = file.read(tail)
    start = data.rfind(b"OggS")
    page = data[start:]
    segments = page[26] if len(page) > 26 else 255
    whole = len(page) >= 27 + segments + sum(page[27 : 27 + segments])
    if start < 0 or not whole or not page[5] & 4:
        raise AudioError(name, "truncated: the last page of the Ogg stream is missing")


# What a Python user may hand over: besides files also arrays, with their rate.


def is_single(audio: Any) -> bool:
    """Whether this is one clip, not several.

    A list, a tuple or another iterable holds several; paths, file objects, arrays,
    (array, rate) and {"array": ..., "sampling_rate": ...} are one.
    """
    return (
        isinstance(audio, (str, bytes, os.PathLike, Mapping))
        or hasattr(audio, "read")
        or _is_array(audio)
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


def source_blocks(source: Any, name: str, rate: float | None) -> Iterator[np.ndarray]:
    """Blocks (n,) of mono float32 samples at 16 kHz.

    Args:
        source: A path, an object open for reading bytes, an array (NumPy or torch),
            (array, rate), or {"array": ..., "sampling_rate": ...}.
        name: What errors call it.
        rate: Samples per second of arrays that come without their own rate.

    Raises:
        AudioError: What `read_blocks` says, or an array that is not audio.
    """
    audio: Any = source
    if isinstance(source, Mapping) and "array" in source:
        audio, rate = source["array"], source.get("sampling_rate", rate)
    elif _is_pair(source):
        audio, rate = source
    if isinstance(audio, (str, os.PathLike)) or hasattr(audio, "read"):
        return read_blocks(audio, name=name)
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
    if not (isinstance(rate, Real) and 0 < float(rate) < float("inf")):
        raise AudioError(name, f"no rate: need samples per second above 0, got {rate}")
    return _array_blocks(audio, name, float(rate))


def _is_array(value: Any) -> bool:
    # A tensor by what it can do: this module must not import torch, 650 MiB.
    return isinstance(value, np.ndarray) or hasattr(value, "detach")


def _is_pair(value: Any) -> bool:
    """Whether the value is (array, rate), as soundfile and torchaudio return it."""
    return (
        isinstance(value, tuple)
        and len(value) == 2
        and _is_array(value[0])
        and isinstance(value[1], Real)
    )


def _array_blocks(array: Any, name: str, rate: float) -> Iterator[np.ndarray]:
    """Blocks of an array; a peak far beyond 1 is worth a warning."""
    if hasattr(array, "detach"):  # a tensor of any device and dtype
        array = array.detach().cpu()
        array = (array.float() if "bfloat16" in str(array.dtype) else array).numpy()
    kind, scale, silence = array.dtype.name, 1.0, 0.0
    if array.dtype.kind not in "fiu":
        raise AudioError(name, f"not audio: need an array of real numbers, got {kind}")
    if array.dtype.kind != "f":
        if kind not in SCALES:
            raise AudioError(
                name,
                f"not audio: integers must be {', '.join(SCALES)}, got {kind}: their "
                "full scale is not known, convert them to float in [-1, 1]",
            )
        scale, silence = float(SCALES[kind]), 128.0 if kind == "uint8" else 0.0
    samples = _time_first(array, name)
    pieces = (
        (np.asarray(samples[start : start + BLOCK_FRAMES], np.float32) - silence)
        / scale
        for start in range(0, len(samples), BLOCK_FRAMES)
    )
    summary = AudioSummary()
    yield from _mono_blocks(name, pieces, rate, summary)
    if summary.peak > MAX_PEAK:
        logging.warning(
            "%s: peak %.1f; samples are taken to be in [-1, 1]: integers in a float "
            "array have to be divided by their full scale",
            name,
            summary.peak,
        )


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
            )
    if left_out:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in left_out.items())
        logging.warning("left out of folders, cannot be decoded: %s", kinds)
    if not items and not (paths or lists):
        raise ValueError("no audio given: name files, folders or a --list")
    if not items:
        raise ValueError(
            f"no audio files in {', '.join([*paths, *lists])}: folders are searched "
            "for .wav, .flac, .ogg, .mp3 and whatever else libsndfile reads"
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


def _expand(path: str, left_out: Counter) -> Iterator[AudioInput]:
    """The file itself, or the audio files in a folder and those below it."""

    def fail(error: OSError) -> None:  # os.walk would pass over it
        raise error

    path = path[2:] if path.startswith("./") and len(path) > 2 else path
    if not os.path.isdir(path):
        yield AudioInput(path, path)
        return
    names, visited = [], set()
    for folder, folders, files in os.walk(path, onerror=fail, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in visited:  # a loop of links would not end
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            suffix = os.path.splitext(name)[1].lower()
            if name.startswith("."):
                continue
            if suffix in SUFFIXES:
                names.append(os.path.join(folder, name))
            elif suffix in OTHER_AUDIO:
                left_out[suffix] += 1
    yield from (AudioInput(name, name) for name in sorted(names))


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
