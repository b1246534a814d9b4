"""SSLAMEncoder: audio or log-mel in, tokens out, any length, padding-aware.

Shapes: B clips, T frames, S time patches, N = 8 * S patches, L tokens, D channels.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from espnet2_sslam.config import EncoderConfig
from espnet2_sslam.features import (
    LogMel,
    checked_fbank,
    fit_frames,
    kaldi_fbank,
    num_patch_steps,
    unreadable,
    zero_padding,
)
from espnet2_sslam.units import (
    FRAME_LENGTH,
    FRAME_SHIFT,
    PATCH_SIZE,
    PATCHES_PER_STEP,
)

NORM_EPS = 1e-6


class PatchEmbedding(nn.Module):
    """Project patches of 16 frames x 16 mel bins to tokens.

    (B, T, 128) with T a multiple of 16 -> (B, N, D), index = time * 8 + frequency.
    """

    def __init__(self, embed_dim: int):
        super().__init__()
        self.proj = nn.Conv2d(1, embed_dim, PATCH_SIZE, stride=PATCH_SIZE)

    def forward(self, fbank: torch.Tensor) -> torch.Tensor:
        return self.proj(fbank[:, None]).flatten(2).transpose(1, 2)


def sincos_positions(embed_dim: int, num_steps: int) -> torch.Tensor:
    """Fixed 2-D sine-cosine positions (1, num_steps * 8, D).

    The first half of the channels encodes frequency, the second time, each as
    [sin | cos] with wavelengths from 2*pi to 10000 * 2*pi patches.

    Source: cwx-worst-one/EAT@06c1c34, models/images.py (fairseq's get_2d_sincos).
    """
    quarter = embed_dim // 4
    omega = 10_000.0 ** -(torch.arange(quarter, dtype=torch.float64) / quarter)
    time = torch.arange(num_steps).repeat_interleave(PATCHES_PER_STEP)
    frequency = torch.arange(PATCHES_PER_STEP).repeat(num_steps)
    angles = [place[:, None] * omega for place in (frequency, time)]
    parts = [wave(angle) for angle in angles for wave in (torch.sin, torch.cos)]
    return torch.cat(parts, 1).float()[None]


def drop_path(x: torch.Tensor, rate: float, draws: torch.Tensor) -> torch.Tensor:
    """Zero the whole residual branch of some clips and scale up the others.

    Args:
        x: Residual branch (B, L, D).
        rate: Probability that a clip's branch is dropped.
        draws: A uniform number in [0, 1) for each clip (B, 1, 1).
    """
    keep = draws >= rate
    return x * (keep / (1 - rate)).to(x.dtype)


class Attention(nn.Module):
    """Multi-head self-attention over tokens (B, L, D)."""

    def __init__(self, embed_dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim)
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(
        self, x: torch.Tensor, key_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Attend; `key_mask` (B, 1, 1, L) is True for the tokens to look at."""
        B, L, D = x.shape
        heads = 3, self.num_heads, D // self.num_heads
        q, k, v = self.qkv(x).view(B, L, *heads).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=key_mask)
        return self.proj(x.transpose(1, 2).reshape(B, L, D))


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, embed_dim: int, hidden_dim: int):
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, embed_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Post-norm transformer block that also returns its feed-forward output.

    (B, L, D) -> (B, L, D) and the raw feed-forward output (B, L, D), from which the
    teacher's targets are made.

    Source: AltBlock with layer_norm_first false, EAT@06c1c34, models/modules.py.
    """

    def __init__(
        self, embed_dim: int, num_heads: int, mlp_ratio: float, drop_path: float
    ):
        super().__init__()
        self.drop_path = drop_path
        self.attn = Attention(embed_dim, num_heads)
        self.norm1 = nn.LayerNorm(embed_dim, eps=NORM_EPS)
        self.mlp = Mlp(embed_dim, int(embed_dim * mlp_ratio))
        self.norm2 = nn.LayerNorm(embed_dim, eps=NORM_EPS)

    def forward(
        self,
        x: torch.Tensor,
        key_mask: torch.Tensor | None = None,
        draws: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x = x + self._maybe_drop(self.attn(x, key_mask), draws, 0)
        residual = self.norm1(x)
        feed_forward = self.mlp(residual)
        x = self.norm2(residual + self._maybe_drop(feed_forward, draws, 1))
        return x, feed_forward

    def _maybe_drop(self, branch, draws, index):
        if draws is None:
            return branch
        return drop_path(branch, self.drop_path, draws[index])


def recomputed(function: Callable, *inputs: Any) -> Any:
    """`function(*inputs)` that draws nothing, computed again in the backward pass.

    Between both passes only the inputs are kept.
    """
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)


class EncoderOutput(NamedTuple):
    """Tokens of a batch, the CLS token first, and which of them count.

    Args:
        last: Output of the last block that was run (B, 1+N, D).
        layers: The first block's input and every block's output, each (B, 1+N, D);
            empty unless collected.
        ffn: Every block's feed-forward output; empty unless collected (never of clips
            longer than one pass, nor of shifted passes).
        valid: True for the patches that are no padding (B, N); None: all are real.
        frames: Frames of each clip (B,); None where patches were given.
        time_shifts: Passes whose patches are interleaved, see `interleaved`.
    """

    last: torch.Tensor
    layers: list[torch.Tensor]
    ffn: list[torch.Tensor]
    valid: torch.Tensor | None = None
    frames: torch.Tensor | None = None
    time_shifts: int = 1

    @property
    def steps(self) -> torch.Tensor:
        """Time patches of each clip (B,), the last one padded."""
        assert self.frames is not None
        return num_patch_steps(self.frames, self.time_shifts)

    def real(self) -> torch.Tensor:
        """`valid`, written out where it is None."""
        if self.valid is not None:
            return self.valid
        shape = self.last.shape[0], self.last.shape[1] - 1
        return torch.ones(shape, dtype=torch.bool, device=self.last.device)


class SSLAMEncoder(nn.Module):
    """Audio transformer of EAT and SSLAM (ViT over log-mel patches).

    Args:
        config: Sizes and options; ViT-Base by default. A number is `input_size`, which
            ESPnet's encoders take first.
        options: Fields of `EncoderConfig` that replace those of `config`.

    Raises:
        ValueError: An option that is not known, or outside its range.

    Source: SSLAM (ICLR 2025), section 3; ta012/SSLAM@0a3c0ff, models/images.py.
    """

    block: type[Block] = Block  # what the network is built of

    def __init__(self, config: EncoderConfig | int | None = None, **options: Any):
        super().__init__()
        if isinstance(config, int):
            config, options = None, {"input_size": config, **options}
        self.config = config = (config or EncoderConfig()).replace(**options)
        width = config.embed_dim
        self.log_mel = LogMel(
            config.fbank_mean, config.fbank_std, config.override_fbank_stats
        )
        self.patch_embed = PatchEmbedding(width)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        rates = torch.linspace(
            0, config.drop_path, config.depth, device="cpu"  # also where it is on meta
        ).tolist()
        self.blocks = nn.ModuleList(
            self.block(width, config.num_heads, config.mlp_ratio, rate)
            for rate in rates
        )
        self.positions: torch.Tensor
        table = sincos_positions(width, config.max_frames // PATCH_SIZE)
        self.register_buffer("positions", table)
        self.checkpointing = False  # compute a block again in the backward pass
        self.reset_parameters()
        if config.freeze:
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
        bands = PATCHES_PER_STEP if self.config.freq == "concat" else 1
        return self.config.embed_dim * bands

    def train(self, mode: bool = True) -> "SSLAMEncoder":
        """Set the mode; a frozen encoder stays in evaluation mode.

        Frozen by `freeze`, or all weights from outside (ESPnet's --freeze_param).
        """
        trained = any(weight.requires_grad for weight in self.parameters())
        return super().train(mode and trained and not self.config.freeze)

    def _apply(self, fn: Callable, recurse: bool = True) -> "SSLAMEncoder":
        """`.half()`, `.to(...)`: buffers follow to the device, but stay float32.

        (The log-mel and the positions would lose what the network tells apart.)
        """
        exact = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, buffer in self.named_buffers():
            if buffer.dtype != torch.float32:
                buffer.data = exact[name].to(buffer.device)
        return self

    def fbank(
        self,
        xs_pad: torch.Tensor,
        ilens: torch.Tensor,
        target_frames: int | None = None,
        checked: bool = False,
        num_steps: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised log-mel (B, T, 128), T whole patches, and frames (B,).

        Args:
            xs_pad: Waveforms (B, samples) or (B, samples, 1), or log-mel (B, T, 128).
            ilens: Samples or frames of each clip (B,).
            target_frames: As in the configuration, whose value is the default.
            checked: See `features.kaldi_fbank`.
            num_steps: Time patches of the result, at least those of the longest clip;
                by default as many, for which a GPU is waited for.

        Raises:
            ValueError: See `features.checked_waves` and `checked_fbank`.
        """
        target_frames = target_frames or self.config.target_frames
        if self.config.input_size == 1:
            xs_pad = xs_pad.squeeze(-1) if xs_pad.dim() == 3 else xs_pad
            raw, frames = kaldi_fbank(xs_pad, ilens, checked)
        else:
            raw, frames = checked_fbank(xs_pad, ilens)
        if target_frames is not None:
            raw = fit_frames(raw, target_frames)
            frames = torch.full_like(frames, target_frames)
        elif num_steps is not None:
            raw = fit_frames(raw, num_steps * PATCH_SIZE)
        elif self._unseen(frames):  # no length depends on the values
            raw = F.pad(raw, (0, 0, 0, -raw.shape[1] % PATCH_SIZE))
        else:
            raw = fit_frames(raw, int(num_patch_steps(frames.max())) * PATCH_SIZE)
        return self.log_mel.normalize(raw), frames

    def embed(self, fbank: torch.Tensor) -> torch.Tensor:
        """Patch embedding plus positions: (B, T, 128) -> (B, N, D), without CLS."""
        patches = self.patch_embed(fbank.to(self.cls_token.dtype))
        return patches + self.positions[:, : patches.shape[1]]

    def shifted(
        self,
        fbank: torch.Tensor,
        frames: torch.Tensor,
        time_shifts: int,
        num_steps: int,
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The log-mel that begins at frame 0, s, 2 s, ..., s = 16 / time_shifts.

        Args:
            fbank: Normalised log-mel (B, T, 128), T whole patches.
            frames: Frames of each clip (B,).
            time_shifts: How many of them.
            num_steps: Time patches of each, as many as T has or one less.

        Returns:
            For each (B, 16 * num_steps, 128) and the frames of each clip in it (B,), 0
            where it has ended before.
        """
        hop, length = PATCH_SIZE // time_shifts, num_steps * PATCH_SIZE
        if fbank.shape[1] < length + PATCH_SIZE - hop:
            padding = torch.zeros_like(fbank[:, :PATCH_SIZE])
            fbank = torch.cat([fbank, self.log_mel.normalize(padding)], 1)
        return [
            (fbank[:, start : start + length], (frames - start).clamp(0, length))
            for start in range(0, PATCH_SIZE, hop)
        ]

    def patch_mask(
        self, frames: torch.Tensor, num_patches: int, time_shifts: int = 1
    ) -> torch.Tensor | None:
        """True for real patches (B, N), False for padding; None if all are real.

        With `target_frames` all are. (Else never None in training on a GPU, and for
        `torch.compile` and `torch.export`: it depends on the values.)
        """
        if self.config.target_frames is not None:
            return None
        if not self._unseen(frames):
            least = int(num_patch_steps(frames, time_shifts).min())
            if least * PATCHES_PER_STEP >= num_patches:
                return None
        return real_patches(frames, num_patches, time_shifts)

    def _unseen(self, frames: torch.Tensor) -> bool:
        """Whether no value may be read: while tracing; in training on a GPU."""
        return torch.compiler.is_compiling() or (self.training and unreadable(frames))

    def draw_drop_path(
        self,
        num_clips: int,
        generator: torch.Generator | None = None,
        num_blocks: int | None = None,
    ) -> torch.Tensor | None:
        """What drop path needs in `encode`: (blocks, 2, num_clips, 1, 1) in [0, 1).

        None where nothing is dropped: in evaluation, or with the rate 0.
        """
        num_blocks = self.config.num_blocks if num_blocks is None else num_blocks
        blocks: Any = self.blocks[:num_blocks]
        dropping = sum(block.drop_path > 0 for block in blocks)
        if not (self.training and dropping):
            return None
        device = generator.device if generator else self.cls_token.device
        shape = dropping, 2, num_clips, 1, 1
        return torch.rand(shape, generator=generator, device=device)

    def encode(
        self,
        patches: torch.Tensor,
        valid: torch.Tensor | None = None,
        *,
        num_blocks: int | None = None,
        collect: bool = False,
        generator: torch.Generator | None = None,
        drop_path_draws: torch.Tensor | None = None,
        frames: torch.Tensor | None = None,
    ) -> EncoderOutput:
        """Run CLS and patches through the norm and the blocks.

        Args:
            patches: (B, N, D) from `embed`, or a part of them.
            valid: True for the patches to attend to (B, N); all by default.
            num_blocks: Blocks to run; the configuration's by default.
            collect: Keep every block's output and feed-forward output.
            generator: Randomness of drop path, on the patches' device.
            drop_path_draws: From `draw_drop_path`; drawn by default.
            frames: Frames of each clip (B,), only handed on.
        """
        num_blocks = self.config.num_blocks if num_blocks is None else num_blocks
        draws = drop_path_draws
        if draws is None:
            draws = self.draw_drop_path(patches.shape[0], generator, num_blocks)
        x = torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), patches], 1)
        x = self.norm(x.to(self.cls_token.dtype))
        key_mask = None
        if valid is not None:
            key_mask = F.pad(valid, (1, 0), value=True)[:, None, None]
        layers, ffn = [x] if collect else [], []
        dropping = 0
        blocks: Any = self.blocks[:num_blocks]
        for block in blocks:
            inputs = x, key_mask, None
            if draws is not None and block.drop_path > 0:
                inputs = x, key_mask, draws[dropping]
                dropping += 1
            if self.checkpointing and torch.is_grad_enabled():
                x, feed_forward = recomputed(block, *inputs)
            else:
                x, feed_forward = block(*inputs)
            if collect:
                layers.append(x)
                ffn.append(feed_forward)
        return EncoderOutput(x, layers, ffn, valid, frames)

    def encode_fbank(
        self,
        fbank: torch.Tensor,
        frames: torch.Tensor,
        *,
        num_blocks: int | None = None,
        collect: bool = False,
        drop_path_draws: torch.Tensor | None = None,
    ) -> EncoderOutput:
        """Encode what `fbank` gives of clips of at most one pass, as `encode` does.

        Padding is not attended to.
        """
        patches = self.embed(fbank)
        return self.encode(
            patches,
            self.patch_mask(frames, patches.shape[1]),
            num_blocks=num_blocks,
            collect=collect,
            drop_path_draws=drop_path_draws,
            frames=frames,
        )

    def hidden_states(
        self,
        xs_pad: torch.Tensor,
        ilens: torch.Tensor,
        layer: int | str = -1,
        time_shifts: int | None = None,
    ) -> EncoderOutput:
        """Tokens of audio, in chunks where a clip is longer than `max_frames`.

        Args:
            xs_pad, ilens: As for `forward`.
            layer: Block that `last` is the output of: -1 the last, 0 the patch
                embedding; "all" collects `layers` besides.
            time_shifts: As in the configuration, whose value is the default. The passes
                are run one after the other.
        """
        everything, num_blocks = layer == "all", self.config.num_blocks
        if layer not in (-1, "all"):
            num_blocks = min(int(layer), num_blocks)
        options = {"num_blocks": num_blocks, "collect": everything}
        fbank, frames = self.fbank(xs_pad, ilens)
        time_shifts = time_shifts or self.config.time_shifts
        if time_shifts == 1:
            return self._in_chunks(fbank, frames, **options)
        num_steps = fbank.shape[1] // PATCH_SIZE
        shifted = self.shifted(fbank, frames, time_shifts, num_steps)
        out = interleaved([self._in_chunks(*each, **options) for each in shifted])
        # hosts want no step beyond the longest clip's
        longest = self.config.target_frames
        if longest is None and not self._unseen(frames):
            longest = int(frames.max())
        elif longest is None:  # as long as the padding allows
            longest = xs_pad.shape[1]
            if self.config.input_size == 1:
                longest = (longest - FRAME_LENGTH) // FRAME_SHIFT + 1
        num_patches = -(-longest * time_shifts // PATCH_SIZE) * PATCHES_PER_STEP
        layers = [tokens[:, : 1 + num_patches] for tokens in out.layers]
        valid = self.patch_mask(frames, num_patches, time_shifts)
        last = out.last[:, : 1 + num_patches]
        return out._replace(last=last, layers=layers, valid=valid)

    def _in_chunks(
        self, fbank: torch.Tensor, frames: torch.Tensor, **options: Any
    ) -> EncoderOutput:
        """`encode_fbank` of clips of any length."""
        max_frames = self.config.max_frames
        if fbank.shape[1] <= max_frames:
            return self.encode_fbank(fbank, frames, **options)
        chunks = []
        for start in range(0, fbank.shape[1], max_frames):
            rows = (frames > start).nonzero()[:, 0]
            if not len(rows):  # all end before, shifted: the padding of one
                rows = rows.new_zeros(1)
            part = fbank[:, start : start + max_frames]
            length = (frames - start).clamp(0, max_frames)
            if len(rows) < len(fbank):
                part, length = part[rows], length[rows]
            out = self.encode_fbank(part, length, **options)
            chunks.append((rows, length, out.layers or [out.last]))
        layers = _join_chunks(chunks, len(fbank))
        valid = self.patch_mask(frames, layers[-1].shape[1] - 1)
        collected = layers if options["collect"] else []
        return EncoderOutput(layers[-1], collected, [], valid, frames)

    def forward(
        self,
        xs_pad: torch.Tensor,
        ilens: torch.Tensor | None = None,
        prev_states: torch.Tensor | None = None,
        max_layer: int | None = None,
    ) -> tuple[torch.Tensor | tuple, torch.Tensor, None]:
        """Encode a batch.

        Args:
            xs_pad: Waveforms (B, samples), at 16 kHz in [-1, 1], or log-mel
                (B, T, 128), by `input_size`.
            ilens: Samples or frames of each clip (B,); None: there is no padding.
            prev_states: Not used.
            max_layer: Number of blocks to run.

        Returns:
            Output (B, L, output_size), zero beyond a clip's end; lengths (B,); None.
        """
        if ilens is None:
            ilens = torch.full((len(xs_pad),), xs_pad.shape[1], device=xs_pad.device)
        layer = self.config.layer
        if max_layer and layer != "all":
            layer = max_layer if layer == -1 else min(int(layer), max_layer)
        result = self.hidden_states(xs_pad, ilens, layer)
        assert result.frames is not None
        # not result.steps: torch 2.8 cannot trace a property of a named tuple
        steps = num_patch_steps(result.frames, self.config.time_shifts)
        if layer != "all":
            return *self.shaped(result.last, steps), None
        layers = result.layers[: 1 + (max_layer or self.config.num_blocks)]
        shaped = [self.shaped(tokens, steps) for tokens in layers]
        numbered = [(index, out) for index, (out, _) in enumerate(shaped)]
        return (shaped[-1][0], numbered[1:]), shaped[-1][1], None

    def shaped(
        self, tokens: torch.Tensor, steps: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Arrange tokens over time, as `freq`, `upsample` and `cls_token` say.

        Args:
            tokens: (B, 1+N, D).
            steps: Time patches of each clip (B,).

        Returns:
            Output (B, L, output_size), zero beyond a clip's end, and lengths (B,).
        """
        freq, repeats = self.config.freq, self.config.upsample
        cls, patches = tokens[:, :1], tokens[:, 1:]
        B, N, D = patches.shape
        S = N // PATCHES_PER_STEP
        grid = patches.reshape(B, S, PATCHES_PER_STEP, D)
        grid = grid.mean(2) if freq == "mean" else grid.flatten(2)
        out = grid.repeat_interleave(repeats, 1)
        if freq == "concat":
            cls = cls.repeat(1, 1, PATCHES_PER_STEP)
        elif freq == "flatten":
            repeats *= PATCHES_PER_STEP
        out = out.reshape(B, S * repeats, cls.shape[-1])
        olens = steps * repeats
        if self.config.cls_token:
            out, olens = torch.cat([cls, out], 1), olens + 1
        return zero_padding(out, olens), olens


def real_patches(
    frames: torch.Tensor, num_patches: int, time_shifts: int = 1
) -> torch.Tensor:
    """True for the patches (B, N) that a clip's frames (B,) reach into."""
    index = torch.arange(num_patches, device=frames.device)
    steps = num_patch_steps(frames, time_shifts)
    return index < steps[:, None] * PATCHES_PER_STEP


def interleaved(passes: list[EncoderOutput]) -> EncoderOutput:
    """One output of those of the shifted log-mel, see `SSLAMEncoder.shifted`.

    Time patch j begins at frame j * 16 / len(passes). The CLS token and the frames are
    the first pass's; `ffn` is empty, `valid` None.
    """

    def merged(each: Sequence[torch.Tensor]) -> torch.Tensor:
        steps = [x[:, 1:].unflatten(1, (-1, PATCHES_PER_STEP)) for x in each]
        return torch.cat([each[0][:, :1], torch.stack(steps, 2).flatten(1, 3)], 1)

    layers = [
        merged(each) for each in zip(*(out.layers for out in passes), strict=True)
    ]
    last = layers[-1] if layers else merged([out.last for out in passes])
    return EncoderOutput(last, layers, [], None, passes[0].frames, len(passes))


def _join_chunks(chunks: list[tuple], batch: int) -> list[torch.Tensor]:
    """Put the chunks' tokens one after the other; CLS is their weighted mean.

    Args:
        chunks: For each chunk in order: the clips that reach into it (b,), how many of
            its frames each fills (b,), and every layer's tokens (b, 1+n, D).
        batch: Number of clips B.

    Returns:
        Every layer's tokens (B, 1+N, D), zero where a clip has ended.
    """
    joined = []
    weight = torch.zeros(batch, 1, 1, device=chunks[0][1].device)
    for rows, length, _ in chunks:
        weight[rows] += length[:, None, None]
    weight.clamp_(min=1)  # of no frames at all
    for layer in range(len(chunks[0][2])):
        cls = torch.zeros((), device=weight.device)
        parts = []
        for rows, length, layers in chunks:
            tokens = layers[layer]
            full = tokens.new_zeros(batch, *tokens.shape[1:])
            full = full.index_copy(0, rows, tokens)
            share = torch.zeros_like(weight)
            share = share.index_copy(0, rows, length[:, None, None].to(weight.dtype))
            cls = cls + full[:, :1] * (share / weight).to(full.dtype)
            parts.append(full[:, 1:])
        joined.append(torch.cat([cls, *parts], 1))
    return joined
