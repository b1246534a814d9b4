"""Audio files that end before their own headers say so: libsndfile reads on in silence.

WAV, AIFF, W64, AU, CAF and Ogg name their length; other formats show it when decoded.
"""

import os
import struct
from pathlib import Path
from typing import BinaryIO

STREAM_SIZES = (0x7FFFF000, 0x7FFFFFFF, 0xFFFFFFFF)  # written by programs that pipe


class AudioError(ValueError):
    """A file that cannot be used; `path`, and `reason` as `<category>: <detail>`."""

    def __init__(self, path: str | Path, reason: str):
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason

    def __reduce__(self):
        return AudioError, (self.path, self.reason)


def check_file(path: str | Path, name: str | None = None) -> None:
    """Refuse what no decoder needs to be asked about: missing, empty or cut files.

    Raises:
        AudioError: Missing, not readable, empty, or a WAV, W64, AIFF, AU or Ogg file
            that ends before its own headers say so. (Others show it when decoded.)
    """
    name = name or str(path)
    if not Path(path).is_file():
        raise AudioError(name, "missing: there is no such file")
    try:
        with open(path, "rb") as file:
            check_content(name, file)
    except OSError as error:
        raise AudioError(name, f"unreadable: {error.strerror}") from None


def check_content(name: str, file: BinaryIO) -> None:
    """The same of an open file."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    magic = file.read(12)
    if size == 0:
        raise AudioError(name, "empty: the file has 0 bytes")
    if magic[:4] in (b"RIFF", b"RIFX", b"RF64", b"FORM"):
        _check_chunks(name, file, size, magic)
    elif magic[:4] == b"OggS":
        _check_ogg(name, file, size)
    elif magic[:4] in (b"riff", b".snd"):
        _check_total(name, file, size, magic)
    elif magic[:4] == b"caff":
        _check_caf(name, file, size)


def _check_chunks(path: str, file, size: int, magic: bytes) -> None:
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


def _check_caf(path: str, file, size: int) -> None:
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


def _check_total(path: str, file, size: int, magic: bytes) -> None:
    """Compare the size in the first header of a W64 or AU file to the file's."""
    if magic[:4] == b"riff":
        file.seek(16)
        expected = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))[0]
    else:
        offset, length = struct.unpack(">II", magic[4:12].ljust(8, b"\0"))
        expected = 0 if length in STREAM_SIZES else offset + length
    if expected > size:
        raise AudioError(path, f"truncated: {size} of {expected} bytes are there")


def _check_ogg(path: str, file, size: int) -> None:
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
