"""SSLAM inside ESPnet's own tasks: encoder, front end, and what importing changes.

`_hook` calls `register` for every module of espnet2.tasks. `sslam` becomes one of the
choices of audio encoders and frontends. A task with such a choice builds its models
through `_build_model` below, which touches only those with our encoder in them: the
sizes of `pretrained` are written into the configuration, and CTC is watched.
`AbsTask.build_model_from_file` needs no source of pre-trained weights: they are read
when a training begins, never later.
"""

import argparse
import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial, wraps
from types import ModuleType
from typing import Any

import torch
from espnet2.asr.encoder.abs_encoder import AbsEncoder
from espnet2.asr.frontend.abs_frontend import AbsFrontend
from espnet2.tasks import abs_task
from espnet2.tasks.abs_task import AbsTask
from espnet2.train.class_choices import ClassChoices
from torch import nn

from espnet2_sslam.checkpoint import CheckpointError, load_model
from espnet2_sslam.classifier import weighted_sum
from espnet2_sslam.config import (
    SIZES,
    EncoderConfig,
    check_choice,
    check_keywords,
)
from espnet2_sslam.encoder import SSLAMEncoder
from espnet2_sslam.integrations.ctc import FrameCheck
from espnet2_sslam.units import SAMPLE_RATE

NAME = "sslam"
_weights_follow = ContextVar("weights_follow", default=False)

AbsEncoder.register(SSLAMEncoder)


@contextmanager
def weights_follow() -> Iterator[None]:
    """Inside, models are built without their pre-trained weights.

    For a model whose trained weights are loaded next: the source may be gone by then.
    """
    token = _weights_follow.set(True)
    try:
        yield
    finally:
        _weights_follow.reset(token)


class Pretrained:
    """The weights that `pretrained` names, and the sizes that come with them.

    Args:
        source: Anything that `checkpoint.load_model` takes, or None.
        options: Options of the encoder; sizes left out or None are the source's.

    Raises:
        CheckpointError: The source cannot be read, or has other sizes than those given.
    """

    def __init__(self, source: str | None, options: dict[str, Any]):
        self.source = None if _weights_follow.get() else source
        self.state: dict[str, torch.Tensor] | None = None
        self.options = {
            k: v for k, v in options.items() if v is not None or k not in SIZES
        }
        if self.source is None:
            return
        encoder = self._read()
        self.state = encoder.state_dict()
        for name, value in encoder.config.to_dict(SIZES).items():
            if self.options.setdefault(name, value) != value:
                raise CheckpointError(
                    f"{name} is {options[name]} in the configuration, but {value} in "
                    f"pretrained {self.source}: leave {name} out"
                )

    def fill(self, encoder: SSLAMEncoder) -> None:
        """Load the source's weights, if there is one.

        Raises:
            ValueError: The fbank statistics given differ, see `features.LogMel`.
        """
        if self.source is None:
            return
        encoder.load_state_dict(self.state or self._read().state_dict())
        self.state = None  # a copy of all weights would stay in memory
        logging.info("pre-trained weights of %s loaded", self.source)

    def _read(self) -> SSLAMEncoder:
        """The encoder of the source; errors name the option that asked for it."""
        assert self.source is not None
        try:
            return load_model(self.source).encoder
        except (ValueError, OSError) as error:
            raise CheckpointError(f"pretrained: {error}") from error


class PretrainedEncoder(SSLAMEncoder):
    """SSLAMEncoder as `encoder: sslam` in ESPnet's tasks.

    Args:
        input_size: 1 for waveforms, 128 for un-normalised log-mel.
        pretrained: Where the weights come from, anything that `checkpoint.load_model`
            takes; None: random ones. The sizes are the source's.
        options: Fields of `EncoderConfig`.

    Raises:
        CheckpointError: The source cannot be read, or has other sizes than those given.
        ValueError: As `SSLAMEncoder`.
    """

    def __init__(
        self, input_size: int = 1, *, pretrained: str | None = None, **options: Any
    ):
        source = Pretrained(pretrained, options)
        super().__init__(input_size=input_size, **source.options)
        self.pretrained = source
        source.fill(self)

    def reload_pretrained_parameters(self) -> None:
        """Load the weights again, after ESPnet's `--init` has overwritten them."""
        self.pretrained.fill(self)


def _show_options(cls: type, defaults: dict[str, Any], hidden: str = "") -> None:
    """Let `--print_config` and checks see the options that `**options` stands for."""
    own = inspect.signature(cls).parameters.values()
    shown = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=value)
        for name, value in defaults.items()
    ]
    # ESPnet gives input_size itself: a default would get into encoder_conf, and clash
    kept = [
        p.replace(default=p.empty) if p.name == hidden else p
        for p in own
        if p.kind != p.VAR_KEYWORD
    ]
    cls.__signature__ = inspect.Signature([*kept, *shown])  # type: ignore[attr-defined]


_show_options(
    PretrainedEncoder,
    {k: v for k, v in vars(EncoderConfig()).items() if k != "input_size"},
    hidden="input_size",
)


class SSLAMFrontend(AbsFrontend):
    """Waveform to features: a learnt weighted sum over the layers of SSLAM.

    A step is 160 ms long and `upsample` repeats it: that makes room for CTC's labels,
    but the copies of a step are the same vector and say nothing finer than 160 ms.
    The encoder above tells them apart by their positions; give it `input_layer: linear`
    so that it does not subsample once more. A resolution that is really finer would
    need passes over the shifted waveform, at so many times the cost.

    Args:
        fs: Sampling rate that ESPnet's recipes give, in Hz or as "16k".
        pretrained: Where the weights come from, anything that `checkpoint.load_model`
            takes; None: random ones, of the sizes below.
        freeze: Keep SSLAM's weights and evaluation mode; only the weights of the layers
            are learnt. False: everything is trained.
        layer: The one layer to use, 0 (patch embedding) to `depth`, -1 the last;
            None: all, with learnt softmax weights, equal at first.
        freq: "concat": the 8 frequency bands of a step side by side (8 * D channels);
            "mean": their mean (D channels).
        upsample: Repeat every step so many times.
        options: Those of `FRONTEND`, as for `SSLAMEncoder`; sizes left out are those of
            `pretrained`, else ViT-Base's.

    Raises:
        CheckpointError: The source cannot be read, or has other sizes than those given.
        ValueError: Another sampling rate than 16 kHz; an option outside its range.

    Source: the weighted sum is SUPERB's (s3prl, nn/upstream.py, Featurizer).
    """

    def __init__(
        self,
        fs: int | str = SAMPLE_RATE,
        *,
        pretrained: str | None = None,
        freeze: bool = True,
        layer: int | None = None,
        freq: str = "concat",
        upsample: int = 1,
        **options: Any,
    ):
        super().__init__()
        if _hertz(fs) != SAMPLE_RATE:
            raise ValueError(
                f"frontend sslam needs audio at {SAMPLE_RATE} Hz, fs is {fs}: format "
                "the data to 16 kHz (asr.sh --fs 16k)"
            )
        check_choice("freq", freq, ("concat", "mean"))
        check_keywords(SSLAMFrontend, options, "frontend_conf")
        given = {"freeze": freeze, "freq": freq, "upsample": upsample, **options}
        source = Pretrained(pretrained, given)
        self.encoder = SSLAMEncoder(**source.options)
        self.pretrained = source
        source.fill(self.encoder)
        depth = self.encoder.config.depth
        if layer is not None and not -1 <= layer <= depth:
            raise ValueError(
                f"layer must be in -1..{depth}, or left out for a weighted sum of all, "
                f"got {layer}"
            )
        self.layer = depth if layer == -1 else layer
        if self.layer is None:
            self.layer_weights = nn.Parameter(torch.zeros(depth + 1))
        else:  # what gets no gradient must not ask for one: DDP would wait for it
            self.encoder.blocks[self.layer :].requires_grad_(False)

    def output_size(self) -> int:
        """Channels of the features."""
        return self.encoder.output_size()

    def forward(
        self, input: torch.Tensor, input_lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Features of a batch.

        Args:
            input: Waveforms (B, samples) at 16 kHz in [-1, 1].
            input_lengths: Samples of each clip (B,).

        Returns:
            (B, L, output_size), zero beyond a clip's end, and lengths (B,).
        """
        layer = "all" if self.layer is None else self.layer
        out = self.encoder.hidden_states(input, input_lengths, layer)
        tokens = out.last
        if self.layer is None:
            tokens = weighted_sum(out.layers, self.layer_weights)
        return self.encoder.shaped(tokens, out.steps)

    def reload_pretrained_parameters(self) -> None:
        """Load the weights again, after ESPnet's `--init` has overwritten them."""
        self.pretrained.fill(self.encoder)


FRONTEND = {
    **dict.fromkeys(SIZES),
    "drop_path": 0.0,
    "target_frames": None,
    "fbank_mean": None,
    "fbank_std": None,
    "override_fbank_stats": False,
}
_show_options(SSLAMFrontend, FRONTEND)


def _hertz(fs: int | str) -> float:
    """A sampling rate given as 16000, "16000", "16k" or "16 kHz"."""
    text = str(fs).lower().replace(" ", "").removesuffix("hz")
    scale = 1000 if text.endswith("k") else 1
    try:
        return float(text.removesuffix("k")) * scale
    except ValueError:
        raise ValueError(f"fs must be a rate such as 16000, got {fs!r}") from None


OURS = {AbsEncoder: PretrainedEncoder, AbsFrontend: SSLAMFrontend}


def register(module: ModuleType) -> None:
    """Make `sslam` known to a module of espnet2.tasks; again is harmless.

    Raises:
        ImportError: Another class has the name already.
    """
    for variable, value in list(vars(module).items()):
        if isinstance(value, ClassChoices) and value.base_type in OURS:
            ours = OURS[value.base_type]
            known = value.classes.setdefault(NAME, ours)
            if known is not ours:
                raise ImportError(
                    f"{module.__name__}.{variable} has another class named {NAME} "
                    f"({known.__module__}.{known.__qualname__}): remove one of the two"
                )
        elif isinstance(value, type) and issubclass(value, AbsTask):
            _wrap(value, "build_model", _build_model)
            _wrap(value, "build_model_from_file", _build_model_from_file)


def _wrap(task: type, name: str, wrapper: Callable) -> None:
    """Replace a class method that the task itself defines, once."""
    original = vars(task).get(name)
    if not isinstance(original, classmethod) or original.__isabstractmethod__:
        return
    if hasattr(original.__func__, "by_sslam"):
        return

    @wraps(original.__func__)
    def wrapped(cls, *args, **kwargs):
        return wrapper(partial(original.__func__, cls), cls, *args, **kwargs)

    wrapped.by_sslam = True  # type: ignore[attr-defined]
    setattr(task, name, classmethod(wrapped))


def _build_model(build: Callable, cls: type, args: argparse.Namespace) -> Any:
    """Build a model; ours gets its sizes into `args`, and CTC is watched."""
    for choices in cls.class_choices_list:
        if getattr(args, choices.name, None) == NAME and choices.base_type in OURS:
            option = f"{choices.name}_conf"
            conf = getattr(args, option, None) or {}
            check_keywords(OURS[choices.base_type], conf, option, ["input_size"])
            setattr(args, option, with_sizes(conf))
            is_frozen = choices.base_type is AbsFrontend and conf.get("freeze", True)
            loaded = conf.get("pretrained") or getattr(args, "init_param", None)
            if is_frozen and not loaded:
                logging.warning(
                    "frontend sslam is random and frozen: give frontend_conf."
                    "pretrained, or freeze: false to train it"
                )
    model = build(args)
    if any(isinstance(module, SSLAMEncoder) for module in model.modules()):
        for module in model.modules():
            # ESPnet's CTC, by what it has: its place differs between versions
            if hasattr(module, "ctc_lo") and hasattr(module, "ctc_loss"):
                module.register_forward_pre_hook(partial(_watch, FrameCheck()))
    return model


def _watch(watch: FrameCheck, ctc: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    """Hook before a CTC: (encoder output, its lengths, labels, their lengths)."""
    if len(inputs) >= 4:
        watch.check(inputs[2], inputs[3], inputs[1])


def with_sizes(conf: dict[str, Any]) -> dict[str, Any]:
    """The options of an encoder or frontend with the sizes of their `pretrained`."""
    source = conf.get("pretrained")
    if source is None or _weights_follow.get():
        return conf
    return {**conf, **Pretrained(source, conf).options}


def _build_model_from_file(
    build: Callable, cls: type, config_file=None, model_file=None, *args, **kwargs
) -> Any:
    """Build a trained model: nothing but its own files is needed."""
    if model_file is None:
        return build(config_file, model_file, *args, **kwargs)
    with weights_follow():
        return build(config_file, model_file, *args, **kwargs)


register(abs_task)  # the hook could not, while this module was imported
