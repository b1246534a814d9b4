"""A python that is forked from one with everything loaded: for runs of many commands.

`python -m tests.fork_python FOLDER` writes FOLDER/python and FOLDER/python3, which take
`-c`, `-m` and scripts as the real one does, and serves them until its parent ends. A
forked one is in the process group of the command that asked for it, so that a signal to
that group ends it, too.
"""

import array
import atexit
import importlib
import json
import logging
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
import types
from contextlib import contextmanager, suppress
from pathlib import Path

LOADED = ("pandas", "scipy.stats", "sklearn.metrics", "matplotlib.pyplot", "jinja2")
LOADED += ("espnet2.bin.launch", "espnet2_sslam.tasks", "espnet2_sslam.results")
LOADED += ("espnet2_sslam.inference", "espnet2_sslam.corpus.fbank", "kaldiio")
CLIENT = """#!{python} -IS
import array, json, os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({socket!r})
asked = [sys.argv[1:], os.getcwd(), dict(os.environ), os.getpgrp()]
asked = json.dumps(asked).encode()
streams = array.array("i", (0, 1, 2))
length = len(asked).to_bytes(8, "little")
server.sendmsg([length], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
server.sendall(asked)
status = server.recv(1)
sys.exit(status[0] if status else 137)
"""


@contextmanager
def fork_python(folder: Path):
    """Serve for the block; the path of the python to use."""
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "tests.fork_python", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    server = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
    assert server.stdout is not None
    try:
        assert server.stdout.readline() == b"ready\n"
        yield folder / "python"
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


def execute(words: list[str]) -> int:
    """Do what python does with these words; its exit status."""
    try:
        if words[0] == "-c":
            sys.argv, sys.path[0] = ["-c", *words[2:]], ""
            main = sys.modules["__main__"] = types.ModuleType("__main__")
            exec(words[1], main.__dict__)
        elif words[0] == "-m":
            sys.argv, sys.path[0] = words[1:], os.getcwd()
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv, sys.path[0] = words, os.path.dirname(os.path.abspath(words[0]))
            runpy.run_path(words[0], run_name="__main__")
        status = 0
    except SystemExit as error:
        status = error.code
        if not isinstance(status, int):
            if status is not None:
                print(status, file=sys.stderr)
            status = int(status is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return status & 255


def serve_one(connection: socket.socket) -> None:
    """Fork the python that a client asks for, and tell it the status."""
    size, rights, _, _ = connection.recvmsg(8, socket.CMSG_SPACE(12))
    streams = array.array("i", rights[0][2])
    length, content = int.from_bytes(size, "little"), b""
    while len(content) < length:
        content += connection.recv(length - len(content))
    words, folder, environment, group = json.loads(content)
    os.setpgid(0, group)
    for place, stream in enumerate(streams):
        os.dup2(stream, place)
        os.close(stream)
    child = os.fork()
    if child == 0:
        connection.close()
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        sys.stdin = open(0, closefd=False)
        sys.stdout = open(1, "w", closefd=False, encoding="utf-8")
        sys.stderr = open(2, "w", 1, closefd=False, encoding="utf-8")
        logging.root.handlers.clear()
        os._exit(execute(words))
    for stream in range(3):  # a pipe ends with the child
        os.close(stream)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the child decides
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    connection.sendall(bytes([status & 255 if status >= 0 else 128 - status]))


def main() -> None:
    """Serve until the parent ends."""
    folder, parent = Path(sys.argv[1]), os.getppid()
    for name in LOADED:
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "socket"))
    listener.listen(64)
    text = CLIENT.format(python=sys.executable, socket=str(folder / "socket"))
    for name in ("python", "python3"):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    print("ready", flush=True)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits
    while os.getppid() == parent:
        if not select.select([listener], [], [], 1)[0]:
            continue
        connection, _ = listener.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            with suppress(OSError):  # the client is gone
                serve_one(connection)
            os._exit(0)
        connection.close()


if __name__ == "__main__":
    main()
