"""The files of one commit of a Hugging Face repository, fetched and checked."""

import logging
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants
from huggingface_hub import errors as hub_errors
from huggingface_hub import hf_hub_download

from espnet2_sslam.checkpoint.archive import META_FILE, read_meta
from espnet2_sslam.checkpoint.errors import CheckpointError
from espnet2_sslam.checkpoint.hub_record import COMMIT, Listed, Record, expected_hash

TIMEOUT = 20  # seconds for the list of a repository's files
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


def fetch(
    repo: str,
    revision: str | None,
    cache_dir: str | Path | None,
    pinned: Mapping[str, str],
) -> Path:
    """Download what a model needs of a repository, or find it in the cache.

    Args:
        repo: user/repo.
        revision: Branch, tag or commit; by default the main branch.
        cache_dir: Hugging Face's own cache by default.
        pinned: SHA-256 of files, by name.

    Returns:
        The folder of the commit; of a repository with .pt or .pth weights, that file.

    Raises:
        CheckpointError: It cannot be had, or is not what it should be.
    """
    folder = Path(cache_dir or constants.HF_HUB_CACHE).expanduser()
    return _Repository(repo, revision, folder, pinned).fetch()


class _Repository:
    """One repository at one commit, in one cache folder."""

    def __init__(
        self,
        repo: str,
        revision: str | None,
        cache: Path,
        pinned: Mapping[str, str],
    ):
        self.repo, self.revision, self.cache = repo, revision, cache
        self.pinned = {name: value.lower() for name, value in pinned.items()}
        self.storage = cache / f"models--{repo.replace('/', '--')}"
        self.record = Record(self.storage)
        self.online = True

    @property
    def label(self) -> str:
        """How messages call it."""
        return f"{self.repo}@{self.revision}" if self.revision else self.repo

    def fetch(self) -> Path:
        """See the function of that name."""
        commit, listing = self._commit_and_listing()
        if META_FILE in listing:
            return self._packed(commit, listing)
        weights = _choose_weights(listing, self.label)
        names = [n for n in listing if "/" not in n and _is_text(n)]
        unknown = set(self.pinned) - {*names, weights}
        if unknown:
            raise CheckpointError(
                f"{self.label}: sha256 is given for {', '.join(sorted(unknown))}, "
                f"needed are {', '.join([*names, weights])}"
            )
        paths = {name: self._file(commit, listing[name]) for name in [*names, weights]}
        single = weights.endswith((".pt", ".pth"))
        return paths[weights] if single else paths[weights].parent

    def _packed(self, commit: str, listing: dict[str, Listed]) -> Path:
        """A model in ESPnet's pack format, as its model zoo puts them on the Hub."""
        meta = self._file(commit, listing[META_FILE])
        packed = read_meta(meta.read_bytes(), self.label)
        for name in packed:
            if name not in listing:
                raise CheckpointError(f"{self.label} lacks {name}, see its {META_FILE}")
        config, weights = (self._file(commit, listing[name]) for name in packed)
        if config.parent != weights.parent or config.name != "config.yaml":
            raise CheckpointError(
                f"{self.label}: {packed.config} is not the config.yaml beside "
                f"{packed.weights}: this is not one of our models"
            )
        return weights

    def _commit_and_listing(self):
        """The commit, and its files by name; from the cache where that is enough."""
        if self.revision and COMMIT.fullmatch(self.revision):
            listing = self.record.listing(self.revision)
            if listing:
                return self.revision, listing
        try:
            info = HfApi().model_info(
                self.repo, revision=self.revision, files_metadata=True, timeout=TIMEOUT
            )
        except hub_errors.HFValidationError as error:
            raise CheckpointError(f"{self.repo} is not a Hugging Face id") from error
        except (hub_errors.HTTPError, OSError) as error:
            _raise_if_final(error, self.label)
            self.online = False
            return self._from_cache(error)
        if self.revision != info.sha:
            logging.info(
                "%s is commit %s: pin it with %s@%s",
                self.label,
                info.sha,
                self.repo,
                info.sha,
            )
        files = {
            s.rfilename: [s.lfs.sha256 if s.lfs else None, s.blob_id]
            for s in info.siblings or ()
        }
        self.record.remember(self.revision, info.sha, files)
        return info.sha, self.record.listing(info.sha)

    def _from_cache(self, error: Exception):
        """Commit and files that an earlier call, or another program, has left here."""
        commit = self.revision or constants.DEFAULT_REVISION
        ref = self.storage / "refs" / commit
        if not COMMIT.fullmatch(commit):
            known = self.record.commit(self.revision)
            commit = known or (ref.read_text().strip() if ref.is_file() else commit)
        snapshot = self.storage / "snapshots" / commit
        if not snapshot.is_dir():
            raise CheckpointError(
                f"{self.label} is not in the cache ({self.cache}) and "
                f"{_unreachable(error)}: connect to the network and run again"
            ) from error
        logging.info("%s: commit %s from the cache", self.label, commit)
        recorded = self.record.listing(commit)
        if recorded:
            return commit, recorded
        paths = (path for path in snapshot.rglob("*") if path.is_file())
        names = [path.relative_to(snapshot).as_posix() for path in paths]
        return commit, {name: Listed(name) for name in names}

    def _file(self, commit: str, wanted: Listed) -> Path:
        """One file of the commit, checked; what is damaged is fetched once more."""
        path = self._download(commit, wanted.name)
        if self._is_sound(path, wanted):
            return path
        if self.online:
            logging.warning("%s in the cache is damaged: it is fetched again", path)
            path = self._download(commit, wanted.name, force_download=True)
            if self._is_sound(path, wanted):
                return path
        raise CheckpointError(
            f"{self.label}: {wanted.name} does not have the hash that the Hub lists: "
            f"delete {path.resolve()} and run again"
        )

    def _download(self, commit: str, name: str, **options: Any) -> Path:
        """Path of a file of the commit, downloaded if it is not in the cache."""
        path = self.storage / "snapshots" / commit / name
        if path.is_file() and not options:
            return path
        if not self.online:
            raise CheckpointError(
                f"{self.label}: {name} is not in the cache ({self.cache}) and the Hub "
                "cannot be reached: connect to the network and run again"
            )
        try:
            path = hf_hub_download(
                self.repo,
                name,
                revision=commit,
                cache_dir=self.cache,
                **options,
            )
        except (hub_errors.HTTPError, OSError, RuntimeError) as error:
            if getattr(error, "errno", None) is not None:
                raise  # the disk's, not the network's
            _raise_if_final(error, self.label)
            raise CheckpointError(
                f"{self.label}: {name} is not in the cache ({self.cache}) and "
                f"could not be fetched, {_unreachable(error)}: run again, whole "
                "files are kept"
            ) from error
        return Path(path)

    def _is_sound(self, path: Path, wanted: Listed) -> bool:
        """Whether the file is what the Hub lists.

        Raises:
            CheckpointError: It is, but it is not the pinned one.
        """
        expected, kind = expected_hash(path, wanted)
        if expected is not None and self.record.digest(path, kind) != expected:
            return False
        pin = self.pinned.get(wanted.name)
        if pin is not None and self.record.digest(path, "sha256") != pin:
            found = self.record.digest(path, "sha256")
            raise CheckpointError(
                f"{self.label}: {wanted.name} has SHA-256 {found}, pinned is {pin}"
            )
        return True


def _is_text(name: str) -> bool:
    """Whether a file says something about the model."""
    return any(fnmatch(name, pattern) for pattern in TEXTS)


def _choose_weights(listing: Mapping[str, Any], label: str) -> str:
    """The one file of weights in a repository's first folder."""
    for pattern in WEIGHTS:
        found = [name for name in listing if fnmatch(name, pattern) and "/" not in name]
        if len(found) == 1:
            return found[0]
        if found:
            raise CheckpointError(
                f"{label} holds several files of weights ({', '.join(sorted(found))}): "
                f"fetch one with `hf download {label.split('@')[0]} FILE` and name it"
            )
    raise CheckpointError(
        f"{label} holds no weights ({', '.join(WEIGHTS)}), but "
        f"{', '.join(sorted(listing)[:5]) or 'nothing'}"
    )


def _raise_if_final(error: Exception, label: str) -> None:
    """Turn into one line what the network's return would not change."""
    repo, _, revision = label.partition("@")
    status = getattr(getattr(error, "response", None), "status_code", None)
    line = None
    if isinstance(error, hub_errors.GatedRepoError):
        line = "is gated: accept its terms on its page and log in (`hf auth login`)"
    elif isinstance(error, hub_errors.RevisionNotFoundError):
        line = f"has no revision {revision}: see its list of commits"
    elif isinstance(error, hub_errors.RepositoryNotFoundError) or status == 401:
        line = "does not exist, or is private: check the name, or `hf auth login`"
    elif isinstance(error, hub_errors.EntryNotFoundError) and status == 404:
        line = "lacks a file that it lists: try another revision"
    elif status == 403:
        line = "may not be read with this token: `hf auth login` with another"
    elif status is not None and 400 <= status < 500 and status not in (408, 429):
        line = f"cannot be had: the Hub answers {status}"
    if line:
        raise CheckpointError(f"{repo} {line}") from error


def _unreachable(error: BaseException | None) -> str:
    """Why the Hub gave nothing, in a few words."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return f"the Hub answers {status}"
    cause = error
    while cause is not None:
        if isinstance(cause, hub_errors.OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set"
        cause = cause.__cause__
    return f"the Hub cannot be reached ({type(error).__name__})"
