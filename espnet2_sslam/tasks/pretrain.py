"""Pre-training, phase 1 (EAT) and phase 2 (SSLAM), as an ESPnet task."""

import argparse
import inspect

from espnet2_sslam.config import EncoderConfig, check_keywords
from espnet2_sslam.decoder import ConvDecoder
from espnet2_sslam.encoder import SSLAMEncoder
from espnet2_sslam.pretrain_model import SSLAMPretrainModel
from espnet2_sslam.tasks.base import SSLAMAbsTask
from espnet2_sslam.units import FRAME_LENGTH, FRAME_SHIFT


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
    def build_model(cls, args: argparse.Namespace) -> SSLAMPretrainModel:
        """Return student, teacher and decoder, drawn from the global seed."""
        encoder = SSLAMEncoder(input_size=args.input_size, **args.encoder_conf)
        return SSLAMPretrainModel(encoder, seed=args.seed, **args.model_conf)
