"""One clip at a time: numbers as floats, crop, label vector; and batching.

Runs in the DataLoader's workers; imports numpy and torch only, so that they start fast.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch

from espnet2_sslam.units import FRAME_LENGTH, FRAME_SHIFT, NUM_MEL_BINS


class ClipError(ValueError):
    """A clip that cannot be used; one line that names it.

    A DataLoader worker hands an error on with its whole traceback as the message: only
    the line that was meant for the user is kept.
    """

    def __init__(self, message: str):
        last = message.strip().splitlines()[-1]
        super().__init__(last.rsplit("ClipError: ", 1)[-1])


class ClipPreprocessor:
    """Make a clip ready for the model, the same way in every run and worker.

    The place of a crop is drawn from a generator keyed by (seed, epoch, clip id): it
    differs between epochs and does not depend on workers, ranks or resuming.

    Args:
        train: crop at a random place (True), or keep the start of the clip.
        max_samples: longer clips are cut to so many samples (16 kHz); None keeps all.
            For log-mel input the limit is max_samples // FRAME_SHIFT frames.
        seed: first part of the key.
        class_list: labels in the order of the label vector; None for no labels.
        single_label: demand exactly one label per clip (multi-class).
        input_size: 1 for waveforms, 128 for un-normalised log-mel frames.

    Raises:
        ValueError: for a class list with duplicates or another input_size.
    """

    def __init__(
        self,
        train: bool,
        *,
        max_samples: int | None = None,
        seed: int = 0,
        class_list: Sequence[str] | None = None,
        single_label: bool = False,
        input_size: int = 1,
    ):
        if input_size not in (1, NUM_MEL_BINS):
            raise ValueError(
                f"input_size must be 1 (waveform) or {NUM_MEL_BINS} (log-mel), got "
                f"{input_size}"
            )
        if max_samples is not None and max_samples < FRAME_LENGTH:
            raise ValueError(
                f"max_samples must be {FRAME_LENGTH} (25 ms) or more, got {max_samples}"
            )
        self.train = train
        self.max_samples = max_samples
        self.seed = seed
        self.single_label = single_label
        self.input_size = input_size
        self.epoch = 0
        self.classes = None
        if class_list is not None:
            self.classes = {label: index for index, label in enumerate(class_list)}
            if len(self.classes) != len(class_list):
                raise ValueError("the class list holds a label twice: make it unique")

    def set_epoch(self, epoch: int) -> None:
        """Key the coming draws to this epoch."""
        self.epoch = epoch

    def __call__(
        self, uid: str, data: dict[str, str | np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Return the arrays of one clip: speech (N,) or (T, 128), label (C,).

        Raises:
            ClipError: naming the clip, for stereo, empty, too short or non-finite
                audio, a wrong number type, or a label that is not in the class list.
        """
        result = {}
        if "speech" in data:
            result["speech"] = self._prepare(uid, data["speech"])
        if "label" in data:
            result["label"] = self._label_vector(uid, data["label"])
        return result

    def _prepare(self, uid: str, speech: np.ndarray) -> np.ndarray:
        """Check and cut one clip."""
        speech = self._to_float(uid, speech)
        unit, smallest = ("samples", FRAME_LENGTH)
        limit = self.max_samples
        if self.input_size != 1:
            unit, smallest = "frames", 1
            limit = None if limit is None else max(limit // FRAME_SHIFT, 1)
        if len(speech) < smallest:
            raise ClipError(
                f"clip {uid} has {len(speech)} {unit}, {smallest} (25 ms) are needed: "
                "take it out of the lists or prepare the data again (stages 1 and 2)"
            )
        if limit is None or len(speech) <= limit:
            return speech
        start = 0
        if self.train:
            start = int(self._generator(uid).integers(len(speech) - limit + 1))
        return speech[start : start + limit]

    def _to_float(self, uid: str, speech: np.ndarray) -> np.ndarray:
        """Return float32 numbers (audio in [-1, 1]) of the right rank."""
        wanted = (1, None) if self.input_size == 1 else (2, NUM_MEL_BINS)
        if speech.ndim != wanted[0] or wanted[1] not in (None, speech.shape[-1]):
            form = "mono audio (N,)" if self.input_size == 1 else "log-mel (T, 128)"
            raise ClipError(
                f"clip {uid} has shape {tuple(speech.shape)}, {form} is needed: format "
                "the data (stage 2) or set --input_size"
            )
        if speech.dtype in (np.int16, np.int32) and self.input_size == 1:
            speech = speech.astype(np.float32) / -float(np.iinfo(speech.dtype).min)
        if speech.dtype.kind != "f":
            raise ClipError(
                f"clip {uid} holds {speech.dtype} numbers, float or int16 are needed: "
                "format the data (stage 2)"
            )
        if not np.isfinite(speech).all():
            raise ClipError(
                f"clip {uid} holds NaN or infinite values: take it out of the lists or "
                "prepare the data again (stages 1 and 2)"
            )
        return speech.astype(np.float32, copy=False)

    def _label_vector(self, uid: str, text: str) -> np.ndarray:
        """Return the multi-hot vector (C,) of a line of labels."""
        if self.classes is None:
            raise ClipError(f"clip {uid} has labels but no class list: --class_list")
        labels = text.split()
        if self.single_label and len(labels) != 1:
            raise ClipError(
                f"clip {uid} has {len(labels)} labels, exactly one is needed: correct "
                "its line in text, or train with task multi_label"
            )
        vector = np.zeros(len(self.classes), dtype=np.float32)
        for label in labels:
            if label not in self.classes:
                raise ClipError(
                    f"clip {uid} has the label {label}, which the class list lacks: "
                    "correct its line in text or the class list"
                )
            vector[self.classes[label]] = 1.0
        return vector

    def _generator(self, uid: str) -> np.random.Generator:
        """Return the random numbers of this clip in this epoch."""
        digest = hashlib.blake2b(uid.encode(), digest_size=8).digest()
        key = [self.seed, self.epoch, int.from_bytes(digest, "big")]
        return np.random.default_rng(key)

    def __repr__(self) -> str:
        classes = None if self.classes is None else len(self.classes)
        return (
            f"{type(self).__name__}(train={self.train}, "
            f"max_samples={self.max_samples}, classes={classes})"
        )


def collate_clips(
    clips: Sequence[tuple[str, dict[str, np.ndarray]]],
) -> tuple[list[str], dict[str, torch.Tensor]]:
    """Join clips to a batch: speech is padded with zeros, labels are stacked.

    Returns:
        The ids, and {speech (B, N) or (B, T, 128), speech_lengths (B,), label (B, C)}.
    """
    batch = {}
    if "speech" in clips[0][1]:
        speech = [torch.from_numpy(data["speech"]) for _, data in clips]
        batch["speech"] = torch.nn.utils.rnn.pad_sequence(speech, batch_first=True)
        batch["speech_lengths"] = torch.tensor([len(clip) for clip in speech])
    if "label" in clips[0][1]:
        labels = np.stack([data["label"] for _, data in clips])
        batch["label"] = torch.from_numpy(labels)
    return [uid for uid, _ in clips], batch
