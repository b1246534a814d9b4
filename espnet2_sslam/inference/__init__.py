"""Embeddings and labels for people who never train."""

from espnet2_sslam.inference.arrays import kaldi_id, plain, whole_files
from espnet2_sslam.inference.events import (
    Event,
    class_thresholds,
    event_lines,
    find_events,
    smooth,
)
from espnet2_sslam.inference.files import AudioInput, collect_files
from espnet2_sslam.inference.journal import Journal
from espnet2_sslam.inference.model import SSLAM
from espnet2_sslam.inference.outputs import (
    best_labels,
    event_table,
    output_format,
    write_embeddings,
    write_events,
    write_scores,
)
from espnet2_sslam.inference.result import FileResult
from espnet2_sslam.inference.rows import Rows, StoredRows
from espnet2_sslam.inference.spectrogram import Spectrogram, read_spectrogram
from espnet2_sslam.inference.timeline import (
    LABEL_COLUMNS,
    draw_timeline,
    make_timeline,
    mel_position,
    plain_text,
    save_picture,
    time_ticks,
    wrap_label,
)

__all__ = [
    "AudioInput",
    "Event",
    "FileResult",
    "Journal",
    "LABEL_COLUMNS",
    "Rows",
    "SSLAM",
    "Spectrogram",
    "StoredRows",
    "best_labels",
    "class_thresholds",
    "collect_files",
    "draw_timeline",
    "event_lines",
    "event_table",
    "find_events",
    "kaldi_id",
    "make_timeline",
    "mel_position",
    "output_format",
    "plain",
    "plain_text",
    "read_spectrogram",
    "save_picture",
    "smooth",
    "time_ticks",
    "whole_files",
    "wrap_label",
    "write_embeddings",
    "write_events",
    "write_scores",
]
