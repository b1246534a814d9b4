"""Data directories, audio formatting and the data report (recipe stages 1 to 3)."""

from espnet2_sslam.corpus.datadir import (
    CLASS_FILE,
    TASKS,
    Downstream,
    begin_corpus,
    finish_corpus,
    read_classes,
    read_downstream,
    read_table,
    slug,
    table_lines,
    write_atomically,
    write_downstream,
    write_split,
)
from espnet2_sslam.corpus.dump import make_dump
from espnet2_sslam.corpus.expected import compare
from espnet2_sslam.corpus.formatting import AUDIO_FORMATS, Record
from espnet2_sslam.corpus.labels import (
    label_name,
    label_word,
    read_label_names,
    unique_words,
    write_classes,
)
from espnet2_sslam.corpus.parallel import parallel_map
from espnet2_sslam.corpus.partition import hold_out, partition_groups
from espnet2_sslam.corpus.polyphony import (
    LEVEL,
    Part,
    Source,
    choose,
    fit,
    mix,
    random_numbers,
    read_sources,
    sounding_level,
)
from espnet2_sslam.corpus.records import RecordBook
from espnet2_sslam.corpus.report import STATS_SPLIT, collect
from espnet2_sslam.corpus.report_text import report_text, warnings
from espnet2_sslam.corpus.splits import read_corpus
from espnet2_sslam.corpus.weights import WEIGHT_FILE, class_balanced_weights
from espnet2_sslam.corpus.writer import Clip, CorpusWriter, atomic_lines

__all__ = [
    "AUDIO_FORMATS",
    "CLASS_FILE",
    "Clip",
    "CorpusWriter",
    "Downstream",
    "LEVEL",
    "Part",
    "Record",
    "RecordBook",
    "STATS_SPLIT",
    "Source",
    "TASKS",
    "WEIGHT_FILE",
    "atomic_lines",
    "begin_corpus",
    "choose",
    "class_balanced_weights",
    "collect",
    "compare",
    "finish_corpus",
    "fit",
    "hold_out",
    "label_name",
    "label_word",
    "make_dump",
    "mix",
    "parallel_map",
    "partition_groups",
    "random_numbers",
    "read_classes",
    "read_corpus",
    "read_downstream",
    "read_label_names",
    "read_sources",
    "read_table",
    "report_text",
    "slug",
    "sounding_level",
    "table_lines",
    "unique_words",
    "warnings",
    "write_atomically",
    "write_classes",
    "write_downstream",
    "write_split",
]
