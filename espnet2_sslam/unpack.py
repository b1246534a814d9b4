"""Unpack archives from elsewhere: nothing outside the target, and no bombs.

tarfile's own `data` filter and zipfile write the files; here everything that is no
plain file or folder is refused, and what comes out is counted while it does.
"""

import lzma
import os
import shutil
import struct
import tarfile
import tempfile
import zipfile
import zlib
from pathlib import Path

SUFFIXES = (".zip", ".tar", ".tgz", ".tar.gz", ".tbz2", ".tar.bz2", ".txz", ".tar.xz")
MAX_FILES = 3_000_000
MAX_BYTES = 500 << 30
MAX_RATIO = 100  # unpacked over packed size; audio and weights hardly shrink
SMALL_BYTES = 256 << 20  # below this the ratio does not matter
PIECE = 1 << 20
# What zipfile and tarfile raise for a damaged archive, besides OSError
DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    KeyError,
    IndexError,
    OverflowError,
    MemoryError,
    NotImplementedError,
    UnicodeDecodeError,
)


def is_archive(path: str | Path) -> bool:
    """Whether the name is that of an archive (a .pt file is a zip, but none)."""
    return str(path).lower().endswith(SUFFIXES)


def unpack(archive: Path, target: Path, into: str | None = None) -> None:
    """Unpack a zip or tar archive below `target`, all or nothing.

    Args:
        archive: Told apart by its content, not by its name.
        target: Folder, made if it is not there.
        into: Sub-folder for the content; by default what the archive names.

    Raises:
        ValueError: It is damaged, not safe or too large, or something of its names is
            in the target already.
        OSError: The disk is full.
    """
    archive, target = Path(archive), Path(target)
    target.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".unpack-", dir=target))
    try:
        budget = _Budget(archive)
        if zipfile.is_zipfile(archive):
            _unpack_zip(archive, partial, budget)
        else:
            _unpack_tar(archive, partial, budget)
        _move(partial, target, into)
    except DAMAGED as error:
        reason = " ".join(str(error).split())[:100]
        raise ValueError(
            f"{archive} is no archive that can be unpacked ({reason}): delete it and "
            "fetch it again"
        ) from None
    except RuntimeError as error:  # an encrypted zip
        raise ValueError(f"{archive} cannot be unpacked: {error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


class _Budget:
    """What an archive may still take: files and bytes."""

    def __init__(self, archive: Path):
        self.archive = archive
        ratio = max(SMALL_BYTES, MAX_RATIO * archive.stat().st_size)
        self.bytes = min(MAX_BYTES, ratio)
        self.files = MAX_FILES

    def take_file(self, name: str) -> None:
        """Count a member and look at its name; ValueError for one too many or evil."""
        self.files -= 1
        if self.files < 0:
            raise ValueError(f"{self.archive} holds more than {MAX_FILES} files")
        parts = name.replace("\\", "/").split("/")
        if name.startswith(("/", "\\")) or ".." in parts or ":" in parts[0]:
            raise self.unsafe(f"the path {name!r} leads out of it")

    def take_bytes(self, count: int) -> None:
        """Count bytes; ValueError for too many."""
        self.bytes -= count
        if self.bytes < 0:
            raise self.unsafe("it unpacks to more than its size lets expect")

    def unsafe(self, why: str) -> ValueError:
        """The error for an archive that is refused."""
        return ValueError(f"{self.archive} is not safe to unpack: {why}")


def _unpack_tar(archive: Path, folder: Path, budget: _Budget) -> None:
    """Take the members out one by one, in one pass."""
    with tarfile.open(archive) as file:
        for member in file:
            budget.take_file(member.name)
            if not (member.isfile() or member.isdir()):
                raise budget.unsafe(f"{member.name!r} is a link or a device")
            budget.take_bytes(member.size)
            try:
                file.extract(member, folder, filter="data")
            except tarfile.FilterError as error:
                raise budget.unsafe(str(error)) from None
            # or millions of them stay in memory
            file.members = []  # type: ignore[attr-defined]


def _unpack_zip(archive: Path, folder: Path, budget: _Budget) -> None:
    """Take the members out one by one; sizes are counted, not believed."""
    with zipfile.ZipFile(archive) as file:
        for member in file.infolist():
            budget.take_file(member.filename)
            kind = (member.external_attr >> 16) & 0o170000
            if kind not in (0, 0o100000, 0o040000):
                raise budget.unsafe(f"{member.filename!r} is a link or a device")
            path = folder / member.filename
            if member.is_dir():
                path.mkdir(parents=True, exist_ok=True)
                continue
            if path.exists():
                raise budget.unsafe(f"{member.filename!r} is in it twice")
            path.parent.mkdir(parents=True, exist_ok=True)
            with file.open(member) as source, open(path, "xb") as out:
                while piece := source.read(PIECE):
                    budget.take_bytes(len(piece))
                    out.write(piece)


def _move(partial: Path, target: Path, into: str | None) -> None:
    """Put what was unpacked where it belongs; ValueError if something is there."""
    os.chmod(partial, 0o755)  # noqa: S103 (as any folder; mkdtemp made it 700)
    if into is not None:
        moves = [(partial, target / into)]
    else:
        moves = [(entry, target / entry.name) for entry in sorted(partial.iterdir())]
    for _, place in moves:
        if place.exists():
            raise ValueError(
                f"{place} is there already: remove it (or move it away) to unpack again"
            )
    for source, place in moves:
        os.rename(source, place)
