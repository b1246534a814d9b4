#!/usr/bin/env python3
"""Prepare any folder of audio files, or a CSV/TSV table that lists them.

--corpus_dir is a folder or a table. A folder that holds metadata.csv or metadata.tsv
(or whose train/, valid/ and test/ hold one each) is read through it, any other is
searched for audio; links to folders are followed.

A table has a column path (also file_name, filename, file, audio, ...) and may have
labels (label, category, class, tags, ...), split (subset, set, ...), group, and start
and end in seconds (onset and offset, begin and end time): these rows cut clips from a
recording. Paths are relative to the table. Several labels in a cell are separated by
one of --label_separator; double quotes inside the cell keep a name with commas whole.
Rows of one file without times are joined. split is train, valid or test.

Without a table, --label_from parent takes the folder that a file lies in for its label;
--label_from events cuts clips by the label file beside each audio file: Audacity's
labels (x.txt), Raven's selections (x.Table.1.selections.txt), tables with the columns
onset, offset, event_label (x.tsv). Folders train/, valid/ and test/ directly below
--corpus_dir are the splits (of a table too, if it has no column of them).

With labels: <name>/{train,valid,test} and pretrain/{train,valid}, where pre-training
gets the audio of the training split (--pretrain_on all: of every split). Without
labels: pretrain/{train,valid} only. Where no split is given, clips are split 80/10/10
by a seed; clips of one recording stay together: of the same column `group`, or of what
--group_regex finds, else of the same path but for the extension.
"""

import logging
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from corpus_command import begin, write_pretrain, write_set

from espnet2_sslam.audio import cut_name, find_audio, left_out_words
from espnet2_sslam.bin.cli import run_main
from espnet2_sslam.corpus import (
    TASKS,
    Clip,
    CorpusWriter,
    clip_ids,
    hold_out,
    label_word,
    partition_groups,
    read_text,
)
from espnet2_sslam.corpus.tables import (
    COLUMNS,
    SPLITS,
    Row,
    merged,
    read_annotations,
    split_labels,
)

PARTS = {"train": 0.8, "valid": 0.1, "test": 0.1}
# A label file beside `<stem>.wav`, as Audacity, Raven and scaper name them.
SIDECAR = re.compile(r"(.+?)(\.Table\.\d+)?(\.selections)?\.(txt|tsv|csv)", re.I)
TIMES = {*COLUMNS["start"].split(), "begin time"}


# Tables


def read_metadata(path: Path, separator: str) -> list[Row]:
    """The clips of a CSV or TSV table."""
    rows = read_annotations(path, separator)
    return merged(
        row._replace(name=relative_name(path.parent, row.name)) for row in rows
    )


def relative_name(folder: Path, name: str) -> str:
    """One spelling for each file: below its folder if it is there, as on the disk."""
    path = os.path.normpath(folder / name)
    if not os.path.exists(path):  # macOS and Linux spell accents differently
        for form in ("NFC", "NFD"):
            other = unicodedata.normalize(form, path)
            path = other if os.path.exists(other) else path
    inside = os.path.relpath(path, folder)
    return Path(path if inside.startswith("..") else inside).as_posix()


def find_tables(folder: Path, writer: CorpusWriter) -> list[Path]:
    """metadata.csv or .tsv of a folder, or else those of its train/, valid/, test/."""
    for place in ("", "*/"):
        tables, other = [], []
        for path in sorted(folder.glob(f"{place}metadata.*")):
            used = not place or path.parent.name.lower() in SPLITS
            if used and path.suffix.lower() == ".jsonl":
                raise ValueError(f"{path} is not read: write it as metadata.csv")
            if path.suffix.lower() in (".csv", ".tsv"):
                (tables if used else other).append(path)
        if len({path.parent for path in tables}) < len(tables):
            raise ValueError(f"{folder} holds two tables: give one as --corpus_dir")
        if other and not tables:
            writer.note(
                f"{other[0].relative_to(folder)} is not used: tables lie directly in "
                "--corpus_dir or in its train/, valid/, test/"
            )
        if tables:
            return tables
    return []


def read_tables(
    folder: Path, tables: list[Path], separator: str, writer: CorpusWriter
) -> list[Row]:
    """The clips of a folder's tables; audio that they do not list is counted."""
    rows = []
    for table in tables:
        place = table.parent.relative_to(folder)
        rows += [
            row._replace(name=(place / row.name).as_posix())
            for row in read_metadata(table, separator)
        ]
    listed = {os.path.normpath(folder / row.name) for row in rows}
    extra = [path for path in find_audio(folder, Counter()) if path not in listed]
    if extra:
        writer.note(
            f"{len(extra)} audio files of {folder} are not in its table and not used, "
            f"as {os.path.relpath(extra[0], folder)}"
        )
    return rows


# Folders


def read_tree(
    folder: Path, label_from: str, separator: str, writer: CorpusWriter
) -> list[Row]:
    """The audio files below a folder, or the clips that label files cut from them."""
    left_out: Counter = Counter()
    paths = find_audio(folder, left_out)
    names = [Path(os.path.relpath(path, folder)).as_posix() for path in paths]
    if not names:
        words = f"; {left_out_words(left_out)}" if left_out else ": check --corpus_dir"
        raise ValueError(f"{folder} holds no audio file{words}")
    if left_out:
        writer.note(left_out_words(left_out))
    splits = folder_splits(folder, names, writer)
    if label_from == "events":
        rows = read_events(folder, names, separator, writer)
        return [row._replace(split=splits[row.name]) for row in rows]
    if label_from == "none":
        beside = sidecars(folder, names)
        if beside:
            logging.info(
                "a text or table of the same name lies beside %d of %d audio files "
                "(%s); if it lists events, --label_from events uses it",
                len(beside),
                len(names),
                next(iter(beside.values()))[0],
            )
        return [Row(name, name, None, splits[name]) for name in names]
    rows = []
    for name in names:
        parents = name.split("/")[bool(splits[name]) : -1]
        labels = split_labels(parents[-1], "") if parents else []
        if not labels:
            raise ValueError(
                f"{folder / name} lies in no label's directory: move it into one, or "
                "use --label_from none"
            )
        rows.append(Row(name, name, labels, splits[name]))
    if all(row.labels[0].lower() in SPLITS for row in rows if row.labels):
        raise ValueError(
            f"{folder}: the label of {names[0]} would be {rows[0].labels[0]!r}: let "
            "the folders train, valid, test lie directly below --corpus_dir, and the "
            "labels' folders in them"
        )
    return rows


def folder_splits(
    folder: Path, names: list[str], writer: CorpusWriter
) -> dict[str, str | None]:
    """Split of each file by the first folder of its path, where that names one."""
    first = {name: name.split("/")[0] if "/" in name else "" for name in names}
    splits = {name: SPLITS.get(place.lower()) for name, place in first.items()}
    inside = sorted({first[name] for name in names if splits[name]})
    outside = [name for name in names if not splits[name]]
    if inside and outside:
        raise ValueError(
            f"{folder}: {' and '.join(inside)} look(s) like a split, but "
            f"{len(outside)} file(s) lie outside, as {outside[0]}: move them into "
            "train, valid or test; if these are names of labels, put all folders into "
            "one more folder (of a table, a column split decides)"
        )
    if inside:
        taken = ", ".join(f"{name}/ is {SPLITS[name.lower()]}" for name in inside)
        writer.note(f"the splits are those of the folders: {taken}")
    return splits


def sidecars(folder: Path, names: Iterable[str]) -> dict[str, list[str]]:
    """Names of the label files beside each audio file that has some."""
    files: dict[str, dict[str, list[str]]] = {}
    found = {}
    for name in names:
        place, stem = os.path.split(os.path.splitext(name)[0])
        if place not in files:
            files[place] = defaultdict(list)
            for other in sorted(os.listdir(folder / place)):
                if match := SIDECAR.fullmatch(other):
                    files[place][match[1]].append(os.path.join(place, other))
        if stem in files[place]:
            found[name] = files[place][stem]
    return found


def read_events(
    folder: Path, names: list[str], separator: str, writer: CorpusWriter
) -> list[Row]:
    """The clips that the label file beside each audio file cuts from it."""
    beside = sidecars(folder, names)
    rows, empty = [], []
    for name, files in beside.items():
        if len(files) > 1:
            raise ValueError(
                f"{folder / name} has the label files {' and '.join(files)}: keep one"
            )
        path = folder / files[0]
        events = [] if holds_no_event(path) else read_annotations(path, separator, name)
        if not events:
            empty.append(files[0])
        for row in events:
            if row.start is None or row.labels is None:
                raise ValueError(
                    f"{path} is no label file (start, end and label of each event): "
                    "move it away, or use another --label_from"
                )
            other = re.split(r"[\\/]", row.name)[-1]
            if os.path.splitext(other)[0] != Path(name).stem:
                raise ValueError(f"{row.where}: it is of {other}, not of {name}")
            rows.append(row._replace(name=name, group=None))
    bare = [name for name in names if name not in beside]
    if bare:
        writer.note(
            f"{len(bare)} of {len(names)} audio files have no label file beside them "
            f"and are not used, as {bare[0]}"
        )
    if empty:
        writer.note(f"{len(empty)} label files hold no event, as {empty[0]}")
    if not rows:
        raise ValueError(
            f"{folder} holds no events: --label_from events needs a label file beside "
            "each audio file, such as x.txt of Audacity beside x.wav"
        )
    return merged(rows)


def holds_no_event(path: Path) -> bool:
    """Whether a label file is empty, or has a header only."""
    lines = [line for line in read_text(path).splitlines() if line.strip()]
    if len(lines) != 1:
        return not lines
    words = (word.split("(")[0] for word in re.split("[\t,;]", lines[0].lower()))
    return not TIMES.isdisjoint(word.strip() for word in words)


def read_clips(source: Path, args, writer: CorpusWriter) -> tuple[Path, list[Row]]:
    """The folder that names are relative to, and the clips of --corpus_dir."""
    separator = "" if args.label_separator == "none" else args.label_separator
    if source.is_file():
        folder, rows = source.parent, read_metadata(source, separator)
    elif not source.is_dir():
        raise ValueError(f"--corpus_dir {source} is neither a directory nor a table")
    elif tables := find_tables(source, writer):
        folder, rows = source, read_tables(source, tables, separator, writer)
    else:
        return source, read_tree(source, args.label_from, separator, writer)
    if args.label_from != "none" and all(row.labels is None for row in rows):
        raise ValueError(
            f"{rows[0].where}: the table has no labels, and --label_from "
            f"{args.label_from} is for folders without one: add a column label, or "
            "move the table away"
        )
    without = [row for row in rows if not row.split]
    if len(without) == len(rows):
        splits = folder_splits(folder, [row.name for row in rows], writer)
        rows = [row._replace(split=splits[row.name]) for row in rows]
    elif without:
        raise ValueError(f"{without[0].where}: no split, but others have one")
    return folder, rows


# Ids, recordings, labels and splits


def by_id(rows: list[Row]) -> dict[str, Row]:
    """The clips by their ids, in order; those cut from a recording have their times."""
    names: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: (row.name, row.start or 0, row.end or 0)):
        name = row.name
        if row.start is not None and row.end is not None:
            stem, suffix = os.path.splitext(name)
            times = (round(1000 * time) for time in (row.start, row.end))
            name = "-".join([stem, *(f"{time:06d}" for time in times)]) + suffix
        if name in names:
            raise ValueError(
                f"{row.where}: another row names the same clip to the millisecond "
                f"({names[name].where}): keep one"
            )
        names[name] = row
    ids = clip_ids(names)
    return {ids[name]: row for name, row in names.items()}


def recordings(
    clips: Mapping[str, Row], pattern: str, writer: CorpusWriter
) -> dict[str, str]:
    """What must not be divided between splits, in one word: see the module."""
    groups = {}
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"--group_regex {pattern!r}: {error}") from None
    for key, row in clips.items():
        group = row.group or os.path.splitext(row.name)[0].lower()
        if pattern and not row.group:
            text = row.name if "/" in pattern else Path(row.name).stem
            match = re.search(pattern, text)
            if not match:
                raise ValueError(
                    f"--group_regex {pattern!r} does not match {text} of {row.name} (a "
                    "pattern with a / is searched in the whole path)"
                )
            group = match[1] if match.groups() else match[0]
        groups[key] = group
    words = clip_ids(groups.values())
    if not pattern:
        own = {group for key, group in groups.items() if not clips[key].group}
        stems = Counter(os.path.basename(group) for group in own)
        same = [stem for stem, count in stems.items() if count > 1]
        if same:
            writer.note(
                f"{same[0]} is the name of files in several folders (and so are "
                f"{len(same) - 1} others): these are different recordings; if they "
                "are not, --group_regex (with a / it is searched in the path) says "
                "what is one"
            )
    return {key: words[group] for key, group in groups.items()}


def label_names(rows: Iterable[Row], name: str, writer: CorpusWriter) -> dict[str, str]:
    """The name of each label's word, sorted; labels that look odd are noted."""
    labels = sorted({label for row in rows for label in row.labels or ()})
    by_case: dict[str, str] = {}
    for label in labels:
        other = by_case.setdefault(label.casefold(), label)
        if other != label:
            writer.note(
                f"{name}: {other!r} and {label!r} are two classes; if they are one, "
                "spell them alike"
            )
    if len(labels) == 1:
        writer.note(
            f"{name}: {labels[0]!r} is the only class: any model has an accuracy and "
            "mAP of 100 on it"
        )
    return {label_word(label): label for label in labels}


def choose_splits(
    clips: Mapping[str, Row], groups: dict[str, str], rng
) -> dict[str, str]:
    """Split of each labelled clip, as given or seeded."""
    splits = {key: row.split or "" for key, row in clips.items()}
    names = set(splits.values())
    if names == {""}:
        labels = {key: row.labels or [] for key, row in clips.items()}
        parts = partition_groups(groups, labels, list(PARTS.values()), rng)
        return {key: list(PARTS)[part] for key, part in parts.items()}
    if "train" not in names or len(names) < 2:
        raise ValueError(
            f"there is only the split {', '.join(sorted(names))}: name some files "
            "train and others test (or valid); for a seeded split leave the column "
            "out, or give the folder train itself as --corpus_dir"
        )
    return splits


def choose_task(rows: Iterable[Row], task: str, name: str, writer: CorpusWriter) -> str:
    """`multi_class` when every clip has exactly one label, unless told."""
    other = [row for row in rows if len(row.labels or ()) != 1]
    several = [row for row in other if row.labels]
    remedy = "; if that is one name, use --label_separator"
    if task == "multi_class" and other:
        row = (several or other)[0]
        raise ValueError(
            f"{row.where}: {row.name} has {label_words(row)}, --task multi_class needs "
            f"exactly one for every clip{remedy if several else ''}"
        )
    if task != "auto":
        return task
    if other and not several:
        raise ValueError(
            f"{other[0].where}: {other[0].name} has no label, as {len(other)} clip(s) "
            "in all, while the others have one each: label or remove them, or use "
            "--task multi_label"
        )
    if several:
        row = several[0]
        writer.note(
            f"{name}: multi_label, for {len(several)} clip(s) have several labels: "
            f"{row.where}: {label_words(row)}{remedy}"
        )
    return "multi_label" if several else "multi_class"


def label_words(row: Row) -> str:
    """Number and names of the labels of a clip."""
    labels = row.labels or []
    return f"{len(labels)} labels {', '.join(map(repr, labels))}".rstrip()


def main(argv=None) -> None:
    """Write all splits below --datadir."""
    args, writer = begin(
        *(argv, __doc__),
        name=("folder", "name of the labelled set"),
        task=(
            "auto",
            "one label for a clip or several; auto: as the labels are",
            ("auto", *TASKS),
        ),
        label_from=(
            "none",
            "without a table: the directory of a file, or the label file beside it",
            ("none", "parent", "events"),
        ),
        label_separator=(",;", "between the labels of a cell; none: it is one name"),
        group_regex=(
            "",
            "its first group stays together: in the stem of a name, or, with a / in "
            "the pattern, in the relative path",
        ),
        pretrain_on=(
            "train",
            "what pre-training hears: the training clips, or test clips too",
            ("train", "all"),
        ),
        valid_share=(0.1, "share of clips held out in pre-training"),
        seed=(0, "of the splits"),
    )
    folder, rows = read_clips(args.corpus_dir.resolve(), args, writer)
    listed = by_id(rows)
    groups = recordings(listed, args.group_regex, writer)
    rng = np.random.default_rng(args.seed)
    clips = {}
    for key, row in listed.items():
        path = str(folder / row.name)
        if row.start is not None and row.end is not None:
            path = cut_name(path, row.start, row.end)
        words = " ".join(map(label_word, row.labels or ()))
        clips[key] = Clip(key, path, words, groups[key])
    splits = {key: row.split for key, row in listed.items() if row.split}
    runs = []
    if any(row.labels for row in rows):
        splits = choose_splits(listed, groups, rng)
        task = choose_task(listed.values(), args.task, args.name, writer)
        classes = label_names(rows, args.name, writer)
        by_split = {
            name: [clip for key, clip in clips.items() if splits[key] == name]
            for name in sorted(set(splits.values()))
        }
        # Lost files are found, listed and counted when the audio is formatted.
        run = write_set(writer, args.name, task, by_split, classes, known_to_exist=True)
        runs.append(run)
    else:
        logging.info(
            "no labels: only the pre-training sets are made, no downstream run; labels "
            "come from a column (%s) or --label_from",
            COLUMNS["labels"].replace(" ", ", "),
        )
    if args.pretrain_on == "all" or not splits:
        note = "hold all audio, without labels"
        parts = hold_out(groups, args.valid_share, rng)
    elif "train" not in splits.values():
        raise ValueError(
            f"{folder}: no clip is in the split train; --pretrain_on all takes all"
        )
    elif "valid" in splits.values():
        note = "are the audio of the splits train and valid"
        order = {"train": 0, "valid": 1}
        parts = {key: order[s] for key, s in splits.items() if s in order}
    else:
        note = "are the audio of the split train"
        trained = {key: groups[key] for key, s in splits.items() if s == "train"}
        parts = hold_out(trained, args.valid_share, rng)
    write_pretrain(writer, clips.values(), parts)
    writer.note(f"{args.name}: pretrain/{{train,valid}} {note}")
    writer.finish(runs)
    logging.info("%d clips", len(clips))


if __name__ == "__main__":
    run_main(main)
