"""Pre-training, phase 1 (EAT) and phase 2 (SSLAM), as an ESPnet task."""

import argparse
import inspect
import logging
from typing import NamedTuple

import torch

from espnet2_sslam.config import EncoderConfig, check_keywords
from espnet2_sslam.decoder import ConvDecoder
from espnet2_sslam.encoder import SSLAMEncoder
from espnet2_sslam.optim import warmup_updates
from espnet2_sslam.pretrain_model import SSLAMPretrainModel
from espnet2_sslam.tasks.base import SSLAMAbsTask
from espnet2_sslam.teacher import movement
from espnet2_sslam.units import FRAME_LENGTH, FRAME_SHIFT


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


def advice(own: Ratios, paper: Ratios, weight: float, total: int, mixture: bool):
    """What to set where a training is far from the paper's ratios, a line each.

    Args:
        own, paper: Ratios.
        weight: The training's utterance_loss_weight.
        total: Its updates.
        mixture: Phase 2.
    """
    if abs(own.utterance_rows / paper.utterance_rows - 1) > FAR:
        needed = weight * paper.utterance_rows / own.utterance_rows
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


class SSLAMTask(SSLAMAbsTask):
    """Train an encoder without labels."""

    @classmethod
    def add_task_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add the options of pre-training."""
        super().add_task_arguments(parser)
        group = parser.add_argument_group("Pre-training")
        cls.add_section(group, "encoder_conf", "SSLAMEncoder", "encoder.py")
        cls.add_section(group, "model_conf", "SSLAMPretrainModel", "pretrain_model.py")
        # The loss moves with the teacher: the newest model is the one to keep.
        parser.set_defaults(best_model_criterion=[("valid", "num_updates", "max")])

    @classmethod
    def check_configuration(cls, args: argparse.Namespace) -> None:
        """Also check the sections of pre-training."""
        super().check_configuration(args)
        # the last argument names what build_model fills in itself
        check_keywords(EncoderConfig, args.encoder_conf, "encoder_conf", ["input_size"])
        model = args.model_conf
        check_keywords(SSLAMPretrainModel, model, "model_conf", ["encoder", "seed"])
        decoder = model.get("decoder_conf") or {}
        option = "model_conf decoder_conf"
        check_keywords(ConvDecoder, decoder, option, ["embed_dim"])

    @classmethod
    def min_clips_per_rank(cls, args: argparse.Namespace, train: bool = True) -> int:
        """Return 2 where clips are mixed with each other, else 1."""
        return 2 if args.model_conf.get("mixture") else 1

    @classmethod
    def preprocess_options(cls, args: argparse.Namespace) -> dict:
        """Cut clips to the model's length unless told otherwise."""
        default = (
            inspect.signature(SSLAMPretrainModel).parameters["clip_frames"].default
        )
        frames = args.model_conf.get("clip_frames") or default
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
            weight = model.utterance_loss_weight
            for line in advice(own, paper, weight, total, mixture):
                logging.warning(line)
        return super().build_optimizers(args, model)

    @classmethod
    def build_model(cls, args: argparse.Namespace) -> SSLAMPretrainModel:
        """Return student, teacher and decoder, drawn from the global seed."""
        encoder = SSLAMEncoder(input_size=args.input_size, **args.encoder_conf)
        return SSLAMPretrainModel(encoder, seed=args.seed, **args.model_conf)


def world_size() -> int:
    """Return the number of training processes."""
    parallel = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if parallel else 1
