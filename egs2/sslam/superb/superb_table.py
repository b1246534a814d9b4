"""The result as one table: SUPERB.md, and the same as JSON and CSV."""

import argparse
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from superb_tasks import TASKS

from espnet2_sslam.machine import environment
from espnet2_sslam.results import markdown
from espnet2_sslam.store import write_csv, write_json, write_text

PAGE = """\
# SUPERB-style evaluation

{date}, {machine}, {versions}, s3prl {s3prl}; commit {commit}.

Scores of the test sets in %, mean ± standard deviation over seeds {seeds}. The \
upstream is frozen; s3prl trains a weighted sum of its layers and a small head. \
Learning rate: the best of {grid} by the mean dev score (`!`: at the edge of the grid, \
a wider one may find better); only it is scored on the test set. Tasks with folds: the \
mean over their folds.

{scores}

{details}

Options of sslam: {options}. {titles}. Every training of the grid, sources and hashes \
of weights: the JSON file.
"""


def write_table(
    args: argparse.Namespace,
    runs: Sequence[Any],
    tests: Sequence[Any],
    failed: Sequence[str],
    output: Path,
) -> None:
    """Write OUTPUT (Markdown), and beside it the same name with .json and .csv.

    Of all runs, `tests` have the best learning rate and were tested.
    """
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    pairs = list(product(args.folders, args.sources))
    for key in pairs:
        group = [run for run in tests if run.key == key]
        if group and all(run.record("scoring/test.json") for run in group):
            rows[key] = table_row(*key, group)
    made = environment()
    record = {
        **made,
        "options": args.upstream_options,
        "learning_rates": list(args.lrs),
        "seeds": list(args.seeds),
        "results": list(rows.values()),
        "trainings": [training(run) for run in runs if run.record("dev.json")],
        "failures": list(failed),
    }
    write_json(output.with_suffix(".json"), record)
    header = list(next(iter(rows.values()), {}))
    write_csv(output.with_suffix(".csv"), header, [r.values() for r in rows.values()])
    edges = {min(args.lrs), max(args.lrs)} if len(args.lrs) > 1 else set()
    details = [
        [
            *(row["task"], row["upstream"]),
            f"{row['lr']:g}{' !' if row['lr'] in edges else ''}",
            *(f"{100 * row['dev']:.1f}", score(row)),
            *(row["steps"], row["best_steps"], row["folds"]),
        ]
        for row in rows.values()
    ]
    scores = [
        [name, *(score(rows.get((task, name))) for task in args.folders)]
        for name in args.sources
    ]
    tasks = [f"{task} ({TASKS[task].metric})" for task in args.folders]
    columns = ["task", "upstream", "lr", "dev", "test", "updates", "best at", "folds"]
    options = ", ".join(f"{k}={v}" for k, v in args.upstream_options.items())
    page = PAGE.format(
        **made,
        s3prl=runs[0].settings["s3prl"],
        grid=", ".join(f"{lr:g}" for lr in args.lrs),
        seeds=", ".join(map(str, args.seeds)),
        scores=markdown(["upstream", *tasks], scores),
        details=markdown(columns, details),
        options=options or "its defaults",
        titles="; ".join(f"{task}: {TASKS[task].title}" for task in args.folders),
    )
    missing = [f"{name} on {task}" for task, name in pairs if (task, name) not in rows]
    if missing:
        page += f"\nMissing: {', '.join(missing)}.\n"
    write_text(output, page + "".join(f"- failed: {title}\n" for title in failed))


def table_row(task: str, name: str, runs: Sequence[Any]) -> dict[str, Any]:
    """The tested runs of a task and upstream: the mean over folds, then over seeds."""
    by_seed: dict[int, list[float]] = {}
    for run in runs:
        test = run.record("scoring/test.json")["test"]
        by_seed.setdefault(run.upstream.seed, []).append(test)
    means = [mean(scores) for scores in by_seed.values()]
    trained = [run.record("dev.json") for run in runs]
    upstreams = [run.upstream for run in runs]
    return {
        "task": task,
        "metric": TASKS[task].metric,
        "upstream": name,
        "lr": runs[0].settings["lr"],
        "steps": trained[0]["steps"],
        "seeds": " ".join(map(str, by_seed)),
        "folds": TASKS[task].folds,
        "test": mean(means),
        "spread": stdev(means) if len(means) > 1 else None,
        "dev": mean(record["dev"] for record in trained),
        "best_steps": " ".join(str(record["dev_step"]) for record in trained),
        "seconds": sum(record["seconds"] for record in trained),
        "s3prl": runs[0].settings["s3prl"],
        "weights_sha256": " ".join(dict.fromkeys(up.sha256[:12] for up in upstreams)),
        "source": " ".join(dict.fromkeys(up.origin for up in upstreams)),
    }


def training(run: Any) -> dict[str, Any]:
    """One training of the grid."""
    tested, settings = run.record("scoring/test.json"), run.settings
    return {
        "task": settings["task"],
        "upstream": run.upstream.name,
        "lr": settings["lr"],
        "seed": settings["seed"],
        "fold": settings["fold"] if TASKS[settings["task"]].folds > 1 else None,
        **run.record("dev.json"),
        "test": tested and tested["metrics"],
    }


def score(row: dict[str, Any] | None) -> str:
    """A score in %, with its spread over the seeds."""
    if row is None:
        return "missing"
    spread = "" if row["spread"] is None else f" ± {100 * row['spread']:.1f}"
    return f"{100 * row['test']:.1f}{spread}"
