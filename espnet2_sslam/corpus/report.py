"""What is in a dump folder, as numbers; report.txt.j2 words them.

Clips are counted as they are read; of each split two numbers for each clip stay in
memory, its length and the first 8 bytes of its audio's SHA-256, by which copies are
found: among two million clips two of different audio are alike by a chance of 1e-7.
"""

import csv
import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from espnet2_sslam.corpus.dump import PROBLEM_FILE, Record, RecordBook
from espnet2_sslam.corpus.lists import (
    CLASS_FILE,
    CONTENT_FILE,
    MISSING_FILE,
    NOTES_FILE,
    find_splits,
    read_classes,
    read_downstream,
    read_split_labels,
    read_table,
)
from espnet2_sslam.store import sha256
from espnet2_sslam.units import FRAME_LENGTH, FRAME_SHIFT, MIN_FRAMES, SAMPLE_RATE

STATS_SPLIT = "pretrain/train"
CLIP_FRAMES = 1024  # to which the authors fill up every clip
DURATION_EDGES = (0, 0.5, 1, 2, 3, 4, 5, 10, 20, 30, 60, 600, 3600)  # seconds
EXAMPLES = 20  # duplicates that the report lists by name
# Those that hold no places: equal data have equal ones, wherever they lie.
LISTS = (CONTENT_FILE, "text", "utt2spk", "utt2num_samples", "weights")
EXPECTED = Path(__file__).with_name("expected.yaml")
PART = 0.5  # with fewer clips than this share it is a part of the corpus, on purpose
SECONDS = 0.5  # a clip may be so much shorter or longer
LABELS = 0.06  # labels per clip may differ so much: means are rounded, clips missing
TEMPLATE = "report.txt.j2"


@dataclass
class SplitContent:
    """One split of the dump: length and audio code of every clip, label counts."""

    name: str
    seconds: np.ndarray  # (N,) float64
    codes: np.ndarray  # (N,) uint64
    content_sha256: str
    label_counts: Counter | None = None  # None without labels
    labels_per_clip: Counter = field(default_factory=Counter)


class Dump:
    """A dump folder with its records, one split at a time.

    Raises:
        ValueError: The dump is unfinished, or a file of it is gone or was changed.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.runs = read_downstream(folder)  # absent when formatting did not finish
        self.book = RecordBook(folder, key="audio")
        for record in self.book:
            if record.audio and not _has_size(record.audio, record.audio_state[0]):
                raise ValueError(
                    f"{record.audio} is missing or was changed: format the data again"
                )
        self.splits = {name: self._count(name) for name in find_splits(folder)}

    def clips(self, name: str) -> Iterator[tuple[str, Record, list[str] | None]]:
        """Iterate over id, record and labels (None without a `text`), sorted by id."""
        wav = read_table(self.folder / name / "wav.scp")
        labels = read_split_labels(self.folder, name, wav)
        for key in sorted(wav):
            record = self.book.get(wav[key])
            if record is None:
                raise ValueError(
                    f"{self.folder / name}/wav.scp: {wav[key]} has no record: format "
                    "the data again"
                )
            yield key, record, None if labels is None else labels[key]

    def _count(self, name: str) -> SplitContent:
        """Count one split.

        The hash is over ids, samples and labels: the same wherever the files lie.
        """
        samples, codes, digest = [], [], hashlib.sha256()
        counts, per_clip = Counter(), Counter()
        for key, record, labels in self.clips(name):
            samples.append(record.num_samples)
            codes.append(_code(record))
            words = " ".join(labels or ())
            digest.update(f"{key} {record.audio_sha256} {words}\n".encode())
            if labels is not None:
                counts.update(labels)
                per_clip[len(labels)] += 1
        return SplitContent(
            name,
            np.array(samples, dtype=np.float64) / SAMPLE_RATE,
            np.array(codes, dtype=np.uint64),
            digest.hexdigest(),
            counts if per_clip else None,
            per_clip,
        )

    def shared(self, train: str, other: str) -> list[str]:
        """Return the ids of `other` whose audio is in `train` too, sorted."""
        codes = np.intersect1d(self.splits[train].codes, self.splits[other].codes)
        common = set(codes.tolist())
        clips = self.clips(other) if common else ()
        return [key for key, record, _ in clips if _code(record) in common]


def _code(record: Record) -> int:
    """The first 8 bytes of the audio's hash as a number."""
    return int(record.audio_sha256[:16], 16)


def _has_size(path: str, size: int) -> bool:
    try:
        return os.stat(path).st_size == size and os.path.isfile(path)
    except OSError:
        return False


def collect(folder: str | Path) -> dict[str, Any]:
    """Collect all numbers of the report but the fbank statistics, ready for JSON.

    Raises:
        ValueError: See `Dump`.
    """
    folder = Path(folder)
    dump = Dump(folder)
    notes = (folder / NOTES_FILE).read_text(encoding="utf-8").splitlines()
    labelled = [s.name for s in dump.splits.values() if s.label_counts is not None]
    sets = sorted({name.split("/")[0] for name in labelled})
    classes = {name: read_classes(folder / name / CLASS_FILE) for name in sets}
    return {
        "notes": [line for line in notes if line],
        "leaks": find_leaks(dump),
        "pretraining_overlaps": find_pretraining_overlaps(dump),
        "duplicates": find_duplicates(dump),
        "classes": classes,
        "splits": {
            name: describe_split(folder, split, classes.get(name.split("/")[0]))
            for name, split in dump.splits.items()
        },
    }


def describe_split(
    folder: Path, split: SplitContent, classes: Sequence[str] | None
) -> dict[str, Any]:
    """Return counts, durations, labels and hashes of one split."""
    problems: dict[str, Counter] = {"left out": Counter(), "kept": Counter()}
    with open(folder / PROBLEM_FILE, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            if row["split"] == split.name:
                problems[row["action"]][row["reason"].split(":")[0]] += 1
    seconds = split.seconds
    size, missing = len(seconds), 0
    if (path := folder / split.name / MISSING_FILE).is_file():
        with open(path, encoding="utf-8", newline="") as file:
            missing = sum(1 for row in csv.reader(file) if row) - 1
    counts, _ = np.histogram(seconds, [*DURATION_EDGES, np.inf])
    lists = [folder / split.name / name for name in LISTS]
    result: dict[str, Any] = {
        "listed": size + problems["left out"].total() + missing,
        "missing": missing,
        "usable": size,
        "left_out": dict(problems["left out"]),
        "warnings": dict(problems["kept"]),
        "duplicates": size - len(np.unique(split.codes)),
        "hours": float(seconds.sum()) / 3600,
        "seconds": {of: float(getattr(seconds, of)()) for of in ("min", "mean", "max")},
        "seconds_histogram": {"edges": [*DURATION_EDGES], "counts": counts.tolist()},
        "list_sha256": {path.name: sha256(path) for path in lists if path.is_file()},
        "content_sha256": split.content_sha256,
    }
    if split.label_counts is not None and classes is not None:
        positives, per_clip = split.label_counts, split.labels_per_clip
        result["label_counts"] = {label: positives[label] for label in classes}
        result["labels_per_clip"] = {str(n): per_clip[n] for n in sorted(per_clip)}
        result["classes_without_positives"] = [c for c in classes if not positives[c]]
        result["classes_with_one_positive"] = [c for c in classes if positives[c] == 1]
    frames = (seconds * SAMPLE_RATE - FRAME_LENGTH) // FRAME_SHIFT + 1
    if split.name.startswith("pretrain/"):  # left out with padding: none
        result["too_short"] = int(np.count_nonzero(frames < MIN_FRAMES))
    if split.name == STATS_SPLIT:
        result["padding"] = padding_share(frames, CLIP_FRAMES)
        crop = CLIP_FRAMES * FRAME_SHIFT / SAMPLE_RATE
        longer = seconds[seconds > crop]
        if len(longer):
            result["longer"] = {
                "clips": len(longer),
                "heard": crop * len(longer) / float(longer.sum()),
                "heard_of_longest": crop / float(longer.max()),
            }
    expected = expected_of(split.name)
    if expected and "seconds" in expected:
        other_length = np.abs(seconds - expected["seconds"]) > SECONDS
        result["clips_of_other_length"] = int(other_length.sum())
    result["compared"] = compare(split.name, result, classes)
    return result


def padding_share(frames: np.ndarray, clip_frames: int) -> float:
    """Share of padding where clips of so many frames (N,) are filled up or cut."""
    used = np.clip(frames, 0, clip_frames).sum()
    return 1 - float(used) / (len(frames) * clip_frames)


# Copies


def find_leaks(dump: Dump) -> list[dict[str, Any]]:
    """Find audio of a training split in a validation or test split of its run."""
    leaks = []
    for run in dump.runs:
        for name in dict.fromkeys((run.valid, *run.tests)):
            keys = dump.shared(run.train, name)
            if keys:
                leak = {"run": run.name, "train": run.train, "split": name}
                leaks.append({**leak, "clips": len(keys), "examples": keys[:EXAMPLES]})
    return leaks


def find_pretraining_overlaps(dump: Dump) -> list[dict[str, Any]]:
    """Find test audio that pre-training sees (without its labels)."""
    if STATS_SPLIT not in dump.splits:
        return []
    tests = dict.fromkeys(name for run in dump.runs for name in run.tests)
    counts = {name: len(dump.shared(STATS_SPLIT, name)) for name in tests}
    return [{"split": name, "clips": count} for name, count in counts.items() if count]


def find_duplicates(dump: Dump) -> dict[str, Any]:
    """Find different files with the same audio anywhere, and whether labels differ."""
    files = (_code(record) for record in dump.book if record.audio)
    codes = [np.fromiter(files, dtype=np.uint64)]
    codes += [split.codes for split in dump.splits.values()]
    repeated = set(np.unique(np.concatenate([_repeated(of) for of in codes])).tolist())
    sources: dict[int, set[str]] = defaultdict(set)
    labels: dict[int, set[tuple[str, ...]]] = defaultdict(set)
    for record in dump.book if repeated else ():
        if record.audio and _code(record) in repeated:
            sources[_code(record)].add(record.source)
    for name, split in dump.splits.items():
        if split.label_counts is None or repeated.isdisjoint(split.codes.tolist()):
            continue
        for _, record, words in dump.clips(name):
            if _code(record) in repeated:
                # Other sets may have other labels for the same audio.
                labels[_code(record)].add((name.split("/")[0], *sorted(words or ())))
    names = {name for files in sources.values() for name in files}
    root = os.path.commonpath(
        [os.path.dirname(os.path.abspath(n)) for n in names] or "."
    )

    def named(files: set[str]) -> list[str]:
        """In the same words wherever the corpus lies."""
        return sorted(os.path.relpath(name, root) for name in files)

    groups = sorted(named(files) for files in sources.values() if len(files) > 1)
    contradictions = sorted(
        named(sources[code])
        for code, of_clips in labels.items()
        if len(of_clips) > len({name for name, *_ in of_clips})
    )
    return {
        "groups": len(groups),
        "examples": groups[:EXAMPLES],
        "contradicting_labels": len(contradictions),
        "contradicting_examples": contradictions[:EXAMPLES],
    }


def _repeated(codes: np.ndarray) -> np.ndarray:
    values, counts = np.unique(codes, return_counts=True)
    return values[counts > 1]


# What the real corpora hold


def expected_of(name: str) -> dict | None:
    """Return what a split of a real corpus should hold; None for an unknown one."""
    table = yaml.safe_load(EXPECTED.read_text(encoding="utf-8"))  # by pattern of names
    return next((row for key, row in table.items() if fnmatchcase(name, key)), None)


def compare(
    name: str, split: dict[str, Any], classes: Sequence[str] | None
) -> dict[str, Any]:
    """Compare a split with the real one.

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
    listed = split["listed"]
    if "without" in expected:  # clips of this label do not count
        listed -= split.get("label_counts", {}).get(expected["without"], 0)
    result = {"expected": expected, "is_part": listed < PART * expected["clips"]}
    if result["is_part"]:
        return {**result, "differences": []}
    differences = []
    if listed != expected["clips"]:
        differences.append(f"{listed} clips are listed, {expected['clips']} expected")
    if classes is not None and len(classes) != expected["classes"]:
        differences.append(f"{len(classes)} classes, {expected['classes']} expected")
    if "labels_per_clip" in expected:
        per_clip = split["labels_per_clip"].items()
        mean = sum(int(n) * count for n, count in per_clip) / split["usable"]
        if abs(mean - expected["labels_per_clip"]) > LABELS:
            number = expected["labels_per_clip"]
            differences.append(f"{mean:.2f} labels per clip, {number} expected")
    if others := split.get("clips_of_other_length", 0):
        differences.append(
            f"{others} clips are not {expected['seconds']} s (+- {SECONDS} s) long"
        )
    return {**result, "differences": differences}


# In words


def report_text(report: dict[str, Any]) -> str:
    """Return the text of report.txt: warnings first, then one block for each split."""
    table = _aligned(report["splits"])
    return _template().render(report=report, warnings=warnings(report), table=table)


def warnings(report: dict[str, Any]) -> list[str]:
    """Return what makes results doubtful, one line each."""
    module: Any = _template().make_module({"report": None})
    return module.warning_lines(report).splitlines()


def _template():
    # Here, as only the report needs it.
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(  # noqa: S701 - plain text, no HTML
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(TEMPLATE)


def _aligned(splits: dict[str, dict]) -> list[str]:
    """Return the table of splits, a line each, in columns."""
    names = "split listed missing usable left_out warned copies hours shortest mean"
    rows = [[*(name.replace("_", " ") for name in names.split()), "longest [s]"]]
    for name, split in splits.items():
        counts = [split[key] for key in ("listed", "missing", "usable")]
        counts += [sum(split[key].values()) for key in ("left_out", "warnings")]
        counts.append(split["duplicates"])
        seconds = (f"{split['seconds'][key]:.2f}" for key in ("min", "mean", "max"))
        rows.append([name, *map(str, counts), f"{split['hours']:.3f}", *seconds])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
        for row in rows
    ]
