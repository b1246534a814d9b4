"""What the data report of stage 3 says, for RESULTS.md."""

import json
from pathlib import Path

from espnet2_sslam.results.files import sha256
from espnet2_sslam.results.tables import markdown


def data_section(dump: Path) -> list[str]:
    """Return heading, table and warnings: clips and hashes of all splits, leaks."""
    path = Path(dump) / "report" / "report.json"
    if not path.exists():
        return ["## Data", "There is no data report (stage 3)."]
    report = json.loads(path.read_text(encoding="utf-8"))
    rows = [
        [
            name,
            split["usable"],
            sum(split["left_out"].values()),
            f"{split['hours']:.3f}",
            len(split.get("label_counts", {})) or "-",
            len(split.get("classes_without_positives", [])),
            split["content_sha256"][:10],
        ]
        for name, split in sorted(report["splits"].items())
    ]
    header = ["split", "clips", "left out", "hours", "classes", "without a positive"]
    warnings = [
        f"- LEAK: {leak['clips']} clips of {leak['split']} are in the training clips "
        f"of {leak['run']}, too."
        for leak in report["leaks"]
    ] + [
        f"- {overlap['clips']} clips of {overlap['split']} were seen in pre-training, "
        "without their labels."
        for overlap in report["pretraining_overlaps"]
    ]
    return [
        "## Data",
        f"Report of stage 3: SHA-256 `{sha256(path)[:10]}`. The hash of a split is "
        "over its ids, samples and labels.",
        markdown([*header, "hash"], rows),
        *(["\n".join(warnings)] if warnings else []),
        *report["notes"],
    ]
