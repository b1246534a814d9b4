"""The layers of the code import in one direction only, and only what is declared."""

import ast
import re
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "espnet2_sslam"
FILES = sorted(PACKAGE.rglob("*.py"))

# A file imports from its own layer and from those above it in this list.
LAYERS = [
    "units features layers tokens pooling masking mixing losses augment metrics".split()
    + "randomness validation audio audio_headers".split(),
    "encoder decoder teacher".split(),
    "pretrain_model classifier checkpoint".split(),
    "tasks results corpus pretrained frontend".split(),
    "bin integrations inference".split(),
]
# They start the package up (version, registration, wrapper) and stand outside.
OUTSIDE = ["__init__", "_hook", "__main__"]
ESPNET = re.compile(
    r"espnet2\.(tasks\.abs_task|train|asr\.(encoder|frontend)\.abs_(encoder|frontend)"
    r"|samplers\.abs_sampler|iterators|schedulers\.abs_scheduler|torch_utils|utils)"
    r"(\.|$)"
)
IMPORT_NAMES = {  # distribution -> module, where they differ
    "scikit-learn": "sklearn",
    "pyyaml": "yaml",
}


def _imports(path):
    """Return (line, dotted module) of every import in a file, relative ones solved."""
    package = ("espnet2_sslam", *path.relative_to(PACKAGE).parts[:-1])
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from package import name`: the name may be a module of its own
            found += [(node.lineno, f"{module}.{alias.name}") for alias in node.names]
    return found


def _layer(name):
    """Return the number of the layer of a first-level file or folder."""
    for number, names in enumerate(LAYERS):
        if name in names:
            return number
    raise AssertionError(f"{name}: name its layer in tests/test_import_layers.py")


def _first_part(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def _is_later(module, own):
    """Say whether `espnet2_sslam.<...>` lies in a later layer than number `own`."""
    parts = module.split(".")
    if len(parts) == 1 or parts[1].startswith("__"):
        return False  # the package itself, `__version__`
    return _layer(parts[1]) > own


def _wrong_imports(path):
    """Return a line for each import that goes against the order of the layers."""
    if _first_part(path) in OUTSIDE:
        return []
    own = _layer(_first_part(path))
    wrong = []
    for line, module in _imports(path):
        top = module.split(".")[0]
        if top == "espnet2_sslam" and _is_later(module, own):
            wrong.append(f"{path.name}:{line}: {module} is a later layer")
        elif top == "espnet" or top == "espnet2" and not ESPNET.match(module):
            wrong.append(f"{path.name}:{line}: {module} is not on both stacks")
        elif top == "espnet2" and own == 0 and ".abs_" not in module:
            wrong.append(f"{path.name}:{line}: {module} is no abstract class")
    return wrong


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_only_to_earlier_layers(path):
    assert _wrong_imports(path) == []


def test_every_file_of_the_package_has_a_layer():
    for path in FILES:
        if _first_part(path) not in OUTSIDE:
            _layer(_first_part(path))


def test_the_host_integrations_are_imported_nowhere_else():
    hosts = {"s3prl", "transformers", "onnx", "onnxruntime"}
    for path in FILES:
        if _first_part(path) != "integrations":
            used = {module.split(".")[0] for _, module in _imports(path)}
            assert not used & hosts, path


def test_third_party_imports_are_declared_in_setup_py():
    setup = (PACKAGE.parent / "setup.py").read_text(encoding="utf-8")
    required = setup.split("INSTALL_REQUIRES = [")[1].split("\n]")[0]
    names = re.findall(r"""^\s+["']([A-Za-z0-9_-]+)""", required, re.MULTILINE)
    declared = {IMPORT_NAMES.get(name, name) for name in names} | {"espnet2"}
    for path in FILES:
        for line, module in _imports(path):
            top = module.split(".")[0]
            if top != "espnet2_sslam" and top not in sys.stdlib_module_names:
                assert top in declared, f"{path.name}:{line}: {top} is not in setup.py"


@pytest.mark.parametrize(
    "file, source, complaint",
    [
        ("losses.py", "from espnet2_sslam.encoder import SSLAMEncoder", "later layer"),
        ("encoder.py", "from . import tasks", "later layer"),
        ("tasks/pretrain.py", "from ..bin import cli", "later layer"),
        ("features.py", "import espnet.nets", "not on both"),
        ("losses.py", "from espnet2.train.trainer import Trainer", "no abstract class"),
        ("tasks/pretrain.py", "from espnet2.tasks.asr import ASRTask", "not on both"),
        ("bin/cli.py", "from espnet2.legacy.nets import x", "not on both"),
    ],
)
def test_a_wrong_import_is_found(tmp_path, monkeypatch, file, source, complaint):
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(source)
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    [line] = _wrong_imports(path)
    assert complaint in line
