"""Any audio file to mono float32 samples at 16 kHz, or the reason why not.

soundfile reads (wav, flac, mp3, ogg and the rest of libsndfile), channels are
averaged, soxr resamples in blocks. A file that claims more audio than it holds is an
error here: libsndfile would hand out what is left without a word.
"""

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Union

import numpy as np
import soundfile
import soxr

from espnet2_sslam.audio_headers import AudioError, check_content, check_file
from espnet2_sslam.units import FRAME_LENGTH, SAMPLE_RATE

BLOCK_FRAMES = 1 << 18  # frames read at once, 16 s at 16 kHz: bounds the memory
SILENCE_RANGE = 2.0**-15  # max - min of a silent clip: one step of 16-bit audio
MAX_PEAK = 2.0  # float samples beyond are not scaled to [-1, 1]
UNKNOWN_FRAMES = 1 << 48  # libsndfile's frame count when the header has none
MP3_SLACK = 2 * 1152  # frames that an MP3's header may count more than decoders give
MP3_HEADER = 1 << 16  # bytes at the beginning in which an MP3 counts its frames

AudioFile = Union[str, os.PathLike, BinaryIO]


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
    def warning(self) -> str | None:
        """Why the clip is doubtful, as `<category>: <detail>`, or None."""
        if self.highest - self.lowest <= SILENCE_RANGE:
            return "silent: every sample has the same value"
        peak = max(-self.lowest, self.highest)
        if peak > MAX_PEAK:
            return f"overload: peak {peak:.1f}, samples beyond [-1, 1] are limited"
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
    if hasattr(source, "read"):
        name = name or str(getattr(source, "name", "file object"))
        opened = source = _seekable(name, source)
        check_content(name, source)
        source.seek(0)
    else:
        name, opened = name or str(source), os.fspath(source)
        check_file(source, name)
    try:
        file = soundfile.SoundFile(opened)
    except soundfile.SoundFileError as error:
        raise AudioError(name, f"not audio: {_detail(error)}") from None
    try:
        with file:
            blocks = _file_blocks(name, source, file)
            yield from mono_blocks(name, blocks, file.samplerate, summary)
    except soundfile.SoundFileError as error:
        raise AudioError(name, f"damaged or truncated: {_detail(error)}") from None


def mono_blocks(
    name: str,
    blocks: Iterator[np.ndarray],
    rate: float,
    summary: AudioSummary | None = None,
) -> Iterator[np.ndarray]:
    """Mono blocks (n,) at 16 kHz of float32 blocks (n, channels) at another rate.

    Args:
        name: What errors call the audio.
        blocks: The audio from beginning to end.
        rate: Its samples per second.
        summary: Filled on the way; complete when the last block is out.

    Raises:
        AudioError: NaN or infinite samples, or less than 25 ms of audio.
    """
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
    if not hasattr(file, "seek") or hasattr(file, "seekable") and not file.seekable():
        file = io.BytesIO(file.read())
    if not isinstance(file.read(0), bytes):
        raise AudioError(name, "not audio: the object gives text, open it with 'rb'")
    return file


def _file_blocks(name, source, file: soundfile.SoundFile) -> Iterator[np.ndarray]:
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


def _averaged(name: str, blocks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """The mean over the channels (n,) of blocks (n, channels), checked to be finite."""
    frames = 0
    for block in blocks:
        if not np.isfinite(block).all():
            bad = frames + int(np.flatnonzero(~np.isfinite(block).all(1))[0])
            raise AudioError(name, f"not finite: NaN or infinity at frame {bad}")
        frames += len(block)
        yield block.mean(1) if block.shape[1] > 1 else block[:, 0]


def _promised_frames(source: AudioFile, file: soundfile.SoundFile) -> int:
    """Frames that the header counts; 0 where the number is a mere estimate."""
    if file.frames >= UNKNOWN_FRAMES:
        return 0
    if file.format != "MP3":
        return file.frames
    if hasattr(source, "read"):
        place = source.tell()  # where libsndfile goes on
        source.seek(0)
        head = source.read(MP3_HEADER)
        source.seek(place)
    else:
        with open(source, "rb") as raw:
            head = raw.read(MP3_HEADER)
    counted = any(tag in head for tag in (b"Xing", b"Info", b"VBRI"))
    return file.frames - MP3_SLACK if counted else 0


def _resampled(blocks: Iterator[np.ndarray], rate: float) -> Iterator[np.ndarray]:
    """The same audio at 16 kHz."""
    if rate == SAMPLE_RATE:
        yield from blocks
        return
    stream = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32")
    for block in blocks:
        yield stream.resample_chunk(np.ascontiguousarray(block))
    yield stream.resample_chunk(np.zeros(0, np.float32), last=True)


def is_formatted(path: str | Path) -> bool:
    """Whether a readable file is a 16 kHz mono WAV or FLAC already."""
    info = soundfile.info(str(path))
    return (info.samplerate, info.channels) == (SAMPLE_RATE, 1) and info.format in (
        "WAV",
        "WAVEX",
        "FLAC",
    )
