"""What lies on the disk: files whole or not at all, hashes, locks, finished pieces.

Standard library only (but `read_pickle`). Everything that the package writes goes
through here, so that a process that is killed, or a full disk, leaves the file from
before.
"""

import codecs
import csv
import fcntl
import hashlib
import json
import os
import pickle
import re
import shutil
import struct
import time
import zipfile
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import IO, Any

# What torch's reader raises for a damaged file: it trusts the pickle's own stack.
DAMAGED = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
)
KEPT_FILE = "kept.txt"  # in a training's folder: what differs from how it began
MAX_YAML = 1_000_000  # values of a YAML file
TEMPORARY = ".{name}.{pid}.tmp"  # beside the file it becomes, on the same file system
CHECKSUM = "{name}.sha256"  # beside a file: what `sha256sum` prints of it
GRACE = 2.0  # seconds in which a lock may still become free


@contextmanager
def replacing(
    path: str | os.PathLike,
    sync: bool = True,
    checksum: bool = False,
    before: Path | None = None,
) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` when the block ends well.

    Args:
        path: The file; its folder is made if it is not there.
        sync: Bring the content to the disk first. Without it a machine (not a process)
            that crashes may leave an empty file.
        checksum: Write its SHA-256 beside it, for `check`.
        before: Where the file from before stays, with its checksum.

    Raises:
        OSError: What the writer raises, with the file from before intact.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(TEMPORARY.format(name=path.name, pid=os.getpid()))
    try:
        yield temporary
        if not temporary.is_symlink():
            set_usual_mode(temporary)
        if sync:
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
        known = [sha256(temporary)] if checksum else []
        if checksum:  # the old file and the new one are right until it is there
            _write_checksums(path, [*known, *_checksums(path)])
        if before is not None and path.exists():
            move_checked(path, before)
        os.replace(temporary, path)
        if sync:
            sync_folder(path.parent)
        if checksum:
            _write_checksums(path, known)
    finally:
        temporary.unlink(missing_ok=True)


def move_checked(source: Path, target: Path) -> None:
    """Move a file over another one, with its checksum."""
    known = _checksums(source)
    _write_checksums(target, [*known, *_checksums(target)])
    os.replace(source, target)
    _write_checksums(target, known)


def check(path: str | os.PathLike) -> bool:
    """Compare a file, or what a link leads to, with the checksum beside it.

    Returns:
        Whether there is one.

    Raises:
        ValueError: It has another content.
    """
    known = _checksums(path)
    if known and sha256(path) not in known:
        beside = CHECKSUM.format(name=Path(path).resolve().name)
        raise ValueError(
            f"{path} is damaged or truncated (it has another checksum than {beside} "
            "says): get it again, or delete that file if the change was meant"
        )
    return bool(known)


def remove_checksums(folder: str | os.PathLike) -> None:
    """Remove the checksums of files that are no longer in a folder."""
    for path in Path(folder).glob(CHECKSUM.format(name="*")):
        if not path.with_suffix("").exists():
            path.unlink(missing_ok=True)


def _checksums(path: str | os.PathLike) -> list[str]:
    """What the content of a file may be; several only around its replacement."""
    path = Path(path).resolve()
    beside = path.with_name(CHECKSUM.format(name=path.name))
    try:
        lines = beside.read_text(encoding="ascii", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    return [line.split(" ")[0] for line in lines]


def _write_checksums(path: Path, known: Iterable[str]) -> None:
    beside = path.with_name(CHECKSUM.format(name=path.name))
    lines = [f"{digest}  {path.name}" for digest in dict.fromkeys(known)]
    if lines:
        write_lines(beside, lines)
    else:
        beside.unlink(missing_ok=True)


def set_usual_mode(path: str | os.PathLike) -> None:
    """Give a file the mode of any new one; safetensors leaves it to its user alone."""
    mask = os.umask(0o077)  # can only be read by setting it
    os.umask(mask)
    os.chmod(path, 0o666 & ~mask)


@contextmanager
def replacing_folder(path: str | os.PathLike) -> Iterator[Path]:
    """A new folder to fill, which takes the place of `path` if the block ends well."""
    path = Path(path)
    temporary = path.with_name(TEMPORARY.format(name=path.name, pid=os.getpid()))
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if path.exists():  # a folder that is not empty cannot be replaced
            shutil.rmtree(path)
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def writing(path: str | os.PathLike, mode: str = "w", **options: Any) -> Iterator[IO]:
    """A stream whose content takes the place of `path` when the block ends well.

    Args:
        path: The file; its folder is made if it is not there.
        mode: "w" for UTF-8 text with line feeds as they are, "wb" for bytes.
        options: Of `replacing`.
    """
    encoding, newline = (None, None) if "b" in mode else ("utf-8", "")
    with replacing(path, **options) as temporary:
        with open(temporary, mode, encoding=encoding, newline=newline) as stream:
            yield stream


def read_yaml(path: str | os.PathLike) -> dict[str, Any]:
    """The content of a YAML file that holds names and values.

    Raises:
        ValueError: No UTF-8 text, no YAML, or something else in it.
    """
    return parse_yaml(Path(path).read_bytes(), str(path))


def parse_yaml(text: bytes, name: str) -> dict[str, Any]:
    """The names and values of YAML text; `name` and errors as for `read_yaml`."""
    import yaml

    try:
        content = yaml.safe_load(text.decode("utf-8-sig")) or {}
        size = _written_size(content, {})
    except UnicodeDecodeError:
        raise ValueError(f"{name} is no UTF-8 text: save it as UTF-8") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{name} is not valid YAML: {reason}") from None
    if size > MAX_YAML:  # aliases of aliases: whatever goes through it never ends
        raise ValueError(f"{name} is not valid YAML: its aliases repeat too much")
    if not isinstance(content, dict):
        raise ValueError(f"{name} must hold names and values")
    return content


def _written_size(value: Any, sizes: dict[int, float]) -> float:
    """How many values there are without aliases; ValueError if it holds itself."""
    if not isinstance(value, (dict, list)):
        return 1.0
    if id(value) not in sizes:
        sizes[id(value)] = float("nan")  # until it is counted
        inside = value.values() if isinstance(value, dict) else value
        sizes[id(value)] = 1.0 + sum(_written_size(item, sizes) for item in inside)
    if sizes[id(value)] != sizes[id(value)]:
        raise ValueError("an alias that holds itself")
    return sizes[id(value)]


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Write bytes, whole or not at all."""
    with writing(path, "wb") as stream:
        stream.write(content)


def write_text(path: str | os.PathLike, content: str) -> None:
    """Write UTF-8 text, whole or not at all."""
    write_bytes(path, content.encode("utf-8"))


def write_lines(path: str | os.PathLike, lines: Iterable[str]) -> None:
    """Write lines of UTF-8 text as they come, whole or not at all."""
    with writing(path) as stream:
        stream.writelines(f"{line}\n" for line in lines)


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Write JSON, whole or not at all; NaN is refused, as JSON has no word for it."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def write_csv(
    path: str | os.PathLike, header: Iterable[str], rows: Iterable[Iterable]
) -> None:
    """Write a CSV file, whole or not at all."""
    with writing(path) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def link(path: str | os.PathLike, target: str | os.PathLike) -> None:
    """Make `path` a symbolic link to `target`, with no moment without one."""
    with replacing(path, sync=False) as temporary:
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target)


def note_kept(folder: str | os.PathLike, rows: Iterable[tuple]) -> list[str]:
    """Note that a training was gone on with although something differs.

    Args:
        folder: The training's; a line each is added to its kept.txt.
        rows: (name, old, new).

    Returns:
        All lines that are there.
    """
    path = Path(folder) / KEPT_FILE
    there = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    lines = [f"{name} was {old}, then {new}" for name, old, new in rows]
    if new_lines := [line for line in lines if line not in there]:
        there += new_lines
        write_lines(path, there)
    return there


def remove_leftovers(
    folder: str | os.PathLike, pattern: str = "*", names: Container[str] | None = None
) -> None:
    """Remove what killed writers of `pattern`, files or folders, have left there.

    Args:
        names: Of these files alone.
    """
    for path in Path(folder).glob(TEMPORARY.format(name=pattern, pid="*")):
        if names is not None and path.name[1:].rsplit(".", 2)[0] not in names:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def remove_leftovers_of(*paths: str | os.PathLike) -> None:
    """Remove what killed writers of these files or folders have left beside them."""
    by_folder: dict[Path, set[str]] = {}
    for path in map(Path, paths):
        by_folder.setdefault(path.parent, set()).add(path.name)
    for folder, names in by_folder.items():
        remove_leftovers(folder, names=names)


def sync_folder(folder: str | os.PathLike) -> None:
    """Bring a folder's names to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_state(path: str | os.PathLike) -> list[int]:
    """Size, times and inode: while they are the same, the content is, too.

    A file whose time was set back (`touch -d`, `cp -p`) has another ctime or inode.

    Raises:
        OSError: There is no such file.
    """
    stat = os.stat(path)
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def is_zip(path: str | os.PathLike) -> bool:
    """Whether a file is a zip archive that can be read."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # one that says to span several disks
        return False


def read_pickle(
    path: str | os.PathLike, stand_in: type = object, packages: tuple[str, ...] = ()
) -> Any:
    """What `torch.save` wrote, without importing or calling anything unknown.

    torch's restricted unpickler builds tensors, containers and numbers. Plain values of
    numpy and the standard library are added, in the spellings of all versions.

    Args:
        path: The file; its tensors stay on the disk until they are used.
        stand_in: Class that stands for every class of `packages`.
        packages: Beginnings of dotted names, such as "omegaconf.".

    Raises:
        ValueError: The file is cut off, or asks for anything else, which is named.
    """
    import numpy as np
    import torch

    scalar = np.float64(0).__reduce__()[0]
    harmless: dict[str, Any] = {
        "numpy.core.multiarray.scalar": scalar,
        "numpy._core.multiarray.scalar": scalar,
        "numpy.dtype": np.dtype,
        "_codecs.encode": codecs.encode,
        "collections.defaultdict": defaultdict,
        "datetime.timedelta": timedelta,
        "__builtin__.long": int,
        "__builtin__.unicode": str,
    }
    for kind in (dict, list, int, float, str, bool, tuple, set):
        harmless[f"builtins.{kind.__name__}"] = kind
        harmless[f"__builtin__.{kind.__name__}"] = kind
    try:
        zipped = is_zip(path)  # files from before torch 1.6 are not:
        names: list[str] = []  # these are read with torch's own list only
        if zipped:
            names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        for name in names:
            if name.startswith(packages):
                harmless[name] = type(name.rsplit(".", 1)[-1], (stand_in,), {})
        allowed: list[Any] = [(harmless[n], n) for n in names if n in harmless]
        if any(value is scalar for value, _ in allowed):
            kinds = (np.float64, np.float32, np.int64)
            allowed += [type(np.dtype(kind)) for kind in kinds]
        refused = sorted(set(names) - set(harmless))
        if not refused:
            with torch.serialization.safe_globals(allowed):
                return torch.load(
                    path, map_location="cpu", weights_only=True, mmap=zipped
                )
    except pickle.UnpicklingError as error:
        # not torch's own advice, which is to read the file without care
        refused = re.findall(r"GLOBAL (\S+)", str(error))[:1]
        if not refused:
            raise ValueError(f"{path} holds no plain tensors and values") from None
    except DAMAGED as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise ValueError(
            f"{path} is damaged or truncated ({reason}): get it again"
        ) from None
    raise ValueError(
        f"{path} asks for {', '.join(refused)}: no checkpoint of this kind needs that, "
        "so it is not read (it could run code)"
    )


@contextmanager
def lock(path: str | os.PathLike, in_use: str | None = None) -> Iterator[None]:
    """Hold the lock file `path` for the block.

    Args:
        path: The lock file; its folder is made if it is not there.
        in_use: The message if another process holds it; without one, wait for it.

    Raises:
        ValueError: `in_use`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as file:
        # a forked child that outlives us must not hold it
        os.register_at_fork(after_in_child=file.close)
        try:
            if in_use is None:
                fcntl.flock(file, fcntl.LOCK_EX)
            else:
                _lock_soon(file, in_use)
        except OSError:  # a file system without locks: better unlocked than unusable
            pass
        yield


def _lock_soon(file: IO, in_use: str) -> None:
    """Lock the file, or raise `in_use` after `GRACE`.

    What was forked from a process just before it was killed takes a moment to let go.
    """
    deadline = time.monotonic() + GRACE
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise ValueError(in_use) from None
            time.sleep(0.05)


class Journal:
    """Records of finished pieces: JSON lines that are only ever appended.

    A line counts when it is whole, so a process that is killed at any moment loses the
    piece it was at and nothing else. Unlike a data base it needs no locks of the file
    system, which network disks do not keep. Two million records stay on the disk:
    `read` fetches one by its place.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._writer: IO[bytes] | None = None
        self._reader: IO[bytes] | None = None

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[tuple[int, dict]]:
        """(place, record) of every whole line, in order."""
        if not self.path.is_file():
            return
        place = 0
        with open(self.path, "rb") as file:
            for line in file:
                record = _parsed(line)
                if record is not None:
                    yield place, record
                place += len(line)

    def append(self, record: dict) -> int:
        """Add a record, out of the process at once; returns its place."""
        if self._writer is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = open(self.path, "ab")
            if self._writer.tell():  # ends a line that a killed process left unfinished
                self._writer.write(b"\n")
        place = self._writer.tell()
        self._writer.write(json.dumps(record).encode() + b"\n")
        self._writer.flush()
        return place

    def read(self, place: int) -> dict:
        """The record at a place that `append` or iteration has named."""
        if self._reader is None:
            self._reader = open(self.path, "rb")
        self._reader.seek(place)
        return json.loads(self._reader.readline())

    def rewrite(self, records: Iterable[dict]) -> None:
        """Replace the whole journal; `records` may be made of what `read` returns."""
        write_lines(self.path, (json.dumps(record) for record in records))
        self.close()  # both handles are on the old file

    def close(self) -> None:
        """Close the file; it opens again at need."""
        for file in (self._writer, self._reader):
            if file is not None:
                file.close()
        self._writer = self._reader = None


def _parsed(line: bytes) -> dict | None:
    """The record of a line; None if the line is not whole."""
    try:
        record = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
