"""Stage 3: what is in a dump directory, as numbers (report_text.py words them).

Clips are counted as they are read; of each split two numbers for each clip stay in
memory, its length and the first 8 bytes of its audio's hash. Where two are equal, the
whole hashes are compared.
"""

import csv
import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from espnet2_sslam.corpus.datadir import (
    CLASS_FILE,
    NOTES_FILE,
    Downstream,
    find_splits,
    read_classes,
    read_downstream,
    read_split_labels,
    read_table,
)
from espnet2_sslam.corpus.expected import SECONDS, compare, expected_of
from espnet2_sslam.corpus.records import RecordBook
from espnet2_sslam.corpus.tally import PROBLEM_FILE
from espnet2_sslam.corpus.writer import MISSING_FILE, count_missing
from espnet2_sslam.units import SAMPLE_RATE

STATS_SPLIT = "pretrain/train"
DURATION_EDGES = (0, 0.5, 1, 2, 3, 4, 5, 10, 20, 30, 60, 600, 3600)  # seconds
EXAMPLES = 20  # duplicates that the report lists by name


@dataclass
class SplitContent:
    """One split of the dump: length and short hash of every clip, label counts."""

    name: str
    seconds: np.ndarray  # (N,) float64
    codes: np.ndarray  # (N,) uint64
    content_sha256: str
    label_counts: Counter | None = None
    labels_per_clip: Counter = field(default_factory=Counter)


def short_code(sha256: str) -> int:
    """The first 8 bytes of a hash as a number."""
    return int(sha256[:16], 16)


class Dump:
    """A dump directory with its records, one split at a time.

    Args:
        folder: What format_audio wrote.

    Raises:
        ValueError: The dump is unfinished, or a file of it is gone or was changed.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.runs = read_downstream(folder)  # absent when formatting did not finish
        self.book = RecordBook(folder, key="audio")
        for record in self.book:
            audio = record.audio
            if audio and not _has_size(audio, record.audio_bytes):
                raise ValueError(
                    f"{audio} is missing or was changed: run stage 2 again"
                )
        self.splits = [self.read(name) for name in find_splits(folder)]

    def clips(self, name: str) -> Iterator[tuple]:
        """Id, record and labels (None without a `text`) of each clip, sorted by id."""
        wav = read_table(self.folder / name / "wav.scp")
        labels = read_split_labels(self.folder, name, wav)
        for key in sorted(wav):
            record = self.book.get(wav[key])
            if record is None:
                raise ValueError(
                    f"{self.folder / name}/wav.scp: {wav[key]} has no record: run "
                    "stage 2 again"
                )
            yield key, record, None if labels is None else labels[key]

    def read(self, name: str) -> SplitContent:
        """Count one split.

        The hash is over ids, samples and labels: the same wherever the files lie.
        """
        samples, codes, digest = [], [], hashlib.sha256()
        counts, per_clip, labelled = Counter(), Counter(), False
        for key, record, labels in self.clips(name):
            samples.append(record.num_samples)
            codes.append(short_code(record.audio_sha256))
            words = " ".join(labels or ())
            digest.update(f"{key} {record.audio_sha256} {words}\n".encode())
            if labels is not None:
                labelled = True
                counts.update(labels)
                per_clip[len(labels)] += 1
        return SplitContent(
            name,
            np.array(samples, dtype=np.float64) / SAMPLE_RATE,
            np.array(codes, dtype=np.uint64),
            digest.hexdigest(),
            counts if labelled else None,
            per_clip,
        )

    def with_codes(self, name: str, codes: np.ndarray) -> Iterator[tuple]:
        """Id, record and labels of the clips with one of these short hashes."""
        wanted = set(codes.tolist())
        if wanted:
            for key, record, labels in self.clips(name):
                if short_code(record.audio_sha256) in wanted:
                    yield key, record, labels


def _has_size(path: str, size: int) -> bool:
    """Whether a file is there and has this size."""
    try:
        return os.stat(path).st_size == size and os.path.isfile(path)
    except OSError:
        return False


def collect(folder: Path) -> dict:
    """All numbers of the report but the fbank statistics, ready for JSON.

    Raises:
        ValueError: See `Dump`.
    """
    folder = Path(folder)
    dump = Dump(folder)
    notes = (folder / NOTES_FILE).read_text(encoding="utf-8").splitlines()
    labelled = [split for split in dump.splits if split.label_counts is not None]
    sets = sorted({split.name.split("/")[0] for split in labelled})
    classes = {name: read_classes(folder / name / CLASS_FILE) for name in sets}
    return {
        "notes": [line for line in notes if line],
        "leaks": find_leaks(dump, dump.runs),
        "pretraining_overlaps": find_pretraining_overlaps(dump, dump.runs),
        "duplicates": find_duplicates(dump),
        "classes": classes,
        "splits": {
            split.name: describe_split(folder, split, classes) for split in dump.splits
        },
    }


def _problems(folder: Path, split: str) -> list[dict]:
    """Lines of problems.tsv about one split."""
    with open(folder / PROBLEM_FILE, encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [row for row in rows if row["split"] == split]


def describe_split(folder: Path, split: SplitContent, classes: dict) -> dict:
    """Counts, durations, labels and hashes of one split."""
    problems = _problems(folder, split.name)
    left_out = Counter(_category(p) for p in problems if p["action"] == "left out")
    doubtful = Counter(_category(p) for p in problems if p["action"] == "kept")
    missing = count_missing(folder / split.name / MISSING_FILE) or 0
    counts, _ = np.histogram(split.seconds, [*DURATION_EDGES, np.inf])
    names = ("wav.scp", "text", "utt2spk", "utt2num_samples", "weights", "feats.scp")
    lists = [folder / split.name / name for name in names]
    size = len(split.seconds)
    result = {
        "listed": size + left_out.total() + missing,
        "missing": missing,
        "usable": size,
        "left_out": dict(left_out),
        "warnings": dict(doubtful),
        "duplicates": size - len(np.unique(split.codes)),
        "hours": float(split.seconds.sum()) / 3600,
        "seconds": {
            "min": float(split.seconds.min()),
            "mean": float(split.seconds.mean()),
            "max": float(split.seconds.max()),
        },
        "seconds_histogram": {
            "edges": list(DURATION_EDGES),
            "counts": counts.tolist(),
        },
        "list_sha256": {
            path.name: _file_hash(path) for path in lists if path.is_file()
        },
        "content_sha256": split.content_sha256,
    }
    of_set = classes.get(split.name.split("/")[0])
    if split.label_counts is not None:
        result.update(describe_labels(split, of_set))
    expected = expected_of(split.name) or {}
    if "seconds" in expected:
        off = np.abs(split.seconds - expected["seconds"]) > SECONDS
        result["clips_of_other_length"] = int(off.sum())
    result["compared"] = compare(split.name, result, of_set)
    return result


def _file_hash(path: Path) -> str:
    """SHA-256 of a list."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _category(problem: dict) -> str:
    """`truncated` of `truncated: 3 of 5 bytes are there`."""
    return problem["reason"].split(":")[0]


def describe_labels(split: SplitContent, classes: list[str]) -> dict:
    """Label counts of one split."""
    counts, per_clip = split.label_counts, split.labels_per_clip
    return {
        "label_counts": {label: counts[label] for label in classes},
        "labels_per_clip": {str(n): per_clip[n] for n in sorted(per_clip)},
        "classes_without_positives": [c for c in classes if not counts[c]],
        "classes_with_one_positive": [c for c in classes if counts[c] == 1],
    }


def find_leaks(dump: Dump, runs: list[Downstream]) -> list[dict]:
    """Audio of a training split that is in a validation or test split of its run."""
    leaks = []
    for run in runs:
        for name in dict.fromkeys((run.valid, *run.tests)):
            shared = _shared(dump, run.train, name)
            if shared:
                leaks.append({"run": run.name, "train": run.train, "split": name})
                leaks[-1].update(clips=len(shared), examples=shared[:EXAMPLES])
    return leaks


def find_pretraining_overlaps(dump: Dump, runs: list[Downstream]) -> list[dict]:
    """Test audio that pre-training sees (without its labels)."""
    if STATS_SPLIT not in {split.name for split in dump.splits}:
        return []
    overlaps = []
    for name in dict.fromkeys(name for run in runs for name in run.tests):
        shared = _shared(dump, STATS_SPLIT, name)
        if shared:
            overlaps.append({"split": name, "clips": len(shared)})
    return overlaps


def _shared(dump: Dump, train: str, other: str) -> list[str]:
    """Ids of `other` whose audio is in `train` too, sorted."""
    codes = {split.name: split.codes for split in dump.splits}
    common = np.intersect1d(codes[train], codes[other])
    hashes = {record.audio_sha256 for _, record, _ in dump.with_codes(train, common)}
    found = dump.with_codes(other, common)
    return [key for key, record, _ in found if record.audio_sha256 in hashes]


def _repeated(codes: np.ndarray) -> np.ndarray:
    """What occurs more than once."""
    values, counts = np.unique(codes, return_counts=True)
    return values[counts > 1]


def find_duplicates(dump: Dump) -> dict:
    """Different files with the same audio anywhere, and whether labels differ."""
    sources: dict[str, set] = defaultdict(set)
    labels: dict[str, set] = defaultdict(set)
    codes = [short_code(r.audio_sha256) for r in dump.book if r.audio]
    files = np.array(codes, dtype=np.uint64)
    per_split = (_repeated(split.codes) for split in dump.splits)
    repeated = np.unique(np.concatenate([_repeated(files), *per_split]))
    wanted = set(repeated.tolist())
    for record in dump.book if wanted else ():
        if record.audio and short_code(record.audio_sha256) in wanted:
            sources[record.audio_sha256].add(record.source)
    for split in dump.splits:
        if split.label_counts is not None and np.isin(split.codes, repeated).any():
            kind = split.name.split("/")[0]
            for _, record, words in dump.with_codes(split.name, repeated):
                labels[record.audio_sha256].add((kind, *sorted(words)))
    groups = [sorted(files) for files in sources.values() if len(files) > 1]
    contradictions = [
        sorted(sources[code])
        for code, found in labels.items()
        if len(found) > len({kind for kind, *_ in found})
    ]
    return {
        "groups": len(groups),
        "examples": sorted(groups)[:EXAMPLES],
        "contradicting_labels": len(contradictions),
        "contradicting_examples": sorted(contradictions)[:EXAMPLES],
    }
