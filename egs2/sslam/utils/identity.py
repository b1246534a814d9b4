"""What decides the result of a command: its options, the contents of its inputs.

Not where anything lies, how the command is run, or how a config is written. Files of
unchanged state (size, times, inode) are not read again.
"""

import hashlib
import itertools
import math
import os
import re
from contextlib import suppress
from pathlib import Path

import yaml

from espnet2_sslam.config import OPERATIONAL, differences
from espnet2_sslam.store import file_state, read_yaml, sha256

HOW = re.compile(rf"{OPERATIONAL.pattern}|nj|cmd|python|verify")  # a command is run
CUT = re.compile(r"(.+)#t=[^/]+")  # a part of a file
SHOWN = 6  # differences that a line names


def folder_state(folder, exclude):
    """A hash of the names and states of the files in a folder.

    Without hidden entries: they are records like this program's own. Links to folders
    are followed, each folder once; of a dangling link the name counts.
    """
    digest, visited = hashlib.sha256(), set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        place = os.stat(parent)
        if (place.st_dev, place.st_ino) in visited:
            folders.clear()
            continue
        visited.add((place.st_dev, place.st_ino))
        skipped = ("__pycache__", exclude)
        folders[:] = sorted(f for f in folders if f[0] != "." and f not in skipped)
        digest.update(os.fsencode(os.path.relpath(parent, folder)))
        for name in sorted(f for f in files if f[0] != "."):
            line = f"\0{name}\0{state_of(f'{parent}/{name}')}\n"
            digest.update(line.encode(errors="surrogateescape"))
    return f"state {digest.hexdigest()}"


def state_of(path):
    """The state of a file; None if it is not there."""
    try:
        return file_state(path)
    except OSError:
        return None


def listed_state(path):
    """A hash of the states of the files that a list names."""
    digest = hashlib.sha256()
    for line in path.read_bytes().splitlines():
        name = os.fsdecode((line.split(None, 1)[1:] or [b""])[0].strip())
        state = state_of(name)
        if state is None and (part := CUT.fullmatch(name)):
            state = state_of(part[1])
        digest.update(f"{state}\n".encode())
    return f"state {digest.hexdigest()}"


class Contents:
    """What files hold, as hashes; those of unchanged state are known already."""

    def __init__(self, known):
        self.known, self.states = known, {}

    def of(self, path, exclude="", section=None):
        """The content of a file, or the state of a folder; None if it is not there."""
        if path.is_dir():
            return folder_state(path, exclude)
        if not path.exists():
            return None
        if path.suffix in (".yaml", ".yml"):
            return decisive(read_yaml(path), section)
        state = file_state(path)
        before, digest = self.known.get(str(path), (None, None))
        if before != state:
            digest = sha256(path)
        self.states[str(path)] = [state, digest]
        return digest


def decisive(config, section=None):
    """The part of a config that decides the result."""
    if section is not None:
        return number(config.get(section))
    return number({key: config[key] for key in config if not HOW.fullmatch(str(key))})


def short_names(paths):
    """A name for each path, as short as they can be told apart: not where it lies."""
    names = {}
    for path in paths:
        parts = path.parts
        tails = (str(Path(*parts[-length:])) for length in range(1, len(parts) + 1))
        others = [other.parts for other in paths if other != path]
        names[path] = next(
            (t for t in tails if all(Path(t).parts != o[-len(Path(t).parts):]
                                     for o in others)), str(path)
        )  # fmt: skip
    return names


def without_places(value, places):
    """An option's value with the names of the files in it, not their paths."""
    if isinstance(value, dict):
        return {key: without_places(part, places) for key, part in value.items()}
    if isinstance(value, list):
        return [without_places(part, places) for part in value]
    for path, name in places if isinstance(value, str) else ():
        whole = rf"(?<![^\s=:,'\"\[{{]){re.escape(path)}(?=$|[/\s:,'\"\]}}])"
        value = re.sub(whole, lambda _, name=name: name, value)
    return value


def value_of(word):
    """A word as YAML reads it; numbers in any spelling."""
    try:
        value = yaml.safe_load(word)
    except yaml.YAMLError:
        return word
    return number(value if isinstance(value, str | int | float | list | dict) else word)


def number(value):
    """5e-5, text to YAML, as the number that it is; inf, which JSON lacks, as text."""
    if isinstance(value, dict):
        return {str(key): number(part) for key, part in value.items()}
    if isinstance(value, list):
        return [number(part) for part in value]
    if isinstance(value, str):
        with suppress(ValueError):
            value = float(value)
    finite = not isinstance(value, float) or math.isfinite(value)
    return value if finite else str(value)


def options_of(words, config):
    """The options of a command as ESPnet reads them, over those of its config.

    Returns the words before the first option, and the options that decide the result.
    """
    starts = [i for i, word in enumerate(words) if re.match("--[a-z]", word)]
    options = dict(config)
    for start, end in itertools.pairwise([*starts, len(words)]):
        name, values = words[start][2:], words[start + 1 : end]
        if HOW.fullmatch(name) and name not in ("max_epoch", "init_param"):
            continue
        if name.endswith("_conf") and len(values) == 1 and "=" in values[0]:
            key, _, text = values[0].partition("=")
            *sections, key = key.split(".")
            place = options[name] = dict(options.get(name) or {})
            for section in sections:
                place[section] = dict(place.get(section) or {})
                place = place[section]
            place[key] = value_of(text)
        else:
            read = [value_of(word) for word in values]
            options[name] = read[0] if len(read) == 1 else read
    return words[: starts[0] if starts else len(words)], options


def program_of(command):
    """The words of the program itself: behind its launcher's, without interpreter."""
    if "--" in command:
        command = command[command.index("--") + 1 :]
    if re.match(r"python[\d.]*$", Path(command[0]).name):
        command = command[1:]
    return command


def key_of(args, contents):
    """What decides the result, as a record."""
    names = short_names(args.input)
    inputs, config, folders = {}, {}, {}
    words = program_of(args.command)
    for path, name in names.items():
        section = args.section[1] if str(path) == args.section[0] else None
        content = contents.of(path, args.exclude, section)
        if "--config" in words and words[words.index("--config") + 1] == str(path):
            config = content
            max_epoch = read_yaml(path).get("max_epoch")
            config = {**content, **({"max_epoch": max_epoch} if max_epoch else {})}
        elif path.is_dir():
            folders[name] = content
        else:
            inputs[name] = content
    for path, name in short_names(args.listed).items():
        folders[f"files of {name}"] = listed_state(path)
    files = {path: name for path, name in names.items() if not path.is_dir()}
    places = {str(path.parent): path.parent.name for path in files}
    places |= {str(path): name for path, name in files.items()} | {str(args.dir): "DIR"}
    order = sorted(places.items(), key=lambda item: -len(item[0]))
    order = [(path, name) for path, name in order if "/" in path]
    program, options = options_of(words, config)
    return {
        "program": without_places(program, order),
        "options": without_places(options, order),
        "inputs": inputs,
        "folders": folders,
    }


def changes(before, key):
    """(name, old, new) of all that decides the result and differs.

    Not a raised max_epoch, with which a training goes on.
    """
    if not before:
        return [("the record of its inputs", "none, or of an earlier version", "one")]
    found = list(differences("command", before["program"], key["program"]))
    for part, sign in (("options", "--"), ("inputs", ""), ("folders", "")):
        old, new = before[part], key[part]
        for name in sorted(old.keys() | new.keys()):
            pair = old.get(name, "nothing"), new.get(name, "nothing")
            found += differences(f"{sign}{name}", *pair)
    return [row for row in found if not is_longer(*row)]


def is_longer(name, old, new):
    """Whether a difference is a raised number of epochs."""
    numbers = isinstance(old, int | float) and isinstance(new, int | float)
    return name == "--max_epoch" and numbers and new > old


def described(rows):
    """The differences in words, hashes shortened."""

    def short(value):
        text = str(value)
        return text[:8] if re.fullmatch("[0-9a-f]{64}", text) else text

    parts = [f"{name} was {short(old)}, is {short(new)}" for name, old, new in rows]
    more = [f"{len(parts) - SHOWN} more"] if len(parts) > SHOWN else []
    return "; ".join(parts[:SHOWN] + more)
