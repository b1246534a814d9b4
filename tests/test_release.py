"""What is released holds what its users need, and says one version everywhere."""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

import espnet2_sslam
from espnet2_sslam.bin import sslam

ROOT = Path(__file__).parent.parent
BUILD = "from setuptools import build_meta as b; b.build_{kind}({folder!r})"


def build(kind, folder, source=ROOT):
    command = [sys.executable, "-c", BUILD.format(kind=kind, folder=str(folder))]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    return next(folder.glob("*.whl" if kind == "wheel" else "*.tar.gz"))


def test_version_and_date_are_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    log = (ROOT / "CHANGELOG.md").read_text("utf-8")
    version, date = re.search(r"^## (\S+) \((.+)\)$", log, re.M).groups()
    assert version == citation["version"] == espnet2_sslam.__version__
    assert date == str(citation["date-released"])


def test_a_checkout_says_where_its_recipe_is(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"is a checkout, its recipe is .*egs2/sslam"):
        sslam.main(["recipe", str(tmp_path / "new")])
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").touch()
    with pytest.raises(ValueError, match="is not empty"):
        sslam.main(["recipe", str(tmp_path / "full")])


@pytest.mark.slow
def test_the_recipe_comes_out_of_a_wheel_built_from_the_source_release(tmp_path):
    source = tmp_path / "source"
    with tarfile.open(build("sdist", tmp_path, checkout(tmp_path))) as archive:
        archive.extractall(source, filter="data")
    (unpacked,) = source.iterdir()
    for path in tracked():
        assert (unpacked / path).exists(), f"the source release lacks {path}"
    wheel = build("wheel", tmp_path, unpacked)
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    env = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, "-m", "espnet2_sslam", "-m", "espnet2_sslam.bin.sslam"]
    work = tmp_path / "work"
    run = {"env": env, "cwd": tmp_path, "check": True, "capture_output": True}
    subprocess.run([*command, "recipe", work], **run)
    names = {p.relative_to(work).as_posix() for p in work.rglob("*") if p.is_file()}
    own = {p for p in tracked() if p.startswith(("egs2/sslam/", "conf/"))}
    assert {n for n in names if "/conf/" not in n} == {
        n for n in own if "/conf" not in n
    }
    recipe = work / "egs2/sslam"
    words = ["--python", sys.executable, "--stage", "1", "--stop_stage", "2"]
    run["cwd"] = recipe
    subprocess.run(["./run.sh", *words], **run)
    assert list(recipe.glob("dump/mini/raw/**/wav.scp"))


def tracked():
    """Files of the checkout that releases are about, links left out."""
    git = ["git", "ls-files", "-s"]
    lines = subprocess.run(git, cwd=ROOT, check=True, capture_output=True, text=True)
    rows = (line.split(None, 3) for line in lines.stdout.splitlines())
    files = [path for mode, _, _, path in rows if mode != "120000"]
    return [
        p for p in files if p[0] != "." and not p.startswith("benchmarks/evidence/")
    ]


def checkout(folder):
    """A copy of the tracked files: a build writes beside them."""
    copy = folder / "checkout"
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True)
    for name in filter(None, names.stdout.decode().split("\0")):
        path, target = ROOT / name, copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():
            target.symlink_to(os.readlink(path))
        elif path.exists():
            target.write_bytes(path.read_bytes())
            target.chmod(path.stat().st_mode)
    return copy
