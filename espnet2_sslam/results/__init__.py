"""From finished runs to records: scores, tables and plots.

Importing it takes neither torch, pandas nor matplotlib: they come where they are used.
"""

from espnet2_sslam.results.curves import authors_curve, compare_run, verdict
from espnet2_sslam.results.intervals import ResampledPrecision, bootstrap
from espnet2_sslam.results.report import write_all
from espnet2_sslam.results.runs import (
    CHECKPOINTS,
    MODELS,
    Experiment,
    Frame,
    History,
    collect,
    collect_scores,
    in_order,
    read_history,
    select,
    summarise,
    thin_out,
    train_curves,
)
from espnet2_sslam.results.scoring import read_predictions, score_files
from espnet2_sslam.results.tables import (
    all_series,
    comparisons,
    markdown,
    show,
    write_benchmarks,
    write_scores_csv,
)

__all__ = [
    "CHECKPOINTS",
    "MODELS",
    "Experiment",
    "Frame",
    "History",
    "ResampledPrecision",
    "all_series",
    "authors_curve",
    "bootstrap",
    "collect",
    "collect_scores",
    "compare_run",
    "comparisons",
    "in_order",
    "markdown",
    "read_history",
    "read_predictions",
    "score_files",
    "select",
    "show",
    "summarise",
    "thin_out",
    "train_curves",
    "verdict",
    "write_all",
    "write_benchmarks",
    "write_scores_csv",
]
