"""How a recording is cut, what is computed of the pieces, and how they become rows.

A layout reads blocks of samples once, with the memory of one piece: `pieces` yields
them, each one pass of the encoder, rows in order; a row is a clip, a window or a time
step, `span` gives its beginning and end, `cuts` says whether a part of the recording
does not count. All its numbers are samples at 16 kHz.

A job has a layout and an encoder on its device; `run` makes a value of each piece of a
batch, `finish` makes rows of the values of a file.

Shapes: B pieces, S time patches, D channels, L layers, C classes, W rows.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import count, groupby
from typing import Any, NamedTuple

import numpy as np
import torch

from espnet2_sslam.classifier import Pooling, SSLAMClassifier
from espnet2_sslam.encoder import EncoderOutput, SSLAMEncoder
from espnet2_sslam.features import kaldi_fbank, num_frames
from espnet2_sslam.units import (
    FRAME_LENGTH,
    FRAME_SHIFT,
    FRAME_SHIFT_MS,
    PATCH_SIZE,
    PATCHES_PER_STEP,
    SAMPLE_RATE,
)

STEP = PATCH_SIZE * FRAME_SHIFT  # samples of a time patch: 160 ms
OVERHANG = FRAME_LENGTH - FRAME_SHIFT  # the last frame reaches this far beyond


def pass_samples(frames: int) -> int:
    """Samples that give exactly `frames` frames."""
    return frames * FRAME_SHIFT + OVERHANG


class Piece(NamedTuple):
    """Samples of one pass; the row they belong to; where in the file they begin."""

    samples: np.ndarray
    row: int
    start: int


class Window(NamedTuple):
    """Samples from `start` on; the file's length if its end is known by now."""

    samples: np.ndarray
    start: int
    total: int | None


def cut_windows(
    blocks: Iterable[np.ndarray], starts: Iterable[int], size: int
) -> Iterator[Window]:
    """Windows of `size` samples at ascending starts, until a start is beyond the end.

    Windows that reach over an end of the recording are shorter. `total` is known for
    every window that touches the end of the recording.
    """
    blocks = iter(blocks)
    buffer, first, ended = np.zeros(0, np.float32), 0, False
    for start in starts:
        while not ended and first + len(buffer) <= start + size:
            block = next(blocks, None)
            if block is None:
                ended = True
                break
            used = min(max(start - first, 0), len(buffer))
            buffer, first = np.concatenate([buffer[used:], block]), first + used
        total = first + len(buffer) if ended else None
        if total is not None and start >= total:
            return
        samples = buffer[max(start - first, 0) : start + size - first].copy()
        yield Window(samples, start, total)


class WholeClip:
    """The whole recording is one row, in passes as the encoder chunks it.

    Args:
        frames: Frames of a pass.
        first_only: A model of fixed clip length: no more than the first pass counts.
    """

    def __init__(self, frames: int, first_only: bool = False):
        self.frames, self.first_only = frames, first_only

    def pieces(self, blocks: Iterable[np.ndarray]) -> Iterator[Piece]:
        """One piece per pass; they overlap by what frames need beyond their shift."""
        starts = [0] if self.first_only else count(0, self.frames * FRAME_SHIFT)
        for window in cut_windows(blocks, starts, pass_samples(self.frames)):
            if len(window.samples) >= FRAME_LENGTH:
                yield Piece(window.samples, 0, window.start)

    def span(self, row: int, total: int) -> tuple[float, float]:
        return 0, self.frames * FRAME_SHIFT if self.cuts(total) else total

    def cuts(self, total: int) -> bool:
        return self.first_only and total >= pass_samples(self.frames) + FRAME_SHIFT


class Chunks:
    """A row per window of `size` samples every `hop` samples.

    The last window may be shorter (not below 25 ms); there is none that begins where
    an earlier one has reached the end already.

    Args:
        size, hop: Samples; a hop above the size leaves gaps.
        clip: How a window becomes passes.
    """

    def __init__(self, size: int, hop: int, clip: WholeClip):
        self.size, self.hop, self.clip = size, hop, clip

    def pieces(self, blocks: Iterable[np.ndarray]) -> Iterator[Piece]:
        windows = cut_windows(blocks, count(0, self.hop), self.size)
        for row, window in enumerate(windows):
            for piece in self.clip.pieces([window.samples]):
                yield Piece(piece.samples, row, window.start + piece.start)
            if window.total is not None and window.start + self.size >= window.total:
                return

    def span(self, row: int, total: int) -> tuple[float, float]:
        start = row * self.hop
        end = min(start + self.size, total)
        return start, start + self.clip.span(0, end - start)[1]

    def cuts(self, total: int) -> bool:
        return self.clip.cuts(min(self.size, total))


class CentredWindows:
    """A row per time step: a window of `size` samples around its middle.

    At the ends of the recording the windows are shorter.

    Args:
        size: Samples of a window, at most a pass.
        parts: Steps per 160 ms.
    """

    def __init__(self, size: int, parts: int):
        self.size, self.parts = size, parts

    def pieces(self, blocks: Iterable[np.ndarray]) -> Iterator[Piece]:
        middles = ((row + 0.5) * STEP / self.parts for row in count())
        starts = (round(middle - self.size / 2) for middle in middles)
        for row, window in enumerate(cut_windows(blocks, starts, self.size)):
            if window.total is not None and row >= self._rows(window.total):
                return
            yield Piece(window.samples, row, window.start)

    def span(self, row: int, total: int) -> tuple[float, float]:
        end = (row + 1) * STEP / self.parts
        return row * STEP / self.parts, total if row + 1 == self._rows(total) else end

    def cuts(self, total: int) -> bool:
        return False

    def _rows(self, total: int) -> int:
        """Number of steps that cover the frames of `total` samples."""
        frames = (total - OVERHANG) // FRAME_SHIFT
        return -(-frames * self.parts // PATCH_SIZE)


Layout = WholeClip | Chunks | CentredWindows


class Backbone:
    """The encoder on its device: pieces in, tokens out; keeps no state between calls.

    Args:
        encoder: In evaluation mode, on `device`.
        device: Where it is.
        dtype: "float32", or "bfloat16" for the matrix products of the transformer
            (autocast: weights, norms and the log-mel stay float32).
    """

    def __init__(self, encoder: SSLAMEncoder, device: torch.device, dtype: str):
        self.encoder, self.device, self.dtype = encoder, device, dtype
        self.pass_frames = encoder.config.target_frames or encoder.config.max_frames
        self.fixed = encoder.config.target_frames is not None

    @property
    def pass_seconds(self) -> float:
        """Length of the longest pass, or of the model's fixed clip length."""
        return self.pass_frames * FRAME_SHIFT_MS / 1000

    def cost(self, num_samples: int) -> int:
        """Samples that the encoder works on for a piece of so many."""
        return pass_samples(self.pass_frames) if self.fixed else num_samples

    def encode(
        self, pieces: Sequence[np.ndarray], layer: int | str
    ) -> tuple[EncoderOutput, torch.Tensor]:
        """Tokens of pieces of at most one pass; frames of each (B,) before padding.

        Args:
            pieces: Samples (n,) of each, at 16 kHz.
            layer: As for `SSLAMEncoder.hidden_states`.
        """
        lengths = torch.tensor([len(piece) for piece in pieces])
        speech = torch.zeros(len(pieces), int(lengths.max()))
        for row, piece in enumerate(pieces):
            speech[row, : len(piece)] = torch.from_numpy(piece)
        speech, lengths = speech.to(self.device), lengths.to(self.device)
        frames = num_frames(lengths)
        if self.encoder.config.input_size != 1:
            speech, lengths = kaldi_fbank(speech, lengths)
        low = self.dtype != "float32"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=low):
            output = self.encoder.hidden_states(speech, lengths, layer)
        layers = [state.float() for state in output.layers]
        return output._replace(last=output.last.float(), layers=layers), frames


class Done(NamedTuple):
    """A piece that was computed: its row, its first sample, its value."""

    row: int
    start: int
    value: Any


Rows = tuple[np.ndarray, np.ndarray, np.ndarray]  # starts, ends in seconds, values


class PooledClips:
    """One vector, or the scores of a classifier, for each row.

    Args:
        backbone: The encoder.
        layout: Any; a row of several passes is pooled over all of them.
        pooling: Tokens to a vector.
        layer: As for `SSLAMEncoder.hidden_states`; "all" pools every layer by itself,
            unless there is a classifier, whose pooling sums them.
        classifier: Gives scores (W, C) instead of vectors (W, D) or (W, L, D).
    """

    def __init__(
        self,
        backbone: Backbone,
        layout: Layout,
        pooling: Pooling,
        layer: int | str,
        classifier: SSLAMClassifier | None = None,
    ):
        self.backbone, self.layout = backbone, layout
        self.pooling, self.layer, self.classifier = pooling, layer, classifier

    def run(self, pieces: Sequence[np.ndarray]) -> list[tuple]:
        """Per piece its vector (D,) or (L, D), and the logarithm of its weight."""
        output, frames = self.backbone.encode(pieces, self.layer)
        if self.classifier is None and self.layer == "all":
            layers = [self.pooling(output._replace(last=x)) for x in output.layers]
            pooled = torch.stack(layers, 1)
        else:
            pooled = self.pooling(output)
        weights = self.pooling.log_weight(output, frames)
        return list(zip(pooled.cpu(), weights.cpu(), strict=True))

    def finish(self, parts: Sequence[Done], total: int) -> Rows:
        """Join the passes of each row and apply the head."""
        spans, pooled = [], []
        for row, passes in groupby(parts, key=lambda part: part.row):
            vectors, weights = zip(*(part.value for part in passes), strict=True)
            spans.append(self.layout.span(row, total))
            pooled.append(self.pooling.join(torch.stack(vectors), torch.stack(weights)))
        values = torch.stack(pooled)
        if self.classifier is not None:
            logits = self.classifier.logits(values.to(self.backbone.device))
            values = self.classifier.scores(logits).cpu()
        starts, ends = np.array(spans, np.float64).T / SAMPLE_RATE
        return starts, ends, values.numpy()


class EmbedFrames:
    """One row per time patch of 160 ms (eight with freq="flatten").

    Args:
        backbone, layout, layer: See `PooledClips`.
    """

    def __init__(self, backbone: Backbone, layout: Layout, layer: int | str):
        self.backbone, self.layout, self.layer = backbone, layout, layer

    def run(self, pieces: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Per piece (S, rows of a time patch, D) or (S, rows of a time patch, L, D)."""
        output, _ = self.backbone.encode(pieces, self.layer)
        layers = [self._rows(tokens) for tokens in output.layers or [output.last]]
        values = layers[0] if self.layer != "all" else torch.stack(layers, 3)
        steps = output.steps.tolist()
        return [x[:n] for x, n in zip(values.cpu().numpy(), steps, strict=True)]

    def finish(self, parts: Sequence[Done], total: int) -> Rows:
        """Put the passes one after the other; what is mere padding is left out."""
        starts, ends, values = [], [], []
        for number, part in enumerate(parts):
            begin = part.start + STEP * np.arange(len(part.value))
            end = self.layout.span(part.row, total)[1]
            real = begin < end
            stop = np.minimum(begin + STEP, end)
            last = number + 1 == len(parts) or parts[number + 1].row != part.row
            if last and real.all():
                stop[-1] = end  # the recording goes on for less than a frame
            width = part.value.shape[1]
            starts.append(np.repeat(begin[real], width))
            ends.append(np.repeat(stop[real], width))
            values.append(part.value[real].reshape(-1, *part.value.shape[2:]))
        return (
            np.concatenate(starts) / SAMPLE_RATE,
            np.concatenate(ends) / SAMPLE_RATE,
            np.concatenate(values),
        )

    def _rows(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, 1+N, D) as (B, S, 1, D), with all bands (B, S, 1, 8D) or (B, S, 8, D)."""
        grid = tokens[:, 1:].unflatten(1, (-1, PATCHES_PER_STEP))
        freq = self.backbone.encoder.config.freq
        if freq == "mean":
            return grid.mean(2, keepdim=True)
        return grid.flatten(2)[:, :, None] if freq == "concat" else grid


Job = PooledClips | EmbedFrames
