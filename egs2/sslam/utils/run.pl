#!/usr/bin/env python3
"""Run a command on this machine with its output in a log, as Kaldi's run.pl does.

    run.pl [options] exp/log/train.log command arg ...

The options (--gpu N, --mem 4G, --num_threads N, ...) belong to cluster schedulers and
have no effect here. The words of the command are passed on as they are, without a
shell. Exits with 1 if it fails. The name ends in .pl because ESPnet asks for this name.
"""

import signal
import subprocess
import sys
import time
from pathlib import Path


def main():
    """Run the command; a signal ends it too."""
    words = sys.argv[1:]
    while words[:1] and words[0].startswith("-"):
        words = words[2:]
    if len(words) < 2:
        sys.exit("run.pl: usage: run.pl [--option value ...] LOG COMMAND [ARG ...]")
    log, command, process = Path(words[0]), words[1:], None
    signals = []

    def stop(number, frame):
        signals.append(number)
        if process is not None:
            process.send_signal(number)

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
    for number in numbers:
        # nohup's choice to ignore one is its user's; bash's, of Ctrl-C, is not
        if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)  # once.py has blocked them
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w", encoding="utf-8", buffering=1) as file:
        file.write(f"# {' '.join(command)}\n# Started at {time.ctime()}\n#\n")
        began, status = time.time(), 127
        try:
            process = subprocess.Popen(command, stdout=file, stderr=file)
        except OSError as error:
            file.write(f"error: cannot start {command[0]}: {error.strerror}\n")
        if process is not None:
            if signals:  # it came before there was a process
                process.send_signal(signals[0])
            # Not wait(): a signal just before it would be seen only after the end.
            while process.poll() is None:
                time.sleep(0.1)
            status = process.returncode
    with open(log, "a", encoding="utf-8") as file:
        file.write(f"# Accounting: time={time.time() - began:.0f} threads=1\n")
        file.write(f"# Ended (code {status}) at {time.ctime()}\n")
    if status:
        sys.exit(f"run.pl: {command[0]} ended with status {status}, log in {log}")


if __name__ == "__main__":
    main()
