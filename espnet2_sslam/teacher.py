"""The teacher: an exponential moving average (EMA) of the student, without gradient."""

import copy

import torch
from torch import nn


def ema_decay(num_updates: int, start: float, end: float, anneal_updates: int) -> float:
    """Decay after `num_updates` updates: linear from start to end, then constant.

    Source: get_annealed_rate as used in cwx-worst-one/EAT@06c1c34.
    """
    if num_updates >= anneal_updates:
        return end
    return end - (end - start) * (1 - num_updates / anneal_updates)


class Teacher(nn.Module):
    """EMA copy of the student's encoder, always in evaluation mode.

    Args:
        student: Encoder to copy.
        decay: EMA decay after the first update.
        end_decay: EMA decay from `anneal_updates` on.
        anneal_updates: Updates over which the decay rises.

    Raises:
        ValueError: A decay outside [0, 1].
    """

    def __init__(
        self,
        student: nn.Module,
        decay: float = 0.9998,
        end_decay: float = 0.99999,
        anneal_updates: int = 100_000,
    ):
        super().__init__()
        if not (0 <= decay <= 1 and 0 <= end_decay <= 1 and anneal_updates >= 0):
            raise ValueError(
                f"need EMA decays in [0, 1] and anneal_updates >= 0, got {decay}, "
                f"{end_decay}, {anneal_updates}"
            )
        self.schedule = (decay, end_decay, anneal_updates)
        self.encoder = copy.deepcopy(student).requires_grad_(False).eval()

    def train(self, mode: bool = True):
        """Stay in evaluation mode whatever is asked."""
        return super().train(False)

    @torch.no_grad()
    def update(self, student: nn.Module, num_updates: int) -> float:
        """Move towards the student; returns the decay used.

        Args:
            student: Encoder with the same parameters.
            num_updates: Updates done, the one just made included.
        """
        decay = ema_decay(num_updates, *self.schedule)
        torch._foreach_lerp_(
            list(self.encoder.parameters()), list(student.parameters()), 1 - decay
        )
        return decay
