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

import hashlib
import heapq
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

from audio_index import scan
from audioset_csv import CLASS_TABLE, Segment, read_class_table, read_segments
from corpus_command import corpus_parser, parse

from espnet2_sslam.bin.cli import run_main
from espnet2_sslam.corpus import (
    Clip,
    CorpusWriter,
    Downstream,
    table_lines,
)

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
                self._take(match.group(1), os.path.join(folder, name))

    def _take(self, ytid: str, path: str) -> None:
        """Of several files of a clip keep the one whose path sorts first."""
        other = self.paths.get(ytid)
        if other is not None:
            path, dropped = sorted((path, other))
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
        path = self.paths.get(segment.ytid)
        if path is None:
            return False
        stem = os.path.splitext(os.path.basename(path))[0]
        start = FILE_NAME.fullmatch(stem).group(2)
        if start is None:
            return False
        # Seconds, or milliseconds as some downloaders write them.
        return float(start) not in (float(segment.start), 1000 * float(segment.start))


class Corpus:
    """The CSVs, read as often as a split needs them."""

    def __init__(self, args, writer: CorpusWriter):
        self.folder = args.corpus_dir.resolve()
        self.writer = writer
        self.known_labels: dict[str, str] = {}  # one text for many clips: memory
        self.classes = read_class_table(find_file(self.folder, CLASS_TABLE))
        needed = {part for name in args.sets for part in SUBSETS[name]} | {"eval"}
        self.csv = {part: find_file(self.folder, CSV_FILES[part]) for part in needed}
        root = (args.audio_dir or args.corpus_dir).resolve()
        if not root.is_dir():
            raise ValueError(f"--audio_dir {root} is no directory")
        self.files = AudioFiles(root, args.datadir / ".index.jsonl", args.nj)
        logging.info("%d audio files of AudioSet clips", len(self.files.paths))
        self._note_files()

    def _note_files(self) -> None:
        """Say which audio files are not used."""
        note, files = self.writer.note, self.files
        if files.copies:
            note(
                f"audioset: {len(files.copies)} files are a second copy of a clip and "
                f"not used, for example {files.copies[0]}"
            )
        if files.foreign:
            note(f"audioset: {files.foreign} audio files are not named like a clip")

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
    args = parse(parser, argv)
    args.sets = [f"as{name}" for name in ("20k", "2m") if name in args.subsets]
    if not args.corpus_dir.is_dir():
        raise ValueError(f"{args.corpus_dir} is no directory; expected: {EXPECTED}")
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
