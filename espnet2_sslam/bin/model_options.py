"""Options that `sslam embed`, `tag` and `plot` share, and the model they name."""

import argparse
import logging
from collections.abc import Iterable
from pathlib import Path

HELP_STYLE = argparse.RawDescriptionHelpFormatter


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add MODEL and how to run it."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="model folder, checkpoint of the authors, training folder or its .pth, "
        "Hugging Face id or ESPnet model zoo tag",
    )
    group = parser.add_argument_group("model")
    add = group.add_argument
    add(
        "--weights",
        choices=("student", "teacher"),
        default="student",
        help="which " "weights of a pre-training checkpoint (default: student)",
    )
    add("--revision", help="branch, tag or commit of a Hugging Face model")
    add("--device", help="cpu, cuda, cuda:1, mps (default: the best one there is)")
    add(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="precision of the encoder (default: float32)",
    )
    add(
        "--batch_seconds",
        type=positive,
        metavar="S",
        help="seconds of audio that are encoded at once; less needs less memory",
    )
    add(
        "--target_frames",
        type=int,
        metavar="N",
        help="cut or zero-pad each clip to N frames of 10 ms, as in the paper (1024); "
        "by default a clip has its own length",
    )


def add_input_options(parser: argparse.ArgumentParser) -> None:
    """Add FILES, lists and how files are called in the output."""
    parser.add_argument(
        "files",
        metavar="FILES",
        nargs="*",
        help="audio files, and folders, which are searched to any depth",
    )
    group = parser.add_argument_group("input")
    add = group.add_argument
    add(
        "--list",
        action="append",
        default=[],
        metavar="FILE",
        help="text file with a path per line, NAME.scp with `<id> <path>` per line "
        "(Kaldi), or - for standard input; may be repeated",
    )
    add(
        "--names",
        choices=("path", "file"),
        default="path",
        help="how the output calls a file: by its path as given, or by its file name "
        "without folders (default: path)",
    )


def add_output_options(
    parser: argparse.ArgumentParser, formats: Iterable[str], required: bool
) -> None:
    """Add -o and what belongs to it."""
    group = parser.add_argument_group("output")
    add = group.add_argument
    add(
        "-o",
        "--output",
        type=Path,
        required=required,
        metavar="FILE",
        help=f"file to write, by its suffix ({', '.join(formats)}; ark writes ark and "
        "scp). A stopped run leaves FILE.part and continues there when the same "
        "command is given again",
    )
    add("--format", choices=tuple(formats), help="format, whatever the suffix is")
    add(
        "--restart",
        action="store_true",
        help="begin anew instead of continuing a stopped run",
    )


def add_window_options(parser: argparse.ArgumentParser) -> None:
    """Add --chunk and --hop."""
    group = parser.add_argument_group("long recordings")
    add = group.add_argument
    add(
        "--chunk",
        type=positive,
        metavar="S",
        help="a row per window of S seconds instead of one per file",
    )
    add(
        "--hop",
        type=positive,
        metavar="S",
        help="seconds from one window to the next (default: --chunk)",
    )


def add_step_options(parser: argparse.ArgumentParser, frames: str) -> None:
    """Add --frames, --resolution and --window."""
    add = parser.add_argument_group("time steps").add_argument
    add("--frames", action="store_true", help=frames)
    add(
        "--resolution",
        type=positive,
        metavar="S",
        help="seconds of a time step: 0.16 divided by 1 to 16, below 0.16 by "
        "overlapping passes (default: 0.16)",
    )
    add(
        "--window",
        type=not_negative,
        metavar="S",
        help="score each time step by a window of S seconds around it (default: 1); 0: "
        "by its own patches, for a head that was trained on time steps",
    )


def positive(text: str) -> float:
    """A number of seconds above zero."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be more than 0 seconds, got {text}")
    return value


def not_negative(text: str) -> float:
    """A number of seconds, or zero."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be 0 or more seconds, got {text}")
    return value


def check_windows(args: argparse.Namespace) -> None:
    """Refuse --hop without --chunk."""
    if args.hop is not None and args.chunk is None:
        raise ValueError("--hop needs --chunk: the length of the windows in seconds")


def check_steps(args: argparse.Namespace) -> None:
    """Refuse --chunk together with time steps."""
    steps = args.frames or args.window is not None or args.resolution is not None
    if args.chunk is not None and steps:
        raise ValueError(
            "--chunk gives a row per window, --frames, --resolution and --window a row "
            "per time step: choose one (--window is what each time step hears)"
        )


def check_output(path: Path) -> None:
    """Refuse an output that could not be written, before hours of work."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name the file to write")
    path.parent.mkdir(parents=True, exist_ok=True)


def start_logging() -> None:
    """Warnings on stderr, one line each."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")


def load(args: argparse.Namespace, classifier: bool = False):
    """Return the `SSLAM` that the options ask for.

    Raises:
        ValueError: It cannot be loaded, or has no classifier where one is needed.
    """
    from espnet2_sslam.inference import SSLAM

    options = {}
    if args.target_frames is not None:
        options["target_frames"] = args.target_frames
    model = SSLAM.from_pretrained(
        args.model,
        revision=args.revision,
        weights=args.weights,
        device=args.device,
        dtype=args.dtype,
        batch_seconds=args.batch_seconds,
        **options,
    )
    if classifier and not model.classes:
        raise ValueError(
            f"{args.model} has no classifier: fine-tune it first; its features come "
            "from `sslam embed`"
        )
    return model
