"""Hugging Face transformers reads and writes our folders once this is imported.

`AutoConfig`, `AutoModel`, `AutoModelForAudioClassification`, `AutoFeatureExtractor` and
`pipeline("audio-classification")` know the model type "sslam" then, without
`trust_remote_code`; nothing changes for other models.

Shapes: B clips, N patches, D channels, C classes.
"""

import copy
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AudioClassificationPipeline,
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioClassification,
    BatchFeature,
    PreTrainedConfig,
    PreTrainedModel,
    SequenceFeatureExtractor,
)
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES,
)
from transformers.utils.generic import ModelOutput, can_return_tuple

from espnet2_sslam.audio import read_audio
from espnet2_sslam.checkpoint import FORMAT_VERSION, PREPROCESSOR_FILE
from espnet2_sslam.checkpoint.layouts import check_tensors
from espnet2_sslam.classifier import SSLAMClassifier
from espnet2_sslam.config import (
    STORED,
    EncoderConfig,
    HeadConfig,
    check_values,
    to_float,
)
from espnet2_sslam.encoder import (
    Block,
    EncoderOutput,
    SSLAMEncoder,
    sincos_positions,
)
from espnet2_sslam.features import zero_padding
from espnet2_sslam.store import set_usual_mode
from espnet2_sslam.units import AUDIOSET_MEAN, AUDIOSET_STD, PATCH_SIZE, SAMPLE_RATE

__all__ = [
    "AudioFilePipeline",
    "SSLAMConfig",
    "SSLAMFeatureExtractor",
    "SSLAMForAudioClassification",
    "SSLAMModel",
]

HEAD = ("pooling", "fc_norm", "head")  # of `SSLAMClassifier`, beside its encoder
HEAD_KEYS = tuple(f"{name}." for name in HEAD)
PROBLEMS = {  # our word -> Hugging Face's
    "multi_label": "multi_label_classification",
    "multi_class": "single_label_classification",
}
OURS = ("format_version", "encoder", "fbank_mean", "fbank_std", "sampling_rate")


class SSLAMConfig(PreTrainedConfig):
    """Sizes of an encoder, and of the head on it if there is one.

    Raises:
        ValueError: Another format version or sampling rate; an option that is not
            known or impossible.
    """

    model_type = "sslam"

    format_version: int = FORMAT_VERSION  # of our folders
    encoder: dict | None = None  # fields of `EncoderConfig`; ViT-Base by default
    fbank_mean: float = AUDIOSET_MEAN
    fbank_std: float = AUDIOSET_STD
    sampling_rate: int = SAMPLE_RATE  # no other is possible
    # Fields of `HeadConfig`; its classes and task follow from `id2label` and
    # `problem_type`, as is usual in transformers. None: an encoder alone.
    classifier: dict | None = None
    origin: dict | None = None  # where the weights come from

    def __post_init__(self, **kwargs: Any) -> None:
        if self.format_version != FORMAT_VERSION or self.sampling_rate != SAMPLE_RATE:
            raise ValueError(
                f"need format_version {FORMAT_VERSION} and sampling_rate {SAMPLE_RATE},"
                f" got {self.format_version} and {self.sampling_rate}: convert the "
                "model with `sslam convert`"
            )
        for name in ("encoder", "classifier", "id2label"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, dict):
                raise ValueError(f"{name} of config.json is no object: {value!r}")
        if not all(str(number).isdecimal() for number in self.id2label or ()):
            raise ValueError("id2label of config.json must number the names of classes")
        self.encoder = {**EncoderConfig().to_dict(STORED), **(self.encoder or {})}
        head = self.classifier or {}
        if self.id2label is None and head.get("classes"):
            self.id2label = dict(enumerate(head["classes"]))
            self.label2id = {name: i for i, name in self.id2label.items()}
        if kwargs.get("num_labels") not in (None, len(self.id2label or ())):
            self.id2label = self.label2id = None  # a head for other classes
        if self.problem_type is None:
            self.problem_type = PROBLEMS.get(head.get("task"))  # type: ignore
        self.encoder_config()  # raises for what cannot be, before memory is taken
        super().__post_init__(**kwargs)

    # Sizes under the names that transformers uses.
    hidden_size = property(lambda self: self.encoder_config().embed_dim)
    num_hidden_layers = property(lambda self: self.encoder_config().depth)
    num_attention_heads = property(lambda self: self.encoder_config().num_heads)

    def encoder_config(self) -> EncoderConfig:
        """The encoder's sizes and options."""
        fbank = {"fbank_mean": self.fbank_mean, "fbank_std": self.fbank_std}
        options = {**(self.encoder or {}), **fbank}
        return EncoderConfig.from_dict(options, "encoder of config.json")

    def head_config(self) -> HeadConfig:
        """The head, with the classes and the task of now."""
        multi_label = self.problem_type == PROBLEMS["multi_label"]
        options = {
            **(self.classifier or {}),
            "classes": [name for _, name in sorted((self.id2label or {}).items())],
            "task": "multi_label" if multi_label else "multi_class",
        }
        return HeadConfig.from_dict(options, "classifier of config.json")

    def to_diff_dict(self) -> dict[str, Any]:
        """The content of config.json: what `checkpoint.model_config` writes."""
        content = super().to_diff_dict()
        for name in ("transformers_version", "problem_type", "id2label", "label2id"):
            content.pop(name, None)
        if content.get("dtype") == "float32":
            del content["dtype"]
        content.update({name: getattr(self, name) for name in OURS})
        content["classifier"] = None
        if self.architectures == ["SSLAMModel"] or self.classifier is None:
            return content
        head = self.head_config()
        content["classifier"] = {**head.to_dict(), "classes": list(head.classes)}
        content["id2label"] = {str(i): name for i, name in enumerate(head.classes)}
        content["label2id"] = {name: i for i, name in enumerate(head.classes)}
        if self.problem_type not in (None, PROBLEMS[head.task]):
            content["problem_type"] = self.problem_type
        return content


class Waveforms(BatchFeature):
    """A batch of waveforms, which stay float32 whatever the model's type is.

    (In half precision a waveform would lose the bits that quiet audio consists of.)
    """

    def to(self, *args: Any, dtype: Any = None, **kwargs: Any) -> BatchFeature:
        """Move to a device; a dtype is passed over."""
        args = tuple(arg for arg in args if not isinstance(arg, torch.dtype))
        return super().to(*args, **kwargs) if args or kwargs else self


class SSLAMFeatureExtractor(SequenceFeatureExtractor):
    """Pad waveforms of 16 kHz to `input_values` (B, N) and `attention_mask` (B, N).

    The model computes the log-mel itself; padding has no effect on its output. Without
    the mask every clip counts as N samples long.
    """

    model_input_names = ["input_values", "attention_mask"]  # noqa: RUF012

    def __init__(
        self,
        feature_size: int = 1,
        sampling_rate: int = SAMPLE_RATE,
        padding_value: float = 0.0,
        return_attention_mask: bool = True,
        **kwargs: Any,
    ):
        kwargs["return_attention_mask"] = return_attention_mask
        super().__init__(feature_size, sampling_rate, padding_value, **kwargs)

    def __call__(
        self,
        raw_speech: np.ndarray | torch.Tensor | list,
        sampling_rate: int | None = None,
        padding: bool | str = True,
        return_tensors: str | None = None,
        **options: Any,
    ) -> Waveforms:
        """Make a batch; other arguments as for `pad` of transformers (in samples).

        Args:
            raw_speech: One mono clip (N,), or several: a list of them or (B, N). Floats
                in [-1, 1], or integers of `config.SCALES`, which are scaled to it.
            sampling_rate: Of `raw_speech`; give it, so that a wrong one is noticed.

        Raises:
            ValueError: Another rate, not mono, empty, or samples that are not finite
                or in the range of integers.
        """
        if sampling_rate not in (None, self.sampling_rate):
            raise ValueError(
                f"need audio of {self.sampling_rate} Hz, got {sampling_rate} Hz: "
                "resample it first (the pipeline and `SSLAM` do it themselves)"
            )
        if isinstance(raw_speech, (np.ndarray, torch.Tensor)):
            single = raw_speech.ndim < 2
        else:
            single = len(raw_speech) > 0 and np.ndim(raw_speech[0]) == 0
        clips = [raw_speech] if single else raw_speech
        padded = self.pad(
            BatchFeature({"input_values": [_mono(c, i) for i, c in enumerate(clips)]}),
            padding=padding,
            return_tensors="np" if padding else None,
            **options,
        )
        return Waveforms(dict(padded), tensor_type=return_tensors)


def _mono(audio: Any, number: int) -> np.ndarray:
    """One clip as float32 (N,)."""
    if isinstance(audio, torch.Tensor):
        audio = audio.detach().cpu()
        audio = (audio.float() if audio.is_floating_point() else audio).numpy()
    # A list of Python numbers is float audio, also where all of them are whole.
    audio = np.asarray(audio, np.float32 if isinstance(audio, list) else None)
    if audio.ndim != 1 or len(audio) == 0:
        raise ValueError(
            f"clip {number}: need mono audio of shape (samples,), got {audio.shape}"
        )
    audio = to_float(audio, f"clip {number}")
    check_values(float(audio.min()), float(audio.max()), f"clip {number}")
    return audio


@dataclass
class SSLAMModelOutput(ModelOutput):
    """Tokens of `SSLAMModel`: CLS, then the patches (time * 8 + frequency)."""

    last_hidden_state: torch.Tensor | None = None  # (B, 1+N, D), zero beyond the end
    pooler_output: torch.Tensor | None = None  # the CLS token (B, D)
    # If asked for: the patch embedding and every block's output, as the blocks pass
    # them on (gradients can be kept, of clips up to max_frames), so with what padding
    # gives.
    hidden_states: tuple[torch.Tensor, ...] | None = None
    token_mask: torch.Tensor | None = None  # (B, 1+N), True for a clip, not padding


class Misfit(ValueError, RuntimeError):
    """What transformers raises where we raise ValueError: both are caught."""


class SSLAMBlock(Block, GradientCheckpointingLayer):
    """A block that transformers' training arguments can have recomputed."""


class _Encoder(SSLAMEncoder):
    block = SSLAMBlock


class SSLAMPreTrainedModel(PreTrainedModel):
    """What both models share: an encoder, strict loading, types."""

    config_class = SSLAMConfig
    base_model_prefix = "encoder"  # of both models: freezing it leaves a head free
    main_input_name = "input_values"
    input_modalities = ["audio"]  # noqa: RUF012
    _supports_sdpa = True
    supports_gradient_checkpointing = True
    # accelerate passes over buffers of a module that it splits, as the positions are
    _no_split_modules = ["_Encoder"]  # noqa: RUF012
    _keep_in_fp32_modules_strict = ["positions", "log_mel"]  # noqa: RUF012

    def __init__(self, config: SSLAMConfig):
        super().__init__(config)
        self.encoder = _Encoder(config.encoder_config())
        # The log-mel and the positions are float32 in a model of any type.
        for name in ("mean", "std"):
            value = torch.tensor(getattr(config, f"fbank_{name}"), dtype=torch.float32)
            setattr(self.encoder.log_mel, name, value)

    @classmethod
    def from_pretrained(
        cls, *args: Any, output_loading_info: bool = False, **kwargs: Any
    ) -> Any:
        """As in transformers, but an encoder that does not fit is an error.

        Raises:
            ValueError: Names all entries that are missing or unknown, or one that holds
                NaN.
        """
        try:
            loaded: Any = super().from_pretrained(
                *args, output_loading_info=True, **kwargs
            )
        # shapes, values in config.json, the header of the weights
        except (TypeError, RuntimeError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:200]
            where = args[0] if args else "the model"
            raise Misfit(f"{where} does not fit together: {reason}") from error
        model, info = loaded
        stored = model.config.architectures
        stored = stored if isinstance(stored, (list, tuple)) else ()
        new_head = () if "SSLAMForAudioClassification" in stored else HEAD_KEYS
        missing = [k for k in info["missing_keys"] if not k.startswith(new_head)]
        unknown = info["unexpected_keys"]
        if missing or unknown:
            raise ValueError(
                f"{args[0] if args else 'the weights'} does not fit the model: missing "
                f"{', '.join(sorted(missing)) or 'nothing'}; unknown "
                f"{', '.join(sorted(unknown)) or 'nothing'}"
            )
        check_tensors(model.state_dict(), str(args[0] if args else "the model"))
        return (model, info) if output_loading_info else model

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any):
        """As in transformers, with the preprocessor_config.json that pipelines need."""
        result = super().save_pretrained(save_directory, *args, **kwargs)
        for path in Path(save_directory).glob("*.safetensors"):
            set_usual_mode(path)
        if not (Path(save_directory) / PREPROCESSOR_FILE).exists():
            SSLAMFeatureExtractor().save_pretrained(save_directory)
        return result

    @property
    def base_model(self) -> "SSLAMModel":
        """The model without its head, of the same weights."""
        if isinstance(self, SSLAMModel):
            return self
        with torch.device("meta"):
            model = SSLAMModel(copy.deepcopy(self.config))  # which a model may change
        model.config, model.training = self.config, self.training
        model.encoder = self.encoder
        return model

    def get_input_embeddings(self) -> nn.Module:
        """Where a clip becomes patches: PEFT lets gradients begin after it."""
        return self.encoder.patch_embed.proj

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the patch embedding."""
        self.encoder.patch_embed.proj = value  # type: ignore[assignment]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise a part of a new head as `SSLAMClassifier` does, and constants.

        (These functions pass over what was loaded; an encoder has initialised itself,
        but for what was computed where there was no memory.)
        """
        if isinstance(module, SSLAMEncoder):
            config = module.config
            steps = config.max_frames // PATCH_SIZE
            init.copy_(module.positions, sincos_positions(config.embed_dim, steps))
            init.constant_(module.log_mel.mean, self.config.fbank_mean)
            init.constant_(module.log_mel.std, self.config.fbank_std)
        parts = [getattr(self, name) for name in HEAD if hasattr(self, name)]
        if not any(module in part.modules() for part in parts):
            return
        buffers = module.named_buffers(recurse=False)
        for name, value in (*module.named_parameters(recurse=False), *buffers):
            if module is self.head and name == "weight":
                init.trunc_normal_(value, std=0.02)
            elif name == "prototypes":
                init.normal_(value, std=0.02)
            elif module is self.fc_norm and name in ("weight", "running_var"):
                init.ones_(value)
            else:
                init.zeros_(value)

    def _encode(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None,
        output_hidden_states: bool | None,
        output_attentions: bool | None,
        layer: int | str = -1,
        time_shifts: int | None = None,
    ) -> tuple[EncoderOutput, tuple[torch.Tensor, ...] | None]:
        """Tokens, see `SSLAMEncoder.hidden_states`, and those of all layers if asked.

        Raises:
            ValueError: A wrong shape, or padding that is not at the end; attentions are
                asked for.
        """
        if output_attentions or self.config.output_attentions:
            raise ValueError(
                "SSLAM has no attentions to give, torch computes attention in one "
                "piece: leave output_attentions out"
            )
        if attention_mask is None:
            attention_mask = torch.ones_like(input_values)
        if any(p.is_meta for p in self.encoder.parameters(recurse=False)):
            raise ValueError(
                "the encoder is offloaded as a whole, which SSLAM cannot run: give it "
                "a device in device_map, or leave device_map out"
            )
        mask, shape = attention_mask.bool(), tuple(input_values.shape)
        if mask.dim() != 2 or mask.shape != shape:
            raise ValueError(
                f"need input_values and attention_mask of shape (clips, samples), got "
                f"{shape} and {tuple(mask.shape)}: use SSLAMFeatureExtractor"
            )
        if not torch.compiler.is_compiling() and (mask[:, 1:] > mask[:, :-1]).any():
            raise ValueError("clips must be padded at the end: use padding_side right")
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        layer = "all" if output_hidden_states else layer
        out = self.encoder.hidden_states(input_values, mask.sum(1), layer, time_shifts)
        if not output_hidden_states:
            return out, None
        return out, tuple(out.layers)


class SSLAMModel(SSLAMPreTrainedModel):
    """The encoder: waveforms in, tokens out."""

    _keys_to_ignore_on_load_unexpected = [  # noqa: RUF012
        rf"^{key}" for key in HEAD_KEYS
    ]

    def __init__(self, config: SSLAMConfig):
        super().__init__(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> SSLAMModelOutput:
        """Encode waveforms.

        Args:
            input_values: (B, samples) at 16 kHz, padded at the end.
            attention_mask: 1 for samples of the clip, 0 for padding (B, samples).
            output_hidden_states: Also return every layer's tokens.
            output_attentions: Refused.
        """
        out, layers = self._encode(
            input_values, attention_mask, output_hidden_states, output_attentions
        )
        mask = F.pad(out.real(), (1, 0), value=True)
        last = zero_padding(out.last, mask.sum(1))
        return SSLAMModelOutput(last, last[:, 0], layers, mask)


class SSLAMForAudioClassification(SSLAMPreTrainedModel):
    """Encoder, pooling and head of an `SSLAMClassifier`; labels make it give a loss."""

    def __init__(self, config: SSLAMConfig):
        super().__init__(config)
        head = config.head_config()
        names = ("pooling", "head_norm", "weighted_layers", "prototypes_per_class")
        config.classifier = head.to_dict(names)
        classifier = SSLAMClassifier(self.encoder, head)
        self.pooling, self.fc_norm = classifier.pooling, classifier.fc_norm
        self.head = classifier.head
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Classify waveforms.

        Args:
            input_values, attention_mask, output_hidden_states, output_attentions: See
                `SSLAMModel`.
            labels: Class numbers (B,), or 0 and 1 for every class (B, C), by the
                config's `problem_type`, which the labels tell if it is not set.
            kwargs: For the loss function of transformers.
        """
        out, layers = self._encode(
            input_values,
            attention_mask,
            output_hidden_states,
            output_attentions,
            self.pooling.layer,
            time_shifts=1,
        )
        logits = self.head(self.fc_norm(self.pooling(out)))
        loss = None
        if labels is not None:
            if self.config.problem_type == PROBLEMS["multi_label"]:
                labels = labels.to(logits.dtype)
            loss = self.loss_function(labels, logits, self.config, **kwargs)
        return SequenceClassifierOutput(loss, logits, layers)


class AudioFilePipeline(AudioClassificationPipeline):
    """The pipeline of transformers, which reads audio files without ffmpeg.

    `pipeline(..., pipeline_class=AudioFilePipeline)` reads files and bytes as this
    package does everywhere: any rate, channels averaged, damaged files refused.
    """

    def preprocess(self, inputs: Any, **kwargs: Any) -> Any:
        """Read files and bytes, then go on as ever."""
        if isinstance(inputs, (bytes, bytearray)):
            inputs = io.BytesIO(inputs)
        elif str(inputs).startswith(("http://", "https://")):
            return super().preprocess(inputs, **kwargs)
        if isinstance(inputs, (str, Path, io.BytesIO)):
            resampler = self.model.config.encoder_config().resampler
            samples = read_audio(inputs, resampler)  # type: ignore[arg-type]
            inputs = {"raw": samples, "sampling_rate": SAMPLE_RATE}
        return super().preprocess(inputs, **kwargs)


AutoConfig.register(SSLAMConfig.model_type, SSLAMConfig, exist_ok=True)
AutoModel.register(SSLAMConfig, SSLAMModel, exist_ok=True)
AutoModelForAudioClassification.register(
    SSLAMConfig, SSLAMForAudioClassification, exist_ok=True
)
AutoFeatureExtractor.register(SSLAMConfig, SSLAMFeatureExtractor, exist_ok=True)
# The pipeline looks here and would log an error about a model that it does not know.
cast(dict, MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES)[
    SSLAMConfig.model_type
] = SSLAMForAudioClassification.__name__
