#!/usr/bin/env python3
"""Run a command unless its finished work is still valid.

    once.py --name "phase 1" --dir exp/x --input a.yaml --output exp/x/b.pth -- CMD ...

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
import threading
import time
from contextlib import ExitStack
from pathlib import Path

from espnet2_sslam.store import lock, sha256, write_json

HASH_LIMIT = 64 * 2**20  # bytes; larger files are told apart by size and time
REPORT_SECONDS = 30  # between two lines on a running training
EPOCH = re.compile(r"(\d+/\d+epoch) started\.?(.*)")


def get_parser():
    parser = argparse.ArgumentParser(
        usage="%(prog)s [options] -- CMD ...",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--name", required=True, help="what the progress lines call the work")
    add("--dir", type=Path, required=True, help="where the record of the work goes")
    add("--input", type=Path, action="append", default=[], help="file or folder read")
    add("--output", type=Path, action="append", default=[], help="what it makes")
    add("--exclude", default="", help="sub-folder that belongs to somebody else")
    add("--replaced", type=Path, help="folder for earlier work from other inputs")
    add("--log", type=Path, help="the command's own log, for progress and errors")
    return parser


def parse(words):
    """Return the options with `command`, the words behind the first `--`."""
    if "--" not in words or words[-1] == "--":
        fail("once.py: write -- and a command behind the options")
    args = get_parser().parse_args(words[: words.index("--")])
    args.command = words[words.index("--") + 1 :]
    return args


def file_state(path):
    """Return what tells two versions of a file apart: its hash, or size and time."""
    stat = path.stat()
    if stat.st_size > HASH_LIMIT:
        return [stat.st_size, stat.st_mtime_ns]
    return sha256(path)


def tree_state(folder, exclude):
    """Return a hash over names, sizes and times of the files below a folder.

    Hidden entries are left out: they are records like this program's own.
    """
    left_out = ("__pycache__", exclude)
    digest = hashlib.sha256()
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(f for f in folders if f[0] != "." and f not in left_out)
        for name in sorted(files):
            if name[0] != ".":
                stat = os.stat(os.path.join(parent, name))
                key = os.path.relpath(os.path.join(parent, name), folder)
                digest.update(f"{key}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def states(paths, exclude):
    """Return {path: state}, None for what is not there."""
    found = {}
    for path in paths:
        if path.is_dir():
            found[str(path)] = tree_state(path, exclude)
        else:
            found[str(path)] = file_state(path) if path.exists() else None
    return found


def read(path):
    """Return the record, or None when there is none or it was cut off."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def say(name, text):
    """Print a progress line with the time."""
    print(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} ({name}) {text}", flush=True)


def fail(line):
    """Exit with 1 and the line, whole even where jobs share the error stream.

    `sys.exit(line)` and `print` write the newline by itself: two jobs that fail at the
    same time could get both their lines into one.
    """
    sys.stderr.write(f"{line}\n")
    sys.exit(1)


def move_away(folder, replaced):
    """Move earlier work out of the way and return where it went."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    target = replaced / f"{'_'.join(folder.parts[-3:])}.{stamp}"
    target.parent.mkdir(parents=True, exist_ok=True)
    os.rename(folder, target)
    return target


def last_line(*paths):
    """Return the line that best says what went wrong."""
    for path in paths:
        if path is not None and path.exists():
            text = path.read_text(encoding="utf-8", errors="replace")
            lines = [x.strip() for x in text.splitlines() if x.strip()]
            lines = [x for x in lines if not x.startswith("#")]
            errors = [x for x in lines if re.match(r"(error|\w*Error|\w+: error)\b", x)]
            if errors or lines:
                return (errors or lines)[-1]
    return "no output"


def watch(name, log, ended):
    """Print the epoch that a training log has reached, now and then."""
    shown = None
    while not ended.wait(REPORT_SECONDS):
        try:
            found = EPOCH.findall(log.read_text(encoding="utf-8", errors="replace"))
        except OSError:
            continue
        if found and found[-1] != shown:
            shown = found[-1]
            say(name, f"epoch {shown[0].removesuffix('epoch')}{shown[1].lower()}")


def run(args):
    """Run the command; return its status. With a log, its own output goes beside it."""
    if args.log is None:
        return subprocess.run(args.command).returncode
    args.log.parent.mkdir(parents=True, exist_ok=True)
    ended = threading.Event()
    watcher = threading.Thread(target=watch, args=(args.name, args.log, ended))
    watcher.start()
    try:
        with open(args.dir / ".output", "w", encoding="utf-8") as output:
            return subprocess.run(args.command, stdout=output, stderr=output).returncode
    finally:
        ended.set()
        watcher.join()


def identity(command):
    """Return the words that decide the result, not those on how the job is run."""
    if "--" in command:
        command = command[command.index("--") + 1 :]  # behind the launcher's options
    if "--nj" in command:
        place = command.index("--nj")
        command = command[:place] + command[place + 2 :]
    return command


def is_from_other_inputs(folder, inputs):
    """Say whether the folder holds work, but not this work unfinished."""
    if (folder / ".done").exists():
        return True
    entries = {path.name for path in folder.iterdir()} - {".once.lock"}
    return bool(entries) and read(folder / ".begun") != inputs


def work(args, inputs):
    """Run the command and record its success."""
    began = time.time()
    say(args.name, f"started (log: {args.log})" if args.log else "started")
    status = run(args)
    if status:
        reason = f"exit status {status}"
        if args.log:
            reason = f"{last_line(args.log, args.dir / '.output')} (log: {args.log})"
        fail(f"{args.name}: failed: {reason}")
    outputs = states(args.output, args.exclude)
    for path, state in outputs.items():
        if state is None:
            fail(f"{args.name}: failed: it ended well, but {path} was not made")
    write_json(args.dir / ".done", {**inputs, "outputs": outputs})
    say(args.name, f"done in {time.time() - began:.0f} s")


def main():
    args = parse(sys.argv[1:])
    for path in args.input:
        if not path.exists():
            fail(f"{args.name}: {path} is not there; run the earlier stages first")
    inputs = {
        "command": identity(args.command),
        "inputs": states(args.input, args.exclude),
    }
    in_use = f"{args.name}: another run works in {args.dir}; wait for it to end"
    with ExitStack() as locks:
        locks.enter_context(lock(args.dir / ".once.lock", in_use))
        outputs = states(args.output, args.exclude)
        if read(args.dir / ".done") == {**inputs, "outputs": outputs}:
            say(args.name, "up to date")
            return
        if args.replaced and is_from_other_inputs(args.dir, inputs):
            target = move_away(args.dir, args.replaced)
            say(args.name, f"was made from other inputs: moved to {target}")
            # the first lock went away with the folder
            locks.enter_context(lock(args.dir / ".once.lock", in_use))
        (args.dir / ".done").unlink(missing_ok=True)
        write_json(args.dir / ".begun", inputs)
        work(args, inputs)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except ValueError as error:
        fail(str(error))
    except OSError as error:
        fail(f"once.py: {error.strerror or error}: {error.filename or ''}")
