"""From finished runs to records: scores, tables and plots."""

from espnet2_sslam.results.benchmarks import write_benchmarks
from espnet2_sslam.results.figures import draw_figures
from espnet2_sslam.results.history import History, read_history, thin_out, train_curves
from espnet2_sslam.results.intervals import ResampledPrecision, bootstrap
from espnet2_sslam.results.record import Record, Split, collect
from espnet2_sslam.results.report import findings, write_all
from espnet2_sslam.results.runs import (
    CHECKPOINTS,
    MODELS,
    Key,
    Scores,
    collect_scores,
    in_order,
)
from espnet2_sslam.results.scoring import read_predictions, score_files
from espnet2_sslam.results.series import all_series, chance_level, numbered_splits
from espnet2_sslam.results.summary import Cell, compare, models_present, summarise
from espnet2_sslam.results.tables import markdown, show, write_scores_csv

__all__ = [
    "CHECKPOINTS",
    "Cell",
    "History",
    "Key",
    "MODELS",
    "Record",
    "ResampledPrecision",
    "Scores",
    "Split",
    "all_series",
    "bootstrap",
    "chance_level",
    "collect",
    "collect_scores",
    "compare",
    "draw_figures",
    "findings",
    "in_order",
    "markdown",
    "models_present",
    "numbered_splits",
    "read_history",
    "read_predictions",
    "score_files",
    "show",
    "summarise",
    "thin_out",
    "train_curves",
    "write_all",
    "write_benchmarks",
    "write_scores_csv",
]
