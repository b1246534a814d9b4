#!/usr/bin/env python3
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
import importlib.metadata
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

RECIPE = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(RECIPE.parent.parent), str(RECIPE / "superb")]

import yaml  # noqa: E402
from superb_table import write_table  # noqa: E402
from superb_tasks import REFUSED, TASKS, Task, read_data  # noqa: E402

from espnet2_sslam.bin.cli import run_main  # noqa: E402
from espnet2_sslam.store import sha256, write_json  # noqa: E402

# SUPERB searches 1e-1 to 1e-7 in steps of ten; most tasks end within these four.
LEARNING_RATES = (1e-2, 1e-3, 1e-4, 1e-5)
PROGRAM = RECIPE / "superb" / "superb_run.py"


def get_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--tasks", nargs="+", required=True, metavar="TASK=DIR")
    add("--upstreams", nargs="+", required=True, metavar="NAME[=SOURCE]")
    add("--expdir", type=Path, required=True, help="where everything goes")
    add("--output", type=Path, help="the table [EXPDIR/SUPERB.md]")
    text = "the grid [1e-2 1e-3 1e-4 1e-5; SUPERB: 1e-1 to 1e-7]"
    add("--lrs", type=float, nargs="+", default=LEARNING_RATES, help=text)
    add("--seeds", type=int, nargs="+", default=[1], metavar="N", help="[1]")
    text = "of the sslam upstream, such as freq=mean or time_shifts=8"
    add("--options", nargs="+", default=[], metavar="NAME=VALUE", help=text)
    text = "updates [the task's: up to 200,000]; HEAR counts four batches as one"
    add("--steps", nargs="+", default=[], metavar="[TASK=]N", help=text)
    text = "updates between scores on dev [the task's, or a quarter of --steps]"
    add("--eval_every", type=int, metavar="N", help=text)
    add("--config_dir", type=Path, default=Path("conf/s3prl"), help="[conf/s3prl]")
    add("--device", default="cpu", help="cpu or cuda [cpu]")
    add("--num_workers", type=int, metavar="N", help="audio readers per training [4]")
    ask = {"choices": ("true", "false"), "default": "false"}
    add("--replace", **ask, help="true: move a training made from something else away")
    add("--keep", **ask, help="true: go on with such a training [both: ask]")
    add("--nj", type=int, default=1, help="trainings at a time [1]")
    return parser


class Upstream(NamedTuple):
    """An upstream for one seed; those of s3prl have only a name."""

    name: str
    seed: int
    entry: str  # s3prl's name of it
    ckpt: str = ""  # our model's folder
    sha256: str = ""  # of the weights
    origin: str = ""  # what the user named


class Run(NamedTuple):
    """One training: its folder, and FOLDER.json's content."""

    folder: Path
    upstream: Upstream
    settings: dict[str, Any]

    @property
    def key(self) -> tuple[str, str]:
        """Task and upstream: a cell of the table."""
        return self.settings["task"], self.upstream.name

    @property
    def title(self) -> str:
        """For progress lines and errors."""
        s = self.settings
        fold = f", fold {s['fold']}" if TASKS[s["task"]].folds > 1 else ""
        name, seed = self.upstream.name, self.upstream.seed
        return f"{s['task']} of {name}, lr {s['lr']:g}, seed {seed}{fold}"

    def record(self, name: str) -> dict[str, Any] | None:
        """dev.json or scoring/test.json; None before it is made."""
        path = self.folder / name
        return json.loads(path.read_text("utf-8")) if path.is_file() else None


def read_words(words: Iterable[str], pattern: str, form: str) -> dict[str, str]:
    """Values by name from words that a pattern of both fits; `form` is for errors."""
    values: dict[str, str] = {}
    for word in words:
        match = re.fullmatch(pattern, word)
        if match is None:
            raise ValueError(f"{form}, got {word!r}")
        name, value = match.groups(default="")
        if name in values:
            raise ValueError(f"{form}: {name or word} is given twice")
        values[name] = value
    return values


def check(args: argparse.Namespace) -> None:
    """Read the words of the options, into `args`."""
    from espnet2_sslam.integrations.s3prl.expert import LOADING, OPTIONS, RANDOM

    for name, value in (("eval_every", args.eval_every), ("nj", args.nj)):
        if value is not None and value < 1:
            raise ValueError(f"--{name} starts at 1, got {value}")
    if min(args.lrs) <= 0:
        raise ValueError(f"learning rates are above 0, got {min(args.lrs):g}")
    args.folders = read_words(args.tasks, r"(\w+)=?(.*)", "--tasks takes TASK=DIR")
    for name, folder in args.folders.items():
        if name in REFUSED:
            raise ValueError(f"task {name} cannot be learnt here: {REFUSED[name]}")
        if name not in TASKS:
            raise ValueError(f"there is no task {name!r}; there are {', '.join(TASKS)}")
        if not folder:
            raise ValueError(f"task {name} needs its data: {name}=DIR")
    form = "--steps takes N or TASK=N from 1 on"
    steps = read_words(args.steps, r"(?:(\w+)=)?(0*[1-9]\d*)", form)
    if unknown := steps.keys() - {"", *args.folders}:
        raise ValueError(f"--steps names {min(unknown)}, which --tasks does not")
    args.updates = {task: int(number) for task, number in steps.items()}
    form = "an upstream is NAME=SOURCE or a name of s3prl"
    args.sources = read_words(args.upstreams, r"(\w[\w.-]*)(?:=(.+))?", form)
    if args.sources.get("random") == "":
        raise ValueError(
            "upstream random needs the model whose network it has: random=SOURCE"
        )
    # what comes with the weights is no option
    known = [name for name in OPTIONS if name not in RANDOM | LOADING]
    form = f"--options takes name=value with {', '.join(known)}"
    options = read_words(args.options, rf"({'|'.join(known)})=(.*)", form)
    args.upstream_options = {k: yaml.safe_load(v) for k, v in options.items()}
    args.lrs = tuple(dict.fromkeys(args.lrs))
    args.seeds = tuple(dict.fromkeys(args.seeds))


def prepare(name: str, source: str, seed: int, folder: Path) -> Upstream:
    """Read the weights of an upstream once and keep them as a model in `folder`.

    The source is anything `load_model` reads, with {seed} in it replaced, or "" for a
    name of s3prl; `random` draws the weights of its network anew.
    """
    if not source:
        return Upstream(name, seed, name)
    import torch

    from espnet2_sslam import checkpoint

    source = source.replace("{seed}", str(seed))
    model: Any = checkpoint.load_model(source).encoder
    if name == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = checkpoint.build_model(checkpoint.model_config(model))
    target = (folder / f"{name}_seed{seed}").resolve()
    checkpoint.save_model(model, target)
    digest = sha256(target / "model.safetensors")
    return Upstream(name, seed, "sslam", str(target), digest, source)


def make_config(
    task: Task,
    data: dict[str, str],
    upstream: Upstream,
    lr: float,
    fold: int,
    args: argparse.Namespace,
) -> dict[str, Any]:
    """s3prl's configuration of a run, without the weights' place."""
    steps = args.updates.get(task.name, args.updates.get(""))
    every = args.eval_every or (steps and max(1, steps // 4))
    runner = {} if steps is None else {"total_steps": steps}
    if every:
        every = min(every, steps or every)
        runner.update(eval_step=every, save_step=every, log_step=every)
    if task.hear:  # its other values are in s3prl itself
        folds = {"test_fold": fold, "num_folds": task.folds} if task.folds > 1 else {}
        return {
            "target_dir": ".",
            "cache_dir": "cache",
            "prepare_data": {**data, **folds},
            "build_upstream": {"name": upstream.entry},
            "build_optimizer": {"name": "Adam", "conf": {"lr": lr}},
            "train": {"seed": upstream.seed, **runner},
        }
    path = args.config_dir / f"{task.name}.yaml"
    if not path.is_file():
        raise ValueError(f"task {task.name} needs {path}; --config_dir names it")
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    config["runner"].update(runner)
    config["optimizer"]["lr"] = lr
    config["downstream_expert"]["datarc"].update(data)
    if task.name == "er":
        config["downstream_expert"]["datarc"]["test_fold"] = f"fold{fold}"
    return config


def make_runs(args: argparse.Namespace) -> list[Run]:
    """All runs that are asked for, after everything they need was found to be there."""
    from espnet2_sslam.integrations.s3prl.compat import check_learnable
    from espnet2_sslam.integrations.s3prl.expert import samples_per_step

    options = args.upstream_options
    upstreams = [
        prepare(name, source, seed, args.expdir / "models")
        for seed, (name, source) in product(args.seeds, args.sources.items())
    ]
    runs = []
    for name, folder in args.folders.items():
        logging.info("%s: reading %s", name, folder)
        task = TASKS[name]
        data, samples = read_data(task, Path(folder).expanduser(), args.expdir / "data")
        if not task.hear and any(upstream.ckpt for upstream in upstreams):
            try:  # HEAR's s3prl.main rounds up
                check_learnable(samples_per_step(**options), samples)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        rates_and_folds = list(product(args.lrs, task.fold_numbers))
        for up, (lr, fold) in product(upstreams, rates_and_folds):
            settings = {
                "task": name,
                "lr": lr,
                "fold": fold,
                "seed": up.seed,
                "entry": up.entry,
                "sha256": up.sha256,
                "options": options if up.ckpt else {},
                "config": make_config(task, data, up, lr, fold, args),
                "clips": len(samples),
                "samples": sum(samples),
                "s3prl": importlib.metadata.version("s3prl"),
            }
            own = f"lr{lr:g}" + (f"_fold{fold}" if task.folds > 1 else "")
            path = args.expdir / name / f"{up.name}_seed{up.seed}" / own
            runs.append(Run(path, up, settings))
    for run in runs:
        write_json(f"{run.folder}.json", run.settings)
    return runs


def run_all(args: argparse.Namespace, runs: list[Run], part: str) -> list[str]:
    """Train or test runs, --nj at a time; returns the titles of those that failed."""
    paths = [str(RECIPE.parent.parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    workers = 4 if args.num_workers is None else args.num_workers
    replaced = args.expdir.with_name(f"{args.expdir.name}_replaced")

    def work(run: Run) -> bool:
        title, place, made = run.title, run.folder, "dev.json"
        more = ["--replaced", replaced, "--ask"]
        more += ["--replace", args.replace, "--keep", args.keep]
        if part == "test":
            title, place, made = f"test of {title}", place / "scoring", "test.json"
            more = ["--input", run.folder / "dev.json"]
        log = place / "s3prl.log"
        command = [sys.executable, RECIPE / "utils/once.py", title, place, *more]
        command += ["--log", log, "--output", place / made]
        command += ["--input", f"{run.folder}.json"]
        command += ["--", RECIPE / "utils/run.pl", log, sys.executable, PROGRAM]
        command += ["--device", args.device, "--num_workers", workers]
        command += ["--ckpt", run.upstream.ckpt]
        command += ["--", part, run.folder]  # only this decides the result
        return subprocess.run(list(map(str, command)), env=environment).returncode == 0

    with ThreadPoolExecutor(args.nj) as threads:
        done = list(threads.map(work, runs))
    return [run.title for run, well in zip(runs, done, strict=True) if not well]


def choose(
    runs: Sequence[Run], failed: Sequence[str] = ()
) -> dict[tuple[str, str], float]:
    """The best learning rate of each task and upstream.

    By the mean of the dev scores over seeds and folds; of equal ones the smallest. A
    task and upstream with a failed training has none.
    """
    scores: dict[tuple[str, str], dict[float, list]] = {}
    for run in runs:
        by_rate = scores.setdefault(run.key, {})
        dev = None if run.title in failed else run.record("dev.json")
        by_rate.setdefault(run.settings["lr"], []).append(dev and dev["dev"])
    return {
        key: max(by_rate, key=lambda lr: (sum(by_rate[lr]), -lr))
        for key, by_rate in scores.items()
        if not any(None in dev for dev in by_rate.values())
    }


def main(cmd: Sequence[str] | None = None) -> None:
    """Run what is missing and write the table."""
    args = get_parser().parse_args(cmd)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s (superb) %(message)s")
    check(args)
    runs = make_runs(args)
    failed = run_all(args, runs, "train")
    chosen = choose(runs, failed)
    tests = [run for run in runs if chosen.get(run.key) == run.settings["lr"]]
    failed += run_all(args, tests, "test")
    output = args.output or args.expdir / "SUPERB.md"
    write_table(args, runs, tests, failed, output)
    asked = len(args.folders) * len(args.sources)
    print(f"wrote {output}: {len(chosen)} of {asked} results")
    if failed:
        raise ValueError(
            f"{len(failed)} failed, the rest is kept; mend what the lines above name "
            f"and run again. First: {failed[0]}"
        )


if __name__ == "__main__":
    run_main(main)
