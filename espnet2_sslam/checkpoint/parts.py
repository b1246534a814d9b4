"""A model taken apart: states under our names, and what config.json says of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from espnet2_sslam.checkpoint.errors import CheckpointError
from espnet2_sslam.checkpoint.names import State
from espnet2_sslam.layers import sincos_positions
from espnet2_sslam.units import PATCH_SIZE, PATCHES_PER_STEP

FBANK_NAMES = ("log_mel.mean", "log_mel.std")


@dataclass
class Parts:
    """What one checkpoint holds, whatever its layout was.

    Args:
        encoder: `SSLAMEncoder`'s state without the fbank mean and std.
        config: As config.json, see `folder.model_config`.
        head: The classifier's state beside the encoder's (fc_norm, head, pooling).
        decoder: `ConvDecoder`'s state, from pre-training.
        teacher: Like `encoder`, from pre-training.
        details: Model options of the checkpoint's own configuration, by name.
    """

    encoder: State
    config: dict[str, Any]
    head: State | None = None
    decoder: State | None = None
    teacher: State | None = None
    details: dict[str, Any] = field(default_factory=dict)

    def chosen(self, weights: str) -> "Parts":
        """The same with the student's or the teacher's weights as the encoder's.

        Raises:
            CheckpointError: Another word, or a checkpoint without a teacher.
        """
        if weights not in ("student", "teacher"):
            raise CheckpointError(f"weights are student or teacher, not {weights!r}")
        if weights == "student":
            return self
        if self.teacher is None:
            raise CheckpointError(
                "the checkpoint holds no teacher (EMA): take weights student"
            )
        origin = {**self.config.get("origin", {}), "weights": "teacher"}
        config = {**self.config, "origin": origin}
        return replace(self, encoder=self.teacher, config=config)


def encoder_sizes(encoder: State) -> dict[str, Any]:
    """Sizes that the shapes of an encoder's state tell (all but the heads).

    Raises:
        CheckpointError: The entries that would tell are missing.
    """
    needed = ("patch_embed.proj.weight", "positions", "blocks.0.mlp.fc1.weight")
    missing = [name for name in needed if name not in encoder]
    if missing:
        raise CheckpointError(f"not an SSLAM encoder: it lacks {', '.join(missing)}")
    width = len(encoder["patch_embed.proj.weight"])
    blocks = {name.split(".")[1] for name in encoder if name.startswith("blocks.")}
    return {
        "embed_dim": width,
        "depth": len(blocks),
        "mlp_ratio": len(encoder["blocks.0.mlp.fc1.weight"]) / width,
        "max_frames": encoder["positions"].shape[1] // PATCHES_PER_STEP * PATCH_SIZE,
    }


def fit_positions(stored: torch.Tensor, max_frames: int) -> torch.Tensor:
    """A stored position table for passes of another length.

    Args:
        stored: (1, steps * 8, D); its rows are kept, rounded as they may be.
        max_frames: Length wanted; rows beyond the stored ones are computed.
    """
    steps = max_frames // PATCH_SIZE
    fitted = sincos_positions(stored.shape[-1], steps)
    both = min(fitted.shape[1], stored.shape[1])
    fitted[:, :both] = stored[:, :both]
    return fitted


def float32(state: Mapping[str, torch.Tensor]) -> State:
    """The tensors in float32, from whatever type they were stored in."""
    return {
        name: value.float() if value.is_floating_point() else value
        for name, value in state.items()
    }


def differences(own: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """Every difference in names and shapes, one line each; empty when they agree.

    Args:
        own: State dict that a model needs.
        given: State dict that was found.
    """
    lines = [f"missing {name}" for name in own if name not in given]
    lines += [f"unknown {name}" for name in given if name not in own]
    for name in own:
        if name in given and own[name].shape != given[name].shape:
            lines.append(
                f"{name} has shape {tuple(given[name].shape)}, "
                f"not {tuple(own[name].shape)}"
            )
    return lines


def load_exactly(model: torch.nn.Module, state: State, source: str) -> None:
    """Load a state dict that must fit in every name and shape.

    Raises:
        CheckpointError: All differences, in one line.
    """
    lines = differences(model.state_dict(), state)
    if lines:
        raise CheckpointError(f"{source} does not fit the model: {'; '.join(lines)}")
    model.load_state_dict(state)
