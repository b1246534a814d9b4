"""Data folders, audio formatting and the data report.

Free of torch: two million clips need the memory (`corpus.fbank` is imported by name).
"""

from espnet2_sslam.corpus.dump import AUDIO_FORMATS, Record, RecordBook, make_dump
from espnet2_sslam.corpus.lists import (
    TASKS,
    WEIGHT_FILE,
    Clip,
    CorpusWriter,
    Downstream,
    class_balanced_weights,
    find_splits,
    label_name,
    label_vector,
    label_word,
    read_classes,
    read_corpus,
    read_downstream,
    read_label_names,
    read_split,
    read_table,
    slug,
    table_lines,
    unique_words,
    write_table,
)
from espnet2_sslam.corpus.parallel import parallel_map
from espnet2_sslam.corpus.partition import hold_out, partition_groups
from espnet2_sslam.corpus.report import (
    STATS_SPLIT,
    collect,
    compare,
    report_text,
    warnings,
)

__all__ = [
    "AUDIO_FORMATS",
    "STATS_SPLIT",
    "TASKS",
    "WEIGHT_FILE",
    "Clip",
    "CorpusWriter",
    "Downstream",
    "Record",
    "RecordBook",
    "class_balanced_weights",
    "collect",
    "compare",
    "find_splits",
    "hold_out",
    "label_name",
    "label_vector",
    "label_word",
    "make_dump",
    "parallel_map",
    "partition_groups",
    "read_classes",
    "read_corpus",
    "read_downstream",
    "read_label_names",
    "read_split",
    "read_table",
    "report_text",
    "slug",
    "table_lines",
    "unique_words",
    "warnings",
    "write_table",
]
