"""What every command shares: a user's mistake ends with one line and exit status 1."""

import argparse
import errno
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# What bad input, a missing file or a full disk raise. Anything else is a mistake of
# ours and keeps its traceback.
USER_ERRORS = (ValueError, OSError)
INTERRUPTED = 130  # exit status of a shell command that Ctrl-C ended


def run_main(main: Callable[[], object]) -> None:
    """Run `main()` and exit: 0 when it returns, 1 after a user's error, 130 on Ctrl-C.

    A user's error, wrong options included, becomes `error: <one line>` on stderr. The
    traceback goes to `logging` at DEBUG level only. Errors of other kinds are raised
    as they are.
    """
    try:
        with _short_option_errors():
            main()
    except KeyboardInterrupt:
        _stop("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output has left (`... | head`): nobody to tell.
        sys.stderr.close()
        sys.exit(1)
    except USER_ERRORS as error:
        logging.debug("traceback of the error below", exc_info=True)
        _stop(one_line(error), 1)
    sys.exit(0)


def one_line(error: BaseException) -> str:
    """Return the error's message as one line."""
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        if error.errno == errno.ENOSPC:
            return f"no space left on the disk{where}; free some and run again"
        return f"{error.strerror}{where}"
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def _short_option_errors() -> Iterator[None]:
    """Let argparse report a wrong option in one line, without the long usage text."""

    def short_error(parser: argparse.ArgumentParser, message: str) -> None:
        _stop(f"{' '.join(message.split())}; --help lists the options", 1)

    long_error = argparse.ArgumentParser.error
    argparse.ArgumentParser.error = short_error
    try:
        yield
    finally:
        argparse.ArgumentParser.error = long_error


def _stop(line: str, status: int) -> None:
    """Print the line on stderr and exit."""
    # One write: `print` writes the newline by itself, and jobs share the stream.
    sys.stderr.write(f"error: {line}\n")
    sys.exit(status)
