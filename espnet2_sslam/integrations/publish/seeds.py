"""The experiment around a model: every seed, as stage 7 wrote it down."""

import math
from pathlib import Path

from espnet2_sslam.integrations.publish.evaluation import METRICS, Score, read_metrics
from espnet2_sslam.integrations.publish.records import without_machine
from espnet2_sslam.results import Frame, in_order, markdown, select, show, summarise

SCORES_FILE = Path("results") / "scores.csv"
ROUNDING = 1e-6  # scores.csv holds six decimals
MADE_WITH = ("date", "commit", "machine", "versions")  # of RESULTS.md's first table


def has_table(experiment: Path) -> bool:
    """Whether stage 7 has ended there."""
    return (experiment / SCORES_FILE).is_file()


def read_table(experiment: Path) -> Frame:
    """All scores of an experiment, from the table that stage 7 wrote.

    Raises:
        ValueError: The table does not agree with the scores that are there.
    """
    import pandas as pd

    path = experiment / SCORES_FILE
    frame = pd.read_csv(path, dtype={"fold": str}).fillna({"fold": ""})
    for row in frame.to_dict("records"):
        fold = f"_{row['fold']}" if row["fold"] else ""
        run = experiment / row["tag"] / f"{row['model']}_seed{row['seed']}"
        folder = run / (row["data_set"] + fold) / row["checkpoint"] / row["split"]
        if (folder / "metrics.json").is_file():
            values = {name: row[name] for name in METRICS if not math.isnan(row[name])}
            _check_row(path, values, folder / "metrics.json")
    # Every run of a tag should have what any other has.
    tests = frame[["tag", "data_set", "fold", "split", "checkpoint"]].drop_duplicates()
    runs = frame[["tag", "model", "seed"]].drop_duplicates()
    return runs.merge(tests, on="tag").merge(frame, how="left")


def read_made_with(experiment: Path) -> dict[str, str]:
    """When, from which commit and on which machine stage 7 wrote RESULTS.md."""
    path = experiment / "RESULTS.md"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    rows = [line.strip("| ").split(" | ") for line in lines[:12]]
    return {row[0]: row[1] for row in rows if len(row) == 2 and row[0] in MADE_WITH}


def fold_names(scores: Frame) -> dict[str, str]:
    """{name of a run's folder: its data set}, of data sets with folds."""
    folds = scores[scores["fold"] != ""]
    runs = folds["data_set"] + "_" + folds["fold"]
    return dict(zip(runs, folds["data_set"], strict=True))


def seed_table(scores: Frame, wanted: list[Score], folds: dict[str, str]) -> list[str]:
    """A table for each tag and data set of `wanted`: models by test splits, all seeds.

    Args:
        scores: Of the experiment.
        wanted: Which test splits and checkpoints are shown.
        folds: See `fold_names`.
    """
    parts = []
    wanted = [s._replace(data_set=folds.get(s.data_set, s.data_set)) for s in wanted]
    for tag, data_set, how in dict.fromkeys((s.tag, s.data_set, s.how) for s in wanted):
        columns = [
            (s.split, metric, s.checkpoint)
            for s in wanted
            if (s.tag, s.data_set) == (tag, data_set)
            for metric in METRICS
            if metric in s.metrics
        ]
        here = select(scores, tag=tag, data_set=data_set)
        scored = here[here["clips"].notna()]
        if scored.empty:
            continue
        cells = summarise(here)
        keys = ["model", "split", "metric", "checkpoint"]
        texts = {tuple(cell[keys]): show(cell) for _, cell in cells.iterrows()}
        models = [m for m in in_order(scores["model"]) if m in set(scored["model"])]
        rows = [[m, *(texts[m, *column] for column in columns)] for m in models]
        header = ["model", *(f"{s}, {m}, {c}" for s, m, c in columns)]
        names = ", ".join(map(str, sorted(set(scored["seed"]))))
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
