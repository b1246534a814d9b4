"""The command `sslam`, and what every command shares: mistakes of a user in one line.

Heavy imports are inside the functions: torch takes seconds, the options none.
"""

import argparse
import csv
import errno
import importlib
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from espnet2_sslam import __version__, store
from espnet2_sslam.units import TIME_SHIFTS

if TYPE_CHECKING:
    from espnet2_sslam.inference import (
        SSLAM,
        AudioInput,
        FileResult,
        ResultFolder,
        Rows,
    )
    from espnet2_sslam.inference.cluster import Cluster

# What bad input, a missing file or a full disk raise. Anything else is a mistake of
# ours and keeps its traceback.
USER_ERRORS = (ValueError, OSError)


class Stopped(KeyboardInterrupt):
    """A signal asks the command to end: as after Ctrl-C, what is begun is tidied up."""

    number = signal.SIGINT


def run_main(main: Callable[[], object]) -> None:
    """Run `main()` and exit: 0 when it returns, 1 after a user's error, 130 on Ctrl-C.

    SIGTERM and SIGHUP end it in the same way, with 143 and 129. A user's error, wrong
    options included, becomes `error: <one line>` on stderr. The traceback goes to
    `logging` at DEBUG level only. Errors of other kinds are raised as they are.
    """
    try:
        with _short_option_errors(), _stopping_in_order():
            main()
    except KeyboardInterrupt as interrupt:
        number = getattr(interrupt, "number", signal.SIGINT)
        name = f" by {number.name}" if number != signal.SIGINT else ""
        _stop(f"interrupted{name}", 128 + number)  # as a shell has it
    except BrokenPipeError:
        # The reader of our output has left (`... | head`): nobody to tell.
        sys.stderr.close()
        sys.exit(1)
    except USER_ERRORS as error:
        logging.debug("traceback of the error below", exc_info=True)
        _stop(one_line(error), 1)
    sys.exit(0)


@contextmanager
def _stopping_in_order() -> Iterator[None]:
    """Let signals that would end the process at once raise `Stopped` instead."""

    def stop(number: int, frame: Any) -> NoReturn:
        stopped = Stopped()
        stopped.number = signal.Signals(number)
        raise stopped

    numbers: list[signal.Signals] = []
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) == signal.SIG_DFL:
                signal.signal(number, stop)
                numbers.append(number)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def one_line(error: BaseException) -> str:
    """Return the error's message as one line."""
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        if error.errno == errno.ENOSPC:
            return f"no space left on the disk{where}; free some and run again"
        return f"{error.strerror}{where}"
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def _short_option_errors() -> Iterator[None]:
    """Let argparse report a wrong option in one line, without the long usage text."""

    def short_error(self: argparse.ArgumentParser, message: str) -> NoReturn:
        wrong = message.partition("unrecognized arguments: ")[2].split()
        near = [nearest(word, self._option_string_actions) for word in wrong]
        hint = "".join(f"; did you mean {option}?" for option in near if option)
        _stop(f"{' '.join(message.split())}{hint or '; --help lists the options'}", 1)

    long_error = argparse.ArgumentParser.error
    argparse.ArgumentParser.error = short_error
    try:
        yield
    finally:
        argparse.ArgumentParser.error = long_error


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return what a mistyped option or command was probably meant to be."""
    import difflib

    word = word.partition("=")[0].replace("-", "_")
    names = {name.replace("-", "_"): name for name in known}
    found = difflib.get_close_matches(word, names, 1, 0.65)
    return names[found[0]] if found else None


def _stop(line: str, status: int) -> NoReturn:
    """Print the line on stderr and exit."""
    # One write: `print` writes the newline by itself, and jobs share the stream.
    sys.stderr.write(f"error: {line}\n")
    sys.exit(status)


# The command `sslam`. torch takes seconds to import: after the options are read.

TABLES = ("csv", "tsv", "json", "jsonl")
FORMATS = {
    "embed": ("npz", *TABLES, "ark"),
    "tag": (*TABLES, "npz", "ark"),
    "events": ("tsv", "csv", "json", "jsonl"),
}
TOP_K = 5
PURPOSES = {
    "embed": "features (embeddings) of audio files",
    "tag": "labels of audio files, of windows of them, or of time steps",
    "plot": "a spectrogram with the labels above it",
    "search": "the recordings of an `embed` output that sound most like a clip",
    "demo": "a web page on this machine: labels, events and nearest clips of a clip",
    "info": "what a model is: sizes, classes, statistics, origin, hashes",
    "models": "the released models of SSLAM and EAT, and how to load each",
    "convert": "weights from and to the authors' files, Hugging Face and ESPnet",
    "export": "an ONNX file",
    "publish": "a folder for others with a model card, and its upload to Hugging Face",
    "recipe": "the recipe from data to scores, in a new folder",
}
EXAMPLES = {
    "embed": """
A clip is one row; with --chunk a row is a window of a recording, with --pooling frames
a time step of 160 ms; start and end are its seconds. Files that cannot be read are
listed at the end with the reason, the exit status is 1, and all others are written.

examples: a row of 768 values per clip; windows of 10 s every 5 s as text; a matrix of
160 ms steps per utterance as Kaldi's ark and scp
  sslam embed MODEL clips/ -o clips.npz
  sslam embed MODEL field/*.flac -o field.csv --chunk 10 --hop 5
  sslam embed MODEL --list data/train/wav.scp -o dump/feats.scp --pooling frames
""",
    "tag": """
Without -o the labels are printed. csv, tsv and json hold the labels that --top_k and
--threshold choose; npz and ark hold the scores of all classes. Files that cannot be
read are listed at the end with the reason, the exit status is 1, and all others are
written.

examples: labels of windows; scores of all classes every 80 ms; events with onset and
offset, as DESED's and DCASE's tools read them
  sslam tag MODEL field.flac -o field.csv --chunk 10 --hop 5 --threshold 0.3
  sslam tag MODEL clips/ -o scores.npz --frames --resolution 0.08
  sslam tag MODEL clips/ -o events.tsv --events --median 0.48 --threshold 0.5 \\
      --threshold Dog=0.3 --min_duration 0.25 --merge_gap 0.2
  sslam tag MODEL clips/ --events -o events.csv -o events.json --audacity labels/ \\
      --raven tables/ --scores scores/
""",
    "plot": """
The labels are those with the highest score anywhere in the recording; dark means a
high score. Up to 5 minutes a score is that of a time step, beyond that of a window of
10 s; --chunk and --frames choose. A model without a classifier gives the spectrogram
alone.

examples:
  sslam plot MODEL night.flac -o night.svg --chunk 10 --hop 5 --top_k 8
  sslam plot MODEL clip.wav -o clip.png --resolution 0.04 --label Dog --label Speech
""",
}


def main(cmd: Sequence[str] | None = None) -> None:
    """Run the sub-command that the first word names."""
    words = list(sys.argv[1:] if cmd is None else cmd)
    command = words[0] if words else "--help"
    _check_names(words[1:])
    commands = {"embed": embed, "tag": tag, "plot": plot}
    if command in ("-h", "--help"):
        print("The command `sslam`: SSLAM for people who never train.\n")
        for name, purpose in PURPOSES.items():
            print(f"sslam {name:8} {purpose}")
        print("\nEach has --help.")
    elif command == "--version":
        print(f"espnet2_sslam {__version__}")
    elif command in commands:
        args = _parser(command).parse_intermixed_args(words[1:])
        logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
        args.command = command
        _check_model_is_first(args)
        _check_windows(args)
        with ExitStack() as stack:
            args.cluster = None
            if getattr(args, "dask", None):
                args.cluster = stack.enter_context(_cluster(args))
            commands[command](args)
    elif command in PURPOSES:
        module = importlib.import_module(f"espnet2_sslam.bin.sslam_{command}")
        module.main(words[1:])
    else:
        near = nearest(command, PURPOSES)
        hint = (
            f"did you mean {near}?" if near else f"it is one of {', '.join(PURPOSES)}"
        )
        raise ValueError(f"sslam has no command {command!r}: {hint}")


def _check_model_is_first(args: argparse.Namespace) -> None:
    """Refuse audio in the place of the model."""
    from espnet2_sslam.audio import SUFFIXES

    is_audio = Path(args.model).suffix.lower() in SUFFIXES
    if is_audio and not args.files and not args.list:
        raise ValueError(
            f"{args.model} is audio: the model comes first, sslam {args.command} MODEL "
            f"{args.model}"
        )


def _check_names(words: Sequence[str]) -> None:
    """Refuse a file whose name would be read as an option: AudioSet has such ids."""
    for word in words:
        if word == "--":
            return
        if len(word) > 2 and word[0] == "-" and os.path.lexists(word):
            raise ValueError(
                f"{word} is a file, but a word that begins with - is an option: write "
                f"./{word}, or -- before the files, behind all options"
            )


def run() -> None:
    """Entry point of `sslam`."""
    run_main(main)


def embed(args: argparse.Namespace) -> None:
    """`sslam embed`: features of files into one output."""
    from espnet2_sslam.inference import collect_files, write_embeddings

    format = _output_format(args, "embed")
    if args.time_shifts > 1 and args.pooling in ("mean", "cls"):
        raise ValueError("--time_shifts needs --pooling frames, patches or tokens")
    series = args.chunk is not None or args.pooling not in ("mean", "cls")
    if format == "ark" and series and args.layer == "all":
        raise ValueError("ark holds no arrays (time, layer, value): choose one --layer")
    items = collect_files(args.files, args.list, args.names)
    model = _load(args)
    options = _chosen(args, "layer", "pooling", "chunk", "hop")
    outputs = [args.output]
    results = _results(args, model, items, model.embed_files, options, outputs)
    with results as (rows, job):
        # where the model was: not what the values depend on, but how to search them
        job |= _chosen(args, "model", "revision", "weights")
        write_embeddings(args.output, format, rows, job, series)
        _say_written(outputs, rows, items)


def tag(args: argparse.Namespace) -> None:
    """`sslam tag`: labels or events of files, printed or into one output."""
    _check_tag(args)
    import numpy as np

    import espnet2_sslam.inference as inference

    kind = "events" if args.events else "tag"
    formats = {Path(path): _output_format(args, kind, path) for path in args.output}
    threshold = _numbers("--threshold", args.threshold, 0.5 if args.events else 0.0)
    names = args.names or ("file" if args.events or args.scores else "path")
    items = inference.collect_files(args.files, args.list, names)
    folders = _chosen(args, "audacity", "raven", "scores")
    folders = {each: folder for each, folder in folders.items() if folder}
    files = _recording_files(folders, items)
    model = _load(args)
    classes = model.classes
    if not classes:
        raise ValueError(
            f"{args.model} has no classifier: fine-tune it first; its features come "
            "from `sslam embed`"
        )
    limits = inference.class_thresholds(threshold, classes) if args.threshold else 0.0
    top_k = TOP_K if args.top_k is None else args.top_k
    choose = inference.best_labels(classes, top_k, limits)
    series = args.frames or args.chunk is not None
    compute, options = model.tag_files, _chosen(args, "chunk", "hop")
    if args.frames or args.events:
        compute = model.tag_frames
        resolution = args.resolution or 0.16 / args.time_shifts
        options = {"resolution": resolution, "window": args.window}
    filters: dict[str, Any] = _chosen(args, "min_duration", "merge_gap")
    filters |= {"threshold": threshold, "classes": classes}
    filters["median"] = _numbers("--median", args.median, 0.0)
    find = partial(inference.find_events, **filters)
    if args.events:  # a class that is not there: before work
        find(np.empty((0, len(classes))), np.empty(0), np.empty(0))
    outputs = list(dict.fromkeys([*formats, *folders.values()]))
    results = _results(args, model, items, compute, options, outputs, files)
    with results as (rows, job):
        events = _Events(rows, find)
        if not outputs:
            table = inference.event_table(events)
            for line in table if args.events else _label_lines(rows, choose, series):
                # names that are no text come with escapes
                print(line.encode("utf-8", "backslashreplace").decode(), flush=True)
            return
        store.remove_leftovers_of(*files)
        for format, folder in folders.items():
            if format == "scores":
                inference.write_score_tables(folder, rows, classes)
            else:
                inference.write_event_files(folder, format, events)
        for path, format in formats.items():
            if args.events:
                inference.write_events(path, format, events)
            else:
                inference.write_scores(path, format, rows, job, classes, choose, series)
        _say_written(outputs, rows, items, events.count)


class _Events:
    """The events of files, found in every pass anew: the memory is that of a file."""

    def __init__(self, rows: Iterable["Rows"], find: Callable[..., list]):
        self.rows, self.find = rows, find
        self.count: int | None = None  # of the last pass

    def __iter__(self) -> Iterator[tuple[str, list]]:
        self.count = 0
        for name, starts, ends, scores in self.rows:
            events = self.find(scores, starts, ends)
            self.count += len(events)
            yield name, events


def plot(args: argparse.Namespace) -> None:
    """`sslam plot`: a picture of one recording."""
    from espnet2_sslam.inference.plot import check_picture

    check_picture(args.output)
    if os.path.isdir(args.file):
        raise ValueError(f"{args.file} is a folder: name the recording to draw")
    if args.top_k < 1:
        raise ValueError(f"--top_k must be 1 or more, got {args.top_k}")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    model = _load(args)
    names = [
        os.path.basename(os.path.normpath(name)) for name in (args.file, args.model)
    ]
    title = "{}\nmodel: {}".format(*map(_short, names))
    store.remove_leftovers_of(args.output)
    model.plot(
        *(args.file, args.output),
        **_chosen(args, "top_k", "window", "chunk", "hop"),
        labels=args.label,
        resolution=args.resolution or (0.16 if args.frames else None),
        title=title,
    )
    print(f"wrote {args.output}")


def model_parser(
    command: str, description: str, epilog: str, model: str = "MODEL"
) -> argparse.ArgumentParser:
    """A parser of `sslam COMMAND` with what every command on a model takes."""
    parser = argparse.ArgumentParser(
        prog=f"sslam {command}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    text = "model folder, checkpoint of the authors, training folder or its .pth, "
    text += "packed .zip or Hugging Face id"
    parser.add_argument(model.lower(), metavar=model, help=text)
    add = parser.add_argument_group("model").add_argument
    text = "which weights of a pre-training checkpoint (default: student)"
    add("--weights", choices=("student", "teacher"), default="student", help=text)
    add("--revision", help="branch, tag or commit of a Hugging Face id")
    return parser


def _parser(command: str) -> argparse.ArgumentParser:
    """The options of `sslam embed`, `tag` or `plot`."""
    purpose = f"sslam {command}: {PURPOSES[command]}."
    parser = model_parser(command, purpose, EXAMPLES[command])
    length = {"type": positive_seconds, "metavar": "S"}
    or_zero = {"type": seconds, "metavar": "S"}

    add = parser.add_argument_group("device").add_argument
    add("--device", help="cpu, cuda, cuda:1, mps (default: the best one there is)")
    text = (
        "precision of the encoder's products. auto: bfloat16 on a GPU (float16 on an "
    )
    text += (
        "older one); on a CPU float32, but with --compile bfloat16 if the processor "
    )
    text += "has it (default: auto)"
    dtypes = ("auto", "float32", "bfloat16", "float16")
    add("--dtype", choices=dtypes, default="auto", help=text)
    text = "compile the encoder first: a minute or more, worth it for many files"
    add("--compile", action="store_true", help=text)
    text = "seconds of audio that are encoded at once; less needs less memory"
    add("--batch_seconds", **length, help=text)
    text = "cut or zero-pad each clip to N frames of 10 ms, as in the paper (1024); "
    text += "by default a clip has its own length"
    add("--target_frames", type=int, metavar="N", help=text)

    if command == "plot":
        parser.set_defaults(time_shifts=1)
        parser.add_argument("file", metavar="FILE", help="audio file of any length")
        add = parser.add_argument_group("picture").add_argument
        text = "file to write: .png, .svg (text stays text) or .pdf"
        add("-o", "--output", type=Path, required=True, metavar="PICTURE", help=text)
        add("--top_k", type=int, metavar="K", default=5, help="labels (default: 5)")
        text = "draw this label instead of the best ones; may be repeated"
        add("--label", action="append", default=[], metavar="NAME", help=text)
    else:
        text = "audio files, and folders, which are searched to any depth"
        parser.add_argument("files", metavar="FILES", nargs="*", help=text)
        add = parser.add_argument_group("input and output").add_argument
        text = "text file with a path per line, NAME.scp with `<id> <path>` per line "
        text += "(Kaldi), or - for standard input; may be repeated"
        add("--list", action="append", default=[], metavar="FILE", help=text)
        text = "how the output calls a file: by its path as given, or by its file name "
        text += "without folders, which is what DESED's tools match (default: path; "
        text += "with --events or --scores: file)"
        names = "path" if command == "embed" else None
        add("--names", choices=("path", "file"), default=names, help=text)
        formats = FORMATS[command]
        text = f"file to write, by its suffix ({', '.join(formats)}; ark writes ark "
        text += "and scp). A stopped run leaves FILE.part and continues there when the "
        text += "same command is given again"
        if command == "tag":
            text += "; may be repeated, for several formats"
            add(
                "-o", "--output", action="append", default=[], metavar="FILE", help=text
            )
        else:
            add("-o", "--output", type=Path, required=True, metavar="FILE", help=text)
        add("--format", choices=formats, help="format, whatever the suffix is")
        text = "begin anew instead of continuing a stopped run"
        add("--restart", action="store_true", help=text)
        text = "compute on the workers of this Dask scheduler (HOST:PORT, or its "
        text += "scheduler file), which see model, files and output under the same "
        text += "paths; needs -o"
        add("--dask", metavar="ADDRESS", help=text)

    add = parser.add_argument_group("rows").add_argument
    text = "a row per window of S seconds instead of one per file"
    add("--chunk", **length, help=text)
    add("--hop", **length, help="from one window to the next (default: --chunk)")
    shifts = {"type": int, "metavar": "K", "choices": TIME_SHIFTS, "default": 1}
    if command == "embed":
        text = "block whose output is taken: 1, 2, ..., 0: the patch embedding, -1: "
        text += "the last, or all (default: -1)"
        add("--layer", type=number_or_all, default=-1, help=text)
        text = "frames, patches, tokens: every 160 / K ms, at K times the cost; K: "
        add("--time_shifts", **shifts, help=f"{text}1, 2, 4, 8 or 16 (default: 1)")
        text = "mean of the patches, CLS token; frames: every 160 ms; patches: all, as "
        text += "the authors write them; tokens: CLS and patches (default: mean)"
        choices = ("mean", "cls", "frames", "patches", "tokens")
        add("--pooling", choices=choices, default="mean", help=text)
        return parser
    add("--frames", action="store_true", help="a row per time step, of any recording")
    text = "seconds of a time step: 0.16 divided by 1 to 16 (default: 0.16)"
    add("--resolution", **length, help=text)
    text = "score each time step by a window of S seconds around it (default: 1)"
    add("--window", **or_zero, help=text)
    if command == "tag":
        text = "the same as --resolution 0.16 / K; K: 1, 2, 4, 8 or 16"
        add("--time_shifts", **shifts, help=text)
        add = parser.add_argument_group("labels").add_argument
        text = f"at most K labels per row, the best first; 0: all (default: {TOP_K})"
        add("--top_k", type=int, metavar="K", help=text)
        text = "least score of a label (default: 0, of an event 0.5): a number, "
        text += (
            "LABEL=NUMBER for one class, or a file of these (.json or .yaml {label: "
        )
        text += "number}, .csv or .tsv label,number); repeatable"
        numbers: dict[str, Any] = {"action": "append", "default": [], "metavar": "P"}
        add("--threshold", "--thresholds", **numbers, help=text)
        text = "onset and offset of each sound, from the scores of the time steps"
        add("--events", action="store_true", help=text)
        text = "events: median filter of S seconds over the scores (default: none), or "
        text += "LABEL=S or a file as for --threshold; repeatable"
        add("--median", **{**numbers, "metavar": "S"}, help=text)
        text = "events: drop those shorter than S seconds"
        add("--min_duration", **or_zero, default=0.0, help=text)
        text = "events: join those of a class with at most S seconds between them"
        add("--merge_gap", **or_zero, default=0.0, help=text)
        add = parser.add_argument_group("a file for each recording").add_argument
        folder: dict[str, Any] = {"type": Path, "metavar": "FOLDER"}
        add("--audacity", **folder, help="events: labels that Audacity imports (.txt)")
        add("--raven", **folder, help="events: selection tables of Raven (.txt)")
        text = "scores of the time steps as sed_scores_eval reads them (.tsv), with "
        text += "--events or --frames"
        add("--scores", **folder, help=text)
    return parser


def seconds(text: str) -> float:
    """A number of seconds, or zero. argparse says `invalid seconds value`."""
    if not 0 <= float(text) < float("inf"):
        raise ValueError
    return float(text)


def positive_seconds(text: str) -> float:
    """A number of seconds above zero."""
    if seconds(text) == 0:
        raise ValueError
    return float(text)


def number_or_all(text: str) -> int | str:
    """A block's number, or `all`."""
    return text if text == "all" else int(text)


def _chosen(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Options by their names."""
    return {name: getattr(args, name) for name in names}


def _steps(args: argparse.Namespace) -> bool:
    """Whether time steps were asked for."""
    finer = args.resolution is not None or args.time_shifts > 1
    return args.frames or args.window is not None or finer


def _check_windows(args: argparse.Namespace) -> None:
    """Refuse windows without a length, and windows that are time steps as well."""
    if args.hop is not None and args.chunk is None:
        raise ValueError("--hop needs --chunk: the length of the windows in seconds")
    if args.chunk is not None and "frames" in args and _steps(args):
        raise ValueError(
            "--chunk gives a row per window, --frames, --resolution and --window a row "
            "per time step: choose one (--window is what each time step hears)"
        )


def _check_tag(args: argparse.Namespace) -> None:
    """Refuse options of `sslam tag` that contradict each other."""
    if args.events and args.chunk is not None:
        raise ValueError("--events are made of time steps: --window instead of --chunk")
    if args.time_shifts > 1 and args.resolution is not None:
        raise ValueError("--time_shifts K is --resolution 0.16 / K: give one of them")
    if _steps(args) and not (args.frames or args.events):
        raise ValueError(
            "--resolution, --time_shifts and --window need --frames or --events"
        )
    for name in ("median", "min_duration", "merge_gap", "audacity", "raven"):
        if getattr(args, name) and not args.events:
            raise ValueError(f"--{name} needs --events")
    if args.scores and not (args.frames or args.events):
        raise ValueError("--scores needs --frames or --events")
    if args.events and args.top_k is not None:
        raise ValueError("--top_k chooses labels; --events has --threshold")
    if args.top_k is not None and args.top_k < 0:
        raise ValueError(f"--top_k must be 0 (all) or more, got {args.top_k}")
    if len(args.output) != 1 and args.format is not None:
        raise ValueError(
            "--format needs one -o, the file to write; several have theirs"
        )
    for word in args.files:
        known = Path(word).suffix[1:] in FORMATS["tag"] or "=" in word
        if known and not os.path.lexists(word):
            raise ValueError(
                f"{word} is no file: every output needs its own -o (-o A -o B), every "
                "threshold its own --threshold"
            )


def _numbers(option: str, texts: list[str], default: float) -> dict[str, float]:
    """Numbers by label of NUMBER, LABEL=NUMBER and files of these.

    "" is the label of those that are not named.
    """
    numbers = {"": default}
    for text in texts:
        label, equals, number = text.rpartition("=")
        try:
            if (suffix := Path(text).suffix) == ".json":
                by_label = json.loads(Path(text).read_text(encoding="utf-8"))
            elif suffix in (".yaml", ".yml"):
                by_label = store.read_yaml(text)
            elif suffix in (".csv", ".tsv"):
                lines = Path(text).read_text(encoding="utf-8-sig").splitlines()
                rows = csv.reader(lines, delimiter="\t" if suffix == ".tsv" else ",")
                by_label = dict(row for row in rows if row)
                by_label.pop("label", None)  # of the header
            elif equals and not label.strip():
                raise ValueError
            else:
                by_label = {label.strip(): number}
            numbers |= {str(name): float(p) for name, p in by_label.items()}
        except (ValueError, TypeError, AttributeError):
            raise ValueError(
                f"{option} must be a number, LABEL=NUMBER or a .json, .yaml, .csv or "
                f".tsv file of labels and numbers, got {text!r}"
            ) from None
    return numbers


def _recording_files(
    folders: Mapping[str, Path], items: Sequence["AudioInput"]
) -> list[Path]:
    """The files of folders with one for each recording.

    Raises:
        ValueError: Two recordings with one file, or a folder that is a file.
    """
    from espnet2_sslam.inference import recording_path

    files: dict[Path, str] = {}
    for format, folder in folders.items():
        for item in items:
            path = recording_path(folder, item.name, format)
            if (other := files.setdefault(path, item.path)) != item.path:
                raise ValueError(
                    f"{other} and {item.path} would both have {path}: rename one of "
                    "them, or keep their folders apart with --names path"
                )
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"--{format} {folder} is a file: name a folder")
    return list(files)


def _output_format(args: argparse.Namespace, kind: str, output: Any = None) -> str:
    """The format of an output; refuses one that could not be written, before work."""
    from espnet2_sslam.inference import output_format

    output = Path(output or args.output)
    format = output_format(output, args.format, FORMATS[kind])
    if output.is_dir():
        raise ValueError(f"{output} is a folder: name the file to write")
    output.parent.mkdir(parents=True, exist_ok=True)
    return format


def _cluster(args: argparse.Namespace) -> "Cluster":
    """The cluster that --dask names."""
    outputs = ("output", "audacity", "raven", "scores")
    if not any(getattr(args, name, None) for name in outputs):
        raise ValueError("--dask needs -o: the file to write")
    from espnet2_sslam.inference.cluster import Cluster

    cluster = Cluster(args.dask)
    number = cluster.num_threads()
    _say(f"--dask {args.dask}: {number or 'no'} threads{'' if number else ' yet'}")
    return cluster


def _load(args: argparse.Namespace) -> "SSLAM":
    """The model that the options ask for; with --dask its weights only count."""
    from espnet2_sslam.inference import SSLAM

    names = ("revision", "weights", "device", "dtype", "compile", "batch_seconds")
    options = _chosen(args, *names)
    if args.target_frames is not None:
        options["target_frames"] = args.target_frames
    if args.time_shifts > 1:
        options["time_shifts"] = args.time_shifts
    args.model_options = dict(options)
    if args.cluster is not None:
        chosen = args.cluster.dtype(args.dtype, args.device, args.compile)
        args.model_options["dtype"] = chosen
        options |= {"dtype": chosen, "device": "cpu", "compile": False}
    model = SSLAM.from_pretrained(args.model, **options)
    if args.dtype == "auto" and model.dtype != "float32":
        where = model.device if args.cluster is None else "workers"
        _say(f"computing in {model.dtype} ({where}); exact: --dtype float32")
    return model


@contextmanager
def _results(
    args: argparse.Namespace,
    model: "SSLAM",
    items: Sequence["AudioInput"],
    compute: Callable[..., Iterator["FileResult"]],
    options: Mapping[str, Any],
    outputs: Sequence[Path],
    files: Sequence[Path] = (),
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Results for the block to print as they come or, with outputs, to write when all
    are there, a stopped run's among them; and what they depend on.

    Args:
        outputs: Files and folders to write; what is kept lies beside the first.
        files: In these folders.

    Raises:
        ValueError: Files that could not be used; all else is written before.
    """
    from espnet2_sslam.inference import ResultFolder, Rows, weights_sha256
    from espnet2_sslam.progress import Progress

    failures: dict[str, str] = {}
    total = len(items)
    if not outputs:
        results = compute([item.path for item in items], **options)
        yield (
            Rows(item.name, each.starts, each.ends, each.values)
            for item, each in _usable(items, results, failures)
        ), {}
        _refuse(failures, total, "")
        return
    _refuse_inputs(args, items, [*outputs, *files])
    weights = weights_sha256(model.model)
    job = {
        **{
            "command": args.command,
            **options,
            **_chosen(args, "target_frames"),
            "dtype": model.dtype,
        },
        **({"time_shifts": args.time_shifts} if args.time_shifts > 1 else {}),
        "weights_sha256": weights,
        "resampler": model.encoder.config.resampler,
        "espnet2_sslam": __version__,
    }
    kept_results = ResultFolder(outputs[0], job, items, args.restart)
    there = [path for path in files if path.exists()]
    if there and not args.restart and not kept_results.folder.exists():
        raise ValueError(
            f"{there[0]} is there already, perhaps edited by hand: name another folder "
            "to keep it, or give --restart to replace it"
        )
    with kept_results as folder:
        try:
            if done := total - len(folder.todo):
                _say(f"{done} of {total} files are done already, {total - done} to go")
            if args.cluster is None:
                results = compute(folder.sources(), **options)
            else:
                results = _on_cluster(args, folder, weights, compute, options)
            with Progress(args.command, total, done=done) as progress:
                for item, result in _usable(items, results, failures):
                    folder.add(item, result)
                    count = len(folder) + len(failures) - progress.done
                    progress.update(count, result.duration or 0)
            rows = folder.rows(items)
            if not len(rows):
                _refuse(failures, total, f"{outputs[0]} is not written")
            yield rows, job
        except KeyboardInterrupt:
            _say(
                f"{len(folder)} of {total} files are done and kept in "
                f"{folder.folder}: the same command goes on from there"
            )
            raise
        if not failures:
            folder.discard()
    failures = {
        item.name: failures[item.name] for item in items if item.name in failures
    }
    kept = f"{folder.folder} keeps the others for a run with these repaired"
    _refuse(failures, total, kept)


def _on_cluster(
    args: argparse.Namespace,
    folder: "ResultFolder",
    weights: str,
    compute: Callable[..., Iterator["FileResult"]],
    options: Mapping[str, Any],
) -> Iterator["FileResult"]:
    """Results of the workers of --dask."""
    from espnet2_sslam.inference.cluster import PIECES, Work

    model = os.path.abspath(args.model) if os.path.exists(args.model) else args.model
    pieces = str((folder.folder / PIECES).absolute())
    method = compute.__name__, dict(options)
    work = Work(model, tuple(args.model_options.items()), weights, *method, pieces)
    return args.cluster.compute(work, folder.shards())


def _usable(
    items: Sequence["AudioInput"],
    results: Iterator["FileResult"],
    failures: dict[str, str],
) -> Iterator[tuple["AudioInput", "FileResult"]]:
    """Results and their files; why others cannot be used goes into `failures`."""
    import torch

    try:
        with closing(results):  # type: ignore[type-var]  # a generator
            for result in results:
                item, problem = items[result.index], result.problem
                if problem is None:
                    yield item, result
                else:
                    failures[item.name] = problem
    except torch.OutOfMemoryError:
        raise ValueError(
            "out of memory on the device: try a smaller --batch_seconds, or another "
            "--device"
        ) from None


def _label_lines(
    results: Iterable["Rows"], choose: Callable, series: bool
) -> Iterator[str]:
    """A file's name, and below it its labels; of a series a line per row."""
    for name, *rows in results:
        yield name
        for start, end, scores in zip(*rows, strict=True):
            labels = choose(scores)
            if series:
                text = "; ".join(f"{score:.3f} {label}" for label, score in labels)
                yield f"  {start:9.2f} - {end:9.2f} s  {text or '-'}"
            else:
                yield from (f"  {score:.3f}  {label}" for label, score in labels)
                if not labels:
                    yield "  no label reaches the threshold"


def _refuse_inputs(
    args: argparse.Namespace, items: Iterable[Any], outputs: Iterable[Path]
) -> None:
    """Raise ValueError if an output would replace what the command reads."""
    model = Path(args.model).resolve()
    places: dict[tuple[int, int], Path] = {}
    for output in outputs:
        path = output.resolve()
        if path == model or (model.is_dir() and model in path.parents):
            raise ValueError(f"{output} is (in) the model: name another -o")
        with suppress(OSError):
            status = os.stat(output)
            places[status.st_dev, status.st_ino] = output
    numbers = getattr(args, "threshold", []) + getattr(args, "median", [])
    inputs = ((of, "a list or a file of thresholds") for of in [*args.list, *numbers])
    recordings = ((item.path, "one of the recordings") for item in items)
    for path, kind in (*inputs, *recordings) if places else ():
        with suppress(OSError):
            status = os.stat(path)
            if output := places.get((status.st_dev, status.st_ino)):
                raise ValueError(f"{output} is {kind}: name another -o")


def _say_written(
    outputs: Iterable[Path],
    rows: Any,
    items: Sequence[Any],
    num_events: int | None = None,
) -> None:
    """Say what is in the outputs: events, or else rows."""
    num_rows = sum(shape[0] for shape in rows.shapes)
    count = f"{num_rows:,} rows" if num_events is None else f"{num_events:,} events"
    names = ", ".join(map(str, outputs))
    _say(f"{names}: {len(rows):,} of {len(items):,} files, {count}")


def _refuse(failures: Mapping[str, str], total: int, kept: str) -> None:
    """List the files that could not be used, each with its reason, and raise."""
    if not failures:
        return
    for name, reason in failures.items():
        # The reader names the path; say it once.
        _say(f"  {reason}" if reason.startswith(name) else f"  {name}: {reason}")
    files = "file" if total == 1 else "files"
    raise ValueError(
        f"{len(failures)} of {total} {files} could not be used (listed above)"
        + (f"; {kept}" if kept else "")
    )


def _say(line: str) -> None:
    """A line for people; results go to files or to stdout."""
    sys.stderr.write(f"{line}\n")


def _short(name: str, limit: int = 90) -> str:
    """A name that fits on a line: its middle is left out."""
    half = limit // 2
    return name if len(name) <= limit else f"{name[:half]}…{name[-half:]}"
