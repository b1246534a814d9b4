"""What the README and the pages of docs/ show works as shown.

Python blocks and lines `sslam ...` run here, in a folder with the files that the pages
name. Any other block of commands says before it, in a comment, which test runs it
(`<!-- run by tests/test_x.py -->`, once for a page in `<!-- blocks: ... -->`) or why
none does (`<!-- not run here: the reason -->`).
"""

import ast
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from espnet2_sslam.bin import sslam
from espnet2_sslam.checkpoint import save_model
from tests.checkpoint_case import FINETUNED, small_classifier, unpack

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "egs2/sslam/README.md",
    ROOT / "egs2/sslam/asr/README.md",
    *(p for p in [ROOT / "CONTRIBUTING.md"] if p.exists()),
]
BLOCK = re.compile(r"(?:^<!-- ([^>]*) -->\n)?^```(\w*)\n(.*?)^```$", re.M | re.S)


@dataclass
class Block:
    """A fenced block: its language, its lines, and what the comment before it says."""

    language: str
    text: str
    remark: str

    @property
    def commands(self) -> list[str]:
        """Commands, continued lines joined and remarks behind them left out."""
        text = self.text.replace("\\\n", " ")
        lines = [re.sub(r"(^|\s)#.*", "", line).strip() for line in text.splitlines()]
        return [line for line in lines if line]


def blocks_of(page):
    text = page.read_text("utf-8")
    whole = re.search(r"<!-- blocks: ([^>]*) -->", text)
    default = whole[1] if whole else ""
    return [Block(m[2], m[3], m[1] or default) for m in BLOCK.finditer(text)]


BLOCKS = {str(page.relative_to(ROOT)): blocks_of(page) for page in PAGES}
RUN_HERE = {
    page: blocks
    for page, all_blocks in BLOCKS.items()
    if (
        blocks := [
            b
            for b in all_blocks
            if not b.remark
            and (b.language == "python" or b.commands[0].startswith("sslam "))
        ]
    )
}


@pytest.fixture
def user_folder(tmp_path, monkeypatch):
    """Go to a folder with the files that the pages name."""
    rng = np.random.default_rng(0)
    for name in ("clip.wav", "other.flac", "recordings/street.wav"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, rng.uniform(-0.5, 0.5, 24_000).astype("float32"), 16_000)
    unpack(FINETUNED, tmp_path).rename(tmp_path / "EAT-base_epoch30_ft.pt")
    rows = [f"{index},l{index},sound {index}" for index in range(5)]
    table = "\n".join(["index,mid,display_name", *rows])
    (tmp_path / "class_labels_indices.csv").write_text(table)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", RUN_HERE)
def test_python_and_the_commands_of_a_page_run_in_their_order(page, user_folder):
    save_model(small_classifier(), "models/sslam")
    names = {}
    for block in RUN_HERE[page]:
        if block.language == "python":
            exec(compile(block.text, page, "exec"), names)
            continue
        for command in block.commands:
            words = shlex.split(command)
            if words[1] == "convert":
                shutil.rmtree("models/sslam", ignore_errors=True)
            sslam.main(words[1:])
            if "-o" in words:
                assert Path(words[words.index("-o") + 1]).exists(), command
    if page == "docs/quick-start.md":
        assert names["features"].ndim == 1 and len(names["labels"]) == 2


@pytest.mark.parametrize("page", BLOCKS)
def test_every_block_of_a_page_is_run_or_says_why_not(page):
    text = (ROOT / page).read_text("utf-8")
    for block in BLOCKS[page]:
        first = block.text.split("\n")[0]
        if block.language == "python":
            ast.parse(block.text)
        elif block.language == "yaml":
            assert isinstance(yaml.safe_load(block.text), dict), first
        elif block.language not in ("sh", "bash"):
            assert not block.commands[0].startswith(("sslam ", "./", "make ")), first
        if block.remark.startswith("run by "):
            for name in re.findall(r"tests/\w+\.py", block.remark):
                assert (ROOT / name).is_file(), f"{first}: {name} is not there"
            assert "tests/" in block.remark, first
        elif block.language in ("sh", "bash") and block.remark:
            assert re.match(r"not run here: \w+ .{10,}", block.remark, re.S), first
        elif block.language in ("sh", "bash"):
            other = [c for c in block.commands if not c.startswith("sslam ")]
            assert not other, f"{page}: which test runs {other[0]}?"
    loose = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    assert not re.findall(r"^    +(?:sslam|\./|make|pip|python) .*", loose, re.M)


def test_the_readme_is_short_enough_to_be_read():
    words = (ROOT / "README.md").read_text("utf-8").split()
    assert len(words) <= 1250


@pytest.mark.parametrize("page", BLOCKS)
def test_links_lead_to_files_and_headings_that_exist(page):
    here = (ROOT / page).parent
    for path, anchor in re.findall(r"\]\(([^)#:\s]*)(#[^)\s]+)?\)", read(page)):
        target = here / path if path else ROOT / page
        assert target.exists(), f"{page}: {path}"
        if anchor:
            titles = re.findall(r"^#+ (.*)$", target.read_text("utf-8"), re.M)
            assert anchor[1:] in map(slug, titles), f"{page}: {path}{anchor}"


def read(page):
    """The page without its blocks and its code between backquotes."""
    text = BLOCK.sub("", (ROOT / page).read_text("utf-8"))
    return re.sub(r"`[^`\n]*`", "", text)


def slug(title):
    """The anchor that a heading gets."""
    return re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")
