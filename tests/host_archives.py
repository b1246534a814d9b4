"""Source archives of the installed hosts, which hold their tests and recipes."""

import importlib.metadata
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest


def source_archive(package, folder):
    """Unpack what pip gives, or take the folder that <PACKAGE>_SOURCE names."""
    given = os.environ.get(f"{package.upper()}_SOURCE")
    if given:
        return Path(given)
    version = importlib.metadata.version(package)
    words = ["download", "--no-deps", "--no-build-isolation", "--no-binary", ":all:"]
    words = ["-m", "pip", *words, "-d", folder, f"{package}=={version}"]
    loaded = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    if loaded.returncode:
        pytest.skip(f"pip has no source archive: {loaded.stderr.splitlines()[-1]}")
    with tarfile.open(next(Path(folder).glob(f"{package}-*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    return Path(folder) / f"{package}-{version}"
