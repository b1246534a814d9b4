"""Which audio files a large tree holds: every directory is listed once and remembered.

The journal has one line for each directory. A directory whose modification time is the
journal's is not listed again, so that an interrupted scan of millions of files goes on
where it stopped and a second one takes seconds.
"""

import logging
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from data_folder import EXTENSIONS

from espnet2_sslam.corpus import parallel_map
from espnet2_sslam.store import Journal

AUDIO = tuple(EXTENSIONS)


def list_folder(folder: str, root: str) -> dict:
    """One line of the journal: sub-folders and audio files of a directory.

    Raises:
        ValueError: The directory cannot be read.
    """
    path = os.path.join(root, folder)
    folders, names = [], []
    try:
        mtime = os.stat(path).st_mtime_ns
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.name.lower().endswith(AUDIO):
                    names.append(entry.name)
                elif entry.is_dir():
                    folders.append(os.path.join(folder, entry.name))
    except OSError as error:
        raise ValueError(
            f"{path} cannot be listed ({error.strerror}): make it readable"
        ) from None
    return {"folder": folder, "mtime": mtime, "folders": folders, "names": names}


def scan(root: Path, journal: Path, nj: int) -> Iterator[tuple[str, list[str]]]:
    """Relative directory and names of the audio files in it, for the whole tree.

    Args:
        root: The tree; links to directories are followed, each real one once.
        journal: Where the listings are kept.
        nj: Processes.
    """
    with Journal(journal) as listings:
        known = {entry["folder"]: entry for _, entry in listings}
        waiting, seen, listed = [""], set(), 0
        while waiting:
            fresh = []
            level, waiting = waiting, []
            for folder in level:
                path = os.path.join(root, folder)
                real = os.path.realpath(path)
                if real in seen:
                    continue
                seen.add(real)
                entry = known.get(folder)
                if entry is None or entry["mtime"] != os.stat(path).st_mtime_ns:
                    fresh.append(folder)
                    continue
                waiting += entry["folders"]
                yield folder, entry["names"]
            work = partial(list_folder, root=str(root))
            if not fresh:
                continue
            for entry in parallel_map(work, fresh, nj, "directories", chunk=1):
                listings.append(entry)
                listed += 1
                waiting += entry["folders"]
                yield entry["folder"], entry["names"]
    logging.info("%d directories, %d of them listed now", len(seen), listed)
