"""A watch over CTC, which hosts let go on in silence where it cannot learn.

ESPnet and s3prl count the loss of an utterance with too few frames as zero: at SSLAM's
160 ms per step that may be all of them.
"""

import logging

import torch

BATCHES = 50  # of a training are looked at: each look waits for the GPU
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
    """Looks at the first batches of a training, and refuses one that cannot learn.

    Args:
        enough: Utterances to see before the training is judged.
    """

    def __init__(self, enough: int = 1):
        self.enough = enough
        self.batches = self.seen = self.impossible = 0

    def check(
        self, labels: torch.Tensor, lengths: torch.Tensor, frames: torch.Tensor
    ) -> None:
        """Look at one batch, see `missing_frames`.

        Raises:
            ValueError: More than half of the utterances so far have too few frames.
        """
        if self.batches >= BATCHES:
            return
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
        if self.seen >= self.enough and self.impossible > SHARE * self.seen:
            raise ValueError(
                f"CTC cannot learn: {count} have more labels than encoder frames (one: "
                f"{example}): raise upsample of sslam (a step is 160 ms), take longer "
                "units (more BPE tokens) or train without CTC"
            )
        if self.impossible == short:  # the first of them
            logging.warning(
                "CTC leaves out utterances with more labels than encoder frames: %s "
                "so far (one: %s)",
                count,
                example,
            )
