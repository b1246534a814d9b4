"""SSLAMClassifier: encoder, pooling, head and loss, for fine-tuning and linear probing.

Shapes: B clips, N patches, D channels, C classes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from espnet2_sslam.augment import Augmentation
from espnet2_sslam.config import (
    POOLINGS,
    PROTOTYPICAL,
    EncoderConfig,
    HeadConfig,
    check_choice,
)
from espnet2_sslam.encoder import NORM_EPS, EncoderOutput, SSLAMEncoder
from espnet2_sslam.features import checked_waves, unreadable
from espnet2_sslam.losses import classification_loss, loss_weight
from espnet2_sslam.masking import CountingModule, batch_generator
from espnet2_sslam.metrics import ClipScores
from espnet2_sslam.units import PATCHES_PER_STEP

LOSSES = ("binary_cross_entropy", "cross_entropy", "asymmetric")
LOSS_REDUCTIONS = ("positives", "clips", "elements")
NO_AUGMENTATION = Augmentation()  # shared: it has no state


def classifier_from_config(config: Mapping[str, Any]) -> "SSLAMClassifier":
    """Build the classifier that a training configuration describes.

    Args:
        config: input_size, encoder_conf, augment_conf, model_conf, seed, class_list
            (the labels in the data) and class_names (what they mean, if that is
            there), as in the config.yaml of a training.
    """
    encoder = EncoderConfig.from_dict(
        {"input_size": config["input_size"], **config["encoder_conf"]}, "encoder_conf"
    )
    return SSLAMClassifier(
        SSLAMEncoder(encoder),
        config.get("class_names") or config["class_list"],
        augmentation=Augmentation(**config["augment_conf"]),
        seed=config["seed"],
        **config["model_conf"],
    )


class Pooling(nn.Module):
    """Tokens of one or of all layers -> one vector per clip; padding never counts.

    Args:
        kind: "cls": the CLS token; "mean": mean of the patches; "concat": their mean
            over time, frequency bands side by side (8 * D); "attentive": their mean
            weighted by a learnt softmax (a plain mean at first); "lin_softmax": per
            channel sum(p * p) / sum(p) of p = sigmoid(patch), as a logit; "prototypes":
            for each of P learnt vectors of signs the largest cosine with a patch;
            "gated": of the softmax-weighted sum of all blocks' unit-length outputs the
            product with P unit vectors, its least and largest over the patches and that
            of the CLS token (3 * P).
        embed_dim: D.
        num_layers: Layers to sum with learnt softmax weights first (equal at first);
            1: the last one alone. "gated": the blocks.
        num_prototypes: P.

    Raises:
        ValueError: Another `kind`.

    Source: cwx-worst-one/EAT@06c1c34, models/EAT_audio_classification.py, forward
    (cls, mean, lin_softmax); the weighted sum is SUPERB's (s3prl, Featurizer);
    prototypes: protobin of "Unmute the Patch Tokens" (arXiv 2509.24901); gated: convex
    gated probing of BAT (arXiv 2602.16305).
    """

    def __init__(
        self, kind: str, embed_dim: int, num_layers: int = 1, num_prototypes: int = 0
    ):
        super().__init__()
        check_choice("pooling", kind, POOLINGS)
        self.kind = kind
        self.output_size = embed_dim * (PATCHES_PER_STEP if kind == "concat" else 1)
        self.layer_weights = None
        if num_layers > 1 or kind == "gated":
            self.layer_weights = nn.Parameter(torch.zeros(num_layers))
        if kind == "attentive":
            self.attention = nn.Linear(embed_dim, 1)
            nn.init.zeros_(self.attention.weight)
            nn.init.zeros_(self.attention.bias)
        if kind in PROTOTYPICAL:
            self.prototypes = nn.Parameter(
                0.02 * torch.randn(num_prototypes, embed_dim)
            )
            self.output_size = num_prototypes * (3 if kind == "gated" else 1)

    @property
    def layer(self) -> int | str:
        """The layers that it needs, as `SSLAMEncoder.hidden_states` takes them."""
        return -1 if self.layer_weights is None else "all"

    def forward(self, output: EncoderOutput) -> torch.Tensor:
        """Pool the tokens of an encoder to (B, output_size)."""
        return self.finish(self.pool(output))

    def finish(self, pooled: torch.Tensor) -> torch.Tensor:
        """Make (B, output_size) of what `pool` gave, or `join` made of it."""
        if self.kind != "gated":
            return pooled
        number, width = self.prototypes.shape
        cls = F.normalize(pooled[:, 2 * number :].unflatten(1, (-1, width)), dim=-1)
        cls = self._likeness(self._gated(cls.unbind(1)))
        return torch.cat([pooled[:, : 2 * number], cls], 1)

    def pool(self, output: EncoderOutput) -> torch.Tensor:
        """Pool tokens (B, ...) to what passes of a long clip can be joined by.

        That is the result, but for "gated": there the CLS tokens of all blocks as they
        are stand in the place of their products.
        """
        real = output.real()
        if self.kind == "gated":
            blocks = output.layers[1:]  # not the first block's input
            units = [F.normalize(x, dim=-1) for x in blocks]
            likeness = self._likeness(self._gated(units)[:, 1:])
            least = likeness.masked_fill(~real[..., None], float("inf")).amin(1)
            most = likeness.masked_fill(~real[..., None], float("-inf")).amax(1)
            return torch.cat([least, most, *(x[:, 0] for x in blocks)], 1)
        x = self._tokens(output)
        if self.kind == "cls":
            return x[:, 0]
        x = x[:, 1:]
        if self.kind == "prototypes":
            likeness = self._likeness(F.normalize(x, dim=-1))
            return likeness.masked_fill(~real[..., None], float("-inf")).amax(1)
        if self.kind == "lin_softmax":
            # logit of sum(p^2) / sum(p), p = sigmoid(x); 1e-6 and the zeros for
            # infinite logits are the authors'
            logs = F.logsigmoid(x.float()).masked_fill(~real[..., None], float("-inf"))
            logs = torch.logsumexp(logs + logs, 1) - torch.logsumexp(logs + 1e-6, 1)
            logs = logs.clamp(max=0)
            logits = logs - torch.log(-torch.expm1(logs))
            return torch.nan_to_num(logits, 0.0, 0.0, 0.0).to(x.dtype)
        if self.kind == "attentive":
            scores = self.attention(x)[..., 0]
            weights = scores.float().masked_fill(~real, float("-inf")).softmax(1)
            return (weights[..., None].to(x.dtype) * x).sum(1)
        if self.kind == "concat":
            x = x.unflatten(1, (-1, PATCHES_PER_STEP)).flatten(2)
            real = real[:, ::PATCHES_PER_STEP]
        return torch.where(real[..., None], x, 0.0).sum(1) / real.sum(1, keepdim=True)

    def log_weight(self, output: EncoderOutput, frames: torch.Tensor) -> torch.Tensor:
        """Logarithm of the weight of one pass among the passes of a long clip.

        The weight is what `forward` divides by: frames, patches, the sum of exp(score)
        or of sigmoid; so `join` gives what one pass over the whole clip would pool.

        Args:
            output: Tokens of the passes.
            frames: Frames of each pass (B,), of which the CLS token stands for all.

        Returns:
            (B,), or (B, D) where every channel has its own.
        """
        if self.kind in ("cls", *PROTOTYPICAL):
            return frames.float().log()
        real = output.real()
        if self.kind in ("mean", "concat"):
            return real.sum(1).float().log()
        x = self._tokens(output)[:, 1:]
        if self.kind == "attentive":
            scores = self.attention(x)[..., 0]
            return scores.masked_fill(~real, float("-inf")).logsumexp(1)
        x = F.logsigmoid(x).masked_fill(~real[..., None], float("-inf"))
        return x.logsumexp(1)

    def join(self, pooled: torch.Tensor, log_weights: torch.Tensor) -> torch.Tensor:
        """The pooled vector of a clip from those of its passes.

        Args:
            pooled: (passes, ..., D).
            log_weights: (passes,) or (passes, D), from `log_weight`.
        """
        if len(pooled) == 1:
            return pooled[0]
        if self.kind == "prototypes":
            return pooled.amax(0)
        logs = log_weights.double()
        logs = logs - logs.logsumexp(0)
        if self.kind == "lin_softmax":  # logits of probabilities, which are averaged
            values = pooled.double()
            present = (logs + F.logsigmoid(values)).logsumexp(0)
            absent = (logs + F.logsigmoid(-values)).logsumexp(0)
            return (present - absent).float()
        weights = logs.exp().reshape(logs.shape + (1,) * (pooled.dim() - logs.dim()))
        mean = (weights * pooled.double()).sum(0).float()
        if self.kind != "gated":
            return mean
        number = len(self.prototypes)
        most = pooled[..., number : 2 * number].amax(0)
        least = pooled[..., :number].amin(0)
        return torch.cat([least, most, mean[..., 2 * number :]], -1)

    def _gated(self, layers: Sequence[torch.Tensor]) -> torch.Tensor:
        """Sum of the blocks with shares that are positive and sum to 1."""
        assert self.layer_weights is not None
        return weighted_sum(layers, self.layer_weights)

    def _likeness(self, x: torch.Tensor) -> torch.Tensor:
        """Products (..., P) of tokens (..., D) with the unit vectors of prototypes."""
        vectors = self.prototypes
        if self.kind == "prototypes":  # the gradient passes the signs as it is
            signs = torch.where(vectors >= 0, 1.0, -1.0).to(vectors.dtype)
            vectors = vectors + (signs - vectors).detach()
        return x @ F.normalize(vectors, dim=-1).T

    def _tokens(self, output: EncoderOutput) -> torch.Tensor:
        """The last layer's tokens, or the weighted sum of all (B, 1+N, D)."""
        if self.layer_weights is None:
            return output.last
        return weighted_sum(output.layers, self.layer_weights)


def weighted_sum(layers: Sequence[torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
    """Sum of layers with the softmax of learnt weights, as SUPERB's (s3prl)."""
    shares = weights.softmax(0)
    total = shares[0] * layers[0]
    for share, layer in zip(shares[1:], layers[1:], strict=True):
        total = total + share * layer
    return total


class SSLAMClassifier(CountingModule):
    """Encoder with a classification head; a training step as (loss, stats, weight).

    Args:
        encoder: The (pre-trained) encoder.
        head: The head, or the names of the C classes in the order of the labels.
        loss: "binary_cross_entropy", "cross_entropy" or "asymmetric", see
            `losses.classification_loss`; by default one of the first two by the task.
        loss_reduction: What the summed loss is divided by: "positives" (labels in the
            batch, the authors' multi-label scale), "clips" (their multi-class scale) or
            "elements" (clips x classes: the plain mean); by default the task's.
        label_smoothing: Of cross-entropy, in training only (the authors drop it where
            mixup is on; here both apply).
        head_dropout: Share of the head's inputs that is dropped in training.
        freeze_encoder: Linear evaluation: no gradient and evaluation mode for the
            encoder; head, norm and pooling are trained.
        frozen_drop_path: The authors' linear evaluation: drop path stays active in the
            frozen encoder during training.
        augmentation: What is done to a training batch; nothing by default.
        cache_features: Linear evaluation without augmentation: encode each clip once,
            alone, and keep its pooled vector in memory under its utt_id. The clips must
            be the same in every epoch (no random crop).
        seed: Random draws are keyed by (seed, training batch, rank).
        head_options: Fields of `HeadConfig` beside the classes.

    Raises:
        ValueError: An option that is not known, outside its range, or two that
            contradict each other.

    Source: SSLAM (ICLR 2025), section 4; cwx-worst-one/EAT@06c1c34,
    models/EAT_audio_classification.py.
    """

    def __init__(
        self,
        encoder: SSLAMEncoder,
        head: HeadConfig | Sequence[str],
        *,
        loss: str | None = None,
        loss_reduction: str | None = None,
        label_smoothing: float = 0.0,
        head_dropout: float = 0.0,
        freeze_encoder: bool = False,
        frozen_drop_path: bool = False,
        augmentation: Augmentation | None = None,
        cache_features: bool = False,
        seed: int = 0,
        **head_options: Any,
    ):
        super().__init__()
        if not isinstance(head, HeadConfig):
            head = HeadConfig(tuple(head))
        self.config = config = head.replace(**head_options)
        default = 0 if config.task == "multi_label" else 1
        self.loss = loss or LOSSES[default]
        self.loss_reduction = loss_reduction or LOSS_REDUCTIONS[default]
        self.label_smoothing = label_smoothing
        self.head_dropout = head_dropout
        self.freeze_encoder = freeze_encoder
        self.frozen_drop_path = frozen_drop_path
        self.augmentation = augmentation or NO_AUGMENTATION
        self.cache_features = cache_features
        self.seed = seed
        self.encoder = encoder
        width = encoder.config.embed_dim
        num_layers = encoder.config.num_blocks + 1 if config.weighted_layers else 1
        if config.pooling == "gated":
            num_layers = encoder.config.num_blocks
        number = config.prototypes_per_class * len(config.classes)
        self.pooling = Pooling(config.pooling, width, num_layers, number)
        width = self.pooling.output_size
        self.fc_norm: nn.Module = nn.LayerNorm(width, eps=NORM_EPS)
        if config.head_norm == "batch":
            self.fc_norm = nn.BatchNorm1d(width, eps=NORM_EPS, affine=False)
        elif config.head_norm == "none":
            self.fc_norm = nn.Identity()
        self.head = nn.Linear(width, len(config.classes))
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        self.num_batches: torch.Tensor  # counted by `batch_generator`
        self.register_buffer("num_batches", torch.zeros(()))
        # equal on all ranks by construction, and on the CPU: not to be broadcast
        self._ddp_params_and_buffers_to_ignore = ["num_batches"]
        self._collected: ClipScores | None = None
        self._features: dict[tuple[bool, str], torch.Tensor] = {}
        self._check_options()
        if freeze_encoder:
            encoder.requires_grad_(False)
            self.train(self.training)

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of the scores."""
        return list(self.config.classes)

    def _check_options(self) -> None:
        """Refuse options outside their range or at odds with each other."""
        check_choice("loss", self.loss, LOSSES)
        check_choice("loss_reduction", self.loss_reduction, LOSS_REDUCTIONS)
        cross_entropy, config = self.loss == "cross_entropy", self.config
        at_odds = {
            f"label_smoothing {self.label_smoothing} is not in 0..1": not (
                0 <= self.label_smoothing < 1
            ),
            f"head_dropout {self.head_dropout} is not in 0..1": not (
                0 <= self.head_dropout < 1
            ),
            "label_smoothing needs loss: cross_entropy": (
                self.label_smoothing and not cross_entropy
            ),
            "loss: cross_entropy needs task: multi_class": (
                cross_entropy and config.task == "multi_label"
            ),
            "loss: asymmetric needs task: multi_label": (
                self.loss == "asymmetric" and config.task == "multi_class"
            ),
            "roll_and_gain needs waveforms (input_size: 1)": (
                self.augmentation.roll_and_gain and self.encoder.config.input_size != 1
            ),
            "frozen_drop_path needs freeze_encoder: true": (
                self.frozen_drop_path and not self.freeze_encoder
            ),
        }
        if self.cache_features:  # they must not change from one epoch to the next
            changing = {
                "freeze_encoder: false": not self.freeze_encoder,
                "frozen_drop_path: true": self.frozen_drop_path,
                "weighted_layers: true": config.weighted_layers,
                "this pooling": any(True for _ in self.pooling.parameters()),
                "augmentation": self.augmentation.is_active(),
                "head_dropout": self.head_dropout > 0,
            }
            for name, changes in changing.items():
                at_odds[f"cache_features does not go with {name}"] = changes
        for message, is_wrong in at_odds.items():
            if is_wrong:
                raise ValueError(message)

    def train(self, mode: bool = True):
        """Set the mode; a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.freeze_encoder:  # the encoder's own train() would keep it from dropping
            active = mode and self.frozen_drop_path and not self.encoder.config.freeze
            nn.Module.train(self.encoder, active)
        return self

    def forward(
        self,
        speech: torch.Tensor,
        speech_lengths: torch.Tensor,
        label: torch.Tensor,
        utt_id: list[str] | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
        """Loss of a batch; in training with augmentation.

        Args:
            speech: Waveforms (B, samples) or log-mel (B, T, 128), see the encoder.
            speech_lengths: Samples or frames of each clip (B,).
            label: (B, C), 1 for the labels of a clip and 0 elsewhere.
            utt_id: Names of the clips; `begin_validation` makes them necessary.
            kwargs: What else ESPnet puts in a batch; not used.

        Returns:
            loss, {"loss": loss} and weight = what the summed loss was divided by, so
            that weighted means over batches and ranks are exact; 0-dimensional.
        """
        self._check_labels(label)
        if utt_id is None and (self.cache_features or self._collected is not None):
            raise ValueError("validation and cache_features need the clips' utt_id")
        targets = label.float()
        if self.training and not self.cache_features:
            objective = self._compiled or self.objective
            loss, weight = objective(*self._augmented(speech, speech_lengths, targets))
            return loss, {"loss": loss.detach()}, weight
        if self.cache_features:
            pooled = self._cached(speech, speech_lengths, utt_id)
        else:
            pooled = self._pooled(speech, speech_lengths)
        logits = self.logits(pooled)
        if not self.training and self._collected is not None:
            scores = self.scores(logits.detach()).cpu().numpy()
            self._collected.add(utt_id or (), scores, label.cpu().numpy())
        loss, weight = self._loss(logits, targets)
        return loss, {"loss": loss.detach()}, weight

    def checkpoint_activations(self, parts: str) -> None:
        """Keep less for the backward pass, which computes it again.

        Args:
            parts: "all": every block keeps only its inputs. (There is no "decoder".)
        """
        check_choice("activation_checkpointing", parts, ("none", "all"))
        self.encoder.checkpointing = parts == "all"

    def objective(
        self,
        fbank: torch.Tensor,
        frames: torch.Tensor,
        targets: torch.Tensor,
        drop_path_draws: torch.Tensor | None = None,
        head_draws: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss and weight of a training batch, as `forward` gives them.

        Nothing in it is random or decided by values: `torch.compile` makes one graph.

        Args:
            fbank: Normalised log-mel (B, T, 128), augmented.
            frames: Frames of each clip (B,).
            targets: (B, C), in 0..1.
            drop_path_draws: See `SSLAMEncoder.draw_drop_path`.
            head_draws: Uniform numbers (B, `pooling.output_size`) for `head_dropout`.
        """
        with torch.set_grad_enabled(
            torch.is_grad_enabled() and not self.freeze_encoder
        ):
            out = self.encoder.encode_fbank(
                fbank,
                frames,
                collect=self.pooling.layer == "all",
                drop_path_draws=drop_path_draws,
            )
        return self._loss(self.logits(self.pooling(out), head_draws), targets)

    def _loss(
        self, logits: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss, and what the sum over clips and classes was divided by."""
        smoothing = self.label_smoothing if self.training else 0.0
        total = classification_loss(logits, targets, self.loss, smoothing)
        weight = loss_weight(targets, self.loss_reduction)
        return total / weight, weight

    def inference(
        self, speech: torch.Tensor, speech_lengths: torch.Tensor
    ) -> torch.Tensor:
        """Logits (B, C) of clips of any length, without augmentation."""
        return self.logits(self._pooled(speech, speech_lengths))

    def logits(
        self, pooled: torch.Tensor, draws: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logits (B, C) of pooled vectors (B, `pooling.output_size`)."""
        x = self.fc_norm(pooled)
        if draws is not None:
            x = x * ((draws >= self.head_dropout) / (1 - self.head_dropout)).to(x.dtype)
        return self.head(x)

    def scores(self, logits: torch.Tensor) -> torch.Tensor:
        """Scores in 0..1 of logits (B, C): sigmoid, or softmax if multi-class."""
        multi_label = self.config.task == "multi_label"
        return logits.float().sigmoid() if multi_label else logits.float().softmax(-1)

    def collect_feats(
        self, speech: torch.Tensor, speech_lengths: torch.Tensor, **kwargs: Any
    ) -> dict[str, torch.Tensor]:
        """Normalised log-mel, for ESPnet's collect_stats."""
        feats, lengths = self.encoder.fbank(speech, speech_lengths)
        return {"feats": feats, "feats_lengths": lengths}

    def begin_validation(self) -> None:
        """Collect the scores of every clip from now on."""
        self._collected = ClipScores()

    def finish_validation(self, gather: Callable[[Any], list[Any]]) -> dict[str, float]:
        """Score the whole validation set: see `ClipScores.summary`."""
        collected, self._collected = self._collected, None
        assert collected is not None, "begin_validation() comes first"
        return collected.summary(gather, single_label=self.config.task == "multi_class")

    def _pooled(self, speech: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """One vector per clip (B, output_size), clips of any length."""
        trained = torch.is_grad_enabled() and not self.freeze_encoder
        with torch.set_grad_enabled(trained):
            out = self.encoder.hidden_states(speech, lengths, self.pooling.layer, 1)
        return self.pooling(out)

    def _cached(
        self,
        speech: torch.Tensor,
        lengths: torch.Tensor,
        utt_id: list[str] | None,
    ) -> torch.Tensor:
        """Pooled vectors from memory; clips are encoded alone: resume is exact."""
        assert utt_id is not None
        for row, name in enumerate(utt_id):
            if (self.training, name) not in self._features:
                clip = speech[row : row + 1, : lengths[row]], lengths[row : row + 1]
                self._features[self.training, name] = self._pooled(*clip)[0]
        return torch.stack([self._features[self.training, name] for name in utt_id])

    def _augmented(
        self, speech: torch.Tensor, lengths: torch.Tensor, targets: torch.Tensor
    ) -> tuple[Any, ...]:
        """All that is random in a step, done: the arguments of `objective`."""
        generator = batch_generator(speech.device, self.seed, self.num_batches)
        if self.augmentation.roll_and_gain:  # what it makes louder stops no training
            speech, lengths = checked_waves(speech, lengths)
        speech = self.augmentation.waveform(speech, lengths, generator)
        checked = self.augmentation.roll_and_gain
        fbank, frames = self.encoder.fbank(speech, lengths, checked=checked)
        if fbank.shape[1] > self.encoder.config.max_frames:
            raise ValueError(
                f"a training clip has {int(frames.max())} frames, the encoder takes "
                f"{self.encoder.config.max_frames}: crop the clips or raise max_frames"
            )
        fbank, frames, targets = self.augmentation.spectrogram(
            fbank, frames, targets, generator
        )
        draws = self.encoder.draw_drop_path(len(fbank), generator)
        if not self.head_dropout:
            return fbank, frames, targets, draws
        shape = len(fbank), self.pooling.output_size
        head_draws = torch.rand(shape, generator=generator, device=fbank.device)
        return fbank, frames, targets, draws, head_draws

    def _check_labels(self, label: torch.Tensor) -> None:
        """Refuse labels that do not fit the classes or the task."""
        if label.dim() != 2 or label.shape[1] != len(self.classes):
            raise ValueError(
                f"labels must be of shape (clips, {len(self.classes)} classes), got "
                f"{tuple(label.shape)}: use the class list of the model"
            )
        if self.config.task != "multi_class" or unreadable(label):
            return  # the values are looked at where that waits for no device
        if bool((label.sum(1) != 1).any()):
            raise ValueError(
                "task: multi_class needs exactly one label per clip: correct the text "
                "file or use task: multi_label"
            )
