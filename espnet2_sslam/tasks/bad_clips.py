"""Clips that a training cannot use: skipped, counted, listed; too many are an error.

A batch is trained on without its bad clips: its loss is the mean over the others, a
clip whose partner in a mixture is bad is mixed with the next one. Where a rank is left
with too few (2 where clips are mixed, or for batch norm), it computes on silence, which
counts nothing; where all ranks are, the update is skipped. Places of crops are keyed by
the clip, and what is drawn in a batch by its number, so other batches do not notice.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from espnet2_sslam.tasks.crops import apart
from espnet2_sslam.tasks.data import LOST, BadClip
from espnet2_sslam.tasks.saving import every_rank, rank


class WithoutBadClips:
    """Join the clips of a training batch that can be used.

    The batch then has `bad_clips`, [(id, file, reason)], and `usable`, False where it
    is silence.

    Args:
        collate: [(id, arrays)] -> ids, batch.
        least: Clips that a rank needs.
        mixture: Whether clips are mixed with the one before, so that two crops of a
            recording must not be neighbours.
    """

    def __init__(self, collate: Callable, least: int, mixture: bool):
        self.collate, self.least, self.mixture = collate, least, mixture

    def __call__(self, clips: Sequence[tuple[str, Any]]) -> tuple[list[str], dict]:
        """Return ids and batch."""
        bad = [(uid, clip) for uid, clip in clips if isinstance(clip, BadClip)]
        if not bad and len(clips) >= self.least:
            return self.collate(clips)
        good = [pair for pair in clips if not isinstance(pair[1], BadClip)]
        if self.mixture and _neighbours([uid for uid, _ in good]):
            good = [good[place] for place in apart(np.array([uid for uid, _ in good]))]
        usable = len(good) >= self.least and not (
            self.mixture and _neighbours([uid for uid, _ in good])
        )
        if not usable:
            good = [("silence", bad[0][1].silence)] * max(self.least, 1)
        ids, batch = self.collate(good)
        listed = [(uid, clip.file, clip.reason) for uid, clip in bad]
        return ids, {**batch, "bad_clips": listed, "usable": usable}


def _neighbours(ids: Sequence[str]) -> bool:
    """Whether a clip follows itself, the first one the last."""
    return any(uid == ids[place - 1] for place, uid in enumerate(ids))


class BadClips:
    """What a training has skipped: {id: {file, reason, skipped, bad}}.

    `skipped` counts how often; `bad` is False once the clip was read again.

    Args:
        share: Of all clips that may be bad, `--max_bad`.
    """

    def __init__(self, share: float):
        self.share, self.total = share, 0
        self.known: dict[str, dict[str, Any]] = {}
        self._events: list[tuple[str, str, str]] = []  # of this rank, not yet shared

    @property
    def news(self) -> float:
        """Whether this rank has something to tell the others."""
        return float(bool(self._events))

    def note(self, ids: Sequence[str], bad: Sequence[tuple[str, str, str]]) -> None:
        """Take note of a batch: the clips that it has, and those that it lacks."""
        self._events += bad
        for uid in set(ids) & self.known.keys() if self.known else ():
            if self.known[uid]["bad"]:
                self._events.append((uid, self.known[uid]["file"], ""))

    def share_news(self) -> None:
        """Exchange what the ranks have noted, log it; every rank must call it.

        Raises:
            ValueError: More clips are bad than may be.
        """
        events = [event for part in every_rank(self._events) for event in part]
        self._events = []
        for uid, file, reason in events:
            clip = self.known.setdefault(
                uid, {"file": file, "reason": reason, "skipped": 0, "bad": False}
            )
            before, clip["bad"] = clip["bad"], bool(reason)
            if reason:
                clip |= {"file": file, "reason": reason}
                clip["skipped"] += 1
            if rank() == 0 and not reason:
                logging.warning(f"clip {uid}, {file}: can be read again")
            elif rank() == 0 and not before:
                logging.warning(f"clip {uid}, {file}: skipped: {reason}")
        bad = sum(
            clip["bad"] and not clip["reason"].endswith(LOST)  # which was allowed
            for clip in self.known.values()
        )
        if bad > self.share * self.total:
            uid, file, reason = next(event for event in events[::-1] if event[2])
            raise ValueError(
                f"{bad} of {self.total} clips cannot be used, more than --max_bad "
                f"{self.share:g} allows; the last one is {uid}, {file}: {reason}"
            )


def without_clips(
    loss: torch.Tensor, stats: Mapping[str, Any], weight: torch.Tensor, alone: bool
) -> tuple[torch.Tensor, dict[str, Any], torch.Tensor]:
    """What a model says of silence, as if of no clips.

    Args:
        loss, stats, weight: Of the model.
        alone: Whether no other ranks train; their means are not to be NaN.
    """
    value = float("nan") if alone else 0.0
    nothing = {
        name: x if x is None else torch.full_like(x, value) for name, x in stats.items()
    }
    return loss * 0, nothing, weight * 0


@contextlib.contextmanager
def batch_norm_resting(model: torch.nn.Module, rest: bool) -> Iterator[None]:
    """Within the block batch norm learns nothing, if `rest` says so."""
    norms = [
        module
        for module in (model.modules() if rest else ())
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
    ]
    for module in norms:
        module.eval()
    yield
    for module in norms:
        module.train()
