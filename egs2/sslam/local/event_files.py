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

from espnet2_sslam.corpus import read_text, unique_words

FORMS = (".txt", ".tsv", ".csv", ".jams")  # the first that a clip has is read
NAMESPACES = ("scaper", "sound_event", "segment_open")


def read_event_labels(path: Path) -> list[str]:
    """Words of the labels of the events, each once, sorted."""
    text = read_text(path)
    names = _jams(path, text) if path.suffix.lower() == ".jams" else _lines(path, text)
    return sorted(unique_words(names))


def _jams(path: Path, text: str) -> list[str]:
    """Labels of the foreground events of a jams file."""
    try:
        annotations = json.loads(text)["annotations"]
        events = [a["data"] for a in annotations if a["namespace"] in NAMESPACES]
        # A list of observations, or the table of old jams versions.
        old = isinstance(events[0], dict)
        values = events[0]["value"] if old else [one["value"] for one in events[0]]
        values = [v if isinstance(v, dict) else {"label": str(v)} for v in values]
        return [v["label"] for v in values if v.get("role") != "background"]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no jams file of scaper ({error})") from None


def _lines(path: Path, text: str) -> list[str]:
    """Labels of a file with an event in each line."""
    names = []
    for number, line in enumerate(text.splitlines(), 1):
        separator = next((mark for mark in "\t," if mark in line), None)
        if separator:
            row = csv.reader([line], delimiter=separator, skipinitialspace=True)
            fields = [field.strip() for field in next(row)]
        else:  # the label may hold blanks
            fields = re.split(r"\s+", line.strip(), maxsplit=2)
        if not line.strip() or (
            number == 1 and fields[0].lower() in ("onset", "start")
        ):
            continue
        try:
            start, end, label = float(fields[0]), float(fields[1]), fields[2]
        except (ValueError, IndexError):
            raise ValueError(
                f"{path}, line {number}: {line!r} is not start, end and label"
            ) from None
        if end < start:
            raise ValueError(f"{path}, line {number}: the event ends before it starts")
        names.append(label)
    return names
