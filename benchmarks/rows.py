"""Groups of measurements: each a process of its own, each row kept as it comes."""

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from espnet2_sslam.machine import git_commit

ROOT = Path(__file__).resolve().parent.parent


class Rows:
    """Writes rows as they come."""

    def __init__(self, path: Path, group: str):
        self.path, self.group = path, group

    def __call__(self, name, value, criterion="", passed=None, **more):
        passed = None if passed is None else bool(passed)
        row = dict(group=self.group, name=name, value=value, criterion=criterion)
        row |= dict(passed=passed, **more)
        with open(self.path, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")
        mark = {None: "", True: "pass", False: "FAIL"}[passed]
        print(f"[{self.group}] {name}: {value} {criterion} {mark}", flush=True)

    def read(self) -> list[dict]:
        """All rows so far, of all groups."""
        return [json.loads(line) for line in self.path.read_text().splitlines()]


def get_parser(doc: str, out: Path, minutes: float, groups: Sequence[str]):
    """The options of such a benchmark."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default=",".join(groups), help="groups, by comma")
    parser.add_argument("--out", type=Path, default=out, help="folder of the page")
    text = "for everything; on a busy machine give more"
    parser.add_argument("--minutes", type=float, default=minutes, help=text)
    parser.set_defaults(patience=lambda given: max(1.0, given / minutes))
    parser.add_argument("--commit", help="for the report; git's by default")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser


def run(
    module: str,
    args: argparse.Namespace,
    limits: Mapping[str, float],
    groups: Mapping[str, Callable],
    page: str,
    heading: str,
    where: Callable[[], str],
    options: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> None:
    """Run the chosen groups and write OUT/<page>.md, or one group in this process.

    Args:
        module: Of the benchmark, which is started again for each group.
        limits: Seconds of each group.
        groups: Functions of a `Rows`; their first line says what they measure.
        page, heading: PAGE.md, which `make page` writes.
        where: The machine, in words.
        options, environment: For every group's process.
    """
    rows_path = args.out / f"{page}.jsonl"
    if args.one:
        groups[args.one](Rows(rows_path, args.one))
        return
    args.out.mkdir(parents=True, exist_ok=True)
    rows_path.unlink(missing_ok=True)
    commit = args.commit or git_commit(ROOT / "espnet2_sslam")
    start = time.perf_counter()
    for group in args.rows.split(","):
        left = args.minutes * 60 - (time.perf_counter() - start)
        limit = limits[group] * args.patience(args.minutes)
        row = Rows(rows_path, group)
        if left < 10:
            row("not run", "the time was up", passed=False)
            continue
        command = [sys.executable, "-m", module, "--one", group, *options]
        began = time.perf_counter()
        try:
            done = subprocess.run(
                [*command, "--out", str(args.out)],
                cwd=ROOT,
                timeout=min(left, limit),
                env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
                check=False,
            )
            if done.returncode:
                row("ended early", f"status {done.returncode}", passed=False)
        except subprocess.TimeoutExpired:
            row("stopped", f"at its limit of {min(left, limit):.0f} s", passed=False)
        print(f"[{group}] took {time.perf_counter() - began:.0f} s", flush=True)
    minutes = (time.perf_counter() - start) / 60
    lines = [f"# {heading}", ""]
    lines += [
        f"Made by `make {page.lower()}` ({minutes:.1f} min) on {where()}; commit "
        f"{commit}, {time.strftime('%Y-%m-%d')}.",
        "",
    ]
    rows = Rows(rows_path, "").read()
    for group, members in itertools.groupby(rows, key=lambda r: r["group"]):
        doc = (groups[group].__doc__ or group).split("\n\n")[0]
        lines += [f"## {group}", "", " ".join(doc.split()), ""]
        lines += ["| row | result | criterion | |", "|---|---|---|---|"]
        for r in members:
            mark = {None: "", True: "pass", False: "**fail**"}[r["passed"]]
            cells = (r["name"], r["value"], r["criterion"], mark)
            lines.append("| " + " | ".join(c.replace("|", "/") for c in cells) + " |")
        lines.append("")
    text = "\n".join(lines)
    (args.out / f"{page}.md").write_text(text, encoding="utf-8")
