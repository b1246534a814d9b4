"""Any source of weights to a model, strictly: our folders, trainings, the authors'.

A model is taken apart (`read_parts`), completed, built from its sizes and filled. What
is loaded must fit in every name and shape (`compare_states`), whoever loads it.
"""

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

import espnet2_sslam
from espnet2_sslam import store
from espnet2_sslam.checkpoint import layouts
from espnet2_sslam.checkpoint.layouts import (
    CONFIG_FILE,
    COUNTERS,
    FORMAT_VERSION,
    INDEX_FILE,
    WEIGHTS_FILE,
    CheckpointError,
    Parts,
    StandIn,
    State,
    below,
    put_below,
    shards_of,
    write_folder,
)
from espnet2_sslam.classifier import SSLAMClassifier
from espnet2_sslam.config import STORED, EncoderConfig, HeadConfig
from espnet2_sslam.encoder import SSLAMEncoder, sincos_positions
from espnet2_sslam.pretrain_model import SSLAMPretrainModel
from espnet2_sslam.units import PATCH_SIZE

Model = SSLAMEncoder | SSLAMClassifier
PREFERRED = ("latest.pth", "model.pth")  # weights of a training folder
# of a training: all that it needs to go on, and the same from before
RESUME_FILES = ("checkpoint.pth", "checkpoint.before.pth")
MARK = "encoder.patch_embed.proj.weight"  # of our trainings
LARGEST_HEADER = 100_000_000  # bytes of JSON that safetensors allows
# Classes of these packages describe a configuration; stand-ins take their place.
CONFIGURATIONS = ("omegaconf.", "fairseq.", "argparse.Namespace", "typing.Any")


class Loaded(NamedTuple):
    """A model in evaluation mode on the CPU, and its config.json's content."""

    model: Model
    config: dict[str, Any]

    @property
    def encoder(self) -> SSLAMEncoder:
        """The encoder, of a classifier too."""
        model = self.model
        return model.encoder if isinstance(model, SSLAMClassifier) else model

    @property
    def classes(self) -> list[str] | None:
        """Class names of a classifier, None for an encoder."""
        return getattr(self.model, "classes", None)


def load_model(
    source: str | Path,
    *,
    revision: str | None = None,
    weights: str = "student",
    cache_dir: str | Path | None = None,
    **encoder_options: Any,
) -> Loaded:
    """Load a model from wherever it is.

    Args:
        source: A folder in our format; a training's folder or .pth file (with its
            config.yaml beside); the authors' .pt file or safetensors export; a
            packed .zip; or a Hugging Face id.
        revision: Branch, tag or commit of a Hugging Face id.
        weights: "student" or "teacher" (EMA), where the source holds both.
        cache_dir: Where downloads go; Hugging Face's cache by default.
        encoder_options: For `SSLAMEncoder`, beside or instead of the stored ones.

    Raises:
        CheckpointError: One line that says what the source is and what is wrong.
    """
    parts = read_parts(source, revision=revision, cache_dir=cache_dir)
    parts = parts.complete(str(source), weights=weights)
    config = parts.config()
    if "max_frames" in encoder_options:
        name = "encoder.positions"
        stored = parts.tensors[name]  # (1, steps * 8, D), rounded as they may be
        steps = encoder_options["max_frames"] // PATCH_SIZE
        table = sincos_positions(stored.shape[-1], steps)
        both = min(table.shape[1], stored.shape[1])
        table[:, :both] = stored[:, :both]  # rows beyond the stored ones are computed
        parts.tensors = {**parts.tensors, name: table}
    return Loaded(assemble(parts, str(source), **encoder_options), config)


def read_parts(
    source: str | Path,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
) -> Parts:
    """Take a source apart; see `load_model`."""
    path = Path(source).expanduser()
    is_file = path.suffix in (".pt", ".pth", ".safetensors") and path.is_file()
    if revision is not None or not (is_file or (str(source) and path.is_dir())):
        from espnet2_sslam.checkpoint.hub import resolve

        path = resolve(source, revision=revision, cache_dir=cache_dir)
    path = weights_file(path) if path.is_dir() else path
    is_pickle = kind_of(path) == "pickle"
    parts, layout = (_from_pickle if is_pickle else _from_safetensors)(path)
    if any(value.is_meta for value in parts.tensors.values()):
        raise CheckpointError(f"{path} holds shapes without values: get it again")
    parts.origin = parts.origin or {
        "file": path.name,
        "sha256": store.sha256(path),
        "layout": layout,
        "weights": "student",
        "converter": f"espnet2_sslam {espnet2_sslam.__version__}",
    }
    return parts


def weights_file(folder: Path) -> Path:
    """The file of weights in a folder.

    Raises:
        CheckpointError: None, or several and none with an expected name.
    """
    for name in (WEIGHTS_FILE, INDEX_FILE):
        if (folder / name).exists():
            return folder / name
    files = [p for s in ("*.safetensors", "*.pth", "*.pt") for p in folder.glob(s)]
    files = sorted(path for path in files if path.name not in RESUME_FILES)
    preferred = [path for path in files if path.name in PREFERRED]
    if preferred or len(files) == 1:
        chosen = (preferred or files)[0]
        logging.info("weights of %s: %s", folder, chosen.name)
        return chosen
    names = ", ".join(path.name for path in files)
    if not files and (folder / RESUME_FILES[0]).exists():
        raise CheckpointError(
            f"{folder} holds the state of a training, {RESUME_FILES[0]}, and no "
            "weights: latest.pth or <N>epoch.pth come with its first epoch"
        )
    raise CheckpointError(
        f"{folder} holds several files of weights, name one: {names}"
        if files
        else f"{folder} holds no weights ({WEIGHTS_FILE}, *.pth or *.pt)"
    )


def kind_of(path: Path) -> str:
    """Say how to read a file of weights, from its first bytes.

    Returns:
        "pickle" (torch.save, in a zip archive or not) or "safetensors".

    Raises:
        CheckpointError: What it is instead: missing, empty, a folder, a Git LFS
            pointer, a web page, truncated, or no checkpoint at all.
    """
    if not path.is_file():
        folder = f"{path} is a folder, a file of weights is needed"
        raise CheckpointError(folder if path.is_dir() else f"there is no file {path}")
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(64)
    # first: the length of the header may begin like a pickle
    length = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and length <= min(size, LARGEST_HEADER):
        return "safetensors"
    if path.name == INDEX_FILE:
        return "safetensors"
    is_zip = head[:4] == b"PK\x03\x04"
    if head[:1] == b"\x80" or (is_zip and store.is_zip(path)):
        return "pickle"
    fault = "is not a checkpoint: neither safetensors nor a file of torch.save"
    if is_zip or size == 0:
        fault = f"is empty or a truncated checkpoint ({size} bytes): get it again"
    elif head.startswith(b"version https://git-lfs"):
        fault = "is a Git LFS pointer, not the weights: run `git lfs pull` there"
    elif head.lstrip()[:1] == b"<":
        fault = "is a web page, not a checkpoint: get it again"
    raise CheckpointError(f"{path} {fault}")


def read_pickle(path: str | Path) -> Any:
    """Read what `torch.save` wrote, without importing or calling anything unknown.

    The authors' files may hold the configuration as omegaconf, argparse or fairseq
    objects: these become inert stand-ins that keep their attributes.

    Raises:
        CheckpointError: The file is none, is cut off, or asks for more than tensors,
            containers, numbers and configuration objects.
    """
    path = Path(path)
    if kind_of(path) != "pickle":
        raise CheckpointError(f"{path} is not a file of torch.save")
    try:
        store.check(path)
        return store.read_pickle(path, StandIn, CONFIGURATIONS)
    except ValueError as error:
        raise CheckpointError(str(error)) from None


def _from_safetensors(path: Path) -> tuple[Parts, str]:
    """Parts and layout of a safetensors file with or without its config.json."""
    try:
        state = _load_shards(path) if path.name == INDEX_FILE else load_file(path)
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is damaged or truncated ({error}): get it again"
        ) from None
    config, file = {}, path.parent / CONFIG_FILE
    if file.exists():
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            config = None
        if not isinstance(config, dict):
            raise CheckpointError(f"{file} is not a JSON object")
    if "format_version" not in config:
        return layouts.from_huggingface(state, config, str(path)), "huggingface"
    if config["format_version"] != FORMAT_VERSION or "encoder" not in config:
        raise CheckpointError(
            f"{file} has format_version {config['format_version']!r}, this version "
            f"reads {FORMAT_VERSION}: convert the model with sslam convert"
        )
    return layouts.from_folder(state, config, str(path)), "espnet2_sslam"


def _load_shards(index: Path) -> State:
    """The tensors of a large model that Hugging Face wrote as several files."""
    state: State = {}
    for path in map(index.with_name, shards_of(index)):
        if kind_of(path) != "safetensors":
            raise CheckpointError(f"{path}, named by {index.name}, is no safetensors")
        try:
            state.update(load_file(path))
        except SafetensorError as error:
            raise CheckpointError(
                f"{path} is damaged or truncated ({error}): get it again"
            ) from None
    return state


def _from_pickle(path: Path) -> tuple[Parts, str]:
    """Parts and layout of a file of torch.save: a training's or the authors'."""
    content = read_pickle(path)
    if isinstance(content, Mapping) and all(isinstance(k, str) for k in content):
        inside = content.get("model", content.get("state_dict", content))
        inside = layouts.unwrapped(inside if isinstance(inside, Mapping) else content)
        content = inside if MARK in inside else content
    if not isinstance(content, Mapping) or MARK not in content:
        return layouts.from_fairseq(content, str(path)), "fairseq"
    file = path.parent / "config.yaml"
    if not file.is_file():
        raise CheckpointError(f"{path} needs the config.yaml of its training beside it")
    config = store.read_yaml(file)
    if not isinstance(config.get("encoder_conf"), dict):
        raise CheckpointError(f"the config.yaml beside {path} is of another task")
    return layouts.from_training(dict(content), config, str(path)), "espnet"


# --- models and their parts


def build_model(config: Mapping[str, Any], **encoder_options: Any) -> Model:
    """An untrained model as the content of a config.json describes it.

    Raises:
        ValueError: An option that the encoder or the classifier refuses.
    """
    options = {
        **config["encoder"],
        "fbank_mean": config["fbank_mean"],
        "fbank_std": config["fbank_std"],
        **encoder_options,
    }
    encoder = SSLAMEncoder(EncoderConfig.from_dict(options, "encoder of config.json"))
    if config.get("classifier") is None:
        return encoder
    where = "classifier of config.json"
    return SSLAMClassifier(encoder, HeadConfig.from_dict(config["classifier"], where))


def assemble(parts: Parts, source: str, **encoder_options: Any) -> Model:
    """The model of complete parts, in evaluation mode.

    Raises:
        CheckpointError: All names and shapes that do not fit.
    """
    # Without memory first: a damaged file may ask for any amount of it.
    with torch.device("meta"):
        model = build_model(parts.config(), **encoder_options)
    compare_states(take_apart(model).state(), parts.state(), source)
    model = build_model(parts.config(), **encoder_options)
    if isinstance(model, SSLAMClassifier):
        model.load_state_dict(parts.state(), strict=False)  # the counters are left out
    else:
        model.load_state_dict(parts.below("encoder."))
    return model.eval()


def take_apart(model: Model, origin: Mapping[str, Any] | None = None) -> Parts:
    """The parts of a model; `origin` says where its weights come from."""
    if isinstance(model, SSLAMClassifier):
        encoder, state, head = model.encoder, model.state_dict(), model.config.to_dict()
    else:
        encoder, state, head = model, put_below(model.state_dict(), "encoder."), None
    tensors = {name: value for name, value in state.items() if name not in COUNTERS}
    return Parts(tensors, encoder.config.to_dict(STORED), head, dict(origin or {}))


def model_config(
    model: Model, origin: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The content of config.json for a model, see `take_apart`."""
    return take_apart(model, origin).config()


def save_model(
    model: Model, folder: str | Path, origin: Mapping[str, Any] | None = None
) -> Path:
    """Write a model as a folder that `load_model` and Hugging Face read.

    Args:
        model: Encoder or classifier.
        folder: Made if it is not there; a model in it is replaced.
        origin: Where the weights come from (file, sha256, layout, ...).
    """
    parts = take_apart(model, origin)
    return write_folder(parts.config(), parts.state(), folder)


# --- trainings


def load_pretrain_model(folder: str | Path) -> SSLAMPretrainModel:
    """Load student, teacher and decoder from a training's config.yaml and latest.pth.

    Raises:
        FileNotFoundError: The training has no finished epoch.
        CheckpointError: The weights do not fit the configuration.
    """
    folder = Path(folder)
    for name in ("config.yaml", "latest.pth"):
        if not (folder / name).exists():
            raise FileNotFoundError(
                f"{folder / name} is missing: give the directory of a finished "
                "pre-training run"
            )
    config = store.read_yaml(folder / "config.yaml")
    encoder = SSLAMEncoder(
        input_size=config.get("input_size") or 1, **config["encoder_conf"]
    )
    model = SSLAMPretrainModel(encoder, **config["model_conf"])
    load_weights(model, folder / "latest.pth")
    return model.eval()


def load_weights(model: torch.nn.Module, path: str | Path) -> None:
    """Load a .pth file (<N>epoch.pth, ...) into the whole model of the training.

    Raises:
        ValueError: Not such a file, or not of this model.
    """
    states = load_states(path)
    compare_states(model.state_dict(), states, str(path))
    model.load_state_dict(states)


def check_init_param(model: torch.nn.Module, init_param: str) -> None:
    """Refuse an --init_param that would load nothing, half or the wrong shapes.

    Args:
        model: The model to be initialised.
        init_param: <file>[:<source key>[:<own key>[:<excluded prefixes>]]].

    Raises:
        ValueError: Naming the file and all keys at fault.
    """
    path, source, target, names = (init_param.split(":") + ["", "", ""])[:4]
    if not Path(path).is_file():
        raise ValueError(f"--init_param: {path} does not exist: train it first")
    excluded = tuple(name for name in names.split(",") if name)
    prefix, states = source + "." if source else "", load_states(path)
    taken = {k: value for k, value in states.items() if not k.startswith(excluded)}
    loaded = below(taken, prefix)
    if not loaded:
        raise ValueError(
            f"--init_param {init_param}: {path} has nothing named {source or '?'}: it "
            f"holds {', '.join(sorted({k.split('.')[0] for k in states}))}"
        )
    try:
        own = (model.get_submodule(target) if target else model).state_dict()
    except AttributeError as error:
        raise ValueError(
            f"--init_param {init_param}: the model has no {target}"
        ) from error
    left_out = [name for name in own if (prefix + name).startswith(excluded)]
    compare_states(own, loaded, f"--init_param {init_param}", left_out)


def load_states(path: str | Path) -> State:
    """The tensors of a training's .pth file; ValueError if it is not one."""
    states = read_pickle(path)
    values = states.values() if isinstance(states, Mapping) else [None]
    if not all(isinstance(value, torch.Tensor) for value in values):
        raise ValueError(
            f"{path} holds more than weights: give <N>epoch.pth or latest.pth; for the "
            f"authors' checkpoints, the output of `sslam convert {path} OUT.pth`"
        )
    return dict(states)


def compare_states(
    own: Mapping[str, torch.Tensor],
    loaded: Mapping[str, torch.Tensor],
    source: str,
    left_out: Iterable[str] = (),
) -> None:
    """Refuse a state dict that differs in any name or shape.

    Args:
        own: State dict that the model needs.
        loaded: State dict of the file.
        source: What the error calls the file.
        left_out: Names that need not be in the file.

    Raises:
        CheckpointError: All differences, in one line.
    """
    missing = sorted(set(own) - set(loaded) - set(left_out))
    unknown = sorted(set(loaded) - set(own))
    differences = []
    if missing or unknown:
        differences.append(f"missing {', '.join(missing) or 'nothing'}")
        differences.append(f"unknown {', '.join(unknown) or 'nothing'}")
    differences += [
        f"{name} has shape {tuple(value.shape)}, needed is {tuple(own[name].shape)}"
        for name, value in loaded.items()
        if name in own and value.shape != own[name].shape
    ]
    if differences:
        raise CheckpointError(
            f"{source} does not fit the model: {'; '.join(differences)}: use the "
            "configuration it was trained with"
        )
