"""What may be given: sizes and options of encoder and head as objects; audio samples.

Everything that builds a model, writes it to a file or reads it from one shares these.
A YAML section becomes one with `from_dict`, which names the key that nobody knows.
"""

import dataclasses
import inspect
import logging
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, get_args

from espnet2_sslam.units import NUM_MEL_BINS, PATCH_SIZE, TIME_SHIFTS

# What weights fix: a model that takes weights over takes these from their source.
SIZES = ("embed_dim", "depth", "num_heads", "mlp_ratio", "max_frames")
STORED = (*SIZES, "target_frames", "resampler")  # in config.json
RESAMPLERS = ("sinc", "soxr")  # what resampler.py has; the first is the authors'
PROTOTYPICAL = ("prototypes", "gated")  # poolings by likeness to learnt prototypes
POOLINGS = ("cls", "mean", "concat", "attentive", "lin_softmax", *PROTOTYPICAL)
TASKS = ("multi_label", "multi_class")
HEAD_CHOICES = {
    "task": TASKS,
    "pooling": POOLINGS,
    "head_norm": ("layer", "batch", "none"),
    "weighted_layers": (False, True),
}
# Options of a training that do not decide what comes out: how it is run, logged and
# kept, how long it is, and where its lists and weights lie; what is in them does.
OPERATIONAL = re.compile(
    r"config|encoder_config|output_dir|resume|keep|version|required|distributed|"
    r"dry_run|collect_stats|write_collected_feats|print_config|ngpu|num_workers|"
    r"max_cache_fd|dist_.*|local_rank|multiprocessing_distributed|log_.*|"
    r"use_tensorboard|use_matplotlib|use_wandb|wandb_.*|create_graph_in_tensorboard|"
    r"num_att_plot|detect_anomaly|checkpoint_.*|keep_nbest_models|min_target_var|"
    r"min_prediction_var|collapse_from|max_epoch|patience|early_stopping_criterion|"
    r"compile|activation_checkpointing|use_tf32|cudnn_.*|unused_parameters|"
    r"gradient_as_bucket_view|.*_path_and_name_and_type|.*_shape_file|sample_weights|"
    r"init_param|max_bad|stall_minutes"
)
# Beyond, a file is damaged or made to take the machine's memory. 2**18 frames: 43 min.
LARGEST = {
    "embed_dim": 16_384,
    "depth": 512,
    "num_heads": 1024,
    "mlp_ratio": 64,
    "max_frames": 2**18,
    "target_frames": 2**18,
    "upsample": 160,
}
MOST_PROTOTYPES = 10_000  # of a class
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)


class _Config:
    """What both configurations can do."""

    @classmethod
    def from_dict(cls, options: Mapping[str, Any], where: str = "") -> Self:
        """Make one of a dictionary by the names of the fields.

        Args:
            options: A section of a YAML or JSON file.
            where: Its name, for the message.

        Raises:
            ValueError: A key that is no field, by name; an impossible value.
        """
        where = where or cls.__name__
        if not isinstance(options, Mapping):
            raise ValueError(f"{where} must hold names and values, got {options!r}")
        _refuse_unknown(where, options, _names(cls))
        for field in dataclasses.fields(cls):  # type: ignore[arg-type]
            if field.default is dataclasses.MISSING and field.name not in options:
                raise ValueError(f"{where} lacks the key {field.name}")
        return cls(**options)

    def replace(self, **changes: Any) -> Self:
        """The same with other values; raises as `from_dict`."""
        return self.from_dict({**self.to_dict(), **changes})

    def check_types(self) -> None:
        """Raise ValueError for a value of another type, or beyond what can be."""
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value, kinds = getattr(self, field.name), get_args(field.type)
            kinds = kinds or (field.type,)
            right = type(value) in kinds  # True is an int, too, but is not meant here
            if isinstance(value, (int, float)):
                right = right or (type(value) is int and float in kinds)
                largest = LARGEST.get(field.name, sys.float_info.max)
                right = right and abs(value) <= largest
            if not right:
                names = " or ".join(getattr(kind, "__name__", "") for kind in kinds)
                limit = f" of at most {LARGEST.get(field.name, 'any size')}"
                raise ValueError(
                    f"{field.name} must be {names}{limit}, got {str(value)[:40]!r}"
                )

    def to_dict(self, names: Iterable[str] | None = None) -> dict[str, Any]:
        """The fields of these names, all by default."""
        return {name: getattr(self, name) for name in (names or _names(type(self)))}


@dataclass(frozen=True)
class EncoderConfig(_Config):
    """Sizes and options of `SSLAMEncoder`.

    Args:
        input_size: 1 for waveforms at 16 kHz, 128 for un-normalised log-mel.
        embed_dim: Channels D (ViT-Base: 768).
        depth: Transformer blocks.
        num_heads: Attention heads.
        mlp_ratio: Feed-forward width over D.
        drop_path: Rate of the last block, rising linearly from 0 (training only).
        fbank_mean, fbank_std: See `features.LogMel`.
        override_fbank_stats: See `features.LogMel`.
        resampler: How audio at other rates came to 16 kHz in training, and must here:
            "sinc" (the authors' way) or "soxr".
        max_frames: Longest pass in frames (the position table); longer clips are
            encoded in chunks of this length. A multiple of 16.
        target_frames: Fixed clip length in frames, as in the paper: shorter clips are
            zero-padded and the padding is attended to, longer ones keep their first
            frames. None: every clip has its own length and padding is masked out.
        freq: What becomes of the 8 frequency patches of a time patch: "mean" (D per
            160 ms), "concat" (8 * D per 160 ms) or "flatten" (8 tokens per 160 ms).
        cls_token: Put the CLS token before the others (for clips longer than
            `max_frames` the mean over chunks; repeated to 8 * D for "concat").
        layer: Block whose output is returned: -1 the last, 0 the patch embedding,
            or "all": ESPnet's (last, [(layer, output), ...]).
        max_layer: Number of blocks to run; all by default.
        time_shifts: Encode the log-mel so many times (1, 2, 4, 8 or 16), each time from
            16 / time_shifts frames further on, and interleave the outputs: steps of
            160 / time_shifts ms that differ, at so many times the cost. What stands for
            a whole clip (CLS token, pooled vectors, labels) is of the first pass.
        upsample: Repeat every time step so many times: copies, which know nothing finer
            about the sound (`time_shifts` does).
        freeze: No gradient, and evaluation mode always.

    Raises:
        ValueError: An option outside its range.
    """

    input_size: int = 1
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    drop_path: float = 0.0
    fbank_mean: float | None = None
    fbank_std: float | None = None
    override_fbank_stats: bool = False
    resampler: str = "sinc"
    max_frames: int = 12_288
    target_frames: int | None = None
    freq: str = "mean"
    cls_token: bool = False
    layer: int | str = -1
    max_layer: int | None = None
    time_shifts: int = 1
    upsample: int = 1
    freeze: bool = False

    def __post_init__(self) -> None:
        self.check_types()
        object.__setattr__(self, "mlp_ratio", float(self.mlp_ratio))
        for name in ("embed_dim", "depth", "num_heads", "mlp_ratio", "upsample"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if self.fbank_std is not None and self.fbank_std <= 0:
            raise ValueError(f"fbank_std must be above 0, got {self.fbank_std}")
        kinds = f"input_size (1: waveforms, {NUM_MEL_BINS}: log-mel)"
        check_choice(kinds, self.input_size, (1, NUM_MEL_BINS))
        check_choice("resampler", self.resampler, RESAMPLERS)
        check_choice("freq", self.freq, ("mean", "concat", "flatten"))
        check_choice("time_shifts", self.time_shifts, TIME_SHIFTS)
        check_choice("layer", self.layer, ("all", *range(-1, self.depth + 1)))
        check_choice("max_layer", self.max_layer, (None, *range(1, self.depth + 1)))
        for name in ("max_frames", "target_frames"):
            frames = getattr(self, name)
            if frames is not None and (frames <= 0 or frames % PATCH_SIZE):
                raise ValueError(
                    f"{name} must be a positive multiple of {PATCH_SIZE}, got {frames}"
                )
        if (self.target_frames or 0) > self.max_frames:
            raise ValueError(
                f"target_frames {self.target_frames} is above max_frames "
                f"{self.max_frames}"
            )
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"need 0 <= drop_path < 1, got {self.drop_path}")
        # the position table has four parts
        for name, divisor in ("4", 4), (f"num_heads {self.num_heads}", self.num_heads):
            if self.embed_dim % divisor:
                raise ValueError(
                    f"embed_dim {self.embed_dim} is not a multiple of {name}"
                )

    @property
    def num_blocks(self) -> int:
        """Blocks that run: `max_layer`, else all."""
        return self.max_layer or self.depth


@dataclass(frozen=True)
class HeadConfig(_Config):
    """What a classifier is beside its encoder.

    Args:
        classes: Names of the C classes, in the order of the labels.
        task: "multi_label" (any number of labels per clip) or "multi_class" (one).
        pooling: See `classifier.Pooling`.
        head_norm: Before the linear head: "layer" norm, or "batch" norm without
            parameters, as is usual in linear evaluation since MAE, or "none".
        weighted_layers: Pool a learnt weighted sum of all layers, not the last one.
        prototypes_per_class: Prototypes of the poolings that have them, over C; they
            belong to no class.

    Raises:
        ValueError: An option outside its range; no class, or one twice.
    """

    classes: tuple[str, ...]
    task: str = "multi_label"
    pooling: str = "cls"
    head_norm: str = "layer"
    weighted_layers: bool = False
    prototypes_per_class: int = 20

    def __post_init__(self) -> None:
        for name, choices in HEAD_CHOICES.items():
            check_choice(name, getattr(self, name), choices)
        if isinstance(self.classes, str) or not isinstance(self.classes, Sequence):
            raise ValueError(f"classes must be a list of names, got {self.classes!r}")
        if not all(isinstance(name, str) for name in self.classes):
            raise ValueError(f"names of classes must be text, got {self.classes!r}")
        object.__setattr__(self, "classes", tuple(self.classes))
        if not self.classes or len(set(self.classes)) != len(self.classes):
            raise ValueError(
                f"need at least one class, each once, got {list(self.classes)}"
            )
        if self.task == "multi_class" and len(self.classes) < 2:
            raise ValueError(
                f"multi_class chooses between classes, got {list(self.classes)} alone: "
                "give two or more, or task multi_label"
            )
        number = self.prototypes_per_class
        if type(number) is not int or not 1 <= number <= MOST_PROTOTYPES:
            raise ValueError(
                f"need 1 <= prototypes_per_class <= {MOST_PROTOTYPES}, got {number!r}"
            )
        if self.pooling == "gated" and self.weighted_layers:
            raise ValueError("pooling: gated weighs the layers: no weighted_layers")

    def to_dict(self, names: Iterable[str] | None = None) -> dict[str, Any]:
        """The fields of these names, all by default; prototypes where there are any."""
        options = super().to_dict(names)
        if self.pooling not in PROTOTYPICAL:
            options.pop("prototypes_per_class", None)
        return options


def check_choice(name: str, value: Any, choices: Iterable[Any]) -> None:
    """Raise ValueError unless a value is one of the choices."""
    if isinstance(value, (list, dict)) or value not in choices:
        raise ValueError(
            f"{name} must be one of {', '.join(map(str, choices))}, got {value!r}"
        )


def check_keywords(
    functions: Callable | tuple[Callable, ...],
    conf: dict,
    option: str,
    given: Iterable[str] = (),
) -> None:
    """Raise ValueError for a key of a YAML section that the class does not know.

    Args:
        functions: class, dataclass or function (or several) that the section is for.
        conf: the section.
        option: its name, for the message.
        given: arguments that the program fills in itself.
    """
    several = functions if isinstance(functions, tuple) else (functions,)
    signatures = [inspect.signature(function) for function in several]
    parameters = [p for s in signatures for p in s.parameters.values()]
    kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    known = {p.name for p in parameters if p.kind in kinds} - set(given)
    # of several, one takes what the others know
    if len(several) > 1 or all(p.kind != p.VAR_KEYWORD for p in parameters):
        _refuse_unknown(f"--{option}", conf, known)
    for key, value in conf.items():
        if isinstance(value, str) and NUMBER.fullmatch(value):
            raise ValueError(
                f"--{option} {key} is the text '{value}', not a number: YAML wants a "
                f"point, as in {float(value):.1e}"
            )


def _names(config: type[Any]) -> list[str]:
    """Names of a dataclass's fields."""
    return [field.name for field in dataclasses.fields(config)]


def _refuse_unknown(where: str, conf: Iterable[str], known: Iterable[str]) -> None:
    """Raise ValueError for a key that is not known."""
    for key in conf:
        if key not in known:
            raise ValueError(
                f"{where} has no key {key}: use one of {', '.join(sorted(known))}"
            )


# What samples of audio may be: one rule for files, arrays and tensors

MAX_PEAK = 2.0  # worth a warning: decoders overshoot 1, but not that far
INTEGER_PEAK = 100.0  # refused: float samples in the range of integers
SCALES = {"int16": 2**15, "int32": 2**31, "uint8": 2**7}  # full scale of integers


def peak_problem(peak: float) -> str | None:
    """What is wrong with the largest absolute value of a clip, or None.

    Beyond `MAX_PEAK` it is worth a warning, beyond `INTEGER_PEAK` the clip is refused:
    one rule for files, arrays, formatting and the encoder.
    """
    if peak <= MAX_PEAK:
        return None
    reason = f"overload: peak {peak:.1f}, samples are taken to be in [-1, 1]"
    if peak <= INTEGER_PEAK:
        return reason
    return f"{reason}: divide integers in a float file or array by their full scale"


def full_scale(kind: str) -> tuple[float, float]:
    """What 1.0 and silence are in samples of a type, such as "int16".

    Raises:
        ValueError: No type of audio: not real, or integers of unknown full scale.
    """
    if kind in SCALES:
        return float(SCALES[kind]), 128.0 if kind == "uint8" else 0.0
    if "int" in kind:
        raise ValueError(
            f"not audio: integers must be {', '.join(SCALES)}, got {kind}: their full "
            "scale is not known, convert them to float in [-1, 1]"
        )
    if "float" not in kind:
        raise ValueError(f"not audio: need real numbers, got {kind}")
    return 1.0, 0.0


def to_float(array: Any, name: str) -> Any:
    """An array as float32 in [-1, 1], its values not looked at; see `full_scale`."""
    try:
        scale, silence = full_scale(array.dtype.name)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    array = array.astype("float32", copy=False)
    return array if scale == 1 else (array - silence) / scale


def check_values(lowest: float, highest: float, name: str) -> None:
    """The rule of `peak_problem` where a clip is one of many, as in training.

    What is worth a warning is said once per process.

    Args:
        lowest, highest: Of the clip's samples; NaN where a sample is NaN.
        name: What errors call it.

    Raises:
        ValueError: Samples that are not finite, or in the range of integers.
    """
    peak = max(-lowest, highest)
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        raise ValueError(f"{name}: not finite: NaN or infinite samples, repair it")
    if peak > INTEGER_PEAK:
        raise ValueError(f"{name}: {peak_problem(peak)}")
    if peak > MAX_PEAK:
        warn_of_peak(name, peak, again=False)


_WARNED: set[str] = set()  # in which process a peak was warned about


def warn_of_peak(name: str, peak: float, again: bool = True) -> None:
    """Say that a peak is above `MAX_PEAK`."""
    if again or not _WARNED:
        logging.warning("%s: %s", name, peak_problem(peak))
    _WARNED.add("peak")


def differences(name: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    """Every value that differs: its name, in sections too, the old and the new one."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            pair = old.get(key, "nothing"), new.get(key, "nothing")
            yield from differences(f"{name} {key}", *pair)
    elif old != new:
        yield name, old, new
