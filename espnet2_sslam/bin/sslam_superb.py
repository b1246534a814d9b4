"""Compare upstreams on tasks of SUPERB and HEAR with s3prl's own training code.

Each upstream is trained on each task with every learning rate of the grid (frozen
upstream, weighted sum of its layers, a small head); the best rate on the dev set is
scored on the test set, once. Run it again to continue: what is finished is kept, what
was interrupted is resumed, and a run with other settings is moved to EXPDIR_replaced.

  TASK=DIR        ks (Speech Commands v1), ic (Fluent Speech Commands), sid (VoxCeleb1),
                  er (IEMOCAP), and HEAR's scene tasks by s3prl's names: HearESC50, ...
  NAME=SOURCE     SSLAM's weights: a training's folder or .pth file, a folder of ours, a
                  file of the authors, a Hugging Face id; {seed} in it is replaced
  random=SOURCE   the network of SOURCE with random weights
  NAME            an upstream of s3prl. fbank_no_cmvn is the control to beat: s3prl's
                  fbank is normalised per clip, its mean over time is always 0
"""

import argparse
import logging
import signal
from collections.abc import Sequence
from pathlib import Path

from espnet2_sslam.bin.cli import run_main

# SUPERB searches 1e-1 to 1e-7 in steps of ten; most tasks end within these four.
LEARNING_RATES = (1e-2, 1e-3, 1e-4, 1e-5)


def get_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: sslam_superb --tasks ks=speech_commands --upstreams "
        "fbank_no_cmvn sslam=SSLAM_Pretrained.pt random=SSLAM_Pretrained.pt "
        "--expdir exp/superb --device cuda",
    )
    add = parser.add_argument
    add("--tasks", nargs="+", required=True, metavar="TASK=DIR")
    add("--upstreams", nargs="+", required=True, metavar="NAME[=SOURCE]")
    add("--expdir", type=Path, required=True, help="where everything goes")
    add("--output", type=Path, help="the table [EXPDIR/SUPERB.md]")
    add(
        "--lrs",
        type=float,
        nargs="+",
        default=LEARNING_RATES,
        metavar="LR",
        help="the grid [1e-2 1e-3 1e-4 1e-5; SUPERB: 1e-1 to 1e-7]",
    )
    add("--seeds", type=int, nargs="+", default=[1], metavar="N", help="[1]")
    add(
        "--options",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="of the sslam upstream, such as freq=mean or upsample=8",
    )
    add(
        "--steps",
        nargs="+",
        default=[],
        metavar="[TASK=]N",
        help="updates [the task's: up to 200,000]; HEAR counts four batches as one",
    )
    add(
        "--eval_every",
        type=int,
        metavar="N",
        help="updates between scores on dev [the task's, or a quarter of --steps]",
    )
    add("--config_dir", type=Path, default=Path("conf/s3prl"), help="[conf/s3prl]")
    add("--device", default="cpu", help="cpu or cuda [cpu]")
    add("--num_workers", type=int, metavar="N", help="audio readers per training [4]")
    add("--nj", type=int, default=1, help="trainings at a time [1]")
    return parser


def main(cmd: Sequence[str] | None = None) -> None:
    """Run what is missing and write the table."""
    args = get_parser().parse_args(cmd)
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s (superb) %(message)s",
        datefmt="%H:%M:%S",
    )
    for name in ("eval_every", "nj"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} starts at 1, got {value}")
    if min(args.lrs) <= 0:
        raise ValueError(f"learning rates are above 0, got {min(args.lrs):g}")
    # After the options: it takes seconds to import torch.
    from espnet2_sslam.integrations.superb.run import Schedule
    from espnet2_sslam.integrations.superb.sweep import Plan, sweep
    from espnet2_sslam.integrations.superb.table import write_table
    from espnet2_sslam.integrations.superb.tasks import parse_steps, parse_tasks
    from espnet2_sslam.integrations.superb.upstreams import read_options, split_words

    tasks = parse_tasks(args.tasks)
    steps = parse_steps(args.steps, tasks)
    plan = Plan(
        tasks=tasks,
        upstreams=split_words(args.upstreams),
        lrs=tuple(dict.fromkeys(args.lrs)),
        seeds=tuple(dict.fromkeys(args.seeds)),
        expdir=args.expdir,
        options=read_options(args.options),
        schedule=Schedule(steps, args.eval_every, args.num_workers, args.device),
        config_dir=args.config_dir,
        jobs=args.nj,
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    outcome = sweep(plan)
    output = args.output or args.expdir / "SUPERB.md"
    write_table(outcome, output)
    asked = len(plan.tasks) * len(plan.upstreams)
    print(f"wrote {output}: {len(outcome.chosen)} of {asked} results")
    if outcome.failures:
        raise ValueError(
            f"{len(outcome.failures)} failed, the rest is kept; mend and run again. "
            f"First: {outcome.failures[0]}"
        )


if __name__ == "__main__":
    run_main(main)
