"""How a recording is cut, what is computed of the pieces, and how they become rows.

`Windows` cuts blocks of samples into pieces, each one pass of the encoder. A job has
windows and an encoder on its device: `run` makes a value of each piece of a batch,
`finish` makes rows of the values of a file.

Shapes: B pieces, S time patches, D channels, L layers, C classes, W rows. Positions
are samples at 16 kHz.
"""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import count, groupby
from typing import Any, NamedTuple

import numpy as np
import torch

from espnet2_sslam.classifier import Pooling, SSLAMClassifier
from espnet2_sslam.encoder import (
    EncoderOutput,
    SSLAMEncoder,
    interleaved,
    real_patches,
)
from espnet2_sslam.features import kaldi_fbank, num_frames, num_patch_steps
from espnet2_sslam.units import (
    FRAME_LENGTH,
    FRAME_SHIFT,
    PATCH_SIZE,
    PATCHES_PER_STEP,
    SAMPLE_RATE,
)

STEP = PATCH_SIZE * FRAME_SHIFT  # samples of a time patch: 160 ms
OVERHANG = FRAME_LENGTH - FRAME_SHIFT  # the last frame reaches this far beyond
WHOLE = 1 << 62  # samples: longer than any recording


class Piece(NamedTuple):
    """Samples of one pass, and the row they belong to."""

    samples: np.ndarray
    row: int


class Windows:
    """The rows of a recording: windows of `size` samples every `hop` samples.

    With the defaults the one row is the whole recording. A window longer than a pass is
    encoded in several, as the encoder chunks a clip. The last window may be shorter
    (not below 25 ms); none begins where an earlier one has reached the end already.

    Args:
        frames: Of a pass.
        fixed: A model of fixed clip length: of a window only the first pass counts.
        size, hop: Samples; a hop above the size leaves gaps.
        centred: A row is a time step of `hop` samples, and its window (at most a pass)
            lies around its middle; at the ends of the recording it is shorter.
        time_shifts: Of what is encoded: a pass has the samples that its shifted patches
            reach into, too.
    """

    def __init__(
        self,
        frames: int,
        fixed: bool,
        size: int = WHOLE,
        hop: int | Fraction = WHOLE,
        centred: bool = False,
        time_shifts: int = 1,
    ):
        self.shift, self.fixed = frames * FRAME_SHIFT, fixed
        self.size, self.hop, self.centred = size, hop, centred
        self.beyond = 0 if fixed else STEP - STEP // time_shifts

    def pieces(self, blocks: Iterable[np.ndarray]) -> Iterator[Piece]:
        """Cut blocks of samples, with the memory of a pass and a hop."""
        blocks, total = iter(blocks), None
        buffer, first = np.zeros(0, np.float32), 0  # `first`: where the buffer begins
        before = 0  # end of the window before: a row needs more than it has reached
        for row in count():
            begin, after = self._begin(row), self._begin(row + 1)
            passes = range(begin, begin + self.size, self.shift)
            for start in passes[:1] if self.fixed else passes:
                # passes overlap by what frames need beyond their shift
                stop = min(start + self.shift + OVERHANG, begin + self.size)
                end = min(stop + self.beyond, begin + self.size)
                # `<=`: one sample beyond tells whether the recording ends here
                while total is None and first + len(buffer) <= max(end, before):
                    block = next(blocks, None)
                    if block is None:
                        total = first + len(buffer)
                        break
                    used = min(max(min(start, after) - first, 0), len(buffer))
                    buffer = np.concatenate([buffer[used:], block])
                    first += used
                if total is not None and row >= self._num_rows(total):
                    return
                samples = buffer[max(start - first, 0) : max(end - first, 0)]
                if len(samples) >= FRAME_LENGTH:
                    yield Piece(samples.copy(), row)
                if total is not None and stop >= total:
                    break
            before = begin + self.size

    def span(self, row: int, total: int) -> tuple[float, float]:
        """Where a row of a recording of `total` samples begins and ends."""
        start: Any = row * self.hop
        if self.centred:
            last = row + 1 == self._num_rows(total)
            return float(start), total if last else float(start + self.hop)
        end = min(start + self.size, total)
        return float(start), float(
            start + self.shift if self.cuts(end - start) else end
        )

    def cuts(self, total: float) -> bool:
        """Whether a recording has windows of which not everything counts."""
        longest = self.shift + FRAME_LENGTH - 1
        return self.fixed and min(self.size, total) > longest

    def _begin(self, row: int) -> int:
        """First sample of a row's window, negative before the recording."""
        early = Fraction(self.size - self.hop, 2) if self.centred else 0
        return round(row * self.hop - early)

    def _num_rows(self, total: int) -> int:
        if self.centred:  # steps that cover the frames
            frames = (total - OVERHANG) // FRAME_SHIFT
            return math.ceil(frames * FRAME_SHIFT / Fraction(self.hop))
        return 1 + max(0, math.ceil(Fraction(total - self.size, self.hop)))


class Backbone:
    """The encoder on its device: pieces in, tokens out; keeps no state between calls.

    On a GPU nothing is waited for until `fetch`: the host makes the next batch ready
    meanwhile. Batches of many lengths have few shapes there (`bucketed`), as every new
    one costs a plan of the attention.

    Args:
        encoder: In evaluation mode, on `device`.
        device: Where it is.
        dtype: "float32", or "bfloat16" or "float16" for the matrix products of the
            transformer (autocast: norms and the log-mel stay float32), whose weights
            are held in it, in a copy.
        compile: Run the transformer as one compiled graph for all lengths.
        bucketed: Round the lengths of mixed batches up; by default on a GPU.
    """

    def __init__(
        self,
        encoder: SSLAMEncoder,
        device: torch.device,
        dtype: str,
        compile: bool = False,
        bucketed: bool | None = None,
    ):
        self.encoder, self.device, self.dtype = encoder, device, dtype
        self.bucketed = device.type != "cpu" if bucketed is None else bucketed
        # batches that the device may work on while the host goes on
        self.ahead = int(device.type == "cuda")
        self.fixed = encoder.config.target_frames is not None
        self.pass_frames = encoder.config.target_frames or encoder.config.max_frames
        self.pass_seconds = self.pass_frames * FRAME_SHIFT / SAMPLE_RATE
        self._low = getattr(torch, dtype) if dtype != "float32" else None
        self._worker = encoder
        if self._low is not None or compile:
            self._worker = working_copy(encoder, self._low)
        if compile:
            encode: Any = torch.compile(self._worker.encode, dynamic=True)
            self._worker.encode = encode

    def cost(self, num_samples: int) -> int:
        """Samples that the encoder works on for a piece of so many."""
        if self.fixed:
            return self.pass_frames * FRAME_SHIFT + OVERHANG
        if not self.bucketed:
            return num_samples
        return self._bucket(-(-num_samples // STEP)) * STEP

    def _bucket(self, steps: int) -> int:
        """The next of few lengths in time patches, at most an eighth more."""
        grain = 1 << max(0, (steps - 1).bit_length() - 4)
        longest = max(steps, self.pass_frames // PATCH_SIZE)
        return min(-(-steps // grain) * grain, longest)

    def encode(
        self, pieces: Sequence[np.ndarray], layer: int | str, time_shifts: int = 1
    ) -> EncoderOutput:
        """Tokens of pieces of at most one pass.

        Args:
            pieces: Samples (n,) of each, at 16 kHz.
            layer, time_shifts: As for `SSLAMEncoder.hidden_states`.
        """
        encoder, gpu = self._worker, self.device.type == "cuda"
        lengths = torch.tensor([len(piece) for piece in pieces])
        frames = num_frames(lengths)
        steps = num_patch_steps(frames).clamp(max=self.pass_frames // PATCH_SIZE)
        num_steps, equal = int(steps.max()), bool((steps == steps[0]).all())
        if self.bucketed and not equal:
            num_steps = self._bucket(num_steps)
        starts = range(0, PATCH_SIZE, PATCH_SIZE // time_shifts)
        padded = [int(num_patch_steps(frames - s).min()) < num_steps for s in starts]
        speech = torch.zeros(len(pieces), int(lengths.max()), pin_memory=gpu)
        for row, piece in enumerate(pieces):
            speech[row, : len(piece)] = torch.from_numpy(piece)
        lengths = lengths.pin_memory() if gpu else lengths
        speech, lengths = (
            x.to(self.device, non_blocking=gpu) for x in (speech, lengths)
        )
        if encoder.config.input_size != 1:
            speech, lengths = kaldi_fbank(speech, lengths)
        everything, num_blocks = layer == "all", encoder.config.num_blocks
        if layer not in (-1, "all"):
            num_blocks = min(int(layer), num_blocks)
        with torch.autocast(self.device.type, self._low, self._low is not None):
            longer = num_steps + (time_shifts > 1)
            fbank, frames = encoder.fbank(speech, lengths, num_steps=longer)
            if self.fixed:
                num_steps = self.pass_frames // PATCH_SIZE
            shifted = encoder.shifted(fbank, frames, time_shifts, num_steps)
            options = {"num_blocks": num_blocks, "collect": everything}
            passes = []
            for (part, frames), some_padded in zip(shifted, padded, strict=True):
                patches = encoder.embed(part)
                valid = None
                if some_padded and not self.fixed:
                    valid = real_patches(frames, patches.shape[1])
                passes.append(encoder.encode(patches, valid, frames=frames, **options))
            output = passes[0] if time_shifts == 1 else interleaved(passes)
        layers = [state.float() for state in output.layers]
        return output._replace(last=output.last.float(), layers=layers)

    def fetch(self, *tensors: torch.Tensor) -> Callable[[], list[torch.Tensor]]:
        """Begin to copy tensors to the host; what is returned waits for them."""
        if self.device.type != "cuda":
            copies = [tensor.cpu() for tensor in tensors]
            return lambda: copies
        copies = [
            torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, True)
            for x in tensors
        ]
        copied = torch.cuda.Event()
        copied.record()

        def wait() -> list[torch.Tensor]:
            copied.synchronize()
            return copies

        return wait


def working_copy(encoder: SSLAMEncoder, dtype: torch.dtype | None) -> SSLAMEncoder:
    """The encoder with the weights of its products in `dtype`, all others shared.

    The numbers are those of autocast, which rounds these weights anew in every batch.
    """
    memo: dict[int, Any] = {
        id(tensor): tensor for tensor in (*encoder.parameters(), *encoder.buffers())
    }
    for module in encoder.modules() if dtype is not None else ():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
            for weight in module.parameters(recurse=False):
                low = torch.nn.Parameter(weight.detach().to(dtype), requires_grad=False)
                memo[id(weight)] = low
    return copy.deepcopy(encoder, memo)


Pending = Callable[[], list[Any]]  # waits for a value of each piece
Rows = tuple[np.ndarray, np.ndarray, np.ndarray]  # starts, ends in seconds, values


class PooledClips:
    """One vector, or the scores of a classifier, for each row.

    Args:
        backbone: The encoder.
        windows: A row of several passes is pooled over all of them.
        pooling: Tokens to a vector.
        layer: As for `SSLAMEncoder.hidden_states`; "all" pools every layer by itself,
            unless there is a classifier, whose pooling sums them.
        classifier: Gives scores (W, C) instead of vectors (W, D) or (W, L, D).
    """

    def __init__(
        self,
        backbone: Backbone,
        windows: Windows,
        pooling: Pooling,
        layer: int | str,
        classifier: SSLAMClassifier | None = None,
    ):
        self.backbone, self.windows = backbone, windows
        self.pooling, self.layer, self.classifier = pooling, layer, classifier
        if classifier is not None and backbone.device.type == "cuda":
            # one row: sent to the GPU it would wait there behind the next batch
            memo: dict[int, Any] = {id(classifier.encoder): torch.nn.Identity()}
            self.classifier = copy.deepcopy(classifier, memo).cpu()

    def run(self, pieces: Sequence[np.ndarray]) -> Pending:
        """Per piece its vector (D,) or (L, D), and the logarithm of its weight."""
        output = self.backbone.encode(pieces, self.layer)
        assert output.frames is not None
        if self.classifier is None and self.layer == "all":
            layers = [self.pooling(output._replace(last=x)) for x in output.layers]
            pooled = torch.stack(layers, 1)
        else:
            pooled = self.pooling.pool(output)
        weights = self.pooling.log_weight(output, output.frames)
        fetched = self.backbone.fetch(pooled, weights)
        return lambda: list(zip(*fetched(), strict=True))

    def finish(self, rows: Sequence[int], values: Sequence[Any], total: int) -> Rows:
        """Join the passes of each row and apply the head."""
        spans, pooled = [], []
        for row, passes in _by_row(rows, values):
            vectors, weights = zip(*passes, strict=True)
            spans.append(self.windows.span(row, total))
            pooled.append(self.pooling.join(torch.stack(vectors), torch.stack(weights)))
        result = torch.stack(pooled)
        if self.classifier is not None:
            head = self.classifier.head.weight.device
            finished = self.classifier.pooling.finish(result.to(head))
            logits = self.classifier.logits(finished)
            result = self.classifier.scores(logits).cpu()
        starts, ends = np.array(spans).T / SAMPLE_RATE
        return starts, ends, result.numpy()


class EmbedFrames:
    """One row per time patch of 160 ms / time_shifts of the encoder, or one per patch.

    Args:
        backbone, windows, layer: See `PooledClips`.
        freq: As in `EncoderConfig`: "flatten" gives eight rows a time patch. Of a model
            of fixed clip length these are all patches, padding too, as the authors'
            feature_extract.py writes them.
        cls_token: The CLS token (its mean over several passes) in a row before them.
    """

    def __init__(
        self,
        backbone: Backbone,
        windows: Windows,
        layer: int | str,
        freq: str,
        cls_token: bool = False,
    ):
        self.backbone, self.windows, self.layer = backbone, windows, layer
        self.freq, self.cls_token = freq, cls_token

    def run(self, pieces: Sequence[np.ndarray]) -> Pending:
        """Per piece (S, rows of a time patch, D) or (S, rows of a time patch, L, D).

        And the CLS token, (D,) or (L, D).
        """
        time_shifts = self.backbone.encoder.config.time_shifts
        output = self.backbone.encode(pieces, self.layer, time_shifts)
        tokens = output.layers or [output.last]
        values = [self._bands(of) for of in tokens]
        joined = values[0] if self.layer != "all" else torch.stack(values, 3)
        cls = [of[:, 0] for of in tokens]
        tops = cls[0] if self.layer != "all" else torch.stack(cls, 1)
        fetched = self.backbone.fetch(joined, tops, output.steps)

        def without_padding() -> list[tuple[np.ndarray, np.ndarray]]:
            arrays = (each.numpy() for each in fetched())
            return [(x[:n], top) for x, top, n in zip(*arrays, strict=True)]

        return without_padding

    def finish(self, rows: Sequence[int], values: Sequence[Any], total: int) -> Rows:
        """Put the passes one after the other; what is mere padding is left out."""
        starts, ends, parts = [], [], []
        hop = STEP // self.backbone.encoder.config.time_shifts
        for row, passes in _by_row(rows, values):
            start, end = self.windows.span(row, total)
            steps = np.concatenate([of for of, _ in passes])
            width = steps.shape[1]
            if self.cls_token:
                starts.append([start])
                ends.append([end])
                parts.append(np.mean([top for _, top in passes], 0)[None])
            if self.backbone.fixed and self.freq == "flatten":
                end = max(end, start + hop * len(steps))
            begins = start + hop * np.arange(len(steps))
            begins = begins[begins < end]
            starts.append(np.repeat(begins, width))
            # the last step goes to the end, which may be a bit beyond its last frame
            ends.append(np.repeat(np.append(begins[1:], end), width))
            parts.append(steps[: len(begins)].reshape(-1, *steps.shape[2:]))
        return (
            np.concatenate(starts) / SAMPLE_RATE,
            np.concatenate(ends) / SAMPLE_RATE,
            np.concatenate(parts),
        )

    def _bands(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, 1+N, D) as (B, S, 1, D), with all bands (B, S, 1, 8D) or (B, S, 8, D)."""
        grid = tokens[:, 1:].unflatten(1, (-1, PATCHES_PER_STEP))
        if self.freq == "mean":
            return grid.mean(2, keepdim=True)
        return grid.flatten(2)[:, :, None] if self.freq == "concat" else grid


def _by_row(rows: Sequence[int], values: Sequence[Any]) -> Iterator[tuple[int, list]]:
    """Each row with the values of its passes."""
    for row, pairs in groupby(zip(rows, values, strict=True), key=lambda pair: pair[0]):
        yield row, [value for _, value in pairs]


Job = PooledClips | EmbedFrames
