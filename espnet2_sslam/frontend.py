"""SSLAMFrontend: SSLAM's features under any encoder of ESPnet (`frontend: sslam`).

Shapes: B clips, S time steps of 160 ms, D channels.
"""

from typing import Optional, Tuple, Union

import torch
from espnet2.asr.frontend.abs_frontend import AbsFrontend
from torch import nn

from espnet2_sslam.encoder import SSLAMEncoder
from espnet2_sslam.pretrained import Pretrained
from espnet2_sslam.units import SAMPLE_RATE


class SSLAMFrontend(AbsFrontend):
    """Waveform to features: a learnt weighted sum over the layers of SSLAM.

    A step is 160 ms long and `upsample` repeats it: that makes room for CTC's labels,
    but the copies of a step are the same vector and say nothing finer than 160 ms.
    The encoder above tells them apart by their positions; give it `input_layer: linear`
    so that it does not subsample once more. A resolution that is really finer would
    need passes over the shifted waveform, at so many times the cost.

    Args:
        fs: Sampling rate that ESPnet's recipes give, in Hz or as "16k".
        pretrained: Where the weights come from, anything that `checkpoint.load_model`
            takes; None: random ones, of the sizes below.
        freeze: Keep SSLAM's weights and evaluation mode; only the weights of the layers
            are learnt. False: everything is trained.
        layer: The one layer to use, 0 (patch embedding) to `depth`, -1 the last;
            None: all, with learnt softmax weights, equal at first.
        freq: "concat": the 8 frequency bands of a step side by side (8 * D channels);
            "mean": their mean (D channels).
        upsample: Repeat every step so many times.
        embed_dim, depth, num_heads, mlp_ratio, max_frames, drop_path, target_frames:
            As for `SSLAMEncoder`; sizes left out are those of `pretrained`, else
            ViT-Base's.
        fbank_mean, fbank_std, override_fbank_stats: See `features.LogMel`.

    Raises:
        CheckpointError: The source cannot be read, or has other sizes than those given.
        ValueError: Another sampling rate than 16 kHz; an option outside its range.

    Source: the weighted sum is SUPERB's (s3prl, nn/upstream.py, Featurizer).
    """

    def __init__(
        self,
        fs: Union[int, str] = SAMPLE_RATE,
        *,
        pretrained: Optional[str] = None,
        freeze: bool = True,
        layer: Optional[int] = None,
        freq: str = "concat",
        upsample: int = 1,
        embed_dim: Optional[int] = None,
        depth: Optional[int] = None,
        num_heads: Optional[int] = None,
        mlp_ratio: Optional[float] = None,
        max_frames: Optional[int] = None,
        drop_path: float = 0.0,
        target_frames: Optional[int] = None,
        fbank_mean: Optional[float] = None,
        fbank_std: Optional[float] = None,
        override_fbank_stats: bool = False,
    ):
        super().__init__()
        if _hertz(fs) != SAMPLE_RATE:
            raise ValueError(
                f"frontend sslam needs audio at {SAMPLE_RATE} Hz, fs is {fs}: format "
                "the data to 16 kHz (asr.sh --fs 16k)"
            )
        if freq not in ("concat", "mean"):
            raise ValueError(f"freq must be concat or mean, got {freq!r}")
        source = Pretrained(
            pretrained,
            {
                "freeze": freeze,
                "freq": freq,
                "upsample": upsample,
                "embed_dim": embed_dim,
                "depth": depth,
                "num_heads": num_heads,
                "mlp_ratio": mlp_ratio,
                "max_frames": max_frames,
                "drop_path": drop_path,
                "target_frames": target_frames,
                "fbank_mean": fbank_mean,
                "fbank_std": fbank_std,
                "override_fbank_stats": override_fbank_stats,
            },
        )
        self.encoder = SSLAMEncoder(1, **source.options)
        self.pretrained = source
        source.fill(self.encoder)
        if layer is not None and not -1 <= layer <= self.encoder.depth:
            raise ValueError(
                f"layer must be in -1..{self.encoder.depth}, or left out for a "
                f"weighted sum of all, got {layer}"
            )
        self.layer = self.encoder.depth if layer == -1 else layer
        if self.layer is None:
            self.layer_weights = nn.Parameter(torch.zeros(self.encoder.depth + 1))
        else:  # what gets no gradient must not ask for one: DDP would wait for it
            self.encoder.blocks[self.layer :].requires_grad_(False)

    def output_size(self) -> int:
        """Channels of the features."""
        return self.encoder.output_size()

    def forward(
        self, input: torch.Tensor, input_lengths: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """Features of a batch.

        Args:
            input: Waveforms (B, samples) at 16 kHz in [-1, 1].
            input_lengths: Samples of each clip (B,).

        Returns:
            (B, L, output_size), zero beyond a clip's end, and lengths (B,).
        """
        last = self.encoder.depth if self.layer is None else self.layer
        states, steps = self.encoder.hidden_states(
            input, input_lengths, max(last, 1), collect=last == 0 or self.layer is None
        )
        tokens = states[0]
        if self.layer is None:
            weights = self.layer_weights.softmax(0)
            tokens = sum(weight * state for weight, state in zip(weights, states))
        return self.encoder.shaped(tokens, steps)

    def reload_pretrained_parameters(self) -> None:
        """Load the weights again, after ESPnet's `--init` has overwritten them."""
        self.pretrained.fill(self.encoder)


def _hertz(fs: Union[int, str]) -> float:
    """A sampling rate given as 16000, "16000", "16k" or "16 kHz"."""
    text = str(fs).lower().replace(" ", "").removesuffix("hz")
    scale = 1000 if text.endswith("k") else 1
    try:
        return float(text.removesuffix("k")) * scale
    except ValueError:
        raise ValueError(f"fs must be a rate such as 16000, got {fs!r}") from None
