"""Kaldi-style data directories: wav.scp, text, classes.txt, downstream.txt.

A set (`pretrain`, `mini`, `esc50/fold1`) holds splits (`train`, `valid`, ...), a
split holds the lists. Every reader here refuses what would silently go wrong later.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

TASKS = ("multi_label", "multi_class")
DOWNSTREAM_FILE = "downstream.txt"
CLASS_FILE = "classes.txt"
NOTES_FILE = "notes.txt"
SPLITS_FILE = "splits.txt"


@dataclass(frozen=True)
class Downstream:
    """One training run of a labelled set; directories relative to downstream.txt."""

    name: str
    task: str
    train: str
    valid: str
    tests: Sequence[str]

    @property
    def class_list(self) -> str:
        """Path of the set's classes.txt, relative to downstream.txt."""
        return f"{self.train.split('/')[0]}/{CLASS_FILE}"


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that it is there whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with open(part, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_table(path: Path, table: Mapping[str, object]) -> None:
    """Write `<key> <value>` lines sorted by key; a value of "" leaves the key alone."""
    lines = (f"{key} {table[key]}".rstrip() for key in sorted(table))
    write_atomically(path, "".join(f"{line}\n" for line in lines))


def read_table(path: Path) -> dict[str, str]:
    """Read `<key> <value>` lines, in file order; a key alone has the value "".

    Raises:
        ValueError: The file is missing, or a key occurs twice (named, with its line).
    """
    table: dict[str, str] = {}
    for number, key, value in table_lines(path):
        if key in table:
            raise _occurs_twice(path, number, key)
        table[key] = value
    return table


def table_lines(path: Path) -> Iterator[tuple[int, str, str]]:
    """Number, key and value of each line of a table, one at a time.

    Raises:
        ValueError: The file is missing.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path} is missing: run data preparation (stage 1) first")
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            words = line.strip().split(None, 1)
            if words:
                yield number, words[0], words[1] if len(words) > 1 else ""


def _occurs_twice(path: Path, number: int, key: str) -> ValueError:
    """The error for an id that is in a table already."""
    return ValueError(
        f"{path}, line {number}: the id {key!r} occurs twice; ids must be unique, "
        "remove or rename one"
    )


def read_classes(path: Path) -> list[str]:
    """Read classes.txt: one label a line, none twice.

    Raises:
        ValueError: Missing or empty file, a label twice or with a blank in it.
    """
    classes = read_table(path)
    if not classes:
        raise ValueError(f"{path} is empty: it must list one class per line")
    for label, rest in classes.items():
        if rest:
            raise ValueError(f"{path}: {label + ' ' + rest!r} holds a blank")
    return list(classes)


def slug(text: str) -> str:
    """A name without blanks or separators: letters, digits, `_`, `-` and `.` only."""
    return re.sub(r"[^\w.-]+", "_", text.strip()).strip("_") or "_"


def write_split(
    folder: Path,
    wav: Mapping[str, str],
    speakers: Mapping[str, str] | None = None,
    labels: Mapping[str, Iterable[str]] | None = None,
) -> None:
    """Write the lists of one split.

    Args:
        folder: The split's directory.
        wav: Audio path of each id.
        speakers: Recording (group) of each id; each clip its own by default.
        labels: Labels of each id, for labelled data.

    Raises:
        ValueError: No clip at all, or an id or label that holds a blank.
    """
    folder = Path(folder)
    if not wav:
        raise ValueError(f"{folder} would be empty: no clip was found for this split")
    labels = None if labels is None else {key: tuple(labels[key]) for key in wav}
    words = [*wav, *(label for of in (labels or {}).values() for label in of)]
    bad = next((word for word in words if not word or re.search(r"\s", word)), None)
    if bad is not None:
        raise ValueError(f"{folder}: the id or label {bad!r} is empty or holds a blank")
    write_table(folder / "wav.scp", wav)
    speakers = {key: (speakers or {}).get(key, key) for key in wav}
    write_table(folder / "utt2spk", speakers)
    by_speaker: dict[str, list[str]] = {}
    for key in sorted(speakers):
        by_speaker.setdefault(speakers[key], []).append(key)
    spk2utt = {speaker: " ".join(keys) for speaker, keys in by_speaker.items()}
    write_table(folder / "spk2utt", spk2utt)
    if labels is not None:
        write_table(folder / "text", {key: " ".join(labels[key]) for key in wav})


def begin_corpus(datadir: Path) -> None:
    """Mark `datadir` as unfinished, until `finish_corpus`."""
    for name in (DOWNSTREAM_FILE, SPLITS_FILE, NOTES_FILE):
        (Path(datadir) / name).unlink(missing_ok=True)


def finish_corpus(
    datadir: Path, splits: Iterable[str], runs: Iterable[Downstream], notes: str
) -> None:
    """Say which splits belong to the corpus (others may lie there from before).

    Args:
        datadir: Where the splits lie.
        splits: Their relative paths.
        runs: The lines of downstream.txt, which ends the preparation.
        notes: What a reader of the data report should know.
    """
    write_atomically(Path(datadir) / NOTES_FILE, notes.rstrip() + "\n")
    lines = "".join(f"{split}\n" for split in sorted(splits))
    write_atomically(Path(datadir) / SPLITS_FILE, lines)
    write_downstream(datadir, runs)


def write_downstream(datadir: Path, runs: Iterable[Downstream]) -> None:
    """Write downstream.txt, one training run a line (an empty file for none)."""
    lines = (
        f"{run.name} {run.task} {run.train} {run.valid} {','.join(run.tests)}\n"
        for run in runs
    )
    write_atomically(Path(datadir) / DOWNSTREAM_FILE, "".join(lines))


def read_downstream(datadir: Path) -> list[Downstream]:
    """Read downstream.txt.

    Raises:
        ValueError: A line without five fields, an unknown task, a missing directory.
    """
    path = Path(datadir) / DOWNSTREAM_FILE
    runs = []
    for name, rest in read_table(path).items():
        fields = rest.split()
        if len(fields) != 4 or fields[0] not in TASKS:
            raise ValueError(
                f"{path}: the line of {name!r} must read "
                f"<name> {'|'.join(TASKS)} <train> <valid> <test>[,<test>]"
            )
        run = Downstream(name, *fields[:3], tests=tuple(fields[3].split(",")))
        for folder in (run.train, run.valid, *run.tests):
            if not (Path(datadir) / folder / "wav.scp").is_file():
                raise ValueError(
                    f"{path}: {name!r} names {folder}, but {folder}/wav.scp is missing"
                )
        runs.append(run)
    return runs


def find_splits(datadir: Path) -> list[str]:
    """Relative paths of the splits: those of splits.txt, else all with a wav.scp.

    Raises:
        ValueError: There is none.
    """
    datadir = Path(datadir)
    if (datadir / SPLITS_FILE).is_file():
        return sorted(read_table(datadir / SPLITS_FILE))
    found = sorted(
        path.parent.relative_to(datadir).as_posix()
        for path in datadir.rglob("wav.scp")
        if path.parent != datadir
    )
    if not found:
        raise ValueError(
            f"{datadir} holds no <set>/<split>/wav.scp: run data preparation "
            "(stage 1) first"
        )
    return found


def read_split_labels(
    datadir: Path, split: str, ids: Sequence[str]
) -> dict[str, list[str]] | None:
    """Labels of a split, checked against its ids and its set's classes.txt.

    Returns:
        Labels of each id, or None when the split has no `text`.

    Raises:
        ValueError: Ids of `text` and `ids` differ, or a label is not in classes.txt.
    """
    path = Path(datadir) / split / "text"
    if not path.is_file():
        return None
    class_list = Path(datadir) / split.split("/")[0] / CLASS_FILE
    classes = {label: label for label in read_classes(class_list)}
    labels: dict[str, list[str]] = dict.fromkeys(ids)  # None until its line is read
    shared: dict[str, list[str]] = {}  # one list for all clips of the same labels
    extra: list[str] = []
    for number, key, value in table_lines(path):
        if key not in labels:
            extra.append(key)
            continue
        if labels[key] is not None:
            raise _occurs_twice(path, number, key)
        if value not in shared:
            words = value.split()
            shared[value] = _check_labels(path, key, words, classes, class_list)
        labels[key] = shared[value]
    lost = sorted(key for key, found in labels.items() if found is None)
    if lost:
        raise _not_the_same(path, "wav.scp", "text", lost)
    if extra:
        raise _not_the_same(path, "text", "wav.scp", sorted(extra))
    return labels


def _not_the_same(path, there: str, other: str, keys: list[str]) -> ValueError:
    """The error for ids that one of two lists lacks."""
    return ValueError(
        f"{path}: {len(keys)} id(s) are in {there} only, not in {other}, for example "
        f"{keys[0]!r}; both must list the same clips"
    )


def _check_labels(path, key: str, words: list, classes: dict, class_list) -> list[str]:
    """The labels of one clip, as the words of `classes`."""
    unknown = [label for label in words if label not in classes]
    if unknown:
        raise ValueError(
            f"{path}: the label {unknown[0]!r} of {key!r} is not in {class_list}; "
            "correct the label or add the class"
        )
    if len(set(words)) != len(words):
        raise ValueError(f"{path}: {key!r} has the same label twice")
    return [classes[label] for label in words]
