"""The experiment around a model: every seed, as stage 7 wrote it down."""

import csv
import math
from pathlib import Path

from espnet2_sslam.integrations.publish.evaluation import METRICS, Score, read_metrics
from espnet2_sslam.integrations.publish.records import without_machine
from espnet2_sslam.results import Key, Scores, markdown, models_present, show, summarise

SCORES_FILE = Path("results") / "scores.csv"
ROUNDING = 1e-6  # scores.csv holds six decimals
MADE_WITH = ("date", "commit", "machine", "versions")  # of RESULTS.md's first table


def has_table(experiment: Path) -> bool:
    """Whether stage 7 has ended there."""
    return (experiment / SCORES_FILE).is_file()


def read_table(experiment: Path) -> Scores:
    """All scores of an experiment, from the table that stage 7 wrote.

    Raises:
        ValueError: The table does not agree with the scores that are there.
    """
    path = experiment / SCORES_FILE
    found: dict[Key, dict] = {}
    with open(path, encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            key = Key(*(row[name] for name in Key._fields))
            key = key._replace(seed=int(key.seed))
            values = {name: float(row[name]) for name in METRICS if row[name]}
            file = run_of(experiment, key) / key.checkpoint / key.split / "metrics.json"
            if file.is_file():
                _check_row(path, values, file)
            found[key] = {**values, "num_clips": int(row["clips"])}
    tests = {(k.tag, k.data_set, k.fold, k.split, k.checkpoint) for k in found}
    runs = {(k.tag, k.model, k.seed) for k in found}
    expected = {
        Key(t[0], r[1], r[2], *t[1:]) for t in tests for r in runs if r[0] == t[0]
    }
    return Scores([], found, sorted(expected - set(found)), {})


def read_made_with(experiment: Path) -> dict[str, str]:
    """When, from which commit and on which machine stage 7 wrote RESULTS.md."""
    path = experiment / "RESULTS.md"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    rows = [line.strip("| ").split(" | ") for line in lines[:12]]
    return {row[0]: row[1] for row in rows if len(row) == 2 and row[0] in MADE_WITH}


def run_of(experiment: Path, key: Key) -> Path:
    """The folder of a run of stage 6."""
    fold = f"_{key.fold}" if key.fold else ""
    return experiment / key.tag / f"{key.model}_seed{key.seed}" / (key.data_set + fold)


def fold_names(scores: Scores) -> dict[str, str]:
    """{name of a run's folder: its data set}, of data sets with folds."""
    keys = (key for key in scores.found if key.fold)
    return {f"{key.data_set}_{key.fold}": key.data_set for key in keys}


def seed_table(scores: Scores, wanted: list[Score], folds: dict[str, str]) -> list[str]:
    """A table for each tag and data set of `wanted`: models by test splits, all seeds.

    Args:
        scores: Of the experiment.
        wanted: Which test splits and checkpoints are shown.
        folds: See `fold_names`.
    """
    parts = []
    wanted = [s._replace(data_set=folds.get(s.data_set, s.data_set)) for s in wanted]
    for tag, data_set, how in dict.fromkeys((s.tag, s.data_set, s.how) for s in wanted):
        mine = [s for s in wanted if (s.tag, s.data_set) == (tag, data_set)]
        columns = [
            (s.split, metric, s.checkpoint)
            for s in mine
            for metric in METRICS
            if metric in s.metrics
        ]
        here = {k for k in scores.found if (k.tag, k.data_set) == (tag, data_set)}
        present = {key.model for key in here}
        models = [m for m in models_present(scores, tag) if m in present]
        rows = [
            [
                model,
                *(
                    show(summarise(scores, tag, model, data_set, split, check, metric))
                    for split, metric, check in columns
                ),
            ]
            for model in models
        ]
        if not models:
            continue
        seeds = sorted({key.seed for key in here})
        header = ["model", *(f"{s}, {m}, {c}" for s, m, c in columns)]
        names = ", ".join(map(str, seeds))
        parts.append(f"{data_set}, {how} (`{tag}`), seeds {names}, in %:")
        parts.append(markdown(header, rows))
    return parts


def _check_row(table: Path, values: dict[str, float], file: Path) -> None:
    """Refuse a table that is older than the scores."""
    metrics = read_metrics(file)
    for name, value in values.items():
        if not math.isclose(value, metrics.get(name, math.nan), abs_tol=ROUNDING):
            raise ValueError(
                f"{without_machine(str(table))} says {name} {value}, "
                f"{without_machine(str(file))} {metrics.get(name)}: run stage 7 again"
            )
