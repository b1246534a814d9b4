"""One pre-training step of EAT (phase 1) and SSLAM (phase 2) as (loss, stats, weight).

Shapes: B clips, T frames, S time patches, N = 8 * S patches, C streams (1 or 2:
unmixed, partially mixed), R = C * B * clones rows, V visible and M hidden patches of a
row, D channels. Rows are clip-major: row r belongs to clip r // clones.
"""

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import torch

from espnet2_sslam import losses, mixing
from espnet2_sslam.config import check_choice
from espnet2_sslam.decoder import ConvDecoder
from espnet2_sslam.encoder import SSLAMEncoder
from espnet2_sslam.features import (
    checked_lengths,
    checked_waves,
    num_frames,
    unreadable,
)
from espnet2_sslam.masking import (
    CountingModule,
    batch_generator,
    count_visible,
    inverse_block_mask,
    keyed_generator,
    split_indices,
)
from espnet2_sslam.teacher import Targets, Teacher, ema_decay
from espnet2_sslam.units import FRAME_LENGTH, FRAME_SHIFT, PATCH_SIZE, PATCHES_PER_STEP

UNMIXED, MIXED = "unmixed", "mixed"
AUTHORS = "authors"
PADDING = ("none", AUTHORS)


class Draws(NamedTuple):
    """All that is random in a step, and the places that follow from it.

    Args:
        mask: True = hidden (B * clones, N).
        visible, hidden: Positions in the rows of `mask` (B * clones, V or M).
        noise: What the decoder sees at hidden patches (R, M, D).
        drop_path: See `SSLAMEncoder.draw_drop_path`, for R rows.
        regions: Unmixed regions (1 or B, 2), see `mixing`; phase 2.
        mixed: Positions of the mixed patches (1 or B, K); phase 2.
        snr: In dB (B,); the rule "waveform".
    """

    mask: torch.Tensor
    visible: torch.Tensor
    hidden: torch.Tensor
    noise: torch.Tensor
    drop_path: torch.Tensor | None = None
    regions: torch.Tensor | None = None
    mixed: torch.Tensor | None = None
    snr: torch.Tensor | None = None


class Predictions(NamedTuple):
    """What the student says: CLS (R, D), hidden patches (R, M, D), where they are."""

    utterance: torch.Tensor
    patch: torch.Tensor
    hidden_index: torch.Tensor


class SSLAMPretrainModel(CountingModule):
    """Student, teacher and decoder; phase 1 (EAT) or, with `mixture`, phase 2 (SSLAM).

    Args:
        encoder: The student.
        clip_frames: Frames of the longest clips, a multiple of 16.
        padding: "none": the clips of a batch are cut to the whole time patches of its
            shortest one, at most clip_frames; "authors": all to clip_frames, shorter
            ones zero-padded, and the padding attended to, predicted and mixed.
        clone_batch: Masks R / B per clip and stream.
        mask_ratio, mask_block_size, mask_ratio_adjust: See `masking`.
        mixture: Phase 2: partially mixed clips.
        streams: With mixture, which clips the student sees: "both", "mixed" only or
            "unmixed" only (then the rest of phase 2 has no effect).
        source_retention: With mixture, the source retention loss on patches.
        source_retention_utterance: Also on the utterance (the paper's ablation).
        mixing_rule: "max" (paper), "logsumexp" or "waveform".
        snr_range: Lowest and highest SNR in dB of the "waveform" rule.
        regions_per: Draw the unmixed regions once per "batch" (paper) or "clip".
        target_layers: Teacher layers averaged into the patch target; all by default.
        utterance_target_layers: The same for the utterance target; by default all in
            phase 1 and the last one in phase 2, as the authors.
        utterance_loss_weight: Factor of the utterance loss.
        utterance_loss_reduction: "sum" over rows (paper) or "mean". With "sum" the
            term's weight grows with clips per process and clones.
        decoder_conf: Options of `ConvDecoder`.
        ema_decay, ema_end_decay, ema_anneal_updates: See `Teacher`.
        seed: Of all random draws, together with the batch count and the rank.

    Raises:
        ValueError: An option outside its range.

    Source: SSLAM (ICLR 2025), section 3 and algorithm 1; ta012/SSLAM@0a3c0ff and
    cwx-worst-one/EAT@06c1c34, models/EAT_pretraining.py.
    """

    def __init__(
        self,
        encoder: SSLAMEncoder,
        *,
        clip_frames: int = 1024,
        padding: str = PADDING[0],
        clone_batch: int = 16,
        mask_ratio: float = 0.8,
        mask_block_size: int = 5,
        mask_ratio_adjust: float = 0.07,
        mixture: bool = False,
        streams: str = "both",
        source_retention: bool = True,
        source_retention_utterance: bool = False,
        mixing_rule: str = "max",
        snr_range: Sequence[float] = (-5.0, 5.0),
        regions_per: str = "batch",
        target_layers: int | None = None,
        utterance_target_layers: int | None = None,
        utterance_loss_weight: float = 1.0,
        utterance_loss_reduction: str = "sum",
        decoder_conf: dict | None = None,
        ema_decay: float = 0.9998,
        ema_end_decay: float = 0.99999,
        ema_anneal_updates: int = 100_000,
        seed: int = 0,
    ):
        super().__init__()
        check_choice("padding", padding, PADDING)
        check_choice("streams", streams, ("both", MIXED, UNMIXED))
        check_choice("mixing_rule", mixing_rule, mixing.MIXING_RULES)
        check_choice("regions_per", regions_per, ("batch", "clip"))
        check_choice(
            "utterance_loss_reduction", utterance_loss_reduction, ("sum", "mean")
        )
        _check_sizes(encoder, clip_frames, clone_batch)
        _check_layers("target_layers", target_layers, encoder.config.depth)
        _check_layers(
            "utterance_target_layers", utterance_target_layers, encoder.config.depth
        )
        if mixing_rule == "waveform" and encoder.config.input_size != 1:
            raise ValueError("mixing_rule: waveform needs waveforms (input_size: 1)")
        self.num_steps = clip_frames // PATCH_SIZE
        if mixture:
            mixing.region_steps(self.num_steps)  # refuses clips that are too short
        self.clip_frames, self.clone_batch = clip_frames, clone_batch
        self.padding = padding
        self.mask_ratio, self.mask_block_size = mask_ratio, mask_block_size
        self.mask_ratio_adjust = mask_ratio_adjust
        mixture = mixture and streams != UNMIXED
        both = (UNMIXED, MIXED) if streams == "both" else (MIXED,)
        self.streams = both if mixture else (UNMIXED,)
        self.retention = mixture and source_retention
        self.retention_utterance = mixture and source_retention_utterance
        low, high = snr_range
        self.mixing_rule, self.snr_range = mixing_rule, (low, high)
        self.regions_per_clip = regions_per == "clip"
        self.target_layers = target_layers or encoder.config.depth
        self.utterance_target_layers = utterance_target_layers or (
            1 if mixture else encoder.config.depth
        )
        self.utterance_loss_weight = utterance_loss_weight
        self.utterance_loss_reduction = utterance_loss_reduction
        self.seed = seed

        self.encoder = encoder
        self.decoder = ConvDecoder(encoder.config.embed_dim, **(decoder_conf or {}))
        self.teacher = Teacher(encoder, ema_decay, ema_end_decay, ema_anneal_updates)
        # float: ESPnet's averaging of checkpoints would add up integers
        self.num_updates: torch.Tensor
        self.num_batches: torch.Tensor
        self.register_buffer("num_updates", torch.zeros(()))
        self.register_buffer("num_batches", torch.zeros(()))
        # equal on all ranks by construction: not worth a broadcast in every step
        self._ddp_params_and_buffers_to_ignore = [n for n, _ in self.named_buffers()]

    def forward(
        self,
        speech: torch.Tensor,
        speech_lengths: torch.Tensor,
        utt_id: Sequence[str] = (),
        **unused,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
        """One step: loss, its terms and the collapse alarms, clips in the batch.

        Args:
            speech: Waveforms (B, samples), or un-normalised log-mel (B, T, 128).
            speech_lengths: (B,).
            utt_id: Names of the clips; they fix the draws in validation.
        """
        speech_lengths = checked_lengths(speech_lengths, speech, self._size(1))
        generator = self._generator(speech.device, utt_id)
        steps = self.common_steps(speech, speech_lengths)
        draws = self.draw(len(speech), generator, steps)
        unmixed, mixed = self.student_inputs(speech, speech_lengths, draws)
        self.teacher.prepare(speech.device.type)
        compiled = self._compiled if self.training else None
        objective = compiled or self.objective
        loss, stats = objective(unmixed, mixed, draws)
        if self.padding != AUTHORS and unreadable(speech_lengths):
            short = (speech_lengths < self._size(steps * PATCH_SIZE)).any()
            loss = loss.masked_fill(short, float("nan"))
        # filled on the device: to copy a number there would wait for it
        stats["num_updates"] = loss.new_full((), float(self.num_updates))
        stats["ema_decay"] = loss.new_full((), self.ema_decay)
        return loss, stats, loss.new_full((), len(speech))

    def checkpoint_activations(self, parts: str) -> None:
        """Keep less for the backward pass, which computes it again.

        Args:
            parts: What keeps only its inputs: layers of the "decoder", or "all", the
                encoder's blocks, too.
        """
        self.decoder.checkpointing = True
        self.encoder.checkpointing = parts == "all"

    def objective(
        self, unmixed: torch.Tensor, mixed: torch.Tensor | None, draws: Draws
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss and stats of given inputs and draws, in numbered steps.

        Nothing in it is random or decided by values: `torch.compile` makes one graph.

        Args:
            unmixed, mixed: Normalised log-mel (B, T, 128); mixed None in phase 1.
            draws: See `draw`.
        """
        # 1. What the teacher says about the whole, unmasked clips.
        targets = self.make_targets(unmixed, mixed, draws)
        # 2. What the student says from the visible patches alone.
        predictions = self.predict(self._streams(unmixed, mixed), draws)
        # 3. The terms: utterance and patch over all rows, retention over mixed ones.
        terms = self._terms(predictions, targets)
        loss = sum(terms.values(), torch.zeros((), device=unmixed.device))
        stats = {name: term.detach() for name, term in terms.items()}
        stats["loss"] = loss.detach()
        stats["target_var"] = losses.spread(targets.patch)
        stats["prediction_var"] = losses.spread(predictions.patch[:: self.clone_batch])
        return loss, stats

    def common_steps(self, speech: torch.Tensor, lengths: torch.Tensor) -> int:
        """Time patches that all clips of a batch have, at most clip_frames'.

        Lengths on a GPU are not waited for: the clips must be as long as the batch,
        or the loss is NaN.

        Raises:
            ValueError: A clip of less than one time patch, without padding.
        """
        if self.padding == AUTHORS:
            return self.num_steps
        if unreadable(lengths):
            lengths = torch.tensor(speech.shape[1])
        shortest = int(self._frames(lengths).min())
        if shortest < PATCH_SIZE:
            raise ValueError(
                f"a clip has {shortest} frames, padding: none needs {PATCH_SIZE}: "
                "leave it out"
            )
        return min(self.num_steps, shortest // PATCH_SIZE)

    def draw(
        self,
        num_clips: int,
        generator: torch.Generator,
        num_steps: int | None = None,
    ) -> Draws:
        """Draw all that is random in a step of `num_clips` clips.

        Their time patches are `num_steps`, those of `clip_frames` by default.
        """
        num_steps = num_steps or self.num_steps
        regions = mixed = snr = None
        if MIXED in self.streams:
            count = num_clips if self.regions_per_clip else None
            regions = mixing.draw_regions(num_steps, generator, count)
            mixed = mixing.mixed_patches(regions, num_steps)
            if self.mixing_rule == "waveform":
                snr = mixing.db_range(*self.snr_range, num_clips, generator)
        mask = inverse_block_mask(
            num_clips * self.clone_batch,
            num_steps,
            generator,
            mask_ratio=self.mask_ratio,
            mask_block_size=self.mask_block_size,
            mask_ratio_adjust=self.mask_ratio_adjust,
        )
        visible, hidden = split_indices(mask, count_visible(num_steps, self.mask_ratio))
        rows = len(self.streams) * len(mask)
        drop_path = self.encoder.draw_drop_path(rows, generator)
        cls = self.encoder.cls_token
        shape = rows, hidden.shape[1], cls.shape[-1]
        noise = self.decoder.draw_noise(shape, cls.dtype, generator)
        return Draws(mask, visible, hidden, noise, drop_path, regions, mixed, snr)

    def student_inputs(
        self, speech: torch.Tensor, lengths: torch.Tensor, draws: Draws
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Normalised log-mel of the clips and of their partial mixtures (or None).

        `forward` draws for as many time patches as all clips have. Where a caller draws
        for more, a mixture is the clip itself where its neighbour has ended.
        """
        if draws.snr is not None:
            speech, lengths = checked_waves(speech, lengths)
        steps = draws.mask.shape[1] // PATCHES_PER_STEP
        frames = steps * PATCH_SIZE
        if self.padding != AUTHORS:
            size = self._size(frames)
            speech, lengths = speech[:, :size], lengths.clamp(max=size)
        unmixed, _ = self.encoder.fbank(speech, lengths, frames)
        if draws.regions is None:
            return unmixed, None
        if draws.snr is not None:  # the rule "waveform"
            mixture = mixing.mix_waveforms(
                speech, lengths, draws.regions, steps, draws.snr
            )
            longer = torch.maximum(lengths, mixing.neighbour(lengths))
            mixed, _ = self.encoder.fbank(mixture, longer, frames, True)
            return unmixed, mixed
        std = self.encoder.log_mel.std
        mixed = mixing.mix_partially(unmixed, draws.regions, self.mixing_rule, std)
        if self.padding != AUTHORS:
            frame = torch.arange(frames, device=mixed.device)
            ended = frame >= mixing.neighbour(self._frames(lengths))[:, None]
            mixed = torch.where(ended[..., None], unmixed, mixed)
        return unmixed, mixed

    def make_targets(
        self, unmixed: torch.Tensor, mixed: torch.Tensor | None, draws: Draws
    ) -> Targets:
        """The teacher's targets for the streams and for source retention."""
        layers = self.target_layers, self.utterance_target_layers
        retention = self.retention or self.retention_utterance
        inputs = {UNMIXED: unmixed, MIXED: mixed}
        used = [s for s in inputs if s in self.streams or (s == UNMIXED and retention)]
        patches = self.teacher.embed(torch.cat([inputs[name] for name in used]))
        targets = self.teacher.targets(patches, *layers)
        rows = len(self.streams) * len(unmixed)
        result = Targets(targets.patch[-rows:], targets.utterance[-rows:])
        if not retention:
            return result
        assert draws.mixed is not None
        clips = len(unmixed)
        clean = Targets(targets.patch[:clips], targets.utterance[:clips])
        both = self.teacher.retention_targets(
            patches[:clips], clean, draws.mixed, *layers
        )
        return Targets(result.patch, result.utterance, both.patch, both.utterance)

    def predict(self, fbank: torch.Tensor, draws: Draws) -> Predictions:
        """The student's predictions from the visible patches.

        Args:
            fbank: Streams one after the other (C * B, T, 128).
            draws: See `draw`; the masks are the same for every stream.
        """
        visible = draws.visible.repeat(len(self.streams), 1)
        hidden = draws.hidden.repeat(len(self.streams), 1)
        patches = self.encoder.embed(fbank)
        seen = losses.row_targets(patches, visible, self.clone_batch)
        tokens = self.encoder.encode(seen, drop_path_draws=draws.drop_path).last
        predicted = self.decoder(tokens[:, 1:], visible, hidden, draws.noise)
        return Predictions(tokens[:, 0], predicted, hidden)

    def _terms(self, predictions: Predictions, targets: Targets):
        """The loss terms by name."""
        clones = self.clone_batch
        rows_per_stream = len(predictions.patch) // len(self.streams)
        mixed = slice(-rows_per_stream, None)  # the last stream is the mixtures

        def utterance_term(prediction, target):
            return self.utterance_loss_weight * losses.utterance_loss(
                prediction, target, clones, self.utterance_loss_reduction
            )

        def patch_term(prediction, target, hidden):
            target = losses.row_targets(target, hidden, clones)
            return losses.patch_loss(prediction, target)

        cls, patch, hidden = predictions
        terms = {
            "loss_utterance": utterance_term(cls, targets.utterance),
            "loss_patch": patch_term(patch, targets.patch, hidden),
        }
        if self.retention:
            terms["loss_retention"] = patch_term(
                patch[mixed], targets.retention, hidden[mixed]
            )
        if self.retention_utterance:
            terms["loss_retention_utterance"] = utterance_term(
                cls[mixed], targets.retention_utterance
            )
        return terms

    def _size(self, frames: int) -> int:
        """Samples of so many frames, or frames where the input is log-mel."""
        wave = self.encoder.config.input_size == 1
        return (frames - 1) * FRAME_SHIFT + FRAME_LENGTH if wave else frames

    def _frames(self, lengths: torch.Tensor) -> torch.Tensor:
        """Frames of clips of these lengths (B,), the other way round."""
        return num_frames(lengths) if self.encoder.config.input_size == 1 else lengths

    def _streams(self, unmixed, mixed):
        """The student's inputs (C * B, T, 128)."""
        streams = {UNMIXED: unmixed, MIXED: mixed}
        return torch.cat([streams[name] for name in self.streams])

    def _generator(self, device, utt_id) -> torch.Generator:
        """Randomness of one batch: by count and rank, in validation by the clips."""
        if self.training:
            return batch_generator(device, self.seed, self.num_batches)
        names = zlib.crc32("\n".join(utt_id).encode())
        return keyed_generator(device, self.seed, names)

    @property
    def ema_decay(self) -> float:
        """The teacher's decay in the last update."""
        return ema_decay(int(self.num_updates), *self.teacher.schedule)

    def update_teacher(self) -> None:
        """Count an update and move the teacher; called after each optimizer step."""
        self.num_updates += 1
        self.teacher.update(self.encoder, int(self.num_updates))

    def collect_feats(
        self, speech: torch.Tensor, speech_lengths: torch.Tensor, **unused
    ) -> dict[str, torch.Tensor]:
        """Normalised log-mel and its lengths, for ESPnet's --collect_stats."""
        feats, lengths = self.encoder.fbank(speech, speech_lengths)
        return {"feats": feats, "feats_lengths": lengths}


def _check_sizes(encoder, clip_frames, clone_batch):
    if clip_frames % PATCH_SIZE or not 0 < clip_frames <= encoder.config.max_frames:
        raise ValueError(
            f"clip_frames must be a multiple of {PATCH_SIZE} up to the encoder's "
            f"max_frames {encoder.config.max_frames}, got {clip_frames}"
        )
    if clone_batch < 1:
        raise ValueError(f"clone_batch must be at least 1, got {clone_batch}")


def _check_layers(name, value, depth):
    if value is not None and not 1 <= value <= depth:
        raise ValueError(f"{name} must be in 1..{depth}, got {value}")
