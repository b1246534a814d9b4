#!/usr/bin/env python3
"""Run a command unless its finished work is still valid.

    once.py "phase 1" exp/x --input a.yaml --output exp/x/latest.pth -- CMD ...

DIR/.done records what decides the result: the command's options without those on how it
is run, the content of every input, and what came out. Work is valid while all of it is
the same; work that was begun from the same is continued in place. What was made from
something else is moved to --replaced first, so that nothing resumes from it and nothing
is lost: with --ask only when --replace says so.
"""

import argparse
import hashlib
import itertools
import json
import math
import os
import re
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import yaml

from espnet2_sslam.bin.cli import run_main
from espnet2_sslam.config import OPERATIONAL, differences
from espnet2_sslam.store import (
    file_state,
    lock,
    note_kept,
    read_yaml,
    sha256,
    write_json,
)

STOPPED = 85  # status of a training that a signal has stopped, with all kept
ERROR = re.compile(r"(error|\w*Error|\w+: error)\b")
HOW = re.compile(rf"{OPERATIONAL.pattern}|nj|python|verify")  # a command is run
WEIGHTS = {".pth", ".ckpt"}
CUT = re.compile(r"(.+)#t=[^/]+")  # a part of a file
SHOWN = 6  # differences that a line names


def parse(words):
    """Options, and `command`: the words behind the first `--`."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s NAME DIR [options] -- CMD ...",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    files = {"type": Path, "nargs": "+", "action": "extend", "default": []}
    flag = {"type": lambda word: word == "true", "default": False}
    add("name", metavar="NAME", help="what the progress lines call the work")
    add("dir", metavar="DIR", type=Path, help="where the record of the work goes")
    add("--input", **files, help="files or folders read; YAML counts as parsed")
    add("--section", nargs=2, default=(None, None), metavar=("FILE", "KEY"),
        help="of this YAML file only the part KEY is read")  # fmt: skip
    add("--listed", **files, help="lists `<id> <path>` whose files are looked at")
    add("--output", **files, help="what it makes")
    add("--exclude", default="", help="sub-folder that belongs to somebody else")
    add("--replaced", type=Path, help="folder for earlier work from other inputs")
    add("--ask", action="store_true", help="do not move earlier work unasked")
    add("--replace", **flag, help="true: move it, as --ask was answered")
    add("--keep", **flag, help="true: go on with it")
    add("--verify", **flag, help="true: read all files again, whatever their state")
    add("--log", type=Path, help="the command's own log, where errors are looked for")
    place = words.index("--") if "--" in words else len(words)
    args = parser.parse_args(words[:place])
    args.command = words[place + 1 :]
    if not args.command:
        raise ValueError("once.py: write -- and a command behind the options")
    if args.keep and args.replace:
        raise ValueError("--keep true and --replace true exclude each other")
    return args


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
        for name in sorted(f for f in files if f[0] != "."):
            path = os.path.join(parent, name)
            state = file_state(path) if os.path.exists(path) else None
            line = f"{os.path.relpath(path, folder)}\0{state}\n"
            digest.update(line.encode(errors="surrogateescape"))
    return f"state {digest.hexdigest()}"


def listed_state(path):
    """A hash of the states of the files that a list names."""
    digest = hashlib.sha256()
    for line in path.read_bytes().splitlines():
        name = os.fsdecode((line.split(None, 1)[1:] or [b""])[0].strip())
        try:
            state = file_state(name)
        except OSError:
            part = CUT.fullmatch(name)
            state = file_state(part[1]) if part and os.path.exists(part[1]) else None
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
    """5e-5, which YAML takes for text, as the number that it is; inf, which JSON lacks."""
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


def read(path):
    """The record; an empty one when there is none, or not of this program."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return record if "options" in record else {}
    except (OSError, ValueError):
        return {}


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


def has_work(folder):
    """Whether there is something that somebody would miss."""
    names = [path.name for path in folder.iterdir() if path.name[0] != "."]
    finished, begun = ((folder / name).exists() for name in (".done", ".begun"))
    weights = any(Path(name).suffix in WEIGHTS for name in names)
    return finished or weights or (bool(names) and not begun)


def run(command, log, output):
    """Run the command: "", or what went wrong, as the first log with lines says.

    With a log, what the command prints itself goes to `output`.
    """
    if log is None:
        status = subprocess.run(command).returncode
        return f"exit status {status}" if status else ""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(output, "w") as stream:
        status = subprocess.run(command, stdout=stream, stderr=stream).returncode
    for path in (log, output) if status else ():
        text = path.read_text("utf-8", errors="replace") if path.exists() else ""
        lines = [line.strip() for line in text.splitlines()]
        lines = [line for line in lines if line and line[0] != "#"]  # "#": run.pl's
        if lines:
            errors = [line for line in lines if ERROR.match(line)]
            return f"{(errors or lines)[-1]} (log: {log})"
    return f"exit status {status} (log: {log})" if status else ""


def was_stopped(log):
    """Whether the launcher's last line in the log says that a signal stopped it."""
    ends = log is not None and log.exists() and log.read_text("utf-8", errors="replace")
    return bool(ends) and f"(code {STOPPED})" in ends.splitlines()[-1]


class Work:
    """The work of one folder: what is known of it, and what is to be done."""

    def __init__(self, args, key, contents):
        self.args, self.key, self.contents = args, key, contents
        self.done, self.begun = args.dir / ".done", args.dir / ".begun"
        self.locks = ExitStack()
        self.moved = None

    def say(self, text):
        time_ = time.strftime("%Y-%m-%dT%H:%M:%S")
        print(f"{time_} ({self.args.name}) {text}", flush=True)

    def lock(self):
        in_use = f"{self.args.name}: another run works in {self.args.dir}; wait for it"
        self.locks.enter_context(lock(self.args.dir / ".once.lock", in_use))

    def outputs(self):
        """What it made, by name."""
        made = {}
        for path, name in short_names(self.args.output).items():
            try:
                made[name] = self.contents.of(path, self.args.exclude)
            except ValueError:
                made[name] = "unreadable"
        return made

    def record(self, path, **more):
        write_json(path, {**self.key, **more, "states": self.contents.states})

    def decide(self):
        """Whether the command must run; moves earlier work out of the way."""
        args, key = self.args, self.key
        done = read(self.done)
        before = done or read(self.begun)
        found = changes(before, key)
        longer = bool(before) and not found and before["options"] != key["options"]
        if done:
            made = self.outputs()
            found += differences("output", done["outputs"], made)
            again = args.verify and key["folders"]
            if not (found or longer or again):
                if self.contents.states != done["states"]:
                    self.record(self.done, outputs=made, kept=done["kept"])
                self.say("up to date")
                return False
        if longer:
            epochs = [record["options"]["max_epoch"] for record in (before, key)]
            text = "max_epoch {} -> {}: goes on, along the schedule of that length"
            self.say(text.format(*epochs))
        there = any(path.name[0] != "." for path in args.dir.iterdir())
        if not (args.replaced and found and there):
            return True
        # That a folder has another state does not say that its content has.
        asked = [row for row in found if not str(row[2]).startswith("state ")]
        if asked and args.ask and not args.replace and has_work(args.dir):
            if args.keep:
                return self.keep(asked, done)
            raise ValueError(
                f"{args.name}: {args.dir} was made from something else: "
                f"{described(asked)}. Nothing was changed. --replace true moves it to "
                f"{args.replaced} and begins anew, --keep true goes on with it"
            )
        self.move()
        return True

    def keep(self, found, done):
        """Go on with what is there, as the record then says."""
        self.say(f"kept: {described(found)}")
        if not done:
            return True  # the training notes it
        kept = note_kept(self.args.dir, [(n, str(a), str(b)) for n, a, b in found])
        self.record(self.done, outputs=self.outputs(), kept=kept)
        return False

    def move(self):
        """Move earlier work to --replaced."""
        args = self.args
        name = "_".join(args.dir.parts[-3:])
        self.moved = args.replaced / f"{name}.{time.strftime('%Y%m%d-%H%M%S')}"
        args.replaced.mkdir(parents=True, exist_ok=True)
        args.dir.rename(self.moved)
        self.say(f"was made from other inputs: moved to {self.moved}")
        self.lock()  # the first one went away with the folder

    def put_back(self):
        """Undo the move, as nothing came of what should have replaced it."""
        if self.moved is None or any(
            path.suffix in WEIGHTS for path in self.args.dir.iterdir()
        ):
            return ""
        failed = self.moved.with_name(f"{self.moved.name}.failed")
        self.args.dir.rename(failed)
        self.moved.rename(self.args.dir)
        return f"; what was there before is back, what failed is in {failed}"

    def run(self):
        """Run the command and record what it made."""
        args = self.args
        self.done.unlink(missing_ok=True)
        self.record(self.begun)
        began = time.time()
        self.say(f"started (log: {args.log})" if args.log else "started")
        if problem := run(args.command, args.log, args.dir / ".output"):
            if was_stopped(args.log):
                self.say("stopped by a signal, all is kept: the same command goes on")
                sys.exit(STOPPED)
            raise ValueError(f"{args.name}: failed: {problem}{self.put_back()}")
        outputs = self.outputs()
        missing = [path for path in args.output if not path.exists()]
        if missing:
            raise ValueError(
                f"{args.name}: failed: it ended well, but {missing[0]} was not made"
            )
        self.record(self.done, outputs=outputs, kept=note_kept(args.dir, []))
        self.say(f"done in {time.time() - began:.0f} s")


def main():
    args = parse(sys.argv[1:])
    for path in [*args.input, *args.listed]:
        if not path.exists():
            raise ValueError(
                f"{args.name}: {path} is not there; run the earlier stages first"
            )
    known = {} if args.verify else {
        **read(args.dir / ".begun").get("states", {}),
        **read(args.dir / ".done").get("states", {}),
    }  # fmt: skip
    contents = Contents(known)
    work = Work(args, key_of(args, contents), contents)
    with work.locks:
        work.lock()
        if work.decide():
            work.run()


if __name__ == "__main__":
    run_main(main)
