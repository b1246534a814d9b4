#!/usr/bin/env python3
"""Prepare AudioSet from its official CSVs and audio in any folder layout.

--corpus_dir holds (anywhere below it) balanced_train_segments.csv, eval_segments.csv,
unbalanced_train_segments.csv and class_labels_indices.csv; the audio lies below it or
below --audio_dir, one file for each segment, named <ytid> or Y<ytid>, with or without
the start (and end) time behind it: Yabc...xyz.flac, abc...xyz_30.000.wav. Sub-folders
do not matter.

--subsets 20k: as20k/{train,eval}, the balanced segments. --subsets 2m: as2m/{train,
eval}, the balanced and unbalanced segments, with as2m/train/weights for sampling (for
each clip the sum over its labels of 1000 / (count + 0.01), counted on the clips that
are there), and pretrain/{train,valid}. AudioSet has no validation split: eval is what
validation reports on, too, so last and best are reported separately.

Labels are the ids of AudioSet (/m/09x0r), in the order of class_labels_indices.csv;
label_names.tsv has their names. Segments without audio are listed in missing.csv of
each split.
"""

import csv
import hashlib
import heapq
import logging
import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from corpus_command import (
    EXTENSIONS,
    corpus_parser,
    known_labels,
    parse,
    read_class_table,
)

from espnet2_sslam.bin.cli import run_main
from espnet2_sslam.corpus import (
    Clip,
    CorpusWriter,
    Downstream,
    parallel_map,
    table_lines,
)
from espnet2_sslam.store import Journal

CLASS_TABLE = "class_labels_indices.csv"
CSV_FILES = {
    "balanced": "balanced_train_segments.csv",
    "unbalanced": "unbalanced_train_segments.csv",
    "eval": "eval_segments.csv",
}
SUBSETS = {  # set: parts of its training split
    "as20k": ("balanced",),
    "as2m": ("balanced", "unbalanced"),
}
FILE_NAME = re.compile(
    r"Y?([\w-]{11})(?:[_-](\d+(?:\.\d+)?)(?:[_-]\d+(?:\.\d+)?)?)?", re.ASCII
)
EXPECTED = (
    "--corpus_dir with the CSVs of AudioSet and the audio as <ytid>.wav, Y<ytid>.flac "
    "and the like, in any sub-folders (or in --audio_dir)"
)


def find_file(folder: Path, name: str) -> Path:
    """The file of this name in the folder or up to two levels below it.

    Raises:
        ValueError: It is not there.
    """
    for pattern in (name, f"*/{name}", f"*/*/{name}"):
        for path in sorted(folder.glob(pattern)):
            return path
    raise ValueError(
        f"{name} is not in {folder}: {EXPECTED}; local/download.sh --corpus audioset "
        "fetches the CSVs"
    )


class Segment(NamedTuple):
    """One line of a segments CSV."""

    ytid: str
    start: float
    labels: str  # words separated by blanks


def read_segments(path: Path, classes: dict[str, str]) -> Iterator[Segment]:
    """Segments of a CSV, in file order: `YTID, start, end, "mid,mid"`, `#` comments.

    Raises:
        ValueError: A line with other fields, or with an unknown label or none.
    """
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, skipinitialspace=True)
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if not "".join(row).strip() or row[0].lstrip().startswith("#"):
                continue
            if len(row) < 4 or not re.fullmatch(r"[\w-]{11}", row[0].strip(), re.ASCII):
                raise ValueError(
                    f'{where}: it must read YTID, start, end, "label,label", not {row}'
                )
            # Without the quotes the labels are fields of their own.
            names = ",".join(row[3:]).split(",")
            labels = known_labels(names, classes, where, CLASS_TABLE)
            if not labels:
                raise ValueError(f"{where}: it has no label")
            yield Segment(row[0].strip(), float(row[1]), labels)


def list_folder(folder: str, root: str) -> dict:
    """One line of the journal: sub-folders and audio files of a directory.

    Raises:
        ValueError: The directory cannot be read.
    """
    path = os.path.join(root, folder)
    folders, names = [], []
    try:
        mtime = os.stat(path).st_mtime_ns
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.name.lower().endswith(EXTENSIONS):
                    names.append(entry.name)
                elif entry.is_dir():
                    folders.append(os.path.join(folder, entry.name))
    except OSError as error:
        raise ValueError(
            f"{path} cannot be listed ({error.strerror}): make it readable"
        ) from None
    return {"folder": folder, "mtime": mtime, "folders": folders, "names": names}


def scan(root: Path, journal: Path, nj: int) -> Iterator[tuple[str, list[str]]]:
    """Relative directory and names of the audio files in it, for the whole tree.

    Every directory is listed once and remembered. One whose modification time is the
    journal's is not listed again, so that an interrupted scan of millions of files goes
    on where it stopped and a second one takes seconds.

    Args:
        root: The tree; links to directories are followed, each real one once.
        journal: Where the listings are kept.
        nj: Processes.
    """
    with Journal(journal) as listings:
        known = {entry["folder"]: entry for _, entry in listings}
        waiting, seen, listed = [""], set(), 0
        while waiting:
            fresh = []
            level, waiting = waiting, []
            for folder in level:
                path = os.path.join(root, folder)
                real = os.path.realpath(path)
                if real in seen:
                    continue
                seen.add(real)
                entry = known.get(folder)
                if entry is None or entry["mtime"] != os.stat(path).st_mtime_ns:
                    fresh.append(folder)
                    continue
                waiting += entry["folders"]
                yield folder, entry["names"]
            work = partial(list_folder, root=str(root))
            if not fresh:
                continue
            for entry in parallel_map(work, fresh, nj, "directories", chunk=1):
                listings.append(entry)
                listed += 1
                waiting += entry["folders"]
                yield entry["folder"], entry["names"]
    logging.info("%d directories, %d of them listed now", len(seen), listed)


class AudioFiles:
    """Path and start time in the name of each clip's file."""

    def __init__(self, root: Path, journal: Path, nj: int):
        self.root = root
        self.paths: dict[str, str] = {}
        self.copies: list[str] = []
        self.foreign = 0
        for folder, names in scan(root, journal, nj):
            for name in names:
                match = FILE_NAME.fullmatch(os.path.splitext(name)[0])
                if match is None:
                    self.foreign += 1
                    continue
                ytid, path = match.group(1), os.path.join(folder, name)
                if ytid in self.paths:  # the one whose path sorts first is used
                    path, dropped = sorted((path, self.paths[ytid]))
                    self.copies.append(dropped)
                self.paths[ytid] = path

    def clip(self, segment: Segment) -> Clip:
        """The clip of a segment; an empty path where there is no file."""
        path = self.paths.get(segment.ytid, "")
        if path:
            path = os.path.join(self.root, path)
        reason = "" if path else f"no audio file of {segment.ytid}"
        return Clip(f"Y{segment.ytid}", path, segment.labels, "", reason)

    def has_other_start(self, segment: Segment) -> bool:
        """Whether the file's name gives a start time that the CSV does not."""
        stem = os.path.splitext(os.path.basename(self.paths.get(segment.ytid, "")))[0]
        match = FILE_NAME.fullmatch(stem)
        start = match and match.group(2)
        if not start:
            return False
        # Seconds, or milliseconds as some downloaders write them.
        return float(start) not in (segment.start, 1000 * segment.start)


class Corpus:
    """The CSVs, read as often as a split needs them."""

    def __init__(self, args, writer: CorpusWriter):
        folder, self.writer = args.corpus_dir, writer
        self.known_labels: dict[str, str] = {}  # one text for many clips: memory
        self.classes = read_class_table(find_file(folder, CLASS_TABLE), EXPECTED)
        needed = {part for name in args.sets for part in SUBSETS[name]} | {"eval"}
        self.csv = {part: find_file(folder, CSV_FILES[part]) for part in needed}
        root = (args.audio_dir or args.corpus_dir).resolve()
        if not root.is_dir():
            raise ValueError(f"--audio_dir {root} is no directory")
        self.files = AudioFiles(root, args.datadir / ".index.jsonl", args.nj)
        logging.info("%d audio files of AudioSet clips", len(self.files.paths))
        if self.files.copies:
            writer.note(
                f"audioset: {len(self.files.copies)} files are a second copy of a clip "
                f"and not used, for example {self.files.copies[0]}"
            )
        if self.files.foreign:
            writer.note(
                f"audioset: {self.files.foreign} audio files are not named like a clip"
            )

    def clips(self, parts: tuple, split: str) -> Iterator[Clip]:
        """Clips of some CSVs; one listed again is left out and counted."""
        seen: dict[str, str] = {}
        again, elsewhere = 0, 0
        for part in parts:
            for segment in read_segments(self.csv[part], self.classes):
                labels = self.known_labels.setdefault(segment.labels, segment.labels)
                segment = segment._replace(labels=labels)
                if segment.ytid in seen:
                    if sorted(seen[segment.ytid].split()) != sorted(labels.split()):
                        raise ValueError(
                            f"{self.csv[part]}: {segment.ytid} is listed twice with "
                            "different labels; keep one line of it"
                        )
                    again += 1
                    continue
                seen[segment.ytid] = labels
                elsewhere += self.files.has_other_start(segment)
                yield self.files.clip(segment)
        if again:
            self.writer.note(f"{split}: {again} lines list a clip again, used once")
        if elsewhere:
            self.writer.note(
                f"{split}: {elsewhere} files have another start time in their names "
                "than the CSV"
            )


def write_pretrain(writer: CorpusWriter, train: str, count: int, seed: int) -> None:
    """Write pretrain/{train,valid}: the clips of a written split, without labels.

    Args:
        writer: Of the corpus.
        train: The split.
        count: Clips kept for valid (at most a tenth), chosen by a hash of seed and id.
        seed: See there.
    """
    wav = writer.datadir / train / "wav.scp"

    def code(key):
        return hashlib.blake2b(f"{seed} {key}".encode(), digest_size=16).digest()

    size = sum(1 for _ in table_lines(wav))
    keys = (key for _, key, _ in table_lines(wav))
    valid = set(heapq.nsmallest(max(1, min(count, size // 10)), keys, key=code))
    for name in ("train", "valid"):
        clips = (
            Clip(key, path)
            for _, key, path in table_lines(wav)
            if (key in valid) == (name == "valid")
        )
        writer.add(f"pretrain/{name}", clips, labelled=False, known_to_exist=True)
    writer.note(
        f"audioset: pretrain/train and pretrain/valid hold the clips of {train}, "
        f"without labels; {len(valid)} of them are kept for valid"
    )


def main(argv=None) -> None:
    """Write all splits below --datadir."""
    parser = corpus_parser(__doc__, nj="processes that list directories [1]")
    add = parser.add_argument
    add("--audio_dir", type=Path, help="where the audio is [--corpus_dir]")
    add("--subsets", nargs="+", choices=("2m", "20k"), default=["20k"], help="[20k]")
    add("--pretrain_valid", type=int, default=2000, help="clips held out [2000]")
    add("--seed", type=int, default=0, help="of what is held out [0]")
    args = parse(parser, argv, EXPECTED)
    args.sets = [f"as{name}" for name in ("20k", "2m") if name in args.subsets]
    if args.pretrain_valid < 1:
        raise ValueError(f"--pretrain_valid starts at 1, got {args.pretrain_valid}")
    writer = CorpusWriter(args.datadir, EXPECTED)
    corpus = Corpus(args, writer)
    runs = []
    for name in args.sets:
        train, test = f"{name}/train", f"{name}/eval"
        for split, parts in ((train, SUBSETS[name]), (test, ("eval",))):
            clips = corpus.clips(parts, split)
            weighted = split == "as2m/train"
            writer.add(split, clips, weighted=weighted, known_to_exist=True)
        writer.classes(name, corpus.classes)
        runs.append(Downstream(name, "multi_label", train, test, [test]))
    if "as2m" in args.sets:
        write_pretrain(writer, "as2m/train", args.pretrain_valid, args.seed)
    writer.finish(runs)


if __name__ == "__main__":
    run_main(main)
