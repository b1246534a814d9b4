"""A user's mistake ends a command with one line and exit status 1."""

import argparse
import errno
import logging
import subprocess
import sys

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


# What people who never train do not install.
WITHOUT_HOSTS = """
import runpy, sys

BLOCKED = "espnet2 espnet s3prl transformers matplotlib tensorboard sklearn scipy"
BLOCKED += " kaldiio pandas jinja2 onnx typeguard espnet_model_zoo"


class Blocked:
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in BLOCKED.split():
            raise ModuleNotFoundError(f"No module named {name}")


sys.meta_path.insert(0, Blocked)
"""


def without_hosts(code, *words):
    """What code prints in a process that can import no host."""
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_HOSTS + code, *words],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.parametrize("command", ["embed", "tag", "plot", "convert", "export"])
def test_help_needs_no_host(command):
    module = "sys.argv[0] = 'sslam'; m = 'espnet2_sslam.bin.sslam'\n"
    code = module + "runpy.run_module(m, run_name='__main__', alter_sys=True)"
    assert "usage: sslam" in without_hosts(code, command, "--help")


def test_labels_and_embeddings_need_no_host(tmp_path):
    from espnet2_sslam.checkpoint import save_model
    from tests.inference_case import CLASSES, classifier, noise, write

    save_model(classifier("mean"), tmp_path / "model")
    clip = write(tmp_path / "clip.wav", noise(1.0, 44_100), 44_100)
    code = """
from espnet2_sslam import SSLAM
from espnet2_sslam.bin.cli import main
model = SSLAM.from_pretrained(sys.argv[1])
print(model.tag(sys.argv[2], top_k=1)[0][0], model.embed(sys.argv[2]).shape)
for suffix in ("csv", "npz", "ark"):
    main(["tag", *sys.argv[1:], "-o", f"{sys.argv[2]}.{suffix}"])
main(["tag", *sys.argv[1:], "--events", "--median", "0.48", "--threshold", "0"])
"""
    first, *events = without_hosts(code, str(tmp_path / "model"), clip).splitlines()
    label, shape = first.split(" ", 1)
    assert label in CLASSES and shape == "(24,)" and len(events) == 1 + len(CLASSES)
    assert (tmp_path / "clip.wav.scp").exists()
