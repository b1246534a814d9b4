"""How far a long work is: a bar on a terminal, elsewhere a line a minute."""

import logging
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

# seconds between two lines
INTERVAL = float(os.environ.get("SSLAM_PROGRESS_SECONDS", "60"))


def say(line: str) -> None:
    """A line for a log, as the recipe writes them; one write, as jobs share it."""
    sys.stderr.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {line}\n")
    sys.stderr.flush()


class Progress:
    """Count what is done. Use it in a `with` block.

    Args:
        what: Name of the work.
        total: How much there is.
        unit: Of what is counted, in the singular.
        done: How much an earlier run had done.
        bar: A bar on a terminal, and lines by `say`; else lines in the log of the
            process, on a terminal too.
        rest: What is to follow, in seconds, if a unit takes as many as it is given.
    """

    def __init__(
        self,
        what: str,
        total: int,
        unit: str = "file",
        done: int = 0,
        bar: bool = True,
        rest: Callable[[float], float] | None = None,
    ):
        self.what, self.total, self.unit, self.done = what, total, unit, done
        self.seconds = 0.0  # of audio
        self._rest, self._say = rest, say if bar else logging.info
        self._first: tuple[int, float] | None = None
        self._last = time.monotonic()
        self._bar: Any = None
        if bar and sys.stderr.isatty():
            options = {"desc": what, "unit": unit, "smoothing": 0.05}
            self._bar = tqdm(total=total, initial=done, **options)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, count: int = 1, seconds: float = 0.0) -> None:
        """Note that `count` more are done, with so many seconds of audio in them."""
        self.done += count
        self.seconds += seconds
        if self._bar is not None:
            self._bar.update(count)
            return
        now = time.monotonic()
        if self._first is None:  # the first takes longer: things are loaded for it
            self._first = self.done, now
        if now - self._last >= INTERVAL:
            self._last = now
            self._say(self.line(now))

    def line(self, now: float) -> str:
        """The work, what is done of it, and the time left."""
        units = f"{self.unit}{'es' if self.unit.endswith('ch') else 's'}"
        parts = [f"{self.done:,} of {self.total:,} {units}"]
        if self.seconds:
            parts.append(f"{self.seconds / 3600:,.1f} h of audio")
        done, since = self._first or (self.done, now)
        if self.done > done:
            pace = (now - since) / (self.done - done)
            left = pace * max(self.total - self.done, 0)
            parts.append(f"{duration(left)} left")
            if self._rest is not None:
                parts.append(f"{duration(left + self._rest(pace))} of the whole run")
        return f"({self.what}) {', '.join(parts)}"


def duration(seconds: float) -> str:
    """A time that is roughly known: `40 s`, `12 min`, `3 h 05 min`, `2 d 4 h`."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    if minutes < 120:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"
