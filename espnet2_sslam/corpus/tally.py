"""What came of the clips in stage 2: counts, the list of problems, and when to stop."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from espnet2_sslam.corpus.datadir import table_lines
from espnet2_sslam.corpus.records import RecordBook
from espnet2_sslam.corpus.writer import atomic_lines

PROBLEM_FILE = "problems.tsv"
PROBLEM_COLUMNS = "split\tid\tfile\treason\taction"


class Tally:
    """What came of the clips of each split; lists every problem and warning.

    Args:
        datadir: Where the lists are.
        names: The splits.
        book: Records of all sources.
        path: Where the problems are written.
    """

    def __init__(
        self, datadir: Path, names: Sequence[str], book: RecordBook, path: Path
    ):
        self.path = path
        self.sizes: Counter = Counter()
        self.lost: Counter = Counter()
        self.broken: Counter = Counter()
        self.doubtful: Counter = Counter()
        self.first = None
        with atomic_lines(path) as file:
            file.write(PROBLEM_COLUMNS + "\n")
            for name in names:
                for _, key, source in table_lines(datadir / name / "wav.scp"):
                    self.sizes[name] += 1
                    if source in book.marked:
                        self._add(name, key, book.marked[source], file)

    def _add(self, name: str, key: str, record, file) -> None:
        """Count and list one clip with a problem or a warning."""
        reason = record.problem or record.warning
        action = "left out" if record.problem else "kept"
        file.write(f"{name}\t{key}\t{record.source}\t{reason}\t{action}\n")
        (self.broken if record.problem else self.doubtful)[reason.split(":")[0]] += 1
        if record.problem:
            self.lost[name] += 1
            self.first = self.first or (key, record)

    def check_share(self, max_bad: float) -> None:
        """Stop when too many clips, or all clips of a split, are unusable.

        Raises:
            ValueError: As said.
        """
        total, bad = self.sizes.total(), self.lost.total()
        if bad > max_bad * total:
            key, record = self.first
            raise ValueError(
                f"{bad} of {total} clips cannot be used, more than --max_bad "
                f"{max_bad:g} allows (first: {key}, {record.source}: "
                f"{record.problem}); all are listed in {self.path}: repair or remove "
                "them, or raise --max_bad"
            )
        for name, size in self.sizes.items():
            if self.lost[name] == size:
                raise ValueError(
                    f"no usable clip is left in the split {name}; see {self.path}"
                )

    def summary(self, outdir: Path) -> str:
        """What came of the clips, in one line."""

        def counts(counter):
            parts = ", ".join(f"{name} {n}" for name, n in sorted(counter.items()))
            return f" ({parts})" if parts else ""

        total, lost = self.sizes.total(), self.lost.total()
        line = (
            f"{total} clips in {len(self.sizes)} splits: {total - lost} usable, "
            f"{self.doubtful.total()} of them with a warning{counts(self.doubtful)}, "
            f"{lost} left out{counts(self.broken)}"
        )
        problems = self.broken or self.doubtful
        return line + (f"; see {outdir / PROBLEM_FILE}" if problems else "")
