"""ESPnet's Trainer, made safe against kills, full disks and half validations."""

import argparse
import contextlib
import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import espnet2.main_funcs.average_nbest_models
import espnet2.train.trainer
import torch
import yaml
from espnet2.torch_utils.device_funcs import force_gatherable
from espnet2.train.reporter import Reporter, SubReporter
from espnet2.train.trainer import Trainer, TrainerOptions
from espnet2.utils.build_dataclass import build_dataclass

from espnet2_sslam import store
from espnet2_sslam.machine import machine

# Options that shape the updates: a resumed run must repeat them.
FIXED_BY_CHECKPOINT = (
    "seed batch_size drop_last_iter accum_grad num_iters_per_epoch "
    "balanced_clips_per_epoch sample_weights max_samples input_size padding optim "
    "optim_conf optim_groups_conf scheduler scheduler_conf grad_clip "
    "grad_clip_type train_dtype use_amp amp_dtype keep_nbest_models"
).split()


PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclasses.dataclass
class SafeTrainerOptions(TrainerOptions):
    """Options of ESPnet's trainer and ours."""

    amp_dtype: str | None
    use_tf32: bool | None


class SafeTrainer(Trainer):
    """Trainer with atomic checkpoints and whole-set validation statistics.

    A model may have `begin_validation()` and `finish_validation(gather) -> dict`. They
    are called around each validation epoch; `gather(x)` returns the list of every
    rank's x, so that exact statistics over the whole set (mAP) can be computed. They
    are reported like all others: `--best_model_criterion valid mAP max` works.
    """

    @classmethod
    def build_options(cls, args: argparse.Namespace) -> SafeTrainerOptions:
        """The options that the trainer uses, out of all."""
        return build_dataclass(SafeTrainerOptions, args)

    @classmethod
    def run(cls, *, model, trainer_options, distributed_option, **kwargs: Any) -> None:
        """Train as Trainer.run does; first repair what an earlier kill left behind."""
        alone = not distributed_option.distributed
        is_first = alone or torch.distributed.get_rank() == 0
        if is_first:
            logging.info("machine: %s", machine())  # results/history.py reads it
            logging.info("precision: %s", precision(trainer_options))
        folder = Path(trainer_options.output_dir)
        last = load_checkpoint(folder) if trainer_options.resume else None
        if last is not None:
            reporter = Reporter()
            reporter.load_state_dict(last["reporter"])
            if is_first:
                _repair(folder, last["model"], reporter, trainer_options)
            if _stopped_early(reporter, trainer_options):
                trainer_options.max_epoch = reporter.get_epoch()
        del last  # a mapped file keeps its place on the disk after it is replaced
        # ESPnet averages over ranks what is (1,), and our models return scalars.
        hook = model.register_forward_hook(
            lambda _model, _inputs, outputs: force_gatherable(
                outputs, outputs[0].device
            )
        )
        try:
            with _espnet_saves_whole(), _espnet_computes_in(trainer_options):
                super().run(
                    model=model,
                    trainer_options=trainer_options,
                    distributed_option=distributed_option,
                    **kwargs,
                )
        finally:
            hook.remove()

    @classmethod
    def train_one_epoch(
        cls, *, reporter: SubReporter, options, distributed_option, **kwargs: Any
    ) -> bool:
        """Train one epoch; each rank draws its own random numbers (drop path)."""
        if distributed_option.distributed:
            # ESPnet seeds all ranks alike: the same clips' blocks would be dropped.
            rank = torch.distributed.get_rank()
            torch.manual_seed(options.seed + reporter.get_epoch() + 1_000_003 * rank)
        return super().train_one_epoch(
            reporter=reporter,
            options=options,
            distributed_option=distributed_option,
            **kwargs,
        )

    @classmethod
    @torch.no_grad()
    def validate_one_epoch(
        cls, *, model, reporter: SubReporter, distributed_option, **kwargs: Any
    ) -> None:
        """Validate as Trainer does, with statistics over the whole set at the end."""
        inner = getattr(model, "module", model)  # inside DistributedDataParallel
        if hasattr(inner, "begin_validation"):
            inner.begin_validation()
        super().validate_one_epoch(
            model=model,
            reporter=reporter,
            distributed_option=distributed_option,
            **kwargs,
        )
        if hasattr(inner, "finish_validation"):
            gather = _gather if distributed_option.distributed else lambda x: [x]
            stats = inner.finish_validation(gather)
            reporter.register({k: float(v) for k, v in stats.items()}, 1.0)
            reporter.next()


def precision(options: SafeTrainerOptions) -> str:
    """What the passes compute in, in words."""
    if not options.use_amp or options.amp_dtype is None:
        tf32 = ", products in TF32" if options.use_tf32 else ""
        return f"{options.train_dtype}{tf32}"
    scaler = "with" if options.amp_dtype == "fp16" else "without"
    return f"{options.amp_dtype} autocast {scaler} loss scaler"


@contextlib.contextmanager
def _espnet_computes_in(options: SafeTrainerOptions) -> Iterator[None]:
    """Let ESPnet's loop compute in `amp_dtype`, bf16 without a loss scaler.

    ESPnet takes bf16 wherever a GPU can emulate it, and scales the loss also there.
    `Trainer.run` makes the scaler and the loops enter autocast with nothing to override
    in between, so these two names in its module are others for the time.
    """
    module: Any = espnet2.train.trainer
    before = module.autocast, module.GradScaler
    dtype = PRECISIONS.get(options.amp_dtype or "")
    device = "cuda" if options.ngpu > 0 else "cpu"

    def autocast(*_: Any, **__: Any) -> torch.autocast:
        return torch.autocast(device, dtype, enabled=options.use_amp and bool(dtype))

    module.autocast = autocast
    if options.amp_dtype != "fp16":
        module.GradScaler = _NoScaler
    try:
        yield
    finally:
        module.autocast, module.GradScaler = before


class _NoScaler(torch.amp.GradScaler):  # pyright: ignore
    """None, as a class: ESPnet checks its arguments against it."""

    def __new__(cls, *_: Any, **__: Any) -> None:  # type: ignore[misc]
        return None


def _gather(value: Any) -> list:
    """Return the list of every rank's value, on every rank."""
    values: list = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


# ----------------------------------------------------------------- files and resuming


def save_whole(states: Any, path: str | Path) -> None:
    """Write with torch.save, so that the file is the old one or the new one, whole.

    Raises:
        OSError: if it cannot be written (full disk), with the old file intact.
    """
    try:
        with store.writing(path, "wb") as stream:
            torch.save(states, stream)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as the latter
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        reason = getattr(cause, "strerror", None) or str(cause).splitlines()[0]
        raise OSError(
            f"cannot write {path}: {reason}; the file from before is intact: make room "
            "and run the same command again with --resume true"
        ) from error


class _TorchSavingWhole:
    """The module torch with another `save`."""

    save = staticmethod(save_whole)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@contextlib.contextmanager
def _espnet_saves_whole() -> Iterator[None]:
    """Let the modules of ESPnet that write weights write them with `save_whole`.

    `Trainer.run` is one function with `torch.save` in its middle and nothing to
    override, and a kill would leave half a checkpoint (espnet/espnet#5407). So the name
    `torch` in those two modules is another for the time; torch itself stays as it is.
    """
    modules: Any = (espnet2.train.trainer, espnet2.main_funcs.average_nbest_models)
    for module in modules:
        module.torch = _TorchSavingWhole()
    try:
        yield
    finally:
        for module in modules:
            module.torch = torch


def load_checkpoint(output_dir: Path) -> dict | None:
    """Open output_dir/checkpoint.pth without reading its tensors; None if not there.

    Raises:
        ValueError: if it is empty or truncated, with the way out.
    """
    path = output_dir / "checkpoint.pth"
    if not path.exists():
        return None
    try:
        # ESPnet will read it without care: nothing but values may be in it.
        return store.read_pickle(path)
    except ValueError as error:
        raise ValueError(
            f"{error}; it cannot be resumed: delete it to start again, or continue "
            f"from an epoch with --init_param {output_dir}/<N>epoch.pth in a new "
            "--output_dir"
        ) from error


def _repair(
    output_dir: Path, weights: dict, reporter: Reporter, options: TrainerOptions
) -> None:
    """Write what should exist beside checkpoint.pth and was lost by a kill."""
    store.remove_leftovers(output_dir, "*.pth")
    snapshot = output_dir / f"{reporter.get_epoch()}epoch.pth"
    if not snapshot.exists():
        logging.warning(f"{snapshot} is missing: writing it from checkpoint.pth")
        save_whole(weights, snapshot)
    store.link(output_dir / "latest.pth", snapshot.name)
    for phase, key, mode in options.best_model_criterion:
        if reporter.has(phase, key):
            best = f"{reporter.get_best_epoch(phase, key, mode)}epoch.pth"
            if (output_dir / best).exists():
                store.link(output_dir / f"{phase}.{key}.best.pth", best)


def _stopped_early(reporter: Reporter, options: TrainerOptions) -> bool:
    """Tell whether patience already ended this training (202511 would go on)."""
    phase, key, mode = options.early_stopping_criterion
    return (
        options.patience is not None
        and reporter.has(phase, key)
        and reporter.check_early_stopping(options.patience, phase, key, mode)
    )


def check_unchanged(args: argparse.Namespace) -> None:
    """Raise ValueError if a run to be resumed was started with other settings."""
    output_dir = Path(args.output_dir)
    config = output_dir / "config.yaml"
    if not (args.resume and (output_dir / "checkpoint.pth").exists()):
        return
    if not config.exists():
        raise ValueError(
            f"{config} is missing beside checkpoint.pth: delete {output_dir} and train "
            "again"
        )
    before = store.read_yaml(config)
    if hasattr(args, "padding"):  # a training from before there was the option
        before.setdefault("padding", "authors")
    for name in FIXED_BY_CHECKPOINT:
        if not hasattr(args, name):
            continue
        now = yaml.safe_load(yaml.safe_dump(getattr(args, name)))  # tuples as lists
        if name in before and before[name] != now:
            raise ValueError(
                f"{output_dir} was trained with --{name} {before[name]}, this run has "
                f"{now}: resume with the same settings or give a new --output_dir"
            )
