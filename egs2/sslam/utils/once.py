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

from identity import Contents, changes, described, key_of, short_names

from espnet2_sslam.bin.cli import run_main
from espnet2_sslam.config import differences
from espnet2_sslam.store import lock, note_kept, write_json

RUNNER = Path(__file__).resolve().with_name("run.pl")
STOPPED = 85  # status of a training that a signal has stopped, with all kept
ENDED = re.compile(r"\(code (-?\d+)\)|with status (\d+)")  # run.pl's, slurm.pl's words
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
LAUNCHER = "espnet2.bin.launch"
signals: list[int] = []  # that have come
ERROR = re.compile(r"(error|\w*Error|\w+: error)\b")
WEIGHTS = {".pth", ".ckpt"}


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


def read(path):
    """The record; an empty one when there is none, or not of this program."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        parts = [record[key] for key in ("options", "inputs", "folders", "states")]
    except (OSError, ValueError, TypeError, KeyError):
        return {}
    return record if all(isinstance(part, dict) for part in parts) else {}


def has_work(folder):
    """Whether there is something that somebody would miss."""
    names = [path.name for path in folder.iterdir() if path.name[0] != "."]
    finished, begun = ((folder / name).exists() for name in (".done", ".begun"))
    weights = any(Path(name).suffix in WEIGHTS for name in names)
    return finished or weights or (bool(names) and not begun)


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
        listen()
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
