"""Weights in and out: the authors' files, our trainings, and our own format."""

from espnet2_sslam.checkpoint.archive import META_FILE
from espnet2_sslam.checkpoint.authors import from_fairseq
from espnet2_sslam.checkpoint.complete import complete
from espnet2_sslam.checkpoint.errors import CheckpointError, RefusedPickle
from espnet2_sslam.checkpoint.folder import (
    FORMAT_VERSION,
    PREPROCESSOR_FILE,
    Model,
    build_model,
    fill_model,
    join_state,
    model_config,
    model_state,
    save_model,
)
from espnet2_sslam.checkpoint.hub import resolve
from espnet2_sslam.checkpoint.labels import read_labels
from espnet2_sslam.checkpoint.load import Loaded, load_model, read_parts, weights_file
from espnet2_sslam.checkpoint.names import (
    decoder_state_from_authors,
    encoder_state_from_authors,
)
from espnet2_sslam.checkpoint.parts import differences
from espnet2_sslam.checkpoint.pickled import StandIn, read_pickle
from espnet2_sslam.checkpoint.weights import (
    check_init_param,
    compare_states,
    load_states,
)
from espnet2_sslam.checkpoint.write import to_fairseq, to_huggingface, to_training

__all__ = [
    "CheckpointError",
    "FORMAT_VERSION",
    "Loaded",
    "META_FILE",
    "Model",
    "PREPROCESSOR_FILE",
    "RefusedPickle",
    "StandIn",
    "build_model",
    "check_init_param",
    "compare_states",
    "complete",
    "decoder_state_from_authors",
    "differences",
    "encoder_state_from_authors",
    "fill_model",
    "from_fairseq",
    "join_state",
    "load_model",
    "load_states",
    "model_config",
    "model_state",
    "read_labels",
    "read_parts",
    "read_pickle",
    "resolve",
    "save_model",
    "to_fairseq",
    "to_huggingface",
    "to_training",
    "weights_file",
]
