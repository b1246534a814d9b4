"""Labels of a clip from a file of sound events, in the forms that scaper writes.

.jams   JSON with annotations of namespace `scaper` (or `sound_event`); events whose
        role is background are left out
.txt    start, end and label of an event in each line, separated by tabs, commas or
        blanks, without header
.csv, .tsv   the same, with or without a header (onset, offset, event_label)
"""

import csv
import json
import re
from pathlib import Path

from espnet2_sslam.corpus import unique_words

FORMS = (".txt", ".tsv", ".csv", ".jams")  # the first that a clip has is read
NAMESPACES = ("scaper", "sound_event", "segment_open")


def read_event_labels(path: Path) -> list[str]:
    """Words of the labels of the events, each once, sorted.

    Raises:
        ValueError: The file has another form; it is named, with the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text") from None
    names = _jams(path, text) if path.suffix.lower() == ".jams" else _lines(path, text)
    return sorted(unique_words(names))


def _jams(path: Path, text: str) -> list[str]:
    """Labels of the foreground events of a jams file."""
    try:
        annotations = json.loads(text)["annotations"]
        events = [a["data"] for a in annotations if a["namespace"] in NAMESPACES]
        if not events:
            raise ValueError("no annotation of scaper")
        data = events[0]
        # A list of observations, or the table of old jams versions.
        old = isinstance(data, dict)
        values = data["value"] if old else [one["value"] for one in data]
        return [
            value["label"] if isinstance(value, dict) else str(value)
            for value in values
            if not isinstance(value, dict) or value.get("role") != "background"
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no jams file of scaper ({error})") from None


def _lines(path: Path, text: str) -> list[str]:
    """Labels of a file with an event in each line."""
    names = []
    for number, line in enumerate(text.splitlines(), 1):
        fields = _fields(line)
        if not fields or (number == 1 and fields[0].lower() in ("onset", "start")):
            continue
        try:
            start, end = float(fields[0]), float(fields[1])
            label = fields[2]
        except (ValueError, IndexError):
            raise ValueError(
                f"{path}, line {number}: {line!r} is not start, end and label"
            ) from None
        if end < start:
            raise ValueError(f"{path}, line {number}: the event ends before it starts")
        names.append(label)
    return names


def _fields(line: str) -> list[str]:
    """Fields of a line; a label may hold blanks, commas only in quotes."""
    if not line.strip():
        return []
    for separator in "\t,":
        if separator in line:
            row = next(csv.reader([line], delimiter=separator, skipinitialspace=True))
            return [field.strip() for field in row]
    return re.split(r"\s+", line.strip(), maxsplit=2)
