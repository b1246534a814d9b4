"""From finished runs to records: scores, tables and plots.

Importing it takes neither torch, pandas nor matplotlib: they come where they are used.
"""

from espnet2_sslam.results.paper import authors_curve, compare_run, verdict
from espnet2_sslam.results.report import write_all
from espnet2_sslam.results.runs import (
    MODELS,
    Experiment,
    History,
    collect,
    collect_scores,
    read_history,
    thin_out,
    train_curves,
)
from espnet2_sslam.results.scoring import ResampledPrecision, bootstrap, score_files
from espnet2_sslam.results.tables import (
    all_series,
    comparisons,
    markdown,
    write_benchmarks,
    write_scores_csv,
)

__all__ = [
    "MODELS",
    "Experiment",
    "History",
    "ResampledPrecision",
    "all_series",
    "authors_curve",
    "bootstrap",
    "collect",
    "collect_scores",
    "compare_run",
    "comparisons",
    "markdown",
    "read_history",
    "score_files",
    "thin_out",
    "train_curves",
    "verdict",
    "write_all",
    "write_benchmarks",
    "write_scores_csv",
]
