"""`--help` of every command and data script: each option has words and its default."""

import argparse
import re
import runpy
import sys
from pathlib import Path

import pytest

from espnet2_sslam.bin import cli

ROOT = Path(__file__).parent.parent
LOCAL = ROOT / "egs2/sslam/local"
COMMANDS = [f"sslam {name}" for name in cli.PURPOSES]
MODULES = [
    f"espnet2_sslam.bin.{path.stem}"
    for path in sorted((ROOT / "espnet2_sslam/bin").glob("*.py"))
    if "main(" in path.read_text() and path.stem not in ("cli", "sslam", "__init__")
    # ESPnet's own parser, whose hundreds of options are ESPnet's
    and path.stem not in ("sslam_train", "sslam_cls_train")
]
SCRIPTS = [path.name for path in sorted(LOCAL.glob("*data*.py"))]


@pytest.mark.parametrize("name", [*COMMANDS, *MODULES, *SCRIPTS])
def test_every_option_has_words_and_its_default(name, monkeypatch):
    parser = parser_of(name, monkeypatch)
    for action in parser._actions:
        words = action.help
        if words == argparse.SUPPRESS:
            continue
        option = " ".join(action.option_strings) or action.dest
        assert words and re.search(r"\w\w", words), f"{name} {option} has no words"
        shown = parser._get_formatter()._expand_help(action)
        default, nothing = action.default, (None, False, [], "", argparse.SUPPRESS)
        if action.option_strings and default not in nothing:
            several = default if isinstance(default, list | tuple) else [default]
            said = all(str(value) in shown for value in several) or "default" in shown
            assert said, f"{name} {option} does not say its default, {default!r}"


def parser_of(name, monkeypatch):
    """The parser that a command or a script makes."""
    parsers = []

    def record(parser, *args, **options):
        parsers.append(parser)
        raise SystemExit(0)

    for method in ("parse_args", "parse_intermixed_args", "parse_known_args"):
        monkeypatch.setattr(argparse.ArgumentParser, method, record)
    monkeypatch.syspath_prepend(str(LOCAL))
    words = name.split()
    monkeypatch.setattr(sys, "argv", [words[0], "--help"])
    with pytest.raises(SystemExit):
        if words[0] == "sslam":
            cli.main([words[1], "--help"])
        elif name.endswith(".py"):
            runpy.run_path(str(LOCAL / name), run_name="__main__")
        else:
            monkeypatch.delitem(sys.modules, name, raising=False)
            runpy.run_module(name, run_name="__main__", alter_sys=True)
    return parsers[-1]
