"""From the lists of a corpus to a dump folder that training can read.

Every audio file is checked and written as 16 kHz mono, whole or not at all; a run that
was killed goes on from the journal of its records. One split is in memory at
a time and the records stay on the disk: two million clips fit.
"""

import hashlib
import io
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path

import numpy as np
import soundfile

from espnet2_sslam.audio import (
    AudioError,
    AudioSummary,
    is_formatted,
    read_blocks,
    split_cut,
)
from espnet2_sslam.corpus.cut import cut_corpus
from espnet2_sslam.corpus.lists import (
    CLASS_FILE,
    CONTENT_FILE,
    DOWNSTREAM_FILE,
    LABEL_FILE,
    MISSING_FILE,
    NOTES_FILE,
    SPLITS_FILE,
    WEIGHT_FILE,
    find_splits,
    read_corpus,
    read_sources,
    read_split,
    read_values,
    slug,
    table_lines,
    write_speakers,
    write_table,
)
from espnet2_sslam.corpus.parallel import (
    TASK_FOLDER,
    Workers,
    kept_results,
    parallel_map,
)
from espnet2_sslam.store import (
    Journal,
    file_state,
    lock,
    remove_leftovers,
    replacing,
    sha256,
    write_bytes,
    write_lines,
    write_text,
    writing,
)
from espnet2_sslam.units import SAMPLE_RATE

AUDIO_FORMATS = ("wav", "flac")  # the first one by default: see docs/speed.md
RECORD_FILE = "records.jsonl"
RESAMPLER_FILE = "resampler"  # in every split: what a model must know
PROBLEM_FILE = "problems.tsv"
CUT_FOLDER = "cut"  # the lists of the clips that recordings were cut into
PROBLEM_COLUMNS = "split\tid\tfile\treason\taction"


# One file


@dataclass(frozen=True)
class Record:
    """What became of one source file.

    `source` may be a part of a file (`audio.cut_name`). `problem` says why it cannot be
    used, `warning` why it is doubtful, both as `<category>: <detail>`. `audio_sha256`
    is over the 16-bit samples at 16 kHz, so that copies in other containers are found.
    The states are those of both files (`store.file_state`) when the hashes of their
    bytes were taken.
    """

    source: str
    audio: str = ""
    source_state: list[int] = field(default_factory=list)
    source_sha256: str = ""
    audio_state: list[int] = field(default_factory=list)
    file_sha256: str = ""
    audio_sha256: str = ""
    subtype: str = ""  # of the samples: PCM_16, PCM_24, FLOAT; "linked": any
    num_samples: int = 0
    warning: str = ""
    problem: str = ""
    settings: str = ""  # how the formatted audio was made

    @property
    def content(self) -> str:
        """What tells the samples from any others, wherever they lie."""
        if self.subtype == "PCM_16":
            return self.audio_sha256
        finer = f"{self.audio_sha256} {self.source_sha256} {self.subtype}"
        return hashlib.sha256(finer.encode()).hexdigest()


def target_path(folder: Path, source: str, audio_format: str) -> Path:
    """Return where the formatted copy of `source` lies: one place per source path."""
    code = hashlib.sha256(source.encode()).hexdigest()
    name = slug(Path(source).stem)[:60]
    return Path(folder) / "audio" / code[:2] / f"{name}-{code[:12]}.{audio_format}"


@dataclass(frozen=True)
class Format:
    """How audio is written: at 16 kHz, mono.

    Args:
        audio_format: `wav`, which is read several times as fast, or `flac`, about
            half as large.
        bits: 16 or 24; 0 takes 24 for sources below 16 kHz, whose silent highest octave
            16 bits would fill with their rounding, and 16 for all others.
        resampler: See `config.RESAMPLERS`.
        link_ok: Use files that are 16 kHz mono WAV or FLAC already where they lie.
    """

    audio_format: str = AUDIO_FORMATS[0]
    bits: int = 0
    resampler: str = "sinc"
    link_ok: bool = False

    def __str__(self) -> str:
        return f"{self.resampler} {self.bits}"

    def places(self, folder: Path, source: str) -> list[str]:
        """Where the formatted copy of a source may lie."""
        target = target_path(folder, source, self.audio_format)
        linked = [source] if self.link_ok else []
        return [str(target), str(target.with_suffix(".wav")), *linked]


def format_file(source: str, outdir: Path, form: Format) -> Record:
    """Validate one file and write it as 16 kHz mono audio, or use it where it lies.

    Samples beyond [-1, 1] are kept: such a clip becomes a WAV of floats.

    Raises:
        OSError: The result cannot be written (a full disk): everything must stop.
    """
    record = Record(source, settings=str(form))
    path, start, _ = split_cut(source)
    if not os.path.isfile(path):
        return replace(record, problem="missing: there is no such file")
    try:
        state = file_state(path)
        record = replace(
            record, source_state=state, source_sha256=_sha256(path, tuple(state))
        )
    except OSError as error:
        return replace(record, problem=f"unreadable: {error.strerror}")
    try:
        if form.link_ok and start is None and is_formatted(path):
            summary = AudioSummary()
            result = _read_samples(read_blocks(source, summary), summary)
            result.update(audio=source, subtype="linked")
        else:
            result = _convert(source, outdir, form)
    except AudioError as error:
        return replace(record, problem=error.reason)
    except soundfile.SoundFileError as error:
        return replace(record, problem=f"not audio: {error}")
    audio = result["audio"]
    return replace(
        record, **result, audio_state=file_state(audio), file_sha256=sha256(audio)
    )


@lru_cache(maxsize=64)
def _sha256(path: str, state: tuple[int, ...]) -> str:
    """The hash of a file in this state: many clips may be cut from one recording."""
    return sha256(path)


def _read_samples(
    blocks: Iterable[np.ndarray], summary: AudioSummary, write: Callable | None = None
) -> dict:
    """Hand blocks on to `write`, to the end; return fields of the record."""
    digest = hashlib.sha256()
    for block in blocks:
        # In 16 bits: copies of other precision are copies, too.
        samples = np.clip(np.rint(block * 32768.0), -32768, 32767).astype("<i2")
        digest.update(samples.tobytes())
        if write is not None:
            write(block)
    return {
        "audio_sha256": digest.hexdigest(),
        "num_samples": summary.num_samples,
        "warning": summary.warning or "",
    }


class _CheckedFile(io.FileIO):
    """A file for soundfile to write to that keeps the error which libsndfile eats."""

    error: OSError | None = None

    def write(self, data) -> int:
        """Write all of `data`; after a first failure nothing more."""
        rest = memoryview(data)
        try:
            while self.error is None and rest:
                rest = rest[super().write(rest) :]  # a disk that fills takes a part
        except OSError as error:
            self.error = error
        return len(data) - len(rest)


def _convert(source: str, outdir: Path, form: Format) -> dict:
    """Write the formatted file and return the fields of its record."""
    target = target_path(outdir, source, form.audio_format)
    summary = AudioSummary()
    blocks = read_blocks(source, summary, resampler=form.resampler)
    first = next(blocks)
    bits = form.bits or (24 if summary.rate < SAMPLE_RATE else 16)
    # The smallest step up, that 1.0 itself may be rounded to.
    loudest = 1 + 2.0 ** (1 - bits)
    subtype = f"PCM_{bits}"
    result = _write(target, subtype, chain([first], blocks), summary)
    if summary.peak > loudest:
        target.unlink()
        target, summary = target.with_suffix(".wav"), AudioSummary()
        blocks = read_blocks(source, summary, resampler=form.resampler)
        subtype = "FLOAT"
        result = _write(target, subtype, blocks, summary)
    return {**result, "audio": str(target), "subtype": subtype}


def _write(
    target: Path, subtype: str, blocks: Iterable[np.ndarray], summary: AudioSummary
) -> dict:
    """Write one file, whole or not at all; return fields of the record."""
    bits = 0 if subtype == "FLOAT" else int(subtype[4:])
    full = 2.0 ** (bits - 1)

    def write(block: np.ndarray) -> None:
        # As integers: libsndfile would scale floats by 32767. Exact for what was audio
        # of so many bits before.
        if bits:
            block = np.clip(np.rint(block * full), -full, full - 1).astype(np.int32)
            block = block.astype(np.int16) if bits == 16 else block << (32 - bits)
        out.write(block)

    with replacing(target, sync=False) as part, _CheckedFile(part, "wb+") as file:
        try:
            container = target.suffix[1:].upper()
            with soundfile.SoundFile(
                file, "w", SAMPLE_RATE, 1, subtype, format=container
            ) as out:
                result = _read_samples(blocks, summary, write)
        except (soundfile.SoundFileError, AssertionError):
            # soundfile asserts that libsndfile wrote everything.
            if file.error is None:
                raise
        if file.error is not None:
            raise OSError(file.error.errno, file.error.strerror, str(target))
    return result


# The records of all files


class RecordBook:
    """Records by source path, or by the path of the formatted audio.

    Two million records are too many for the memory. The journal is their place; here is
    where in it each one lies, and those that a problem or a warning sets apart.

    Args:
        folder: The dump folder.
        key: `source` or `audio`.
    """

    def __init__(self, folder: str | Path, key: str = "source"):
        self.journal = Journal(Path(folder) / RECORD_FILE)
        self.key = key
        self._index()

    def _index(self) -> None:
        self.offsets: dict[bytes, int] = {}
        self.marked: dict[str, Record] = {}  # with a problem or a warning, by source
        for offset, record in self._records():
            self._remember(record, offset)

    def _records(self) -> Iterator[tuple[int, Record]]:
        names = {field.name for field in fields(Record)}
        for offset, values in self.journal:
            if set(values) == names:  # not of another version
                yield offset, Record(**values)

    def _remember(self, record: Record, offset: int) -> None:
        """Note where a record lies; a later one of the same file replaces it."""
        name = getattr(record, self.key)
        if name:
            self.offsets[_code(name)] = offset
        self.marked.pop(record.source, None)
        if record.problem or record.warning:
            self.marked[record.source] = record

    def __iter__(self) -> Iterator[Record]:
        """Iterate over all records, in the order of the journal."""
        return (record for _, record in self._records())

    def get(self, name: str) -> Record | None:
        """Return the record of a path, or None."""
        offset = self.offsets.get(_code(name))
        return None if offset is None else Record(**self.journal.read(offset))

    def __getitem__(self, name: str) -> Record:
        record = self.get(name)
        assert record is not None, name
        return record

    def reusable(
        self, source: str, folder: Path, form: Format, verify: bool = False
    ) -> Record | None:
        """The record, if its source and result are unchanged, and made as by `form`.

        Args:
            source: The file, or a part of one.
            folder: The dump folder.
            form: How the audio is to be written.
            verify: Compare the contents even where the states are the same.
        """
        record = self.get(source)
        if record is None or record.problem or record.settings != str(form):
            return None
        if record.audio not in form.places(folder, source):
            return None
        path = split_cut(source)[0]
        try:
            states = {}
            for name, file, known in (
                ("source_state", path, record.source_sha256),
                ("audio_state", record.audio, record.file_sha256),
            ):
                state = states[name] = file_state(file)
                same = state == getattr(record, name) and not verify
                if not same and _sha256(file, tuple(state)) != known:
                    return None
        except OSError:
            return None
        return replace(record, **states)

    def append(self, records: Iterable[Record]) -> None:
        """Take records as they come, each on the disk at once."""
        with self.journal:
            for record in records:
                self._remember(record, self.journal.append(asdict(record)))

    def finish(self, sources: Iterable[str]) -> None:
        """Rewrite the journal with the records of `sources` (sorted, unique) only."""
        self.journal.rewrite(asdict(self[source]) for source in sources)
        self._index()


def _code(name: str) -> bytes:
    """Shorten a path to 16 bytes: half a gigabyte less for two million of them."""
    return hashlib.blake2b(name.encode(), digest_size=16).digest()


class Tally:
    """What came of the clips of each split; `path` lists every problem and warning."""

    def __init__(
        self, datadir: Path, names: Sequence[str], book: RecordBook, path: Path
    ):
        self.path = path
        self.sizes: Counter = Counter()  # clips of each split
        self.lost: Counter = Counter()  # of them left out
        self.broken: Counter = Counter()  # left out, by category
        self.doubtful: Counter = Counter()  # kept with a warning, by category
        self.first = ""
        with writing(path) as file:
            file.write(PROBLEM_COLUMNS + "\n")
            for name in names:
                for key, source in read_sources(datadir / name):
                    self.sizes[name] += 1
                    record = book.marked.get(source)
                    if record is None:
                        continue
                    reason = record.problem or record.warning
                    action = "left out" if record.problem else "kept"
                    file.write(f"{name}\t{key}\t{source}\t{reason}\t{action}\n")
                    counts = self.broken if record.problem else self.doubtful
                    counts[reason.split(":")[0]] += 1
                    if record.problem:
                        self.lost[name] += 1
                        self.first = self.first or f"{key}, {source}: {reason}"

    def check_share(self, max_bad: float) -> None:
        """Refuse too many unusable clips, and a split without any usable one."""
        total, bad = self.sizes.total(), self.lost.total()
        if bad > max_bad * total:
            raise ValueError(
                f"{bad} of {total} clips cannot be used, more than --max_bad "
                f"{max_bad:g} allows (first: {self.first}); all are listed in "
                f"{self.path}: repair or remove them, or raise --max_bad"
            )
        for name, size in self.sizes.items():
            if self.lost[name] == size:
                raise ValueError(
                    f"no usable clip is left in the split {name}; see {self.path}"
                )

    def summary(self) -> str:
        """Say in one line what came of the clips."""

        def counts(counter: Counter) -> str:
            parts = ", ".join(f"{name} {n}" for name, n in sorted(counter.items()))
            return f" ({parts})" if parts else ""

        total, lost = self.sizes.total(), self.lost.total()
        line = (
            f"{total} clips in {len(self.sizes)} splits: {total - lost} usable, "
            f"{self.doubtful.total()} of them with a warning{counts(self.doubtful)}, "
            f"{lost} left out{counts(self.broken)}"
        )
        return f"{line}; see {self.path}" if self.broken or self.doubtful else line


# The dump


def make_dump(
    datadir: str | Path,
    outdir: str | Path,
    *,
    feats_type: str = "raw",
    form: Format | None = None,
    max_bad: float = 0.01,
    cut: float | None = None,
    verify: bool = False,
    nj: Workers = 1,
) -> str:
    """Validate and convert all audio of a corpus and write the lists of the dump.

    Args:
        datadir: The data folder.
        outdir: The dump; downstream.txt appears there last.
        feats_type: `raw`, or `fbank` to write un-normalised log-mel as well.
        form: How the audio is written.
        max_bad: Largest share of clips that may be unusable.
        cut: Seconds: longer recordings become several clips, see `cut.cut_corpus`.
        verify: Look at the content of all files, not only of those whose size, time or
            inode has changed.
        nj: Processes, or an array job.

    Returns:
        A summary, in a line or two.

    Raises:
        ValueError: Bad lists, too many unusable clips, or a split left without clips.
        OSError: The dump cannot be written.
    """
    datadir, outdir = Path(datadir), Path(outdir).resolve()
    form = form or Format()
    # All lists are checked before hours are spent on audio.
    sources = _sources(datadir)
    busy = f"another run is formatting {outdir}: wait for it"
    with lock(outdir / ".lock", busy):
        said = ""
        if cut is not None:
            said = f"{cut_corpus(datadir, outdir / CUT_FOLDER, cut, nj)}\n"
            datadir = outdir / CUT_FOLDER
            sources = _sources(datadir)
        names = find_splits(datadir)
        (outdir / DOWNSTREAM_FILE).unlink(missing_ok=True)
        for folder in (outdir, *outdir.rglob("*/")):
            remove_leftovers(folder)
        book = _format_all(sources, outdir, form, nj, verify)
        del sources
        tally = Tally(datadir, names, book, outdir / PROBLEM_FILE)
        tally.check_share(max_bad)
        for name in names:
            _write_split(datadir, name, book, outdir)
            write_text(outdir / name / RESAMPLER_FILE, f"{form.resampler}\n")
        if feats_type == "fbank":
            _write_feats(names, book, outdir, nj, verify)
        for source in sorted(datadir.glob(f"*/{CLASS_FILE}")):
            if (outdir / source.parent.name).is_dir():
                for file in (source, source.with_name(LABEL_FILE)):
                    _copy(file, outdir / source.parent.name / file.name)
        notes = datadir / NOTES_FILE
        write_bytes(outdir / NOTES_FILE, notes.read_bytes() if notes.is_file() else b"")
        write_lines(outdir / SPLITS_FILE, names)
        _copy(datadir / DOWNSTREAM_FILE, outdir / DOWNSTREAM_FILE)
    return said + tally.summary()


def _sources(datadir: Path) -> list[str]:
    """Check all lists of a data folder; its sources, sorted."""
    paths: set[str] = set()
    for split in read_corpus(datadir):
        paths.update(split.wav.values())
        del split  # before the next one is read
    return sorted(paths)


def _format_all(
    sources: Sequence[str], outdir: Path, form: Format, nj: Workers, verify: bool
) -> RecordBook:
    """Format every file once, however many splits use it; return the records of all."""
    book = RecordBook(outdir)
    book.append(kept_results(outdir / TASK_FOLDER, "audio"))
    waiting, touched = [], []
    for source in sources:
        record = book.reusable(source, outdir, form, verify)
        if record is None:
            waiting.append(source)
        elif record != book.get(source):
            touched.append(record)  # looked at: not again
    if len(waiting) < len(sources):
        done = len(sources) - len(waiting)
        logging.info("%d of %d files are formatted already", done, len(sources))
    book.append(touched)
    work = partial(format_file, outdir=outdir, form=form)
    book.append(parallel_map(work, waiting, nj, "audio", seconds=_seconds))
    book.finish(sources)
    return book


def _seconds(record: Record) -> float:
    return record.num_samples / SAMPLE_RATE


def _write_split(datadir: Path, name: str, book: RecordBook, outdir: Path) -> None:
    """Write the lists of one split of the dump."""
    split = read_split(datadir, name)
    folder, keys = outdir / name, []
    with (
        writing(folder / "wav.scp") as wav,
        writing(folder / "utt2num_samples") as samples,
        writing(folder / CONTENT_FILE) as contents,
    ):
        for key in sorted(split.wav):
            record = book[split.wav[key]]
            if not record.problem:
                keys.append(key)
                wav.write(f"{key} {record.audio}\n")
                samples.write(f"{key} {record.num_samples}\n")
                contents.write(f"{key} {record.content}\n")
    write_speakers(folder, keys, split.speakers)
    labels, weights = split.labels, datadir / name / WEIGHT_FILE
    text = None if labels is None else ((key, " ".join(labels[key])) for key in keys)
    write_table(folder / "text", text)
    rows = None
    if weights.is_file():
        values = read_values(weights, split.wav, _weight, subset=True)
        rows = ((key, values[key]) for key in keys)
    write_table(folder / WEIGHT_FILE, rows)
    _copy(datadir / name / MISSING_FILE, folder / MISSING_FILE)


def _weight(text: str) -> str:
    try:
        return f"{float(text):.9g}"
    except ValueError:
        raise ValueError(f"the weight {text!r} is no number") from None


def _write_feats(
    names: Sequence[str], book: RecordBook, outdir: Path, nj: Workers, verify: bool
) -> None:
    """Write feats.scp and utt2num_frames of every split; each file's log-mel once."""
    # Here, as torch takes memory that long lists without features need.
    from espnet2_sslam.corpus.fbank import write_fbanks

    usable = [record for record in book if not record.problem]
    locations = write_fbanks(outdir, usable, nj, verify)
    for name in names:
        lines = table_lines(outdir / name / "wav.scp")
        rows = [(key, *locations[audio]) for _, key, audio in lines]
        write_table(outdir / name / "feats.scp", ((key, at) for key, at, _ in rows))
        counts = ((key, frames) for key, _, frames in rows)
        write_table(outdir / name / "utt2num_frames", counts)


def _copy(source: Path, target: Path) -> None:
    """Copy a small file, or remove the copy of one that is no longer there."""
    if source.is_file():
        write_bytes(target, source.read_bytes())
    else:
        target.unlink(missing_ok=True)
