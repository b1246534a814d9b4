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
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from corpus_command import begin, known_labels, read_class_table

from espnet2_sslam.audio import SUFFIXES, decodable_suffixes, left_out_words
from espnet2_sslam.bin.cli import run_main
from espnet2_sslam.corpus import Clip, CorpusWriter, Downstream, table_lines
from espnet2_sslam.store import Journal

CLASS_TABLE = "class_labels_indices.csv"
BALANCED, UNBALANCED = "balanced_train_segments.csv", "unbalanced_train_segments.csv"
EVAL = "eval_segments.csv"
TRAIN_CSVS = {"as20k": (BALANCED,), "as2m": (BALANCED, UNBALANCED)}
FILE_NAME = re.compile(
    r"Y?([\w-]{11})(?:[_-](\d+(?:\.\d+)?)(?:[_-]\d+(?:\.\d+)?)?)?", re.ASCII
)
EXPECTED = (
    "--corpus_dir with the CSVs of AudioSet and the audio as <ytid>.wav, Y<ytid>.flac "
    "and the like, in any sub-folders (or in --audio_dir)"
)


def find_file(folder: Path, name: str) -> Path:
    """The file of this name in the folder or up to two levels below it."""
    for pattern in (name, f"*/{name}", f"*/*/{name}"):
        for path in sorted(folder.glob(pattern)):
            return path
    raise ValueError(
        f"{name} is not in {folder}: {EXPECTED}; local/download.sh --corpus audioset "
        "fetches the CSVs"
    )


def read_segments(
    path: Path, classes: dict[str, str]
) -> Iterator[tuple[str, float, str]]:
    """Id, start in seconds and labels of each line `YTID, start, end, "mid,mid"`."""
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
            # One text for many clips, for the memory.
            yield row[0].strip(), float(row[1]), sys.intern(labels)


def list_folder(root: Path, known: dict[str, dict], folder: str) -> dict:
    """Sub-folders and audio files of a directory, as known if it has not changed."""
    path = os.path.join(root, folder)
    folders, names = [], []
    try:
        mtime = os.stat(path).st_mtime_ns
        if folder in known and known[folder]["mtime"] == mtime:
            return known[folder]
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if os.path.splitext(entry.name)[1].lower() in SUFFIXES:
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

    Every directory is listed once and kept in the journal, so that an interrupted scan
    of millions of files goes on where it stopped and a second one takes seconds. Links
    to directories are followed, each real one once; `nj` are listed at a time.
    """
    with Journal(journal) as listings, ThreadPoolExecutor(nj) as threads:
        known = {entry["folder"]: entry for _, entry in listings}
        level, seen, listed = [""], set(), 0
        while level:
            folders = []
            for folder in level:
                real = os.path.realpath(os.path.join(root, folder))
                if real not in seen:
                    seen.add(real)
                    folders.append(folder)
            level = []
            for entry in threads.map(partial(list_folder, root, known), folders):
                if entry is not known.get(entry["folder"]):
                    listings.append(entry)
                    listed += 1
                level += entry["folders"]
                yield entry["folder"], entry["names"]
    logging.info("%d directories, %d of them listed now", len(seen), listed)


def find_audio(root: Path, journal: Path, writer: CorpusWriter, nj: int) -> dict:
    """Path below `root` of each clip's file; of copies, the one that sorts first."""
    files: dict[str, str] = {}
    copies, foreign, left_out = [], 0, Counter()
    suffixes = decodable_suffixes()
    for folder, names in scan(root, journal, nj):
        for name in names:
            stem, suffix = os.path.splitext(name)
            match = FILE_NAME.fullmatch(stem)
            if match is None:
                foreign += 1
                continue
            if suffix.lower() not in suffixes:
                left_out[suffix.lower()] += 1
                continue
            ytid, path = match[1], os.path.join(folder, name)
            if ytid in files:
                path, dropped = sorted((path, files[ytid]))
                copies.append(dropped)
            files[ytid] = path
    logging.info("%d audio files of AudioSet clips", len(files))
    if left_out:
        writer.note(f"audioset: {left_out_words(left_out)}")
        if not files:
            writer.expected = left_out_words(left_out)
    if copies:
        writer.note(
            f"audioset: {len(copies)} files are a second copy of a clip and not used, "
            f"for example {copies[0]}"
        )
    if foreign:
        writer.note(f"audioset: {foreign} audio files are not named like a clip")
    return files


def has_other_start(path: str, start: float) -> bool:
    """Whether a file's name gives a start time that the CSV does not."""
    match = FILE_NAME.fullmatch(os.path.splitext(os.path.basename(path))[0])
    if match is None or match[2] is None:
        return False
    # Seconds, or milliseconds as some downloaders write them.
    return float(match[2]) not in (start, 1000 * start)


def main(argv=None) -> None:
    """Write all splits below --datadir."""
    args, writer = begin(
        *(argv, __doc__, EXPECTED),
        audio_dir=(Path, "where the audio is [--corpus_dir]"),
        subsets=(["20k"], "training lists to make", ("2m", "20k")),
        pretrain_valid=(2000, "clips held out"),
        seed=(0, "of what is held out"),
    )
    if args.pretrain_valid < 1:
        raise ValueError(f"--pretrain_valid starts at 1, got {args.pretrain_valid}")
    sets = [name for name in TRAIN_CSVS if name[2:] in args.subsets]
    classes = read_class_table(find_file(args.corpus_dir, CLASS_TABLE), EXPECTED)
    needed = {name for each in sets for name in TRAIN_CSVS[each]} | {EVAL}
    csvs = {name: find_file(args.corpus_dir, name) for name in needed}
    root = (args.audio_dir or args.corpus_dir).resolve()
    if not root.is_dir():
        raise ValueError(f"--audio_dir {root} is no directory")
    audio = find_audio(root, args.datadir / ".index.jsonl", writer, args.nj)

    def clips(names: tuple, split: str) -> Iterator[Clip]:
        """Clips of some CSVs; one listed again is left out and counted."""
        seen: dict[str, str] = {}
        again = elsewhere = 0
        for name in names:
            for ytid, start, labels in read_segments(csvs[name], classes):
                if ytid not in seen:
                    seen[ytid], path = labels, audio.get(ytid, "")
                    elsewhere += has_other_start(path, start)
                    reason = "" if path else f"no audio file of {ytid}"
                    path = path and os.path.join(root, path)
                    yield Clip(f"Y{ytid}", path, labels, "", reason)
                elif set(seen[ytid].split()) == set(labels.split()):
                    again += 1
                else:
                    raise ValueError(
                        f"{csvs[name]}: {ytid} is listed twice with different labels; "
                        "keep one line of it"
                    )
        if again:
            writer.note(f"{split}: {again} lines list a clip again, used once")
        if elsewhere:
            writer.note(
                f"{split}: {elsewhere} files have another start time in their names "
                "than the CSV"
            )

    runs = []
    for name in sets:
        train, test = f"{name}/train", f"{name}/eval"
        for split, names in ((train, TRAIN_CSVS[name]), (test, (EVAL,))):
            weighted = split == "as2m/train"
            of_split = clips(names, split)
            writer.add(split, of_split, weighted=weighted, known_to_exist=True)
        writer.classes(name, classes)
        runs.append(Downstream(name, "multi_label", train, test, [test]))
    if "as2m" in sets:
        write_pretrain(writer, args.pretrain_valid, args.seed)
    writer.finish(runs)


def write_pretrain(writer: CorpusWriter, count: int, seed: int) -> None:
    """Write pretrain/{train,valid}: the clips of as2m/train, without labels.

    For valid `count` are kept, at most a tenth, chosen by a hash of seed and id. The
    list is read again rather than kept: it has two million lines.
    """
    wav = writer.datadir / "as2m/train/wav.scp"

    def code(key):
        return hashlib.blake2b(f"{seed} {key}".encode(), digest_size=16).digest()

    size = sum(1 for _ in table_lines(wav))
    keys = (key for _, key, _ in table_lines(wav))
    valid = set(heapq.nsmallest(max(1, min(count, size // 10)), keys, key=code))
    for name in ("train", "valid"):
        lines = ((key, path) for _, key, path in table_lines(wav))
        clips = (
            Clip(*line) for line in lines if (line[0] in valid) == (name == "valid")
        )
        writer.add(f"pretrain/{name}", clips, labelled=False, known_to_exist=True)
    writer.note(
        "audioset: pretrain/train and pretrain/valid hold the clips of as2m/train, "
        f"without labels; {len(valid)} of them are kept for valid"
    )


if __name__ == "__main__":
    run_main(main)
