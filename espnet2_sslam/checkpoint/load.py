"""Any source of weights to a model: our folders, trainings, the authors' files."""

import hashlib
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import yaml

import espnet2_sslam
from espnet2_sslam.checkpoint.authors import from_fairseq, from_huggingface
from espnet2_sslam.checkpoint.complete import complete
from espnet2_sslam.checkpoint.errors import CheckpointError
from espnet2_sslam.checkpoint.folder import (
    CONFIG_FILE,
    FORMAT_VERSION,
    WEIGHTS_FILE,
    Model,
    build_model,
    fill_model,
    join_state,
    read_config,
    read_tensors,
)
from espnet2_sslam.checkpoint.parts import Parts, fit_positions
from espnet2_sslam.checkpoint.pickled import read_pickle
from espnet2_sslam.checkpoint.sniff import kind_of
from espnet2_sslam.checkpoint.training import from_training, is_training_state
from espnet2_sslam.classifier import SSLAMClassifier
from espnet2_sslam.encoder import SSLAMEncoder

PREFERRED = ("latest.pth", "model.pth")  # weights of a training folder


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
            Hugging Face id, or an ESPnet model zoo tag or packed .zip.
        revision: Branch, tag or commit of a Hugging Face id.
        weights: "student" or "teacher" (EMA), where the source holds both.
        cache_dir: Where downloads go; Hugging Face's cache by default.
        encoder_options: For `SSLAMEncoder`, beside or instead of the stored ones.

    Raises:
        CheckpointError: One line that says what the source is and what is wrong.
    """
    parts = read_parts(source, revision=revision, cache_dir=cache_dir)
    parts = complete(parts.chosen(weights), str(source))
    config = parts.config
    model = build_model(config, **encoder_options)
    fbank = config["fbank_mean"], config["fbank_std"]
    if "max_frames" in encoder_options:
        frames = encoder_options["max_frames"]
        table = fit_positions(parts.encoder["positions"], frames)
        parts = replace(parts, encoder={**parts.encoder, "positions": table})
    state = join_state(parts.encoder, fbank, parts.head)
    return Loaded(fill_model(model, state, str(source)), config)


def read_parts(
    source: str | Path,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
) -> Parts:
    """Take a source apart; see `load_model`. The config has its `origin`."""
    from espnet2_sslam.checkpoint.hub import resolve

    path = resolve(source, revision=revision, cache_dir=cache_dir)
    path = weights_file(path) if path.is_dir() else path
    if kind_of(path) == "safetensors":
        parts, layout = _from_safetensors(path)
    else:
        parts, layout = _from_pickle(path)
    if "origin" not in parts.config:
        parts.config["origin"] = {
            "file": path.name,
            "sha256": sha256(path),
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
    if (folder / WEIGHTS_FILE).exists():
        return folder / WEIGHTS_FILE
    found = [p for s in ("*.safetensors", "*.pth", "*.pt") for p in folder.glob(s)]
    found = sorted(p for p in found if p.name != "checkpoint.pth")
    preferred = [p for p in found if p.name in PREFERRED]
    if preferred or len(found) == 1:
        chosen = preferred[0] if preferred else found[0]
        logging.info("weights of %s: %s", folder, chosen.name)
        return chosen
    names = ", ".join(p.name for p in found)
    raise CheckpointError(
        f"{folder} holds several files of weights, name one: {names}"
        if found
        else f"{folder} holds no weights ({WEIGHTS_FILE}, *.pth or *.pt)"
    )


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _from_safetensors(path: Path):
    """Parts and layout of a safetensors file with or without its config.json."""
    state = read_tensors(path)
    beside = path.parent / CONFIG_FILE
    config = read_config(path.parent) if beside.exists() else {}
    if "format_version" not in config:
        return from_huggingface(state, config, str(path)), "huggingface"
    if config["format_version"] != FORMAT_VERSION:
        build_model(config)  # says which versions differ
    prefix = "encoder."
    encoder = {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
    encoder = {k: v for k, v in encoder.items() if not k.startswith("log_mel.")}
    head = {k: v for k, v in state.items() if not k.startswith(prefix)}
    return Parts(encoder, config, head or None), "espnet2_sslam"


def _from_pickle(path: Path):
    """Parts and layout of a file of torch.save: a training's or the authors'."""
    content = read_pickle(path)
    if not is_training_state(content):
        return from_fairseq(content, str(path)), "fairseq"
    beside = path.parent / "config.yaml"
    if not beside.is_file():
        raise CheckpointError(f"{path} needs the config.yaml of its training beside it")
    config = yaml.safe_load(beside.read_text(encoding="utf-8"))
    return from_training(content, config, str(path)), "espnet"
