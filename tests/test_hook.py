"""When the hosts are imported SSLAM is made known to them; the wrapper for python."""

import subprocess
import sys
from pathlib import Path

import pytest

from espnet2_sslam import _hook

ROOT = Path(__file__).resolve().parent.parent


def python(*arguments, **options):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        text=True,
        capture_output=True,
        **options,
    )


def test_importing_the_package_is_light_and_installing_twice_registers_once():
    code = """
import sys, time
began = time.process_time()
import espnet2_sslam
print(time.process_time() - began)
print([name for name in ("torch", "numpy", "espnet2", "s3prl") if name in sys.modules])
"""
    seconds, loaded = python("-c", code).stdout.splitlines()
    assert float(seconds) < 0.5 and loaded == "[]"
    _hook.install()
    assert sys.meta_path.count(_hook.HostFinder) == 1


FAKE_HOSTS = """
import contextlib, sys, types

def fake(name, **functions):
    name = "espnet2_sslam.integrations." + name
    sys.modules[name] = types.SimpleNamespace(**functions)

@contextlib.contextmanager
def executing(module):
    print("before", module.__name__)
    yield
    print("after", module.__name__)

sys.path.insert(0, sys.argv[1])
fake("s3prl.compat", executing=executing)
fake("s3prl.expert", register=lambda hub: print("register in", hub.__name__))
fake("espnet", register=lambda task: print("register in", task.__name__))
"""
HOSTS = "import s3prl.util, s3prl.hub, espnet2.tasks.asr;"


@pytest.fixture
def hosts(tmp_path):
    """A folder with an s3prl and an espnet2 whose modules print their names."""
    for name in ("s3prl/hub", "s3prl/util", "espnet2/tasks/asr"):
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("print(__name__)\n")
    for name in ("s3prl", "espnet2", "espnet2/tasks"):
        (tmp_path / name / "__init__.py").touch()
    return tmp_path


BEFORE_AND_AFTER = [
    "before s3prl.hub",
    "after s3prl.hub",
    "register in s3prl.hub",
    "register in espnet2.tasks.asr",
]


@pytest.mark.parametrize("later", [True, False], ids=["later", "earlier"])
def test_hosts_are_prepared_before_and_registered_in_after(hosts, later):
    ours = "import espnet2_sslam;"
    code = FAKE_HOSTS + (ours + HOSTS if later else HOSTS + ours)
    lines = python("-c", code, str(hosts)).stdout.splitlines()
    names = ["s3prl.util", "s3prl.hub", "espnet2.tasks.asr"]  # nothing for s3prl.util,
    if later:  # which ESPnet imports in every process
        before, *after, espnet = BEFORE_AND_AFTER
        assert lines == [names[0], before, names[1], *after, names[2], espnet]
    else:
        assert lines == names + BEFORE_AND_AFTER


def test_a_host_that_another_finder_finds_is_registered_in_too(hosts):
    """As setuptools' editable installations do it."""
    editable = """
from importlib.machinery import PathFinder
class Editable:
    def find_spec(name, path=None, target=None):
        return PathFinder.find_spec(name, path or [sys.path.pop(0)], target)
import espnet2_sslam
sys.meta_path.append(Editable)
sys.meta_path.remove(PathFinder)
import s3prl.hub
"""
    run = python("-c", FAKE_HOSTS + editable, str(hosts))
    assert run.stdout.splitlines()[-1] == "register in s3prl.hub", run.stderr


PROBE = """
import multiprocessing, sys, types
from espnet2_sslam import __main__ as wrapper

def main():
    code = "import sys; print('espnet2_sslam._hook' in sys.modules)"
    child = multiprocessing.get_context("spawn").Process(target=exec, args=(code,))
    child.start()
    child.join()

module = types.ModuleType("espnet2_sslam.bin.probe")
module.__file__, module.main = "probe.py", main
sys.modules[module.__name__] = module
"""


def test_processes_spawned_under_the_wrapper_know_sslam():
    run = "wrapper._run_module(module.__name__, [])"
    assert python("-c", PROBE + run).stdout.strip() == "True"
    assert python("-c", PROBE + "main()").stdout.strip() == "False"


def test_errors_of_ours_are_one_line_and_those_of_others_keep_their_traceback():
    ours = "from espnet2_sslam.classifier import Pooling; module.main = lambda: "
    run = "\nwrapper._run_module(module.__name__, [])"
    result = python("-c", PROBE + ours + "Pooling('max', 8)" + run)
    assert result.returncode == 1
    assert result.stderr.startswith("error: pooling must be one of cls, mean")
    assert len(result.stderr.splitlines()) == 1
    result = python("-c", PROBE + ours + "int('x')" + run)
    assert result.returncode == 1 and "Traceback" in result.stderr


def test_wrapper_runs_code_scripts_and_modules(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import sys; print(__name__, sys.argv[1:])\n")
    wrapper = ("-m", "espnet2_sslam")
    expected = "__main__ ['a', '-b']"
    for form in (("-c", script.read_text()), (str(script),)):
        assert python(*wrapper, *form, "a", "-b").stdout.strip() == expected
    assert "usage" in python(*wrapper, "-m", "json.tool", "-h").stdout


def test_wrapper_used_wrongly_shows_its_usage():
    result = python("-m", "espnet2_sslam", "-m")
    assert result.returncode == 1 and result.stderr.startswith("usage:")
