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
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path

from espnet2_sslam.bin.cli import run_main
from espnet2_sslam.store import lock, sha256, write_json

RUNNER = Path(__file__).resolve().with_name("run.pl")
HASH_LIMIT = 64 * 2**20  # bytes; larger files are told apart by size and time
STOPPED = 85  # status of a training that a signal has stopped, with all kept
ENDED = re.compile(r"\(code (-?\d+)\)|with status (\d+)")  # run.pl's, slurm.pl's words
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
LAUNCHER = "espnet2.bin.launch"
signals: list[int] = []  # that have come
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


def listen():
    """From now on signals are noted, and `call` passes them on."""
    for number in SIGNALS:
        # bash lets its jobs in the background ignore the first one, nohup the third
        if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, frame: signals.append(number))


def call(command, stream=None):
    """Run a command and pass signals on to it: its status.

    ESPnet's launcher would die of them and leave the training alone: those that come to
    the whole group wait until its end, and what it has started gets ours.
    """
    launched = LAUNCHER in command
    runner = command[command.index("--cmd") + 1].split()[0] if launched else ""
    ours = Path(shutil.which(runner) or "").resolve() == RUNNER
    process = subprocess.Popen(
        command, stdout=stream, stderr=stream, preexec_fn=hold_back if ours else None
    )
    passed = 0
    while process.poll() is None:
        if passed < len(signals):
            targets = children(process.pid) if launched else [process.pid]
            for target in targets if signals[passed] != signal.SIGINT or ours else ():
                with suppress(ProcessLookupError):
                    os.kill(target, signals[passed])
            passed += bool(targets)
        time.sleep(0.05)
    return process.returncode


def hold_back():
    """Let signals wait until the end, or until a child wants them as run.pl does."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def children(pid):
    """The processes that a process has started."""
    with suppress(FileNotFoundError):
        return list(
            map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        )
    return []


def run(command, log, output):
    """Run the command: "", or what went wrong, as the first log with lines says.

    With a log, what the command prints itself goes to `output`.
    """
    if log is None:
        status = call(command)
        return f"exit status {status}" if status else ""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(output, "w") as stream:
        status = call(command, stream)
    for path in (log, output) if status else ():
        text = path.read_text("utf-8", errors="replace") if path.exists() else ""
        lines = [line.strip() for line in text.splitlines()]
        lines = [line for line in lines if line and line[0] != "#"]  # "#": run.pl's
        if lines:
            errors = [line for line in lines if ERROR.match(line)]
            return f"{(errors or lines)[-1]} (log: {log})"
    return f"exit status {status} (log: {log})" if status else ""


def was_stopped(log):
    """Whether a signal has come, or stopped it as the log's last line says."""
    ends = log is not None and log.exists() and log.read_text("utf-8", errors="replace")
    status = ENDED.search(ends.splitlines()[-1]) if ends else None
    return bool(signals) or (status is not None and str(STOPPED) in status.groups())


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
        listen()
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
