"""The result of a sweep as one table: SUPERB.md, and the same as JSON and CSV."""

from pathlib import Path
from statistics import mean, stdev
from typing import Any

from espnet2_sslam.integrations.superb.run import Run
from espnet2_sslam.integrations.superb.sweep import Outcome
from espnet2_sslam.integrations.superb.tasks import TASKS
from espnet2_sslam.machine import environment
from espnet2_sslam.results import markdown
from espnet2_sslam.store import write_csv, write_json, write_text

COLUMNS = (
    "task metric upstream lr steps seeds folds test spread dev best_steps seconds "
    "s3prl weights_sha256 source"
).split()


def write_table(outcome: Outcome, output: Path) -> None:
    """Write OUTPUT (Markdown), and beside it the same name with .json and .csv."""
    rows = [row for key in _keys(outcome) if (row := _row(outcome, *key))]
    made = environment()
    plan = outcome.plan
    record = {
        **made,
        "options": plan.options,
        "learning_rates": list(plan.lrs),
        "seeds": list(plan.seeds),
        "results": rows,
        "trainings": [_training(run) for run in outcome.runs if run.record("trained")],
        "failures": outcome.failures,
    }
    write_json(output.with_suffix(".json"), record)
    write_csv(
        output.with_suffix(".csv"), COLUMNS, [[r[c] for c in COLUMNS] for r in rows]
    )
    write_text(output, _report(outcome, rows, made))


def _keys(outcome: Outcome) -> list:
    plan = outcome.plan
    return [(task, name) for task in plan.tasks for name in plan.upstreams]


def _row(outcome: Outcome, task: str, name: str) -> dict[str, Any] | None:
    """The tested runs of a task and upstream, None while one is missing."""
    lr = outcome.chosen.get((task, name))
    runs = [
        run
        for run in outcome.runs
        if (run.task.name, run.upstream.name, run.lr) == (task, name, lr)
    ]
    tested = [run.record("tested") for run in runs]
    if not runs or None in tested:
        return None
    trained = [run.record("trained") for run in runs]
    by_seed: dict[int, list[float]] = {}
    for run, record in zip(runs, tested):
        by_seed.setdefault(run.seed, []).append(record["test"])
    means = [mean(scores) for scores in by_seed.values()]
    first = runs[0]
    return {
        "task": task,
        "metric": TASKS[task].metric,
        "upstream": name,
        "lr": lr,
        "steps": trained[0]["steps"],
        "seeds": " ".join(map(str, by_seed)),
        "folds": TASKS[task].folds,
        "test": mean(means),
        "spread": stdev(means) if len(means) > 1 else None,
        "dev": mean(record["dev"] for record in trained),
        "best_steps": " ".join(str(record["dev_step"]) for record in trained),
        "seconds": sum(record["seconds"] for record in trained),
        "s3prl": first.settings["s3prl"],
        "weights_sha256": " ".join(
            dict.fromkeys(r.upstream.sha256[:12] for r in runs if r.upstream.sha256)
        ),
        "source": " ".join(
            dict.fromkeys(r.upstream.origin for r in runs if r.upstream.origin)
        ),
    }


def _training(run: Run) -> dict[str, Any]:
    """One training of the grid."""
    trained, tested = run.record("trained"), run.record("tested")
    return {
        "task": run.task.name,
        "upstream": run.upstream.name,
        "lr": run.lr,
        "seed": run.seed,
        "fold": run.fold if run.task.folds > 1 else None,
        **{name: trained[name] for name in ("dev", "dev_step", "steps", "seconds")},
        "test": tested["metrics"] if tested else None,
    }


def _report(outcome: Outcome, rows: list[dict[str, Any]], made: dict[str, str]) -> str:
    plan = outcome.plan
    found = {(row["task"], row["upstream"]): row for row in rows}
    header = ["upstream", *(f"{t} ({TASKS[t].metric})" for t in plan.tasks)]
    scores = [
        [name, *(_score(found.get((task, name))) for task in plan.tasks)]
        for name in plan.upstreams
    ]
    versions = f"{made['versions']}, s3prl {outcome.runs[0].settings['s3prl']}"
    lines = [
        "# SUPERB-style evaluation",
        "",
        f"{made['date']}, {made['machine']}, {versions}; commit {made['commit']}.",
        "",
        "Scores of the test sets in %. The upstream is frozen; s3prl trains a weighted "
        "sum of its layers and a small head. Learning rate: the best of "
        f"{_grid(plan.lrs)} by the mean dev score; only it is scored on the test set. "
        f"{_seeds(plan.seeds)} Tasks with folds: the mean over their folds.",
        "",
        markdown(header, scores),
        "",
        markdown(
            ["task", "upstream", "lr", "dev", "test", "updates", "best at", "folds"],
            [_details(row, plan.lrs) for row in rows],
        ),
        "",
        f"Options of sslam: {_options(plan.options)}. "
        + "; ".join(f"{t}: {TASKS[t].title}" for t in plan.tasks)
        + ". Every training of the grid, sources and hashes of weights: the JSON file.",
    ]
    edges = [row for row in rows if _at_edge(row["lr"], plan.lrs)]
    if edges:
        lines += ["", "`!`: at the edge of the grid, a wider one may find better."]
    missing = [key for key in _keys(outcome) if key not in found]
    if missing:
        lines += ["", f"Missing: {', '.join(f'{u} on {t}' for t, u in missing)}."]
    lines += [f"- {failure}" for failure in outcome.failures]
    return "\n".join(lines) + "\n"


def _score(row: dict[str, Any] | None) -> str:
    if row is None:
        return "missing"
    spread = "" if row["spread"] is None else f" ± {100 * row['spread']:.1f}"
    return f"{100 * row['test']:.1f}{spread}"


def _details(row: dict[str, Any], lrs) -> list:
    edge = " !" if _at_edge(row["lr"], lrs) else ""
    dev = f"{100 * row['dev']:.1f}"
    names = (row["task"], row["upstream"], f"{row['lr']:g}{edge}", dev, _score(row))
    return [*names, row["steps"], row["best_steps"], row["folds"]]


def _at_edge(lr: float, lrs) -> bool:
    return len(lrs) > 1 and lr in (min(lrs), max(lrs))


def _grid(lrs) -> str:
    return ", ".join(f"{lr:g}" for lr in lrs) + (
        " (no search)" if len(lrs) == 1 else ""
    )


def _seeds(seeds) -> str:
    if len(seeds) == 1:
        return f"One seed ({seeds[0]}), so no spread."
    return f"Mean ± standard deviation over seeds {', '.join(map(str, seeds))}."


def _options(options: dict[str, Any]) -> str:
    return ", ".join(f"{k}={v}" for k, v in options.items()) or "its defaults"
