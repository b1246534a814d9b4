"""A user's mistake ends a command with one line and exit status 1."""

import argparse
import errno
import logging

import pytest

from espnet2_sslam.bin.cli import run_main


def _outcome(capsys, main):
    """Return (exit status, stderr) of `main` under run_main."""
    with pytest.raises(SystemExit) as stop:
        run_main(main)
    return stop.value.code, capsys.readouterr().err


def _raiser(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize(
    "error, status, line",
    [
        (ValueError("need 2,\n  got 1:   more"), 1, "need 2, got 1: more"),
        (FileNotFoundError(2, "No such file", "x.wav"), 1, "No such file: x.wav"),
        (
            OSError(errno.ENOSPC, "No space", "d/a.ark"),
            1,
            "no space left on the disk: d/a.ark; free some and run again",
        ),
        (OSError("not an audio file"), 1, "not an audio file"),
        (ValueError(), 1, "ValueError"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_a_user_error_is_one_line_and_its_traceback_is_for_debugging(
    capsys, caplog, error, status, line
):
    with caplog.at_level(logging.DEBUG):
        assert _outcome(capsys, _raiser(error)) == (status, f"error: {line}\n")
    assert all(record.levelno == logging.DEBUG for record in caplog.records)
    assert _outcome(capsys, lambda: None) == (0, "")


def test_a_mistake_of_ours_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_main(lambda: 1 / 0)


def test_a_wrong_option_is_one_line_and_argparse_is_put_back(capsys):
    before = argparse.ArgumentParser.error
    parser = argparse.ArgumentParser()
    parser.add_argument("--rate", type=int)
    status, stderr = _outcome(capsys, lambda: parser.parse_args(["--rat", "x"]))
    assert status == 1 and stderr.count("\n") == 1
    assert "invalid int value: 'x'" in stderr and "--help" in stderr
    assert argparse.ArgumentParser.error is before
