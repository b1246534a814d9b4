"""The records of a dump directory: a journal that a killed run can go on from.

Two million records are too many for the memory. The journal is their place; here is
where in it each one lies, and those that a problem or a warning sets apart.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields
from pathlib import Path

from espnet2_sslam.audio import AudioError
from espnet2_sslam.corpus.formatting import Job, Record, fingerprint
from espnet2_sslam.corpus.writer import atomic_lines

RECORD_FILE = "records.jsonl"
FIELDS = {field.name for field in fields(Record)}


def _code(name: str) -> bytes:
    """A short name of a path, (16,) bytes: half a gigabyte less for 2 million paths."""
    return hashlib.blake2b(name.encode(), digest_size=16).digest()


def _parse(line: bytes) -> Record | None:
    """The record of a line; None for one that a killed run left unfinished."""
    try:
        values = json.loads(line)
    except ValueError:
        return None
    is_record = isinstance(values, dict) and set(values) == FIELDS
    return Record(**values) if is_record else None


class RecordBook:
    """Records by source path, or by the path of the formatted audio.

    Args:
        folder: The dump directory.
        key: `source` or `audio`.
    """

    def __init__(self, folder: Path, key: str = "source"):
        self.path = Path(folder) / RECORD_FILE
        self.key = key
        self.places: dict[bytes, int] = {}
        self.marked: dict[str, Record] = {}  # with a problem or a warning, by source
        self.reader = None
        self._index()

    def _index(self) -> None:
        """Find the place of every record in the journal."""
        self.places.clear()
        self.marked.clear()
        self._close()
        if not self.path.is_file():
            return
        place = 0
        with open(self.path, "rb") as file:
            for line in file:
                record = _parse(line)
                if record is not None:
                    self._remember(record, place)
                place += len(line)

    def _remember(self, record: Record, place: int) -> None:
        """Note where a record lies; a later one of the same file replaces it."""
        name = getattr(record, self.key)
        if name:
            self.places[_code(name)] = place
        self.marked.pop(record.source, None)
        if record.problem or record.warning:
            self.marked[record.source] = record

    def _close(self) -> None:
        if self.reader is not None:
            self.reader.close()
            self.reader = None

    def get(self, name: str) -> Record | None:
        """The record of a path, or None."""
        place = self.places.get(_code(name))
        if place is None:
            return None
        if self.reader is None:
            self.reader = open(self.path, "rb")
        self.reader.seek(place)
        return _parse(self.reader.readline())

    def __getitem__(self, name: str) -> Record:
        """The record of a path that must be there."""
        record = self.get(name)
        assert record is not None, name
        return record

    def __iter__(self) -> Iterator[Record]:
        """All valid records, in the order of the journal."""
        if self.path.is_file():
            with open(self.path, "rb") as file:
                for line in file:
                    record = _parse(line)
                    if record is not None:
                        yield record

    def reusable(self, job: Job) -> Record | None:
        """The record of an earlier run, if source and result are what it describes."""
        record = self.get(job.source)
        if record is None or record.problem:
            return None
        if record.audio != job.audio and not (
            job.link_ok and record.audio == job.source
        ):
            return None
        try:
            stat = os.stat(job.source)
            if os.stat(record.audio).st_size != record.audio_bytes:
                return None
        except OSError:
            return None
        if stat.st_size != record.source_bytes:
            return None
        if stat.st_mtime_ns != record.source_mtime_ns:
            try:
                same = fingerprint(job.source)[1] == record.source_sha256
            except AudioError:
                return None
            return record if same else None
        return record

    def append(self, results: Iterable[Record]) -> None:
        """Take results as they come, each on disk at once."""
        with open(self.path, "ab") as journal:
            if journal.tell():
                journal.write(b"\n")  # ends a line that a killed run left unfinished
            for record in results:
                place = journal.tell()
                journal.write(json.dumps(asdict(record)).encode() + b"\n")
                journal.flush()
                self._remember(record, place)

    def finish(self, sources: Iterable[str]) -> None:
        """Rewrite the journal with the records of `sources` (sorted, unique) only."""
        with atomic_lines(self.path) as file:
            for source in sources:
                file.write(json.dumps(asdict(self[source])) + "\n")
        self._index()
