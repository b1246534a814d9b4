"""Importing ESPnet without its note about Flash Attention."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any, TextIO

NOTE = "Failed to import Flash Attention"


@contextlib.contextmanager
def without_flash_attention_note() -> Iterator[None]:
    """Drop the note that ESPnet prints while it is imported, and nothing else.

    202511 prints it to stdout, where it becomes part of `--print_config`; 202611 to
    stderr, where an error should be one line.
    """
    out, err = NoteFilter(sys.stdout), NoteFilter(sys.stderr)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield


class NoteFilter:
    """A stream that hands everything but the note on to another one."""

    def __init__(self, stream: TextIO):
        self.stream = stream
        self.in_note = False

    def write(self, text: str) -> int:
        """Write, unless it is the note or the end of its line."""
        if text.startswith(NOTE):
            self.in_note = not text.endswith("\n")
            return len(text)
        if self.in_note and text == "\n":
            self.in_note = False
            return len(text)
        return self.stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)
