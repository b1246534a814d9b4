"""Let s3prl 0.4.18 run on current packages, and stop it where it fails in silence.

s3prl was written for older torchaudio, huggingface_hub and torch, and imports optional
packages of single tasks at the top of modules that all tasks share. What is missing is
filled in, each piece only where it is missing; nothing that works is changed. `_hook`
calls `executing` around every module of s3prl that needs it, and nothing before.
"""

import argparse
import functools
import importlib.util
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import soundfile
import soxr
import torch

from espnet2_sslam.integrations.ctc import FrameCheck
from espnet2_sslam.store import lock

# Packages that s3prl imports for single tasks, with the sub-modules it names.
OPTIONAL = {
    "catalyst": ("data", "data.sampler"),  # multi-GPU keyword spotting
    "dcase_util": ("containers",),  # HEAR's event tasks
    "editdistance": (),  # speech recognition
    "h5py": (),  # diarization
    "pandas": (),  # tables of many tasks
    "sed_eval": (),  # HEAR's event tasks
    "tensorboardX": (),  # the log of run_downstream
}

_absent: list[str] = []


@contextmanager
def executing(module: ModuleType) -> Iterator[None]:
    """Everything in place while a module of s3prl is executed; its guard afterwards.

    Stand-ins for absent packages are in sys.modules for that time only: others find out
    that a package is absent by importing it.
    """
    fill()
    added = {}
    for package in _absent:
        for name, standin in standins(package).items():
            if name not in sys.modules:
                added[name] = sys.modules[name] = standin
    try:
        yield
    finally:
        for name, standin in added.items():
            if sys.modules.get(name) is standin:
                del sys.modules[name]
    guard(module)


@functools.cache
def fill() -> list[str]:
    """Fill in every piece that is missing, and say so once, in one line on stderr.

    Returns:
        What was filled in.
    """
    filled = [*_fill_torchaudio(), *_fill_huggingface_hub()]
    # `argparse.Namespace` is in s3prl's checkpoints; `torch.load` refuses it.
    torch.serialization.add_safe_globals([argparse.Namespace])
    _absent.extend(n for n in OPTIONAL if importlib.util.find_spec(n) is None)
    parts = [", ".join(filled)] if filled else []
    if _absent:
        parts.append(f"stand-ins for {', '.join(_absent)}")
    if parts:
        sys.stderr.write(f"espnet2_sslam fills in for s3prl: {'; '.join(parts)}\n")
    return filled + _absent


def _fill_torchaudio() -> list[str]:
    """2.9 has no backends, `info` and effects, and reads with torchcodec alone."""
    import torchaudio

    missing: dict[str, Any] = {}
    if not hasattr(torchaudio, "set_audio_backend"):
        missing["set_audio_backend"] = lambda backend: None  # nothing is left to set
    if not hasattr(torchaudio, "info"):
        missing["info"] = info
        if not _works(lambda: importlib.import_module("torchcodec.decoders")):
            missing.update(load=load, save=save)
    for name, function in missing.items():
        setattr(torchaudio, name, function)
    sox: Any = getattr(torchaudio, "sox_effects", None)
    if sox is None or not _works(sox.effect_names):  # before 2.9: needs libsox.so
        if sox is None:
            sox = ModuleType("torchaudio.sox_effects")
            setattr(torchaudio, "sox_effects", sox)  # noqa: B010
            sys.modules[sox.__name__] = sox
        sox.apply_effects_file = apply_effects_file
        sox.apply_effects_tensor = apply_effects_tensor
        missing["sox_effects"] = sox
    return [f"torchaudio.{name}" for name in missing]


def _works(function: Callable) -> bool:
    """Whether a function finds the libraries that it needs."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that 2.8 is the last with effects
            function()
    except (AttributeError, ImportError, OSError, RuntimeError):
        return False
    return True


def _fill_huggingface_hub() -> list[str]:
    """`HfFolder` and `Repository`, imported for `--push_to_hf_hub`, are gone from 1."""
    import huggingface_hub

    def gone(*args: Any, **options: Any):
        raise ImportError(
            "huggingface_hub has no HfFolder and Repository any more, so that s3prl's "
            "--push_to_hf_hub and --hub huggingface do not work: upload the "
            "experiment's folder by hand"
        )

    functions = {"__init__": gone, "get_token": gone, "save_token": gone}
    names = [n for n in ("HfFolder", "Repository") if not hasattr(huggingface_hub, n)]
    for name in names:
        setattr(huggingface_hub, name, type(name, (), functions))
    return [f"huggingface_hub.{name}" for name in names]


# ---- stand-ins for absent packages


class _Absent(type):
    """A name of an absent package: s3prl may import it and derive from it, not call."""

    def __call__(cls, *args: Any, **options: Any):
        name = cls.__mro__[-2].__module__  # of which s3prl may have derived its own
        package = name.split(".")[0]
        raise ImportError(f"this part of s3prl needs {name}: pip install {package}")

    def __getattr__(cls, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return _absent_name(f"{cls.__module__}.{name}")


def _absent_name(full_name: str) -> type:
    return _Absent(full_name.rpartition(".")[2], (), {"__module__": full_name})


class _StandIn(ModuleType):
    """A module of which every name is absent, but two for which others do the work."""

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        match full_name := f"{self.__name__}.{name}":
            case "tensorboardX.SummaryWriter":
                from torch.utils.tensorboard import SummaryWriter

                return SummaryWriter
            case "editdistance.eval":
                from torchaudio.functional import edit_distance

                return lambda first, second: edit_distance(list(first), list(second))
        return _absent_name(full_name)


def standins(package: str) -> dict[str, ModuleType]:
    """Stand-ins for a package and its sub-modules, by full name."""
    names = [package, *(f"{package}.{part}" for part in OPTIONAL[package])]
    modules: dict[str, ModuleType] = {name: _StandIn(name) for name in names}
    for name, module in modules.items():
        module.__path__ = []
        parent, _, own = name.rpartition(".")
        if parent:
            setattr(modules[parent], own, module)
    return modules


# ---- torchaudio's files and SoX effects, with soundfile and soxr


def load(
    uri, frame_offset=0, num_frames=-1, normalize=True, channels_first=True, **ignored
) -> tuple[torch.Tensor, int]:
    """Audio in [-1, 1], (channels, samples), and its sampling rate.

    Raises:
        ValueError: `normalize=False` (integer samples), which s3prl does not use.
    """
    if not normalize:
        raise ValueError("torchaudio.load without torchcodec needs normalize=True")
    samples, rate = soundfile.read(
        uri, num_frames, frame_offset, dtype="float32", always_2d=True
    )
    wave = torch.from_numpy(samples)
    return (wave.T.contiguous() if channels_first else wave), rate


def save(uri, src: torch.Tensor, sample_rate, channels_first=True, **ignored) -> None:
    """Write (channels, samples), a WAV in the tensor's own type as torchaudio did."""
    subtypes = {torch.float32: "FLOAT", torch.float64: "DOUBLE"}
    subtypes |= {torch.int32: "PCM_32", torch.int16: "PCM_16", torch.uint8: "PCM_U8"}
    wav = str(uri).lower().endswith(".wav")
    samples = (src.T if channels_first else src).detach().cpu().numpy()
    soundfile.write(uri, samples, sample_rate, subtypes[src.dtype] if wav else None)


def info(uri, *ignored: Any, **ignored_too: Any) -> SimpleNamespace:
    """Rate, length and channels of a file; its encoding in libsndfile's words."""
    header = soundfile.info(uri)
    return SimpleNamespace(
        sample_rate=header.samplerate,
        num_frames=header.frames,
        num_channels=header.channels,
        bits_per_sample=0,  # as torchaudio says where it does not know
        encoding=header.subtype,
    )


def apply_effects_file(
    path, effects: list[list[str]], normalize=True, channels_first=True, format=None
) -> tuple[torch.Tensor, int]:
    """A file with SoX effects applied; see `apply_effects_tensor`."""
    wave, rate = load(path, normalize=normalize, channels_first=channels_first)
    return apply_effects_tensor(wave, rate, effects, channels_first)


def apply_effects_tensor(
    tensor: torch.Tensor,
    sample_rate: int,
    effects: list[list[str]],
    channels_first: bool = True,
) -> tuple[torch.Tensor, int]:
    """A waveform with SoX effects applied one after the other.

    Raises:
        ValueError: Another effect than `channels 1`, `rate` and `gain`, which are those
            of SUPERB's tasks.
    """
    wave, rate = tensor if channels_first else tensor.T, sample_rate
    for effect in effects:
        match effect:
            case ["channels", "1"]:
                wave = wave.mean(0, keepdim=True)
            case ["rate", hertz]:
                if int(hertz) != rate:
                    array = soxr.resample(wave.T.numpy(), rate, int(hertz), "HQ")
                    wave, rate = torch.from_numpy(array).T.contiguous(), int(hertz)
            case ["gain", decibel]:
                wave = wave * 10 ** (float(decibel) / 20)
            case _:
                raise ValueError(
                    f"the SoX effect {' '.join(effect)!r} needs torchaudio before 2.9 "
                    "with libsox (Debian: libsox-dev); without it: channels 1, rate "
                    "HERTZ and gain DECIBEL"
                )
        wave = wave.clamp(-1, 1)
    return (wave if channels_first else wave.T), rate


# ---- guards: where s3prl goes on in silence and learns nothing


def check_learnable(downsample_rate: int, num_samples: Sequence[int]) -> None:
    """Refuse clips whose features would be NaN in run_downstream.

    Args:
        downsample_rate: Samples per step of the upstream (2560 for sslam).
        num_samples: Samples of each clip, at 16 kHz.

    Raises:
        ValueError: A clip that gets no step.
    """
    empty = [n for n in num_samples if round(n / downsample_rate) == 0]
    if empty:
        raise ValueError(
            f"{len(empty)} clip(s) get no step at {downsample_rate} samples per step, "
            f"the shortest has {min(empty)} samples: leave clips up to "
            f"{downsample_rate // 2} samples out, pad them, or raise upsample or "
            "time_shifts (8 gives 320 samples per step)"
        )


def guard(module: ModuleType) -> None:
    """Put its guard on a module of s3prl that was executed; again is harmless."""
    add = _GUARDS.get(module.__name__)
    if add is not None and not hasattr(module, "_sslam_guarded"):
        add(module)
        module._sslam_guarded = True  # type: ignore[attr-defined]


def _guard_features(module: Any) -> None:
    """Clips without a step are an error, not NaN."""
    tolist = module.Featurizer.tolist

    @functools.wraps(tolist)
    def checked(self, paired_wavs, paired_feature):
        check_learnable(self.downsample_rate, [len(wav) for wav in paired_wavs])
        return tolist(self, paired_wavs, paired_feature)

    module.Featurizer.tolist = checked


def _guard_ctc(class_name: str, attribute: str, module: Any) -> None:
    """More labels than steps in most clips is an error, not a loss of 0."""
    cls = getattr(module, class_name)
    build = cls.__init__

    @functools.wraps(build)
    def init(self, *args, **options):
        build(self, *args, **options)
        watch = FrameCheck()
        # torch.nn.CTCLoss: log_probs, targets (B, L), steps, labels
        getattr(self, attribute).register_forward_pre_hook(
            lambda _, inputs: watch.check(
                inputs[1].cpu(), inputs[3].cpu(), inputs[2].cpu()
            )
        )

    cls.__init__ = init


def _guard_resampling(module: Any) -> None:
    """HEAR's audio at 16 kHz is there whole or not at all.

    s3prl takes a folder that a killed run left for a finished one. Threads instead of
    processes: what `fill` fills in would not be there in joblib's.
    """
    module.Parallel = functools.partial(module.Parallel, backend="threading")
    resample = module.resample_hear_corpus

    @functools.wraps(resample)
    def whole(task_dir, target_sr=16000, num_workers=6):
        source, target = Path(task_dir) / "48000", Path(task_dir) / str(target_sr)
        if not target.is_dir() and not source.is_dir():
            raise ValueError(f"{task_dir} has neither {target.name}/ nor 48000/")
        if not target.is_dir():
            temporary = tempfile.TemporaryDirectory(prefix=".", dir=task_dir)
            # folds may run side by side
            with temporary as part, lock(target.with_name(".resample.lock")):
                if not target.is_dir():
                    Path(part, "48000").symlink_to(source.resolve())
                    resample(part, target_sr=target_sr, num_workers=num_workers)
                    Path(part, target.name).rename(target)
        clips = sorted(path.relative_to(source) for path in source.glob("*/*.wav"))
        lacking = [path for path in clips if not (target / path).is_file()]
        if lacking:  # made without this guard
            raise ValueError(
                f"{target} lacks {len(lacking)} of {len(clips)} files, for example "
                f"{lacking[0]}: delete the folder and run again"
            )

    module.resample_hear_corpus = whole


_GUARD_EXPERT = functools.partial(_guard_ctc, "DownstreamExpert", "objective")
_GUARDS: dict[str, Callable[[Any], None]] = {
    "s3prl.upstream.interfaces": _guard_features,
    "s3prl.problem.common._hear_util": _guard_resampling,
    "s3prl.downstream.asr.expert": _GUARD_EXPERT,
    "s3prl.downstream.ctc.expert": _GUARD_EXPERT,
    "s3prl.task.speech2text_ctc_task": functools.partial(
        _guard_ctc, "Speech2TextCTCTask", "criterion"
    ),
}
