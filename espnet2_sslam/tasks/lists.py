"""From lists of clips to batches: the part of an ESPnet task that reads data."""

import argparse
import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch

from espnet2_sslam.corpus import class_balanced_weights
from espnet2_sslam.tasks.dataset import (
    ClipDataset,
    key_file,
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
from espnet2_sslam.tasks.preprocess import ClipPreprocessor, collate_clips


class ClipTask:
    """Own samplers, datasets and pre-processing, for a class that is an AbsTask too."""

    @classmethod
    def iterations_per_epoch(cls, args: argparse.Namespace) -> int:
        """Return the number of batches of a training epoch."""
        if args.num_iters_per_epoch is not None:
            return args.num_iters_per_epoch
        clips = args.balanced_clips_per_epoch
        if clips is None:
            data = args.train_data_path_and_name_and_type
            clips = len(read_keys(key_file(data, args.train_shape_file)))
        return batches_per_pass(
            clips, args.batch_size, train=True, drop_last=args.drop_last_iter
        )

    @classmethod
    def min_clips_per_rank(cls, args: argparse.Namespace) -> int:
        """Return how many clips a rank needs per batch (2 where clips are mixed)."""
        return 1

    @classmethod
    def build_preprocess_fn(
        cls, args: argparse.Namespace, train: bool
    ) -> Callable | None:
        """Return the function that makes one clip ready."""
        return ClipPreprocessor(train, **cls.preprocess_options(args))

    @classmethod
    def preprocess_options(cls, args: argparse.Namespace) -> dict:
        """Return the options of ClipPreprocessor; a task may change or add some."""
        return {
            "max_samples": args.max_samples,
            "seed": args.seed,
            "input_size": args.input_size,
        }

    @classmethod
    def build_collate_fn(cls, args: argparse.Namespace, train: bool) -> Callable:
        """Return the function that joins clips to a batch."""
        return collate_clips

    @classmethod
    def build_sequence_iter_factory(
        cls, args: argparse.Namespace, iter_options, mode: str
    ) -> EpochIterFactory:
        """Return the factory of each epoch's batches."""
        data = iter_options.data_path_and_name_and_type
        keys = read_keys(key_file(data, iter_options.shape_files))
        sampler = cls.build_sampler(args, iter_options, keys)
        dataset = cls.build_dataset(args, iter_options)
        dataset.check_keys(keys)
        logging.info(f"[{mode}] dataset:\n{dataset}\n[{mode}] sampler: {sampler}")
        return EpochIterFactory(
            dataset,
            sampler,
            num_iters_per_epoch=iter_options.num_iters_per_epoch,
            num_workers=args.num_workers,
            collate_fn=iter_options.collate_fn,
            pin_memory=args.ngpu > 0,
            max_batches=iter_options.num_batches,
        )

    @classmethod
    def build_sampler(
        cls, args: argparse.Namespace, iter_options, keys: Sequence[str]
    ) -> ClipSampler:
        """Return the sampler of one list of clips."""
        options = {
            "seed": args.seed,
            "drop_last": args.drop_last_iter,
            "min_clips_per_rank": cls.min_clips_per_rank(args),
        }
        if iter_options.distributed:
            options["rank"] = torch.distributed.get_rank()
            options["world_size"] = torch.distributed.get_world_size()
        if not (iter_options.train and args.balanced_clips_per_epoch):
            return ClipSampler(
                keys, iter_options.batch_size, train=iter_options.train, **options
            )
        if args.sample_weights is not None:
            weights = read_weights(args.sample_weights, keys)
        else:
            labels = read_labels(iter_options.data_path_and_name_and_type, keys)
            weights = class_balanced_weights(labels)
        if not weights.all():
            never = len(weights) - np.count_nonzero(weights)
            logging.warning(f"{never} clips without label or weight are never drawn")
        return BalancedSampler(
            keys,
            iter_options.batch_size,
            weights=weights,
            num_samples=args.balanced_clips_per_epoch,
            **options,
        )

    @classmethod
    def build_dataset(
        cls, args: argparse.Namespace, iter_options, keys_to_load=None
    ) -> ClipDataset:
        """Return the dataset that reads clips by id."""
        try:
            dataset = ClipDataset(
                iter_options.data_path_and_name_and_type,
                float_dtype=args.train_dtype,
                preprocess=iter_options.preprocess_fn,
                max_cache_fd=iter_options.max_cache_fd,
                keys_to_load=keys_to_load,
            )
        except RuntimeError as error:  # an id twice, an unknown type of data
            text = " ".join(str(error).split())
            raise ValueError(f"the data lists cannot be read: {text}") from error
        cls.check_task_requirements(
            dataset, args.allow_variable_data_keys, train=iter_options.train
        )
        return dataset
