"""Pre-training, phase 1 (EAT) and phase 2 (SSLAM), as an ESPnet task."""

import argparse
import inspect
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from espnet2_sslam.config import EncoderConfig, check_keywords
from espnet2_sslam.corpus import padding_share
from espnet2_sslam.decoder import ConvDecoder
from espnet2_sslam.encoder import SSLAMEncoder
from espnet2_sslam.pretrain_model import AUTHORS, PADDING, SSLAMPretrainModel
from espnet2_sslam.tasks.base import SSLAMAbsTask
from espnet2_sslam.tasks.crops import CropSampler
from espnet2_sslam.tasks.data import ClipSampler, key_file, read_keys, read_lengths
from espnet2_sslam.units import FRAME_LENGTH, FRAME_SHIFT, PATCH_SIZE

MUCH_PADDING = 0.2  # share of the frames from which the authors' way is warned of


class SSLAMTask(SSLAMAbsTask):
    """Train an encoder without labels."""

    @classmethod
    def add_task_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add the options of pre-training."""
        super().add_task_arguments(parser)
        group = parser.add_argument_group("Pre-training")
        cls.add_section(group, "encoder_conf", "SSLAMEncoder", "encoder.py")
        cls.add_section(group, "model_conf", "SSLAMPretrainModel", "pretrain_model.py")
        text = (
            "none: batches of nearly equal length, cut to whole time patches, long "
            "recordings in crops, so that nothing is padded; authors: every clip is "
            "cut or zero-padded to clip_frames, and the padding takes part"
        )
        group.add_argument("--padding", default="none", choices=PADDING, help=text)
        # The loss moves with the teacher: the newest model is the one to keep.
        parser.set_defaults(best_model_criterion=[("valid", "num_updates", "max")])

    @classmethod
    def check_configuration(cls, args: argparse.Namespace) -> None:
        """Also check the sections of pre-training."""
        super().check_configuration(args)
        # the last argument names what build_model fills in itself
        check_keywords(EncoderConfig, args.encoder_conf, "encoder_conf", ["input_size"])
        model = args.model_conf
        filled = ["encoder", "seed", "padding"]
        check_keywords(SSLAMPretrainModel, model, "model_conf", filled)
        decoder = model.get("decoder_conf") or {}
        option = "model_conf decoder_conf"
        check_keywords(ConvDecoder, decoder, option, ["embed_dim"])

    @classmethod
    def min_clips_per_rank(cls, args: argparse.Namespace, train: bool = True) -> int:
        """Return 2 where clips are mixed with each other, else 1."""
        return 2 if args.model_conf.get("mixture") else 1

    @classmethod
    def iterations_per_epoch(cls, args: argparse.Namespace) -> int:
        """Return the number of batches of a training epoch, of crops or clips."""
        whole = args.num_iters_per_epoch or args.balanced_clips_per_epoch
        if args.padding == AUTHORS or whole is not None:
            return super().iterations_per_epoch(args)
        data = args.train_data_path_and_name_and_type
        keys = read_keys(key_file(data, args.train_shape_file))
        lengths = read_lengths(keys, data, args.train_shape_file, args.input_size)
        options = cls.crop_options(args)
        options["min_clips_per_rank"] = cls.min_clips_per_rank(args)
        options["drop_last"] = args.drop_last_iter
        return len(CropSampler(keys, lengths, args.batch_size, train=True, **options))

    @classmethod
    def crop_options(cls, args: argparse.Namespace) -> dict[str, Any]:
        """Return the options of crops."""
        frames = clip_frames(args)
        if args.max_samples is not None:
            limit = (args.max_samples - FRAME_LENGTH) // FRAME_SHIFT + 1
            frames = min(frames, max(limit // PATCH_SIZE, 1) * PATCH_SIZE)
        mixture = bool(args.model_conf.get("mixture"))
        inputs = args.input_size
        return {"clip_frames": frames, "input_size": inputs, "mixture": mixture}

    @classmethod
    def build_sampler(
        cls, args: argparse.Namespace, iter_options, keys: Sequence[str]
    ) -> ClipSampler:
        """Return the sampler of one list of recordings; say what is heard of them."""
        data = iter_options.data_path_and_name_and_type
        shapes = iter_options.shape_files
        if args.padding == AUTHORS:
            if iter_options.train:
                # headers of many files would be read for a warning alone
                some = keys[:: max(len(keys) // 1000, 1)]
                lengths = read_lengths(some, data, shapes, args.input_size)
                warn_of_padding(lengths, clip_frames(args), args.input_size)
            return super().build_sampler(args, iter_options, keys)
        lengths = read_lengths(keys, data, shapes, args.input_size)
        options = cls.sampler_options(args, iter_options, keys)
        options |= cls.crop_options(args)
        sampler = CropSampler(keys, lengths, iter_options.batch_size, **options)
        if iter_options.train:
            updates = len(sampler) / args.accum_grad
            logging.info(f"{sampler.describe()}, {updates:g} updates")
        return sampler

    @classmethod
    def preprocess_options(cls, args: argparse.Namespace) -> dict:
        """Cut clips to the model's length unless told otherwise."""
        frames = clip_frames(args)
        samples = frames * FRAME_SHIFT + FRAME_LENGTH - FRAME_SHIFT
        options = super().preprocess_options(args)
        return {**options, "max_samples": args.max_samples or samples}

    @classmethod
    def build_model(cls, args: argparse.Namespace) -> SSLAMPretrainModel:
        """Return student, teacher and decoder, drawn from the global seed."""
        encoder = SSLAMEncoder(input_size=args.input_size, **args.encoder_conf)
        # trainings from before the option are the authors' way
        padding = getattr(args, "padding", AUTHORS)
        return SSLAMPretrainModel(
            encoder, seed=args.seed, padding=padding, **args.model_conf
        )


def clip_frames(args: argparse.Namespace) -> int:
    """Return the model's clip_frames, given or by default."""
    parameters = inspect.signature(SSLAMPretrainModel).parameters
    return args.model_conf.get("clip_frames") or parameters["clip_frames"].default


def warn_of_padding(lengths: np.ndarray, frames: int, input_size: int) -> None:
    """Log a warning where much of what the authors' way trains on is padding.

    Args:
        lengths: Samples, or frames of log-mel, of the clips (N,).
        frames: Frames to which they are padded.
        input_size: 1 for waveforms, 128 for log-mel.
    """
    if input_size == 1:
        lengths = (lengths - FRAME_LENGTH) // FRAME_SHIFT + 1
    share = padding_share(lengths, frames)
    if share > MUCH_PADDING:
        logging.warning(
            f"{100 * share:.0f} % of the frames are padding, which is attended to, "
            "predicted and mixed: train with --padding none, or set model_conf "
            f"clip_frames to less than {frames}"
        )
