"""Pages outside docs/ as part of the site: the README is its start.

On a code host the same Markdown is read in place, so links are relative to the
checkout; here each target outside docs/ becomes `repo/<its path>` of the site.
"""

import os
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(\]\()([^)#:\s]+)(#[^)\s]*)?(\))")


def source_of(page: str) -> Path:
    """Return the file of the checkout that a page of the site shows."""
    if page == "index.md":
        return ROOT / "README.md"
    return ROOT / page[5:] if page.startswith("repo/") else ROOT / "docs" / page


def page_of(source: Path) -> str:
    """Return where a file of the checkout is in the site."""
    if source == ROOT / "README.md":
        return "index.md"
    inside = source.is_relative_to(ROOT / "docs")
    path = source.relative_to(ROOT / "docs" if inside else ROOT).as_posix()
    return path if inside else f"repo/{path}"


def linked(page: str) -> dict[str, Path]:
    """Return the links of a page that are files of the checkout, with their files."""
    source = source_of(page)
    paths = {m[2] for m in LINK.finditer(source.read_text("utf-8"))}
    files = {path: Path(os.path.abspath(source.parent / path)) for path in paths}
    return {path: file for path, file in files.items() if file.exists()}


def on_files(files, config):
    """Add the README, the pages of `nav` outside docs/, and what any page links to."""
    todo = ["index.md", *re.findall(r"repo/\S+?\.md", str(config["nav"]))]
    todo += [f.src_uri for f in files.documentation_pages()]
    seen = set()
    while todo:
        page = todo.pop()
        if page in seen:
            continue
        seen.add(page)
        if files.get_file_from_path(page) is None:
            source = source_of(page)
            files.append(File.generated(config, page, abs_src_path=str(source)))
        if page.endswith(".md"):
            for file in linked(page).values():
                if file.is_dir():
                    file = file / "README.md"
                if file.is_file() and file.suffix in (".md", ".png"):
                    todo.append(page_of(file))
    return files


def on_page_markdown(markdown, page, config, files):
    """Let links to files of the checkout lead to their pages, others be plain text."""
    known = linked(page.file.src_uri)

    def moved(match):
        file = known.get(match[2])
        if file is None:
            return match[0]
        if file.is_dir():
            file = file / "README.md"
        target = page_of(file)
        if files.get_file_from_path(target) is None:  # code: read it in the checkout
            return f"]({os.path.relpath('index.md', Path(page.file.src_uri).parent)})"
        here = Path(page.file.src_uri).parent
        return f"]({os.path.relpath(target, here)}{match[3] or ''})"

    return LINK.sub(moved, markdown)
