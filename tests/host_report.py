"""`make hosts`: run the hosts' own tests and recipes, and write docs/hosts.md's table.

A row is a test; what it records as `result` is added. Without --write the table is
printed. Words after `--` go to pytest; --reports makes the table of earlier runs of
`pytest --junitxml`, on a machine where all at once is too much.
"""

import argparse
import datetime
import importlib.metadata
import os
import platform
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

TESTS = Path(__file__).resolve().parent
DOCS = TESTS.parent / "docs" / "hosts.md"
BEGIN, END = "<!-- hosts: made by make hosts -->", "<!-- end of hosts -->"
HOSTS = {  # the host's name -> files of its tests
    "ESPnet": "test_hosts_espnet*.py",
    "s3prl": "test_hosts_s3prl*.py test_s3prl_runs.py",
    "transformers": "test_hosts_transformers*.py",
    "HEAR, X-ARES, MTEB": "test_harness*.py",
    "onnxruntime-web": "test_onnx.py::test_the_browsers_engine_gives_the_same",
}
PACKAGES = """espnet s3prl transformers onnxruntime hear-validator xares mteb torch
espnet2_sslam""".split()


def versions():
    """Python's and the packages' versions, as far as they are installed."""
    found = [f"Python {platform.python_version()}"]
    for name in PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def run(report, words):
    """Run the tests of all hosts; pytest's exit status."""
    tests = []
    for pattern in " ".join(HOSTS.values()).split():
        files, _, name = pattern.partition("::")
        tests += [f"{path}{'::' * bool(name)}{name}" for path in TESTS.glob(files)]
    junit = ["-o", "junit_family=xunit1", "--junitxml", report]
    words = ["-m", "pytest", *junit, *sorted(tests), *words]
    environment = {**os.environ, "PYTHONPATH": f"{TESTS.parent}"}
    return subprocess.run([sys.executable, *words], env=environment).returncode


def outcomes(case):
    """What a test recorded, and "pass", "fail" or why it was skipped."""
    found = [p.get("value") for p in case.iter("property")]
    skipped = case.find("skipped")
    if skipped is not None:
        return [*found, f"skipped: {skipped.get('message')}"]
    failed = case.find("failure") is not None or case.find("error") is not None
    return [*found, "fail" if failed else "pass"]


def table(reports):
    """Markdown of pytest's junit files: host, test or recipe, result."""
    rows = {}  # (file, test) -> outcome -> parameters
    cases = (c for path in reports for c in ElementTree.parse(path).iter("testcase"))
    for case in cases:
        _, _, module = (case.get("classname") or "").partition("tests.")
        file = f"{module.partition('.')[0]}.py"
        name, _, parameters = case.get("name").partition("[")
        row = rows.setdefault((file, name.removeprefix("test_")), {})
        for text in outcomes(case):
            row.setdefault(text, []).append(parameters.removesuffix("]"))
    lines = [f"{datetime.date.today()}: {versions()}.", ""]
    lines += ["| host | test or recipe | result |", "|---|---|---|"]
    for host, patterns in HOSTS.items():
        files = [pattern.partition("::")[0] for pattern in patterns.split()]
        for (file, name), row in rows.items():
            if not any(Path(file).match(pattern) for pattern in files):
                continue
            parts = []
            for text, cases in row.items():
                which = ", ".join(cases) if len(cases) < 5 else f"{len(cases)} cases"
                parts.append(f"{text} ({which})" if which else text)
            cell = "; ".join(parts).replace("|", "\\|").replace("\n", " ")
            lines.append(f"| {host} | {name.replace('_', ' ')} | {cell} |")
    return "\n".join(lines)


def main():
    """Run, and write or print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="into docs/hosts.md")
    parser.add_argument("--reports", nargs="+", type=Path, help="junit files")
    parser.add_argument("words", nargs="*", help="for pytest")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        reports, status = args.reports, 0
        if not reports:
            reports = [Path(folder) / "report.xml"]
            status = run(reports[0], args.words)
        made = table(reports)
    text = DOCS.read_text()
    if args.write:
        before, after = text.split(BEGIN)[0], text.split(END)[1]
        DOCS.write_text(f"{before}{BEGIN}\n{made}\n{END}{after}")
    else:
        print(made)
    sys.exit(status)


if __name__ == "__main__":
    main()
