"""Python with SSLAM registered: python -m espnet2_sslam -m espnet2.bin.asr_train

Takes the place of `python` in ESPnet's and s3prl's commands:
`--python "python -m espnet2_sslam"`, or espnet2-sslam-python where one word is needed.
"""

import importlib
import importlib.util
import logging
import runpy
import sys
import traceback
from typing import Any

from espnet2_sslam._hook import without_flash_attention_note

USAGE = "usage: python -m espnet2_sslam (-m MODULE | -c CODE | SCRIPT) [ARGUMENT ...]"
# Their modules have a main() and nothing else to do when they are run.
HOSTS = ("espnet2.bin.", "espnet2_sslam.bin.", "s3prl.")


def main() -> Any:
    """Run a module, code or script as python does, with the plug-in loaded."""
    arguments = sys.argv[1:]
    if arguments[:1] in (["-h"], ["--help"]):
        print(f"{USAGE}\n\n{__doc__}")
        return None
    if not arguments or (arguments[0] in ("-m", "-c") and len(arguments) < 2):
        sys.exit(USAGE)
    if arguments[0] == "-m":
        return _run_module(arguments[1], arguments[2:])
    if arguments[0] == "-c":
        sys.argv = ["-c", *arguments[2:]]
        # what was asked for: the code of -c
        exec(  # noqa: S102
            compile(arguments[1], "<string>", "exec"), {"__name__": "__main__"}
        )
        return None
    if arguments[0].startswith("-"):
        sys.exit(f"{USAGE}\noption {arguments[0]} of python is not passed on")
    sys.argv = arguments
    runpy.run_path(arguments[0], run_name="__main__")
    return None


def _run_module(name: str, arguments: list[str]) -> Any:
    """Run a module; the hosts' commands in a way that spawned processes survive.

    A spawned process (a rank of ESPnet, a worker of a DataLoader) imports the parent's
    __main__ again by the name in its __spec__, and never one called `*.__main__`: with
    runpy it would miss SSLAM.
    """
    if not name.startswith(HOSTS):
        sys.argv = [name, *arguments]
        runpy.run_module(name, run_name="__main__", alter_sys=True)
        return None
    sys.modules["__main__"].__spec__ = importlib.util.find_spec("espnet2_sslam._hook")
    try:
        with without_flash_attention_note():  # it would get into --print_config
            module = importlib.import_module(name)
        sys.argv = [module.__file__, *arguments]
        if hasattr(module, "main"):
            return module.main()
    except (ValueError, ImportError) as error:
        if not _is_ours(error):
            raise
        logging.debug("traceback of the error below", exc_info=True)
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        sys.exit(1)
    runpy.run_module(name, run_name="__main__", alter_sys=True)
    return None


def _is_ours(error: BaseException) -> bool:
    """Whether our own code raised it: then the message says all, without traceback."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals.get("__name__", "").startswith("espnet2_sslam.")


if __name__ == "__main__":
    sys.exit(main())
