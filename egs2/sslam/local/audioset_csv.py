"""The CSVs of AudioSet: segments, and the table of classes."""

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from espnet2_sslam.corpus import label_word

CLASS_TABLE = "class_labels_indices.csv"


class Segment(NamedTuple):
    """One line of a segments CSV."""

    ytid: str
    start: str
    labels: str  # words separated by blanks


def read_class_table(path: Path) -> dict[str, str]:
    """Display name of each AudioSet id, in class order.

    Raises:
        ValueError: Not such a table, or an id or number twice.
    """
    rows = {}
    with open(path, encoding="utf-8-sig", newline="") as file:
        for row in csv.reader(file, skipinitialspace=True):
            if not row or row[0].strip().lower() == "index":
                continue
            if len(row) != 3 or not row[0].strip().isdigit():
                raise ValueError(f"{path}: {row} is not index,mid,display_name")
            number, mid, name = int(row[0]), row[1].strip(), row[2].strip()
            if number in rows or mid in {mid for mid, _ in rows.values()}:
                raise ValueError(f"{path}: {number} or {mid} occurs twice")
            rows[number] = (label_word(mid), name)
    if sorted(rows) != list(range(len(rows))) or not rows:
        raise ValueError(f"{path} does not number its classes 0, 1, 2, ...")
    return dict(rows[number] for number in range(len(rows)))


def read_segments(path: Path, classes: dict[str, str]) -> Iterator[Segment]:
    """Segments of a CSV, in file order: `YTID, start, end, "mid,mid"`, `#` comments.

    Raises:
        ValueError: A line with other fields, or with an unknown label.
    """
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, skipinitialspace=True)
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if not row or row[0].lstrip().startswith("#") or not "".join(row).strip():
                continue
            if len(row) < 4 or not re.fullmatch(r"[\w-]{11}", row[0].strip(), re.ASCII):
                raise ValueError(
                    f'{where}: it must read YTID, start, end, "label,label", not {row}'
                )
            # Without the quotes the labels are fields of their own.
            labels = [word.strip() for word in ",".join(row[3:]).split(",")]
            labels = [label_word(word) for word in dict.fromkeys(labels) if word]
            unknown = [word for word in labels if word not in classes]
            if unknown or not labels:
                what = f"the label {unknown[0]}" if unknown else "no label"
                raise ValueError(f"{where}: {what}: {CLASS_TABLE} does not have it")
            yield Segment(row[0].strip(), row[1].strip(), " ".join(labels))
