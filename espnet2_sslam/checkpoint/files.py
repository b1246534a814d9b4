"""Files of weights: what they are, safe reading, and our own format.

torch's restricted unpickler builds tensors, containers and numbers only. The authors'
files may also hold the configuration as omegaconf, argparse or fairseq objects: these
become inert stand-ins that keep their attributes. Anything else is refused by name.

Our own format is a folder: model.safetensors holds the state of `SSLAMEncoder` under
`encoder.`, and of a classifier what stands beside it; config.json is a valid Hugging
Face configuration too.
"""

import codecs
import json
import pickle
import re
import struct
import zipfile
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from espnet2_sslam.store import replacing
from espnet2_sslam.units import SAMPLE_RATE

State = dict[str, torch.Tensor]

FORMAT_VERSION = 1
WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
PREPROCESSOR_FILE = "preprocessor_config.json"
PREPROCESSOR = {  # the model computes the fbank itself: audio is only padded
    "feature_extractor_type": "SSLAMFeatureExtractor",
    "feature_size": 1,
    "padding_side": "right",
    "padding_value": 0.0,
    "return_attention_mask": True,
    "sampling_rate": SAMPLE_RATE,
}
FBANK_NAMES = ("log_mel.mean", "log_mel.std")  # entries of an encoder's state

LFS_POINTER = b"version https://git-lfs"
LARGEST_HEADER = 100_000_000  # bytes of JSON that safetensors allows
# Classes of these packages describe a configuration; stand-ins take their place.
STAND_IN_PACKAGES = ("omegaconf.", "fairseq.", "argparse.Namespace", "typing.Any")
NUMPY_SCALAR = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")


class CheckpointError(ValueError):
    """A model or checkpoint that cannot be used; one line that says what it is."""


class RefusedPickle(CheckpointError):
    """A pickle that asks for more than plain values, so that it is not read."""


@dataclass
class Parts:
    """A model taken apart: states under our names, whatever the file's layout was.

    Args:
        encoder: State of `SSLAMEncoder`.
        sizes: Fields of `EncoderConfig` that config.json keeps; num_heads may be None,
            where the file does not say.
        head: The classifier's state beside the encoder's (fc_norm, head, pooling).
        head_options: Fields of `HeadConfig`; classes may be None.
        decoder: State of `ConvDecoder`, from pre-training.
        teacher: Like `encoder`, from pre-training.
        origin: Where the weights come from (file, sha256, layout, ...).
    """

    encoder: State
    sizes: dict[str, Any]
    head: State | None = None
    head_options: dict[str, Any] | None = None
    decoder: State | None = None
    teacher: State | None = None
    origin: dict[str, Any] = field(default_factory=dict)

    @property
    def fbank(self) -> tuple[float, float]:
        """Mean and std of the log-mel, as many digits as float32 has."""
        mean, std = (round(float(self.encoder[name]), 6) for name in FBANK_NAMES)
        return mean, std

    def state(self) -> State:
        """The content of model.safetensors."""
        encoder = {f"encoder.{name}": value for name, value in self.encoder.items()}
        return {**encoder, **(self.head or {})}

    def config(self) -> dict[str, Any]:
        """The content of config.json."""
        mean, std = self.fbank
        options = self.head_options
        config = {
            "model_type": "sslam",
            "architectures": [
                "SSLAMForAudioClassification" if options else "SSLAMModel"
            ],
            "format_version": FORMAT_VERSION,
            "encoder": self.sizes,
            "fbank_mean": mean,
            "fbank_std": std,
            "sampling_rate": SAMPLE_RATE,
            "classifier": options,
        }
        if self.origin:
            config["origin"] = self.origin
        if options:
            names = list(options["classes"])
            config["classifier"] = {**options, "classes": names}
            config["id2label"] = {str(i): name for i, name in enumerate(names)}
            config["label2id"] = {name: i for i, name in enumerate(names)}
        return config

    def complete(
        self,
        source: str,
        *,
        weights: str = "student",
        num_heads: int | None = None,
        classes: list[str] | None = None,
        task: str | None = None,
        fbank: tuple[float, float] | None = None,
    ) -> "Parts":
        """The same with what only the user can know; refuses what is still missing.

        Args:
            source: What errors call it.
            weights: "student" or "teacher" (EMA): whose become the encoder's.
            num_heads: Attention heads, where the source does not say, or wrongly.
            classes: Class names instead of the source's.
            task: "multi_label" or "multi_class" instead of the source's.
            fbank: (mean, std) instead of the source's.

        Raises:
            CheckpointError: No teacher; the number of heads or the class names are
                unknown, or do not fit the weights; class options for a model without
                a head.
        """
        parts = replace(self, sizes=dict(self.sizes))
        if weights not in ("student", "teacher"):
            raise CheckpointError(f"weights are student or teacher, not {weights!r}")
        if weights == "teacher":
            if self.teacher is None:
                raise CheckpointError(
                    f"{source} holds no teacher (EMA): take weights student"
                )
            origin = {**self.origin, "weights": weights}
            parts = replace(parts, encoder=self.teacher, origin=origin)
        parts.sizes["num_heads"] = num_heads or parts.sizes.get("num_heads")
        if parts.sizes["num_heads"] is None:
            raise CheckpointError(
                f"{source} does not say how many attention heads it has: convert it "
                "with sslam convert --num_heads N"
            )
        if fbank is not None:
            parts.encoder = with_fbank(parts.encoder, fbank)
            parts.teacher = parts.teacher and with_fbank(parts.teacher, fbank)
        if parts.head is None:
            if classes is not None or task is not None:
                raise CheckpointError(
                    f"{source} has no classification head: leave labels and task out"
                )
            return parts
        options = dict(parts.head_options or {})
        options["classes"] = classes or options["classes"]
        options["task"] = task or options["task"]
        number = len(parts.head.get("head.weight", ()))
        if not options["classes"]:
            raise CheckpointError(
                f"{source} has {number} classes without names: convert it with "
                "sslam convert --labels FILE"
            )
        if len(options["classes"]) != number:
            raise CheckpointError(
                f"{source} has {number} classes, {len(options['classes'])} names were "
                "given"
            )
        return replace(parts, head_options=options)


def with_fbank(encoder: State, fbank: tuple[float, float]) -> State:
    """An encoder's state with this mean and std of the log-mel."""
    tensors = (torch.tensor(float(value)) for value in fbank)
    return {**encoder, **dict(zip(FBANK_NAMES, tensors, strict=True))}


def write_folder(config: dict[str, Any], state: State, folder: str | Path) -> Path:
    """Write config.json and model.safetensors; each file is whole or not there.

    In our own format also what Hugging Face's AutoFeatureExtractor reads.
    """
    folder = Path(folder)
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    texts = {CONFIG_FILE: config}
    if "format_version" in config:
        texts[PREPROCESSOR_FILE] = PREPROCESSOR
    try:
        with ExitStack() as stack:  # nothing is replaced before all is written
            path = stack.enter_context(replacing(folder / WEIGHTS_FILE))
            save_file(tensors, path, metadata={"format": "pt"})
            for name, content in texts.items():
                path = stack.enter_context(replacing(folder / name))
                text = json.dumps(content, indent=2, ensure_ascii=False)
                path.write_text(text + "\n", encoding="utf-8")
    except SafetensorError as error:
        raise OSError(f"cannot write {folder / WEIGHTS_FILE}: {error}") from None
    return folder


def read_config(folder: Path) -> dict[str, Any]:
    """The content of a folder's config.json.

    Raises:
        CheckpointError: No such file, or not a JSON object.
    """
    path = folder / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise CheckpointError(f"{path} is not JSON") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return config


def read_tensors(path: Path) -> State:
    """The tensors of a safetensors file.

    Raises:
        CheckpointError: No such file, or damaged.
    """
    if kind_of(path) != "safetensors":
        raise CheckpointError(f"{path} is not a safetensors file")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is damaged or truncated ({error}): get it again"
        ) from None


def kind_of(path: Path) -> str:
    """Say how to read a file of weights, from its first bytes.

    Returns:
        "pickle" (torch.save, in a zip archive or not) or "safetensors".

    Raises:
        CheckpointError: What it is instead: missing, empty, a folder, a Git LFS
            pointer, a web page, truncated, or no checkpoint at all.
    """
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, a file of weights is needed")
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}")
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(64)
    if size == 0:
        raise CheckpointError(f"{path} is empty (0 bytes): get it again")
    if head.startswith(LFS_POINTER):
        raise CheckpointError(
            f"{path} is a Git LFS pointer, not the weights: run `git lfs pull` there"
        )
    if head.lstrip()[:1] == b"<":
        raise CheckpointError(f"{path} is a web page, not a checkpoint: get it again")
    # first: the length of the header may begin like a pickle
    if size > 8 and head[8:9] == b"{":
        if struct.unpack("<Q", head[:8])[0] <= min(size, LARGEST_HEADER):
            return "safetensors"
    if head[:4] == b"PK\x03\x04":
        if not zipfile.is_zipfile(path):
            raise CheckpointError(
                f"{path} is a truncated checkpoint ({size} bytes): get it again"
            )
        return "pickle"
    if head[:1] == b"\x80":
        return "pickle"
    raise CheckpointError(
        f"{path} is not a checkpoint: neither safetensors nor a file of torch.save"
    )


class StandIn:
    """In place of a configuration class: keeps the pickled state, does nothing."""

    def __init__(self, *args: Any, **kwargs: Any):
        self.__dict__.update(kwargs)

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


def read_pickle(path: str | Path) -> Any:
    """Read what `torch.save` wrote, without importing or calling anything unknown.

    Args:
        path: A .pt or .pth file.

    Raises:
        CheckpointError: The file is none, is cut off, or asks for more than tensors,
            containers, numbers and configuration objects.
    """
    path = Path(path)
    if kind_of(path) != "pickle":
        raise CheckpointError(f"{path} is not a file of torch.save")
    try:
        zipped = zipfile.is_zipfile(path)  # files from before torch 1.6 are not:
        names: list[str] = []  # these are read with torch's own list only
        if zipped:
            names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        with torch.serialization.safe_globals(_safe_globals(path, names)):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        # not torch's own advice, which is to read the file without care
        named = re.search(r"GLOBAL (\S+)", str(error))
        if named:
            raise _refusal(path, [named[1]]) from None
        raise CheckpointError(f"{path} holds no plain tensors and values") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        if isinstance(error, CheckpointError):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise CheckpointError(
            f"{path} is damaged or truncated ({reason}): get it again"
        ) from None


def plain(value: Any) -> Any:
    """A configuration as plain dicts, lists and values, whatever classes it came in."""
    if isinstance(value, StandIn):
        state = vars(value)
        # omegaconf's containers, omegaconf's values, an enumeration
        for name in ("_content", "_val", "_value_"):
            if name in state:
                return plain(state[name])
        return {name: plain(item) for name, item in state.items()}
    if isinstance(value, dict):
        return {str(plain(name)): plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def _safe_globals(path: Path, names: list[str]) -> list[Any]:
    """What stands for each name that a pickle asks for beyond what torch trusts.

    Raises:
        RefusedPickle: Names that nothing stands for.
    """
    known = _harmless()
    allowed: list[Any] = []
    for name in names:
        if name in known:
            allowed.append((known[name], name))
        elif name.startswith(STAND_IN_PACKAGES):
            stand_in = type(name.rsplit(".", 1)[-1], (StandIn,), {})
            allowed.append((stand_in, name))
    refused = set(names) - {name for _, name in allowed}
    if refused:
        raise _refusal(path, sorted(refused))
    if set(names) & set(NUMPY_SCALAR):
        allowed += [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64)]
    return allowed


def _refusal(path: Path, names: list[str]) -> RefusedPickle:
    """What is said of a pickle that asks for more than values."""
    return RefusedPickle(
        f"{path} asks for {', '.join(names)}: no checkpoint of this kind needs that, "
        "so it is not read (it could run code)"
    )


def _harmless() -> dict[str, Any]:
    """Names of builders of plain values, in the spellings of all versions."""
    scalar = np._core.multiarray.scalar  # type: ignore # noqa: SLF001
    known: dict[str, Any] = {name: scalar for name in NUMPY_SCALAR}
    known["numpy.dtype"] = np.dtype
    known["_codecs.encode"] = codecs.encode
    known["collections.defaultdict"] = defaultdict
    for kind in (dict, list, int, float, str, bool, tuple, set):
        for module in ("builtins", "__builtin__"):
            known[f"{module}.{kind.__name__}"] = kind
    known["__builtin__.long"] = int
    known["__builtin__.unicode"] = str
    return known
