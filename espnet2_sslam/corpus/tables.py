"""A user's own tables of audio files, labels, splits and times, whatever their dialect.

CSV, TSV and semicolons; the usual names of columns; DESED's and URBAN-SED's events,
Raven's selections, Audacity's labels. What looks like a split, a label or a time and
cannot be used is refused by its name: nothing of a table is passed over silently.
"""

import csv
import io
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from espnet2_sslam.corpus.lists import read_text

# Column of a table: the names it may have, in lower case and without what stands in
# brackets ("Begin Time (s)").
COLUMNS = {
    "path": "path file_name filename file fname audio audio_file audio_path filepath "
    "wav begin_path begin_file",
    "labels": "labels label category class class_name tags tag event_label annotation "
    "species",
    "split": "split subset set fold partition",
    "group": "group recording recording_id",
    "start": "start onset begin start_time begin_time onset_s start_s start_sec "
    "start_seconds onset_seconds",
    "end": "end offset stop end_time offset_s end_s end_sec end_seconds offset_seconds",
    # Raven, of one file of several: where the selection begins in it
    "place": "file_offset",
}
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "validation", "val", "dev"), "valid"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
# What an unknown column's name must not look like; {key: pattern}
LOOKS_LIKE = {
    "split": r"(is_)?(train|valid|val|dev|test|eval)(ing)?|data_?set|usage",
    "time": r"(start|begin|onset|end|stop|offset)(_.*)?|from|to",
}
LABEL_LIKE = r".*(label|categor|class|species|tags?\b).*"
SECONDS = ("s", "sec", "secs", "second", "seconds")
_MEANINGS = {name: key for key, text in COLUMNS.items() for name in text.split()}
OVERLAP = 0.5  # share of a piece that another event must cover to be its label too


class Row(NamedTuple):
    """What one row says of an audio file."""

    name: str  # of the file, as the table writes it
    where: str  # `<table>, line <number>`, for messages
    labels: list[str] | None = None  # None: the table has no column of labels
    split: str | None = None  # train, valid or test
    group: str | None = None
    start: float | None = None  # seconds; None: the whole file
    end: float | None = None


def split_labels(cell: str, separator: str = ",;") -> list[str]:
    """The labels of a cell, each once, in Unicode's composed form.

    Args:
        cell: Names separated by one of the characters of `separator`; a name in double
            quotes may hold them.
        separator: None of them: "" takes the whole cell for one name.

    Raises:
        ValueError: The same label twice.
    """
    quoted = r'"(?:[^"]|"")*"'
    pattern = f"(?:{quoted}|[^{re.escape(separator)}])+" if separator else "(?s:.+)"
    labels = []
    for part in re.findall(pattern, cell):
        name = part.strip()
        if re.fullmatch(quoted, name):
            name = name[1:-1].replace('""', '"').strip()
        # macOS and Linux spell accents differently: one class, not two
        name = " ".join(unicodedata.normalize("NFC", name).split())
        if name in labels:
            raise ValueError(f"the same label twice: {name}")
        if name:
            labels.append(name)
    return labels


def read_annotations(
    path: str | Path, separator: str = ",;", recording: str | None = None
) -> list[Row]:
    """The rows of a table: a CSV or TSV with a header (see `COLUMNS`), or events.

    The columns are separated by tabs in a .tsv file or where the header has one, else
    by commas, or by semicolons where the header has no comma.

    Args:
        path: The table.
        separator: Between the labels in a cell, see `split_labels`.
        recording: The audio that a table without a column of paths belongs to: one of
            Raven's, or lines `<start> <end> <label>` without a header, as Audacity and
            URBAN-SED write them.

    Raises:
        ValueError: No text in UTF-8; no column of paths; two columns of one meaning; a
            split that is none; a start without an end; a row with too many cells,
            without a path, or with times that are none.
    """
    path = Path(path)
    text = read_text(path)
    header = re.split("[\r\n]", text, maxsplit=1)[0]
    if recording is not None and re.match(r"\s*[\d.,]+\s+[\d.,]+(\s|$)", header):
        # Lines that begin with a backslash are Audacity's ranges of frequency.
        lines = (line for line in text.splitlines() if not line.startswith("\\"))
        cells = (line.split(None, 2) for line in lines)
        text = "\n".join(["start\tend\tlabel", *map("\t".join, cells)])
        header, separator = "\t", ""
    tabs = path.suffix.lower() == ".tsv" or "\t" in header
    delimiter = "\t" if tabs else ";" if ";" in header and "," not in header else ","
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=delimiter,
        skipinitialspace=True,
        strict=True,  # a quote that is never closed would swallow the rows behind it
    )
    try:
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {reader.line_num}: {error} (is a quote not closed?)"
        ) from None
    rows = [(number, cells) for number, cells in rows if any(cells)]
    if len(rows) < 2:
        raise ValueError(f"{path} lists no file")
    names = rows.pop(0)[1]
    for number, cells in rows:
        if any("\n" in cell or "\r" in cell for cell in cells):
            raise ValueError(
                f"{path}, line {number}: a cell with a line break (is a quote not "
                "closed?)"
            )
        if len(cells) > len(names):
            raise ValueError(
                f"{path}, line {number}: more cells than columns; put a name or labels "
                "with commas into double quotes"
            )
        cells.extend([""] * (len(names) - len(cells)))
    columns = _find_columns(path, names, [cells for _, cells in rows], recording)
    result = []
    for number, cells in rows:
        values = {key: cells[at] for key, at in columns.items()}
        values.setdefault("path", recording or "")
        result.append(_row(f"{path}, line {number}", values, separator))
    without = next((row for row in result if row.split is None), None)
    if without and any(row.split for row in result):
        raise ValueError(f"{without.where}: no split, but others have one")
    return result


def _find_columns(
    path: Path,
    names: Sequence[str],
    rows: Sequence[Sequence[str]],
    recording: str | None,
) -> dict[str, int]:
    """Place of each column of `COLUMNS` that the table has; an empty one gives way."""
    columns: dict[str, int] = {}
    for at, name in enumerate(names):
        plain, _, unit = (
            re.sub(r"[\])]\s*$", "", name.lower()).replace("[", "(").partition("(")
        )
        plain = re.sub("[ -]", "_", plain.strip())
        key = _MEANINGS.get(plain)
        if key in ("start", "end", "place") and unit.strip() not in ("", *SECONDS):
            raise ValueError(f"{path}: the column {names[at]!r} is not in seconds")
        filled = any(row[at] for row in rows)
        other = columns.get(key, -1) if key else -1
        if other >= 0 and filled and any(row[other] for row in rows):
            raise ValueError(
                f"{path}: the columns {names[other]!r} and {names[at]!r} both look "
                f"like the {key} of a clip: rename the one that is not"
            )
        if key and (other < 0 or filled):
            columns[key] = at
    _refuse_unused(path, names, rows, columns)
    if "path" not in columns and recording is None:
        raise ValueError(
            f"{path} needs a column `path` (and may have labels, split, group, start, "
            f"end); its columns are: {', '.join(names) or 'none'}"
        )
    if ("start" in columns) != ("end" in columns):
        name = names[columns.get("start", columns.get("end", 0))]
        raise ValueError(
            f"{path}: the column {name!r} looks like a time, but its start or end is "
            "missing: add it, or rename the column"
        )
    return columns


def _refuse_unused(
    path: Path,
    names: Sequence[str],
    rows: Sequence[Sequence[str]],
    columns: Mapping[str, int],
) -> None:
    """Raise ValueError for a column that looks like a split, a label or a time.

    A random split in place of the user's, or clips without their labels or times,
    would go unseen.
    """
    for at, name in enumerate(names):
        plain = re.sub(r"[\[(].*", "", name.lower()).strip()
        plain = re.sub("[ -]", "_", plain)
        values = {row[at].lower() for row in rows if row[at]}
        if at in columns.values() or plain in _MEANINGS or not values:
            continue
        kind = next(
            (kind for kind, of in LOOKS_LIKE.items() if re.fullmatch(of, plain)), None
        )
        if "split" not in columns and (len(values) > 1 and values <= set(SPLITS)):
            kind = "split"
        if kind == "time" and "start" in columns and "end" in columns:
            kind = None
        if kind == "split" and "split" in columns:
            kind = None
        if "labels" not in columns and re.fullmatch(LABEL_LIKE, plain):
            kind = "label"
        if kind:
            use = {"split": "split", "time": "start and end (seconds)"}.get(
                kind, "label"
            )
            raise ValueError(
                f"{path}: the column {name!r} looks like a {kind} and is not used: "
                f"call it {use}, or rename it"
            )


def _row(where: str, cells: Mapping[str, str], separator: str) -> Row:
    """Check and convert the cells of one row."""
    if not cells["path"]:
        raise ValueError(f"{where}: the path is empty")
    split = cells.get("split", "").lower()
    if split and split not in SPLITS:
        raise ValueError(
            f"{where}: unknown split {split!r}; use train, valid or test (numbers of "
            "folds say not which is which: rename the column if it is no split)"
        )
    try:
        labels = split_labels(cells["labels"], separator) if "labels" in cells else None
        start, end = _times(cells.get("start", ""), cells.get("end", ""))
        if cells.get("place") and start is not None and end is not None:
            start, end = float(cells["place"]), float(cells["place"]) + end - start
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    group = cells.get("group") or None
    return Row(cells["path"], where, labels, SPLITS.get(split), group, start, end)


def _times(start: str, end: str) -> tuple[float | None, float | None]:
    """Seconds, or None and None for a whole file."""
    if not start and not end:
        return None, None
    try:
        begin, stop = (float(text.replace(",", ".")) for text in (start, end))
    except ValueError:
        raise ValueError(f"the times {start!r} and {end!r} are not seconds") from None
    if not 0 <= begin < stop < float("inf"):
        raise ValueError(f"need 0 <= start < end in seconds, got {start} and {end}")
    return begin, stop


def merged(rows: Iterable[Row]) -> list[Row]:
    """One row a clip: rows of one file and time joined, their labels united.

    A clip that is cut from a recording has also the labels of every other event that
    covers half of it: it sounds in there.

    Raises:
        ValueError: Rows of one file that contradict one another in split or group, or
            of which some have times and others none.
    """
    files: dict[str, list[Row]] = {}
    for row in rows:
        files.setdefault(row.name, []).append(row)
    clips = []
    for same in files.values():
        first = same[0]
        for row in same:
            for name in ("split", "group"):
                if getattr(row, name) != getattr(first, name):
                    raise ValueError(
                        f"{row.where}: another {name} for {row.name} than in "
                        f"{first.where}"
                    )
            if (row.start is None) != (first.start is None):
                raise ValueError(
                    f"{row.where}: one row of {row.name} has times and one has none "
                    f"({first.where}): give them for both"
                )
        # Of rows with the same times the first one stands for the clip.
        by_times = {(row.start, row.end): row for row in reversed(same)}
        for start, end in dict.fromkeys((row.start, row.end) for row in same):
            inside = (row for row in same if _covers(row, start, end))
            names = (row.labels for row in inside if row.labels is not None)
            united = dict.fromkeys(name for labels in names for name in labels)
            labels = None if first.labels is None else list(united)
            clips.append(by_times[start, end]._replace(labels=labels))
    return clips


def _covers(row: Row, start: float | None, end: float | None) -> bool:
    """Whether an event sounds in half of a clip or more."""
    if start is None or end is None or row.start is None or row.end is None:
        return True
    shared = min(end, row.end) - max(start, row.start)
    return shared >= OVERLAP * (end - start)
