"""What docs/events.md shows works as shown."""

import json
from pathlib import Path

import pytest

from tests.page_case import make_user_folder, read_blocks, run_blocks


def test_the_page_of_events_works_as_shown(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    make_user_folder(tmp_path)
    monkeypatch.chdir(tmp_path)
    blocks = read_blocks("docs/events.md")
    assert [kind for kind, _ in blocks].count("sslam") == 4
    names = run_blocks(blocks)
    assert [len(names["several"]), names["events"][0]._fields[3]] == [2, "confidence"]
    rows = Path("all.tsv").read_text().splitlines()
    assert rows[1].startswith("street.wav\t0.000\t")
    assert len(json.loads(Path("all.json").read_text())) == len(rows) - 1
    for name in ("labels/street.txt", "scores/street.tsv", "two/other.txt", "clip.png"):
        assert Path(name).stat().st_size > 0
    assert "sound 1" in Path("by_class.tsv").read_text()
