"""Files of class names: a plain list, the authors' table, or AudioSet's."""

import csv
from collections.abc import Sequence
from pathlib import Path

from espnet2_sslam.checkpoint.errors import CheckpointError


def read_labels(path: Path, known: Sequence[str] | None = None) -> list[str]:
    """Read the names of the classes in their order.

    Args:
        path: One name per line; or a table of `index,name` or `index,mid,name` with or
            without a header, as in the authors' label_descriptors.csv and AudioSet's
            class_labels_indices.csv.
        known: Labels of the checkpoint. A table with a second column of these
            (AudioSet's /m/... ids) is brought into their order.

    Raises:
        CheckpointError: No names, a name twice, or labels that the table lacks.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no file of labels {path}")
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = [[cell.strip() for cell in row] for row in csv.reader(file) if any(row)]
    if rows and rows[0][0].lower() in ("index", "id"):
        rows = rows[1:]
    if not rows:
        raise CheckpointError(f"{path} holds no labels")
    names = _names(rows, path)
    if known is not None and all(len(row) > 2 for row in rows):
        by_id = {row[1]: row[-1] for row in rows}
        if set(known) & set(by_id):
            missing = [label for label in known if label not in by_id]
            if missing:
                raise CheckpointError(f"{path} lacks {', '.join(missing)}")
            names = [by_id[label] for label in known]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise CheckpointError(f"{path} names {', '.join(twice)} more than once")
    if known is not None and len(names) != len(known):
        raise CheckpointError(
            f"{path} has {len(names)} labels, the checkpoint {len(known)}"
        )
    return names


def _names(rows: list[list[str]], path: Path) -> list[str]:
    """The last column, in the order of the first where that counts the classes."""
    if len(rows[0]) == 1:
        return [row[0] for row in rows]
    try:
        places = [int(row[0]) for row in rows]
    except ValueError:
        raise CheckpointError(
            f"{path}: the first of several columns must be the class's number"
        ) from None
    if sorted(places) != list(range(len(rows))):
        raise CheckpointError(f"{path} does not number its classes 0 to {len(rows)-1}")
    return [row[-1] for _, row in sorted(zip(places, rows), key=lambda pair: pair[0])]
