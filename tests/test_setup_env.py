"""tools/setup_env.sh: which Python it takes, and when it builds, repairs or rests.

A stand-in for Python makes environments without installing anything.
"""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
STAND_IN = """#!/bin/bash
# A Python that only pretends: its version stands in `version` beside it.
here="$(dirname "$0")"
echo "$*" >>"{calls}"
case "$*" in
    -V) echo "Python $(cat "$here/version").9" ;;
    *ensurepip*) cat "$here/version" ;;
    *sys.base_prefix*) cat "$here/version" "$here/build" 2>/dev/null ;;
    "-m venv "*)
        [ ! -e "{folder}/fail_venv" ] || exit 1
        mkdir -p "$3/bin"
        touch "$3/pyvenv.cfg"
        cp "$0" "$here/version" "$3/bin"
        mv "$3/bin/$(basename "$0")" "$3/bin/python" 2>/dev/null ;;
    *"pip"*)
        [ ! -e "{folder}/slow_pip" ] || sleep 60
        [ ! -e "{folder}/fail_pip" ] || {{ echo "ERROR: no network"; exit 1; }} ;;
    *) [ ! -e "{folder}/damaged" ] || {{ rm "{folder}/damaged"; exit 1; }} ;;
esac
exit 0
"""


class Setup:
    """The script in a checkout of its own, with stand-ins on the search path."""

    def __init__(self, folder, tools):
        self.folder, self.tools = folder, tools
        self.calls = folder / "calls"
        self.checkout = folder / "checkout"
        (self.checkout / "tools").mkdir(parents=True)
        shutil.copy(ROOT / "tools" / "setup_env.sh", self.checkout / "tools")
        (self.checkout / "setup.py").write_text("requirements\n")

    def add_python(self, name, version):
        """Put a Python of this version on the search path."""
        python = self.folder / "bin" / f"{name}-files" / name
        python.parent.mkdir(parents=True)
        python.write_text(STAND_IN.format(calls=self.calls, folder=self.folder))
        python.chmod(0o755)
        (python.parent / "version").write_text(f"{version}\n")
        return python

    def start(self, *options, checkout=None, **variables):
        paths = [*(self.folder / "bin").glob("*-files"), self.tools]
        env = {"PATH": ":".join(map(str, paths)), "HOME": str(self.folder)}
        return subprocess.Popen(
            [(checkout or self.checkout) / "tools" / "setup_env.sh", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**env, **{key: str(value) for key, value in variables.items()}},
            start_new_session=True,
        )

    def run(self, *options, **variables):
        """Return (status, stdout, stderr, number of pip calls)."""
        self.calls.unlink(missing_ok=True)
        process = self.start(*options, **variables)
        stdout, stderr = process.communicate(timeout=60)
        calls = self.calls.read_text() if self.calls.exists() else ""
        return process.returncode, stdout, stderr, calls.count("-m pip")


def link_tools(folder, *left_out):
    """Everything of this machine but its Pythons, and what is left out."""
    for tool in Path("/usr/bin").iterdir():
        if not tool.name.startswith("python") and tool.name not in left_out:
            (folder / tool.name).symlink_to(tool)
    return folder


@pytest.fixture(scope="module")
def tools(tmp_path_factory):
    return link_tools(tmp_path_factory.mktemp("tools"))


@pytest.fixture
def setup(tmp_path, tools):
    return Setup(tmp_path, tools)


@pytest.mark.parametrize(
    "pythons, taken",
    [
        ({"python3.11": "3.11", "python3.12": "3.12", "python3.13": "3.13"}, "3.12"),
        ({"python3": "3.13"}, "3.13"),  # when there is nothing else
        ({"python3.11": "3.11", "python3.12": None}, "3.11"),  # a shim without Python
    ],
)
def test_the_newest_tested_python_comes_first(setup, pythons, taken):
    for name, version in pythons.items():
        python = setup.add_python(name, version)
        if version is None:
            python.write_text("#!/bin/sh\necho 'pyenv: not found' >&2\nexit 127")
    status, stdout, _, _ = setup.run()
    assert (status, stdout) == (0, f"{setup.checkout}/.venv/py{taken}\n")


def test_python3_and_pyenv_versions_are_looked_at_too(setup):
    setup.add_python("python3", "3.10")
    python = setup.add_python("elsewhere", "3.12")
    pyenv = setup.folder / ".pyenv/versions/3.12.1/bin"
    pyenv.parent.mkdir(parents=True)
    python.parent.rename(pyenv)
    (pyenv / "elsewhere").rename(pyenv / "python")
    assert setup.run()[1].endswith("py3.12\n")


def test_the_python_that_is_asked_for_is_taken(setup):
    setup.add_python("python3.12", "3.12")
    python = setup.add_python("python3.11", "3.11")
    assert setup.run(PYTHON=python)[1].endswith("py3.11\n")
    for choice in python, "3.11":
        assert setup.run("--python", choice)[1].endswith("py3.11\n")


@pytest.mark.parametrize(
    "options, complaint",
    [
        (["--python", "no-such"], "no-such does not run"),
        (["--python", "old"], "old is Python 3.9; 3.12, 3.11 or 3.13 is needed"),
        (["--python", "3.11"], "no Python 3.11"),
        (["--python"], "--python needs a value"),
        (["--prefix", "x"], "unknown option --prefix"),
        ([], "install one or set PYTHON"),
    ],
)
def test_a_user_error_is_one_line(setup, options, complaint):
    setup.add_python("old", "3.9")
    status, stdout, stderr, _ = setup.run(*options)
    assert (status, stdout) == (1, "") and complaint in stderr
    assert stderr.count("\n") == 1


@pytest.mark.parametrize("change", [None, "requirements", "damage", "stamp", "python"])
def test_only_an_environment_that_is_no_longer_valid_is_repaired(setup, change):
    setup.add_python("python3", "3.12")
    _, stdout, _, pips = setup.run()
    env = Path(stdout.strip())
    assert pips == 2
    (env / "leftover").touch()
    if change == "requirements":
        (setup.checkout / "setup.py").write_text("others\n")
    elif change == "damage":
        (setup.folder / "damaged").touch()
    elif change == "stamp":
        (env / "sslam.stamp").unlink()
    elif change == "python":  # beyond repair: built anew
        (env / "bin/python").unlink()
    status, stdout, stderr, pips = setup.run()
    assert (status, stdout) == (0, f"{env}\n")
    assert pips == (2 if change else 0)
    word = {None: "", "python": "building"}.get(change, "completing")
    assert word in stderr and (change or not stderr)
    assert (env / "leftover").exists() == (change != "python")
    assert setup.run()[3] == 0


def test_a_moved_checkout_is_pointed_to_without_installing_requirements(setup):
    setup.add_python("python3", "3.12")
    setup.run(SSLAM_ENV_DIR=setup.folder / "envs")
    moved = setup.folder / "moved"
    shutil.copytree(setup.checkout, moved)
    setup.calls.unlink()
    process = setup.start(checkout=moved, SSLAM_ENV_DIR=setup.folder / "envs")
    assert process.communicate(timeout=60)[0] == f"{setup.folder}/envs/py3.12\n"
    [pip] = [x for x in setup.calls.read_text().splitlines() if "-m pip" in x]
    assert "--no-deps" in pip


def test_a_failing_or_interrupted_set_up_is_completed_by_the_next(setup):
    setup.add_python("python3", "3.12")
    (setup.folder / "fail_pip").touch()
    status, stdout, stderr, _ = setup.run()
    assert (status, stdout) == (1, "")
    assert "pip failed: ERROR: no network (log: " in stderr.splitlines()[-1]
    assert not (setup.checkout / ".venv/py3.12/sslam.stamp").exists()
    (setup.folder / "fail_pip").rename(setup.folder / "slow_pip")
    setup.calls.unlink()
    process = setup.start()
    while not (setup.calls.exists() and "-m pip" in setup.calls.read_text()):
        time.sleep(0.05)
    os.killpg(process.pid, 9)
    process.communicate()
    (setup.folder / "slow_pip").unlink()
    status, _, stderr, _ = setup.run()
    assert status == 0 and "completing" in stderr


def test_two_at_once_build_it_once(setup):
    setup.add_python("python3", "3.12")
    both = [setup.start(), setup.start()]
    outputs = [process.communicate(timeout=60)[0] for process in both]
    assert outputs == [f"{setup.checkout}/.venv/py3.12\n"] * 2
    assert setup.calls.read_text().count("-m pip") == 2


def test_a_folder_that_is_no_environment_is_left_alone(setup):
    setup.add_python("python3", "3.12")
    precious = setup.folder / "precious"
    precious.mkdir()
    (precious / "thesis.tex").touch()
    status, _, stderr, _ = setup.run("--env", precious)
    assert status == 1 and "choose another --env" in stderr
    assert (precious / "thesis.tex").exists()


def test_python_3_11_without_a_compiler_is_one_clear_line(setup, tmp_path):
    setup.add_python("python3", "3.11")
    (tmp_path / "no_compiler").mkdir()
    setup.tools = link_tools(tmp_path / "no_compiler", "cc", "gcc")
    status, _, stderr, pips = setup.run()
    assert status == 1 and pips == 0 and "a C compiler is needed" in stderr
