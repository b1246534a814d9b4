"""A published folder to the Hugging Face Hub: one commit, or nothing."""

import hashlib
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
)
from huggingface_hub import errors as hub_errors
from huggingface_hub import (
    get_token,
)
from huggingface_hub.utils import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)
from huggingface_hub.utils import logging as hub_logging

from espnet2_sslam.integrations.publish.folder import read_folder
from espnet2_sslam.store import sha256

REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
OWN_FILES = (".gitattributes",)  # the Hub makes them itself
GIT_LIMIT = 10 * 2**20  # bytes; the Hub never keeps larger files in git itself
Files = dict[str, Path | bytes]  # as `read_folder` gives them
MESSAGE = "Publish with espnet2_sslam"


class UploadError(ValueError):
    """One line on why the Hub does not have the model now."""


def check_repo(repo: str) -> None:
    """Refuse what can be no repository's name."""
    if not REPO.fullmatch(repo):
        raise UploadError(f"--hf_repo is user/name, not {repo!r}")


def push(
    folder: Path,
    repo: str,
    *,
    private: bool = False,
    branch: str | None = None,
    overwrite: bool = False,
) -> str:
    """Upload a folder; afterwards the repository holds exactly its files.

    The code in the card names the repository then. Large files that have arrived are
    not sent again after an interruption. Nothing is done where the repository holds the
    same files already.

    Args:
        folder: As `write_folder` has written it.
        repo: user/name; made if it is not there.
        private: Make it private.
        branch: Instead of main; made if it is not there.
        overwrite: Replace other files that are there (its history keeps them).

    Returns:
        Where the model is now.

    Raises:
        ValueError: The folder is damaged, or UploadError: one line.
    """
    check_repo(repo)
    target = f"{repo}@{branch}" if branch else repo
    files = read_folder(folder, target)
    token = get_token()
    if not token:
        raise _failure(folder, repo, "there is no token: `hf auth login`, or HF_TOKEN")
    try:
        with _quiet_unless_watched():
            return _push(HfApi(token=token), files, target, private, overwrite)
    except UploadError as error:
        raise _failure(folder, repo, str(error)) from error
    except (hub_errors.HTTPError, OSError, RuntimeError, ValueError) as error:
        raise _failure(folder, repo, _reason(error, repo)) from error


@contextmanager
def _quiet_unless_watched() -> Iterator[None]:
    """Show bars and retries to somebody at a terminal, and not in a log."""
    watched, verbosity = sys.stderr.isatty(), hub_logging.get_verbosity()
    bars = not are_progress_bars_disabled()
    if not watched:
        hub_logging.set_verbosity_error()
        disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default" if watched else "ignore")
            yield
    finally:
        hub_logging.set_verbosity(verbosity)
        if bars:
            enable_progress_bars()


def _push(
    api: HfApi,
    files: Files,
    target: str,
    private: bool,
    overwrite: bool,
) -> str:
    """Make the repository what the folder is."""
    repo, _, branch = target.partition("@")
    before = _info(api, repo)
    if before is not None and private and not before.private:
        raise UploadError(
            f"{repo} is there and public: make it private on its page, or leave "
            "--private out"
        )
    if before is None:
        api.create_repo(repo, private=private or None, exist_ok=True)
        before = _info(api, repo)
    main = before.sha if before else None
    if branch and branch != constants.DEFAULT_REVISION:
        api.create_branch(repo, branch=branch, exist_ok=True)
        before = _info(api, repo, branch)
    there = _listing(before)
    wanted = {name: _content_ids(file) for name, file in files.items()}
    kept = {n: ids for n, ids in there.items() if n not in OWN_FILES}
    url = f"{api.endpoint}/{repo}" + (f"/tree/{branch}" if branch else "")
    if kept.keys() == wanted.keys() and all(kept[n] & wanted[n] for n in kept):
        return url
    is_new_branch = bool(branch) and before is not None and before.sha == main
    if kept and not overwrite and not is_new_branch:
        names = ", ".join(sorted(kept)[:3])
        raise UploadError(
            f"{target} is there and holds other files ({names}, ...): --overwrite "
            "replaces them (its history keeps them), or choose another name"
        )
    changes: list[Any] = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=files[name])
        for name in sorted(files)
    ]
    changes += [CommitOperationDelete(n) for n in sorted(kept) if n not in wanted]
    api.create_commit(
        repo,
        changes,
        commit_message=MESSAGE,
        revision=branch or None,
        parent_commit=before.sha if before else None,
    )
    return url


def _info(api: HfApi, repo: str, branch: str | None = None) -> Any | None:
    """The repository, with its files; None where it is not there."""
    try:
        return api.model_info(repo, revision=branch, files_metadata=True)
    except hub_errors.RevisionNotFoundError:
        raise
    except hub_errors.RepositoryNotFoundError as error:
        if error.response.status_code == 401:
            raise UploadError(
                "the Hub does not accept the token: `hf auth login` with another"
            ) from error
        return None


def _listing(info: Any | None) -> dict[str, set]:
    """Hashes that identify each file of a repository."""
    siblings = (info.siblings or []) if info is not None else []
    return {
        s.rfilename: {s.blob_id, s.lfs.sha256 if s.lfs else None} - {None}
        for s in siblings
    }


def _content_ids(file: Path | bytes) -> set:
    """The hashes that the Hub may list for a file: of its content, or as git has it."""
    if isinstance(file, Path) and file.stat().st_size > GIT_LIMIT:
        return {sha256(file)}
    content = file if isinstance(file, bytes) else file.read_bytes()
    blob = f"blob {len(content)}\0".encode() + content
    return {hashlib.sha256(content).hexdigest(), hashlib.sha1(blob).hexdigest()}


def _failure(folder: Path, repo: str, reason: str) -> UploadError:
    """The one line: why, and how to go on."""
    return UploadError(
        f"{repo}: {reason}. {folder} is kept: go on with `sslam publish {folder} "
        f"--hf_repo {repo}`"
    )


def _reason(error: BaseException, repo: str) -> str:
    """What the Hub, the network or the disk had to say, in a few words."""
    while isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__  # "Error while uploading ..." hides the cause
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if status == 401:
        return "the Hub does not accept the token: `hf auth login` with another"
    if status == 403:
        return "this token may not write there: it needs the permission (role write)"
    if status == 412:
        return "somebody else changed the repository just now: look at it first"
    if status is not None:
        said = getattr(error, "server_message", None) or ""
        return " ".join(f"the Hub answers {status} {said}".split())
    if isinstance(error, hub_errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set: unset it to upload"
    if isinstance(error, ValueError):
        return " ".join(str(error).split())
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.strerror}: {error.filename}"
    if isinstance(error, PermissionError):  # of the Hub's storage for large files
        return "this token may not write there: it needs the permission (role write)"
    return (
        f"the upload was interrupted or the Hub cannot be reached "
        f"({type(error).__name__})"
    )
