"""SSLAMEncoder and SSLAMClassifier as models of Hugging Face transformers.

Shapes: B clips, N patches, D channels, C classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import ModelOutput, SequenceClassifierOutput

from espnet2_sslam.checkpoint import PREPROCESSOR_FILE
from espnet2_sslam.classifier import Pooling
from espnet2_sslam.encoder import NORM_EPS, SSLAMEncoder
from espnet2_sslam.features import zero_padding
from espnet2_sslam.integrations.huggingface.config import SSLAMConfig
from espnet2_sslam.integrations.huggingface.extractor import SSLAMFeatureExtractor
from espnet2_sslam.units import PATCHES_PER_STEP

HEAD_KEYS = ("fc_norm.", "head.", "pooling.")


@dataclass
class SSLAMModelOutput(ModelOutput):
    """What `SSLAMModel` returns.

    Args:
        last_hidden_state: Tokens (B, 1+N, D): CLS, then the patches (time * 8 +
            frequency); zero beyond a clip's end.
        pooler_output: The CLS token (B, D).
        hidden_states: If asked for: the patch embedding and every block's output.
        token_mask: True for the tokens of a clip, False for padding (B, 1+N).
    """

    last_hidden_state: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    token_mask: torch.Tensor | None = None


class SSLAMPreTrainedModel(PreTrainedModel):
    """What both models share: an encoder, strict loading, types, checkpointing."""

    config_class = SSLAMConfig
    base_model_prefix = "sslam"  # no such attribute: both models hold `encoder`
    main_input_name = "input_values"
    input_modalities = ("audio",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["Block"]
    _keep_in_fp32_modules_strict = ["positions", "log_mel"]

    def __init__(self, config: SSLAMConfig):
        super().__init__(config)
        self.encoder = SSLAMEncoder(
            fbank_mean=config.fbank_mean, fbank_std=config.fbank_std, **config.encoder
        )
        log_mel = self.encoder.log_mel
        log_mel.mean = torch.tensor(config.fbank_mean, dtype=torch.float32)
        log_mel.std = torch.tensor(config.fbank_std, dtype=torch.float32)
        # The log-mel and the positions are float32 in a model of any type.
        for module in (self.encoder.patch_embed, self.encoder.norm):
            module.register_forward_pre_hook(_to_type_of_weights)

    @classmethod
    def from_pretrained(
        cls, *args: Any, output_loading_info: bool = False, **kwargs: Any
    ):
        """As in transformers, but an encoder that does not fit is an error.

        Raises:
            ValueError: Names all entries that are missing or unknown.
        """
        model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        new_head = "SSLAMForAudioClassification" not in (
            model.config.architectures or ()
        )
        missing = {
            key
            for key in info["missing_keys"]
            if not (new_head and key.startswith(HEAD_KEYS))
        }
        unknown = set(info["unexpected_keys"])
        if missing or unknown:
            raise ValueError(
                f"{args[0] if args else 'the weights'} does not fit the model: missing "
                f"{', '.join(sorted(missing)) or 'nothing'}; unknown "
                f"{', '.join(sorted(unknown)) or 'nothing'}"
            )
        return (model, info) if output_loading_info else model

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any):
        """As in transformers, with the preprocessor_config.json that pipelines need."""
        result = super().save_pretrained(save_directory, **kwargs)
        if not (Path(save_directory) / PREPROCESSOR_FILE).exists():
            SSLAMFeatureExtractor().save_pretrained(save_directory)
        return result

    def _apply(self, fn: Callable, recurse: bool = True):
        """`.half()`, `.to(...)`: buffers follow to the device, but stay float32."""
        modules = (self.encoder, self.encoder.log_mel)
        kept = [(m, name, value) for m in modules for name, value in m._buffers.items()]
        super()._apply(fn, recurse)
        for module, name, value in kept:
            moved = module._buffers[name]
            if value.dtype == torch.float32 != moved.dtype:
                module._buffers[name] = value.to(moved.device)
        return self

    def _set_gradient_checkpointing(
        self,
        enable: bool = True,
        gradient_checkpointing_func: Callable = checkpoint,
        every_n_layers: int = 1,
    ) -> None:
        """Compute blocks again in the backward pass instead of keeping their inside."""
        for number, block in enumerate(self.encoder.blocks):
            block.gradient_checkpointing = enable and number % every_n_layers == 0
            if block.gradient_checkpointing:
                plain = partial(type(block).forward, block)
                block.forward = partial(gradient_checkpointing_func, plain)
            else:
                block.__dict__.pop("forward", None)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise a part of a new head; an encoder has done it itself."""
        if not hasattr(self, "head"):
            return
        own = dict(module.named_parameters(recurse=False))
        if module is self.head:
            init.trunc_normal_(module.weight, std=0.02)
            init.zeros_(module.bias)
        elif module is self.fc_norm:
            for name, value in (*own.items(), *module.named_buffers()):
                ones = name in ("weight", "running_var")
                (init.ones_ if ones else init.zeros_)(value)
        elif module in (self.pooling, getattr(self.pooling, "attention", None)):
            for value in own.values():
                init.zeros_(value)

    def _tokens(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None,
        collect: bool,
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Tokens of every layer (or of the last) and the number of real ones (B,)."""
        lengths = _lengths(input_values, attention_mask)
        states, steps = self.encoder.hidden_states(
            input_values, lengths, collect=collect
        )
        return states, steps * PATCHES_PER_STEP + 1


class SSLAMModel(SSLAMPreTrainedModel):
    """The encoder: waveforms in, tokens out."""

    _keys_to_ignore_on_load_unexpected = [rf"^{key}" for key in HEAD_KEYS]

    def __init__(self, config: SSLAMConfig):
        super().__init__(config)
        self.post_init()

    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> SSLAMModelOutput | tuple:
        """Encode waveforms.

        Args:
            input_values: (B, samples) at 16 kHz, padded at the end.
            attention_mask: 1 for samples of the clip, 0 for padding (B, samples).
            output_hidden_states: Also return every layer's tokens.
            return_dict: False: a tuple.
        """
        collect = _or(output_hidden_states, self.config.output_hidden_states)
        states, lengths = self._tokens(input_values, attention_mask, collect)
        states = [zero_padding(state, lengths) for state in states]
        index = torch.arange(states[-1].shape[1], device=lengths.device)
        output = SSLAMModelOutput(
            last_hidden_state=states[-1],
            pooler_output=states[-1][:, 0],
            hidden_states=tuple(states) if collect else None,
            token_mask=index < lengths[:, None],
        )
        return (
            output if _or(return_dict, self.config.return_dict) else output.to_tuple()
        )


class SSLAMForAudioClassification(SSLAMPreTrainedModel):
    """Encoder, pooling and head; labels make it return a loss."""

    def __init__(self, config: SSLAMConfig):
        super().__init__(config)
        options = config.head_options()
        config.classifier = {**(config.classifier or {}), **options}
        self.weighted_layers = options["weighted_layers"]
        states = self.encoder.config.depth + 1 if self.weighted_layers else 1
        self.pooling = Pooling(
            options["pooling"], self.encoder.config.embed_dim, states
        )
        width = self.pooling.output_size
        eps = options.get("head_norm_eps", NORM_EPS)
        self.fc_norm = nn.LayerNorm(width, eps=eps)
        if options["head_norm"] == "batch":
            self.fc_norm = nn.BatchNorm1d(width, eps=eps, affine=False)
        self.head = nn.Linear(width, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput | tuple:
        """Classify waveforms.

        Args:
            input_values, attention_mask, output_hidden_states, return_dict: See
                `SSLAMModel`.
            labels: Class numbers (B,), or 0 and 1 for every class (B, C), by the
                config's `problem_type`, which the labels tell if it is not set.
            kwargs: For the loss function of transformers.
        """
        wanted = _or(output_hidden_states, self.config.output_hidden_states)
        states, lengths = self._tokens(
            input_values, attention_mask, wanted or self.weighted_layers
        )
        index = torch.arange(states[0].shape[1] - 1, device=lengths.device)
        chosen = states if self.weighted_layers else states[-1:]
        pooled = self.pooling(chosen, index < (lengths - 1)[:, None])
        logits = self.head(self.fc_norm(pooled))
        loss = None
        if labels is not None:
            many = self.config.problem_type == "multi_label_classification"
            labels = labels.to(logits.dtype) if many else labels
            loss = self.loss_function(labels, logits, self.config, **kwargs)
        if wanted:
            states = tuple(zero_padding(state, lengths) for state in states)
        output = SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=states if wanted else None
        )
        return (
            output if _or(return_dict, self.config.return_dict) else output.to_tuple()
        )


def _or(given: bool | None, default: bool) -> bool:
    """An option of the call, else the configuration's."""
    return default if given is None else given


def _to_type_of_weights(module: nn.Module, args: tuple) -> tuple:
    """Hook: cast the input to the type of the module's weights."""
    return (args[0].to(next(module.parameters()).dtype),)


def _lengths(
    input_values: torch.Tensor, attention_mask: torch.Tensor | None
) -> torch.Tensor:
    """Samples of each clip (B,).

    Raises:
        ValueError: A wrong shape, or padding that is not at the end.
    """
    if input_values.dim() != 2:
        raise ValueError(
            "need input_values of shape (clips, samples), got "
            f"{tuple(input_values.shape)}"
        )
    if attention_mask is None:
        return torch.full_like(input_values[:, 0], input_values.shape[1]).long()
    mask = attention_mask.bool()
    if mask.shape != input_values.shape:
        raise ValueError(
            f"attention_mask has shape {tuple(mask.shape)}, input_values "
            f"{tuple(input_values.shape)}: use SSLAMFeatureExtractor"
        )
    if not torch.compiler.is_compiling() and bool((mask[:, 1:] > mask[:, :-1]).any()):
        raise ValueError("clips must be padded at the end: use padding_side right")
    return mask.sum(1)
