"""Stage 2: from the lists of a corpus to a dump directory that training can read."""

import fcntl
import logging
import shutil
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import Dict, Iterator, List, Sequence

from espnet2_sslam.corpus.datadir import (
    CLASS_FILE,
    DOWNSTREAM_FILE,
    NOTES_FILE,
    SPLITS_FILE,
    read_downstream,
    write_atomically,
    write_split,
    write_table,
)
from espnet2_sslam.corpus.fbank import write_fbanks
from espnet2_sslam.corpus.formatting import (
    Job,
    Record,
    RecordBook,
    format_file,
    remove_leftovers,
    target_path,
)
from espnet2_sslam.corpus.parallel import parallel_map
from espnet2_sslam.corpus.splits import Split, read_corpus

PROBLEM_FILE = "problems.tsv"
PROBLEM_COLUMNS = "split\tid\tfile\treason\taction"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a second run out of `folder`.

    Raises:
        ValueError: Another run works there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another run is formatting {folder}: wait for it"
            ) from None
        yield


def make_dump(
    datadir: Path,
    outdir: Path,
    *,
    feats_type: str = "raw",
    audio_format: str = "flac",
    link_ok: bool = False,
    max_bad: float = 0.01,
    nj: int = 1,
) -> str:
    """Validate and convert all audio of a corpus and write the lists of the dump.

    Args:
        datadir: What data preparation wrote.
        outdir: The dump; downstream.txt appears there last.
        feats_type: `raw`, or `fbank` to write un-normalised log-mel as well.
        audio_format: `flac` or `wav`, 16 kHz mono 16 bit.
        link_ok: Use files that are 16 kHz mono already where they lie.
        max_bad: Largest share of clips that may be unusable.
        nj: Processes.

    Returns:
        A summary of one line.

    Raises:
        ValueError: Bad lists, too many unusable clips, or a split left without clips.
        OSError: The dump cannot be written.
    """
    datadir, outdir = Path(datadir), Path(outdir).resolve()
    splits = read_corpus(datadir)
    with locked(outdir):
        (outdir / DOWNSTREAM_FILE).unlink(missing_ok=True)
        remove_leftovers(outdir)
        records = format_all(splits, outdir, audio_format, link_ok, nj)
        write_problems(splits, records, outdir / PROBLEM_FILE)
        check_share(splits, records, max_bad, outdir / PROBLEM_FILE)
        for split in splits:
            _write_lists(split, records, outdir)
        if feats_type == "fbank":
            _write_feats(splits, records, outdir, nj)
        _copy_shared_files(datadir, outdir, splits)
    return summary_line(splits, records, outdir)


def format_all(
    splits: Sequence[Split], outdir: Path, audio_format: str, link_ok: bool, nj: int
) -> Dict[str, Record]:
    """Format every file once, however many splits use it; records by source path."""
    sources = sorted({path for split in splits for path in split.wav.values()})
    jobs = [
        Job(path, str(target_path(outdir, path, audio_format)), link_ok)
        for path in sources
    ]
    book = RecordBook(outdir)
    waiting = [job for job in jobs if book.reusable(job) is None]
    if len(waiting) < len(jobs):
        done = len(jobs) - len(waiting)
        logging.info("%d of %d files are formatted already", done, len(jobs))
    book.append(parallel_map(format_file, waiting, nj, "audio"))
    book.finish(sources)
    return {source: book.records[source] for source in sources}


def write_problems(
    splits: Sequence[Split], records: Dict[str, Record], path: Path
) -> None:
    """List every clip with a problem or a warning, and what was done with it."""
    lines = [PROBLEM_COLUMNS]
    for split in splits:
        for key, source in split.wav.items():
            record = records[source]
            reason = record.problem or record.warning
            if reason:
                action = "left out" if record.problem else "kept"
                lines.append(f"{split.name}\t{key}\t{source}\t{reason}\t{action}")
    write_atomically(path, "\n".join(lines) + "\n")


def check_share(
    splits: Sequence[Split], records: Dict[str, Record], max_bad: float, path: Path
) -> None:
    """Stop when too many clips, or all clips of a split, are unusable.

    Raises:
        ValueError: As said.
    """
    bad = [
        (split.name, key, records[source])
        for split in splits
        for key, source in split.wav.items()
        if records[source].problem
    ]
    total = sum(len(split.wav) for split in splits)
    if len(bad) > max_bad * total:
        _, key, record = bad[0]
        raise ValueError(
            f"{len(bad)} of {total} clips cannot be used, more than --max_bad "
            f"{max_bad:g} allows (first: {key}, {record.source}: {record.problem}); "
            f"all are listed in {path}: repair or remove them, or raise --max_bad"
        )
    lost = Counter(name for name, _, _ in bad)
    for split in splits:
        if lost[split.name] == len(split.wav):
            raise ValueError(
                f"no usable clip is left in the split {split.name}; see {path}"
            )


def _usable(split: Split, records: Dict[str, Record]) -> Dict[str, Record]:
    """Records of the clips of a split that stay in."""
    kept = {key: records[source] for key, source in split.wav.items()}
    return {key: record for key, record in kept.items() if not record.problem}


def _write_lists(split: Split, records: Dict[str, Record], outdir: Path) -> None:
    """Write the lists of one split of the dump."""
    kept = _usable(split, records)
    wav = {key: record.audio for key, record in kept.items()}
    folder = outdir / split.name
    if split.labels is None:
        (folder / "text").unlink(missing_ok=True)
    write_split(folder, wav, split.speakers, split.labels)
    samples = {key: record.num_samples for key, record in kept.items()}
    write_table(folder / "utt2num_samples", samples)


def _write_feats(
    splits: Sequence[Split], records: Dict[str, Record], outdir: Path, nj: int
) -> None:
    """Write feats.scp and utt2num_frames of every split; each file's log-mel once."""
    usable = [record for record in records.values() if not record.problem]
    locations = write_fbanks(outdir, usable, nj)
    for split in splits:
        found = {
            key: locations[record.audio]
            for key, record in _usable(split, records).items()
        }
        folder = outdir / split.name
        write_table(folder / "feats.scp", {key: at for key, (at, _) in found.items()})
        write_table(
            folder / "utt2num_frames", {key: count for key, (_, count) in found.items()}
        )


def _copy_shared_files(datadir: Path, outdir: Path, splits: Sequence[Split]) -> None:
    """Copy class lists and notes; downstream.txt comes last and says: complete."""
    for source in sorted(datadir.glob(f"*/{CLASS_FILE}")):
        target = outdir / source.parent.name
        if target.is_dir():
            shutil.copyfile(source, target / CLASS_FILE)
    notes = datadir / NOTES_FILE
    text = notes.read_text(encoding="utf-8") if notes.is_file() else ""
    write_atomically(outdir / NOTES_FILE, text)
    names: List[str] = sorted(split.name for split in splits)
    write_atomically(outdir / SPLITS_FILE, "".join(f"{name}\n" for name in names))
    read_downstream(datadir)
    runs = (datadir / DOWNSTREAM_FILE).read_text(encoding="utf-8")
    write_atomically(outdir / DOWNSTREAM_FILE, runs)


def summary_line(
    splits: Sequence[Split], records: Dict[str, Record], outdir: Path
) -> str:
    """What came of the clips, in one line."""
    of_clips = [records[path] for split in splits for path in split.wav.values()]
    broken = Counter(r.problem.split(":")[0] for r in of_clips if r.problem)
    doubtful = Counter(r.warning.split(":")[0] for r in of_clips if r.warning)

    def counts(counter):
        parts = ", ".join(f"{name} {n}" for name, n in sorted(counter.items()))
        return f" ({parts})" if parts else ""

    used = sum(not r.problem for r in of_clips)
    line = (
        f"{len(of_clips)} clips in {len(splits)} splits: {used} usable, "
        f"{sum(doubtful.values())} of them with a warning{counts(doubtful)}, "
        f"{sum(broken.values())} left out{counts(broken)}"
    )
    return line + (f"; see {outdir / PROBLEM_FILE}" if broken or doubtful else "")
