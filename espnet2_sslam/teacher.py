"""The teacher: an exponential moving average (EMA) of the student, and its targets.

Shapes: B clips, C streams of clips, N patches, D channels.
"""

import copy
from functools import partial
from typing import NamedTuple

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from espnet2_sslam import losses, mixing
from espnet2_sslam.encoder import SSLAMEncoder


class Targets(NamedTuple):
    """What the teacher says: patches (C*B, N, D), utterances (C*B, D).

    With source retention also the mixtures' patches (B, N, D) and utterances (B, D).
    """

    patch: torch.Tensor
    utterance: torch.Tensor
    retention: torch.Tensor | None = None
    retention_utterance: torch.Tensor | None = None


def ema_decay(num_updates: int, start: float, end: float, anneal_updates: int) -> float:
    """Decay after `num_updates` updates: linear from start to end, then constant.

    Source: get_annealed_rate as used in cwx-worst-one/EAT@06c1c34.
    """
    if num_updates >= anneal_updates:
        return end
    return end - (end - start) * (1 - num_updates / anneal_updates)


class _CastEncoder:
    """An encoder whose matrices are in half precision and follow another's.

    What autocast leaves in float32 is shared with the other one. No module, so that it
    is in no checkpoint.
    """

    def __init__(self):
        self.encoder: SSLAMEncoder | None = None
        self._pairs: dict[nn.Parameter, nn.Parameter] = {}
        self._versions: list[int] = []

    @torch.no_grad()
    def prepare(self, source: nn.Module, dtype: torch.dtype | None) -> None:
        """Be up to date with `source` in `dtype`; None: be nothing."""
        cast = next(iter(self._pairs.values()), None)
        if dtype is None:
            self.__init__()
        elif cast is None or (cast.dtype, cast.device) != (
            dtype,
            next(source.parameters()).device,
        ):
            matrices = [
                parameter
                for module in source.modules()
                if isinstance(module, (nn.Linear, nn.Conv2d))
                for parameter in module.parameters(recurse=False)
            ]
            self._pairs = {
                p: nn.Parameter(p.to(dtype), requires_grad=False) for p in matrices
            }
            shared = {id(t): t for t in (*source.parameters(), *source.buffers())}
            shared |= {id(p): cast for p, cast in self._pairs.items()}
            self.encoder = copy.deepcopy(source, shared)  # type: ignore[assignment]
            self._versions = self._current()
        elif self._versions != self._current():  # loaded since
            self.follow(source)

    @torch.no_grad()
    def follow(self, source: nn.Module) -> None:
        """Take over the values of `source`, if there is a copy of it."""
        if self._pairs:
            copies, sources = list(self._pairs.values()), list(self._pairs)
            torch._foreach_copy_(copies, sources)  # pyright: ignore
            self._versions = self._current()

    def _current(self) -> list[int]:
        return [parameter._version for parameter in self._pairs]


def movement(num_updates: int, start: float, end: float, anneal_updates: int) -> float:
    """How far the teacher moves in a training: the sum of 1 - decay over its updates.

    A number without a unit: a training of n times fewer updates leaves the teacher as
    near to its student if 1 - decay is n times larger and anneal_updates n times fewer.
    """
    rising = min(num_updates, max(anneal_updates - 1, 0))
    decay = partial(ema_decay, start=start, end=end, anneal_updates=anneal_updates)
    # the decays of a straight line: their mean times their number
    total = rising * (1 - (decay(1) + decay(rising)) / 2) if rising else 0.0
    return total + (num_updates - rising) * (1 - end)


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
        student: SSLAMEncoder,
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
        self.encoder: SSLAMEncoder = copy.deepcopy(student)
        self.encoder.requires_grad_(False).eval()
        self._cast = _CastEncoder()

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
        move = get_ema_multi_avg_fn(decay)  # all parameters in few kernels
        move(list(self.encoder.parameters()), list(student.parameters()), None)
        self._cast.follow(self.encoder)
        return decay

    def prepare(self, device_type: str) -> None:
        """Cast the matrices once if the next step is under autocast.

        Autocast itself would cast them in each pass: it remembers a weight's cast only
        where the weight has a gradient.
        """
        enabled = torch.is_autocast_enabled(device_type)
        dtype = torch.get_autocast_dtype(device_type) if enabled else None
        self._cast.prepare(self.encoder, dtype)

    @property
    def _network(self) -> SSLAMEncoder:
        """The encoder, with cast matrices where autocast wants them."""
        cast = self._cast.encoder
        enabled = torch.is_autocast_enabled(self.encoder.cls_token.device.type)
        return cast if cast is not None and enabled else self.encoder

    @torch.no_grad()
    def embed(self, fbank: torch.Tensor) -> torch.Tensor:
        """Normalised log-mel (B, T, 128) to patches with positions (B, N, D)."""
        return self._network.embed(fbank)

    @torch.no_grad()
    def targets(
        self, patches: torch.Tensor, patch_layers: int, utterance_layers: int
    ) -> Targets:
        """Targets of embedded clips.

        Args:
            patches: (B, N, D) from `embed`.
            patch_layers: Layers averaged into the patch target.
            utterance_layers: Layers averaged into the utterance target.
        """
        ffn = self._network.encode(patches, collect=True).ffn
        ffn = [output[:, 1:] for output in ffn]
        patch = whole = losses.layer_target(ffn, patch_layers)
        if utterance_layers != patch_layers:
            whole = losses.layer_target(ffn, utterance_layers)
        return Targets(patch, losses.utterance_target(whole))

    @torch.no_grad()
    def retention_targets(
        self,
        patches: torch.Tensor,
        clean: Targets,
        mixed_index: torch.Tensor,
        patch_layers: int,
        utterance_layers: int,
    ) -> Targets:
        """The mean of both sources' targets for every mixture.

        The neighbour is seen without the patches that the mixture does not show of it
        (they are taken out after the positions are added); there, the clip's own
        target stands for both.

        Args:
            patches: Unmixed clips (B, N, D) from `embed`.
            clean: Their targets.
            mixed_index: The mixtures' mixed patches (1 or B, K), as `mixed_patches`
                gives them.
            patch_layers, utterance_layers: As for `targets`.
        """
        # places belong to the mixture: first the neighbour, then what is dropped
        kept = mixing.drop_unmixed(mixing.neighbour(patches), mixed_index)
        other = self.targets(kept, patch_layers, utterance_layers)
        spliced = mixing.splice(clean.patch, other.patch, mixed_index)
        return Targets(
            losses.retention_target(clean.patch, spliced),
            losses.retention_target(clean.utterance, other.utterance),
        )
