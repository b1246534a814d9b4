#!/usr/bin/env python3
"""Run a command on this machine with its output in a log, as Kaldi's run.pl does.

    run.pl [options] [JOB=1:4] exp/log/train.JOB.log command arg JOB ...

JOB in the log's name and in the command becomes the number; all jobs run at once. The
options (--gpu N, --mem 4G, --num_threads N, ...) belong to cluster schedulers and have
no effect here. The words of the command are passed on as they are, without a shell.
Exits with 1 if a job fails. The name ends in .pl because ESPnet asks for this name.
"""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path


def parse(words):
    """Return (job numbers or [None], name of the job variable, log, command)."""
    words = list(words)
    name, jobs = "JOB", [None]
    while words and (words[0].startswith("-") or re.match(r"\w+=\d", words[0])):
        word = words.pop(0)
        job = re.fullmatch(r"(\w+)=(\d+)(?::(\d+))?", word)
        if job:
            name = job[1]
            jobs = list(range(int(job[2]), int(job[3] or job[2]) + 1))
        elif not words:
            sys.exit(f"run.pl: {word} needs a value")
        else:
            words.pop(0)
    if len(words) < 2:
        sys.exit("run.pl: usage: run.pl [options] [JOB=1:n] LOG COMMAND [ARG ...]")
    return jobs, name, words[0], words[1:]


def start(log, command):
    """Start the command; return (process, log path, start time)."""
    log = Path(log)
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w", encoding="utf-8") as file:
        file.write(f"# {' '.join(command)}\n# Started at {time.ctime()}\n#\n")
        file.flush()
        try:
            process = subprocess.Popen(command, stdout=file, stderr=file)
        except OSError as error:
            file.write(f"error: cannot start {command[0]}: {error.strerror}\n")
            process = None
    return process, log, time.time()


def finish(process, log, began):
    """Wait for one job, note its end in the log and return its status."""
    # Not wait(): a signal just before it would be seen only after the job's end.
    while process is not None and process.poll() is None:
        time.sleep(0.1)
    status = 127 if process is None else process.returncode
    with open(log, "a", encoding="utf-8") as file:
        seconds = time.time() - began
        file.write(f"# Accounting: time={seconds:.0f} threads=1\n")
        file.write(f"# Ended (code {status}) at {time.ctime()}\n")
    return status


def main():
    """Run all jobs; a signal ends them too."""
    jobs, name, log, command = parse(sys.argv[1:])
    running, signals = [], []

    def stop(number, frame):
        signals.append(number)
        for process, *_ in running:
            if process is not None:
                process.send_signal(number)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    for job in jobs:
        words = [log, *command]
        if job is not None:
            words = [word.replace(name, str(job)) for word in words]
        if not signals:
            running.append(start(words[0], words[1:]))
    if signals:  # one may have come before its job was on the list
        stop(signals[0], None)
    failed = [log for process, log, began in running if finish(process, log, began)]
    if failed:
        sys.exit(
            f"run.pl: {len(failed)} of {len(jobs)} jobs failed, log in {failed[0]}"
        )


if __name__ == "__main__":
    main()
