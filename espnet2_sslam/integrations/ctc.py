"""Does CTC have enough frames for the labels? ESPnet drops what has not, silently."""

import logging
from typing import Tuple

import torch

BATCHES = 50  # of a training are looked at: each look waits for the GPU
SHARE = 0.5  # of the utterances without enough frames, above which nothing is learnt


def watch_ctc(model: torch.nn.Module) -> None:
    """Let every CTC of a model check the first batches that it gets."""
    for module in model.modules():
        # ESPnet's CTC, by what it has: its place differs between versions
        if hasattr(module, "ctc_lo") and hasattr(module, "ctc_loss"):
            module.register_forward_pre_hook(FrameCheck())


def missing_frames(
    labels: torch.Tensor, lengths: torch.Tensor, frames: torch.Tensor
) -> torch.Tensor:
    """Frames that CTC needs more than there are (B,); positive: it cannot align.

    CTC needs one frame per label, and one between two equal ones.

    Args:
        labels: (B, L), with padding.
        lengths: Labels of each utterance (B,).
        frames: Frames of each utterance (B,).
    """
    inside = torch.arange(1, labels.shape[1], device=labels.device) < lengths[:, None]
    repeated = (labels[:, 1:] == labels[:, :-1]) & inside
    return lengths + repeated.sum(1) - frames


class FrameCheck:
    """Hook before CTC's forward: refuses a training that cannot learn.

    Raises:
        ValueError: More than half of the utterances so far have too few frames.
    """

    def __init__(self):
        self.batches = self.seen = self.impossible = 0

    def __call__(self, ctc: torch.nn.Module, inputs: Tuple[torch.Tensor, ...]) -> None:
        """Check one batch: (encoder output, its lengths, labels, their lengths)."""
        if self.batches >= BATCHES or len(inputs) < 4:
            return
        _, frames, labels, lengths = inputs[:4]
        missing = missing_frames(labels, lengths, frames.to(lengths.device))
        short = int((missing > 0).sum())
        self.batches += 1
        self.seen += len(missing)
        self.impossible += short
        if not short:
            return
        worst = int(missing.argmax())
        example = f"{int(lengths[worst])} labels, {int(frames[worst])} frames"
        count = f"{self.impossible} of the first {self.seen} utterances"
        if self.impossible > SHARE * self.seen:
            raise ValueError(
                f"CTC cannot learn: {count} have more labels than encoder frames (one: "
                f"{example}): raise upsample of sslam (a step is 160 ms), take longer "
                "units (more BPE tokens) or set ctc_weight: 0"
            )
        if self.impossible == short:  # the first of them
            logging.warning(
                "CTC leaves out utterances with more labels than encoder frames: %s "
                "so far (one: %s)",
                count,
                example,
            )
