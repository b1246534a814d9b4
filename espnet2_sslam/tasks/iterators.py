"""Which clips make up a batch: new partners in every pass, exact after a resume."""

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from espnet2.iterators.abs_iter_factory import AbsIterFactory
from espnet2.samplers.abs_sampler import AbsSampler
from torch.utils.data import DataLoader


def batches_per_pass(
    num_clips: int,
    batch_size: int,
    *,
    train: bool,
    drop_last: bool = False,
    min_batch: int = 1,
) -> int:
    """Return into how many batches one pass over num_clips is cut.

    Clips left over are spread over the batches, so that no batch is small. In training
    that makes num_clips // batch_size batches of batch_size clips or a few more, as
    ESPnet's batch_type "unsorted"; in validation batches of at most batch_size, as far
    as min_batch allows.

    Args:
        num_clips: clips of one pass.
        batch_size: clips per batch, over all ranks.
        train: training (True) or validation.
        drop_last: training only: exactly batch_size clips, the rest is left out.
        min_batch: clips that every batch must have (clips per rank x ranks).

    Raises:
        ValueError: if a batch would be smaller than min_batch.
    """
    if batch_size < min_batch:
        raise ValueError(
            f"--batch_size {batch_size} is too small: all ranks together need "
            f"{min_batch} clips per batch; raise it (it counts all ranks)"
        )
    if num_clips < min_batch or (train and drop_last and num_clips < batch_size):
        needed = batch_size if train and drop_last else min_batch
        raise ValueError(
            f"{num_clips} clips are too few for a batch of {needed}: use more clips, "
            "fewer ranks or a smaller --batch_size"
        )
    if train:
        return max(num_clips // batch_size, 1)
    return min(-(-num_clips // batch_size), num_clips // min_batch)


class ClipSampler(AbsSampler):
    """Cut one pass over all clips into batches.

    In training each pass is a new permutation keyed by (seed, pass), the same on every
    rank; in validation the order is that of the list. A batch is dealt out to the
    ranks, so that each clip is used exactly once per pass.

    Args:
        keys: clip ids; kept as one byte array (2 million clips: about 50 MB).
        batch_size: clips per batch, over all ranks.
        train: shuffle (True), or keep the order.
        seed: with the number of the pass, fixes the order.
        drop_last: training only: leave out what does not fill a batch.
        min_clips_per_rank: clips that every rank must get of every batch.
        rank: this process.
        world_size: number of processes.

    Raises:
        ValueError: if there are too few clips for the batches and ranks.
    """

    def __init__(
        self,
        keys: Sequence[str],
        batch_size: int,
        *,
        train: bool,
        seed: int = 0,
        drop_last: bool = False,
        min_clips_per_rank: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.keys = np.array([key.encode() for key in keys], dtype=np.bytes_)
        self.batch_size = batch_size
        self.train = train
        self.seed = seed
        self.drop_last = drop_last and train
        self.rank = rank
        self.world_size = world_size
        self.num_batches = batches_per_pass(
            self.clips_per_pass(),
            batch_size,
            train=train,
            drop_last=drop_last,
            min_batch=min_clips_per_rank * world_size,
        )

    def clips_per_pass(self) -> int:
        """Return the number of clips of one pass."""
        return len(self.keys)

    def order(self, number: int) -> np.ndarray:
        """Return the indices of the clips of one pass, in order."""
        if not self.train:
            return np.arange(len(self.keys))
        return self.generator(number).permutation(len(self.keys))

    def generator(self, number: int) -> np.random.Generator:
        """Return the random numbers of one pass."""
        return np.random.default_rng([self.seed, number])

    def batch(self, order: np.ndarray, index: int) -> list[str]:
        """Return this rank's clip ids of one batch of a pass."""
        if self.drop_last:
            start, end = index * self.batch_size, (index + 1) * self.batch_size
        else:
            start = index * len(order) // self.num_batches
            end = (index + 1) * len(order) // self.num_batches
        mine = order[start:end][self.rank :: self.world_size]
        return [key.decode() for key in self.keys[mine]]

    def generate(self, seed: int) -> list[list[str]]:
        """Return all batches of pass number `seed` (ESPnet's name for it)."""
        order = self.order(seed)
        return [self.batch(order, index) for index in range(self.num_batches)]

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[str]]:
        return iter(self.generate(0))

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({len(self.keys)} clips, {self.clips_per_pass()} "
            f"per pass in {self.num_batches} batches of about {self.batch_size})"
        )


class BalancedSampler(ClipSampler):
    """Draw num_samples different clips per pass, rare classes more often.

    As the authors sample AudioSet (200,000 clips per "epoch", without replacement;
    ta012/SSLAM@0a3c0ff, mae_image_dataset.py, line 265: torch.multinomial). The Gumbel
    trick draws them in one sort, for any number of clips.

    Args:
        keys: clip ids.
        batch_size: clips per batch, over all ranks.
        weights: (N,) weights of the clips, as class_balanced_weights gives them; a
            clip of weight 0 is never drawn.
        num_samples: clips per pass.
        **options: those of ClipSampler.

    Raises:
        ValueError: if there are fewer clips with a weight than num_samples.
    """

    def __init__(
        self,
        keys: Sequence[str],
        batch_size: int,
        *,
        weights: np.ndarray,
        num_samples: int,
        **options: Any,
    ):
        usable = int(np.count_nonzero(weights > 0))
        if not 0 < num_samples <= usable:
            raise ValueError(
                f"{num_samples} balanced clips per epoch cannot be drawn from {usable} "
                f"labelled clips: give a number from 1 to {usable}"
            )
        if len(weights) != len(keys):
            raise ValueError(f"{len(keys)} clips, but {len(weights)} weights")
        with np.errstate(divide="ignore"):
            self.log_weights = np.log(np.asarray(weights, dtype=np.float64))
        self.num_samples = num_samples
        super().__init__(keys, batch_size, train=True, **options)

    def clips_per_pass(self) -> int:
        """Return the number of clips of one pass."""
        return self.num_samples

    def order(self, number: int) -> np.ndarray:
        """Return the indices of the clips of one pass, in order."""
        generator = self.generator(number)
        scores = self.log_weights + generator.gumbel(size=len(self.log_weights))
        drawn = np.argpartition(-scores, self.num_samples - 1)[: self.num_samples]
        return generator.permutation(drawn)


class EpochIterFactory(AbsIterFactory):
    """Make the batches of each epoch, the same ones after a resume.

    Batches are numbered through all passes: with num_iters_per_epoch I, epoch e takes
    the batches from (e - 1) * I on, so passes go on across epochs. The pre-processor
    learns the epoch (`set_epoch`) before the workers start.

    Args:
        dataset: clip id -> arrays; its `preprocess` may have `set_epoch(epoch)`.
        sampler: batches of a pass.
        num_iters_per_epoch: batches per epoch; None for one pass.
        num_workers: processes that read clips; forked, since ESPnet's spawned ranks
            would otherwise import everything again in each worker in each epoch.
        collate_fn: list of clips -> batch.
        pin_memory: as in DataLoader.
        max_batches: stop after so many batches (plots).
    """

    def __init__(
        self,
        dataset: Any,
        sampler: ClipSampler,
        *,
        num_iters_per_epoch: int | None = None,
        num_workers: int = 0,
        collate_fn: Callable | None = None,
        pin_memory: bool = False,
        max_batches: int | None = None,
    ):
        self.dataset = dataset
        self.sampler = sampler
        self.batches_per_epoch = num_iters_per_epoch or len(sampler)
        self.max_batches = max_batches
        self.loader_options = {
            "num_workers": num_workers,
            "collate_fn": collate_fn,
            "pin_memory": pin_memory,
        }
        if num_workers > 0 and sys.platform == "linux":
            self.loader_options["multiprocessing_context"] = "fork"

    def build_iter(self, epoch: int, shuffle: bool | None = None) -> DataLoader:
        """Return the DataLoader of one epoch (counted from 1)."""
        preprocess = getattr(self.dataset, "preprocess", None)
        if hasattr(preprocess, "set_epoch"):
            preprocess.set_epoch(epoch)
        first = (epoch - 1) * self.batches_per_epoch
        last = first + self.batches_per_epoch
        if self.max_batches is not None:
            last = min(last, first + self.max_batches)
        batches = _BatchRange(self.sampler, first, last)
        return DataLoader(self.dataset, batch_sampler=batches, **self.loader_options)


class _BatchRange:
    """The batches first, ..., last - 1 of all passes, made one by one."""

    def __init__(self, sampler: ClipSampler, first: int, last: int):
        self.sampler, self.first, self.last = sampler, first, last

    def __len__(self) -> int:
        return self.last - self.first

    def __iter__(self) -> Iterator[list[str]]:
        current, order = None, None
        for number in range(self.first, self.last):
            passes, index = divmod(number, len(self.sampler))
            if passes != current:
                current, order = passes, self.sampler.order(passes)
            yield self.sampler.batch(order, index)
