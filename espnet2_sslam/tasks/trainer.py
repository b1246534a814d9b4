"""The training loop under ESPnet's Trainer: exact, stoppable, never late for the GPU.

ESPnet's `Trainer.run` goes through the epochs; `train_one_epoch` and
`validate_one_epoch` are ours, with its options, logs and keys of the reporter.
"""

import argparse
import contextlib
import copy
import dataclasses
import itertools
import logging
import math
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import espnet2.main_funcs.average_nbest_models
import espnet2.train.trainer
import torch
from espnet2.schedulers.abs_scheduler import AbsBatchStepScheduler
from espnet2.torch_utils.add_gradient_noise import add_gradient_noise
from espnet2.torch_utils.device_funcs import to_device
from espnet2.train.reporter import Average, Reporter, SubReporter
from espnet2.train.trainer import Trainer, TrainerOptions
from espnet2.utils.build_dataclass import build_dataclass
from espnet2.utils.kwargs2args import kwargs2args

from espnet2_sslam import store
from espnet2_sslam.machine import machine
from espnet2_sslam.optim import WarmupCosine
from espnet2_sslam.progress import Progress
from espnet2_sslam.tasks.bad_clips import BadClips, batch_norm_resting, without_clips
from espnet2_sslam.tasks.faults import Watch
from espnet2_sslam.tasks.saving import (
    LAST,
    STOP,
    Checkpoints,
    every_rank,
    load_checkpoint,
    rank,
    save_whole,
)

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclasses.dataclass
class SafeTrainerOptions(TrainerOptions):
    """Options of ESPnet's trainer and ours."""

    amp_dtype: str | None
    use_tf32: bool | None
    checkpoint_updates: int | None
    checkpoint_minutes: float
    min_target_var: float
    min_prediction_var: float
    collapse_from: int | None
    max_bad: float

    def __post_init__(self):
        self.use_amp = self.amp_dtype == "fp16"  # to ESPnet: whether to scale the loss
        self.bad_clips = BadClips(self.max_bad)
        self.validation_seconds = 0.0  # that the last one took
        self.checkpoints = Checkpoints(
            self.output_dir,
            self.checkpoint_updates,
            self.checkpoint_minutes,
            self.bad_clips,
        )

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return torch.device("cuda" if self.ngpu > 0 else "cpu")

    def progress(self, reporter: SubReporter, done: int, remaining: int) -> Progress:
        """Of the updates of an epoch, from its batches; what is left of the run too."""
        epoch, total = reporter.get_epoch(), (done + remaining) // self.accum_grad

        def rest(pace: float) -> float:
            later = (self.max_epoch - epoch) * (pace * total + self.validation_seconds)
            return self.validation_seconds + later

        work = f"epoch {epoch} of {self.max_epoch}"
        done //= self.accum_grad
        return Progress(work, total, "update", done, bar=False, rest=rest)

    def autocast(self) -> torch.autocast:
        """The precision of the passes, as a context."""
        dtype = PRECISIONS.get(self.amp_dtype or "")
        return torch.autocast(self.device.type, dtype, enabled=dtype is not None)


class SafeTrainer(Trainer):
    """Trainer that loses nothing: checkpoints inside epochs, whole-set validation.

    A model may have `update_teacher()`, called after each update that moved the
    weights. It may have `begin_validation()` and `finish_validation(gather) -> dict`,
    called around each validation epoch; `gather(x)` returns the list of every rank's
    x, so that exact statistics over the whole set (mAP) can be computed. They are
    reported like all others: `--best_model_criterion valid mAP max` works.
    """

    watch = Watch(0)  # of this process

    @classmethod
    def build_options(cls, args: argparse.Namespace) -> SafeTrainerOptions:
        """The options that the trainer uses, out of all."""
        return build_dataclass(SafeTrainerOptions, args)

    @classmethod
    def run(cls, *, model, train_iter_factory, trainer_options, **kwargs: Any) -> None:
        """Train as Trainer.run does; first repair what an earlier kill left behind.

        Raises:
            SystemExit: A signal has stopped it, see `Checkpoints`.
        """
        checkpoints: Checkpoints = trainer_options.checkpoints
        folder = Path(trainer_options.output_dir)
        trainer_options.bad_clips.total = len(train_iter_factory.sampler.keys)
        if rank() == 0:
            logging.info("machine: %s", machine())  # results/history.py reads it
            logging.info("precision: %s", precision(trainer_options))
        last = _agreed_checkpoint(folder) if trainer_options.resume else None
        if last is not None:
            checkpoints.resume(last)
            reporter = Reporter()
            reporter.load_state_dict(last["reporter"])
            within = last.get("within")
            if rank() == 0:
                store.remove_leftovers(folder, "*.pth")
            if within is not None:
                train_iter_factory.begin_within(within["epoch"], within["batches"])
            elif rank() == 0:
                _repair(folder, last["model"], reporter, trainer_options)
            if _stopped_early(reporter, trainer_options):
                trainer_options.max_epoch = reporter.get_epoch()
        del last  # a mapped file keeps its place on the disk after it is replaced
        with _espnet_saves_whole(checkpoints), checkpoints.listening():
            super().run(
                model=model,
                train_iter_factory=train_iter_factory,
                trainer_options=trainer_options,
                **kwargs,
            )
        if rank() == 0:
            store.remove_checksums(folder)  # of epochs that ESPnet has removed

    @staticmethod
    def resume(
        checkpoint, model, reporter, optimizers, schedulers, scaler, ngpu=0, strict=True
    ) -> None:
        """Take over all that a checkpoint holds."""
        states = load_checkpoint(Path(checkpoint).parent)
        assert states is not None
        model.load_state_dict(states["model"], strict=strict)
        reporter.load_state_dict(states["reporter"])
        for optimizer, state in zip(optimizers, states["optimizers"], strict=True):
            # it would keep the tensors themselves, which lie in the file
            optimizer.load_state_dict(copy.deepcopy(state))
        for scheduler, state in zip(schedulers, states["schedulers"], strict=True):
            if isinstance(scheduler, WarmupCosine):
                scheduler.follow(state)  # its length may be another one now
            elif scheduler is not None:
                scheduler.load_state_dict(state)
        if scaler is not None and states["scaler"] is not None:
            scaler.load_state_dict(states["scaler"])
        logging.info(f"The training was resumed using {checkpoint}")

    @classmethod
    def train_one_epoch(
        cls,
        *,
        model: torch.nn.Module,
        iterator: Iterable,
        optimizers: Sequence[torch.optim.Optimizer],
        schedulers: Sequence[Any],
        scaler: Any,
        reporter: SubReporter,
        summary_writer,
        options: SafeTrainerOptions,
        distributed_option,
    ) -> bool:
        """Train one epoch, or what is left of it.

        The host reads one number in an update, the norm of the gradients, which
        decides about it; all statistics wait on the device until they are logged.

        Returns:
            False: ESPnet would end a training without a valid update as a finished one.

        Raises:
            SystemExit: A signal has stopped it; the checkpoint is written.
            ValueError: It is broken, see `Alarms`.
        """
        if distributed_option.distributed:
            # ESPnet seeds all ranks alike: the same clips' blocks would be dropped.
            torch.manual_seed(options.seed + reporter.get_epoch() + 1_000_003 * rank())
        inner: Any = getattr(model, "module", model)  # inside DistributedDataParallel
        checkpoints, accum_grad = options.checkpoints, options.accum_grad
        bad_clips, used = options.bad_clips, False  # whether the update has a clip
        statistics = Statistics(reporter, distributed_option.distributed)
        batches, remaining = _counted(
            iterator, distributed_option.distributed, cls.watch
        )
        checkpoints.enter(
            reporter,
            model=inner,
            optimizers=optimizers,
            schedulers=schedulers,
            scaler=scaler,
        )
        alarms = Alarms(options, reporter, schedulers)
        progress = options.progress(reporter, checkpoints.position, remaining)
        if checkpoints.position == 0:
            batches = alarms.audible(batches)
        log_interval = options.log_interval or max(
            (checkpoints.position + remaining) // 20, 10
        )
        model.train()
        start_time = time.perf_counter()
        for number, batch in enumerate(
            statistics.timed(ahead(batches, options.device), "iter_time"),
            checkpoints.position + 1,
        ):
            asked = 0.0
            if options.no_forward_run:
                statistics.next()
                continue
            if options.create_graph_in_tensorboard and summary_writer and number == 1:
                _add_graph(summary_writer, inner, batch)

            # 1. Forward; the loss is the mean over the clips of all ranks.
            skipped, usable = batch.pop("bad_clips", ()), batch.pop("usable", True)
            bad_clips.note(batch["utt_id"], skipped)
            used = used or usable
            with options.autocast(), batch_norm_resting(inner, rest=not usable):
                with statistics.time("forward_time"):
                    loss, stats, weight = model(**batch)
                if not usable:
                    alone = not distributed_option.distributed
                    loss, stats, weight = without_clips(loss, stats, weight, alone)
                request = checkpoints.request(statistics.total_count // accum_grad)
                asks = request, bad_clips.news, float(used)
                loss, asks = statistics.add(loss, stats, weight, asks)
                loss = loss / accum_grad

            # 2. Backward.
            with statistics.time("backward_time"):
                (scaler.scale(loss) if scaler else loss).backward()
            del loss

            # 3. Update, unless a gradient is infinite or NaN.
            if number % accum_grad == 0:
                if scaler:
                    for optimizer in optimizers:
                        scaler.unscale_(optimizer)
                if options.grad_noise:
                    add_gradient_noise(
                        model,
                        statistics.total_count,
                        duration=100,
                        eta=1.0,
                        scale_factor=0.55,
                    )
                norm = torch.nn.utils.clip_grad_norm_(
                    model.parameters(),
                    max_norm=options.grad_clip,
                    norm_type=options.grad_clip_type,
                )
                norm, asked, news, some_used = numbers([norm, *asks])
                used = False
                if news:
                    bad_clips.share_news()
                if some_used:
                    alarms.count(norm)
                if not some_used:
                    logging.warning("No clip can be used. Skipping the update.")
                elif math.isfinite(norm):
                    statistics.register(
                        {
                            "grad_norm": norm,
                            "clip": 100.0 if norm > options.grad_clip else 0.0,
                            "loss_scale": _scale(scaler),
                        }
                    )
                    with statistics.time("optim_step_time"):
                        for optimizer, scheduler in zip(
                            optimizers, schedulers, strict=True
                        ):
                            optimizer.step()
                            if isinstance(scheduler, AbsBatchStepScheduler):
                                scheduler.step()
                        if hasattr(inner, "update_teacher"):
                            inner.update_teacher()
                else:
                    logging.warning(
                        f"The grad norm is {norm}. Skipping updating the model."
                    )
                if scaler:
                    scaler.update()
                for optimizer in optimizers:
                    optimizer.zero_grad()
                rates = {
                    f"optim{i}_lr{j}": group["lr"]
                    for i, optimizer in enumerate(optimizers)
                    for j, group in enumerate(optimizer.param_groups)
                }
                now = time.perf_counter()
                statistics.register({**rates, "train_time": now - start_time})
                start_time = now

            # 4. What is seen and kept of it.
            statistics.next()
            checkpoints.position = number
            if number % accum_grad == 0 and rank() == 0:
                progress.update()
            if number % log_interval == 0:
                statistics.flush()
                alarms.check_spread()
                logging.info(reporter.log_message(-log_interval))
                if summary_writer is not None:
                    reporter.tensorboard_add_scalar(summary_writer, -log_interval)
                if options.use_wandb:
                    reporter.wandb_log()
            if asked:
                statistics.flush()
                checkpoints.save(wait=asked == STOP)
                if asked == STOP:
                    checkpoints.leave()
        statistics.flush()
        alarms.check_spread()
        if not options.no_forward_run:
            alarms.check_updates()
        return False

    @classmethod
    @torch.no_grad()
    def validate_one_epoch(
        cls,
        *,
        model: torch.nn.Module,
        iterator: Iterable,
        reporter: SubReporter,
        options: SafeTrainerOptions,
        distributed_option,
    ) -> None:
        """Validate one epoch, with statistics over the whole set at the end.

        Raises:
            SystemExit: A signal has stopped it; the checkpoint before it is written.
        """
        inner: Any = getattr(model, "module", model)  # inside DistributedDataParallel
        if hasattr(inner, "begin_validation"):
            inner.begin_validation()
        statistics = Statistics(reporter, distributed_option.distributed)
        batches, count = _counted(iterator, distributed_option.distributed, cls.watch)
        model.eval()
        begun, work = time.monotonic(), f"validation of epoch {reporter.get_epoch()}"
        progress = Progress(work, count, "batch", bar=False)
        for batch in ahead(batches, options.device):
            if options.no_forward_run:
                continue
            with options.autocast():
                loss, stats, weight = model(**batch)
            stop = STOP if options.checkpoints.signal else 0.0
            _, [stop] = statistics.add(loss, stats, weight, [stop])
            statistics.next()
            if rank() == 0:
                progress.update()
            if float(stop):
                options.checkpoints.save(wait=True)
                options.checkpoints.leave()
        statistics.flush()
        options.validation_seconds = time.monotonic() - begun
        if not any(
            math.isfinite(v.value) for v in reporter.stats.get("loss", [Average(0)])
        ):
            raise ValueError(
                f"epoch {reporter.get_epoch()}: the loss is not finite for any clip of "
                f"the validation set: {CAUSES}"
            )
        if hasattr(inner, "finish_validation"):
            stats = inner.finish_validation(every_rank)
            reporter.register({k: float(v) for k, v in stats.items()}, 1.0)
            reporter.next()


def precision(options: SafeTrainerOptions) -> str:
    """What the passes compute in, in words."""
    if options.amp_dtype is None:
        tf32 = ", products in TF32" if options.use_tf32 else ""
        return f"{options.train_dtype}{tf32}"
    scaler = "with" if options.amp_dtype == "fp16" else "without"
    return f"{options.amp_dtype} autocast {scaler} loss scaler"


def _scale(scaler: Any) -> torch.Tensor | float:
    """The scale of the loss, not read: `get_scale` would wait for the device."""
    scale = scaler._get_scale_async() if scaler else None
    return 1.0 if scale is None else scale.clone()


# ----------------------------------------------------------------- batches and numbers


def _counted(iterator: Any, distributed: bool, watch: Watch) -> tuple[Iterator, int]:
    """The batches that every rank has, and how many.

    ESPnet asks the ranks before each batch whether one has come to its end: our
    batches are counted, so once an epoch is enough.
    """
    count = len(iterator)
    batches = iter(iterator)
    if distributed:
        count = min(every_rank(count))
    return watch.reading(itertools.islice(batches, count)), count


def ahead(batches: Iterable, device: torch.device) -> Iterator[dict[str, Any]]:
    """Batches on the device, each copied there while the one before is computed."""
    if device.type == "cpu":
        for ids, batch in batches:
            yield {**batch, "utt_id": ids}
        return
    copying, ready = torch.cuda.Stream(device), None
    for ids, batch in batches:
        batch = {**batch, "utt_id": ids}
        with torch.cuda.stream(copying):
            batch: Any = to_device(batch, device, non_blocking=True)
        following = batch, copying.record_event()
        if ready is not None:
            yield _usable(*ready)
        ready = following
    if ready is not None:
        yield _usable(*ready)


def _usable(batch: dict[str, Any], copied: Any) -> dict[str, Any]:
    """A batch that the current stream may read once it is copied."""
    current = torch.cuda.current_stream()
    current.wait_event(copied)
    for value in batch.values():
        if isinstance(value, torch.Tensor):
            value.record_stream(current)  # its memory is the copying stream's
    return batch


def numbers(values: Sequence[torch.Tensor | float]) -> list[float]:
    """Read scalars from their devices, with one wait for each device and type."""
    groups: dict[Any, list[int]] = defaultdict(list)
    result: list[Any] = list(values)
    for place, value in enumerate(values):
        if isinstance(value, torch.Tensor):
            groups[value.device, value.dtype].append(place)
    for places in groups.values():
        read = torch.stack([result[place].detach().reshape(()) for place in places])
        for place, value in zip(places, read.tolist(), strict=True):
            result[place] = value
    return result


class Statistics:
    """What the steps of an epoch report, kept on the device until it is read.

    Args:
        reporter: ESPnet's, which gets everything in `flush`, in its order.
        distributed: Whether ranks train together.
    """

    def __init__(self, reporter: SubReporter, distributed: bool):
        self.reporter, self.distributed = reporter, distributed
        self._steps: list[list[tuple[dict, Any]]] = [[]]

    @property
    def total_count(self) -> int:
        """Steps of all epochs, with the one that is under way."""
        return self.reporter.total_count + len(self._steps)

    def register(self, stats: Mapping[str, Any], weight: Any = None) -> None:
        """Report numbers or 0-dimensional tensors of the step."""
        self._steps[-1].append((dict(stats), weight))

    @contextlib.contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Report how long the host takes for the block."""
        start = time.perf_counter()
        yield
        self.register({name: time.perf_counter() - start})

    def timed(self, iterable: Iterable, name: str) -> Iterator[Any]:
        """Report how long each item is waited for."""
        iterator = iter(iterable)
        while True:
            start = time.perf_counter()
            try:
                item = next(iterator)
            except StopIteration:
                return
            self.register({name: time.perf_counter() - start})
            yield item

    def add(
        self,
        loss: torch.Tensor,
        stats: Mapping[str, torch.Tensor | None],
        weight: torch.Tensor,
        asks: Sequence[float],
    ) -> tuple[torch.Tensor, Sequence[torch.Tensor | float]]:
        """Report a model's statistics, averaged over ranks in one exchange.

        Args:
            loss: Of this rank.
            stats: Means over the clips of this rank.
            weight: How many clips these are.
            asks: What this rank asks for.

        Returns:
            The loss whose gradients, averaged by DistributedDataParallel, are those of
            the mean over all clips; of each of `asks` the largest.
        """
        stats = {name: value for name, value in stats.items() if value is not None}
        if not self.distributed:
            self.register(stats, weight)
            return loss, asks
        world_size = torch.distributed.get_world_size()
        own = torch.stack(
            [
                *(value.reshape(()) * weight for value in stats.values()),
                weight.reshape(()),
                *(weight.new_full((), ask) for ask in asks),
            ]
        ).detach()
        every = [torch.empty_like(own) for _ in range(world_size)]
        torch.distributed.all_gather(every, own)
        ranks = torch.stack(every)
        values, weights = ranks[:, : len(stats)], ranks[:, len(stats)]
        total = weights.sum()
        # a NaN counts as missing, unless all ranks have it: as in ESPnet
        means = values.nanmean(dim=0) * world_size / total
        self.register(dict(zip(stats, means.unbind(), strict=True)), total)
        # of no clips at all it is 0
        loss = loss * weight.to(loss.dtype) / total.clamp(min=1) * world_size
        return loss, ranks[:, len(stats) + 1 :].amax(dim=0).unbind()

    def next(self) -> None:
        """Close the step."""
        self._steps.append([])

    def flush(self) -> None:
        """Give all closed steps to the reporter."""
        closed, self._steps = self._steps[:-1], self._steps[-1:]
        entries = [entry for step in closed for entry in step]
        values = iter(
            numbers([v for stats, weight in entries for v in (*stats.values(), weight)])
        )
        for step in closed:
            for stats, _ in step:
                read: dict[str, Any] = {name: next(values) for name in stats}
                self.reporter.register(read, next(values))
            self.reporter.next()


# --------------------------------------------------------------------------- alarms


CAUSES = "lower optim_conf lr, or look for clips that are broken"
SKIPPED = 100  # updates one after the other
SILENT = 100  # batches at the beginning of an epoch
SETTLED = 5000  # updates after which the authors look for a collapse


class Alarms:
    """End a training that is broken, so that nothing is built upon it.

    Args:
        options: Of the trainer.
        reporter: Of the epoch.
        schedulers: They know how long the warm-up is.
    """

    def __init__(self, options, reporter: SubReporter, schedulers: Sequence[Any]):
        self.options, self.reporter = options, reporter
        self.least = {
            "target_var": options.min_target_var,
            "prediction_var": options.min_prediction_var,
        }
        self.settled = options.collapse_from
        if self.settled is None:
            schedule = schedulers[0]
            short = getattr(schedule, "total_steps", SETTLED + 1) <= SETTLED
            self.settled = schedule.warmup_steps if short else SETTLED
        self._seen = reporter.count
        self._skipped = 0

    def audible(self, batches: Iterable) -> Iterator:
        """The batches of a whole epoch.

        Raises:
            ValueError: They, or the first 100, are nothing but silence.
        """
        silent = 0
        for ids, batch in batches:
            speech = batch.get("speech")
            if not batch.get("usable", True):
                yield ids, batch
                continue
            if (
                silent < 0
                or speech is None
                or speech.is_cuda
                or speech.min() < speech.max()
            ):
                silent = -1
            else:
                silent += 1
            if silent == SILENT:
                break
            yield ids, batch
        if silent > 0:
            raise ValueError(
                f"all clips of {silent} batches are silent: look at the audio that "
                "--train_data_path_and_name_and_type names"
            )

    def count(self, norm: float) -> None:
        """Take note of an update.

        Raises:
            ValueError: 100 had no finite gradients, one after the other.
        """
        self._skipped = 0 if math.isfinite(norm) else self._skipped + 1
        if self._skipped == SKIPPED:
            self._broken(f"{SKIPPED} updates, one after the other, have")

    def check_updates(self) -> None:
        """Refuse an epoch whose updates were all skipped."""
        if self.reporter.count and "grad_norm" not in self.reporter.stats:
            self._broken("no update has")

    def _broken(self, which: str) -> None:
        raise ValueError(
            f"epoch {self.reporter.get_epoch()}: {which} a finite gradient, the "
            f"training is broken: {CAUSES}"
        )

    def check_spread(self) -> None:
        """Refuse a collapse: targets or predictions that are all the same."""
        first, self._seen = self._seen, self.reporter.count
        begun = self.reporter.total_count - self.reporter.count
        first = max(first, self.settled * self.options.accum_grad - begun)
        for name, least in self.least.items():
            values = [v.value for v in self.reporter.stats.get(name, ())[first:]]
            values = [value for value in values if not math.isnan(value)]
            if values and (mean := sum(values) / len(values)) < least:
                raise ValueError(
                    f"epoch {self.reporter.get_epoch()}: {name} is {mean:.3g}, below "
                    f"{least:g}: the training has collapsed: lower optim_conf lr, "
                    f"raise model_conf ema_decay, or lower --min_{name} if it is meant"
                )


def _add_graph(summary_writer: Any, model: torch.nn.Module, batch: dict) -> None:
    """Let tensorboard draw the model, if it can."""
    try:
        arguments = kwargs2args(model.forward, batch)
        summary_writer.add_graph(model, arguments, use_strict_trace=False)
    except Exception as error:  # tracing fails in many ways
        logging.warning(f"tensorboard gets no graph of the model: {error}")


# ----------------------------------------------------------------- files and resuming


class _TorchSavingWhole:
    """The module torch with another `save`."""

    def __init__(self, checkpoints: Checkpoints):
        self._checkpoints = checkpoints

    def save(self, states: Any, path: str | Path) -> None:
        """Write a checkpoint, or weights, as `Checkpoints` does."""
        if Path(path).name == LAST:
            self._checkpoints.save_epoch(states)
        else:
            save_whole(states, path)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@contextlib.contextmanager
def _espnet_saves_whole(checkpoints: Checkpoints) -> Iterator[None]:
    """Let the modules of ESPnet that write weights write them with `save_whole`.

    `Trainer.run` is one function with `torch.save` in its middle and nothing to
    override, and a kill would leave half a checkpoint (espnet/espnet#5407). So the name
    `torch` in those two modules is another for the time; torch itself stays as it is.
    What is averaged is checked first.
    """
    modules: Any = (espnet2.train.trainer, espnet2.main_funcs.average_nbest_models)
    average = espnet2.train.trainer.average_nbest_models

    def checked_average(*, output_dir: Path, nbest: Any, **options: Any) -> None:
        if max([nbest] if isinstance(nbest, int) else nbest) > 1:
            for path in sorted(output_dir.glob("*epoch.pth")):
                store.check(path)
        average(output_dir=output_dir, nbest=nbest, **options)

    for module in modules:
        module.torch = _TorchSavingWhole(checkpoints)
    modules[0].average_nbest_models = checked_average
    try:
        yield
    finally:
        for module in modules:
            module.torch = torch
        modules[0].average_nbest_models = average


def _agreed_checkpoint(folder: Path) -> dict | None:
    """`load_checkpoint` on every rank, of what the first rank has found good."""
    problem = ""
    if rank() == 0:
        try:
            load_checkpoint(folder)
        except ValueError as error:
            problem = str(error)
    problem = every_rank(problem)[0]
    if problem:
        raise ValueError(problem)
    return load_checkpoint(folder)


def _repair(
    output_dir: Path, weights: dict, reporter: Reporter, options: TrainerOptions
) -> None:
    """Write what should exist beside checkpoint.pth and was lost by a kill."""
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
