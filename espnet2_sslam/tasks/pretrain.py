"""Pre-training, phase 1 (EAT) and phase 2 (SSLAM), as an ESPnet task."""

import argparse
import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from espnet2_sslam.config import EncoderConfig, check_keywords
from espnet2_sslam.corpus import padding_share
from espnet2_sslam.decoder import ConvDecoder
from espnet2_sslam.encoder import SSLAMEncoder
from espnet2_sslam.optim import warmup_updates
from espnet2_sslam.pretrain_model import (
    AUTHORS,
    MIXED,
    PADDING,
    UNMIXED,
    SSLAMPretrainModel,
)
from espnet2_sslam.tasks import settings
from espnet2_sslam.tasks.base import SSLAMAbsTask
from espnet2_sslam.tasks.crops import CropSampler
from espnet2_sslam.tasks.data import ClipSampler, key_file, read_keys, read_lengths
from espnet2_sslam.teacher import movement
from espnet2_sslam.units import FRAME_LENGTH, FRAME_SHIFT, MIN_FRAMES, PATCH_SIZE

MUCH_PADDING = 0.2  # share of the frames from which the authors' way is warned of


class Ratios(NamedTuple):
    """What of a training has no unit, so that it can be kept at any size.

    Args:
        movement: Of the teacher, see `teacher.movement`.
        utterance_rows: Weight of the utterance loss against the patch loss, as rows of
            which each counts as much as the mean over all hidden patches.
        warmup: Share of the updates.
    """

    movement: float
    utterance_rows: float
    warmup: float

    def __str__(self) -> str:
        return (
            f"the teacher moves by {self.movement:.2f}, the utterance loss counts as "
            f"{self.utterance_rows:g} rows, warm-up takes {100 * self.warmup:.1f} %"
        )


# updates, warm-up: EAT's phase 1, SSLAM's phase 2; 12 clips per GPU x 16 masks in both
PAPER_UPDATES = {False: (400_000, 53_333), True: (200_000, 25_000)}
PAPER_EMA = (0.9998, 0.99999, 100_000)
PAPER_ROWS = 192.0
FAR = 0.1  # from the paper's ratio, that is worth a warning


def paper_ratios(mixture: bool) -> Ratios:
    """Those of the authors' phase 1 (no mixture) or phase 2."""
    updates, warmup = PAPER_UPDATES[mixture]
    return Ratios(movement(updates, *PAPER_EMA), PAPER_ROWS, warmup / updates)


def ratios(model: SSLAMPretrainModel, args: argparse.Namespace, clips: float) -> Ratios:
    """Those of a training.

    Args:
        model: The model.
        args: Complete options.
        clips: In a batch of one process.
    """
    total = args.scheduler_conf["total_steps"]
    warmup = warmup_updates(args.scheduler_conf.get("warmup_steps", 0), total)
    rows = clips * model.clone_batch * len(model.streams)
    summed = model.utterance_loss_reduction == "sum"
    weight = model.utterance_loss_weight * (rows if summed else 1)
    return Ratios(movement(total, *model.teacher.schedule), weight, warmup / total)


def advice(
    own: Ratios,
    paper: Ratios,
    model: SSLAMPretrainModel,
    total: int,
    mixture: bool,
) -> Iterator[str]:
    """What to set where a training is far from the paper's ratios, a line each.

    An utterance loss that is a mean does not change with the clips: it is meant so.

    Args:
        own, paper: Ratios.
        model: The model.
        total: Updates.
        mixture: Phase 2.
    """
    summed = model.utterance_loss_reduction == "sum"
    if summed and abs(own.utterance_rows / paper.utterance_rows - 1) > FAR:
        needed = model.utterance_loss_weight * paper.utterance_rows / own.utterance_rows
        yield (
            f"the utterance loss counts as {own.utterance_rows:g} rows, the paper's as "
            f"{paper.utterance_rows:g}: for this number of clips per process set "
            f"--model_conf utterance_loss_weight={needed:.4g}"
        )
    times = PAPER_UPDATES[mixture][0] / total
    start, end, anneal = PAPER_EMA
    start, end = 1 - times * (1 - start), 1 - times * (1 - end)
    if abs(own.movement / paper.movement - 1) > FAR and start > 0:
        yield (
            f"the teacher moves by {own.movement:.2f} in {total} updates, the paper's "
            f"by {paper.movement:.2f}: set --model_conf ema_decay={start:.6g}, "
            f"ema_end_decay={end:.6g} and ema_anneal_updates={round(anneal / times)}"
        )


# The paper's other settings of phase 2 (table 2): MB-UA, MB-PMA, MB-UA-PMA.
VARIANTS: dict[str, dict[str, Any]] = {
    "unmixed": {"streams": UNMIXED},
    "mixed": {"streams": MIXED, "source_retention": False},
    "both": {"streams": "both", "source_retention": False},
}


def variant_conf(variant: str, conf: Mapping[str, Any]) -> dict[str, Any]:
    """Return phase 2's model_conf changed to a variant of the same cost.

    The student sees as many rows per clip, so that one stream takes the clones of two;
    the utterance target stays phase 2's (the last layer by default, as in the authors'
    phase 2), so that variants differ in the mixtures alone.

    Args:
        variant: One of VARIANTS.
        conf: model_conf of phase 2, or of the variant already.

    Raises:
        ValueError: A configuration without mixtures.
    """
    defaults = inspect.signature(SSLAMPretrainModel).parameters
    full = {name: default.default for name, default in defaults.items()} | dict(conf)
    if not full["mixture"]:
        raise ValueError(
            f"--variant {variant} is one of phase 2: model_conf needs mixture: true"
        )
    changes = {"source_retention_utterance": False, **VARIANTS[variant]}
    rows = full["clone_batch"] * (2 if full["streams"] == "both" else 1)
    streams = 2 if changes["streams"] == "both" else 1
    if rows % streams:
        raise ValueError(
            f"--variant {variant} has two streams: clone_batch {rows} must be even"
        )
    changes["clone_batch"] = rows // streams
    changes["utterance_target_layers"] = full["utterance_target_layers"] or 1
    return {**conf, **changes}


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
        text = (
            "Change model_conf of phase 2 to another setting of the paper's table 2, "
            "with as many rows per update: without mixtures, with mixtures only, or "
            "with both but no source retention"
        )
        group.add_argument("--variant", choices=[*VARIANTS], default=None, help=text)
        # The loss moves with the teacher: the newest model is the one to keep.
        parser.set_defaults(best_model_criterion=[("valid", "num_updates", "max")])

    @classmethod
    def check_and_complete(cls, args: argparse.Namespace) -> None:
        """Also apply --variant."""
        if args.variant is not None:
            args.model_conf = variant_conf(args.variant, args.model_conf)
        super().check_and_complete(args)

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
        frames = MIN_FRAMES if model.get("mixture") else PATCH_SIZE
        least = frames * FRAME_SHIFT + FRAME_LENGTH - FRAME_SHIFT
        given = args.max_samples
        if args.padding != AUTHORS and given is not None and given < least:
            raise ValueError(
                f"--max_samples {given} is too short: give {least} ({frames} frames) "
                "or more, or leave it out"
            )

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
        options["world_size"] = settings.world_size(args)
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
        options |= {**cls.crop_options(args), "lengths": lengths}
        sampler = CropSampler(keys, batch_size=iter_options.batch_size, **options)
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
    def build_optimizers(
        cls, args: argparse.Namespace, model: SSLAMPretrainModel
    ) -> list[torch.optim.Optimizer]:
        """Also say in one line how the training stands to the paper's, in ratios."""
        if "total_steps" in args.scheduler_conf:
            mixture = bool(args.model_conf.get("mixture"))
            total = args.scheduler_conf["total_steps"]
            own = ratios(model, args, args.batch_size / world_size())
            paper = paper_ratios(mixture)
            logging.info(f"ratios: {own}; the paper's: {paper}")
            for line in advice(own, paper, model, total, mixture):
                logging.warning(line)
        return super().build_optimizers(args, model)

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


def world_size() -> int:
    """Return the number of training processes."""
    parallel = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if parallel else 1
