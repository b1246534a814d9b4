"""How ESPnet trains our models: pre-training and fine-tuning."""

from espnet2_sslam.optim import WarmupCosine, parameter_groups
from espnet2_sslam.tasks.base import SSLAMAbsTask, scheduler_classes
from espnet2_sslam.tasks.classification import (
    SSLAMClassificationTask,
    inherited_options,
    read_classes,
)
from espnet2_sslam.tasks.crops import CropSampler
from espnet2_sslam.tasks.data import (
    ClipDataset,
    ClipError,
    ClipPreprocessor,
    ClipSampler,
    Crop,
    EpochIterFactory,
    batches_per_pass,
    check_resampler,
    collate_clips,
    read_keys,
    read_labels,
    read_lengths,
    read_weights,
)
from espnet2_sslam.tasks.pretrain import SSLAMTask
from espnet2_sslam.tasks.saving import save_whole
from espnet2_sslam.tasks.trainer import SafeTrainer

__all__ = [
    "ClipDataset",
    "ClipError",
    "ClipPreprocessor",
    "ClipSampler",
    "Crop",
    "CropSampler",
    "EpochIterFactory",
    "SSLAMAbsTask",
    "SSLAMClassificationTask",
    "SSLAMTask",
    "SafeTrainer",
    "WarmupCosine",
    "batches_per_pass",
    "check_resampler",
    "collate_clips",
    "inherited_options",
    "parameter_groups",
    "read_classes",
    "read_keys",
    "read_labels",
    "read_lengths",
    "read_weights",
    "save_whole",
    "scheduler_classes",
]
