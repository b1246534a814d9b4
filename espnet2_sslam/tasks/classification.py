"""Fine-tuning and linear evaluation as an ESPnet task."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from espnet2_sslam import corpus
from espnet2_sslam.augment import Augmentation
from espnet2_sslam.classifier import SSLAMClassifier, classifier_from_config
from espnet2_sslam.config import SIZES, EncoderConfig, HeadConfig, check_keywords
from espnet2_sslam.store import read_yaml
from espnet2_sslam.tasks.base import SSLAMAbsTask
from espnet2_sslam.tasks.data import ClipSampler

# What a classifier takes over from the training of its encoder, unless told otherwise.
INHERITED = (*SIZES, "fbank_mean", "fbank_std")


class SSLAMClassificationTask(SSLAMAbsTask):
    """Train an encoder with a head, or a head alone, on labelled clips."""

    @classmethod
    def add_task_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add the options of classification."""
        super().add_task_arguments(parser)
        group = parser.add_argument_group("Classification")
        text = (
            "File with one label per line (classes.txt of the data set); the names are "
            "kept in config.yaml"
        )
        group.add_argument("--class_list", help=text)
        text = (
            "Names to show of the labels; by default those of label_names.tsv beside "
            "the class list, and the labels themselves where that has none"
        )
        group.add_argument("--class_names", nargs="*", help=text)
        text = (
            "config.yaml of a pre-training: the encoder gets its size and its fbank "
            "mean and std (for a random encoder to compare with). By default the one "
            "beside the file of --init_param, if there is one"
        )
        group.add_argument("--encoder_config", help=text)
        cls.add_section(group, "encoder_conf", "SSLAMEncoder", "encoder.py")
        cls.add_section(group, "model_conf", "SSLAMClassifier", "classifier.py")
        cls.add_section(group, "augment_conf", "Augmentation", "augment.py")
        parser.set_defaults(best_model_criterion=[("valid", "mAP", "max")])

    @classmethod
    def check_configuration(cls, args: argparse.Namespace) -> None:
        """Also check the sections of classification; read the class list and sizes."""
        super().check_configuration(args)
        # the last argument names what build_model fills in itself
        filled = ["encoder", "head", "classes", "augmentation", "seed"]
        model = (SSLAMClassifier, HeadConfig)
        check_keywords(model, args.model_conf, "model_conf", filled)
        check_keywords(Augmentation, args.augment_conf, "augment_conf")
        check_keywords(EncoderConfig, args.encoder_conf, "encoder_conf", ["input_size"])
        if args.model_conf.get("cache_features") and args.max_samples is not None:
            raise ValueError("model_conf cache_features does not go with --max_samples")
        names = args.class_names
        if names is None and isinstance(args.class_list, str):
            names = corpus.class_names(args.class_list)
        args.class_list = read_classes(args.class_list)
        args.class_names = names or args.class_list
        if len(args.class_names) != len(args.class_list):
            raise ValueError(
                f"--class_names has {len(args.class_names)} names, the class list "
                f"{len(args.class_list)} labels"
            )
        args.encoder_conf = {**inherited_options(args), **args.encoder_conf}
        args.encoder_config = None  # its content is in encoder_conf now

    @classmethod
    def required_data_names(cls, train: bool = True, inference: bool = False):
        """Name what a clip must have."""
        return ("speech",) if inference else ("speech", "label")

    @classmethod
    def optional_data_names(cls, train: bool = True, inference: bool = False):
        """Name what a clip may have."""
        return ("label",) if inference else ()

    @classmethod
    def min_clips_per_rank(cls, args: argparse.Namespace, train: bool = True) -> int:
        """Return 2 where batch norm learns from a batch, else 1."""
        return 2 if train and args.model_conf.get("head_norm") == "batch" else 1

    @classmethod
    def build_sampler(
        cls, args: argparse.Namespace, iter_options, keys: Sequence[str]
    ) -> ClipSampler:
        """Return the sampler of one list of clips; say what batch norm needs."""
        try:
            return super().build_sampler(args, iter_options, keys)
        except ValueError as error:
            if cls.min_clips_per_rank(args, iter_options.train) == 1:
                raise
            raise ValueError(
                f"{error}; model_conf head_norm: batch needs 2 clips in each batch of "
                "a rank, head_norm: layer takes one"
            ) from None

    @classmethod
    def preprocess_options(cls, args: argparse.Namespace) -> dict:
        """Also make label vectors, of exactly one label where classes exclude."""
        return {
            **super().preprocess_options(args),
            "class_list": args.class_list,
            "single_label": args.model_conf.get("task") == "multi_class",
        }

    @classmethod
    def build_model(cls, args: argparse.Namespace) -> SSLAMClassifier:
        """Return the classifier; the head is drawn from the global seed."""
        args.class_list = read_classes(args.class_list)
        return classifier_from_config(vars(args))


def read_classes(source: str | Path | list[str] | None) -> list[str]:
    """Return the labels of a class list, or the list itself.

    Raises:
        ValueError: no list, an empty one, a label with a blank, or one that occurs
            twice.
    """
    if source is None:
        raise ValueError("--class_list is needed: the file classes.txt of the data set")
    return source if isinstance(source, list) else corpus.read_classes(Path(source))


def inherited_options(args: argparse.Namespace) -> dict:
    """Return the encoder options to take over from the encoder's own training."""
    path = args.encoder_config
    if path is None:
        folders = [Path(text.split(":")[0]).parent for text in args.init_param]
        configs = [folder / "config.yaml" for folder in folders]
        path = next((config for config in configs if config.is_file()), None)
    if path is None:
        return {}
    if not Path(path).is_file():
        raise ValueError(f"--encoder_config {path} does not exist: train it first")
    conf = read_yaml(path).get("encoder_conf")
    if not isinstance(conf, dict):
        raise ValueError(f"{path} has no encoder_conf: give a training's config.yaml")
    return {name: conf[name] for name in INHERITED if name in conf}
