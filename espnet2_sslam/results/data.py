"""What the data report of stage 3 says, for RESULTS.md."""

import json
from pathlib import Path

from espnet2_sslam.results.files import sha256


def data_section(dump: Path) -> list[str]:
    """Return heading and text on the data: hash of the report."""
    path = Path(dump) / "report" / "report.json"
    if not path.exists():
        return ["## Data", "There is no data report (stage 3)."]
    json.loads(path.read_text(encoding="utf-8"))
    return ["## Data", f"Data report: SHA-256 `{sha256(path)}`."]
