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


def test_run_main_exits_with_zero_and_prints_nothing_on_success(capsys):
    assert _outcome(capsys, lambda: None) == (0, "")


@pytest.mark.parametrize(
    "error, line",
    [
        (ValueError("need 2 clips,\n  got 1:   more"), "need 2 clips, got 1: more"),
        (FileNotFoundError(2, "No such file", "x.wav"), "No such file: x.wav"),
        (
            OSError(errno.ENOSPC, "No space", "d/a.ark"),
            "no space left on the disk: d/a.ark; free some and run again",
        ),
        (OSError("not an audio file"), "not an audio file"),
        (ValueError(), "ValueError"),
    ],
)
def test_a_user_error_is_one_line_and_status_1(capsys, error, line):
    assert _outcome(capsys, _raiser(error)) == (1, f"error: {line}\n")


def test_ctrl_c_is_status_130(capsys):
    status, stderr = _outcome(capsys, _raiser(KeyboardInterrupt()))
    assert status == 130 and stderr == "error: interrupted\n"


def test_a_mistake_of_ours_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_main(lambda: 1 / 0)


def test_the_traceback_is_logged_at_debug_level_only(capsys, caplog):
    with caplog.at_level(logging.DEBUG):
        _outcome(capsys, _raiser(ValueError("bad")))
    [record] = caplog.records
    assert record.levelno == logging.DEBUG and record.exc_info[0] is ValueError


def test_a_wrong_option_is_one_line_and_argparse_is_put_back(capsys):
    before = argparse.ArgumentParser.error
    parser = argparse.ArgumentParser()
    parser.add_argument("--rate", type=int)
    status, stderr = _outcome(capsys, lambda: parser.parse_args(["--rat", "x"]))
    assert status == 1 and stderr.count("\n") == 1
    assert "invalid int value: 'x'" in stderr and "--help" in stderr
    assert argparse.ArgumentParser.error is before
