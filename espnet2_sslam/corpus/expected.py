"""What the real corpora hold, and how a prepared one differs from it."""

from fnmatch import fnmatchcase
from pathlib import Path

import yaml

TABLE = Path(__file__).with_name("expected.yaml")
PART = 0.5  # with fewer clips than this share it is a part of the corpus, on purpose
SECONDS = 0.5  # a clip may be so much shorter or longer
LABELS = 0.06  # labels per clip may differ so much: means are rounded, clips missing


def read_expected() -> dict[str, dict]:
    """What each split of the real corpora holds, by pattern of its name."""
    return yaml.safe_load(TABLE.read_text(encoding="utf-8"))


def expected_of(name: str) -> dict | None:
    """What a split should hold; None for one that is not known."""
    table = read_expected()
    return next((row for key, row in table.items() if fnmatchcase(name, key)), None)


def compare(name: str, split: dict, classes: list[str] | None) -> dict:
    """How a split differs from the real one.

    Args:
        name: `<set>/<split>`.
        split: Its numbers in the data report.
        classes: Its class list.

    Returns:
        `expected` (None for an unknown corpus), `is_part` (a miniature or a subset,
        which is not compared) and `differences` in words.
    """
    expected = expected_of(name)
    if expected is None:
        return {"expected": None, "is_part": False, "differences": []}
    listed = split["listed"] - _without(expected, split)
    is_part = listed < PART * expected["clips"]
    differences = []
    if not is_part:
        if listed != expected["clips"]:
            differences.append(
                f"{listed} clips are listed, {expected['clips']} expected"
            )
        if classes is not None and len(classes) != expected["classes"]:
            differences.append(
                f"{len(classes)} classes, {expected['classes']} expected"
            )
        if "labels_per_clip" in expected:
            mean, wanted = mean_labels(split), expected["labels_per_clip"]
            if abs(mean - wanted) > LABELS:
                differences.append(f"{mean:.2f} labels per clip, {wanted} expected")
        others = split.get("clips_of_other_length", 0)
        if others:
            length = expected["seconds"]
            differences.append(
                f"{others} clips are not {length} s (+- {SECONDS} s) long"
            )
    return {"expected": expected, "is_part": is_part, "differences": differences}


def mean_labels(split: dict) -> float:
    """The mean number of labels per clip."""
    clips = split["labels_per_clip"]
    return sum(int(number) * count for number, count in clips.items()) / split["usable"]


def _without(expected: dict, split: dict) -> int:
    """How many clips of the split do not count."""
    label = expected.get("without")
    return split.get("label_counts", {}).get(label, 0) if label else 0
