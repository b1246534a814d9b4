"""Our own format: a folder with model.safetensors and config.json.

config.json is a valid Hugging Face configuration too. model.safetensors holds the
state of `SSLAMEncoder` under `encoder.`, and of a classifier what stands beside it.
"""

import functools
import json
import os
from pathlib import Path
from typing import Any, Union

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from espnet2_sslam.checkpoint.errors import CheckpointError
from espnet2_sslam.checkpoint.names import State
from espnet2_sslam.checkpoint.parts import FBANK_NAMES, load_exactly
from espnet2_sslam.checkpoint.sniff import kind_of
from espnet2_sslam.classifier import SSLAMClassifier
from espnet2_sslam.config import STORED, EncoderConfig, HeadConfig
from espnet2_sslam.encoder import SSLAMEncoder
from espnet2_sslam.units import SAMPLE_RATE

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
NOT_STORED = ("num_batches",)  # the classifier's count of training batches
Model = Union[SSLAMEncoder, SSLAMClassifier]


def model_config(model: Model, origin: dict[str, Any] | None = None) -> dict[str, Any]:
    """The content of config.json for a model.

    Args:
        model: Encoder or classifier.
        origin: Where the weights come from (file, sha256, layout, ...).
    """
    classifier = model if isinstance(model, SSLAMClassifier) else None
    encoder = model.encoder if classifier else model
    config = {
        "model_type": "sslam",
        "architectures": [
            "SSLAMForAudioClassification" if classifier else "SSLAMModel"
        ],
        "format_version": FORMAT_VERSION,
        "encoder": encoder.config.to_dict(STORED),
        "fbank_mean": round(float(encoder.log_mel.mean), 6),
        "fbank_std": round(float(encoder.log_mel.std), 6),
        "sampling_rate": SAMPLE_RATE,
        "classifier": None,
    }
    if classifier:
        head = classifier.config.to_dict()
        config["classifier"] = {**head, "classes": classifier.classes}
        names = classifier.classes
        config["id2label"] = {str(i): name for i, name in enumerate(names)}
        config["label2id"] = {name: i for i, name in enumerate(names)}
    if origin:
        config["origin"] = origin
    return config


def model_state(model: Model) -> State:
    """The content of model.safetensors for a model."""
    if isinstance(model, SSLAMClassifier):
        state = model.state_dict()
        return {k: v for k, v in state.items() if k not in NOT_STORED}
    return {f"encoder.{name}": value for name, value in model.state_dict().items()}


def build_model(config: dict[str, Any], **encoder_options: Any) -> Model:
    """An untrained model as config.json describes it.

    Args:
        config: Content of config.json.
        encoder_options: For `SSLAMEncoder`, beside or instead of the stored ones.

    Raises:
        CheckpointError: Not a configuration of this format.
        ValueError: An option that the encoder or the classifier refuses.
    """
    if config.get("format_version") != FORMAT_VERSION or "encoder" not in config:
        raise CheckpointError(
            f"config.json has format_version {config.get('format_version')!r}, this "
            f"version reads {FORMAT_VERSION}: convert the model with sslam-convert"
        )
    options = {**config["encoder"]}
    options.update(fbank_mean=config["fbank_mean"], fbank_std=config["fbank_std"])
    options.update(encoder_options)
    encoder = SSLAMEncoder(EncoderConfig.from_dict(options, "encoder of config.json"))
    if config.get("classifier") is None:
        return encoder
    where = "classifier of config.json"
    return SSLAMClassifier(encoder, HeadConfig.from_dict(config["classifier"], where))


def fill_model(model: Model, state: State, source: str) -> Model:
    """Load the content of model.safetensors; returns the model in evaluation mode.

    Raises:
        CheckpointError: All names and shapes that do not fit.
    """
    if isinstance(model, SSLAMClassifier):
        own = model.state_dict()
        state = {**state, **{name: own[name] for name in NOT_STORED}}
        load_exactly(model, state, source)
        return model.eval()
    prefix = "encoder."
    wrong = [name for name in state if not name.startswith(prefix)]
    if wrong:
        raise CheckpointError(f"{source} holds more than an encoder: {wrong}")
    load_exactly(model, {k[len(prefix) :]: v for k, v in state.items()}, source)
    return model.eval()


def join_state(encoder: State, fbank: tuple, head: State | None) -> State:
    """The content of model.safetensors from an encoder's and a head's state.

    Args:
        encoder: State without the fbank mean and std.
        fbank: (mean, std).
        head: The classifier's state beside the encoder's.
    """
    state = {f"encoder.{name}": value for name, value in encoder.items()}
    for name, value in zip(FBANK_NAMES, fbank):
        state[f"encoder.{name}"] = torch.tensor(float(value))
    return {**state, **(head or {})}


def save_model(
    model: Model,
    folder: str | Path,
    origin: dict[str, Any] | None = None,
) -> Path:
    """Write a model as a folder that `load_model` and Hugging Face read.

    Args:
        model: Encoder or classifier.
        folder: Made if it is not there; a model in it is replaced.
        origin: See `model_config`.
    """
    return write_folder(model_config(model, origin), model_state(model), folder)


def write_folder(config: dict[str, Any], state: State, folder: str | Path) -> Path:
    """Write config.json and model.safetensors; each file is whole or not there.

    In our own format also what Hugging Face's AutoFeatureExtractor reads.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    files = {
        WEIGHTS_FILE: lambda path: save_file(tensors, path, metadata={"format": "pt"}),
        CONFIG_FILE: functools.partial(_write_json, config),
    }
    if "format_version" in config:
        files[PREPROCESSOR_FILE] = functools.partial(_write_json, PREPROCESSOR)
    partial = {name: folder / f".{name}.{os.getpid()}.part" for name in files}
    try:
        for name, write in files.items():
            write(partial[name])
        for name, path in partial.items():
            os.replace(path, folder / name)
    except SafetensorError as error:
        raise OSError(f"cannot write {folder / WEIGHTS_FILE}: {error}") from None
    finally:
        for path in partial.values():
            path.unlink(missing_ok=True)
    return folder


def _write_json(content: dict[str, Any], path: Path) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


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
