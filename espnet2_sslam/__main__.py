"""Python with our encoder registered: python -m espnet2_sslam -m espnet2.bin.asr_train

Takes the place of `python` in ESPnet's scripts: `--python "python -m espnet2_sslam"`,
or the command espnet2-sslam-python where one word is needed.
"""

import importlib
import importlib.util
import runpy
import sys

USAGE = "usage: python -m espnet2_sslam (-m MODULE | -c CODE | SCRIPT) [ARGUMENT ...]"


def main() -> object:
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
        exec(compile(arguments[1], "<string>", "exec"), {"__name__": "__main__"})
        return None
    if arguments[0].startswith("-"):
        sys.exit(f"{USAGE}\noption {arguments[0]} of python is not passed on")
    sys.argv = arguments
    runpy.run_path(arguments[0], run_name="__main__")
    return None


def _run_module(name: str, arguments: list[str]) -> object:
    """Run a module; ESPnet's commands in a way that its spawned ranks survive.

    A spawned process imports the parent's __main__ again by the name in its __spec__,
    and never one called `*.__main__`: with runpy the ranks would miss our encoder.
    """
    if not name.startswith(("espnet2.bin.", "espnet2_sslam.bin.")):
        sys.argv = [name, *arguments]
        runpy.run_module(name, run_name="__main__", alter_sys=True)
        return None
    spec = importlib.util.find_spec("espnet2_sslam._hook")
    sys.modules["__main__"].__spec__ = spec
    module = importlib.import_module(name)
    sys.argv = [module.__file__, *arguments]
    if not hasattr(module, "main"):
        runpy.run_module(name, run_name="__main__")
        return None
    return module.main()


if __name__ == "__main__":
    sys.exit(main())
