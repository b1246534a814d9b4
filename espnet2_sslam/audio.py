"""Any audio file to mono float32 samples at 16 kHz, or the reason why not.

soundfile reads (wav, flac, mp3, ogg and the rest of libsndfile), channels are
averaged, soxr resamples in blocks. A file that claims more audio than it holds is an
error here: libsndfile would hand out what is left without a word.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Optional, Union

import numpy as np
import soundfile
import soxr

from espnet2_sslam.features import FRAME_LENGTH, SAMPLE_RATE

BLOCK_FRAMES = 1 << 18  # frames read at once, 16 s at 16 kHz: bounds the memory
SILENCE_RANGE = 2.0**-15  # max - min of a silent clip: one step of 16-bit audio
MAX_PEAK = 2.0  # float samples beyond are not scaled to [-1, 1]
UNKNOWN_FRAMES = 1 << 48  # libsndfile's frame count when the header has none
STREAM_SIZES = (0x7FFFF000, 0x7FFFFFFF, 0xFFFFFFFF)  # written by programs that pipe
MP3_SLACK = 2 * 1152  # frames that an MP3's header may count more than decoders give


class AudioError(ValueError):
    """A file that cannot be used; `path`, and `reason` as `<category>: <detail>`."""

    def __init__(self, path: Union[str, Path], reason: str):
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
    def warning(self) -> Optional[str]:
        """Why the clip is doubtful, as `<category>: <detail>`, or None."""
        if self.highest - self.lowest <= SILENCE_RANGE:
            return "silent: every sample has the same value"
        peak = max(-self.lowest, self.highest)
        if peak > MAX_PEAK:
            return f"overload: peak {peak:.1f}, samples beyond [-1, 1] are limited"
        return None


def read_audio(path: Union[str, Path]) -> np.ndarray:
    """Read a whole file as mono float32 at 16 kHz, (N,).

    Raises:
        AudioError: See `read_blocks`.
    """
    return np.concatenate(list(read_blocks(path)))


def read_blocks(
    path: Union[str, Path], summary: Optional[AudioSummary] = None
) -> Iterator[np.ndarray]:
    """Blocks of mono float32 samples at 16 kHz, with the memory of a few seconds.

    Args:
        path: Audio file of any format, rate and number of channels.
        summary: Filled on the way; complete when the last block is out.

    Raises:
        AudioError: Missing, empty, not audio, truncated, without or with less than
            25 ms of audio, or with NaN or infinite samples. What has come out before
            is then to be thrown away.
    """
    summary = AudioSummary() if summary is None else summary
    check_file(path)
    try:
        file = soundfile.SoundFile(str(path))
    except soundfile.SoundFileError as error:
        raise AudioError(path, f"not audio: {_detail(error)}") from None
    try:
        with file:
            for block in _resampled(_mono_blocks(path, file), file.samplerate):
                summary.add(block)
                yield block
    except soundfile.SoundFileError as error:
        raise AudioError(path, f"damaged or truncated: {_detail(error)}") from None
    if summary.num_samples < FRAME_LENGTH:
        raise AudioError(
            path,
            f"too short: {summary.num_samples} samples at 16 kHz, needs {FRAME_LENGTH} "
            "(25 ms)",
        )


def _detail(error: Exception) -> str:
    """The library's message without the path, which the caller names."""
    return str(getattr(error, "error_string", error)).strip().rstrip(".")


def _mono_blocks(path, file: soundfile.SoundFile) -> Iterator[np.ndarray]:
    """Blocks (n,) of the file's own rate; checks their values and their number."""
    if file.frames == 0:
        raise AudioError(path, "no audio: the file has a header and zero frames")
    # The channels share the block, so that many of them need no more memory.
    size = max(1024, BLOCK_FRAMES // file.channels)
    frames = 0
    while len(block := file.read(size, dtype="float32", always_2d=True)):
        if not np.isfinite(block).all():
            bad = frames + int(np.flatnonzero(~np.isfinite(block).all(1))[0])
            raise AudioError(path, f"not finite: NaN or infinity at frame {bad}")
        frames += len(block)
        yield block.mean(1) if file.channels > 1 else block[:, 0]
    expected = _promised_frames(path, file)
    if frames < expected:
        raise AudioError(
            path, f"truncated: the header says {expected} frames, {frames} are there"
        )


def _promised_frames(path, file: soundfile.SoundFile) -> int:
    """Frames that the header counts; 0 where the number is a mere estimate."""
    if file.frames >= UNKNOWN_FRAMES:
        return 0
    if file.format != "MP3":
        return file.frames
    with open(path, "rb") as raw:
        head = raw.read(1 << 16)
    counted = any(tag in head for tag in (b"Xing", b"Info", b"VBRI"))
    return file.frames - MP3_SLACK if counted else 0


def _resampled(blocks: Iterator[np.ndarray], rate: int) -> Iterator[np.ndarray]:
    """The same audio at 16 kHz."""
    if rate == SAMPLE_RATE:
        yield from blocks
        return
    stream = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32")
    for block in blocks:
        yield stream.resample_chunk(np.ascontiguousarray(block))
    yield stream.resample_chunk(np.zeros(0, np.float32), last=True)


def is_formatted(path: Union[str, Path]) -> bool:
    """Whether a readable file is a 16 kHz mono WAV or FLAC already."""
    info = soundfile.info(str(path))
    return (info.samplerate, info.channels) == (SAMPLE_RATE, 1) and info.format in (
        "WAV",
        "WAVEX",
        "FLAC",
    )


def check_file(path: Union[str, Path]) -> None:
    """Refuse what no decoder needs to be asked about: missing, empty or cut files.

    Raises:
        AudioError: Missing, not readable, empty, or a WAV, W64, AIFF, AU or Ogg file
            that ends before its own headers say so. (Others show it when decoded.)
    """
    path = Path(path)
    if not path.is_file():
        raise AudioError(path, "missing: there is no such file")
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            magic = file.read(12)
            if size == 0:
                raise AudioError(path, "empty: the file has 0 bytes")
            if magic[:4] in (b"RIFF", b"RIFX", b"RF64", b"FORM"):
                _check_chunks(path, file, size, magic)
            elif magic[:4] == b"OggS":
                _check_ogg(path, file, size)
            elif magic[:4] in (b"riff", b".snd"):
                _check_total(path, file, size, magic)
            elif magic[:4] == b"caff":
                _check_caf(path, file, size)
    except OSError as error:
        raise AudioError(path, f"unreadable: {error.strerror}") from None


def _check_chunks(path: Path, file, size: int, magic: bytes) -> None:
    """Compare the size of the audio chunk of a WAV or AIFF file to the bytes there."""
    order = ">" if magic[:4] in (b"FORM", b"RIFX") else "<"
    position, wide_size = 12, None
    while position + 8 <= size:
        file.seek(position)
        name, length = struct.unpack(order + "4sI", file.read(8))
        if name == b"ds64":  # 64-bit sizes: of the file, then of the audio
            wide_size = struct.unpack("<QQ", file.read(16).ljust(16, b"\0"))[1]
        if name in (b"data", b"SSND"):
            if length == 0xFFFFFFFF and wide_size is not None:
                length = wide_size
            there = size - position - 8
            if length in STREAM_SIZES:
                return
            if length == 0 and there > 8:
                raise AudioError(
                    path, f"truncated: the header was never finished ({there} bytes)"
                )
            if length > there:
                raise AudioError(
                    path, f"truncated: {there} of {length} bytes of audio are there"
                )
            return
        position += 8 + length + length % 2
    raise AudioError(path, "truncated: the file ends before its audio")


def _check_caf(path: Path, file, size: int) -> None:
    """Compare the size of the audio chunk of a CAF file to the bytes there."""
    position = 8
    while position + 12 <= size:
        file.seek(position)
        name, length = struct.unpack(">4sq", file.read(12))
        if name == b"data" and length < 0:  # unknown: up to the end of the file
            return
        position += 12 + length
    if position > size:
        raise AudioError(path, f"truncated: {size} of {position} bytes are there")


def _check_total(path: Path, file, size: int, magic: bytes) -> None:
    """Compare the size in the first header of a W64 or AU file to the file's."""
    if magic[:4] == b"riff":
        file.seek(16)
        expected = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))[0]
    else:
        offset, length = struct.unpack(">II", magic[4:12].ljust(8, b"\0"))
        expected = 0 if length in STREAM_SIZES else offset + length
    if expected > size:
        raise AudioError(path, f"truncated: {size} of {expected} bytes are there")


def _check_ogg(path: Path, file, size: int) -> None:
    """The last Ogg page must be whole and say that the stream ends."""
    tail = min(size, 2 * 65_536)  # a page is shorter than 64 KiB
    file.seek(size - tail)
    data = file.read(tail)
    start = data.rfind(b"OggS")
    page = data[start:]
    segments = page[26] if len(page) > 26 else 255
    whole = len(page) >= 27 + segments + sum(page[27 : 27 + segments])
    if start < 0 or not whole or not page[5] & 4:
        raise AudioError(path, "truncated: the last page of the Ogg stream is missing")
