"""Stage 3: what is in a dump directory, as numbers (report_text.py words them)."""

import csv
import hashlib
import os
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional

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
from espnet2_sslam.corpus.dump import PROBLEM_FILE
from espnet2_sslam.corpus.formatting import Record
from espnet2_sslam.corpus.records import RecordBook
from espnet2_sslam.features import SAMPLE_RATE

STATS_SPLIT = "pretrain/train"
DURATION_EDGES = (0, 0.5, 1, 2, 3, 4, 5, 10, 20, 30, 60, 600, 3600)  # seconds
EXAMPLES = 20  # duplicates that the report lists by name


@dataclass
class SplitContent:
    """One split of the dump: audio record and labels of every clip."""

    name: str
    clips: Dict[str, Record]
    labels: Optional[Dict[str, List[str]]]


def read_dump(dump: Path) -> List[SplitContent]:
    """Read the lists of a dump and find each clip's record.

    Raises:
        ValueError: The dump is unfinished, or a file of it is gone or was changed.
    """
    dump = Path(dump)
    read_downstream(dump)  # its absence says that formatting did not finish
    by_audio = {r.audio: r for r in RecordBook(dump) if r.audio}
    for audio, record in by_audio.items():
        if not os.path.isfile(audio) or os.path.getsize(audio) != record.audio_bytes:
            raise ValueError(f"{audio} is missing or was changed: run stage 2 again")
    splits = []
    for name in find_splits(dump):
        clips = {}
        for key, audio in read_table(dump / name / "wav.scp").items():
            if audio not in by_audio:
                raise ValueError(
                    f"{dump / name}/wav.scp: {audio} has no record: run stage 2 again"
                )
            clips[key] = by_audio[audio]
        labels = read_split_labels(dump, name, list(clips))
        splits.append(SplitContent(name, clips, labels))
    return splits


def collect(dump: Path) -> dict:
    """All numbers of the report but the fbank statistics, ready for JSON.

    Raises:
        ValueError: See `read_dump`.
    """
    dump = Path(dump)
    splits = read_dump(dump)
    runs = read_downstream(dump)
    notes = (dump / NOTES_FILE).read_text(encoding="utf-8").splitlines()
    sets = sorted({split.name.split("/")[0] for split in splits if split.labels})
    return {
        "notes": [line for line in notes if line],
        "leaks": find_leaks(splits, runs),
        "pretraining_overlaps": find_pretraining_overlaps(splits, runs),
        "duplicates": find_duplicates(splits),
        "classes": {name: read_classes(dump / name / CLASS_FILE) for name in sets},
        "splits": {
            split.name: describe_split(dump, split, _problems(dump, split.name))
            for split in splits
        },
    }


def _problems(dump: Path, split: str) -> List[dict]:
    """Lines of problems.tsv about one split."""
    with open(dump / PROBLEM_FILE, encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [row for row in rows if row["split"] == split]


def describe_split(dump: Path, split: SplitContent, problems: List[dict]) -> dict:
    """Counts, durations, labels and hashes of one split."""
    left_out = Counter(_category(p) for p in problems if p["action"] == "left out")
    doubtful = Counter(_category(p) for p in problems if p["action"] == "kept")
    seconds = np.array([r.num_samples for r in split.clips.values()]) / SAMPLE_RATE
    counts, _ = np.histogram(seconds, [*DURATION_EDGES, np.inf])
    names = ("wav.scp", "text", "utt2spk", "utt2num_samples", "feats.scp")
    lists = [dump / split.name / name for name in names]
    result = {
        "listed": len(split.clips) + sum(left_out.values()),
        "usable": len(split.clips),
        "left_out": dict(left_out),
        "warnings": dict(doubtful),
        "duplicates": len(split.clips) - len(_hashes(split)),
        "hours": float(seconds.sum()) / 3600,
        "seconds": {
            "min": float(seconds.min()),
            "mean": float(seconds.mean()),
            "max": float(seconds.max()),
        },
        "seconds_histogram": {
            "edges": list(DURATION_EDGES),
            "counts": counts.tolist(),
        },
        "list_sha256": {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in lists
            if path.is_file()
        },
        "content_sha256": content_hash(split),
    }
    if split.labels is not None:
        classes = read_classes(dump / split.name.split("/")[0] / CLASS_FILE)
        result.update(describe_labels(split.labels, classes))
    return result


def _category(problem: dict) -> str:
    """`truncated` of `truncated: 3 of 5 bytes are there`."""
    return problem["reason"].split(":")[0]


def describe_labels(labels: Dict[str, List[str]], classes: List[str]) -> dict:
    """Label counts of one split."""
    counts = Counter(label for of_clip in labels.values() for label in of_clip)
    per_clip = Counter(len(of_clip) for of_clip in labels.values())
    return {
        "label_counts": {label: counts[label] for label in classes},
        "labels_per_clip": {str(n): per_clip[n] for n in sorted(per_clip)},
        "classes_without_positives": [c for c in classes if not counts[c]],
    }


def content_hash(split: SplitContent) -> str:
    """SHA-256 of ids, samples and labels: the same wherever the files lie."""
    digest = hashlib.sha256()
    for key in sorted(split.clips):
        labels = " ".join((split.labels or {}).get(key, ()))
        digest.update(f"{key} {split.clips[key].audio_sha256} {labels}\n".encode())
    return digest.hexdigest()


def _hashes(split: SplitContent) -> set:
    """Hashes of the audio of a split."""
    return {record.audio_sha256 for record in split.clips.values()}


def find_leaks(splits: List[SplitContent], runs: List[Downstream]) -> List[dict]:
    """Audio of a training split that is in a validation or test split of its run."""
    by_name = {split.name: split for split in splits}
    leaks = []
    for run in runs:
        train = by_name[run.train]
        for name in dict.fromkeys((run.valid, *run.tests)):
            shared = _shared(train, by_name[name])
            if shared:
                leaks.append({"run": run.name, "train": run.train, "split": name})
                leaks[-1].update(clips=len(shared), examples=shared[:EXAMPLES])
    return leaks


def find_pretraining_overlaps(
    splits: List[SplitContent], runs: List[Downstream]
) -> List[dict]:
    """Test audio that pre-training sees (without its labels)."""
    by_name = {split.name: split for split in splits}
    if STATS_SPLIT not in by_name:
        return []
    overlaps = []
    for name in dict.fromkeys(name for run in runs for name in run.tests):
        shared = _shared(by_name[STATS_SPLIT], by_name[name])
        if shared:
            overlaps.append({"split": name, "clips": len(shared)})
    return overlaps


def _shared(train: SplitContent, other: SplitContent) -> List[str]:
    """Ids of `other` whose audio is in `train` too."""
    hashes = _hashes(train)
    return sorted(k for k, r in other.clips.items() if r.audio_sha256 in hashes)


def find_duplicates(splits: List[SplitContent]) -> dict:
    """Different files with the same audio anywhere, and whether labels differ."""
    sources = defaultdict(set)
    labels = defaultdict(set)
    for split in splits:
        for key, record in split.clips.items():
            sources[record.audio_sha256].add(record.source)
            if split.labels is not None:
                kind = split.name.split("/")[0]
                labels[record.audio_sha256].add((kind, *sorted(split.labels[key])))
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
