"""How ESPnet trains our models: pre-training and fine-tuning."""

from espnet2_sslam.tasks.atomic import atomic_torch_save, link_atomically
from espnet2_sslam.tasks.base import SSLAMAbsTask, scheduler_classes
from espnet2_sslam.tasks.classification import (
    SSLAMClassificationTask,
    inherited_options,
    read_classes,
)
from espnet2_sslam.tasks.dataset import (
    ClipDataset,
    read_keys,
    read_labels,
    read_weights,
)
from espnet2_sslam.tasks.iterators import (
    BalancedSampler,
    ClipSampler,
    EpochIterFactory,
    batches_per_pass,
)
from espnet2_sslam.tasks.optimizer import parameter_groups
from espnet2_sslam.tasks.preprocess import ClipError, ClipPreprocessor, collate_clips
from espnet2_sslam.tasks.pretrain import SSLAMTask
from espnet2_sslam.tasks.scheduler import WarmupCosine

__all__ = [
    "BalancedSampler",
    "ClipDataset",
    "ClipError",
    "ClipPreprocessor",
    "ClipSampler",
    "EpochIterFactory",
    "SSLAMAbsTask",
    "SSLAMClassificationTask",
    "SSLAMTask",
    "WarmupCosine",
    "atomic_torch_save",
    "batches_per_pass",
    "collate_clips",
    "inherited_options",
    "link_atomically",
    "parameter_groups",
    "read_classes",
    "read_keys",
    "read_labels",
    "read_weights",
    "scheduler_classes",
]
