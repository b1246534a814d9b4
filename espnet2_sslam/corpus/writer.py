"""Write the splits of a corpus; what is missing is left out, listed and counted.

Two million clips take about one gigabyte here: a clip is kept as four strings.
"""

import csv
import io
import logging
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from espnet2_sslam.corpus.datadir import (
    Downstream,
    begin_corpus,
    finish_corpus,
)
from espnet2_sslam.corpus.weights import WEIGHT_FILE, count_labels, label_weights

MISSING_FILE = "missing.csv"
MISSING_COLUMNS = ("id", "file", "reason")
BLANK = re.compile(r"\s")


class Clip(NamedTuple):
    """One clip of a split.

    Args:
        key: Its id, one word.
        path: Absolute path of the audio; "" where none was found.
        labels: Words separated by one blank.
        speaker: What it was cut from; "" for itself.
        reason: Why there is no audio, if that is known already.
    """

    key: str
    path: str
    labels: str = ""
    speaker: str = ""
    reason: str = ""


class Listing:
    """Which files exist, with one look into each directory."""

    def __init__(self) -> None:
        self.folders: dict[str, set[str]] = {}

    def __contains__(self, path: str) -> bool:
        folder, name = os.path.split(path)
        if folder not in self.folders:
            try:
                with os.scandir(folder) as entries:
                    self.folders[folder] = {entry.name for entry in entries}
            except OSError:
                self.folders[folder] = set()
        return name in self.folders[folder]


class CorpusWriter:
    """The data directory of one corpus, split by split.

    Args:
        datadir: Where it goes; unfinished until `finish`.
        expected: What to place where, for the error when nothing is found.
    """

    def __init__(self, datadir: Path, expected: str):
        self.datadir = Path(datadir)
        self.expected = expected
        self.files = Listing()
        self.splits: list[str] = []
        self.notes: list[str] = []
        begin_corpus(self.datadir)

    def note(self, text: str) -> None:
        """Say something that a reader of the data report should know."""
        logging.info("%s", text)
        self.notes.append(text)

    def add(
        self,
        split: str,
        clips: Iterable[Clip],
        *,
        labelled: bool = True,
        weighted: bool = False,
        known_to_exist: bool = False,
    ) -> int:
        """Write one split and return its number of clips.

        Args:
            split: `<set>/<name>`.
            clips: In any order.
            labelled: Write `text`.
            weighted: Write `weights` by the published formula, for sampling.
            known_to_exist: The caller looked for the files already.

        Raises:
            ValueError: An id twice or with a blank, or no clip with audio.
        """
        rows: list[tuple[str, str, str, str]] = []
        missing: list[tuple[str, str, str]] = []
        for clip in clips:
            if not clip.key or BLANK.search(clip.key):
                raise ValueError(f"{split}: the id {clip.key!r} is empty or has blanks")
            if not clip.path or not (known_to_exist or clip.path in self.files):
                reason = clip.reason or "no such file"
                missing.append((clip.key, clip.path, reason))
            else:
                rows.append((clip.key, clip.path, clip.labels, clip.speaker))
        self._check(split, rows, missing)
        folder = self.datadir / split
        _write_lists(folder, rows, labelled)
        _write_weights(folder / WEIGHT_FILE, rows if weighted else [])
        write_missing(folder / MISSING_FILE, missing)
        if missing:
            self.note(
                f"{split}: {len(missing)} of {len(rows) + len(missing)} clips are "
                f"missing, see {split}/{MISSING_FILE}"
            )
        self.splits.append(split)
        return len(rows)

    def _check(self, split: str, rows: list, missing: list) -> None:
        """Sort the rows; refuse ids that occur twice and splits without audio."""
        rows.sort()
        for before, after in zip(rows, rows[1:]):
            if before[0] == after[0]:
                raise ValueError(
                    f"{split}: the id {after[0]!r} occurs twice, for {before[1]} and "
                    f"{after[1]}; remove one from the corpus's list"
                )
        if not rows:
            example = (
                f", for example {missing[0][1] or missing[0][0]}" if missing else ""
            )
            raise ValueError(
                f"{split}: none of its {len(missing)} clips was found{example}; "
                f"expected: {self.expected}"
            )

    def finish(self, runs: Iterable[Downstream]) -> None:
        """Write notes.txt, splits.txt and downstream.txt: the corpus is prepared."""
        finish_corpus(self.datadir, self.splits, runs, "\n".join(self.notes))


@contextmanager
def atomic_lines(path: Path) -> Iterator[io.TextIOBase]:
    """A text file that is there whole or not at all, for more lines than fit a text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with open(part, "w", encoding="utf-8", newline="\n") as file:
            yield file
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _write_lists(folder: Path, rows: list, labelled: bool) -> None:
    """Write wav.scp, utt2spk, spk2utt and text of sorted rows."""
    for row in rows:
        if "\n" in row[1] or "\r" in row[1] or row[1] != row[1].strip():
            raise ValueError(
                f"{folder}: the path {row[1]!r} does not fit into wav.scp (it begins "
                "or ends with a blank or holds a line break): rename the file"
            )
    with atomic_lines(folder / "wav.scp") as file:
        file.writelines(f"{row[0]} {row[1]}\n" for row in rows)
    with atomic_lines(folder / "utt2spk") as file:
        file.writelines(f"{row[0]} {row[3] or row[0]}\n" for row in rows)
    speakers = _speakers(rows)
    with atomic_lines(folder / "spk2utt") as file:
        file.writelines(f"{name} {' '.join(keys)}\n" for name, keys in speakers)
    if not labelled:
        (folder / "text").unlink(missing_ok=True)
        return
    with atomic_lines(folder / "text") as file:
        file.writelines(f"{row[0]} {row[2]}".rstrip() + "\n" for row in rows)


def _speakers(rows: list) -> Iterable[tuple[str, list[str]]]:
    """The clips of each speaker, sorted; without a table where each is its own."""
    if not any(row[3] for row in rows):
        return ((row[0], [row[0]]) for row in rows)
    found: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        found[row[3] or row[0]].append(row[0])
    return sorted(found.items())


def _write_weights(path: Path, rows: list) -> None:
    """Write `<id> <weight>` of the clips, or remove what an earlier run wrote."""
    if not rows:
        path.unlink(missing_ok=True)
        return
    weight = label_weights(count_labels(row[2].split() for row in rows))
    with atomic_lines(path) as file:
        for row in rows:
            total = sum(weight[label] for label in row[2].split())
            file.write(f"{row[0]} {total:.9g}\n")


def write_missing(path: Path, missing: list[tuple[str, str, str]]) -> None:
    """Write the clips without audio as a CSV, or remove an earlier one."""
    if not missing:
        path.unlink(missing_ok=True)
        return
    with atomic_lines(path) as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(MISSING_COLUMNS)
        table.writerows(sorted(missing))


def count_missing(path: Path) -> int | None:
    """How many clips such a CSV lists; None when there is none."""
    if not path.is_file():
        return None
    with open(path, encoding="utf-8", newline="") as file:
        return sum(1 for row in csv.reader(file) if row) - 1
