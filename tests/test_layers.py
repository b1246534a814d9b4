"""What each folder may load, seen in a fresh process (docs/architecture.md).

Looking at `sys.modules` sees dynamic imports too, which reading the files does not.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "espnet2_sslam"
HOSTS = ["espnet2", "espnet", "s3prl", "transformers", "onnx", "onnxruntime"]
HEAVY = ["matplotlib", "pandas", "sklearn", "scipy", "jinja2", "kaldiio", "tensorboard"]
HEAVY += ["dask", "distributed", "gradio"]
# Python's own part of the package: version, registration, the table of public names.
START = {"__init__", "_hook"}
METHOD = {p.stem for p in PACKAGE.glob("*.py")} - START - {"__main__"}
LISTS = {"corpus"}  # names, labels and tables, for everybody

# folder or file -> what of ours it may load, which hosts and heavy packages
LAYERS = {
    "config": ({"units"}, []),
    "store": (set(), []),
    "features": ({"units", "config"}, []),
    "encoder": (METHOD, []),
    "classifier": (METHOD, []),
    "pretrain_model": (METHOD, []),
    "checkpoint": (METHOD | LISTS, []),
    "inference": (METHOD | {"checkpoint"} | LISTS, []),
    "corpus": (METHOD, []),
    "results": (METHOD | LISTS, ["pandas", "jinja2", "scipy", "matplotlib", "sklearn"]),
    "tasks": (METHOD | {"checkpoint", "integrations"} | LISTS, ["espnet2", "espnet"]),
}


def loaded_by(code):
    """Names in sys.modules after `code` in a fresh process."""
    code += "\nimport sys, json; print('MODULES' + json.dumps(sorted(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return json.loads(run.stdout.rpartition("MODULES")[2])


def ours(modules):
    """First-level files and folders of the package among modules."""
    parts = [name.split(".") for name in modules]
    return {p[1] for p in parts if p[0] == "espnet2_sslam" and len(p) > 1} - START


@pytest.mark.parametrize("name", LAYERS)
def test_a_folder_loads_what_the_table_says(name):
    allowed, packages = LAYERS[name]
    if "espnet2" in packages:
        pytest.importorskip("espnet2", reason="ESPnet is not installed")
    if "pandas" in packages:
        pytest.importorskip("pandas", reason="pandas is not installed")
    folder = PACKAGE / name
    modules = [f"espnet2_sslam.{name}"]
    if folder.is_dir():
        modules += [
            f"espnet2_sslam.{name}.{path.stem}"
            for path in sorted(folder.glob("*.py"))
            if path.stem != "__init__"
        ]
    loaded = loaded_by("\n".join(f"import {module}" for module in modules))
    assert ours(loaded) - {name} <= allowed
    if "espnet2" not in packages:  # what ESPnet itself loads is not ours to say
        top = {module.split(".")[0] for module in loaded}
        assert top & {*HOSTS, *HEAVY} <= set(packages)


def test_pre_training_loads_no_other_host():
    pytest.importorskip("espnet2", reason="ESPnet is not installed")
    code = "from espnet2_sslam.tasks.pretrain import SSLAMTask; SSLAMTask.get_parser()"
    loaded = loaded_by(code)
    integrations = {m for m in loaded if m.startswith("espnet2_sslam.integrations.")}
    names = {f"espnet2_sslam.integrations.{name}" for name in ("ctc", "espnet")}
    assert integrations <= names


def test_lists_of_clips_need_no_torch():
    # two million clips: torch alone would take 650 MiB
    assert "torch" not in loaded_by("import espnet2_sslam.corpus")


def test_the_package_imports_nothing_but_the_standard_library():
    loaded = loaded_by("import espnet2_sslam")
    assert ours(loaded) == set()
    assert not {"torch", "numpy", *HOSTS, *HEAVY} & set(loaded)


def test_the_page_loads_nothing_before_its_options_are_read():
    loaded = loaded_by("import espnet2_sslam.bin.sslam_demo")
    assert not {"torch", "numpy", "starlette", *HOSTS, *HEAVY} & set(loaded)


def test_every_public_name_is_there():
    import espnet2_sslam

    for name in espnet2_sslam.__all__:
        if importlib.util.find_spec("torch"):
            assert getattr(espnet2_sslam, name).__name__ == name


def test_the_package_names_no_stage_of_the_recipe():
    import re

    stage = re.compile(r"\bstages? \d|run\.sh|(?<!\w)\.done\b", re.IGNORECASE)
    lines = [
        f"{path.relative_to(PACKAGE)}:{number}: {line.strip()}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if stage.search(line)
    ]
    assert lines == []
