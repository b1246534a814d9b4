"""Models packed for ESPnet (its `pack` format): safely out of the archive.

Such an archive holds meta.yaml, which names a training configuration and a file of
weights, and those files. Nothing else is taken out of it.
"""

import hashlib
import os
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import yaml

from espnet2_sslam.checkpoint.errors import CheckpointError

SUFFIXES = (".zip", ".tar", ".tgz", ".tar.gz", ".tbz2", ".tar.bz2", ".txz", ".tar.xz")
META_FILE = "meta.yaml"
MAX_MEMBERS = 10_000
MAX_TEXT_BYTES = 16 << 20  # of meta.yaml and config.yaml
MAX_WEIGHTS_BYTES = 32 << 30
MAX_RATIO = 200  # unpacked over packed size; weights hardly shrink
SMALL_BYTES = 64 << 20  # below this the ratio does not matter


class Packed(NamedTuple):
    """Paths of a packed model's training configuration and weights."""

    config: str
    weights: str


def is_archive(path: str | Path) -> bool:
    """Whether the name is that of an archive that ESPnet packs models into."""
    return str(path).lower().endswith(SUFFIXES)


def read_meta(text: str | bytes, source: str) -> Packed:
    """The two files that the content of a meta.yaml names.

    Raises:
        CheckpointError: Not ESPnet's meta.yaml, or one of another kind of model.
    """
    try:
        meta = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError):
        meta = None
    parts = [meta.get(k) if isinstance(meta, dict) else None for k in META_KEYS]
    if not all(isinstance(part, dict) for part in parts):
        raise CheckpointError(f"{source}: its {META_FILE} is not that of ESPnet's pack")
    config = _one_of(parts[0], "train_config", source)
    return Packed(config, _one_of(parts[1], "model_file", source))


META_KEYS = ("yaml_files", "files")


def _one_of(named: dict[str, Any], ending: str, source: str) -> str:
    """The only file, or the only one whose name has the ending."""
    found = [v for k, v in named.items() if str(k).endswith(ending)]
    found = list(named.values()) if len(named) == 1 else found
    if len(found) != 1 or not isinstance(found[0], str):
        raise CheckpointError(
            f"{source}: its {META_FILE} must name one {ending}, it names "
            f"{', '.join(map(str, named)) or 'nothing'}: this is not one of our models"
        )
    # An absolute path is stored without its first slash, as every archiver does it.
    return found[0].lstrip("/")


def unpack(archive: str | Path, cache_dir: str | Path) -> Path:
    """Take a packed model out of its archive, once.

    Args:
        archive: .zip or .tar file of ESPnet's pack or ours.
        cache_dir: Folder for unpacked models.

    Returns:
        A folder with config.yaml, the weights (*.pth) and meta.yaml.

    Raises:
        CheckpointError: Not such an archive, damaged, or one that is not safe.
        OSError: It cannot be written.
    """
    archive = Path(archive).resolve()
    status = archive.stat()
    key = f"{archive}|{status.st_size}|{status.st_mtime_ns}"
    digest = hashlib.sha256(key.encode()).hexdigest()[:24]
    target = Path(cache_dir).expanduser() / f"{archive.name.split('.')[0]}-{digest}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".unpack-", dir=target.parent))
    try:
        _unpack_into(archive, partial)
        try:
            os.replace(partial, target)
        except OSError:
            if not target.is_dir():  # else another process was faster
                raise
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, NotImplementedError) as e:
        raise CheckpointError(
            f"{archive} is not a readable archive ({e}): get it again"
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


class _Member(NamedTuple):
    """One file of an archive."""

    size: int
    open: Callable[[], BinaryIO]


def _unpack_into(archive: Path, folder: Path) -> None:
    """Write config.yaml, the weights and a meta.yaml that names just these."""
    opener = zipfile.ZipFile if archive.suffix.lower() == ".zip" else tarfile.open
    with opener(archive) as file:
        members = _members(file, archive)
        meta = next((name for name in members if Path(name).name == META_FILE), None)
        if meta is None:
            raise CheckpointError(f"{archive} holds no {META_FILE}: ESPnet's pack does")
        packed = read_meta(_content(members[meta], archive), str(archive))
        for name in packed:
            if name not in members:
                raise CheckpointError(f"{archive} lacks {name}, which it should hold")
        text = _content(members[packed.config], archive)
        (folder / "config.yaml").write_bytes(text)
        weights = f"{Path(packed.weights).stem}.pth"
        limit = max(SMALL_BYTES, MAX_RATIO * archive.stat().st_size)
        _check_size(members[packed.weights], min(limit, MAX_WEIGHTS_BYTES), archive)
        with members[packed.weights].open() as source:
            with open(folder / weights, "wb") as out:
                shutil.copyfileobj(source, out, 1 << 20)
    names = {"yaml_files": {"train_config": "config.yaml"}}
    names["files"] = {"model_file": weights}
    (folder / META_FILE).write_text(yaml.safe_dump(names), encoding="utf-8")


def _members(file: zipfile.ZipFile | tarfile.TarFile, archive: Path):
    """The archive's files by name; every name is checked."""
    if isinstance(file, zipfile.ZipFile):
        entries = [
            (i.filename, i.file_size, not _is_special(i), lambda i=i: file.open(i))
            for i in file.infolist()
            if not i.is_dir()
        ]
    else:
        entries = [
            (i.name, i.size, i.isfile(), lambda i=i: file.extractfile(i))
            for i in file
            if not i.isdir()
        ]
    if len(entries) > MAX_MEMBERS:
        raise CheckpointError(f"{archive} holds {len(entries)} files: not a model")
    members: dict[str, _Member] = {}
    unsafe: list[str] = []
    for name, size, plain, opener in entries:
        parts = name.replace("\\", "/").split("/")
        if not plain or name.startswith(("/", "\\")) or ".." in parts or ":" in name:
            unsafe.append(name)
        elif name in members:
            unsafe.append(f"{name} (twice)")
        members[name] = _Member(size, opener)
    if unsafe:
        raise CheckpointError(
            f"{archive} is not safe to unpack, it holds links, paths outside of it or "
            f"a name twice: {', '.join(unsafe[:3])}"
        )
    return members


def _is_special(info: zipfile.ZipInfo) -> bool:
    """Whether a member of a zip is a link, a device or encrypted."""
    kind = (info.external_attr >> 16) & 0o170000
    return kind not in (0, 0o100000) or bool(info.flag_bits & 1)


def _check_size(member: _Member, limit: int, archive: Path) -> None:
    """Refuse a member that would unpack to more than a model can have."""
    if member.size > limit:
        raise CheckpointError(
            f"{archive} is not safe to unpack: a file in it would take {member.size} "
            f"bytes, at most {limit} are accepted for an archive of this size"
        )


def _content(member: _Member, archive: Path) -> bytes:
    """The bytes of a small file."""
    _check_size(member, MAX_TEXT_BYTES, archive)
    with member.open() as source:
        return source.read(MAX_TEXT_BYTES)
