"""Stage 2: from the lists of a corpus to a dump directory that training can read.

One split is in memory at a time, and the records stay on disk: two million clips fit.
"""

import fcntl
import logging
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from espnet2_sslam.corpus.datadir import (
    CLASS_FILE,
    DOWNSTREAM_FILE,
    NOTES_FILE,
    SPLITS_FILE,
    find_splits,
    read_downstream,
    table_lines,
    write_atomically,
    write_table,
)
from espnet2_sslam.corpus.formatting import (
    Job,
    format_file,
    remove_leftovers,
    target_path,
)
from espnet2_sslam.corpus.labels import LABEL_FILE
from espnet2_sslam.corpus.parallel import parallel_map
from espnet2_sslam.corpus.records import RecordBook
from espnet2_sslam.corpus.splits import checked_splits, read_split
from espnet2_sslam.corpus.tally import PROBLEM_FILE, Tally
from espnet2_sslam.corpus.weights import WEIGHT_FILE
from espnet2_sslam.corpus.writer import MISSING_FILE, atomic_lines


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
    sources = check_lists(datadir)
    names = find_splits(datadir)
    with locked(outdir):
        (outdir / DOWNSTREAM_FILE).unlink(missing_ok=True)
        remove_leftovers(outdir)
        book = format_all(sources, outdir, audio_format, link_ok, nj)
        del sources
        tally = Tally(datadir, names, book, outdir / PROBLEM_FILE)
        tally.check_share(max_bad)
        for name in names:
            _write_lists(datadir, name, book, outdir)
        if feats_type == "fbank":
            _write_feats(datadir, names, book, outdir, nj)
        _copy_shared_files(datadir, outdir, names)
    return tally.summary(outdir)


def check_lists(datadir: Path) -> list[str]:
    """Read and check every list; the paths of all audio, sorted, each once."""
    sources = set()
    for split in checked_splits(datadir):
        sources.update(split.wav.values())
        del split  # before the next one is read
    return sorted(sources)


class Jobs(Sequence):
    """The jobs of some sources, made when they are asked for."""

    def __init__(self, sources, outdir: Path, audio_format: str, link_ok: bool):
        self.sources, self.outdir = sources, outdir
        self.audio_format, self.link_ok = audio_format, link_ok

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        source = self.sources[index]
        target = target_path(self.outdir, source, self.audio_format)
        return Job(source, str(target), self.link_ok)


def format_all(
    sources: Sequence[str], outdir: Path, audio_format: str, link_ok: bool, nj: int
) -> RecordBook:
    """Format every file once, however many splits use it; the records of all."""
    book = RecordBook(outdir)
    jobs = Jobs(sources, outdir, audio_format, link_ok)
    waiting = [job.source for job in jobs if book.reusable(job) is None]
    if len(waiting) < len(jobs):
        done = len(jobs) - len(waiting)
        logging.info("%d of %d files are formatted already", done, len(jobs))
    jobs = Jobs(waiting, outdir, audio_format, link_ok)
    book.append(parallel_map(format_file, jobs, nj, "audio"))
    book.finish(sources)
    return book


def _write_lists(datadir: Path, name: str, book: RecordBook, outdir: Path) -> None:
    """Write the lists of one split of the dump, line by line."""
    split = read_split(datadir, name)
    folder = outdir / name
    weights = _read_weights(datadir / name / WEIGHT_FILE, split.wav)
    wanted = ["wav.scp", "utt2spk", "utt2num_samples"]
    for list_name, there in (("text", split.labels), (WEIGHT_FILE, weights)):
        if there is None:
            (folder / list_name).unlink(missing_ok=True)
        else:
            wanted.append(list_name)
    by_speaker: dict[str, list[str]] = {}
    if not split.speakers:
        wanted.append("spk2utt")  # line by line; each clip is its own speaker
    with ExitStack() as stack:
        files = {n: stack.enter_context(atomic_lines(folder / n)) for n in wanted}
        for key in sorted(split.wav):
            record = book[split.wav[key]]
            if record.problem:
                continue
            speaker = split.speakers.get(key, key)
            if split.speakers:
                by_speaker.setdefault(speaker, []).append(key)
            values = {
                "wav.scp": record.audio,
                "utt2spk": speaker,
                "spk2utt": key,
                "utt2num_samples": record.num_samples,
            }
            if split.labels is not None:
                values["text"] = " ".join(split.labels[key])
            if weights is not None:
                values[WEIGHT_FILE] = f"{weights[key]:.9g}"
            for list_name, file in files.items():
                file.write(f"{key} {values[list_name]}".rstrip() + "\n")
    if split.speakers:
        with atomic_lines(folder / "spk2utt") as file:
            for speaker in sorted(by_speaker):
                file.write(f"{speaker} {' '.join(by_speaker[speaker])}\n")
    _copy(datadir / name / MISSING_FILE, folder / MISSING_FILE)


def _read_weights(path: Path, ids: Iterable[str]) -> dict[str, float] | None:
    """Sampling weight of each clip; None without such a list.

    Raises:
        ValueError: A clip has no weight, or one that is no number.
    """
    if not path.is_file():
        return None
    weights: dict[str, float] = dict.fromkeys(ids)
    shared: dict[float, float] = {}  # one number for all clips of the same labels
    for number, key, value in table_lines(path):
        try:
            if key in weights:
                weight = float(value)
                weights[key] = shared.setdefault(weight, weight)
        except ValueError:
            raise ValueError(f"{path}, line {number}: {value!r} is no number") from None
    lost = next((key for key, weight in weights.items() if weight is None), None)
    if lost is not None:
        raise ValueError(f"{path} lacks {lost!r}: prepare the data (stage 1) again")
    return weights


def _write_feats(
    datadir: Path, names: Sequence[str], book: RecordBook, outdir: Path, nj: int
) -> None:
    """Write feats.scp and utt2num_frames of every split; each file's log-mel once."""
    # Here, as torch takes memory that long lists without features need.
    from espnet2_sslam.corpus.fbank import write_fbanks

    usable = [record for record in book if not record.problem]
    locations = write_fbanks(outdir, usable, nj)
    for name in names:
        folder = outdir / name
        found = {
            key: locations[audio] for _, key, audio in table_lines(folder / "wav.scp")
        }
        write_table(folder / "feats.scp", {key: at for key, (at, _) in found.items()})
        write_table(
            folder / "utt2num_frames", {key: count for key, (_, count) in found.items()}
        )


def _copy(source: Path, target: Path) -> None:
    """Copy a small file, or remove the copy of one that is no longer there."""
    if source.is_file():
        shutil.copyfile(source, target)
    else:
        target.unlink(missing_ok=True)


def _copy_shared_files(datadir: Path, outdir: Path, names: Sequence[str]) -> None:
    """Copy class lists and notes; downstream.txt comes last and says: complete."""
    for source in sorted(datadir.glob(f"*/{CLASS_FILE}")):
        target = outdir / source.parent.name
        if target.is_dir():
            shutil.copyfile(source, target / CLASS_FILE)
            _copy(source.with_name(LABEL_FILE), target / LABEL_FILE)
    notes = datadir / NOTES_FILE
    text = notes.read_text(encoding="utf-8") if notes.is_file() else ""
    write_atomically(outdir / NOTES_FILE, text)
    write_atomically(outdir / SPLITS_FILE, "".join(f"{name}\n" for name in names))
    read_downstream(datadir)
    runs = (datadir / DOWNSTREAM_FILE).read_text(encoding="utf-8")
    write_atomically(outdir / DOWNSTREAM_FILE, runs)
