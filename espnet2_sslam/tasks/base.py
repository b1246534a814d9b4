"""What pre-training and fine-tuning share: how ESPnet runs our models."""

import argparse
import inspect
import multiprocessing
import sys
from pathlib import Path

import torch
import yaml
from torch.multiprocessing import ProcessExitedException

from espnet2_sslam._hook import without_flash_attention_note
from espnet2_sslam.checkpoint import (
    check_init_param,
    compare_states,
    load_states,
)
from espnet2_sslam.classifier import SSLAMClassifier
from espnet2_sslam.config import check_keywords
from espnet2_sslam.pretrain_model import SSLAMPretrainModel
from espnet2_sslam.tasks.checks import (
    check_accumulation,
    check_data_files,
    check_options,
    check_sampling,
    check_unchanged,
)
from espnet2_sslam.tasks.optimizer import parameter_groups
from espnet2_sslam.tasks.scheduler import WarmupCosine

with without_flash_attention_note():
    from espnet2.tasks.abs_task import AbsTask, optim_classes, scheduler_classes
    from espnet2.train.abs_espnet_model import AbsESPnetModel
    from espnet2.utils.nested_dict_action import NestedDictAction
    from espnet2.utils.types import int_or_none, str_or_none

    from espnet2_sslam.tasks.lists import ClipTask
    from espnet2_sslam.tasks.trainer import SafeTrainer

scheduler_classes["sslam_warmup_cosine"] = WarmupCosine
# our models have all that ESPnet asks of its own, and need no ESPnet themselves
AbsESPnetModel.register(SSLAMPretrainModel)
AbsESPnetModel.register(SSLAMClassifier)


class SSLAMAbsTask(ClipTask, AbsTask):
    """ESPnet task with exact resume, own batches, strict loading and early complaints.

    A task derives from it, calls `super().add_task_arguments(parser)`, and implements
    `build_model`, `required_data_names` and `optional_data_names`. A model that has
    `update_teacher()` gets it called after each real optimizer step.
    """

    num_optimizers = 1
    trainer = SafeTrainer

    @classmethod
    def add_task_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add the options that all tasks share, and change ESPnet's defaults."""
        group = parser.add_argument_group("Common to the tasks of SSLAM")
        group.add_argument(
            "--input_size",
            type=int,
            default=1,
            choices=(1, 128),
            help="1: speech is a 16 kHz waveform; 128: un-normalised log-mel frames",
        )
        group.add_argument(
            "--max_samples",
            type=int_or_none,
            default=None,
            help="Cut longer clips to so many samples: at random in training, the "
            "start elsewhere. 163840 is 10.24 s",
        )
        group.add_argument(
            "--balanced_clips_per_epoch",
            type=int_or_none,
            default=None,
            help="Draw so many clips per epoch, rare classes more often (needs labels)",
        )
        group.add_argument(
            "--sample_weights",
            type=str_or_none,
            default=None,
            help="List of `<id> <weight>` for --balanced_clips_per_epoch; by default "
            "the weights are computed from the labels",
        )
        group.add_argument(
            "--optim_groups_conf",
            action=NestedDictAction,
            default={},
            help="layer_decay, layer_decay_style (standard | authors), "
            "decay_bias_and_norm: see espnet2_sslam/tasks/optimizer.py",
        )
        parser.set_defaults(
            batch_type="unsorted",
            num_att_plot=0,
            optim="adamw",
            scheduler="sslam_warmup_cosine",
            best_model_criterion=[("valid", "loss", "min")],
            keep_nbest_models=[1],
        )

    @classmethod
    def main(cls, args: argparse.Namespace | None = None, cmd=None) -> None:
        """Check everything that can be checked, then train as AbsTask.main does."""
        if args is None:
            try:
                args = cls.get_parser().parse_args(cmd)
            except yaml.YAMLError as error:
                text = " ".join(str(error).split())
                raise ValueError(f"--config is not valid YAML: {text}") from error
        if not args.print_config:
            cls.check_and_complete(args)
        try:
            super().main(args=args)
        except ProcessExitedException as error:
            raise ChildProcessError(
                f"training stopped with {args.ngpu} processes ({error}): the reason is "
                "the first error above"
            ) from error

    @classmethod
    def main_worker(cls, args: argparse.Namespace) -> None:
        """Train in this process; a spawned one reports a user's error in one line."""
        try:
            super().main_worker(args)
        except (ValueError, OSError) as error:
            if multiprocessing.parent_process() is None:
                raise
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            sys.exit(1)

    @classmethod
    def check_and_complete(cls, args: argparse.Namespace) -> None:
        """Refuse wrong configurations; fill in the scheduler's total_steps.

        Raises:
            ValueError: in one line, with the remedy.
        """
        check_options(args)
        cls.check_configuration(args)
        check_data_files(args, cls.required_data_names())
        check_sampling(args)
        iterations = cls.iterations_per_epoch(args)
        check_accumulation(iterations, args.accum_grad)
        conf = args.scheduler_conf
        if args.scheduler == "sslam_warmup_cosine" and conf.get("total_steps") is None:
            total = args.max_epoch * iterations // args.accum_grad
            args.scheduler_conf = {**conf, "total_steps": total}
        check_unchanged(args)

    @classmethod
    def check_configuration(cls, args: argparse.Namespace) -> None:
        """Raise ValueError for a key that no class knows, naming the key."""
        check_keywords(
            optim_classes[args.optim], args.optim_conf, "optim_conf", ["self", "params"]
        )
        check_keywords(
            parameter_groups,
            args.optim_groups_conf,
            "optim_groups_conf",
            ["model", "lr", "weight_decay"],
        )
        if args.scheduler is not None:
            check_keywords(
                scheduler_classes[args.scheduler],
                args.scheduler_conf,
                "scheduler_conf",
                ["self", "optimizer"],
            )
        for choice in cls.class_choices_list:
            chosen = choice.get_class(getattr(args, choice.name))
            if chosen is not None:
                conf = getattr(args, f"{choice.name}_conf")
                check_keywords(chosen, conf, f"{choice.name}_conf", ["self"])

    @classmethod
    def build_optimizers(
        cls, args: argparse.Namespace, model: torch.nn.Module
    ) -> list[torch.optim.Optimizer]:
        """Return the optimizer, with groups and the teacher's step hook.

        Called by ESPnet when the model is built and not yet initialised from
        --init_param, which is therefore checked here.
        """
        for init_param in args.init_param:
            check_init_param(model, init_param)
        optim_class = optim_classes[args.optim]
        conf = dict(args.optim_conf)
        for name in ("lr", "weight_decay"):
            default = inspect.signature(optim_class).parameters[name].default
            conf.setdefault(name, default)
        groups = parameter_groups(
            model, conf["lr"], conf["weight_decay"], **args.optim_groups_conf
        )
        optimizer = optim_class(groups, **conf)
        if hasattr(model, "update_teacher"):
            optimizer.register_step_post_hook(lambda *_: model.update_teacher())
        return [optimizer]

    @classmethod
    def build_model_from_file(
        cls,
        config_file: Path | str | None = None,
        model_file: Path | str | None = None,
        device: str = "cpu",
    ) -> tuple[AbsESPnetModel, argparse.Namespace]:
        """Build a trained model; every weight must be there, and none too many.

        Args:
            config_file: config.yaml of the training; None: beside model_file.
            model_file: weights; None keeps the random initialisation.
            device: torch device of the model.

        Raises:
            ValueError: for missing files, or weights that do not fit.
        """
        if config_file is None and model_file is None:
            raise ValueError("config_file or model_file is needed, got neither")
        if config_file is None:
            config_file = Path(model_file).parent / "config.yaml"
        for path in (config_file, model_file):
            if path is not None and not Path(path).is_file():
                raise ValueError(f"{path} does not exist: train the model first")
        with open(config_file, encoding="utf-8") as stream:
            args = argparse.Namespace(**yaml.safe_load(stream))
        model = cls.build_model(args)
        if model_file is not None:
            states = load_states(model_file)
            compare_states(model.state_dict(), states, str(model_file))
            model.load_state_dict(states)
        return model.to(device), args
