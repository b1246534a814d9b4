#!/usr/bin/env python3
"""Train or test one run of s3prl, in its folder: a task, upstream, rate, seed and fold.

FOLDER.json holds what the result depends on. `train` leaves FOLDER/dev.json and, where
it was interrupted, is continued; `test` leaves FOLDER/scoring/test.json.
"""

import argparse
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import yaml
from superb_tasks import TASKS

from espnet2_sslam.bin.cli import run_main
from espnet2_sslam.store import write_json, write_text

# SID's lists of files would go into s3prl's own folder and be used for other data.
SPEAKERS = (
    "import os, s3prl.downstream.voxceleb1.dataset as d; "
    "d.CACHE_PATH = os.path.join(os.getcwd(), 'cache', ''); "
    "from s3prl.run_downstream import main; main()"
)


def s3prl_command(args: argparse.Namespace, run: dict[str, Any]) -> list[str]:
    """The command of s3prl, to be started in the run's folder."""
    task, train = TASKS[run["task"]], args.part == "train"
    words = [sys.executable, "-m", "espnet2_sslam"]
    if task.hear:
        words += ["-m", "s3prl.main", task.name, "--config", "task.yaml"]
        words += ["--device", args.device, "--num_workers", str(args.num_workers)]
        return [*words, *(("--stop", "2") if train else ("--start", "3"))]
    words += ["-c", SPEAKERS] if task.name == "sid" else ["-m", "s3prl.run_downstream"]
    words += ["--device", args.device]
    if not train:
        best = args.folder / "dev-best.ckpt"  # missing if every dev score was 0
        if not best.exists():
            states = args.folder.glob("states-*.ckpt")
            best = max(states, key=lambda path: int(path.stem.split("-")[-1]))
        return [*words, "-m", "evaluate", "-t", "test", "-e", best.name]
    words += ["-m", "train", "-a", "-p", ".", "-c", "task.yaml"]
    words += ["--seed", str(run["seed"]), "-d", task.expert, "-u", run["entry"]]
    return words + (["-k", args.ckpt, "-g", "upstream.yaml"] if args.ckpt else [])


def prepare(args: argparse.Namespace, run: dict[str, Any]) -> None:
    """Write the files that the command names, and remove what a kill has torn."""
    folder, config = args.folder, run["config"]
    if not TASKS[run["task"]].hear:
        config["downstream_expert"]["datarc"]["num_workers"] = args.num_workers
        write_text(folder / "upstream.yaml", yaml.safe_dump(run["options"]))
    elif args.ckpt:  # the weights' folder may have moved
        config["build_upstream"]["extra_conf"] = {"ckpt": args.ckpt, **run["options"]}
    write_text(folder / "task.yaml", yaml.safe_dump(config, sort_keys=False))
    for path in folder.glob("*.ckpt") if args.part == "train" else ():
        if not zipfile.is_zipfile(path):
            path.unlink()
    for step in folder.glob("train/step_*"):
        if not (step / "config.yaml").exists():  # s3prl writes it last
            shutil.rmtree(step)


def dev_score(folder: Path, run: dict[str, Any]) -> dict[str, Any]:
    """Best score on the dev set, after how many updates, and updates in all."""
    task = TASKS[run["task"]]
    if task.hear:
        stats = read_yaml(folder / "train/valid_best/training_stats.yaml")
        latest = read_yaml(max((folder / "configs").glob("*.yaml")))
        dev, step = stats["valid_best_metrics"][task.metric], stats["global_step"]
        steps = latest["train"]["total_steps"]
    else:
        log = (folder / "log.log").read_text(encoding="utf-8")
        best = re.findall(r"^New best on dev at step (\d+): (\S+)$", log, re.M)
        if not best and not re.search(r"^dev at step", log, re.M):
            raise ValueError(f"{folder / 'log.log'} has no score on the dev set")
        step, dev = best[-1] if best else (0, 0)  # nothing is better than nothing
        steps = run["config"]["runner"]["total_steps"]
    return {"dev": float(dev), "dev_step": int(step), "steps": int(steps)}


def test_scores(folder: Path, run: dict[str, Any]) -> dict[str, float | None]:
    """Scores on the test set by metric, None for those that are not defined."""
    if TASKS[run["task"]].hear:
        [result] = folder.glob("evaluate/valid_best/*/result.yaml")
        scores = read_yaml(result)
        return {k: v if math.isfinite(v) else None for k, v in scores.items()}
    log = (folder / "log.log").read_text(encoding="utf-8")
    return {"accuracy": float(re.findall(r"^test at step 0: (\S+)$", log, re.M)[-1])}


def read_yaml(path: Path) -> dict[str, Any]:
    """The content of a YAML file."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def main() -> None:
    """Run s3prl, and write the scores that it leaves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--num_workers", type=int, default=4)
    parser.add_argument("--ckpt", help="folder with the weights of sslam")
    parser.add_argument("part", choices=("train", "test"))
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    folder, began = args.folder, time.monotonic()
    run = json.loads(Path(f"{folder}.json").read_text(encoding="utf-8"))
    prepare(args, run)
    # Absolute: s3prl is started in the run's folder.
    paths = map(os.path.abspath, filter(None, os.environ["PYTHONPATH"].split(":")))
    environment = {**os.environ, "PYTHONPATH": ":".join(paths)}
    done = subprocess.run(s3prl_command(args, run), cwd=folder, env=environment)
    if done.returncode:
        sys.exit(done.returncode)
    if args.part == "test":
        scores = test_scores(folder, run)
        content = {"test": scores[TASKS[run["task"]].metric], "metrics": scores}
        write_json(folder / "scoring/test.json", content)
        return
    seconds = round(time.monotonic() - began)
    write_json(folder / "dev.json", {**dev_score(folder, run), "seconds": seconds})
    # what only a continued training needs, as big as the model each
    for step in folder.glob("train/step_*"):
        shutil.rmtree(step)


if __name__ == "__main__":
    run_main(main)
