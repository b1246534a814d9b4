"""SSLAM inside ESPnet's own tasks: encoder, front end, and what importing changes.

`_hook` calls `register` for every module of tasks. `sslam` becomes one of the choices
that `OFFERED` names. A task with such a choice builds its models
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
import torch.nn.functional as F
from espnet2.asr.encoder.abs_encoder import AbsEncoder
from espnet2.asr.frontend.abs_frontend import AbsFrontend
from espnet2.asr.specaug.specaug import SpecAug
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
from espnet2_sslam.features import zero_padding
from espnet2_sslam.integrations.ctc import FrameCheck
from espnet2_sslam.units import FRAME_SHIFT, NUM_MEL_BINS, PATCH_SIZE, SAMPLE_RATE

NAME = "sslam"
_weights_follow = ContextVar("weights_follow", default=False)

LENGTHS = ("patches", "center", "ceil")

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


class _Lengths:
    """Makes outputs as long as a host's labels.

    Args:
        output_length: "patches": whole patches; else exactly "center" (1 + N // hop, as
            torch.stft counts and ESPnet's diarization labels) or "ceil" (ceil(N / hop))
            of N samples, the hop being 2560 / time_shifts / upsample.
        config: Of the encoder.

    Raises:
        ValueError: A length that the encoder's other options leave without meaning.
    """

    def __init__(self, output_length: str, config: EncoderConfig):
        check_choice("output_length", output_length, LENGTHS)
        self.rule = output_length
        steps = config.time_shifts * config.upsample
        self.hop, rest = divmod(PATCH_SIZE * FRAME_SHIFT, steps)
        fits = config.input_size == 1 and config.freq != "flatten" and not rest
        if self.rule != "patches" and not (
            fits and not config.cls_token and config.layer != "all"
        ):
            raise ValueError(
                f"output_length {output_length} needs waveforms (input_size 1), freq "
                "mean or concat, cls_token false, one layer and an upsample (times "
                f"time_shifts) that divides {PATCH_SIZE * FRAME_SHIFT}"
            )

    def fit(
        self, out: torch.Tensor, olens: torch.Tensor, samples: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Cut (B, L, D), or repeat its last step, for clips of so many samples (B,)."""
        if self.rule == "patches":
            return out, olens
        center = self.rule == "center"
        wanted = 1 + samples // self.hop if center else -(-samples // self.hop)
        wanted = wanted.to(olens)
        index = torch.arange(int(wanted.max()), device=out.device)
        index = torch.minimum(index, olens[:, None] - 1)
        out = out.gather(1, index[..., None].expand(-1, -1, out.shape[-1]))
        return zero_padding(out, wanted), wanted


class PretrainedEncoder(SSLAMEncoder):
    """SSLAMEncoder as `encoder: sslam` in ESPnet's tasks.

    Args:
        input_size: 1 for waveforms, 128 for un-normalised log-mel.
        pretrained: Where the weights come from, anything that `checkpoint.load_model`
            takes; None: random ones. The sizes are the source's.
        specaug_conf: Options of ESPnet's SpecAug, which masks the normalised log-mel in
            training; None: no SpecAugment.
        output_length: See `_Lengths`.
        options: Fields of `EncoderConfig`.

    Raises:
        CheckpointError: The source cannot be read, or has other sizes than those given.
        ValueError: As `SSLAMEncoder`; SpecAugment of a frozen encoder.
    """

    def __init__(
        self,
        input_size: int = 1,
        *,
        pretrained: str | None = None,
        specaug_conf: dict | None = None,
        output_length: str = "patches",
        **options: Any,
    ):
        if input_size not in (1, NUM_MEL_BINS):
            raise ValueError(
                f"input_size must be 1 (waveform) or {NUM_MEL_BINS} (log-mel) for "
                f"encoder sslam, got {input_size}: give input_size: 1 in the "
                "configuration (in diar, lid and spk frontend: null, too)"
            )
        source = Pretrained(pretrained, options)
        super().__init__(input_size=input_size, **source.options)
        self.lengths = _Lengths(output_length, self.config)
        self.specaug = None
        if specaug_conf is not None:
            check_keywords(SpecAug, specaug_conf, "encoder_conf specaug_conf")
            if self.config.freeze:
                raise ValueError("specaug_conf needs a trained encoder: freeze is true")
            self.specaug = SpecAug(**specaug_conf)
        self.pretrained = source
        source.fill(self)

    def fbank(
        self, xs_pad: torch.Tensor, ilens: torch.Tensor, *args: Any, **options: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `SSLAMEncoder.fbank`, masked in training by `specaug_conf`."""
        fbank, frames = super().fbank(xs_pad, ilens, *args, **options)
        if self.specaug is None or not self.training:
            return fbank, frames
        longest = int(frames.max())
        masked, _ = self.specaug(fbank[:, :longest], frames)
        masked = F.pad(masked, (0, 0, 0, fbank.shape[1] - longest))
        inside = torch.arange(fbank.shape[1], device=frames.device) < frames[:, None]
        return torch.where(inside[..., None], masked, fbank), frames

    def forward(
        self, xs_pad: torch.Tensor, ilens: torch.Tensor, *args: Any, **options: Any
    ) -> tuple[torch.Tensor | tuple, torch.Tensor, None]:
        """As `SSLAMEncoder.forward`, as long as `output_length` says."""
        out, olens, states = super().forward(xs_pad, ilens, *args, **options)
        if isinstance(out, torch.Tensor):
            out, olens = self.lengths.fit(out, olens, ilens)
        return out, olens, states

    def reload_pretrained_parameters(self) -> None:
        """Load the weights again, after ESPnet's `--init` has overwritten them."""
        self.pretrained.fill(self)


class ClipEncoder(PretrainedEncoder):
    """`encoder: sslam` in spk and lid, which hand over no lengths.

    All of a batch counts as audio, padding too: where clips differ in length, as in
    evaluation by whole utterances in batches, `frontend: sslam` is the exact one.
    """

    def forward(self, xs_pad: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Waveforms (B, samples) -> (B, output_size, L), for ESPnet's poolings."""
        full = torch.full((len(xs_pad),), xs_pad.shape[1], device=xs_pad.device)
        out, *_ = super().forward(xs_pad, full)
        if isinstance(out, tuple):
            raise ValueError("layer: all is not for the tasks spk and lid: give one")
        return out.transpose(1, 2)


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

    A step is 160 ms long. `time_shifts` makes steps finer, at so many times the cost;
    `upsample` repeats them: that makes room for CTC's labels, but the copies are the
    same vector, which the encoder above tells apart by their positions alone. Give it
    `input_layer: linear` so that it does not subsample once more.

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
        output_length: See `_Lengths`.
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
        output_length: str = "patches",
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
        self.lengths = _Lengths(output_length, self.encoder.config)
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
        return self.lengths.fit(*self.encoder.shaped(tokens, out.steps), input_lengths)

    def reload_pretrained_parameters(self) -> None:
        """Load the weights again, after ESPnet's `--init` has overwritten them."""
        self.pretrained.fill(self.encoder)


FRONTEND = {
    **dict.fromkeys(SIZES),
    "drop_path": 0.0,
    "target_frames": None,
    "time_shifts": 1,
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


ESPNET2, ESPNET3_ASR = "espnet2.tasks.", "espnet3.systems.esp2_asr.task"
_BOTH = {"encoder": PretrainedEncoder, "frontend": SSLAMFrontend}
_CLIPS = {"encoder": ClipEncoder, "frontend": SSLAMFrontend}
_FRONTEND = {"frontend": SSLAMFrontend}
_TASKS = ("asr", "cls", "diar", "s2t", "slu", "st")
_FRONTEND_TASKS = ("aqa", "asr_transducer", "s2st", "s2t_ctc")
# Module of tasks -> the choices that can be `sslam`: those that were seen to train.
OFFERED: dict[str, dict[str, type]] = {
    **{ESPNET2 + task: _BOTH for task in _TASKS},
    **{ESPNET2 + task: _CLIPS for task in ("lid", "spk")},
    **{ESPNET2 + task: _FRONTEND for task in _FRONTEND_TASKS},
    ESPNET3_ASR: _BOTH,
}


def register(module: ModuleType) -> None:
    """Make `sslam` known to a module of ESPnet's tasks; again is harmless.

    Raises:
        ImportError: Another class has the name already.
    """
    offered = OFFERED.get(module.__name__, {})
    for variable, value in list(vars(module).items()):
        if isinstance(value, ClassChoices) and value.name in offered:
            if value.base_type not in (AbsEncoder, AbsFrontend):
                continue
            ours = offered[value.name]
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
        ours = choices.classes.get(NAME) if choices.name in _BOTH else None
        if ours is not None and getattr(args, choices.name, None) == NAME:
            option = f"{choices.name}_conf"
            conf = getattr(args, option, None) or {}
            check_keywords(ours, conf, option, ["input_size"])
            if getattr(args, "label_aggregator", None):  # diar: frames like its labels
                conf = {"output_length": "center", **conf}
            setattr(args, option, with_sizes(conf))
            if choices.name == "encoder" and not _weights_follow.get():
                _check_waveform(args)
            is_frozen = choices.name == "frontend" and conf.get("freeze", True)
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


def _check_waveform(args: argparse.Namespace) -> None:
    """Refuse what ESPnet would do to the waveform on its way to the encoder.

    Raises:
        ValueError: `normalize`, `specaug` or another sampling rate, by name.
    """
    if getattr(args, "input_size", None) != 1:
        return
    normalize = getattr(args, "normalize", None)
    if normalize is not None:
        raise ValueError(
            f"normalize {normalize} would change the waveform that encoder sslam gets: "
            "give normalize: null in the configuration and --feats_normalize none to "
            "asr.sh, st.sh and the like"
        )
    if getattr(args, "specaug", None) is not None:
        raise ValueError(
            f"specaug {args.specaug} would mask the waveform that encoder sslam gets: "
            "give specaug: null, and its options as encoder_conf specaug_conf, which "
            "mask the log-mel"
        )
    for option, key in ("frontend_conf", "fs"), ("preprocessor_conf", "sample_rate"):
        rate = (getattr(args, option, None) or {}).get(key, SAMPLE_RATE)
        if _hertz(rate) != SAMPLE_RATE:
            raise ValueError(
                f"encoder sslam needs audio at {SAMPLE_RATE} Hz, {option} {key} is "
                f"{rate}: format the data to 16 kHz (asr.sh --fs 16k)"
            )


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
