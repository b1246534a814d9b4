"""Data folders in Kaldi's style: their lists, labels and splits, read and written.

A set (`pretrain`, `mini`, `esc50/fold1`) holds splits (`train`, `valid`, ...). A split
holds `wav.scp`, `utt2spk`, `spk2utt` and, with labels, `text`: lines of an id and what
belongs to it. A set with labels has its `classes.txt`, and `downstream.txt` names the
training runs. Readers refuse what would silently go wrong later.

Two million clips fit: lists are read line by line, and a clip is a few strings.
"""

import csv
import functools
import itertools
import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

import numpy as np

from espnet2_sslam.audio import cut_name, split_cut
from espnet2_sslam.store import write_csv, write_lines, write_text

TASKS = ("multi_label", "multi_class")
DOWNSTREAM_FILE = "downstream.txt"  # written last: the corpus is complete
SPLITS_FILE = "splits.txt"
NOTES_FILE = "notes.txt"
CLASS_FILE = "classes.txt"
LABEL_FILE = "label_names.tsv"
WEIGHT_FILE = "weights"
CONTENT_FILE = "utt2sha256"  # of a dump: what each clip's samples are
MISSING_FILE = "missing.csv"
SEGMENT_FILE = "segments"
# Headers of tables of classes, and what the column holds
CLASS_COLUMNS = {
    **dict.fromkeys(("index", "idx", "number", "class_index", "id"), "index"),
    **dict.fromkeys(("mid", "machine_id", "word"), "id"),
    **dict.fromkeys(("name", "display_name", "label", "class", "class_name"), "name"),
}


# Tables


def table_lines(path: str | Path) -> Iterator[tuple[int, str, str]]:
    """Iterate over (line number, key, value) of `<key> <value>` lines.

    A byte order mark, CRLF and blank lines are passed over; a key alone has value "".

    Raises:
        ValueError: The file is missing.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path} is missing: prepare the data first")
    try:
        with open(path, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                words = line.strip().split(None, 1)
                if words:
                    yield number, words[0], words[1] if len(words) > 1 else ""
    except UnicodeDecodeError:
        read_text(path)  # says which line
        raise


def read_text(path: str | Path) -> str:
    """The text of a table.

    Raises:
        ValueError: Not UTF-8: the first line that is not, and what to do.
    """
    data = Path(path).read_bytes()
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise ValueError(f"{path} is UTF-16 text: save it as UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{path}, line {line}: no UTF-8 text (Latin-1?): save the file as UTF-8"
        ) from None
    if "\0" in text:
        raise ValueError(f"{path} is no text file")
    return text


def read_table(path: str | Path) -> dict[str, str]:
    """Read `<key> <value>` lines, in file order.

    Raises:
        ValueError: The file is missing, or a key occurs twice.
    """
    table: dict[str, str] = {}
    for number, key, value in table_lines(path):
        if key in table:
            raise _occurs_twice(path, number, key)
        table[key] = value
    return table


def write_table(path: Path, rows: Iterable[tuple[str, object]] | None) -> None:
    """Write `<key> <value>` lines as they come; None removes an earlier file."""
    if rows is None:
        path.unlink(missing_ok=True)
    else:
        write_lines(path, (f"{key} {value}".rstrip() for key, value in rows))


def _occurs_twice(path: str | Path, number: int, key: str) -> ValueError:
    return ValueError(
        f"{path}, line {number}: the id {key!r} occurs twice; ids must be unique, "
        "remove or rename one"
    )


# Labels and classes


def slug(text: str) -> str:
    """Make a name of letters, digits, `_`, `-` and `.` only; not reversible."""
    return re.sub(r"[^\w.-]+", "_", text.strip()).strip("_") or "_"


def clip_ids(names: Iterable[str]) -> dict[str, str]:
    """Make an id of each relative path: one word, without the extension.

    Where two would share an id the extension is added, and then a number.
    """
    stems = {name: slug(os.path.splitext(name)[0]) for name in names}
    count = Counter(stems.values())
    ids: dict[str, str] = {}
    used: set[str] = set()
    for name in sorted(stems):
        key = stems[name] if count[stems[name]] == 1 else slug(name)
        base, number = key, 2
        while key in used:
            key, number = f"{base}-{number}", number + 1
        ids[name] = key
        used.add(key)
    return ids


def label_word(name: str) -> str:
    """Make one word of a label: blanks and `%` are percent-encoded, as in a URL.

    Accents are composed first: macOS and Linux spell them differently.

    Raises:
        ValueError: The label is empty.
    """
    name = unicodedata.normalize("NFC", name.strip())
    if not name:
        raise ValueError("a label is empty: name it or remove it")
    return re.sub(r"[\s%]", lambda match: quote(match.group(), safe=""), name)


def label_name(word: str) -> str:
    """Return the label that `label_word` made the word of."""
    return unquote(word)


def unique_words(names: Iterable[str]) -> list[str]:
    """Return the words of the labels of one clip, each once, in the order given."""
    return list(dict.fromkeys(label_word(name) for name in names if name.strip()))


def read_classes(path: str | Path) -> list[str]:
    """Read a class list: one label a line, each once, in class order.

    Raises:
        ValueError: Missing or empty file, a label twice or with a blank in it.
    """
    classes: dict[str, None] = {}
    for number, label, rest in table_lines(path):
        where = f"{path}, line {number}: the label"
        if rest:
            raise ValueError(
                f"{where} {label + ' ' + rest!r} holds a blank; write it as one word"
            )
        if label in classes:
            raise ValueError(f"{where} {label!r} occurs twice; keep one line of it")
        classes[label] = None
    if not classes:
        raise ValueError(f"{path} is empty: it must list one class per line")
    return list(classes)


def read_class_names(path: Path, known: Sequence[str] | None = None) -> list[str]:
    """Read the names of a checkpoint's classes in their order.

    Args:
        path: One name per line; a table with or without a header, in any order of the
            columns index, mid (or another id) and name, as AudioSet's and FSD50K's; or
            our label_names.tsv.
        known: Labels of the checkpoint. Where these are the ids or names of the file
            (or words made of the names), their order counts, not the file's.

    Raises:
        ValueError: No names, a name twice, rows of unequal width, columns that cannot
            be told apart, or names that contradict the checkpoint's.
    """
    if not path.is_file():
        raise ValueError(f"there is no file of labels {path}")
    ids, names = _class_columns(path)
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise ValueError(f"{path} names {', '.join(twice)} more than once")
    if known is None:
        return names
    # Everything by which the checkpoint may know a class
    spellings = [ids, names, [slug(n) for n in names], [label_word(n) for n in names]]
    for spelled in spellings:
        if len(set(spelled)) == len(names) and set(known) <= set(spelled):
            by_word = dict(zip(spelled, names, strict=True))
            return [by_word[label] for label in known]
    if len(names) != len(known):
        raise ValueError(f"{path} has {len(names)} labels, the checkpoint {len(known)}")
    shared = [label for label in known if any(label in of for of in spellings)]
    if shared:
        # None: all of them, but some by their id and some by their name
        other = next((label for label in known if label not in shared), "one column")
        raise ValueError(
            f"{path} names {len(shared)} of the checkpoint's {len(known)} classes "
            f"({shared[0]}), but not {other}: give the file of this checkpoint"
        )
    return names


def _class_columns(path: Path) -> tuple[list[str], list[str]]:
    """Ids ("" if there are none) and names of a file of labels, by class number."""
    lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{path} holds no labels")
    delimiter = next((of for of in "\t;," if all(of in line for line in lines)), None)
    if delimiter is None:  # no table: a name may hold commas
        delimiter = "\x1f"  # in no line: Python 3.13 takes no "\n"
    rows = [
        [cell.strip() for cell in row]
        for row in csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
    ]
    header = [CLASS_COLUMNS.get(cell.lower(), "") for cell in rows[0]]
    if "name" in header:
        del rows[0]
    else:
        header = []
    widths = {len(row) for row in rows}
    if len(widths) > 1 or (header and widths != {len(header)}):
        raise ValueError(
            f"{path} has rows of {' and '.join(map(str, sorted(widths)))} cells: put "
            "names with commas into double quotes"
        )
    columns = [list(column) for column in zip(*rows, strict=True)]
    kinds = header or [_kind_of(column) for column in columns]
    if len(columns) == 1:
        if all(re.match(rf"{n}\s", name) for n, name in enumerate(columns[0])):
            raise ValueError(
                f"{path} has a number before each name: separate them by a comma or tab"
            )
        return [""] * len(rows), columns[0]
    if kinds == ["name", "name"] and delimiter == "\t":  # our label_names.tsv
        kinds = ["id", "name"]
    if kinds.count("name") != 1 or kinds.count("index") > 1 or kinds.count("id") > 1:
        raise ValueError(
            f"{path}: which column holds the names? Give it a header, such as "
            "index,mid,display_name"
        )
    of_kind = dict(zip(kinds, columns, strict=True))
    order = range(len(rows))
    if numbers := of_kind.get("index"):
        if sorted(numbers) != sorted(map(str, order)):
            raise ValueError(
                f"{path}: its numbers must count the classes, 0 to {len(rows) - 1}"
            )
        order = sorted(order, key=lambda row: int(numbers[row]))
    ids = of_kind.get("id", [""] * len(rows))
    return [ids[row] for row in order], [of_kind["name"][row] for row in order]


def _kind_of(column: Sequence[str]) -> str:
    """What a column without a header holds: index, id (AudioSet's /m/...) or name."""
    if all(cell.isdecimal() for cell in column):
        return "index"
    return "id" if all(re.fullmatch(r"/\w+/\w+", cell) for cell in column) else "name"


def read_label_names(folder: str | Path) -> dict[str, str]:
    """Return the name to show of each label that has one in label_names.tsv."""
    path = Path(folder) / LABEL_FILE
    if not path.is_file():
        return {}
    lines = read_text(path).splitlines()
    return dict(line.split("\t", 1) for line in lines if "\t" in line)


def class_names(path: str | Path) -> list[str]:
    """The names to show of a class list's labels, in class order.

    Raises:
        ValueError: See `read_classes`; two labels of one name.
    """
    words, names = read_classes(path), read_label_names(Path(path).parent)
    shown = [names.get(word, label_name(word)) for word in words]
    if len(set(shown)) < len(shown):
        return words  # two labels of one name would be one class
    return shown


def label_vector(words: Iterable[str], index: Mapping[str, int]) -> np.ndarray:
    """Turn the label words of one clip into a vector of 0 and 1, (C,) float32.

    Raises:
        ValueError: A label that is not in `index`, the class numbers; it is named.
    """
    vector = np.zeros(len(index), dtype=np.float32)
    for word in words:
        if word not in index:
            raise ValueError(
                f"the label {word!r} is not in the class list: correct the label or "
                "add the class"
            )
        vector[index[word]] = 1.0
    return vector


def read_values(
    path: Path, ids: Iterable[str], convert: Callable[[str], Any], subset: bool = False
) -> dict[str, Any]:
    """Read the value of each id of a split from one of its lists, in the ids' order.

    Args:
        path: The list.
        ids: Those of wav.scp.
        convert: Makes a value of a text; equal texts share theirs, to save memory.
        subset: Other ids may be in the list, too.

    Raises:
        ValueError: The list has other ids, one twice, or a value `convert` refuses.
    """
    unread = object()
    values: dict[str, Any] = dict.fromkeys(ids, unread)
    shared: dict[str, Any] = {}
    extra: list[str] = []
    for number, key, text in table_lines(path):
        if key not in values:
            extra.append(key)
            continue
        if values[key] is not unread and not subset:
            raise _occurs_twice(path, number, key)
        if text not in shared:
            try:
                shared[text] = convert(text)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {key!r}: {error}") from None
        values[key] = shared[text]
    lost = [key for key, value in values.items() if value is unread]
    extra = [] if subset else extra
    name = path.name
    for keys, one, other in ((lost, "wav.scp", name), (extra, name, "wav.scp")):
        if keys:
            raise ValueError(
                f"{path}: {len(keys)} id(s) are in {one} only, not in {other}, for "
                f"example {min(keys)!r}; both must list the same clips"
            )
    return values


def read_split_labels(
    datadir: str | Path, split: str, ids: Iterable[str]
) -> dict[str, list[str]] | None:
    """Read the labels of a split, checked against its ids and its set's classes.txt.

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

    def convert(text: str) -> list[str]:
        words = text.split()
        for word in words:
            if word not in classes:
                raise ValueError(
                    f"the label {word!r} is not in {class_list}; correct the label or "
                    "add the class"
                )
        if len(set(words)) != len(words):
            raise ValueError("the same label twice")
        return [classes[word] for word in words]

    return read_values(path, ids, convert)


# Sampling weights


def label_weights(counts: Mapping[str, int]) -> dict[str, float]:
    """Return 1000 / (count + 0.01) for each label: rare classes are drawn more often.

    Source: the formula published with AST and AudioMAE (dataset/audioset,
    gen_weight.py); the weights that SSLAM's authors used are not public.
    """
    return {label: 1000.0 / (count + 0.01) for label, count in counts.items()}


def class_balanced_weights(labels: Sequence[Sequence[str]]) -> np.ndarray:
    """Return for each clip the sum of `label_weights` over its labels, (N,) float64."""
    weight = label_weights(Counter(word for words in labels for word in words))
    sums = (sum(weight[word] for word in words) for words in labels)
    return np.fromiter(sums, dtype=np.float64, count=len(labels))


# Splits and training runs


@dataclass(frozen=True)
class Downstream:
    """One training run of a labelled set; folders relative to downstream.txt."""

    name: str
    task: str
    train: str
    valid: str
    tests: Sequence[str]

    @classmethod
    def of_set(cls, name: str, task: str, splits: Iterable[str]) -> "Downstream":
        """Return the run of a set with `train` and one or both of `valid`, `test`."""
        places = {split: f"{name}/{split}" for split in splits}
        test = places.get("test") or places["valid"]
        return cls(name, task, places["train"], places.get("valid", test), (test,))

    @property
    def class_list(self) -> str:
        """Path of the set's classes.txt, relative to downstream.txt."""
        return f"{self.train.split('/')[0]}/{CLASS_FILE}"

    @property
    def splits(self) -> tuple[str, ...]:
        """Every split that the run reads."""
        return (self.train, self.valid, *self.tests)


@dataclass
class Split:
    """The lists of one split."""

    name: str
    wav: dict[str, str]  # audio path of each id
    speakers: dict[str, str]  # of the clips whose speaker is not themselves
    labels: dict[str, list[str]] | None  # None without a `text`


def read_downstream(datadir: str | Path) -> list[Downstream]:
    """Read downstream.txt.

    Raises:
        ValueError: A line without five fields, an unknown task, a missing folder.
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
        task, train, valid, tests = fields
        run = Downstream(name, task, train, valid, tuple(tests.split(",")))
        for folder in run.splits:
            if not (Path(datadir) / folder / "wav.scp").is_file():
                raise ValueError(
                    f"{path}: {name!r} names {folder}, but {folder}/wav.scp is missing"
                )
        runs.append(run)
    return runs


def find_splits(datadir: str | Path) -> list[str]:
    """Return the splits' relative paths: of splits.txt, else all with a wav.scp.

    Raises:
        ValueError: There is none.
    """
    datadir = Path(datadir)
    if (datadir / SPLITS_FILE).is_file():
        return sorted(read_table(datadir / SPLITS_FILE))
    splits = sorted(
        path.parent.relative_to(datadir).as_posix()
        for path in datadir.rglob("wav.scp")
        if path.parent != datadir
    )
    if not splits:
        raise ValueError(
            f"{datadir} holds no <set>/<split>/wav.scp: prepare the data first"
        )
    return splits


def read_split(datadir: str | Path, name: str, one_label: bool = False) -> Split:
    """Read and check one split; with `one_label` each clip must have exactly one.

    Raises:
        ValueError: See `read_sources`; lists (wav.scp or segments, utt2spk, text) that
            do not hold the same ids, a label outside classes.txt, or not one label.
    """
    folder = Path(datadir) / name
    wav = dict(read_sources(folder))
    speakers = _read_speakers(folder, wav)
    labels = read_split_labels(datadir, name, wav)
    for key, words in (labels or {}).items() if one_label else ():
        if len(words) != 1:
            raise ValueError(
                f"{folder}/text: {key!r} has {len(words)} labels, multi_class needs "
                "exactly one; correct it or use multi_label in downstream.txt"
            )
    return Split(name, wav, speakers, labels)


def read_sources(folder: str | Path) -> Iterator[tuple[str, str]]:
    """The id and the audio of each clip of a split: a path, or a cut of one.

    With Kaldi's `segments` (`<id> <recording> <start> <end>`, seconds) wav.scp names
    the recordings, and each segment is a clip; see `audio.cut_name`.

    Raises:
        ValueError: No clip, an id twice or without a file, or a bad segment.
    """
    folder = Path(folder)
    wav = read_table(folder / "wav.scp")
    if not wav:
        raise ValueError(f"{folder}/wav.scp is empty: add clips or remove the split")
    for key, path in wav.items():
        if not path or path.endswith("|"):
            raise ValueError(
                f"{folder}/wav.scp: the id {key!r} has "
                f"{'a command' if path else 'no file'} behind it; an audio file is "
                "needed"
            )
    segments = folder / SEGMENT_FILE
    if not segments.is_file():
        yield from wav.items()
        return
    ids = set()
    for number, key, rest in table_lines(segments):
        where, fields = f"{segments}, line {number}", rest.split()
        if key in ids:
            raise _occurs_twice(segments, number, key)
        ids.add(key)
        try:
            recording, start, end = fields
            yield key, cut_name(wav[recording], float(start), float(end))
        except KeyError:
            raise ValueError(
                f"{where}: the recording {fields[0]!r} is not in wav.scp"
            ) from None
        except ValueError as error:
            raise ValueError(
                f"{where}: need `<id> <recording> <start> <end>` in seconds ({error})"
            ) from None


def _read_speakers(folder: Path, wav: Mapping[str, str]) -> dict[str, str]:
    """Return the speaker of each clip that is not its own."""
    path = folder / "utt2spk"
    if not path.is_file():
        return {}
    speakers: dict[str, str] = {}
    count, extra = 0, False
    for count, (_, key, name) in enumerate(table_lines(path), 1):  # noqa: B007
        extra = extra or key not in wav
        if name != key:
            speakers[key] = name
    if extra or count != len(wav):
        read_values(path, wav, str)  # says what differs
    return speakers


def read_corpus(datadir: str | Path) -> Iterator[Split]:
    """Read and check downstream.txt and the splits, one at a time.

    Raises:
        ValueError: As `read_split`; a labelled run names a split without labels; a
            clip of a multi_class run has not exactly one label.
    """
    names = find_splits(datadir)
    runs = read_downstream(datadir)
    for run in runs:
        for name in run.splits:
            if name not in names or not (Path(datadir) / name / "text").is_file():
                raise ValueError(
                    f"{Path(datadir) / name}/text is missing, but downstream.txt uses "
                    f"this split for {run.name!r}"
                )
    exclusive = {n for run in runs if run.task == "multi_class" for n in run.splits}
    for name in names:
        # No variable holds the split: it would be kept while the next one is read.
        yield read_split(datadir, name, one_label=name in exclusive)


# Writing a corpus


def write_speakers(
    folder: Path, keys: Sequence[str], speakers: Mapping[str, str]
) -> None:
    """Write utt2spk and spk2utt of sorted ids; an id without a speaker is its own."""
    write_table(folder / "utt2spk", ((key, speakers.get(key, key)) for key in keys))
    # No table by speaker in the memory where all are their own.
    by_speaker: dict[str, list[str]] = {}
    for key in keys if speakers else ():
        by_speaker.setdefault(speakers.get(key, key), []).append(key)
    rows = sorted(by_speaker.items()) if speakers else ((key, [key]) for key in keys)
    write_table(folder / "spk2utt", ((name, " ".join(of)) for name, of in rows))


class Clip(NamedTuple):
    """One clip of a split."""

    key: str  # its id, one word
    path: str  # absolute path of the audio or `audio.cut_name`; "" if there is none
    labels: str = ""  # words separated by one blank
    speaker: str = ""  # the recording that it was cut from; "" for itself
    reason: str = ""  # why there is no audio, if that is known already


class CorpusWriter:
    """Writes the data folder of one corpus, split by split.

    Clips without audio are left out, listed in missing.csv and counted in the notes.

    Args:
        datadir: Where it goes; unfinished until `finish`.
        expected: What to place where, for the error when no audio is found.
    """

    def __init__(self, datadir: str | Path, expected: str = ""):
        self.datadir = Path(datadir)
        self.expected = expected
        self._names = functools.cache(_names)
        self.splits: list[str] = []
        self.notes: list[str] = []
        for name in (DOWNSTREAM_FILE, SPLITS_FILE, NOTES_FILE):
            (self.datadir / name).unlink(missing_ok=True)

    def exists(self, path: str) -> bool:
        """Whether a file is there, with one look into each folder."""
        folder, name = os.path.split(path)
        return name in self._names(folder)

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
            known_to_exist: The files are not looked for.

        Raises:
            ValueError: An id twice or with a blank, a path that no list can hold, or
                no clip with audio.
        """
        rows: list[tuple[str, str, str, str]] = []
        missing: list[tuple[str, str, str]] = []
        for clip in clips:
            if not clip.key or re.search(r"\s", clip.key):
                raise ValueError(f"{split}: the id {clip.key!r} is empty or has blanks")
            path = split_cut(clip.path)[0]
            if re.search(r"^\s|\s$|[\n\r\ud800-\udfff]", path):
                raise ValueError(
                    f"{split}: the path {path!r} does not fit into wav.scp (it begins "
                    "or ends with a blank, holds a line break or is no UTF-8): rename "
                    "the file"
                )
            if not path or not (known_to_exist or self.exists(path)):
                reason = clip.reason or "no such file"
                missing.append((clip.key, clip.path, reason))
            else:
                rows.append((clip.key, clip.path, clip.labels, clip.speaker))
        rows.sort()
        for (key, one, *_), (again, other, *_) in itertools.pairwise(rows):
            if key == again:
                raise ValueError(
                    f"{split}: the id {key!r} occurs twice, for {one} and {other}; "
                    "remove one from the corpus's list"
                )
        if not rows:
            example = f", for example {missing[0][1] or missing[0][0]}" * bool(missing)
            raise ValueError(
                f"{split}: none of its {len(missing)} clips was found{example}; "
                f"expected: {self.expected}"
            )
        folder = self.datadir / split
        self._write_sources(folder, rows)
        speakers = {key: name for key, _, _, name in rows if name}
        write_speakers(folder, [row[0] for row in rows], speakers)
        text = ((key, labels) for key, _, labels, _ in rows) if labelled else None
        write_table(folder / "text", text)
        counts = Counter(word for row in rows for word in row[2].split())
        weight = label_weights(counts)
        sums = ((row[0], sum(weight[word] for word in row[2].split())) for row in rows)
        weights = ((key, f"{total:.9g}") for key, total in sums)
        write_table(folder / WEIGHT_FILE, weights if weighted else None)
        if missing:
            columns = ("id", "file", "reason")
            write_csv(folder / MISSING_FILE, columns, sorted(missing))
            self.note(
                f"{split}: {len(missing)} of {len(rows) + len(missing)} clips are "
                f"missing, see {split}/{MISSING_FILE}"
            )
        else:
            (folder / MISSING_FILE).unlink(missing_ok=True)
        self.splits.append(split)
        return len(rows)

    def _write_sources(self, folder: Path, rows: Sequence[Sequence[str]]) -> None:
        """Write wav.scp, and segments where clips are cut from recordings."""
        cuts = {row[0]: split_cut(row[1]) for row in rows}
        if all(start is None for _, start, _ in cuts.values()):
            write_table(folder / SEGMENT_FILE, None)
            write_table(folder / "wav.scp", ((row[0], row[1]) for row in rows))
            return
        ids = clip_ids(path for path, _, _ in cuts.values())
        write_table(
            folder / "wav.scp", sorted((key, path) for path, key in ids.items())
        )
        segments = (
            # As in Kaldi, -1 is the end of the recording.
            (
                key,
                f"{ids[path]} 0 -1" if start is None else f"{ids[path]} {start} {end}",
            )
            for key, (path, start, end) in cuts.items()
        )
        write_table(folder / SEGMENT_FILE, segments)

    def classes(self, name: str, labels: Iterable[str]) -> None:
        """Write the class list of a set; a mapping gives each label's name as well."""
        write_lines(self.datadir / name / CLASS_FILE, labels)
        if isinstance(labels, Mapping):
            names = ((word, " ".join(text.split())) for word, text in labels.items())
            path = self.datadir / name / LABEL_FILE
            write_lines(path, (f"{word}\t{text}" for word, text in names))

    def finish(self, runs: Iterable[Downstream]) -> None:
        """Write notes.txt, splits.txt and downstream.txt (a run a line): all done."""
        notes = "\n".join(self.notes).rstrip()
        write_text(self.datadir / NOTES_FILE, f"{notes}\n")
        write_lines(self.datadir / SPLITS_FILE, sorted(self.splits))
        lines = (
            f"{run.name} {run.task} {run.train} {run.valid} {','.join(run.tests)}"
            for run in runs
        )
        write_lines(self.datadir / DOWNSTREAM_FILE, lines)


def _names(folder: str) -> set[str]:
    """Names in a folder; none if it is not there."""
    try:
        return set(os.listdir(folder))
    except OSError:
        return set()
