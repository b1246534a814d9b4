#!/usr/bin/env python3
"""Run command lines, some at a time, until all have ended or a signal comes.

    printf '%s\\0' "once.py ..." "once.py ..." | jobs.py NUMBER

A signal is passed on to what runs, and nothing else is begun; so it is when a job ends
with status 85, as one that a signal has stopped. One that fails does not keep the
others from running. Exit status: 0, 85 after a signal, or 1.
"""

import os
import signal
import subprocess
import sys

STOPPED = 85


def main():
    limit = int(sys.argv[1])
    waiting = [line for line in sys.stdin.buffer.read().split(b"\0") if line]
    running, signals, statuses = {}, [], []

    def pass_on(number, frame=None):
        signals.append(number)
        for process in running.values():
            if number != signal.SIGINT:  # a terminal sends it to all by itself
                process.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        # bash lets its jobs in the background ignore the first, nohup the third
        if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, pass_on)
    while running or (waiting and not signals and STOPPED not in statuses):
        if waiting and len(running) < limit and not signals and STOPPED not in statuses:
            process = subprocess.Popen(["bash", "-c", b"exec " + waiting.pop(0)])
            running[process.pid] = process
            if signals and signals[-1] != signal.SIGINT:  # before it was in the table
                process.send_signal(signals[-1])
            continue
        pid, status = os.wait()
        running.pop(pid).returncode = os.waitstatus_to_exitcode(status)
        statuses.append(os.waitstatus_to_exitcode(status))
    if signals or STOPPED in statuses:
        sys.exit(STOPPED)
    sys.exit(int(any(statuses)))


if __name__ == "__main__":
    main()
