"""Name the sounds in audio files with a fine-tuned model."""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from espnet2_sslam.bin import model_options
from espnet2_sslam.bin.cli import run_main

FORMATS = ("csv", "tsv", "json", "jsonl", "npz", "ark")
EVENT_FORMATS = ("tsv", "csv", "json", "jsonl")
TOP_K = 5
EPILOG = """
Without -o the labels are printed. csv, tsv and json hold the labels that --top_k and
--threshold choose; npz and ark hold the scores of all classes. Files that cannot be
read are listed at the end with the reason, the exit status is 1, and all others are in
the output.

examples:
  what is in these clips:
    sslam tag MODEL dog.wav street.mp3

  a recording in windows of 10 s, every 5 s:
    sslam tag MODEL field.flac -o field.csv --chunk 10 --hop 5 --threshold 0.3

  scores of all classes every 80 ms, for code of your own:
    sslam tag MODEL clips/ -o scores.npz --frames --resolution 0.08

  events with onset and offset, as DESED's and DCASE's tools read them:
    sslam tag MODEL clips/ -o events.tsv --events --names file --median 0.48 \\
        --threshold 0.5 --threshold Dog=0.3 --min_duration 0.25 --merge_gap 0.2
"""


def get_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = argparse.ArgumentParser(
        prog="sslam tag",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=model_options.HELP_STYLE,
    )
    model_options.add_model_options(parser)
    model_options.add_input_options(parser)
    add = parser.add_argument_group("labels").add_argument
    add(
        "--top_k",
        type=int,
        metavar="K",
        help=f"at most K labels per row, the best first; 0: all (default: {TOP_K})",
    )
    add(
        "--threshold",
        action="append",
        default=[],
        metavar="P",
        help="least score of a label (default: 0, of an event 0.5): a number, "
        "LABEL=NUMBER for one class, or a JSON file {label: number}; may be repeated",
    )
    model_options.add_window_options(parser)
    model_options.add_step_options(parser, "a row per time step instead of per file")
    add = parser.add_argument_group("events").add_argument
    add(
        "--events",
        action="store_true",
        help="onset and offset of each sound, from the scores of the time steps",
    )
    add(
        "--median",
        type=model_options.not_negative,
        metavar="S",
        default=0.0,
        help="median filter of S seconds over the scores (default: none)",
    )
    add(
        "--min_duration",
        type=model_options.not_negative,
        metavar="S",
        default=0.0,
        help="drop those shorter than S seconds",
    )
    add(
        "--merge_gap",
        type=model_options.not_negative,
        metavar="S",
        default=0.0,
        help="join those of a class with at most S seconds between them",
    )
    model_options.add_output_options(parser, FORMATS, required=False)
    return parser


def main(cmd: Sequence[str] | None = None) -> None:
    """Tag the files."""
    args = get_parser().parse_intermixed_args(cmd)
    model_options.start_logging()
    _check(args)
    # After the options: torch takes seconds to import.
    from espnet2_sslam.bin.many_files import print_job, run_job
    from espnet2_sslam.inference import collect_files, output_format

    if args.output is not None:
        formats = EVENT_FORMATS if args.events else FORMATS
        format = output_format(args.output, args.format, formats)
        model_options.check_output(args.output)
    threshold = parse_thresholds(args.threshold, 0.5 if args.events else 0.0)
    items = collect_files(args.files, args.list, args.names)
    model = model_options.load(args, classifier=True)
    options, compute = _computation(args, model)
    if args.output is None:
        lines = _printer(args, model.classes, threshold)
        print_job(items, compute, lines)
        return
    write = _writer(args, format, model.classes, threshold)
    run_job(args, items, model, {"command": "tag", **options}, compute, write)


def _check(args: argparse.Namespace) -> None:
    """Refuse options that contradict each other."""
    model_options.check_windows(args)
    model_options.check_steps(args)
    steps = args.frames or args.events
    if args.events and args.chunk is not None:
        raise ValueError("--events are made of time steps: --window instead of --chunk")
    if not steps and (args.window is not None or args.resolution is not None):
        raise ValueError("--resolution and --window need --frames or --events")
    if not args.events and (args.median or args.min_duration or args.merge_gap):
        raise ValueError("--median, --min_duration and --merge_gap need --events")
    if args.events and args.top_k is not None:
        raise ValueError("--top_k chooses labels; --events has --threshold")
    if args.top_k is not None and args.top_k < 0:
        raise ValueError(f"--top_k must be 0 (all) or more, got {args.top_k}")
    if args.output is None and args.format is not None:
        raise ValueError("--format needs -o: the file to write")


def _computation(args, model) -> tuple[dict[str, Any], Callable]:
    """What the scores depend on, and the function from paths to `FileResult`."""
    if args.frames or args.events:
        options = {"resolution": args.resolution or 0.16, "window": args.window}
        return options, lambda files: model.tag_frames(files, **options)
    options = {"chunk": args.chunk, "hop": args.hop}
    return options, lambda files: model.tag_files(files, **options)


def _finder(args, classes: Sequence[str], threshold: Mapping[str, float]) -> Callable:
    """The function from a file's scores to its events."""
    from espnet2_sslam.inference import find_events

    return lambda rows: find_events(
        rows.values,
        rows.starts,
        rows.ends,
        classes,
        threshold=threshold,
        median=args.median,
        min_duration=args.min_duration,
        merge_gap=args.merge_gap,
    )


def _chooser(args, classes: Sequence[str], threshold: Mapping[str, float]) -> Callable:
    """The function from a row's scores to its labels."""
    from espnet2_sslam.inference import best_labels, class_thresholds

    top_k = TOP_K if args.top_k is None else args.top_k
    return best_labels(classes, top_k, class_thresholds(threshold, classes))


def _writer(args, format: str, classes: Sequence[str], threshold) -> Callable:
    """The function that writes the results to the output."""
    from espnet2_sslam.inference import write_events, write_scores

    if args.events:
        find = _finder(args, classes, threshold)
        return lambda results, job: write_events(args.output, format, results, find)
    choose = _chooser(args, classes, threshold)
    series = args.frames or args.chunk is not None
    return lambda results, job: write_scores(
        args.output, format, results, job, classes, choose, series
    )


def _printer(args, classes: Sequence[str], threshold) -> Callable:
    """The function from results, as they come, to lines on stdout."""
    from espnet2_sslam.inference import event_table

    if args.events:
        find = _finder(args, classes, threshold)
        return lambda results: event_table(results, find)
    choose = _chooser(args, classes, threshold)
    series = args.frames or args.chunk is not None
    return lambda results: label_lines(results, choose, series)


def label_lines(results, choose: Callable, series: bool):
    """Lines for people: a file's name, and below it its labels, the best first.

    Args:
        results: One `Rows` per file.
        choose: A row's scores to its labels.
        series: A line per row with its times, not one per label.
    """
    for rows in results:
        yield rows.name
        for start, end, scores in zip(rows.starts, rows.ends, rows.values):
            labels = choose(scores)
            if series:
                text = "; ".join(f"{score:.3f} {label}" for label, score in labels)
                yield f"  {start:9.2f} - {end:9.2f} s  {text or '-'}"
            else:
                yield from (f"  {score:.3f}  {label}" for label, score in labels)
                if not labels:
                    yield "  no label reaches the threshold"


def parse_thresholds(given: list[str], default: float) -> dict[str, float]:
    """Turn NUMBER, LABEL=NUMBER and JSON files into thresholds by label.

    Returns:
        Label to threshold; "" is that of the labels that are not named.

    Raises:
        ValueError: Something else.
    """
    thresholds = {"": default}
    for text in given:
        label, equals, number = text.rpartition("=")
        if text.endswith(".json"):
            thresholds.update(_threshold_file(Path(text)))
            continue
        try:
            thresholds[label.strip()] = float(number)
            if equals and not label.strip():
                raise ValueError
        except ValueError:
            raise ValueError(
                f"--threshold must be a number, LABEL=NUMBER or a .json file of "
                f"{{label: number}}, got {text!r}"
            ) from None
    return thresholds


def _threshold_file(path: Path) -> dict[str, float]:
    """The thresholds of a JSON file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {str(label): float(value) for label, value in content.items()}
    except (ValueError, TypeError, AttributeError):
        raise ValueError(
            f"{path} is not a JSON object {{label: number}}: needed for --threshold"
        ) from None


if __name__ == "__main__":
    run_main(main)
