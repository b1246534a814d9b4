"""Embeddings and labels for people who never train."""

from espnet2_sslam.audio import AudioInput, collect_files
from espnet2_sslam.inference.api import SSLAM, best_labels
from espnet2_sslam.inference.events import Event, class_thresholds, find_events
from espnet2_sslam.inference.outputs import (
    event_table,
    output_format,
    plain,
    write_embeddings,
    write_events,
    write_scores,
)
from espnet2_sslam.inference.plot import (
    LABEL_COLUMNS,
    Spectrogram,
    draw_timeline,
    make_timeline,
    mel_position,
    read_spectrogram,
    save_picture,
    time_ticks,
)
from espnet2_sslam.inference.results import ResultFolder, Rows, StoredRows
from espnet2_sslam.inference.stream import FileResult

__all__ = [
    "LABEL_COLUMNS",
    "SSLAM",
    "AudioInput",
    "Event",
    "FileResult",
    "ResultFolder",
    "Rows",
    "Spectrogram",
    "StoredRows",
    "best_labels",
    "class_thresholds",
    "collect_files",
    "draw_timeline",
    "event_table",
    "find_events",
    "make_timeline",
    "mel_position",
    "output_format",
    "plain",
    "read_spectrogram",
    "save_picture",
    "time_ticks",
    "write_embeddings",
    "write_events",
    "write_scores",
]
