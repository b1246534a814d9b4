"""What pre-training and fine-tuning share: how ESPnet runs our models."""

import argparse
import contextlib
import inspect
import logging
import multiprocessing
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import yaml
from torch.multiprocessing.spawn import ProcessExitedException

from espnet2_sslam import store
from espnet2_sslam._hook import without_flash_attention_note
from espnet2_sslam.checkpoint import check_init_param, compare_states, load_states
from espnet2_sslam.classifier import SSLAMClassifier
from espnet2_sslam.config import check_keywords
from espnet2_sslam.corpus import class_balanced_weights
from espnet2_sslam.optim import WarmupCosine, parameter_groups
from espnet2_sslam.pretrain_model import SSLAMPretrainModel


@contextlib.contextmanager
def _without_s3prl() -> Iterator[None]:
    """Hide s3prl while ESPnet is imported, unless somebody has it already.

    ESPnet's trainer imports it in every process, for adapters alone, which our tasks
    refuse; with it comes all that lets s3prl run on current packages.
    """
    modules: dict[str, Any] = sys.modules
    hide = "s3prl" not in modules
    if hide:
        modules["s3prl"] = None  # import raises ModuleNotFoundError
    try:
        yield
    finally:
        if hide:
            del modules["s3prl"]


with without_flash_attention_note(), _without_s3prl():
    import espnet2.tasks.abs_task
    from espnet2.schedulers.abs_scheduler import AbsBatchStepScheduler
    from espnet2.tasks.abs_task import AbsTask, optim_classes, scheduler_classes
    from espnet2.train.abs_espnet_model import AbsESPnetModel
    from espnet2.train.distributed_utils import get_rank
    from espnet2.utils.nested_dict_action import NestedDictAction
    from espnet2.utils.types import int_or_none, str2bool, str_or_none

    from espnet2_sslam.tasks import faults, lost_clips, settings
    from espnet2_sslam.tasks.bad_clips import WithoutBadClips
    from espnet2_sslam.tasks.data import (
        ClipDataset,
        ClipPreprocessor,
        ClipSampler,
        EpochIterFactory,
        batches_per_pass,
        check_data_files,
        check_resampler,
        collate_clips,
        key_file,
        length_list,
        read_keys,
        read_labels,
        read_lengths,
        read_weights,
    )
    from espnet2_sslam.tasks.saving import STOPPED, passing_signals_on
    from espnet2_sslam.tasks.trainer import PRECISIONS, SafeTrainer


class _WrittenWhole(type(Path())):
    """A path whose file, opened for writing, stays as it was until it is whole."""

    def open(self, mode: str = "r", *args: Any, **options: Any) -> Any:
        """Open the file, to be used by `with`."""
        if mode == "w":
            store.remove_leftovers_of(self)
            return store.writing(self)
        return super().open(mode, *args, **options)


@contextlib.contextmanager
def _config_written_whole() -> Iterator[None]:
    """Let `AbsTask.main_worker` write config.yaml so that a kill leaves no half of it.

    It is one function that opens the file in its middle: see `_espnet_saves_whole`.
    """
    module: Any = espnet2.tasks.abs_task
    module.Path = _WrittenWhole
    try:
        yield
    finally:
        module.Path = Path


scheduler_classes.update(sslam_warmup_cosine=WarmupCosine)  # type: ignore[arg-type]
# our models have all that ESPnet asks of its own, and need no ESPnet themselves
AbsBatchStepScheduler.register(WarmupCosine)
AbsESPnetModel.register(SSLAMPretrainModel)
AbsESPnetModel.register(SSLAMClassifier)

# option, allowed values, what to do: other values train, but not as this package needs.
SUPPORTED = (
    ("iterator_type", ("sequence",), "leave it at sequence"),
    ("valid_iterator_type", (None, "sequence"), "leave it at sequence"),
    ("batch_type", ("unsorted",), "leave it at unsorted and set --batch_size"),
    ("valid_batch_type", (None, "unsorted"), "leave it at unsorted"),
    ("multiple_iterator", (False,), "give one list with all clips"),
    ("multi_task_dataset", (False,), "give one list per data name"),
    ("max_cache_size", (0.0,), "set it to 0: a cached clip would never change"),
    ("allow_multi_rates", (False,), "prepare the data as 16 kHz mono"),
    ("use_adapter", (False,), "freeze parts with --freeze_param instead"),
    ("use_deepspeed", (False,), "use --multiprocessing_distributed true"),
    ("sharded_ddp", (False,), "use --multiprocessing_distributed true"),
    ("train_dtype", ("float32", "float64"), "use --use_amp true for speed"),
    ("exclude_weight_decay", (False,), "use --optim_groups_conf"),
)


class SSLAMAbsTask(AbsTask):
    """ESPnet task with exact resume, own batches, strict loading and early complaints.

    A task derives from it, calls `super().add_task_arguments(parser)`, and implements
    `build_model`. A model that has `update_teacher()` gets it called after each real
    optimizer step.
    """

    num_optimizers = 1
    trainer = SafeTrainer

    @classmethod
    def add_task_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add the options that all tasks share, and change ESPnet's defaults."""
        add = parser.add_argument_group("Common to the tasks of SSLAM").add_argument
        text = "1: speech is a 16 kHz waveform; 128: un-normalised log-mel frames"
        add("--input_size", type=int, default=1, choices=(1, 128), help=text)
        text = (
            "Cut longer clips to so many samples: at random in training, the start "
            "elsewhere. 163840 is 10.24 s"
        )
        add("--max_samples", type=int_or_none, help=text)
        text = "Draw so many clips per epoch, rare classes more often (needs labels)"
        add("--balanced_clips_per_epoch", type=int_or_none, help=text)
        text = (
            "List of `<id> <weight>` for --balanced_clips_per_epoch; by default the "
            "weights are computed from the labels"
        )
        add("--sample_weights", type=str_or_none, help=text)
        text = (
            "Run a training step as one compiled graph (torch.compile): less memory "
            "traffic, so faster on a GPU. Costs one to some minutes at the start, and "
            "again when a second batch size or clip length comes"
        )
        add("--compile", type=str2bool, default=False, help=text)
        text = (
            "Keep less memory for the backward pass, which computes it again: of the "
            "layers of the decoder (pre-training), or of all blocks, too"
        )
        choices = ("none", "decoder", "all")
        add("--activation_checkpointing", default="none", choices=choices, help=text)
        text = (
            "layer_decay, layer_decay_style (standard | authors), decay_bias_and_norm: "
            "see espnet2_sslam/optim.py"
        )
        add("--optim_groups_conf", action=NestedDictAction, default={}, help=text)
        text = (
            "What --use_amp computes in. By default bf16 on a GPU that has it, fp16 on "
            "an older one, nothing on a CPU. bf16 needs no loss scaler"
        )
        add("--amp_dtype", choices=[*PRECISIONS], help=text)
        text = (
            "Resume a training with other settings or lists than it began with; what "
            "differs is noted in kept.txt"
        )
        add("--keep", type=str2bool, default=False, help=text)
        text = (
            "Write checkpoint.pth after every so many updates, not only after each "
            "epoch; by default by time"
        )
        add("--checkpoint_updates", type=int_or_none, help=text)
        text = "Write it, too, when the last one is so old; 0: do not"
        add("--checkpoint_minutes", type=float, default=10.0, help=text)
        text = (
            "Pre-training: end with an error when the targets differ less than that "
            "(standard deviation, mean of a log interval), for they have collapsed"
        )
        add("--min_target_var", type=float, default=0.1, help=text)
        text = "The same of the predictions"
        add("--min_prediction_var", type=float, default=0.01, help=text)
        text = (
            "Look at both from this update on; by default from 5,000, in a training of "
            "fewer updates from the end of the warm-up"
        )
        add("--collapse_from", type=int_or_none, help=text)
        text = (
            "Share of the training clips that may be unreadable, missing or shorter "
            "than listed: they are skipped. 0: the first one is an error"
        )
        add("--max_bad", type=float, default=0.01, help=text)
        text = (
            "End with an error when the training has made no progress for so long: a "
            "file system or another rank hangs; 0: wait for ever"
        )
        add("--stall_minutes", type=float, default=30.0, help=text)
        parser.set_defaults(
            batch_type="unsorted",
            num_att_plot=0,
            use_tf32=None,  # on a GPU, unless --use_amp
            optim="adamw",
            scheduler="sslam_warmup_cosine",
            best_model_criterion=[("valid", "loss", "min")],
            keep_nbest_models=[1],
        )

    @staticmethod
    def add_section(group, name: str, class_name: str, file: str) -> None:
        """Add the option of a YAML section that holds a class's keyword arguments."""
        text = f"Keyword arguments of {class_name}, see espnet2_sslam/{file}"
        group.add_argument(f"--{name}", action=NestedDictAction, default={}, help=text)

    @classmethod
    def main(cls, args: argparse.Namespace | None = None, cmd=None) -> None:
        """Check everything that can be checked, then train as AbsTask.main does."""
        if args is None:
            try:
                args = cls.get_parser().parse_args(cmd)
            except yaml.YAMLError as error:
                text = " ".join(str(error).split())
                raise ValueError(f"--config is not valid YAML: {text}") from error
        handlers = logging.root.handlers[:]
        if not args.print_config:
            cls.check_and_complete(args)
        # a warning sets up the log, which ESPnet would then not do in its own way
        logging.root.handlers[:] = handlers
        try:
            with faults.log_may_fail(), passing_signals_on():
                super().main(args=args)
        except ProcessExitedException as error:
            if error.exit_code == STOPPED:
                sys.exit(STOPPED)
            raise ChildProcessError(
                f"training stopped with {args.ngpu} processes ({error}): the reason is "
                "the first error above"
            ) from error

    @classmethod
    def main_worker(cls, args: argparse.Namespace) -> None:
        """Train in this process; a spawned one reports a user's error in one line."""
        watch = cls.trainer.watch = faults.Watch(args.stall_minutes)
        try:
            with (
                faults.log_may_fail(),
                cls.alone_in_folder(args),
                watch.watching(args),
                _config_written_whole(),
            ):
                super().main_worker(args)
        except (ValueError, OSError) as error:
            if multiprocessing.parent_process() is None:
                raise
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            sys.exit(1)

    @classmethod
    @contextlib.contextmanager
    def alone_in_folder(cls, args: argparse.Namespace) -> Iterator[None]:
        """Hold the lock of the output folder, for all ranks.

        Raises:
            ValueError: Another training holds it.
        """
        if get_rank(args.dist_rank, args.dist_launcher):
            yield
            return
        in_use = f"another training works in {args.output_dir}: wait for it to end"
        with store.lock(Path(args.output_dir) / ".lock", in_use):
            lost_clips.remember(args)
            yield

    @classmethod
    def check_and_complete(cls, args: argparse.Namespace) -> None:
        """Refuse wrong configurations; fill in the scheduler's total_steps.

        Raises:
            ValueError: in one line, with the remedy.
        """
        cls.check_options(args)
        if args.use_amp and args.amp_dtype is None and args.ngpu > 0:
            native = torch.cuda.is_bf16_supported(including_emulation=False)
            args.amp_dtype = "bf16" if native else "fp16"
        if args.use_tf32 is None:  # ESPnet's option, off by its own default
            args.use_tf32 = args.ngpu > 0 and not args.use_amp
        cls.check_configuration(args)
        check_data_files(args, cls.required_data_names())
        parts = (
            args.train_data_path_and_name_and_type,
            args.valid_data_path_and_name_and_type,
        )
        speech = [path for part in parts for path, name, _ in part if name == "speech"]
        check_resampler(getattr(args, "encoder_conf", {}), speech)
        lost_clips.go_on_without(args)
        iterations = cls.iterations_per_epoch(args)
        if iterations % args.accum_grad:
            # ESPnet carries the left-over gradient on, and loses it on resume
            rounded = max(iterations // args.accum_grad, 1) * args.accum_grad
            raise ValueError(
                f"an epoch of {iterations} iterations is not a multiple of "
                f"--accum_grad {args.accum_grad}: a resumed run would differ; set "
                f"--num_iters_per_epoch {rounded}"
            )
        conf = args.scheduler_conf
        if args.scheduler == "sslam_warmup_cosine" and conf.get("total_steps") is None:
            total = args.max_epoch * iterations // args.accum_grad
            args.scheduler_conf = {**conf, "total_steps": total}
        settings.record(args)
        settings.check_unchanged(args)

    @staticmethod
    def check_options(args: argparse.Namespace) -> None:
        """Refuse options under which training or resuming would not be what it says.

        Raises:
            ValueError: naming the first such option and what to set instead.
        """
        for name, allowed, remedy in SUPPORTED:
            value = getattr(args, name)
            if value not in allowed:
                raise ValueError(f"--{name} {value} is not supported here: {remedy}")
        if args.ngpu > 1 and not args.multiprocessing_distributed:
            raise ValueError(
                f"--ngpu {args.ngpu} needs --multiprocessing_distributed true (one "
                "process per GPU)"
            )
        if args.amp_dtype is not None and not args.use_amp:
            raise ValueError(f"--amp_dtype {args.amp_dtype} needs --use_amp true")
        if args.amp_dtype == "fp16" and args.ngpu == 0:
            raise ValueError("--amp_dtype fp16 needs a GPU: use bf16 on a CPU")
        if args.use_amp and args.use_tf32:
            raise ValueError("--use_tf32 true does not go with --use_amp true")
        if not 0 <= args.max_bad <= 1:
            raise ValueError(f"--max_bad must be from 0 to 1, got {args.max_bad}")
        if args.output_dir is None:
            raise ValueError("--output_dir is needed, for checkpoints and logs")
        names = ["batch_size", "accum_grad", "max_epoch"]
        names += [] if args.num_iters_per_epoch is None else ["num_iters_per_epoch"]
        for name in names:
            value = getattr(args, name)
            if type(value) is not int or value < 1:
                raise ValueError(
                    f"--{name} must be a whole number from 1 up, got {value!r}"
                )

    @classmethod
    def check_configuration(cls, args: argparse.Namespace) -> None:
        """Raise ValueError for a key that no class knows, naming the key."""
        optim_class = optim_classes[args.optim]
        check_keywords(optim_class, args.optim_conf, "optim_conf", ["params"])
        option, filled = "optim_groups_conf", ["model", "lr", "weight_decay"]
        check_keywords(parameter_groups, args.optim_groups_conf, option, filled)
        if args.scheduler is not None:
            schedule, option = scheduler_classes[args.scheduler], "scheduler_conf"
            check_keywords(schedule, args.scheduler_conf, option, ["optimizer"])

    @classmethod
    def required_data_names(cls, train: bool = True, inference: bool = False):
        """Name what a clip must have."""
        return ("speech",)

    @classmethod
    def optional_data_names(cls, train: bool = True, inference: bool = False):
        """Name what a clip may have."""
        return ()

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
    def min_clips_per_rank(cls, args: argparse.Namespace, train: bool = True) -> int:
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
        names = ("max_samples", "seed", "input_size")
        return {name: getattr(args, name) for name in names}

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
        dataset, collate = (
            cls.build_dataset(args, iter_options),
            iter_options.collate_fn,
        )
        dataset.check_keys(keys)
        if iter_options.train and (
            args.max_bad * len(keys) >= 1 or lost_clips.accepted(args)
        ):
            dataset.skip_bad = True
            least = cls.min_clips_per_rank(args, True)
            mixture = getattr(sampler, "mixture", False)
            collate = WithoutBadClips(collate, least, mixture)
        logging.info(f"[{mode}] dataset:\n{dataset}\n[{mode}] sampler: {sampler}")
        return EpochIterFactory(
            dataset,
            sampler,
            num_iters_per_epoch=iter_options.num_iters_per_epoch,
            num_workers=args.num_workers,
            collate_fn=collate,
            pin_memory=args.ngpu > 0,
            max_batches=iter_options.num_batches,
        )

    @classmethod
    def build_sampler(
        cls, args: argparse.Namespace, iter_options, keys: Sequence[str]
    ) -> ClipSampler:
        """Return the sampler of one list of clips."""
        options = cls.sampler_options(args, iter_options, keys)
        return ClipSampler(keys, iter_options.batch_size, **options)

    @classmethod
    def sampler_options(
        cls, args: argparse.Namespace, iter_options, keys: Sequence[str]
    ) -> dict[str, Any]:
        """Return the options that all samplers share."""
        options: dict[str, Any] = {
            "train": iter_options.train,
            "seed": args.seed,
            "drop_last": args.drop_last_iter,
            "min_clips_per_rank": cls.min_clips_per_rank(args, iter_options.train),
        }
        data, shapes = (
            iter_options.data_path_and_name_and_type,
            iter_options.shape_files,
        )
        if length_list(data, shapes, args.input_size):
            options["lengths"] = read_lengths(keys, data, shapes, args.input_size)
        if iter_options.distributed:
            options["rank"] = torch.distributed.get_rank()
            options["world_size"] = torch.distributed.get_world_size()
        if iter_options.train and args.balanced_clips_per_epoch:
            if args.sample_weights is not None:
                weights = read_weights(args.sample_weights, keys)
            else:
                labels = read_labels(iter_options.data_path_and_name_and_type, keys)
                weights = class_balanced_weights(labels)
            never = np.count_nonzero(weights == 0)
            if never:
                logging.warning(f"{never} clips have no label or weight: never drawn")
            options["weights"] = weights
            options["num_samples"] = args.balanced_clips_per_epoch
        return options

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

    @classmethod
    def build_optimizers(
        cls, args: argparse.Namespace, model: torch.nn.Module
    ) -> list[torch.optim.Optimizer]:
        """Return the optimizer, with its groups.

        Called by ESPnet when the model is built and not yet initialised from
        --init_param, which is therefore checked here; `--compile` and
        `--activation_checkpointing` are obeyed, too.
        """
        for init_param in args.init_param:
            check_init_param(model, init_param)
        if args.activation_checkpointing != "none":
            cast(Any, model).checkpoint_activations(args.activation_checkpointing)
        if args.compile:
            cast(Any, model).compile_step()
        optim_class = optim_classes[args.optim]
        defaults = inspect.signature(optim_class).parameters
        rates = {
            name: args.optim_conf.get(name, defaults[name].default)
            for name in ("lr", "weight_decay")
        }
        groups = parameter_groups(model, **rates, **args.optim_groups_conf)
        conf = {**args.optim_conf, **rates}
        on_gpu = all(p.is_cuda for group in groups for p in group["params"])
        if on_gpu and "fused" in defaults and not conf.keys() & {"fused", "foreach"}:
            conf["fused"] = True  # an update in one pass over the weights
        return [optim_class(groups, **conf)]

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
        if model_file is not None:
            config_file = config_file or Path(model_file).parent / "config.yaml"
        if config_file is None:
            raise ValueError("config_file or model_file is needed, got neither")
        for path in (config_file, model_file):
            if path is not None and not Path(path).is_file():
                raise ValueError(f"{path} does not exist: train the model first")
        args = argparse.Namespace(**store.read_yaml(config_file))
        model = cls.build_model(args)
        if model_file is not None:
            states = load_states(model_file)
            compare_states(model.state_dict(), states, str(model_file))
            model.load_state_dict(states)
        return model.to(device), args
