"""A watch over CTC, which hosts let go on in silence where it cannot learn.

ESPnet and s3prl count the loss of an utterance with too few frames as zero: at SSLAM's
160 ms per step that may be all of them.
"""

import logging

import torch

EAGER = 50  # batches that are judged at once, then every 50th: a look waits for the GPU
SHARE = 0.5  # of the utterances without enough frames: above, nothing is learnt


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
    """Counts all utterances of a training, and refuses one that cannot learn."""

    def __init__(self):
        self.batches = self.seen = 0
        self.short: torch.Tensor | int = 0  # on the device of the labels
        self.worst: torch.Tensor | None = None  # missing, labels, frames of one
        self.warned = False

    def check(
        self, labels: torch.Tensor, lengths: torch.Tensor, frames: torch.Tensor
    ) -> None:
        """Count one batch, see `missing_frames`.

        Raises:
            ValueError: More than half of the utterances so far have too few frames.
        """
        frames = frames.to(lengths.device)
        missing = missing_frames(labels.to(lengths.device), lengths, frames)
        worst = torch.stack([missing, lengths, frames])[:, missing.argmax()]
        if self.worst is not None:
            worst = torch.where(worst[0] > self.worst[0], worst, self.worst)
        self.worst = worst
        self.short = self.short + (missing > 0).sum()
        self.seen += len(missing)
        self.batches += 1
        if self.batches > EAGER and self.batches % EAGER:
            return
        short = int(self.short)
        if not short:
            return
        example = f"{int(worst[1])} labels, {int(worst[2])} frames"
        count = f"{short} of the first {self.seen} utterances"
        if short > SHARE * self.seen:
            raise ValueError(
                f"CTC cannot learn: {count} have more labels than encoder frames (one: "
                f"{example}): raise time_shifts or upsample of sslam (a step is 160 "
                "ms), take longer units (more BPE tokens) or train without CTC"
            )
        if not self.warned:
            self.warned = True
            logging.warning(
                "CTC leaves out utterances with more labels than encoder frames: %s "
                "so far (one: %s)",
                count,
                example,
            )
