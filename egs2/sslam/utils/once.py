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
REPORT_SECONDS = 30  # between two lines on a running training
EPOCH = re.compile(r"(\d+/\d+)epoch started\.?(.*)")
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
    add("--log", type=Path, help="the command's own log, for progress and errors")
    place = words.index("--") if "--" in words else len(words)
    args = parser.parse_args(words[:place])
    args.command = words[place + 1 :]
    if not args.command:
        raise ValueError("once.py: write -- and a command behind the options")
    return args


def state(path, exclude):
    """What tells two versions of a file or folder apart; None if it is not there.

    Of a file the content, of a large one size and time; of a folder names, sizes and
    times, without hidden entries: they are records like this program's own.
    """
    if not path.exists():
        return None
    if not path.is_dir():
        stat = path.stat()
        large = stat.st_size > HASH_LIMIT
        return [stat.st_size, stat.st_mtime_ns] if large else sha256(path)
    digest = hashlib.sha256()
    skipped = ("__pycache__", exclude)
    for parent, folders, files in os.walk(path, followlinks=True):
        folders[:] = sorted(f for f in folders if f[0] != "." and f not in skipped)
        for name in sorted(f for f in files if f[0] != "."):
            file = os.path.join(parent, name)
            stat = os.stat(file)
            key = f"{os.path.relpath(file, path)}\0{stat.st_size}\0{stat.st_mtime_ns}\n"
            digest.update(key.encode())
    return digest.hexdigest()


def states(paths, exclude):
    """{path: its state}."""
    return {str(path): state(path, exclude) for path in paths}


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


def say(name, text):
    """Print a progress line with the time."""
    print(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} ({name}) {text}", flush=True)


def read_log(path):
    """Text of a log, empty if there is none."""
    return path.read_text("utf-8", errors="replace") if path.exists() else ""


def run(args, output):
    """Run the command: its status. With a log, print the epochs that it reaches."""
    if args.log is None:
        return subprocess.run(args.command).returncode
    args.log.parent.mkdir(parents=True, exist_ok=True)
    shown = None
    with open(output, "w", encoding="utf-8") as stream:
        process = subprocess.Popen(args.command, stdout=stream, stderr=stream)
        while True:
            try:
                return process.wait(REPORT_SECONDS)
            except subprocess.TimeoutExpired:
                epochs = EPOCH.findall(read_log(args.log))
                if epochs and epochs[-1] != shown:
                    shown = epochs[-1]
                    say(args.name, f"epoch {shown[0]}{shown[1].lower()}")


def reason(status, *logs):
    """The line that best says what went wrong: an error of the first log with lines."""
    for log in logs:
        lines = [line.strip() for line in read_log(log).splitlines()]
        lines = [line for line in lines if line and line[0] != "#"]  # "#": run.pl's
        if lines:
            return ([line for line in lines if ERROR.match(line)] or lines)[-1]
    return f"exit status {status}"


def main():
    args = parse(sys.argv[1:])
    for path in args.input:
        if not path.exists():
            raise ValueError(
                f"{args.name}: {path} is not there; run the earlier stages first"
            )
    sources = states(args.input, args.exclude)
    inputs = {"command": identity(args.command), "inputs": sources}
    in_use = f"{args.name}: another run works in {args.dir}; wait for it to end"
    done, output = args.dir / ".done", args.dir / ".output"
    with ExitStack() as locks:
        locks.enter_context(lock(args.dir / ".once.lock", in_use))
        outputs = states(args.output, args.exclude)
        if read(done) == {**inputs, "outputs": outputs}:
            say(args.name, "up to date")
            return
        if args.replaced and is_other_work(args.dir, inputs):
            name = "_".join(args.dir.parts[-3:])
            target = args.replaced / f"{name}.{time.strftime('%Y%m%d-%H%M%S')}"
            args.replaced.mkdir(parents=True, exist_ok=True)
            args.dir.rename(target)
            say(args.name, f"was made from other inputs: moved to {target}")
            # The first lock went away with the folder.
            locks.enter_context(lock(args.dir / ".once.lock", in_use))
        done.unlink(missing_ok=True)
        write_json(args.dir / ".begun", inputs)
        began = time.time()
        say(args.name, f"started (log: {args.log})" if args.log else "started")
        if status := run(args, output):
            where = f" (log: {args.log})" if args.log else ""
            text = reason(status, args.log, output) if args.log else reason(status)
            raise ValueError(f"{args.name}: failed: {text}{where}")
        outputs = states(args.output, args.exclude)
        missing = [path for path, its_state in outputs.items() if its_state is None]
        if missing:
            raise ValueError(
                f"{args.name}: failed: it ended well, but {missing[0]} was not made"
            )
        write_json(done, {**inputs, "outputs": outputs})
        say(args.name, f"done in {time.time() - began:.0f} s")


if __name__ == "__main__":
    run_main(main)
