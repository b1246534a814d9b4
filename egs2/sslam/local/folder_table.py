"""What a folder or table of audio files says: paths, labels, splits, groups."""

import csv
import io
import re
from dataclasses import dataclass
from pathlib import Path

from espnet2_sslam.corpus import slug

EXTENSIONS = ".wav .flac .mp3 .ogg .opus .oga .aif .aiff .au .w64 .caf".split()
COLUMNS = {  # column of a table: the names it may have
    "path": ("path", "file", "filename"),
    "labels": ("labels", "label"),
    "split": ("split",),
    "group": ("group",),
}
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "validation": "valid",
    "val": "valid",
    "dev": "valid",
    "test": "test",
    "eval": "test",
    "evaluation": "test",
}


@dataclass
class Clip:
    """One audio file; `labels` None means that nothing is known about it."""

    path: Path
    name: str  # relative path, as in the table or below the folder
    labels: list[str] | None = None
    split: str | None = None
    group: str | None = None


def read_tree(folder: Path, label_from: str) -> list[Clip]:
    """All audio files below a folder, labels from the directory they lie in or none.

    Raises:
        ValueError: There is no audio file, or one lies outside any label's directory.
    """
    clips = []
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in relative.parts)
        if hidden or path.suffix.lower() not in EXTENSIONS or path.is_dir():
            continue
        labels = None
        if label_from == "parent":
            if len(relative.parts) < 2:
                raise ValueError(
                    f"{path} lies in no label's directory: move it into one, or use "
                    "--label_from none"
                )
            labels = [relative.parts[-2]]
        clips.append(Clip(path, relative.as_posix(), labels))
    if not clips:
        raise ValueError(
            f"{folder} holds no audio file ({' '.join(EXTENSIONS)}): check --corpus_dir"
        )
    return clips


def read_metadata(path: Path) -> list[Clip]:
    """Rows of a CSV or TSV file with the columns path[, labels][, split][, group].

    The encoding is UTF-8, with or without BOM; the separator is a tab in .tsv files,
    else a comma, or a semicolon where the header has no comma. Several labels are
    separated by `,` or `;` inside their field. Paths are relative to the table.

    Raises:
        ValueError: No `path` column, a row with too many fields or without a path, the
            same file twice, an unknown split, or splits given for some rows only.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text: save it as UTF-8") from None
    header = re.split("[\r\n]", text, maxsplit=1)[0]
    tab = path.suffix.lower() == ".tsv" or "\t" in header
    separator = "\t" if tab else ";" if ";" in header and "," not in header else ","
    file = io.StringIO(text, newline="")
    reader = csv.DictReader(file, delimiter=separator, skipinitialspace=True)
    names = [(name or "").strip().lower() for name in reader.fieldnames or []]
    reader.fieldnames = names
    columns = {
        column: next((name for name in allowed if name in names), None)
        for column, allowed in COLUMNS.items()
    }
    if columns["path"] is None:
        raise ValueError(
            f"{path} needs a column `path` (and may have labels, split, group); its "
            f"columns are: {', '.join(names) or 'none'}"
        )
    clips: dict[str, Clip] = {}
    for row in reader:
        where = f"{path}, line {reader.line_num}"
        if None in row:
            raise ValueError(
                f"{where}: more fields than columns; put several labels into quotes"
            )
        if not any((value or "").strip() for value in row.values()):
            continue
        clip = _clip_of_row(path.parent, row, columns, where)
        if clip.name in clips:
            raise ValueError(f"{where}: {clip.name} occurs twice; keep one row of it")
        clips[clip.name] = clip
    if not clips:
        raise ValueError(f"{path} lists no file")
    if len({clip.split is None for clip in clips.values()}) > 1:
        without = next(clip.name for clip in clips.values() if clip.split is None)
        raise ValueError(f"{path}: {without} has no split but others have one")
    return list(clips.values())


def _clip_of_row(folder: Path, row: dict, columns: dict, where: str) -> Clip:
    """One row as a clip."""

    def value(column):
        return (row.get(columns[column]) or "").strip() if columns[column] else ""

    name = value("path")
    if not name:
        raise ValueError(f"{where}: the path is empty")
    labels = None
    if columns["labels"]:
        labels = [label.strip() for label in re.split("[,;]", value("labels"))]
        labels = [label for label in labels if label]
        if len(set(labels)) != len(labels):
            raise ValueError(f"{where}: the same label twice for {name}")
    split = value("split").lower() or None
    if split is not None and split not in SPLIT_NAMES:
        raise ValueError(
            f"{where}: unknown split {value('split')!r}; use train, valid or test"
        )
    return Clip(
        folder / name,
        name,
        labels,
        SPLIT_NAMES[split] if split else None,
        value("group") or None,
    )


def unique_ids(clips: list[Clip]) -> dict[str, Clip]:
    """Clips by an id made of the relative path without its extension.

    Where two would share an id the extension is added, and then a number.
    """
    count: dict[str, int] = {}
    for clip in clips:
        key = slug(str(Path(clip.name).with_suffix("")))
        count[key] = count.get(key, 0) + 1
    by_id: dict[str, Clip] = {}
    for clip in sorted(clips, key=lambda clip: clip.name):
        key = slug(str(Path(clip.name).with_suffix("")))
        if count[key] > 1:
            key = slug(clip.name)
        base, number = key, 2
        while key in by_id:
            key, number = f"{base}-{number}", number + 1
        by_id[key] = clip
    return by_id


def label_slugs(clips: list[Clip]) -> dict[str, str]:
    """Blank-free name of every label.

    Raises:
        ValueError: Two labels would get the same name.
    """
    slugs: dict[str, str] = {}
    for label in sorted({label for clip in clips for label in clip.labels or []}):
        taken = next((old for old, new in slugs.items() if new == slug(label)), None)
        if taken is not None:
            raise ValueError(
                f"the labels {taken!r} and {label!r} would both become "
                f"{slug(label)!r}: rename one, or spell both alike if they mean "
                "the same"
            )
        slugs[label] = slug(label)
    return slugs
