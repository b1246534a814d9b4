"""What the data report of stage 3 says, for RESULTS.md."""

import json
from pathlib import Path

from espnet2_sslam.corpus import warnings
from espnet2_sslam.results.tables import markdown
from espnet2_sslam.store import sha256

HEADER = (
    "split clips listed missing left_out expected hours classes without_a_positive hash"
)


def data_report_path(dump: Path) -> Path:
    """Return where stage 3 leaves its numbers."""
    return Path(dump) / "report" / "report.json"


def read_data_report(dump: Path) -> dict | None:
    """Return the numbers of stage 3, None where there are none."""
    path = data_report_path(dump)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def data_section(dump: Path) -> list[str]:
    """Return heading, table and warnings: clips and hashes of all splits, leaks."""
    report = read_data_report(dump)
    if report is None:
        return ["## Data", "There is no data report (stage 3)."]
    rows = [_row(name, split) for name, split in sorted(report["splits"].items())]
    found = [f"- {text}" for text in warnings(report)] + [
        f"- {overlap['clips']} clips of {overlap['split']} were seen in pre-training, "
        "without their labels."
        for overlap in report["pretraining_overlaps"]
    ]
    code = sha256(data_report_path(dump))[:10]
    return [
        "## Data",
        f"Report of stage 3: SHA-256 `{code}`. `expected`: clips of the whole corpus, "
        "where that is known. The hash is over ids, samples and labels.",
        markdown([word.replace("_", " ") for word in HEADER.split()], rows),
        *(["\n".join(found)] if found else []),
        *report["notes"],
    ]


def _row(name: str, split: dict) -> list:
    """Return one line of the table."""
    expected = split["compared"]["expected"]
    return [
        name,
        split["usable"],
        split["listed"],
        split["missing"],
        sum(split["left_out"].values()),
        expected["clips"] if expected else "-",
        f"{split['hours']:.3f}",
        len(split.get("label_counts", {})) or "-",
        len(split.get("classes_without_positives", [])),
        split["content_sha256"][:10],
    ]
