"""From what a user names (path, Hugging Face id, ESPnet tag) to files on this disk.

Downloads are of one exact commit, and every file is checked against the hash that the
Hub lists for it before it is handed out. With the files in Hugging Face's cache no
network is needed.
"""

import contextlib
import csv
import errno
import hashlib
import importlib.util
import logging
import re
import shutil
import tempfile
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

from espnet2_sslam.checkpoint.files import CheckpointError
from espnet2_sslam.store import sha256, write_text
from espnet2_sslam.unpack import is_archive, unpack

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
HUB_URL = "https://huggingface.co/"
COMMIT = re.compile(r"[0-9a-f]{40}")
TIMEOUT = 20  # seconds for the list of a repository's files
UNPACKED = Path("~/.cache/espnet2_sslam/unpacked")
ZOO_FILES = Path("~/.cache/espnet_model_zoo")  # espnet_model_zoo's own default
META_FILE = "meta.yaml"  # of ESPnet's pack: it names config.yaml and the weights
FILE_SUFFIXES = (".pt", ".pth", ".safetensors", ".yaml", ".json", ".onnx", ".bin")
WEIGHTS = ("model.safetensors", "*.safetensors", "*.pt", "*.pth")  # first kind found
TEXTS = (
    "config.json",
    "config.yaml",
    "preprocessor_config.json",
    "classes.txt",
    "*label*.csv",
    "*label*.txt",
    "*label*.json",
)


def resolve(
    source: str | Path,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
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
            _refuse_revision(text, "a local path", revision)
            packed = path.is_file() and is_archive(path)
            return unpack_model(path, unpacked) if packed else path
        url = zoo_table().get(text)
        if url is not None and not url.startswith(("huggingface.co", HUB_URL)):
            _refuse_revision(text, "an ESPnet tag with a fixed file", revision)
            return unpack_model(_zoo_download(text, cache_dir), unpacked)
        if url is not None and url.startswith(HUB_URL):
            text = url.removeprefix(HUB_URL).strip("/") or text
        name = text.removeprefix(HUB_URL)
        is_id = HUB_ID.fullmatch(name) and not name.endswith((*FILE_SUFFIXES, ".zip"))
        if not isinstance(source, str) or not is_id:
            raise CheckpointError(
                f"{text!r}: there is no such file or folder (a Hugging Face id is "
                "user/repo)"
            )
        repo, _, inside = name.partition("@")
        if inside and revision is not None and revision != inside:
            raise CheckpointError(
                f"{name}: two revisions are named, {inside} and {revision}"
            )
        return _Repository(repo, inside or revision, cache_dir).fetch()
    except OSError as error:  # what the disk has to say, in one line
        where = f" ({error.filename})" if error.filename else ""
        if error.errno == errno.ENOSPC:
            raise CheckpointError(
                f"{text}: no space left on the disk{where}: free some, or name another "
                "folder as cache_dir, and run again"
            ) from error
        reason = error.strerror or " ".join(str(error).split())
        raise CheckpointError(f"{text}: {reason}{where}") from error


def _refuse_revision(source: str, kind: str, revision: str | None) -> None:
    """A revision that would not be looked at is a mistake."""
    if revision is not None:
        raise CheckpointError(
            f"{source} is {kind}: revision is for a Hugging Face id, leave it out"
        )


# --- packed models and ESPnet's model zoo


def unpack_model(archive: Path, cache_dir: Path) -> Path:
    """Take a packed model (ESPnet's `pack` format) out of its archive, once.

    Args:
        archive: .zip or .tar file of ESPnet's pack or ours.
        cache_dir: Folder for unpacked models.

    Returns:
        A folder with config.yaml, the weights (*.pth) and meta.yaml.

    Raises:
        CheckpointError: Not such an archive, damaged, or one that is not safe.
        OSError: It cannot be written.
    """
    archive = archive.resolve()
    status = archive.stat()
    key = f"{archive}|{status.st_size}|{status.st_mtime_ns}"
    digest = hashlib.sha256(key.encode()).hexdigest()[:24]
    target = cache_dir.expanduser() / f"{archive.name.split('.')[0]}-{digest}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unpack-", dir=target.parent) as folder:
        content, model = Path(folder) / "all", Path(folder) / "model"
        model.mkdir()
        try:
            unpack(archive, content)
        except ValueError as error:
            raise CheckpointError(str(error)) from None
        meta = min(content.rglob(META_FILE), key=lambda p: len(p.parts), default=None)
        if meta is None:
            raise CheckpointError(f"{archive} holds no {META_FILE}: ESPnet's pack does")
        config, weights = packed_files(meta.read_bytes(), str(archive))
        name = f"{Path(weights).stem}.pth"
        for member, place in (config, "config.yaml"), (weights, name):
            if not (content / member).is_file():
                raise CheckpointError(f"{archive} lacks {member}, which it should hold")
            shutil.move(content / member, model / place)
        named = {
            "yaml_files": {"train_config": "config.yaml"},
            "files": {"model_file": name},
        }
        (model / META_FILE).write_text(yaml.safe_dump(named), encoding="utf-8")
        try:
            model.rename(target)
        except OSError:
            if not target.is_dir():  # else another process was faster
                raise
    return target


def packed_files(text: str | bytes, source: str) -> tuple[str, str]:
    """Paths of the configuration and of the weights that a meta.yaml names.

    Raises:
        CheckpointError: Not ESPnet's meta.yaml, or one of another kind of model.
    """
    try:
        meta = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError):
        meta = None
    paths = []
    for section, ending in ("yaml_files", "train_config"), ("files", "model_file"):
        named = meta.get(section) if isinstance(meta, dict) else None
        if not isinstance(named, dict):
            raise CheckpointError(
                f"{source}: its {META_FILE} is not that of ESPnet's pack"
            )
        files = [file for name, file in named.items() if str(name).endswith(ending)]
        files = list(named.values()) if len(named) == 1 else files
        if len(files) != 1 or not isinstance(files[0], str):
            raise CheckpointError(
                f"{source}: its {META_FILE} must name one {ending}, it names "
                f"{', '.join(map(str, named)) or 'nothing'}: this is not one of our "
                "models"
            )
        # An absolute path is stored without its first slash, as every archiver does it.
        path = files[0].lstrip("/")
        if ".." in Path(path).parts:
            raise CheckpointError(f"{source} is not safe to unpack: it names {path}")
        paths.append(path)
    return paths[0], paths[1]


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


def _zoo_download(tag: str, cache_dir: str | Path | None) -> Path:
    """The archive of a tag; from espnet_model_zoo's cache if it is there."""
    from espnet_model_zoo.downloader import ModelDownloader, str_to_hash

    folder = Path(cache_dir or ZOO_FILES).expanduser()
    downloader = ModelDownloader(folder)
    url = downloader.get_url(name=tag)
    # ESPnet writes `url` after the whole archive.
    done = folder / str_to_hash(url) / "url"
    if done.is_file():
        archives = [path for path in done.parent.iterdir() if is_archive(path)]
        if len(archives) == 1:
            return archives[0]
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


# --- Hugging Face


class _Repository:
    """One repository at one revision, in a cache folder (Hugging Face's by default)."""

    def __init__(
        self, repo: str, revision: str | None, cache_dir: str | Path | None = None
    ):
        from huggingface_hub import constants

        self.repo, self.revision = repo, revision
        self.label = f"{repo}@{revision}" if revision else repo
        self.cache = Path(cache_dir or constants.HF_HUB_CACHE).expanduser()
        self.storage = self.cache / f"models--{repo.replace('/', '--')}"
        self.online = False
        self.hashes: dict[str, str | None] = (
            {}
        )  # of every file: SHA-256, or git's SHA-1
        self.commit: str = revision or constants.DEFAULT_REVISION

    def fetch(self) -> Path:
        """Folder of the commit; of a repository with .pt or .pth weights, that file.

        Raises:
            CheckpointError: It cannot be had, or is not what it should be.
        """
        if COMMIT.fullmatch(self.commit):
            self._list_cache()
            if self._is_usable():  # a commit never changes: no need to ask the Hub
                return self._files()
        self._list()
        return self._files()

    def _list(self) -> None:
        """Ask the Hub for the commit and its files, or look into the cache."""
        from huggingface_hub import HfApi, errors

        try:
            info = HfApi().model_info(
                self.repo, revision=self.revision, files_metadata=True, timeout=TIMEOUT
            )
        except errors.HFValidationError as error:
            raise CheckpointError(f"{self.repo} is not a Hugging Face id") from error
        except (errors.HTTPError, OSError) as error:  # type: ignore[attr-defined]
            _raise_if_final(error, self.label)
            ref = self.storage / "refs" / self.commit
            if ref.is_file():
                self.commit = ref.read_text().strip()
            self._list_cache()
            if not self.hashes:
                raise CheckpointError(
                    f"{self.label} is not in the cache ({self.cache}) and "
                    f"{_unreachable(error)}: connect to the network and run again"
                ) from error
            logging.info("%s: commit %s from the cache", self.label, self.commit)
            return
        self.online = True
        self.hashes = {
            file.rfilename: file.lfs.sha256 if file.lfs else file.blob_id
            for file in info.siblings or ()
            if ".." not in file.rfilename.split("/")
        }
        assert info.sha, "the Hub names the commit"
        if self.revision == info.sha:
            return
        # as the Hub's own client keeps it, which finds the commit so without network
        with contextlib.suppress(OSError):  # a cache that is read-only
            write_text(self.storage / "refs" / self.commit, info.sha)
        self.commit = info.sha
        pin = f"{self.repo}@{info.sha}"
        logging.info("%s is commit %s: pin it with %s", self.label, info.sha, pin)

    def _list_cache(self) -> None:
        """The files of the commit that are on this disk.

        Hugging Face names them there by what the Hub listed: SHA-256, or git's SHA-1.
        """
        snapshot = self.storage / "snapshots" / self.commit
        for path in snapshot.rglob("*"):
            if path.is_file():
                blob = path.resolve().name if path.is_symlink() else None
                self.hashes[path.relative_to(snapshot).as_posix()] = blob

    def _is_usable(self) -> bool:
        """Whether the cache holds a whole model."""
        names = set(self.hashes)
        pickles = any(name.endswith((".pt", ".pth")) for name in names)
        tensors = any(name.endswith(".safetensors") for name in names)
        if META_FILE in names:
            return pickles and any(name.endswith("config.yaml") for name in names)
        return "config.json" in names if tensors else pickles

    def _files(self) -> Path:
        """Download and check what a model needs."""
        if META_FILE in self.hashes:  # as ESPnet's model zoo puts models on the Hub
            return self._packed_files()
        weights = self._choose_weights()
        names = [
            name
            for name in self.hashes
            if "/" not in name and any(fnmatch(name, pattern) for pattern in TEXTS)
        ]
        names.append(weights)  # last: then the rest is there, see `_is_usable`
        path = [self._file(name) for name in names][-1]
        return path if weights.endswith((".pt", ".pth")) else path.parent

    def _packed_files(self) -> Path:
        """The weights of a model in ESPnet's pack format, config.yaml beside them."""
        text = self._file(META_FILE).read_bytes()
        names = packed_files(text, self.label)
        for name in names:
            if name not in self.hashes:
                raise CheckpointError(f"{self.label} lacks {name}, see its {META_FILE}")
        config, weights = (self._file(name) for name in names)
        if config.parent != weights.parent or config.name != "config.yaml":
            raise CheckpointError(
                f"{self.label}: {names[0]} is not the config.yaml beside {names[1]}: "
                "this is not one of our models"
            )
        return weights

    def _choose_weights(self) -> str:
        """The one file of weights in the repository's first folder."""
        for pattern in WEIGHTS:
            names = [n for n in self.hashes if fnmatch(n, pattern) and "/" not in n]
            if len(names) == 1:
                return names[0]
            if names:
                raise CheckpointError(
                    f"{self.label} holds several files of weights "
                    f"({', '.join(sorted(names))}): fetch one with `hf download "
                    f"{self.repo} FILE` and name it"
                )
        if not self.online:
            raise CheckpointError(
                f"{self.label}: the weights are not in the cache ({self.cache}) and "
                "the Hub cannot be reached: connect to the network and run again"
            )
        raise CheckpointError(
            f"{self.label} holds no weights ({', '.join(WEIGHTS)}), but "
            f"{', '.join(sorted(self.hashes)[:5]) or 'nothing'}"
        )

    def _file(self, name: str) -> Path:
        """One file of the commit, checked; what is damaged is fetched once more."""
        path = self._download(name)
        if not self._is_sound(path, name) and self.online:
            logging.warning("%s in the cache is damaged: it is fetched again", path)
            path = self._download(name, force_download=True)
        if not self._is_sound(path, name):
            raise CheckpointError(
                f"{self.label}: {name} does not have the hash that the Hub lists: "
                f"delete {path.resolve()} and run again"
            )
        return path

    def _download(self, name: str, **options: Any) -> Path:
        """Path of a file of the commit, downloaded if it is not in the cache."""
        from huggingface_hub import errors, hf_hub_download

        path = self.storage / "snapshots" / self.commit / name
        if path.is_file() and not options:
            return path
        try:
            return Path(
                hf_hub_download(
                    self.repo,
                    name,
                    revision=self.commit,
                    cache_dir=self.cache,
                    **options,
                )
            )
        except (errors.HTTPError, OSError, RuntimeError) as error:  # type: ignore
            if getattr(error, "errno", None) is not None:
                raise  # the disk's, not the network's
            _raise_if_final(error, self.label)
            raise CheckpointError(
                f"{self.label}: {name} is not in the cache ({self.cache}) and "
                f"could not be fetched, {_unreachable(error)}: run again, whole "
                "files are kept"
            ) from error

    def _is_sound(self, path: Path, name: str) -> bool:
        """Whether the file is what the Hub lists; a hash that nobody knows is none."""
        listed = self.hashes[name] or ""
        if re.fullmatch(r"[0-9a-f]{64}", listed):
            return sha256(path) == listed
        if COMMIT.fullmatch(listed):  # git's id of a small file
            content = path.read_bytes()
            blob = b"blob %d\0" % len(content) + content
            return hashlib.sha1(blob).hexdigest() == listed
        return True


def _status(error: BaseException | None) -> int | None:
    """HTTP status of the Hub's answer, if there was one."""
    return getattr(getattr(error, "response", None), "status_code", None)


def _raise_if_final(error: Exception, label: str) -> None:
    """Turn into one line what the network's return would not change."""
    from huggingface_hub import errors

    repo, _, revision = label.partition("@")
    status = _status(error)
    if isinstance(error, errors.GatedRepoError):
        line = "is gated: accept its terms on its page and log in (`hf auth login`)"
    elif isinstance(error, errors.RevisionNotFoundError):
        line = f"has no revision {revision}: see its list of commits"
    elif isinstance(error, errors.RepositoryNotFoundError) or status == 401:
        line = "does not exist, or is private: check the name, or `hf auth login`"
    elif status == 403:
        line = "may not be read with this token: `hf auth login` with another"
    elif status is not None and 400 <= status < 500 and status not in (408, 429):
        line = f"cannot be had: the Hub answers {status}"
    else:
        return
    raise CheckpointError(f"{repo} {line}") from error


def _unreachable(error: BaseException | None) -> str:
    """Why the Hub gave nothing, in a few words."""
    from huggingface_hub import errors

    if _status(error) is not None:
        return f"the Hub answers {_status(error)}"
    kind = type(error).__name__
    while error is not None:
        if isinstance(error, errors.OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set"
        error = error.__cause__
    return f"the Hub cannot be reached ({kind})"
