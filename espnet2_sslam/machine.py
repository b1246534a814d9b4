"""Where and with what the numbers were made."""

import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import torch

import espnet2_sslam


def environment() -> dict[str, str]:
    """Return date, commit, hardware and versions as words for a record."""
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": git_commit(Path(espnet2_sslam.__file__).parent),
        "machine": machine(),
        "versions": ", ".join(
            f"{name} {_version(name)}"
            for name in ("espnet2_sslam", "espnet", "torch", "torchaudio")
        )
        + f", Python {platform.python_version()}",
    }


def git_commit(folder: Path) -> str:
    """Return the commit of a checkout, and whether tracked files differ from it."""
    git = ["git", "-C", str(folder)]
    try:
        # An installed copy may lie inside a checkout of something else.
        _output([*git, "ls-files", "--error-unmatch", "__init__.py"])
        commit = _output([*git, "rev-parse", "--short=12", "HEAD"])
        changed = _output([*git, "status", "--porcelain", "--untracked-files=no"])
    except (OSError, subprocess.CalledProcessError):
        return "not a git checkout"
    return f"{commit} with local changes" if changed else commit


def machine() -> str:
    """Return processor, cores, memory and GPUs in one line."""
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    parts = [f"{_processor()}, {cores} cores, {memory:.0f} GiB"]
    if torch.cuda.is_available():
        names = [
            torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())
        ]
        parts += [f"{names.count(name)} x {name}" for name in sorted(set(names))]
    return "; ".join(parts)


def multiplies_bfloat16() -> bool:
    """Return whether the processor has matrix products in bfloat16, as Linux knows it.

    AMX or AVX-512 BF16; on ARM BF16.
    """
    flags = (_processor_says("flags") or _processor_says("Features") or "").split()
    return not {"amx_bf16", "avx512_bf16", "bf16"}.isdisjoint(flags)


def _processor() -> str:
    """Return the processor's name as Linux knows it."""
    return _processor_says("model name") or platform.machine()


def _processor_says(what: str) -> str | None:
    """Return a line of what Linux knows of the first processor."""
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else []:
        name, _, value = line.partition(":")
        if name.strip() == what:
            return value.strip()
    return None


def _version(package: str) -> str:
    """Return the version of a package, installed or only importable."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        ours = package == espnet2_sslam.__name__
        return espnet2_sslam.__version__ if ours else "not installed"


def _output(command: list[str]) -> str:
    """Return what a command prints."""
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    return run.stdout.strip()
