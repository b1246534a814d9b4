"""From what a user names (path, packed model, Hugging Face id) to files on this disk.

Downloads are of one exact commit, and every file is checked against the hash that the
Hub lists for it. With the files in Hugging Face's cache no network is needed.
"""

import errno
import hashlib
import logging
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path

from espnet2_sslam.checkpoint.layouts import (
    INDEX_FILE,
    WEIGHTS_FILE,
    CheckpointError,
    shards_of,
)
from espnet2_sslam.store import parse_yaml, sha256, write_text
from espnet2_sslam.unpack import is_archive, unpack

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
HUB_URL = "https://huggingface.co/"
COMMIT = re.compile(r"[0-9a-f]{40}")
TIMEOUT = 20  # seconds for the list of a repository's files
UNPACKED = Path("~/.cache/espnet2_sslam/unpacked")
META_FILE = "meta.yaml"  # of ESPnet's pack: it names the weights
MODEL_FILE = "model_file"  # so ends the weights' key in it
FILE_SUFFIXES = (".pt", ".pth", ".safetensors", ".yaml", ".json", ".onnx", ".bin")
WEIGHTS = (WEIGHTS_FILE, "*.safetensors", "*.pt", "*.pth")  # first kind found
CONFIGS = ("config.json", "config.yaml", "preprocessor_config.json", "classes.txt")
TEXTS = (*CONFIGS, "*label*.csv", "*label*.txt", "*label*.json")
# What looks like an id may be a folder's name with a slip.
NO_REPOSITORY = """is not there: no such folder here, and on the Hub no such repository,
or a private one: check the name, or `hf auth login`""".replace(
    "\n", " "
)
REFUSALS = {  # by huggingface_hub's error or the status of the answer
    "GatedRepoError": "is gated: accept its terms on its page, then `hf auth login`",
    "RevisionNotFoundError": "has no such revision: see its list of commits",
    "RepositoryNotFoundError": NO_REPOSITORY,
    401: NO_REPOSITORY,
    403: "may not be read with this token: `hf auth login` with another",
}
BUSY = (408, 429)  # what the Hub answers today may be another answer tomorrow


def resolve(
    source: str | Path,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
) -> Path:
    """Find or fetch a model; afterwards its files are on this disk.

    Args:
        source: A local path, or else a Hugging Face id, "user/repo" or
            "user/repo@revision". A packed model (.zip) is unpacked into a cache folder.
        revision: Branch, tag or commit of a Hugging Face id. A branch is resolved to
            its commit, which is logged, so that it can be pinned.
        cache_dir: Where downloads and unpacked models go; by default Hugging Face's
            cache and ~/.cache/espnet2_sslam/unpacked.

    Returns:
        The local path; or a folder with the model's files; or, of a packed model and of
        a repository with .pt or .pth weights, that file.

    Raises:
        CheckpointError: There is no such thing, it cannot be reached, or it is damaged.
    """
    text, path = str(source), Path(source).expanduser()
    unpacked = Path(cache_dir or UNPACKED).expanduser()
    try:
        if text and path.exists():
            if revision is not None:
                raise CheckpointError(
                    f"{text} is a local path: revision is for a Hugging Face id, leave "
                    "it out"
                )
            packed = path.is_file() and is_archive(path)
            return unpack_model(path, unpacked) if packed else path
        name = text.removeprefix(HUB_URL)
        is_file = isinstance(source, Path) or name.endswith((*FILE_SUFFIXES, ".zip"))
        if is_file or not HUB_ID.fullmatch(name):
            raise CheckpointError(
                f"{text!r}: there is no such file or folder (a Hugging Face id is "
                "user/repo)"
            )
        repo, _, inside = name.partition("@")
        if inside and revision not in (None, inside):
            raise CheckpointError(
                f"{name}: two revisions are named, {inside} and {revision}"
            )
        return _Repository(repo, inside or revision, cache_dir).fetch()
    except OSError as error:  # what the disk has to say, in one line
        reason = error.strerror or " ".join(str(error).split())
        if error.filename:
            reason += f" ({error.filename})"
        if error.errno == errno.ENOSPC:
            reason += ": free some, or name another folder as cache_dir, and run again"
        raise CheckpointError(f"{text}: {reason}") from error


# --- packed models


def unpack_model(archive: Path, cache_dir: Path) -> Path:
    """Take a packed model (.zip or .tar of ESPnet's pack or ours) out, once.

    Returns:
        The weights, with config.yaml beside, in a folder below `cache_dir`.

    Raises:
        CheckpointError: Not such an archive, damaged, or one that is not safe.
        OSError: It cannot be written.
    """
    archive = archive.resolve()
    status = archive.stat()
    key = f"{archive}|{status.st_size}|{status.st_mtime_ns}"
    digest = hashlib.sha256(key.encode()).hexdigest()[:24]
    folder = cache_dir / f"{archive.name.split('.')[0]}-{digest}"
    if not folder.is_dir():
        try:
            unpack(archive, cache_dir, into=folder.name)
        except ValueError as error:
            if not folder.is_dir():  # else another process was faster
                raise CheckpointError(str(error)) from None
    meta = min(folder.rglob(META_FILE), key=lambda path: len(path.parts), default=None)
    if meta is None:
        raise CheckpointError(f"{archive} holds no {META_FILE}: ESPnet's pack does")
    files = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
    _, weights = packed_files(meta.read_bytes(), files, str(archive))
    return folder / weights


def packed_files(text: bytes, files: Iterable[str], source: str) -> tuple[str, str]:
    """Paths of the config.yaml beside the weights that a meta.yaml names, and of these.

    Args:
        text: Content of meta.yaml.
        files: Paths of the files that there are.
        source: What errors call the model.

    Raises:
        CheckpointError: Not ESPnet's meta.yaml, or one of another kind of model.
    """
    try:
        named = dict(parse_yaml(text, META_FILE)["files"])
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(
            f"{source}: its {META_FILE} is not that of ESPnet's pack"
        ) from None
    models = [
        v for k, v in named.items() if len(named) == 1 or str(k).endswith(MODEL_FILE)
    ]
    if len(models) != 1:
        raise CheckpointError(
            f"{source}: its {META_FILE} must name one {MODEL_FILE}, it names "
            f"{', '.join(map(str, named)) or 'nothing'}: this is not one of our models"
        )
    # An absolute path is stored without its first slash, as every archiver does it.
    weights = str(models[0]).lstrip("/")
    config = Path(weights).with_name("config.yaml").as_posix()
    for name in (config, weights):
        if name not in files:
            raise CheckpointError(f"{source} lacks {name}, see its {META_FILE}")
    return config, weights


# --- Hugging Face


class _Repository:
    """One repository at one revision, in a cache folder (Hugging Face's by default)."""

    def __init__(self, repo: str, revision: str | None, cache_dir: str | Path | None):
        from huggingface_hub import constants

        self.repo, self.revision = repo, revision
        self.label = f"{repo}@{revision}" if revision else repo
        self.cache = Path(cache_dir or constants.HF_HUB_CACHE).expanduser()
        self.storage = self.cache / f"models--{repo.replace('/', '--')}"
        self.online = False
        self.commit: str = revision or constants.DEFAULT_REVISION

    def fetch(self) -> Path:
        """Folder of the commit; of a repository with .pt or .pth weights, that file.

        Raises:
            CheckpointError: It cannot be had, or is not what it should be.
        """
        names: Sequence[str] = ()
        if COMMIT.fullmatch(self.commit):  # it never changes: no need to ask the Hub
            with suppress(CheckpointError):
                names = self._choose(self._cached())
        # other programs fetch files one by one: the configuration may be lacking
        is_safe = bool(names) and names[-1].endswith(".safetensors")
        if not names or (is_safe and "config.json" not in names):
            names = self._choose(self._list())
        path = [self._file(name) for name in names][-1]
        return path.parent if path.suffix == ".safetensors" else path

    def _list(self) -> list[str]:
        """The files of the commit: ask the Hub, or look into the cache."""
        from huggingface_hub import HfApi, errors

        try:
            info = HfApi().model_info(
                self.repo, revision=self.revision, timeout=TIMEOUT
            )
        except errors.HFValidationError as error:
            raise CheckpointError(f"{self.repo} is not a Hugging Face id") from error
        except (errors.HTTPError, OSError) as error:  # type: ignore[attr-defined]
            reason = self._reason(error)
            ref = self.storage / "refs" / self.commit
            self.commit = ref.read_text().strip() if ref.is_file() else self.commit
            files = self._cached()
            if not files:
                raise CheckpointError(
                    f"{self.label} is not there: no such folder here; as a Hugging "
                    f"Face id it is not in the cache ({self.cache}) and {reason}: "
                    "check the name, or connect to the network and run again"
                ) from error
            logging.info("%s: commit %s from the cache", self.label, self.commit)
            return files
        assert info.sha, "the Hub names the commit"
        self.online = True
        if self.revision != info.sha:
            # as the Hub's own client keeps it, which so finds it without network
            with suppress(OSError):  # a cache that is read-only
                write_text(self.storage / "refs" / self.commit, info.sha)
            pin = f"{self.repo}@{info.sha}"
            logging.info("%s is commit %s: pin it with %s", self.label, info.sha, pin)
        self.commit = info.sha
        names = [file.rfilename for file in info.siblings or ()]
        return [name for name in names if ".." not in name.split("/")]

    def _cached(self) -> list[str]:
        """The files of the commit that are on this disk."""
        snapshot = self.storage / "snapshots" / self.commit
        files = (path for path in snapshot.rglob("*") if path.is_file())
        return [path.relative_to(snapshot).as_posix() for path in files]

    def _choose(self, files: list[str]) -> Sequence[str]:
        """Those of a commit's files that make the model, the weights last.

        Raises:
            CheckpointError: No weights, or several without an index.
        """
        if META_FILE in files:  # as ESPnet's model zoo puts models on the Hub
            text = self._file(META_FILE).read_bytes()
            return packed_files(text, files, self.label)
        top = [name for name in files if "/" not in name]
        kinds = [sorted(n for n in top if fnmatch(n, kind)) for kind in WEIGHTS]
        weights = next((names for names in kinds if names), [])
        index = [INDEX_FILE] if INDEX_FILE in top and WEIGHTS_FILE not in top else []
        if index:  # one model in several files
            weights = shards_of(self._file(INDEX_FILE))
            lacking = ", ".join(name for name in weights if name not in top)
            if lacking and self.online:
                raise CheckpointError(
                    f"{self.label} lacks {lacking}, see its {INDEX_FILE}"
                )
            weights = [] if lacking else weights
        elif len(weights) > 1:
            raise CheckpointError(
                f"{self.label} holds several files of weights ({', '.join(weights)}): "
                f"fetch one with `hf download {self.repo} FILE` and name it"
            )
        if not weights and not self.online:
            raise CheckpointError(
                f"{self.label}: the weights are not in the cache ({self.cache}) and "
                "the Hub cannot be reached: connect to the network and run again"
            )
        if not weights:
            raise CheckpointError(
                f"{self.label} holds no weights ({', '.join(WEIGHTS)}), but "
                f"{', '.join(sorted(files)[:5]) or 'nothing'}"
            )
        texts = [n for n in top if any(fnmatch(n, pattern) for pattern in TEXTS)]
        return [*texts, *index, *weights]

    def _file(self, name: str, again: bool = False) -> Path:
        """One file of the commit, checked; what is damaged is fetched once more."""
        from huggingface_hub import errors, hf_hub_download

        options = {"cache_dir": self.cache, "force_download": again}
        try:
            path = hf_hub_download(self.repo, name, revision=self.commit, **options)
        except (errors.HTTPError, OSError, RuntimeError) as error:  # type: ignore
            if getattr(error, "errno", None) is not None:
                raise  # the disk's, not the network's
            raise CheckpointError(
                f"{self.label}: {name} is not in the cache ({self.cache}) and "
                f"could not be fetched, {self._reason(error)}: run again, whole "
                "files are kept"
            ) from error
        path = Path(path)
        if _is_sound(path):
            return path
        if self.online and not again:
            logging.warning("%s is damaged: it is fetched again", path)
            return self._file(name, again=True)
        raise CheckpointError(
            f"{self.label}: {name} does not have the hash that the Hub lists: "
            f"delete {path.resolve()} and run again"
        )

    def _reason(self, error: BaseException | None) -> str:
        """Why the Hub gave nothing, in a few words.

        Raises:
            CheckpointError: It would say the same tomorrow.
        """
        kind = type(error).__name__
        status = getattr(getattr(error, "response", None), "status_code", None)
        line = REFUSALS.get(kind) or REFUSALS.get(status)
        if status is not None and 400 <= status < 500 and status not in BUSY:
            line = line or f"cannot be had: the Hub answers {status}"
        if line:
            raise CheckpointError(f"{self.label} {line}") from error
        if status is not None:
            return f"the Hub answers {status}"
        while error is not None:
            if type(error).__name__ == "OfflineModeIsEnabled":
                return "HF_HUB_OFFLINE is set"
            error = error.__cause__
        return f"the Hub cannot be reached ({kind})"


def _is_sound(path: Path) -> bool:
    """Whether a file is what the Hub lists, by whose hash the cache names it.

    That is SHA-256 of large files and git's SHA-1 of small ones. Where links are not
    possible the cache keeps the file's own name, which tells nothing.
    """
    from huggingface_hub.utils.sha import git_hash

    listed = path.resolve().name
    if re.fullmatch(r"[0-9a-f]{64}", listed):
        return sha256(path) == listed
    return not COMMIT.fullmatch(listed) or git_hash(path.read_bytes()) == listed
