"""ESPnet's Trainer, made safe against kills, full disks and half validations."""

import logging
import pickle
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from espnet2.torch_utils.device_funcs import force_gatherable
from espnet2.train.distributed_utils import DistributedOption
from espnet2.train.reporter import Reporter, SubReporter
from espnet2.train.trainer import Trainer, TrainerOptions

from espnet2_sslam.machine import machine
from espnet2_sslam.tasks.atomic import (
    atomic_torch_save,
    link_atomically,
    save_atomically,
)

Gather = Callable[[Any], list]


class SafeTrainer(Trainer):
    """Trainer with atomic checkpoints and whole-set validation statistics.

    A model may have `begin_validation()` and `finish_validation(gather) -> dict`. They
    are called around each validation epoch; `gather(x)` returns the list of every
    rank's x, so that exact statistics over the whole set (mAP) can be computed. They
    are reported like all others: `--best_model_criterion valid mAP max` works.
    """

    @classmethod
    def run(cls, *, model, trainer_options, distributed_option, **kwargs: Any) -> None:
        """Train as Trainer.run does; first repair what an earlier kill left behind."""
        first_rank = not distributed_option.distributed or _rank() == 0
        if first_rank:
            logging.info("machine: %s", machine())  # results/history.py reads it
        with atomic_torch_save():
            if trainer_options.resume:
                last = load_checkpoint(Path(trainer_options.output_dir))
                if last is not None and first_rank:
                    _repair(Path(trainer_options.output_dir), last, trainer_options)
                if last is not None and _stopped_early(last, trainer_options):
                    trainer_options.max_epoch = last["reporter"]["epoch"]
            hook = model.register_forward_hook(_as_vectors)
            try:
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
        cls,
        model: torch.nn.Module,
        reporter: SubReporter,
        options: TrainerOptions,
        distributed_option: DistributedOption,
        **kwargs: Any,
    ) -> bool:
        """Train one epoch; each rank draws its own random numbers (drop path)."""
        if distributed_option.distributed:
            # ESPnet seeds all ranks alike: the same clips' blocks would be dropped.
            torch.manual_seed(options.seed + reporter.get_epoch() + 1_000_003 * _rank())
        return super().train_one_epoch(
            model=model,
            reporter=reporter,
            options=options,
            distributed_option=distributed_option,
            **kwargs,
        )

    @classmethod
    @torch.no_grad()
    def validate_one_epoch(
        cls,
        model: torch.nn.Module,
        iterator: Iterable,
        reporter: SubReporter,
        options: TrainerOptions,
        distributed_option: DistributedOption,
    ) -> None:
        """Validate as Trainer does, with statistics over the whole set at the end."""
        inner = getattr(model, "module", model)
        if hasattr(inner, "begin_validation"):
            inner.begin_validation()
        super().validate_one_epoch(
            model=model,
            iterator=iterator,
            reporter=reporter,
            options=options,
            distributed_option=distributed_option,
        )
        if hasattr(inner, "finish_validation"):
            gather = _gather if distributed_option.distributed else _gather_alone
            stats = inner.finish_validation(gather)
            reporter.register({k: float(v) for k, v in stats.items()}, 1.0)
            reporter.next()


def load_checkpoint(output_dir: Path) -> dict | None:
    """Open output_dir/checkpoint.pth without reading its tensors; None if not there.

    Raises:
        ValueError: if it is empty or truncated, with the way out.
    """
    path = output_dir / "checkpoint.pth"
    if not path.exists():
        return None
    try:
        # Written by ourselves; ESPnet 202511 keeps numpy numbers in the reporter.
        return torch.load(path, map_location="cpu", mmap=True, weights_only=False)
    except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError) as e:
        raise ValueError(
            f"{path} is empty or truncated and cannot be resumed: delete it to start "
            "again, or continue from an epoch with --init_param "
            f"{output_dir}/<N>epoch.pth in a new --output_dir"
        ) from e


def _repair(output_dir: Path, last: dict, options: TrainerOptions) -> None:
    """Write what should exist beside checkpoint.pth and was lost by a kill."""
    for leftover in output_dir.glob(".*.pth.*.tmp"):
        leftover.unlink(missing_ok=True)
    reporter = Reporter()
    reporter.load_state_dict(last["reporter"])
    epoch = reporter.get_epoch()
    snapshot = output_dir / f"{epoch}epoch.pth"
    if not snapshot.exists():
        logging.warning(f"{snapshot} is missing: writing it from checkpoint.pth")
        save_atomically(last["model"], snapshot)
    link_atomically(output_dir / "latest.pth", snapshot.name)
    for phase, key, mode in options.best_model_criterion:
        if reporter.has(phase, key):
            best = f"{reporter.get_best_epoch(phase, key, mode)}epoch.pth"
            if (output_dir / best).exists():
                link_atomically(output_dir / f"{phase}.{key}.best.pth", best)


def _stopped_early(last: dict, options: TrainerOptions) -> bool:
    """Tell whether patience already ended this training (202511 would go on)."""
    reporter = Reporter()
    reporter.load_state_dict(last["reporter"])
    criterion = options.early_stopping_criterion
    return (
        options.patience is not None
        and reporter.has(*criterion[:2])
        and reporter.check_early_stopping(options.patience, *criterion)
    )


def _as_vectors(model: torch.nn.Module, inputs: Any, outputs: Any) -> Any:
    """Make loss, stats and weight (1,) tensors: ESPnet averages those over ranks."""
    return force_gatherable(outputs, outputs[0].device)


def _rank() -> int:
    """Return this process's rank."""
    return torch.distributed.get_rank()


def _gather(value: Any) -> list:
    """Return the list of every rank's value, on every rank."""
    values = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def _gather_alone(value: Any) -> list:
    """Return the list of the only rank's value."""
    return [value]
