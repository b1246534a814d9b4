"""Waveforms to a padded batch; the model computes the log-mel itself."""

from typing import Any

import numpy as np
import torch
from transformers import BatchFeature, SequenceFeatureExtractor

from espnet2_sslam.units import SAMPLE_RATE


class Waveforms(BatchFeature):
    """A batch of waveforms, which stay float32 whatever the model's type is.

    (In half precision a waveform would lose the bits that quiet audio consists of.)
    """

    def to(self, *args: Any, **kwargs: Any) -> "Waveforms":
        """Move to a device; a dtype is passed over."""
        args = tuple(arg for arg in args if not isinstance(arg, torch.dtype))
        kwargs.pop("dtype", None)
        return super().to(*args, **kwargs) if args or kwargs else self


class SSLAMFeatureExtractor(SequenceFeatureExtractor):
    """Pad waveforms of 16 kHz to `input_values` (B, N) and `attention_mask` (B, N).

    Padding has no effect on the model's output.

    Args:
        feature_size, sampling_rate, padding_value: As transformers calls them.
        return_attention_mask: Without it every clip counts as N samples long.
    """

    model_input_names = ["input_values", "attention_mask"]

    def __init__(
        self,
        feature_size: int = 1,
        sampling_rate: int = SAMPLE_RATE,
        padding_value: float = 0.0,
        return_attention_mask: bool = True,
        **kwargs: Any,
    ):
        super().__init__(
            feature_size,
            sampling_rate,
            padding_value,
            return_attention_mask=return_attention_mask,
            **kwargs,
        )

    def __call__(
        self,
        raw_speech: np.ndarray | torch.Tensor | list,
        sampling_rate: int | None = None,
        padding: bool | str = True,
        max_length: int | None = None,
        truncation: bool = False,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
    ) -> Waveforms:
        """Make a batch.

        Args:
            raw_speech: One mono clip (N,), or several: a list of them or (B, N). Floats
                in [-1, 1], or 16- or 32-bit integers, which are scaled to it.
            sampling_rate: Of `raw_speech`; give it, so that a wrong one is found.
            padding, max_length, truncation, pad_to_multiple_of: As everywhere in
                transformers (lengths in samples).
            return_attention_mask: See the class.
            return_tensors: "pt" or "np".

        Raises:
            ValueError: Another rate, not mono, empty, or samples that are not finite.
        """
        if sampling_rate not in (None, self.sampling_rate):
            raise ValueError(
                f"need audio of {self.sampling_rate} Hz, got {sampling_rate} Hz: "
                "resample it first (the pipeline and `SSLAM` do it themselves)"
            )
        clips = [_mono(clip, i) for i, clip in enumerate(_listed(raw_speech))]
        padded = self.pad(
            BatchFeature({"input_values": clips}),
            padding=padding,
            max_length=max_length,
            truncation=truncation,
            pad_to_multiple_of=pad_to_multiple_of,
            return_attention_mask=return_attention_mask,
            return_tensors="np" if padding else None,
        )
        return Waveforms(dict(padded), tensor_type=return_tensors)


def _listed(audio) -> list:
    """The clips of a batch; a single one is a batch of its own."""
    if isinstance(audio, (np.ndarray, torch.Tensor)):
        return [audio] if audio.ndim < 2 else list(audio)
    audio = list(audio)
    single = bool(audio) and np.ndim(audio[0]) == 0
    return [np.asarray(audio, np.float32)] if single else audio


def _mono(audio, number: int) -> np.ndarray:
    """One clip as float32 (N,)."""
    if isinstance(audio, torch.Tensor):
        audio = audio.detach().cpu()
        audio = (audio.float() if audio.is_floating_point() else audio).numpy()
    audio = np.asarray(audio)
    if audio.ndim != 1 or len(audio) == 0:
        raise ValueError(
            f"clip {number}: need mono audio of shape (samples,), got {audio.shape}"
        )
    if audio.dtype in (np.int16, np.int32):
        return audio.astype(np.float32) / -float(np.iinfo(audio.dtype).min)
    audio = audio.astype(np.float32)
    if not np.isfinite(audio).all():
        raise ValueError(f"clip {number} holds NaN or infinite samples: repair it")
    return audio
