"""Embeddings and labels for people who never train; pictures are in `plot`."""

from espnet2_sslam.audio import AudioInput, collect_files
from espnet2_sslam.inference.api import SSLAM, best_labels
from espnet2_sslam.inference.events import Event, class_thresholds, find_events
from espnet2_sslam.inference.outputs import (
    event_table,
    output_format,
    plain,
    recording_path,
    write_embeddings,
    write_event_files,
    write_events,
    write_score_tables,
    write_scores,
)
from espnet2_sslam.inference.results import (
    ResultFolder,
    Rows,
    StoredRows,
    weights_sha256,
)
from espnet2_sslam.inference.search import (
    EmbeddingIndex,
    Match,
    load_index_model,
    search,
)
from espnet2_sslam.inference.stream import FileResult

__all__ = [
    "SSLAM",
    "AudioInput",
    "EmbeddingIndex",
    "Event",
    "FileResult",
    "Match",
    "ResultFolder",
    "Rows",
    "StoredRows",
    "best_labels",
    "class_thresholds",
    "collect_files",
    "event_table",
    "find_events",
    "load_index_model",
    "output_format",
    "plain",
    "recording_path",
    "search",
    "weights_sha256",
    "write_embeddings",
    "write_event_files",
    "write_events",
    "write_score_tables",
    "write_scores",
]
