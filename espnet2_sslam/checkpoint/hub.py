"""From what a user names (path, Hugging Face id, ESPnet tag) to files on this disk.

Downloads are of one exact commit, and every file is checked against the hash that the
Hub lists for it before it is handed out. With the files in the cache no network is
needed.
"""

import csv
import errno
import importlib.util
import logging
import re
from collections.abc import Mapping
from pathlib import Path

from espnet2_sslam.checkpoint.archive import is_archive, unpack
from espnet2_sslam.checkpoint.errors import CheckpointError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
HUB_URL = "https://huggingface.co/"
UNPACKED = Path("~/.cache/espnet2_sslam/unpacked")
ZOO_FILES = Path("~/.cache/espnet_model_zoo")  # espnet_model_zoo's own default
FILE_SUFFIXES = (".pt", ".pth", ".safetensors", ".yaml", ".json", ".onnx", ".bin")


def resolve(
    source: str | Path,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    sha256: Mapping[str, str] | None = None,
) -> Path:
    """Find or fetch a model; afterwards its files are on this disk.

    Args:
        source: In this order: a local path; a tag of espnet_model_zoo's table; a
            Hugging Face id, "user/repo" or "user/repo@revision". A packed model (.zip)
            is unpacked into a cache folder, wherever it comes from.
        revision: Branch, tag or commit of a Hugging Face id. A branch is resolved to
            its commit, which is logged, so that it can be pinned.
        cache_dir: Where downloads and unpacked models go; by default the caches of
            Hugging Face and espnet_model_zoo, and ~/.cache/espnet2_sslam/unpacked.
        sha256: Hashes that files of a Hugging Face id must have, by file name.

    Returns:
        The local path; or a folder with the model's files; or, of a repository whose
        weights are a .pt or .pth file, that file.

    Raises:
        CheckpointError: There is no such thing, it cannot be reached, or it is damaged.
    """
    text = str(source)
    unpacked = Path(cache_dir or UNPACKED)
    try:
        path = Path(source).expanduser()
        if text and path.exists():
            _refuse_pins(text, "a local path", revision, sha256)
            local = path.is_file() and is_archive(path)
            return unpack(path, unpacked) if local else path
        url = zoo_table().get(text)
        if url is not None and not url.startswith(("huggingface.co", HUB_URL)):
            _refuse_pins(text, "an ESPnet tag with a fixed file", revision, sha256)
            return unpack(_zoo_download(text, cache_dir), unpacked)
        if url is not None and url.startswith(HUB_URL):
            text = url.removeprefix(HUB_URL).strip("/") or text
        name = text.removeprefix(HUB_URL)
        if not isinstance(source, str) or not _looks_like_id(name):
            raise CheckpointError(
                f"{text!r}: there is no such file or folder (a Hugging Face id is "
                "user/repo)"
            )
        return _from_hub(name, revision, cache_dir, sha256 or {})
    except OSError as error:
        raise CheckpointError(_os_error_line(text, error)) from error


def zoo_table() -> dict[str, str]:
    """Tags of the installed espnet_model_zoo and where their files are."""
    package = importlib.util.find_spec("espnet_model_zoo")
    if package is None or package.origin is None:
        return {}
    table = Path(package.origin).with_name("table.csv")
    if not table.is_file():
        return {}
    with open(table, encoding="utf-8", newline="") as stream:
        return {row["name"]: row["url"] for row in csv.DictReader(stream)}


def _looks_like_id(text: str) -> bool:
    """Whether this can be a Hugging Face id rather than a mistyped path."""
    return bool(HUB_ID.fullmatch(text)) and not text.endswith(FILE_SUFFIXES + (".zip",))


def _refuse_pins(source, what, revision, sha256) -> None:
    """A revision or a hash that would not be looked at is a mistake."""
    if revision is not None or sha256:
        raise CheckpointError(
            f"{source} is {what}: revision and sha256 are for a Hugging Face id, leave "
            "them out"
        )


def _from_hub(name, revision, cache_dir, sha256) -> Path:
    """Files of a Hugging Face id."""
    from espnet2_sslam.checkpoint.hub_files import fetch

    repo, _, inside = name.partition("@")
    if inside and revision is not None and revision != inside:
        raise CheckpointError(
            f"{name}: two revisions are named, {inside} and {revision}"
        )
    return fetch(repo, inside or revision, cache_dir, sha256)


def _zoo_download(tag: str, cache_dir: str | Path | None) -> Path:
    """The archive of a tag; from espnet_model_zoo's cache if it is there."""
    from espnet_model_zoo.downloader import ModelDownloader, str_to_hash

    folder = Path(cache_dir or ZOO_FILES).expanduser()
    downloader = ModelDownloader(folder)
    url = downloader.get_url(name=tag)
    # ESPnet writes `url` after the whole archive.
    done = folder / str_to_hash(url) / "url"
    if done.is_file():
        found = [path for path in done.parent.iterdir() if is_archive(path)]
        if len(found) == 1:
            return found[0]
    try:
        path = Path(downloader.download(tag))
    except OSError as error:  # what requests raises is one, too
        if error.errno == errno.ENOSPC:
            raise
        raise CheckpointError(
            f"{tag} is neither in the cache ({folder}) nor can it be fetched from "
            f"{url} ({type(error).__name__}): connect to the network and run again"
        ) from error
    if not is_archive(path):
        raise CheckpointError(f"{tag}: {path.name} is not a packed model")
    logging.info("%s: %s", tag, path)
    return path


def _os_error_line(source: str, error: OSError) -> str:
    """What the disk had to say, in one line."""
    where = f" ({error.filename})" if error.filename else ""
    if error.errno == errno.ENOSPC:
        return (
            f"{source}: no space left on the disk{where}: free some, or name another "
            "folder as cache_dir, and run again"
        )
    reason = error.strerror or " ".join(str(error).split())
    return f"{source}: {reason}{where}"
