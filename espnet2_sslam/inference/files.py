"""What a user names (files, folders, lists) -> the audio files to read, each once."""

import logging
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

# What libsndfile decodes, by the usual suffixes; a folder's other files are no audio.
SUFFIXES = frozenset(
    ".wav .wave .bwf .rf64 .w64 .flac .ogg .oga .opus .mp3 .mp2 .aif .aiff .aifc .au "
    ".snd .caf .sph .nist .voc .avr .paf .pvf .ircam .sf .iff .svx .8svx .sd2".split()
)
# Audio that it does not decode: left out of folders as well, but not silently.
OTHER_AUDIO = frozenset(
    ".m4a .m4b .aac .mp4 .wma .webm .mka .mkv .amr .ape .wv .ac3 .3gp .mpc".split()
)
STDIN = "-"
NAMES = ("path", "file")


class AudioInput(NamedTuple):
    """An audio file and what it is called in the output."""

    path: str
    name: str


def collect_files(
    paths: Sequence[str], lists: Sequence[str] = (), names: str = "path"
) -> list[AudioInput]:
    """Return the audio files of files, folders and lists, in the order given.

    Folders are searched to any depth, in sorted order, for the suffixes of `SUFFIXES`;
    hidden files and folders are left out, links are followed, each folder once. A file
    that is named itself is taken whatever it is called, even if it does not exist (the
    reader says so). A file that is named twice is taken once.

    Args:
        paths: Files and folders.
        lists: Text files with a path per line, "-" for standard input; or, if the name
            ends in .scp, with `<name> <path>` per line as in Kaldi. Relative paths
            are relative to the working directory, as Kaldi's are.
        names: "path": a file is called by its path as given (folder included), or by
            its name in the .scp; "file": by its last part only.

    Raises:
        ValueError: No file found, two files of one name, or a list with a bad line.
        OSError: A list or a folder that cannot be read.
    """
    if names not in NAMES:
        raise ValueError(f"names must be one of {', '.join(NAMES)}, got {names!r}")
    left_out: Counter = Counter()
    found: dict[str, AudioInput] = {}
    seen = set()
    real_folder = lru_cache(maxsize=4096)(os.path.realpath)
    for item, named in _everything(paths, lists, left_out):
        folder, last = os.path.split(item.path)
        place = real_folder(folder), last
        if not named and place in seen:
            continue
        seen.add(place)
        if names == "file" and not named:
            item = item._replace(name=last)
        other = found.setdefault(item.name, item)
        if other.path != item.path:
            raise ValueError(
                f"two files are called {item.name}: {other.path} and {item.path}; "
                "give them different names (a list NAME.scp has its own)"
            )
    if left_out:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in left_out.items())
        logging.warning("left out of folders, cannot be decoded: %s", kinds)
    if not found:
        raise ValueError(_nothing(paths, lists))
    return list(found.values())


def _everything(paths, lists, left_out) -> Iterator[tuple[AudioInput, bool]]:
    """Each file that is named somehow, and whether its name is from a .scp."""
    for path in paths:
        yield from ((item, False) for item in _expand(path, left_out))
    for path in lists:
        for number, line in enumerate(_lines(path), start=1):
            if path.endswith(".scp"):
                yield _scp_entry(line, f"{path}, line {number}"), True
            elif line:
                yield from ((item, False) for item in _expand(line, left_out))


def _expand(path: str, left_out: Counter) -> Iterator[AudioInput]:
    """The file itself, or the audio files in a folder."""
    path = path[2:] if path.startswith("./") and len(path) > 2 else path
    if not os.path.isdir(path):
        yield AudioInput(path, path)
        return
    found = []
    for folder, name in _walk(path):
        suffix = os.path.splitext(name)[1].lower()
        if suffix in SUFFIXES:
            found.append(os.path.join(folder, name))
        elif suffix in OTHER_AUDIO:
            left_out[suffix] += 1
    for name in sorted(found):
        yield AudioInput(name, name)


def _walk(top: str) -> Iterator[tuple[str, str]]:
    """(folder, file name) below `top`, without hidden ones, each real folder once."""

    def fail(error: OSError) -> None:
        raise error

    visited = set()
    for folder, folders, files in os.walk(top, onerror=fail, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in visited:
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            if not name.startswith("."):
                yield folder, name


def _lines(path: str) -> list[str]:
    """The lines of a list, without the blanks around them."""
    if path == STDIN:
        data = sys.stdin.buffer.read()
    else:
        with open(path, "rb") as file:
            data = file.read()
    if b"\0" in data:
        raise ValueError(f"{path} is not a text file: --list needs a path per line")
    # Names that are not UTF-8 come back as the same bytes when the file is opened.
    text = data.decode("utf-8-sig", errors="surrogateescape")
    return [line.strip() for line in text.rstrip("\n").split("\n")]


def _scp_entry(line: str, where: str) -> AudioInput:
    """`<name> <path>` of a wav.scp."""
    name, _, path = line.partition(" ") if "\t" not in line else line.partition("\t")
    path = path.strip()
    if not path:
        raise ValueError(f"{where}: need `<name> <path>`, got {line!r}")
    if path.endswith("|"):
        raise ValueError(
            f"{where}: commands are not run, {path!r}: write the audio to a file first"
        )
    return AudioInput(path, name)


def _nothing(paths: Sequence[str], lists: Sequence[str]) -> str:
    """Why there is nothing to do."""
    given = [*paths, *lists]
    if not given:
        return "no audio given: name files, folders or a --list"
    return (
        f"no audio files in {', '.join(given)}: folders are searched for "
        ".wav, .flac, .ogg, .mp3 and whatever else libsndfile reads"
    )
