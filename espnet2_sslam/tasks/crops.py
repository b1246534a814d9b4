"""Batches of crops, so that nothing is ever padded (pre-training, `padding: none`).

A pass over the data is a set of crops, about as many of a recording as `clip_frames`
fit into it. Batches are made of crops of nearly equal length, all cut to the whole time
patches of the shortest. Every draw is keyed by the seed and the pass.
"""

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from espnet2_sslam.tasks.data import ClipSampler, Crop, batches_per_pass
from espnet2_sslam.units import (
    FRAME_LENGTH,
    FRAME_SHIFT,
    MIN_FRAMES,
    PATCH_SIZE,
    SAMPLE_RATE,
)

MUCH_HEARD = 0.7  # share of the audio below which a pass is warned of
JITTER = 0.1  # lengths that differ by less may meet in a batch


class Pass(NamedTuple):
    """The crops of one pass, batch after batch, the batches by rising length."""

    number: int
    recordings: np.ndarray  # (N,) index of each crop's recording
    places: np.ndarray  # (N,) its centre, 0..1 of the recording
    batches: np.ndarray  # (K,) the order in which the batches are used


class CropSampler(ClipSampler):
    """Cut recordings of any length into batches without padding.

    Crops lie evenly over a recording, beginning at a phase drawn for each pass, so that
    what one pass leaves out is heard in others. Validation repeats the same pass, for
    any seed. With weights each drawn recording gives one crop.

    Two crops of a recording are in one batch only where there are more of them than
    batches; with `mixture` they are then never neighbours, and a recording gives at
    most as many crops as can be kept apart.

    Args:
        keys: Ids of the recordings.
        lengths: Samples, or frames of log-mel, of each (N,); below 48 frames (or
            `clip_frames`, if less) a recording is left out, with a warning.
        batch_size: Crops per batch, over all ranks.
        clip_frames: Frames of the longest crops.
        input_size: 1 for waveforms, 128 for log-mel.
        mixture: Whether a crop is mixed with the next one of its rank's share.
        train, seed, drop_last, min_clips_per_rank, rank, world_size, weights,
            num_samples: See `ClipSampler`.

    Raises:
        ValueError: Every recording too short, too few for a batch, or one only where
            crops are mixed.
    """

    def __init__(
        self,
        keys: Sequence[str],
        lengths: np.ndarray,
        batch_size: int,
        *,
        clip_frames: int,
        input_size: int = 1,
        mixture: bool = False,
        train: bool,
        drop_last: bool = False,
        min_clips_per_rank: int = 1,
        world_size: int = 1,
        weights: np.ndarray | None = None,
        **options: Any,
    ):
        self.shift = FRAME_SHIFT if input_size == 1 else 1
        self.overlap = FRAME_LENGTH - FRAME_SHIFT if input_size == 1 else 0
        self.clip_frames, self.mixture = clip_frames, mixture
        lengths = np.asarray(lengths, dtype=np.int64)
        kept = self._long_enough(lengths)
        if mixture and np.count_nonzero(kept) < 2:
            raise ValueError(
                "a mixture needs 2 recordings, the list of "
                f"{'training' if train else 'validation'} has one that is long enough: "
                "put more into it (prepare the data with more recordings, a larger "
                "--valid_share or --cut 10), or set model_conf mixture: false"
            )
        if not kept.all():
            rows = np.flatnonzero(kept).tolist()
            keys = [keys[row] for row in rows]
            lengths = lengths[kept]
            weights = None if weights is None else weights[kept]
        self.lengths: np.ndarray = lengths
        self.frames = np.minimum((lengths - self.overlap) // self.shift, clip_frames)
        # crops of each recording in a pass
        whole = np.round((lengths - self.overlap) / (self.shift * clip_frames))
        self.counts = np.maximum(whole, 1).astype(np.int64)
        batches: dict[str, Any] = {
            "train": train,
            "drop_last": drop_last,
            "min_batch": min_clips_per_rank * world_size,
        }
        if weights is not None:
            self.counts[:] = 1
        elif mixture:
            self._keep_apart(batch_size, world_size, batches)
        super().__init__(
            keys,
            batch_size,
            train=train,
            drop_last=drop_last,
            min_clips_per_rank=min_clips_per_rank,
            world_size=world_size,
            weights=weights,
            clips_per_pass=int(self.counts.sum()),
            lengths=lengths,
            **options,
        )
        self.seed = self.seed if train else 0
        count = self.clips_per_pass
        if self.drop_last:
            count = self.num_batches * batch_size
        self.bounds = bounds(count, self.num_batches)

    def size(self, frames: int) -> int:
        """Return the samples (or frames of log-mel) of so many frames."""
        return frames * self.shift + self.overlap

    def _long_enough(self, lengths: np.ndarray) -> np.ndarray:
        """Return which recordings can be used (N,) bool; say how many cannot."""
        least = self.size(min(MIN_FRAMES, self.clip_frames))
        kept = lengths >= least
        short = len(kept) - np.count_nonzero(kept)
        rate = SAMPLE_RATE if self.overlap else SAMPLE_RATE // FRAME_SHIFT
        seconds = f"{least / rate:.3f} s ({min(MIN_FRAMES, self.clip_frames)} frames)"
        if short == len(kept):
            raise ValueError(
                f"all {len(kept)} clips are shorter than {seconds}, the shortest that "
                "can be used: use longer ones, or join them"
            )
        if short:
            logging.warning(
                f"{short} of {len(kept)} clips are left out: shorter than {seconds}"
            )
        return kept

    def _keep_apart(self, batch_size: int, world_size: int, batches: dict) -> None:
        """Lower the crops of recordings that a pass could not keep apart."""
        full, before = self.frames == self.clip_frames, int(self.counts.sum())
        while True:
            count = int(self.counts.sum())
            number = batches_per_pass(count, batch_size, **batches)
            used = count
            if batches["train"] and batches["drop_last"]:
                used = number * batch_size
            # batches of nothing but longest crops, whichever are left out; of each a
            # recording may be half of every rank's share
            first = count - int(self.counts[full].sum()) + (count - used)
            pure = np.count_nonzero(bounds(used, number)[:-1] >= first)
            half = used // number // world_size // 2
            limit = max(pure, 1) * world_size * half
            if self.counts.max() <= limit:
                break
            self.counts = np.minimum(self.counts, limit)
        if count < before:
            logging.warning(
                f"a pass takes {count} of {before} crops: more of one recording "
                "could not be mixed with other recordings"
            )

    def order(self, number: int) -> Pass:
        """Draw the crops of one pass and sort them into batches."""
        number = number if self.train else 0
        generator = np.random.default_rng([self.seed, number, 1])
        if self.log_weights is not None:
            recordings, turns = super().order(number), 0
        else:
            recordings = np.repeat(np.arange(len(self.counts)), self.counts)
            turns = np.arange(len(recordings))
            turns -= np.repeat(np.cumsum(self.counts) - self.counts, self.counts)
        phases = generator.random(len(self.counts))
        places = (turns + phases[recordings]) / self.counts[recordings]
        if self.drop_last:
            chosen = generator.permutation(len(recordings))[: self.bounds[-1]]
            recordings, places = recordings[chosen], places[chosen]
        frames = self.frames[recordings]
        noise = generator.random(len(recordings))
        full = frames == self.clip_frames
        longest = np.flatnonzero(full)
        others = np.flatnonzero(~full)
        others = others[np.argsort((frames * (1 + JITTER * noise))[others])]
        # crops of one recording side by side, the recordings in any order
        label = generator.permutation(len(self.counts))[recordings[longest]]
        longest = longest[np.lexsort((noise[longest], label))]
        order = np.concatenate([others, self._dealt(longest, len(others))])
        batches = generator.permutation(self.num_batches)
        return Pass(number, recordings[order], places[order], batches)

    def _dealt(self, crops: np.ndarray, first: int) -> np.ndarray:
        """Deal crops out to the batches in turn, like cards.

        What lies side by side in `crops` is then in different batches.

        Args:
            crops: To be put at the places `first`, `first + 1`, ... of the pass.
        """
        places = np.arange(first, first + len(crops))
        batch = np.searchsorted(self.bounds, places, side="right") - 1
        turn = places - np.maximum(self.bounds[batch], first)
        if len(crops) and self.bounds[batch[0]] < first:
            # partly filled already: last in each turn, or its end would shift the rest
            batch = np.where(batch == batch[0], self.num_batches, batch)
        result = np.empty_like(crops)
        result[np.lexsort((batch, turn))] = crops
        return result

    def batch(self, order: Pass, index: int) -> list[Crop]:
        """Return this rank's crops of one batch of a pass."""
        number = int(order.batches[index])
        generator = np.random.default_rng([self.seed, order.number, 2, number])
        part = slice(*self.bounds[number : number + 2])
        recordings, places = order.recordings[part], order.places[part]
        frames = int(self.frames[recordings].min()) // PATCH_SIZE * PATCH_SIZE
        size, lengths = self.size(frames), self.lengths[recordings]
        starts = np.rint(places * lengths - size / 2).astype(np.int64)
        starts = starts.clip(0, lengths - size)
        mine = generator.permutation(len(recordings))
        if self.mixture and len(np.unique(recordings)) < len(recordings):
            different, label = np.unique(recordings, return_inverse=True)
            label = generator.permutation(len(different))[label]
            mine = mine[np.argsort(label[mine])][self.rank :: self.world_size]
            mine = mine[apart(label[mine])]
        else:
            mine = mine[self.rank :: self.world_size]
        keys = self.keys[recordings[mine]].tolist()
        return [
            Crop(key.decode(), start, size, listed)
            for key, start, listed in zip(
                keys, starts[mine].tolist(), lengths[mine].tolist(), strict=True
            )
        ]

    def describe(self) -> str:
        """Return what a pass is: recordings, hours, crops, share heard.

        Where that share is small, a warning says how to hear more.
        """
        plan = self.order(0)
        shortest = np.minimum.reduceat(self.frames[plan.recordings], self.bounds[:-1])
        crops = np.repeat(shortest // PATCH_SIZE * PATCH_SIZE, np.diff(self.bounds))
        frames = ((self.lengths - self.overlap) // self.shift).sum()
        heard = crops.sum() / frames
        if heard < MUCH_HEARD and self.log_weights is None:
            logging.warning(
                f"a pass hears {100 * heard:.0f} % of the audio: lower --batch_size "
                f"{self.batch_size}, as a batch is cut to its shortest crop, or cut "
                "long recordings (format_audio --cut 10)"
            )
        hours = frames * FRAME_SHIFT / SAMPLE_RATE / 3600
        return (
            f"{len(self.keys)} recordings, {hours:.2f} h; a pass is {self.bounds[-1]} "
            f"crops of {np.median(crops):.0f} frames (median) in {self.num_batches} "
            f"batches, {100 * heard:.0f} % of the audio"
        )


def bounds(count: int, num_batches: int) -> np.ndarray:
    """Where the batches of so many crops begin, and the end (num_batches + 1,).

    The first ones have one crop more where they cannot be equal.
    """
    size, more = divmod(count, num_batches)
    number = np.arange(num_batches + 1)
    return number * size + np.minimum(number, more)


def apart(labels: np.ndarray) -> np.ndarray:
    """An order in which no neighbours are equal, nor the last and the first.

    It exists where no label makes up more than half of them.
    """
    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    order = np.lexsort((inverse, -counts[inverse]))
    result = np.empty_like(order)
    half = (len(order) + 1) // 2
    result[::2], result[1::2] = order[:half], order[half:]
    return result
