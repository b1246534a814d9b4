"""Report on a dump, and the mean and std of its log-mel for training.

Writes DUMP/report/report.txt (to read), report.json (the same numbers, with SHA-256 of
lists and audio) and fbank_stats.json (mean and std of the un-normalised log-mel over
all frames of pretrain/train, or without that of all training splits; of very many
clips, those of 100,000 evenly spaced ones).
"""

import argparse
import json
import logging
from pathlib import Path

from espnet2_sslam.bin.cli import run_main
from espnet2_sslam.corpus import (
    ARRAY_HELP,
    STATS_SPLIT,
    ArrayJob,
    Workers,
    collect,
    read_downstream,
    report_text,
    table_lines,
    warnings,
)
from espnet2_sslam.corpus.fbank import fbank_statistics
from espnet2_sslam.store import write_text
from espnet2_sslam.units import MIN_FRAMES

MAX_STATS_CLIPS = 100_000  # of 10 s: some ten minutes of one core


def write_report(
    dump: Path, nj: Workers, max_stats_clips: int = MAX_STATS_CLIPS
) -> dict:
    """Write the three files below DUMP/report and return the report.

    Args:
        dump: What format_audio wrote.
        nj: Processes, or an array job.
        max_stats_clips: Evenly spaced clips that the statistics use; 0 for all.

    Raises:
        ValueError: The dump is unfinished or damaged, or has nothing to train on.
    """
    report = collect(dump)
    splits = [STATS_SPLIT]
    train = report["splits"].get(STATS_SPLIT, {"too_short": 0, "usable": None})
    if train["too_short"] == train["usable"]:
        raise ValueError(
            f"all {train['usable']} clips of {dump / STATS_SPLIT} are shorter than "
            f"{MIN_FRAMES} frames (0.495 s), the least of pre-training: use longer "
            "ones, or join them"
        )
    if STATS_SPLIT not in report["splits"]:
        splits = list(dict.fromkeys(run.train for run in read_downstream(dump)))
    if not splits:
        raise ValueError(
            f"{dump} has neither {STATS_SPLIT} nor a training split: the log-mel "
            "statistics need audio to train on, prepare it"
        )
    lists = (table_lines(dump / name / "wav.scp") for name in splits)
    paths = list(dict.fromkeys(path for lines in lists for _, _, path in lines))
    if 0 < max_stats_clips < len(paths):
        paths = [
            paths[i * len(paths) // max_stats_clips] for i in range(max_stats_clips)
        ]
    stats = {**fbank_statistics(paths, nj), "split": " ".join(splits)}
    report["fbank"] = {**stats, "num_clips": len(paths)}
    folder = dump / "report"
    write_text(folder / "report.txt", report_text(report))
    write_text(folder / "report.json", json.dumps(report, indent=1) + "\n")
    write_text(folder / "fbank_stats.json", json.dumps(stats) + "\n")
    return report


def get_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m espnet2_sslam.bin.data_report",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--dump", type=Path, default=Path("dump/raw"), help="formatted clips"
    )
    parser.add_argument(
        "--nj", type=int, default=1, help="processes, or tasks of --cmd"
    )
    parser.add_argument("--cmd", help=ARRAY_HELP)
    parser.add_argument(
        "--max_stats_clips",
        type=int,
        default=MAX_STATS_CLIPS,
        help="compute mean and std on so many evenly spaced clips at most (0: all)",
    )
    return parser


def main(argv=None) -> None:
    """Entry point."""
    args = get_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    nj = ArrayJob.or_processes(args.nj, args.cmd, args.dump)
    report = write_report(args.dump, nj, args.max_stats_clips)
    for line in warnings(report):
        logging.warning(line)
    stats = report["fbank"]
    clips = sum(split["usable"] for split in report["splits"].values())
    short = sum(split.get("too_short", 0) for split in report["splits"].values())
    print(
        f"{clips} clips in {len(report['splits'])} splits, "
        f"{f'{short} too short for padding: none, ' if short else ''}fbank mean "
        f"{stats['mean']:.4f}, std {stats['std']:.4f}: {args.dump}/report/report.txt"
    )


if __name__ == "__main__":
    run_main(main)
