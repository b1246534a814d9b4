"""SSLAMClassifier: encoder, pooling, head and loss, for fine-tuning and linear probing.

Shapes: B clips, N patches, D channels, C classes.
"""

from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

import torch
from espnet2.torch_utils.device_funcs import force_gatherable
from espnet2.train.abs_espnet_model import AbsESPnetModel
from torch import nn

from espnet2_sslam.augment import Augmentation
from espnet2_sslam.encoder import NORM_EPS, SSLAMEncoder
from espnet2_sslam.losses import classification_loss, loss_weight
from espnet2_sslam.pooling import Pooling
from espnet2_sslam.randomness import batch_generator
from espnet2_sslam.units import PATCHES_PER_STEP
from espnet2_sslam.validation import ClipScores

CHOICES = {  # the first two of each: the default of multi_label, of multi_class
    "task": ("multi_label", "multi_class"),
    "loss": ("binary_cross_entropy", "cross_entropy"),
    "loss_reduction": ("positives", "clips", "elements"),
    "head_norm": ("layer", "batch"),
}


def classifier_from_config(config: Mapping[str, Any]) -> "SSLAMClassifier":
    """Build the classifier that a training configuration describes.

    Args:
        config: input_size, encoder_conf, augment_conf, model_conf, seed and class_list
            (the names), as in the config.yaml of a training.
    """
    encoder = SSLAMEncoder(config["input_size"], **config["encoder_conf"])
    return SSLAMClassifier(
        encoder,
        config["class_list"],
        augmentation=Augmentation(**config["augment_conf"]),
        seed=config["seed"],
        **config["model_conf"],
    )


class SSLAMClassifier(AbsESPnetModel):
    """Encoder with a classification head; a training step as (loss, stats, weight).

    Args:
        encoder: The (pre-trained) encoder.
        classes: Names of the C classes, in the order of the labels.
        task: "multi_label" (any number of labels per clip) or "multi_class" (one).
        pooling: See `Pooling`.
        head_norm: Before the linear head: "layer" norm, or "batch" norm without
            parameters, as is usual in linear evaluation since MAE.
        weighted_layers: Pool a learnt weighted sum of all layers, not the last one.
        loss: "binary_cross_entropy" or "cross_entropy"; by default the task's.
        loss_reduction: What the summed loss is divided by: "positives" (labels in the
            batch, the authors' multi-label scale), "clips" (their multi-class scale) or
            "elements" (clips x classes: the plain mean); by default the task's.
        label_smoothing: Of cross-entropy, in training only (the authors drop it where
            mixup is on; here both apply).
        freeze_encoder: Linear evaluation: no gradient and evaluation mode for the
            encoder; head, norm and pooling are trained.
        frozen_drop_path: The authors' linear evaluation: drop path stays active in the
            frozen encoder during training.
        augmentation: What is done to a training batch; nothing by default.
        cache_features: Linear evaluation without augmentation: encode each clip once,
            alone, and keep its pooled vector in memory under its utt_id. The clips must
            be the same in every epoch (no random crop).
        seed: Random draws are keyed by (seed, training batch, rank).

    Raises:
        ValueError: An option outside its range, or two that contradict each other.

    Source: SSLAM (ICLR 2025), section 4; cwx-worst-one/EAT@06c1c34,
    models/EAT_audio_classification.py.
    """

    def __init__(
        self,
        encoder: SSLAMEncoder,
        classes: List[str],
        *,
        task: str = "multi_label",
        pooling: str = "cls",
        head_norm: str = "layer",
        weighted_layers: bool = False,
        loss: Optional[str] = None,
        loss_reduction: Optional[str] = None,
        label_smoothing: float = 0.0,
        freeze_encoder: bool = False,
        frozen_drop_path: bool = False,
        augmentation: Optional[Augmentation] = None,
        cache_features: bool = False,
        seed: int = 0,
    ):
        super().__init__()
        default = 0 if task == "multi_label" else 1
        self.task = task
        self.loss = loss or CHOICES["loss"][default]
        self.loss_reduction = loss_reduction or CHOICES["loss_reduction"][default]
        self.head_norm, self.label_smoothing = head_norm, label_smoothing
        self.freeze_encoder = freeze_encoder
        self.frozen_drop_path = frozen_drop_path
        self.augmentation = augmentation or Augmentation()
        self.cache_features = cache_features
        self.seed = seed
        self.encoder, self.classes = encoder, list(classes)
        self._check_options()

        self.weighted_layers = weighted_layers
        num_states = encoder.max_layer + 1 if weighted_layers else 1
        self.pooling = Pooling(pooling, encoder.embed_dim, num_states)
        width = self.pooling.output_size
        self.fc_norm = nn.LayerNorm(width, eps=NORM_EPS)
        if head_norm == "batch":
            self.fc_norm = nn.BatchNorm1d(width, eps=NORM_EPS, affine=False)
        self.head = nn.Linear(width, len(classes))
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("num_batches", torch.zeros(()))
        self._collected: Optional[ClipScores] = None
        self._features: Dict[Tuple[bool, str], torch.Tensor] = {}
        self._check_cache()
        if freeze_encoder:
            encoder.requires_grad_(False)
            self.train(self.training)

    def _check_options(self) -> None:
        """Refuse options outside their range or at odds with each other."""
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                given = getattr(self, name)
                raise ValueError(
                    f"{name} must be one of {', '.join(choices)}: {given!r}"
                )
        if not self.classes or len(set(self.classes)) != len(self.classes):
            raise ValueError(f"need at least one class, each once, got {self.classes}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing {self.label_smoothing} is not in 0..1")
        if self.label_smoothing and self.loss != "cross_entropy":
            raise ValueError("label_smoothing needs loss: cross_entropy")
        if self.task == "multi_label" and self.loss == "cross_entropy":
            raise ValueError("loss: cross_entropy needs task: multi_class")
        if self.augmentation.roll_and_gain and self.encoder.input_size != 1:
            raise ValueError("roll_and_gain needs waveforms (input_size: 1)")
        if self.frozen_drop_path and not self.freeze_encoder:
            raise ValueError("frozen_drop_path needs freeze_encoder: true")

    def _check_cache(self) -> None:
        """Refuse to keep features that would change from one epoch to the next."""
        changing = {
            "freeze_encoder: false": not self.freeze_encoder,
            "frozen_drop_path: true": self.frozen_drop_path,
            "weighted_layers: true": self.weighted_layers,
            "this pooling": any(True for _ in self.pooling.parameters()),
            "augmentation": self.augmentation.is_active(),
        }
        found = [name for name, changes in changing.items() if changes]
        if self.cache_features and found:
            raise ValueError(f"cache_features does not go with {', '.join(found)}")

    def train(self, mode: bool = True):
        """Set the mode; a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.freeze_encoder:  # the encoder's own train() would keep it from dropping
            active = mode and self.frozen_drop_path and not self.encoder.freeze
            nn.Module.train(self.encoder, active)
        return self

    def forward(
        self,
        speech: torch.Tensor,
        speech_lengths: torch.Tensor,
        label: torch.Tensor,
        utt_id: Optional[List[str]] = None,
        **kwargs: Any,
    ) -> Tuple[torch.Tensor, Dict[str, torch.Tensor], torch.Tensor]:
        """Loss of a batch; in training with augmentation.

        Args:
            speech: Waveforms (B, samples) or log-mel (B, T, 128), see the encoder.
            speech_lengths: Samples or frames of each clip (B,).
            label: (B, C), 1 for the labels of a clip and 0 elsewhere.
            utt_id: Names of the clips; `begin_validation` makes them necessary.
            kwargs: What else ESPnet puts in a batch; not used.

        Returns:
            loss, {"loss": loss} and weight = what the summed loss was divided by, so
            that ESPnet's weighted means over batches and ranks are exact; (1,) each.
        """
        self._check_labels(label)
        targets = label.float()
        if self.cache_features:
            pooled = self._cached(speech, speech_lengths, utt_id)
        elif self.training:
            pooled, targets = self._augmented(speech, speech_lengths, targets)
        else:
            pooled = self._pooled(speech, speech_lengths)
        logits = self.head(self.fc_norm(pooled))
        if not self.training and self._collected is not None:
            scores = self.scores(logits.detach()).cpu().numpy()
            self._collected.add(_known(utt_id), scores, label.cpu().numpy())
        smoothing = self.label_smoothing if self.training else 0.0
        total = classification_loss(logits, targets, self.loss, smoothing)
        weight = loss_weight(targets, self.loss_reduction)
        loss = total / weight
        parts = loss, {"loss": loss.detach()}, weight
        return force_gatherable(parts, loss.device)

    def inference(
        self, speech: torch.Tensor, speech_lengths: torch.Tensor
    ) -> torch.Tensor:
        """Logits (B, C) of clips of any length, without augmentation."""
        return self.head(self.fc_norm(self._pooled(speech, speech_lengths)))

    def scores(self, logits: torch.Tensor) -> torch.Tensor:
        """Scores in 0..1 of logits (B, C): sigmoid, or softmax if multi-class."""
        multi_label = self.task == "multi_label"
        return logits.float().sigmoid() if multi_label else logits.float().softmax(-1)

    def collect_feats(
        self, speech: torch.Tensor, speech_lengths: torch.Tensor, **kwargs: Any
    ) -> Dict[str, torch.Tensor]:
        """Normalised log-mel, for ESPnet's collect_stats."""
        feats, lengths = self.encoder.fbank(speech, speech_lengths)
        return {"feats": feats, "feats_lengths": lengths}

    def begin_validation(self) -> None:
        """Collect the scores of every clip from now on."""
        self._collected = ClipScores()

    def finish_validation(self, gather: Callable[[Any], List[Any]]) -> Dict[str, float]:
        """Score the whole validation set: see `ClipScores.summary`."""
        collected, self._collected = self._collected, None
        return collected.summary(gather, accuracy=self.task == "multi_class")

    def _pooled(self, speech: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """One vector per clip (B, D), clips of any length."""
        trained = torch.is_grad_enabled() and not self.freeze_encoder
        with torch.set_grad_enabled(trained):
            states, steps = self.encoder.hidden_states(
                speech, lengths, collect=self.weighted_layers
            )
        index = torch.arange(states[0].shape[1] - 1, device=steps.device)
        return self.pooling(states, index < steps[:, None] * PATCHES_PER_STEP)

    def _cached(
        self,
        speech: torch.Tensor,
        lengths: torch.Tensor,
        utt_id: Optional[List[str]],
    ) -> torch.Tensor:
        """The same from memory; clips are encoded alone, so that resume is exact."""
        utt_id = _known(utt_id)
        for row, name in enumerate(utt_id):
            if (self.training, name) not in self._features:
                clip = speech[row : row + 1, : lengths[row]], lengths[row : row + 1]
                self._features[self.training, name] = self._pooled(*clip)[0]
        return torch.stack([self._features[self.training, name] for name in utt_id])

    def _augmented(
        self, speech: torch.Tensor, lengths: torch.Tensor, targets: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """Vectors (B, D) of augmented clips, and the targets (B, C) after mixup."""
        generator = batch_generator(speech.device, self.seed, self.num_batches)
        speech = self.augmentation.waveform(speech, lengths, generator)
        fbank, frames = self.encoder.fbank(speech, lengths)
        if fbank.shape[1] > self.encoder.max_frames:
            raise ValueError(
                f"a training clip has {int(frames.max())} frames, the encoder takes "
                f"{self.encoder.max_frames}: crop the clips or raise max_frames"
            )
        fbank, frames, targets = self.augmentation.spectrogram(
            fbank, frames, targets, generator
        )
        with torch.set_grad_enabled(not self.freeze_encoder):
            patches = self.encoder.embed(fbank)
            real = self.encoder.patch_mask(frames, patches.shape[1])
            out = self.encoder.encode(
                patches, real, collect=self.weighted_layers, generator=generator
            )
        states = out.hidden if self.weighted_layers else [out.tokens]
        return self.pooling(states, real), targets

    def _check_labels(self, label: torch.Tensor) -> None:
        """Refuse labels that do not fit the classes or the task."""
        if label.dim() != 2 or label.shape[1] != len(self.classes):
            raise ValueError(
                f"labels must be of shape (clips, {len(self.classes)} classes), got "
                f"{tuple(label.shape)}: use the class list of the model"
            )
        if self.task == "multi_class" and bool((label.sum(1) != 1).any()):
            raise ValueError(
                "task: multi_class needs exactly one label per clip: correct the text "
                "file or use task: multi_label"
            )


def _known(utt_id: Optional[List[str]]) -> List[str]:
    """Return the clips' names, which the caller must have given."""
    if utt_id is None:
        raise ValueError("validation and cache_features need utt_id: name the clips")
    return utt_id
