"""What is computed from a batch of pieces, and how a file's pieces become rows.

A job has a `layout` (windows.py), a `backbone`, `run` (batch -> a value per piece) and
`finish` (a file's pieces and values -> rows). Shapes: B pieces, S time patches, D
channels, L layers, C classes, W rows.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.functional import logsigmoid

from espnet2_sslam.classifier import SSLAMClassifier
from espnet2_sslam.encoder import EncoderOutput
from espnet2_sslam.inference.backbone import Backbone
from espnet2_sslam.inference.windows import STEP, ShiftedPasses, seconds
from espnet2_sslam.units import PATCHES_PER_STEP

POOLINGS = ("mean", "cls", "frames")


class Done(NamedTuple):
    """A piece that was computed: its row, its first sample, its value."""

    row: int
    start: int
    value: Any


Rows = tuple[np.ndarray, np.ndarray, np.ndarray]  # starts, ends, values


class EmbedClips:
    """One vector per row: the mean of the patches, or the CLS token.

    Args:
        backbone: The encoder.
        layout: `WholeClip` or `Chunks`.
        layer: See `Backbone.states`.
        pooling: "mean" or "cls".
    """

    def __init__(self, backbone: Backbone, layout, layer: int | str, pooling):
        self.backbone, self.layout = backbone, layout
        self.layer, self.pooling = layer, pooling

    def nothing(self) -> np.ndarray:
        """The vectors of no clips at all (0, D) or (0, L, D)."""
        encoder = self.backbone.encoder
        layers = (encoder.config.num_blocks + 1,) if self.layer == "all" else ()
        return np.empty((0, *layers, encoder.config.embed_dim), np.float32)

    def run(self, pieces: Sequence[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Per piece its vector (D,) or (L, D), and the logarithm of its weight."""
        states = self.backbone.states(pieces, self.layer)
        if self.pooling == "cls":  # as the encoder weights the CLS tokens of chunks
            weights = states.frames
            vectors = [tokens[:, 0] for tokens in states.tokens]
        else:
            weights = states.steps
            vectors = [_patch_mean(tokens, weights) for tokens in states.tokens]
        out = vectors[0] if self.layer != "all" else torch.stack(vectors, 1)
        return list(zip(_numpy(out), _numpy(weights.float().log())))

    def finish(self, parts: Sequence[Done], total: int) -> Rows:
        """Join the passes of each row."""
        rows = _by_row(parts)
        values = np.stack([join_weighted([p.value for p in row]) for row in rows])
        return (*_row_times(self.layout, rows, total), values)


class EmbedFrames:
    """One row per time patch of 160 ms (eight with freq="flatten").

    Args:
        backbone, layout, layer: See `EmbedClips`.
    """

    def __init__(self, backbone: Backbone, layout, layer: int | str):
        self.backbone, self.layout, self.layer = backbone, layout, layer

    def run(self, pieces: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Per piece (S, rows of a time patch, D) or (S, rows, L, D): see `_bands`."""
        states = self.backbone.states(pieces, self.layer)
        rows = [
            _bands(tokens, self.backbone.encoder.config.freq)
            for tokens in states.tokens
        ]
        out = _numpy(rows[0] if self.layer != "all" else torch.stack(rows, 3))
        return [row[:length] for row, length in zip(out, states.steps.tolist())]

    def finish(self, parts: Sequence[Done], total: int) -> Rows:
        """Put the passes one after the other; what is mere padding is left out."""
        starts, ends, values = [], [], []
        for number, part in enumerate(parts):
            begin = part.start + STEP * np.arange(len(part.value))
            end = self.layout.span(part.row, total)[1]
            real = begin < end
            stop = np.minimum(begin + STEP, end)
            more = number + 1 < len(parts) and parts[number + 1].row == part.row
            if not more and real.all():
                stop[-1] = end  # the recording goes on for less than a frame
            width = part.value.shape[1]
            starts.append(np.repeat(begin[real], width))
            ends.append(np.repeat(stop[real], width))
            values.append(part.value[real].reshape(-1, *part.value.shape[2:]))
        return (
            seconds(np.concatenate(starts)),
            seconds(np.concatenate(ends)),
            np.concatenate(values),
        )


class TagClips:
    """Scores of each row as a clip of its own.

    Args:
        backbone, classifier: The model; the backbone holds its encoder.
        layout: Any of windows.py but `ShiftedPasses`.
    """

    def __init__(self, backbone: Backbone, classifier: SSLAMClassifier, layout):
        self.backbone, self.classifier, self.layout = backbone, classifier, layout
        self.layer = classifier.pooling.layer

    def run(self, pieces: Sequence[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Per piece its pooled vector, and the logarithm of its weight."""
        states = self.backbone.states(pieces, self.layer)
        pooling = self.classifier.pooling
        weights = pooling.log_weight(states.output, states.frames)
        return list(zip(_numpy(pooling(states.output)), _numpy(weights)))

    def finish(self, parts: Sequence[Done], total: int) -> Rows:
        """Join the passes of each row and apply the head."""
        rows = _by_row(parts)
        join = join_weighted
        if self.classifier.pooling.kind == "lin_softmax":
            join = join_logits
        pooled = np.stack([join([part.value for part in row]) for row in rows])
        scores = _scores(self.classifier, torch.from_numpy(pooled), self.backbone)
        return (*_row_times(self.layout, rows, total), scores)


class TagSteps:
    """Scores of each time patch: the head on that time patch's tokens alone.

    For heads that pool patches; the CLS token of a pass belongs to no time patch.

    Args:
        backbone, classifier: The model; the backbone holds its encoder.
        layout: `ShiftedPasses`.
    """

    def __init__(
        self, backbone: Backbone, classifier: SSLAMClassifier, layout: ShiftedPasses
    ):
        self.backbone, self.classifier, self.layout = backbone, classifier, layout
        self.layer = classifier.pooling.layer

    def run(self, pieces: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Per piece the scores (S, C)."""
        states = self.backbone.states(pieces, self.layer)
        steps = [
            tokens[:, 1:].reshape(-1, PATCHES_PER_STEP, tokens.shape[2])
            for tokens in states.tokens
        ]
        # a place for the CLS token, which such a pooling skips
        steps = [torch.nn.functional.pad(x, (0, 0, 1, 0)) for x in steps]
        pooled = self.classifier.pooling(EncoderOutput(steps[-1], steps, []))
        scores = _scores(self.classifier, pooled, self.backbone)
        scores = scores.reshape(len(pieces), -1, scores.shape[1])
        return [row[:length] for row, length in zip(scores, states.steps.tolist())]

    def finish(self, parts: Sequence[Done], total: int) -> Rows:
        """Interleave the shifted passes."""
        layout = self.layout
        count = layout.rows(total)
        values = np.empty((count, parts[0].value.shape[1]), np.float32)
        for part in parts:
            part_rows = values[part.row :: layout.parts]
            kept = part.value[layout.skip(part.row) :][: len(part_rows)]
            part_rows[: len(kept)] = kept
        spans = np.array([layout.span(row, total) for row in range(count)])
        return seconds(spans[:, 0]), seconds(spans[:, 1]), values


def join_weighted(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Weighted mean of (value, logarithm of its weight), one per pass of a row."""
    if len(parts) == 1:
        return parts[0][0]
    values = np.stack([value for value, _ in parts]).astype(np.float64)
    logs = np.stack([log for _, log in parts]).astype(np.float64)
    weights = np.exp(logs - logs.max(0))
    weights = weights / weights.sum(0)
    weights = weights.reshape(weights.shape + (1,) * (values.ndim - weights.ndim))
    return (weights * values).sum(0).astype(np.float32)


def join_logits(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """The same for logits of probabilities, which are what is averaged."""
    if len(parts) == 1:
        return parts[0][0]
    values = torch.from_numpy(np.stack([value for value, _ in parts])).double()
    logs = torch.from_numpy(np.stack([log for _, log in parts])).double()
    logs = logs - logs.logsumexp(0)
    present = (logs + logsigmoid(values)).logsumexp(0)
    absent = (logs + logsigmoid(-values)).logsumexp(0)
    return (present - absent).float().numpy()


def pooling_input(pooling, tokens: Sequence[torch.Tensor]) -> torch.Tensor:
    """The tokens that a pooling works on: the last layer's or the weighted sum."""
    if len(tokens) == 1:
        return tokens[0]
    weights = pooling.layer_weights.softmax(0)
    return sum(weight * state for weight, state in zip(weights, tokens))


def _log_mass(kind: str, x: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Logarithm of the sum that a pooling divides by: of exp(score), of sigmoid."""
    if kind == "attentive":
        return x.masked_fill(~real, float("-inf")).logsumexp(1)
    return logsigmoid(x).masked_fill(~real[..., None], float("-inf")).logsumexp(1)


def _patch_mean(tokens: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """Mean over the real patches of (B, 1+N, D): (B, D)."""
    patches = tokens[:, 1:]
    count = steps[:, None] * PATCHES_PER_STEP
    real = torch.arange(patches.shape[1], device=patches.device) < count
    return torch.where(real[..., None], patches, 0.0).sum(1) / count


def _bands(tokens: torch.Tensor, freq: str) -> torch.Tensor:
    """(B, 1+N, D) as (B, S, 1, D), with all bands (B, S, 1, 8D) or (B, S, 8, D)."""
    grid = tokens[:, 1:].unflatten(1, (-1, PATCHES_PER_STEP))
    if freq == "mean":
        return grid.mean(2, keepdim=True)
    return grid.flatten(2)[:, :, None] if freq == "concat" else grid


def _scores(
    classifier: SSLAMClassifier, pooled: torch.Tensor, backbone: Backbone
) -> np.ndarray:
    """Scores (W, C) in 0..1 of pooled vectors (W, D)."""
    pooled = pooled.to(backbone.device)
    logits = classifier.head(classifier.fc_norm(pooled))
    return _numpy(classifier.scores(logits))


def _by_row(parts: Sequence[Done]) -> list[list[Done]]:
    """The parts of each row, rows in order."""
    rows: list[list[Done]] = []
    for part in parts:
        if rows and rows[-1][0].row == part.row:
            rows[-1].append(part)
        else:
            rows.append([part])
    return rows


def _row_times(layout, rows, total: int) -> tuple[np.ndarray, np.ndarray]:
    """Starts and ends of rows in seconds."""
    spans = np.array([layout.span(row[0].row, total) for row in rows])
    return seconds(spans[:, 0]), seconds(spans[:, 1])


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.cpu().numpy()
