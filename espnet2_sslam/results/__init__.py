"""From finished runs to records: scores, tables and plots.

Importing it takes neither torch, pandas nor matplotlib: they come where they are used.
"""

from espnet2_sslam.results.experiment import MODELS, all_series, collect, comparisons
from espnet2_sslam.results.paper import authors_curves, compare_run, verdict
from espnet2_sslam.results.report import (
    markdown,
    write_all,
    write_benchmarks,
    write_scores_csv,
)
from espnet2_sslam.results.runs import health, read_history
from espnet2_sslam.results.scoring import bootstrap, score_files

__all__ = [
    "MODELS",
    "all_series",
    "authors_curves",
    "bootstrap",
    "collect",
    "compare_run",
    "comparisons",
    "health",
    "markdown",
    "read_history",
    "score_files",
    "verdict",
    "write_all",
    "write_benchmarks",
    "write_scores_csv",
]
