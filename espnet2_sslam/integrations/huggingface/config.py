"""Our config.json as a Hugging Face configuration, read and written alike."""

from typing import Any

from transformers import PreTrainedConfig

from espnet2_sslam.checkpoint import FORMAT_VERSION
from espnet2_sslam.units import AUDIOSET_MEAN, AUDIOSET_STD, SAMPLE_RATE

ENCODER = {
    "embed_dim": 768,
    "depth": 12,
    "num_heads": 12,
    "mlp_ratio": 4.0,
    "max_frames": 12_288,
    "target_frames": None,
}
HEAD = {"pooling": "cls", "head_norm": "layer", "weighted_layers": False}
PROBLEMS = {  # our word -> Hugging Face's
    "multi_label": "multi_label_classification",
    "multi_class": "single_label_classification",
}
OURS = ("format_version", "encoder", "fbank_mean", "fbank_std", "sampling_rate")


class SSLAMConfig(PreTrainedConfig):
    """Sizes of an encoder, and of the head on it if there is one.

    Args:
        format_version: Of our folders.
        encoder: Options of `SSLAMEncoder` (sizes; ViT-Base by default).
        fbank_mean, fbank_std: See `features.LogMel`.
        sampling_rate: 16000 Hz; no other is possible.
        classifier: Options of the head (pooling, head_norm, weighted_layers); its
            classes and task follow from `id2label` and `problem_type`, as is usual in
            transformers. None: an encoder alone.
        origin: Where the weights come from.

    Raises:
        ValueError: Another format version or sampling rate.
    """

    model_type = "sslam"

    format_version: int = FORMAT_VERSION
    encoder: dict | None = None
    fbank_mean: float = AUDIOSET_MEAN
    fbank_std: float = AUDIOSET_STD
    sampling_rate: int = SAMPLE_RATE
    classifier: dict | None = None
    origin: dict | None = None

    def __post_init__(self, **kwargs: Any):
        if self.format_version != FORMAT_VERSION or self.sampling_rate != SAMPLE_RATE:
            raise ValueError(
                f"need format_version {FORMAT_VERSION} and sampling_rate {SAMPLE_RATE},"
                f" got {self.format_version} and {self.sampling_rate}: convert the "
                "model with sslam-convert"
            )
        self.encoder = {**ENCODER, **(self.encoder or {})}
        head = self.classifier or {}
        if self.id2label is None and head.get("classes"):
            self.id2label = dict(enumerate(head["classes"]))
            self.label2id = {name: i for i, name in self.id2label.items()}
        if kwargs.get("num_labels") not in (None, len(self.id2label or ())):
            self.id2label = self.label2id = None  # a head for other classes
        if self.problem_type is None:
            self.problem_type = PROBLEMS.get(head.get("task"))
        super().__post_init__(**kwargs)

    @property
    def hidden_size(self) -> int:
        """Channels of a token, under the name that transformers uses."""
        return self.encoder["embed_dim"]

    @property
    def num_hidden_layers(self) -> int:
        """Transformer blocks."""
        return self.encoder["depth"]

    @property
    def num_attention_heads(self) -> int:
        """Attention heads of a block."""
        return self.encoder["num_heads"]

    def head_options(self) -> dict[str, Any]:
        """Options of the head without its classes and task."""
        given = {**HEAD, **(self.classifier or {})}
        return {k: v for k, v in given.items() if k not in ("classes", "task")}

    def to_diff_dict(self) -> dict[str, Any]:
        """The content of config.json: what `checkpoint.model_config` writes."""
        written = super().to_diff_dict()
        for name in ("transformers_version", "problem_type", "id2label", "label2id"):
            written.pop(name, None)
        if written.get("dtype") == "float32":
            del written["dtype"]
        written.update({name: getattr(self, name) for name in OURS})
        encoder_only = self.architectures == ["SSLAMModel"] or self.classifier is None
        written["classifier"] = None if encoder_only else self._classifier()
        if not encoder_only:
            written["id2label"] = {str(i): name for i, name in self.id2label.items()}
            written["label2id"] = {name: i for i, name in self.id2label.items()}
            task = written["classifier"]["task"]
            if self.problem_type not in (None, PROBLEMS[task]):
                written["problem_type"] = self.problem_type
        return written

    def _classifier(self) -> dict[str, Any]:
        """The head with its classes and its task."""
        multi_label = self.problem_type == PROBLEMS["multi_label"]
        return {
            "classes": [self.id2label[i] for i in sorted(self.id2label)],
            "task": "multi_label" if multi_label else "multi_class",
            **self.head_options(),
        }
