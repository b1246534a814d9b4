"""Labels as single words, and the table of their names."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import quote, unquote

from espnet2_sslam.corpus.datadir import CLASS_FILE, write_atomically

LABEL_FILE = "label_names.tsv"


def label_word(name: str) -> str:
    """A label as one word: blanks and `%` are percent-encoded, as in a URL.

    Raises:
        ValueError: The label is empty.
    """
    name = name.strip()
    if not name:
        raise ValueError("a label is empty: name it or remove it")
    return re.sub(r"[\s%]", lambda match: quote(match.group(), safe=""), name)


def label_name(word: str) -> str:
    """The label that `label_word` made the word of."""
    return unquote(word)


def unique_words(names: Iterable[str]) -> list[str]:
    """The words of the labels of one clip, each once, in the order given."""
    return list(dict.fromkeys(label_word(name) for name in names if name.strip()))


def write_classes(folder: Path, names: Mapping[str, str]) -> None:
    """Write classes.txt, and label_names.tsv with the name to show for each label.

    Args:
        folder: Directory of the set.
        names: Name to show of each label (one word), in class order.
    """
    write_atomically(Path(folder) / CLASS_FILE, "".join(f"{word}\n" for word in names))
    lines = (f"{word}\t{' '.join(name.split())}\n" for word, name in names.items())
    write_atomically(Path(folder) / LABEL_FILE, "".join(lines))


def read_label_names(folder: Path) -> dict[str, str]:
    """Name to show of each label that has one in label_names.tsv."""
    path = Path(folder) / LABEL_FILE
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines()
    return dict(line.split("\t", 1) for line in lines if "\t" in line)
