"""SSLAMEncoder: audio or log-mel in, tokens out, any length, padding-aware.

Shapes: B clips, T frames, S time patches, N = 8 * S patches, D channels.
"""

from typing import List, NamedTuple, Optional, Tuple, Union

import torch
import torch.nn.functional as F
from espnet2.asr.encoder.abs_encoder import AbsEncoder
from torch import nn

from espnet2_sslam.features import (
    LogMel,
    checked_fbank,
    fit_frames,
    kaldi_fbank,
    num_patch_steps,
)
from espnet2_sslam.layers import Block, PatchEmbedding, sincos_positions
from espnet2_sslam.tokens import as_sequence, join_chunks
from espnet2_sslam.units import NUM_MEL_BINS, PATCH_SIZE, PATCHES_PER_STEP

NORM_EPS = 1e-6


class EncoderOutput(NamedTuple):
    """Tokens (B, 1+N, D), CLS first, and per block its output and feed-forward."""

    tokens: torch.Tensor
    hidden: List[torch.Tensor]
    ffn: List[torch.Tensor]


class SSLAMEncoder(AbsEncoder):
    """Audio transformer of EAT and SSLAM (ViT over log-mel patches).

    Args:
        input_size: 1 for waveforms at 16 kHz, 128 for un-normalised log-mel.
        embed_dim: Channels D (ViT-Base: 768).
        depth: Transformer blocks.
        num_heads: Attention heads.
        mlp_ratio: Feed-forward width over D.
        drop_path: Rate of the last block, rising linearly from 0 (training only).
        fbank_mean, fbank_std: See `features.LogMel`.
        override_fbank_stats: See `features.LogMel`.
        max_frames: Longest pass in frames (the position table); longer clips are
            encoded in chunks of this length. A multiple of 16.
        target_frames: Fixed clip length in frames, as in the paper: shorter clips are
            zero-padded and the padding is attended to, longer ones keep their first
            frames. None: every clip has its own length and padding is masked out.
        freq: What becomes of the 8 frequency patches of a time patch: "mean" (D per
            160 ms), "concat" (8 * D per 160 ms) or "flatten" (8 tokens per 160 ms).
        cls_token: Put the CLS token before the others (for clips longer than
            `max_frames` the mean over chunks; repeated to 8 * D for "concat").
        layer: Block whose output is returned: -1 the last, 0 the patch embedding,
            or "all": ESPnet's (last, [(layer, output), ...]).
        max_layer: Number of blocks to run; all by default.
        upsample: Repeat every time step (160 ms) so many times.
        freeze: No gradient, and evaluation mode always.

    Raises:
        ValueError: An option outside its range.

    Source: SSLAM (ICLR 2025), section 3; ta012/SSLAM@0a3c0ff, models/images.py.
    """

    def __init__(
        self,
        input_size: int = 1,
        *,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        fbank_mean: Optional[float] = None,
        fbank_std: Optional[float] = None,
        override_fbank_stats: bool = False,
        max_frames: int = 12_288,
        target_frames: Optional[int] = None,
        freq: str = "mean",
        cls_token: bool = False,
        layer: Union[int, str] = -1,
        max_layer: Optional[int] = None,
        upsample: int = 1,
        freeze: bool = False,
    ):
        super().__init__()
        if input_size not in (1, NUM_MEL_BINS):
            raise ValueError(
                f"input_size must be 1 (waveform) or {NUM_MEL_BINS} (log-mel), "
                f"got {input_size}"
            )
        if freq not in ("mean", "concat", "flatten"):
            raise ValueError(f"freq must be mean, concat or flatten, got {freq!r}")
        for name, frames in (
            ("max_frames", max_frames),
            ("target_frames", target_frames),
        ):
            if frames is not None and (frames <= 0 or frames % PATCH_SIZE):
                raise ValueError(
                    f"{name} must be a positive multiple of {PATCH_SIZE}, got {frames}"
                )
        if target_frames is not None and target_frames > max_frames:
            raise ValueError(
                f"target_frames {target_frames} is above max_frames {max_frames}"
            )
        if depth < 1 or upsample < 1 or not 0 <= drop_path < 1:
            raise ValueError("need depth >= 1, upsample >= 1 and 0 <= drop_path < 1")
        if layer != "all" and not -1 <= layer <= depth:
            raise ValueError(f'layer must be "all" or in -1..{depth}, got {layer!r}')
        if max_layer is not None and not 1 <= max_layer <= depth:
            raise ValueError(f"max_layer must be in 1..{depth}, got {max_layer}")
        self.input_size, self.embed_dim, self.depth = input_size, embed_dim, depth
        self.max_frames, self.target_frames = max_frames, target_frames
        self.freq, self.use_cls, self.upsample = freq, cls_token, upsample
        self.layer, self.max_layer, self.freeze = layer, max_layer or depth, freeze

        self.log_mel = LogMel(fbank_mean, fbank_std, override_fbank_stats)
        self.patch_embed = PatchEmbedding(embed_dim)
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.norm = nn.LayerNorm(embed_dim, eps=NORM_EPS)
        rates = torch.linspace(0, drop_path, depth).tolist()
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, mlp_ratio, rate, NORM_EPS) for rate in rates
        )
        table = sincos_positions(embed_dim, max_frames // PATCH_SIZE)
        self.register_buffer("positions", table)
        self.reset_parameters()
        if freeze:
            self.requires_grad_(False)
            self.eval()

    def reset_parameters(self) -> None:
        """Initialise as the authors: linear N(0, .02), CLS N(0, 1), patches Xavier."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        weight = self.patch_embed.proj.weight
        nn.init.xavier_uniform_(weight.view(len(weight), -1))
        nn.init.normal_(self.cls_token)

    def output_size(self) -> int:
        """Channels of the output."""
        return self.embed_dim * (PATCHES_PER_STEP if self.freq == "concat" else 1)

    def train(self, mode: bool = True):
        """Set the mode; a frozen encoder stays in evaluation mode.

        Frozen by `freeze`, or all weights from outside (ESPnet's --freeze_param).
        """
        trained = any(weight.requires_grad for weight in self.parameters())
        return super().train(mode and trained and not self.freeze)

    def fbank(
        self,
        xs_pad: torch.Tensor,
        ilens: torch.Tensor,
        target_frames: Optional[int] = None,
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """Normalised log-mel (B, T, 128), T whole patches, and frames (B,).

        Args:
            xs_pad: Waveforms (B, samples) or (B, samples, 1), or log-mel (B, T, 128).
            ilens: Samples or frames of each clip (B,).
            target_frames: As in the constructor, whose value is the default.
        """
        target_frames = target_frames or self.target_frames
        raw, frames = self.raw_fbank(xs_pad, ilens)
        if target_frames is not None:
            raw = fit_frames(raw, target_frames)
            frames = torch.full_like(frames, target_frames)
        elif torch.compiler.is_compiling():  # no length depends on the values
            whole = num_patch_steps(raw.shape[1]) * PATCH_SIZE
            raw = F.pad(raw, (0, 0, 0, whole - raw.shape[1]))
        else:
            raw = fit_frames(raw, int(num_patch_steps(frames.max())) * PATCH_SIZE)
        return self.log_mel.normalize(raw), frames

    def raw_fbank(
        self, xs_pad: torch.Tensor, ilens: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """Un-normalised log-mel (B, T, 128), zero beyond a clip's end, and frames."""
        if self.input_size == 1:
            xs_pad = xs_pad.squeeze(-1) if xs_pad.dim() == 3 else xs_pad
            return kaldi_fbank(xs_pad, ilens)
        return checked_fbank(xs_pad, ilens)

    def embed(self, fbank: torch.Tensor) -> torch.Tensor:
        """Patch embedding plus positions: (B, T, 128) -> (B, N, D), without CLS."""
        patches = self.patch_embed(fbank)
        return patches + self.positions[:, : patches.shape[1]]

    def patch_mask(
        self, frames: torch.Tensor, num_patches: int
    ) -> Optional[torch.Tensor]:
        """True for real patches (B, N), False for padding; None if all are real.

        (Never None for `torch.compile` and `torch.export`: it depends on the values.)
        """
        steps = num_patch_steps(frames)
        if not torch.compiler.is_compiling():
            if int(steps.min()) * PATCHES_PER_STEP >= num_patches:
                return None
        index = torch.arange(num_patches, device=frames.device)
        return index < steps[:, None] * PATCHES_PER_STEP

    def encode(
        self,
        patches: torch.Tensor,
        valid: Optional[torch.Tensor] = None,
        max_layer: Optional[int] = None,
        collect: bool = False,
        generator: Optional[torch.Generator] = None,
    ) -> EncoderOutput:
        """Run CLS and patches through the norm and the blocks.

        Args:
            patches: (B, N, D) from `embed`, or a part of them.
            valid: True for the patches to attend to (B, N); all by default.
            max_layer: Blocks to run; the encoder's `max_layer` by default.
            collect: Keep every block's output and feed-forward output.
            generator: Randomness of drop path, on the patches' device.

        Returns:
            Tokens (B, 1+N, D); `hidden` holds the input of the first block and each
            block's output, `ffn` each block's feed-forward (both empty unless asked).
        """
        x = torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), patches], 1)
        x = self.norm(x)
        key_mask = None
        if valid is not None:
            key_mask = F.pad(valid, (1, 0), value=True)[:, None, None]
        hidden, ffn = [x] if collect else [], []
        for block in self.blocks[: max_layer or self.max_layer]:
            x, feed_forward = block(x, key_mask, generator)
            if collect:
                hidden.append(x)
                ffn.append(feed_forward)
        return EncoderOutput(x, hidden, ffn)

    def hidden_states(
        self,
        xs_pad: torch.Tensor,
        ilens: torch.Tensor,
        max_layer: Optional[int] = None,
        collect: bool = True,
        generator: Optional[torch.Generator] = None,
    ) -> Tuple[List[torch.Tensor], torch.Tensor]:
        """Tokens of every layer, in chunks where a clip is longer than `max_frames`.

        Args:
            xs_pad, ilens: As for `forward`.
            max_layer, collect, generator: As for `encode`.

        Returns:
            Tokens (B, 1+N, D) of the patch embedding and of each block (of the last
            block only without `collect`), and the time patches S of each clip (B,).
        """
        fbank, frames = self.fbank(xs_pad, ilens)
        options = max_layer, collect, generator
        steps = num_patch_steps(frames)
        if fbank.shape[1] <= self.max_frames:
            return self._pass(fbank, frames, *options), steps
        chunks = []
        for start in range(0, fbank.shape[1], self.max_frames):
            rows = (frames > start).nonzero()[:, 0]
            part = fbank[:, start : start + self.max_frames]
            length = (frames - start).clamp(max=self.max_frames)
            if len(rows) < len(fbank):
                part, length = part[rows], length[rows]
            chunks.append((rows, length, self._pass(part, length, *options)))
        return join_chunks(chunks, len(fbank)), steps

    def _pass(self, fbank, frames, max_layer, collect, generator):
        """States of one pass: every layer's tokens, or the last one's only."""
        patches = self.embed(fbank)
        valid = self.patch_mask(frames, patches.shape[1])
        out = self.encode(patches, valid, max_layer, collect, generator)
        return out.hidden if collect else [out.tokens]

    def forward(
        self,
        xs_pad: torch.Tensor,
        ilens: torch.Tensor,
        prev_states: Optional[torch.Tensor] = None,
        max_layer: Optional[int] = None,
    ) -> Tuple[Union[torch.Tensor, tuple], torch.Tensor, None]:
        """Encode a batch.

        Args:
            xs_pad: Waveforms (B, samples), at 16 kHz in [-1, 1], or log-mel
                (B, T, 128), by `input_size`.
            ilens: Samples or frames of each clip (B,).
            prev_states: Not used.
            max_layer: Number of blocks to run.

        Returns:
            Output (B, L, output_size), zero beyond a clip's end; lengths (B,); None.
        """
        last = max_layer or self.max_layer
        everything = self.layer == "all"
        wanted = last if everything or self.layer == -1 else min(self.layer, last)
        states, steps = self.hidden_states(
            xs_pad, ilens, max(wanted, 1), collect=everything or wanted == 0
        )
        if not everything:
            out, olens = self.shaped(states[0], steps)
            return out, olens, None
        shaped = [self.shaped(state, steps) for state in states]
        layers = [(index, out) for index, (out, _) in enumerate(shaped)]
        return (shaped[-1][0], layers[1:]), shaped[-1][1], None

    def shaped(
        self, tokens: torch.Tensor, steps: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """Tokens (B, 1+N, D), of `steps` time patches (B,), as asked; lengths (B,)."""
        return as_sequence(
            tokens, steps, freq=self.freq, upsample=self.upsample, with_cls=self.use_cls
        )
