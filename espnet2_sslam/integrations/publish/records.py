"""The records that the recipe leaves beside its work: which files a run has read.

`.done` is written by egs2/sslam/utils/once.py. A file is told apart by its SHA-256, or
above HASH_LIMIT by size and time.
"""

import json
import re
from pathlib import Path
from typing import Any

from espnet2_sslam.store import sha256

RECORD_FILE = ".done"
HASH_LIMIT = 64 * 2**20  # bytes; as in once.py
ABSOLUTE = re.compile(r"(?<![\w.~/:])/(?:[^\s/:,;'\"]+/)+[^\s/:,;'\"]+")
KEPT_PARTS = 3  # of an absolute path


def read_record(run: Path) -> dict[str, dict[str, Any]]:
    """Return {"inputs": {path: state}, "outputs": ...} of a finished piece of work.

    Empty where there is no record, as for a run that was not started by the recipe.
    """
    try:
        record = json.loads((run / RECORD_FILE).read_text(encoding="utf-8"))
        return {name: dict(record[name]) for name in ("inputs", "outputs")}
    except (OSError, ValueError, KeyError, TypeError):
        return {"inputs": {}, "outputs": {}}


def state_of(path: Path) -> Any:
    """Return what tells two versions of a file apart, as once.py does."""
    stat = path.stat()
    if stat.st_size > HASH_LIMIT:
        return [stat.st_size, stat.st_mtime_ns]
    return sha256(path)


def recorded(states: dict[str, Any], path: str) -> Any | None:
    """Return the state that was recorded of a file, None where none was.

    Args:
        states: One part of `read_record`.
        path: As it was written, or the end of it.
    """
    for name, state in states.items():
        if name == path or name.endswith(f"/{path}"):
            return state
    return None


def find(path: str, run: Path) -> Path | None:
    """Return a file that a run names: relative names count from the recipe's folder.

    Args:
        path: As in the run's config.yaml.
        run: The run's folder, which lies somewhere below the recipe's.
    """
    for base in (Path(), *run.resolve().parents):
        if (base / path).exists():
            return base / path
    return None


def without_machine(text: str) -> str:
    """Shorten absolute paths, which nobody else needs to see, to their last parts."""
    return ABSOLUTE.sub(
        lambda found: ".../" + "/".join(found[0].split("/")[-KEPT_PARTS:]), text
    )
