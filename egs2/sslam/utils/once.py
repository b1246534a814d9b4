#!/usr/bin/env python3
"""Run a command unless its finished work is still valid.

    once.py "phase 1" exp/x --input a.yaml --output exp/x/latest.pth -- CMD ...

Work is valid when the command line, the inputs (files or folders) and the outputs are
the same as when the command last succeeded; DIR/.done records them and is written only
then. Work that was begun with the same command and inputs is continued in place. Work
made from something else is moved to --replaced first, so that nothing resumes from it
and nothing is lost.
"""

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from espnet2_sslam.bin.cli import run_main
from espnet2_sslam.store import lock, sha256, write_json

HASH_LIMIT = 64 * 2**20  # bytes; larger files are told apart by size and time
STOPPED = 85  # status of a training that a signal has stopped, with all kept
ERROR = re.compile(r"(error|\w*Error|\w+: error)\b")


def parse(words):
    """Options, and `command`: the words behind the first `--`."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s NAME DIR [options] -- CMD ...",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    files = {"type": Path, "nargs": "+", "action": "extend", "default": []}
    add("name", metavar="NAME", help="what the progress lines call the work")
    add("dir", metavar="DIR", type=Path, help="where the record of the work goes")
    add("--input", **files, help="files or folders read")
    add("--output", **files, help="what it makes")
    add("--exclude", default="", help="sub-folder that belongs to somebody else")
    add("--replaced", type=Path, help="folder for earlier work from other inputs")
    add("--log", type=Path, help="the command's own log, where errors are looked for")
    place = words.index("--") if "--" in words else len(words)
    args = parser.parse_args(words[:place])
    args.command = words[place + 1 :]
    if not args.command:
        raise ValueError("once.py: write -- and a command behind the options")
    return args


def states(paths, exclude):
    """What tells two versions of each file or folder apart; None if it is not there.

    Of a file the content, of a large one size and time; of a folder names, sizes and
    times, without hidden entries: they are records like this program's own. Links to
    folders are followed, each folder once; of a dangling link the name counts.
    """

    def state(path):
        if path.is_dir():
            digest, visited = hashlib.sha256(), set()
            for parent, folders, files in os.walk(path, followlinks=True):
                place = os.stat(parent)
                if (place.st_dev, place.st_ino) in visited:
                    folders.clear()
                    continue
                visited.add((place.st_dev, place.st_ino))
                skipped = ("__pycache__", exclude)
                folders[:] = sorted(
                    f for f in folders if f[0] != "." and f not in skipped
                )
                for name in sorted(f for f in files if f[0] != "."):
                    file = os.path.join(parent, name)
                    stat = os.stat(file, follow_symlinks=os.path.exists(file))
                    key = (os.path.relpath(file, path), stat.st_size, stat.st_mtime_ns)
                    line = "{}\0{}\0{}\n".format(*key)
                    digest.update(line.encode(errors="surrogateescape"))
            return digest.hexdigest()
        if not path.exists():
            return None
        stat = path.stat()
        large = stat.st_size > HASH_LIMIT
        return [stat.st_size, stat.st_mtime_ns] if large else sha256(path)

    return {str(path): state(path) for path in paths}


def read(path):
    """The record; None when there is none or it was cut off."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def identity(command):
    """The words that decide the result, not those on how the job is run."""
    if "--" in command:
        command = command[command.index("--") + 1 :]  # behind the launcher's options
    if "--nj" in command:
        place = command.index("--nj")
        command = command[:place] + command[place + 2 :]
    return command


def is_other_work(folder, inputs):
    """Whether the folder holds work, but not this work unfinished."""
    names = {path.name for path in folder.iterdir()} - {".once.lock"}
    return ".done" in names or (bool(names) and read(folder / ".begun") != inputs)


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


def main():
    args = parse(sys.argv[1:])

    def say(text):
        time_ = time.strftime("%Y-%m-%dT%H:%M:%S")
        print(f"{time_} ({args.name}) {text}", flush=True)

    for path in args.input:
        if not path.exists():
            raise ValueError(
                f"{args.name}: {path} is not there; run the earlier stages first"
            )
    sources = states(args.input, args.exclude)
    inputs = {"command": identity(args.command), "inputs": sources}
    in_use = f"{args.name}: another run works in {args.dir}; wait for it to end"
    done = args.dir / ".done"
    with ExitStack() as locks:
        locks.enter_context(lock(args.dir / ".once.lock", in_use))
        outputs = states(args.output, args.exclude)
        if read(done) == {**inputs, "outputs": outputs}:
            say("up to date")
            return
        if args.replaced and is_other_work(args.dir, inputs):
            name = "_".join(args.dir.parts[-3:])
            target = args.replaced / f"{name}.{time.strftime('%Y%m%d-%H%M%S')}"
            args.replaced.mkdir(parents=True, exist_ok=True)
            args.dir.rename(target)
            say(f"was made from other inputs: moved to {target}")
            # The first lock went away with the folder.
            locks.enter_context(lock(args.dir / ".once.lock", in_use))
        done.unlink(missing_ok=True)
        write_json(args.dir / ".begun", inputs)
        began = time.time()
        say(f"started (log: {args.log})" if args.log else "started")
        if problem := run(args.command, args.log, args.dir / ".output"):
            if was_stopped(args.log):
                say("stopped by a signal, all is kept: the same command goes on")
                sys.exit(STOPPED)
            raise ValueError(f"{args.name}: failed: {problem}")
        outputs = states(args.output, args.exclude)
        missing = [path for path, its_state in outputs.items() if its_state is None]
        if missing:
            raise ValueError(
                f"{args.name}: failed: it ended well, but {missing[0]} was not made"
            )
        write_json(done, {**inputs, "outputs": outputs})
        say(f"done in {time.time() - began:.0f} s")


if __name__ == "__main__":
    run_main(main)
