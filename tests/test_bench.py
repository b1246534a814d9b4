"""`make bench` in its small form: every group to its end, one page."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.bench import GROUPS, LIMITS

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_every_group_of_the_benchmark_runs_to_its_end(tmp_path):
    command = [sys.executable, "-m", "benchmarks.bench", "--tiny", "--out", tmp_path]
    command += ["--minutes", "30"]  # other tests may run beside it
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    lines = (tmp_path / "BENCH.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert {row["group"] for row in rows} == set(GROUPS) == set(LIMITS)
    failed = ("not run", "stopped", "ended early")
    assert not [row for row in rows if row["name"] in failed]
    page = (tmp_path / "BENCH.md").read_text()
    assert all(f"## {group}" in page for group in GROUPS)
    assert page.count("estimate: ") == 4
