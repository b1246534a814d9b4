"""Any source of weights to a model, strictly: our folders, trainings, the authors'.

A model is taken apart (`read_parts`), completed, built from its sizes and filled. What
is loaded must fit in every name and shape (`compare_states`), whoever loads it.
"""

import csv
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Union

import torch
import yaml

import espnet2_sslam
from espnet2_sslam.checkpoint.authors import from_fairseq, from_huggingface
from espnet2_sslam.checkpoint.files import (
    CONFIG_FILE,
    FBANK_NAMES,
    FORMAT_VERSION,
    WEIGHTS_FILE,
    CheckpointError,
    Parts,
    RefusedPickle,
    State,
    kind_of,
    read_config,
    read_pickle,
    read_tensors,
    write_folder,
)
from espnet2_sslam.classifier import SSLAMClassifier
from espnet2_sslam.config import STORED, EncoderConfig, HeadConfig
from espnet2_sslam.encoder import SSLAMEncoder
from espnet2_sslam.layers import sincos_positions
from espnet2_sslam.pretrain_model import SSLAMPretrainModel
from espnet2_sslam.store import sha256
from espnet2_sslam.units import PATCH_SIZE

Model = Union[SSLAMEncoder, SSLAMClassifier]
PREFERRED = ("latest.pth", "model.pth")  # weights of a training folder
# What training adds to an encoder and a stored model has no use for.
TRAINING_ONLY = "drop_path freeze input_size override_fbank_stats pretrained".split()
HEAD_OPTIONS = ("task", "pooling", "head_norm", "weighted_layers")
COUNTERS = (
    "num_updates",
    "num_batches",
)  # buffers of our models that only training has
MARK = "encoder.patch_embed.proj.weight"
DECODER_MARK = "decoder.convs.0.weight"  # ConvDecoder's, not that of an ASR model


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
    parts = parts.complete(str(source), weights=weights)
    config = parts.config()
    if "max_frames" in encoder_options:
        frames = encoder_options["max_frames"]
        table = _fit_positions(parts.encoder["positions"], frames)
        parts = replace(parts, encoder={**parts.encoder, "positions": table})
    return Loaded(assemble(parts, str(source), **encoder_options), config)


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
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    encoder = SSLAMEncoder(
        input_size=config.get("input_size") or 1, **config["encoder_conf"]
    )
    model = SSLAMPretrainModel(encoder, **config["model_conf"])
    load_weights(model, folder / "latest.pth")
    return model.eval()


def load_weights(model: torch.nn.Module, path: str | Path) -> None:
    """Load the .pth file of a training into its whole model, strictly.

    Args:
        model: Built from the config.yaml of the same training.
        path: <N>epoch.pth, latest.pth, ...

    Raises:
        ValueError: Not such a file, or not of this model.
    """
    states = load_states(path)
    compare_states(model.state_dict(), states, str(path))
    model.load_state_dict(states)


def check_init_param(model: torch.nn.Module, init_param: str) -> None:
    """Refuse an --init_param that would load nothing, half or the wrong shapes.

    Args:
        model: the model to be initialised.
        init_param: <file>[:<source key>[:<own key>[:<excluded prefixes>]]].

    Raises:
        ValueError: naming the file and all keys at fault.
    """
    path, source, target, excluded = (init_param.split(":") + ["", "", ""])[:4]
    if not Path(path).is_file():
        raise ValueError(f"--init_param: {path} does not exist: train it first")
    excluded = tuple(prefix for prefix in excluded.split(",") if prefix)
    states = load_states(path)
    prefix = source + "." if source else ""
    loaded = {
        name[len(prefix) :]: value
        for name, value in states.items()
        if name.startswith(prefix) and not (excluded and name.startswith(excluded))
    }
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
    left_out = {k for k in own if excluded and (prefix + k).startswith(excluded)}
    compare_states(own, loaded, f"--init_param {init_param}", left_out)


def load_states(path: str | Path) -> State:
    """The tensors of a training's .pth file; ValueError if it is not one."""
    try:
        states = read_pickle(path)
    except RefusedPickle:  # checkpoint.pth holds times and more besides the weights
        states = None
    flat = isinstance(states, Mapping)
    if not flat or not all(isinstance(v, torch.Tensor) for v in states.values()):
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
        differences = [
            f"missing {', '.join(missing) or 'nothing'}",
            f"unknown {', '.join(unknown) or 'nothing'}",
        ]
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


def build_model(config: Mapping[str, Any], **encoder_options: Any) -> Model:
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
            f"version reads {FORMAT_VERSION}: convert the model with sslam convert"
        )
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
    model = build_model(parts.config(), **encoder_options)
    state = parts.state()
    compare_states(model_state(model), state, source)
    if isinstance(model, SSLAMClassifier):
        model.load_state_dict(state, strict=False)  # without the counters of training
    else:
        model.load_state_dict(parts.encoder)
    return model.eval()


def take_apart(model: Model, origin: Mapping[str, Any] | None = None) -> Parts:
    """The parts of a model.

    Args:
        model: Encoder or classifier.
        origin: Where the weights come from (file, sha256, layout, ...).
    """
    classifier = model if isinstance(model, SSLAMClassifier) else None
    encoder = classifier.encoder if classifier else model
    assert isinstance(encoder, SSLAMEncoder)
    parts = Parts(
        encoder.state_dict(), encoder.config.to_dict(STORED), origin=dict(origin or {})
    )
    if classifier:
        parts.head_options = classifier.config.to_dict()
        parts.head = {
            name: value
            for name, value in classifier.state_dict().items()
            if not name.startswith("encoder.") and name not in COUNTERS
        }
    return parts


def model_config(
    model: Model, origin: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The content of config.json for a model, see `take_apart`."""
    return take_apart(model, origin).config()


def model_state(model: Model) -> State:
    """The content of model.safetensors for a model."""
    return take_apart(model).state()


def save_model(
    model: Model, folder: str | Path, origin: Mapping[str, Any] | None = None
) -> Path:
    """Write a model as a folder that `load_model` and Hugging Face read.

    Args:
        model: Encoder or classifier.
        folder: Made if it is not there; a model in it is replaced.
        origin: See `take_apart`.
    """
    parts = take_apart(model, origin)
    return write_folder(parts.config(), parts.state(), folder)


def to_training(parts: Parts) -> State:
    """A state dict for `--init_param` of our trainings.

    Pre-training: `encoder`, and `decoder` and `teacher.encoder` where they are;
    fine-tuning: `encoder` and the head.
    """
    state = parts.state()
    for prefix, part in ("decoder.", parts.decoder), (
        "teacher.encoder.",
        parts.teacher,
    ):
        state.update({prefix + name: value for name, value in (part or {}).items()})
    return state


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
    if kind_of(path) == "safetensors":
        parts, layout = _from_safetensors(path)
    else:
        parts, layout = _from_pickle(path)
    parts.origin = parts.origin or {
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
    files = [p for s in ("*.safetensors", "*.pth", "*.pt") for p in folder.glob(s)]
    files = sorted(path for path in files if path.name != "checkpoint.pth")
    preferred = [path for path in files if path.name in PREFERRED]
    if preferred or len(files) == 1:
        chosen = (preferred or files)[0]
        logging.info("weights of %s: %s", folder, chosen.name)
        return chosen
    names = ", ".join(path.name for path in files)
    raise CheckpointError(
        f"{folder} holds several files of weights, name one: {names}"
        if files
        else f"{folder} holds no weights ({WEIGHTS_FILE}, *.pth or *.pt)"
    )


def read_labels(path: Path, known: Sequence[str] | None = None) -> list[str]:
    """Read the names of the classes in their order.

    Args:
        path: One name per line; or a table of `index,name` or `index,mid,name` with or
            without a header, as in the authors' label_descriptors.csv and AudioSet's
            class_labels_indices.csv.
        known: Labels of the checkpoint. A table with a second column of these
            (AudioSet's /m/... ids) is brought into their order.

    Raises:
        CheckpointError: No names, a name twice, or labels that the table lacks.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no file of labels {path}")
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = [[cell.strip() for cell in row] for row in csv.reader(file) if any(row)]
    if rows and rows[0][0].lower() in ("index", "id"):
        rows = rows[1:]
    if not rows:
        raise CheckpointError(f"{path} holds no labels")
    if len(rows[0]) > 1:  # in the order of the first column, which counts the classes
        numbers = [row[0] for row in rows]
        if not all(number.isdecimal() for number in numbers):
            raise CheckpointError(
                f"{path}: the first of several columns must be the class's number"
            )
        rows.sort(key=lambda row: int(row[0]))
        if [int(row[0]) for row in rows] != list(range(len(rows))):
            raise CheckpointError(
                f"{path} does not number its classes 0 to {len(rows) - 1}"
            )
    names = [row[-1] for row in rows]
    if known is not None and all(len(row) > 2 for row in rows):
        by_id = {row[1]: row[-1] for row in rows}
        if set(known) & set(by_id):
            missing = [label for label in known if label not in by_id]
            if missing:
                raise CheckpointError(f"{path} lacks {', '.join(missing)}")
            names = [by_id[label] for label in known]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise CheckpointError(f"{path} names {', '.join(twice)} more than once")
    if known is not None and len(names) != len(known):
        raise CheckpointError(
            f"{path} has {len(names)} labels, the checkpoint {len(known)}"
        )
    return names


def _from_safetensors(path: Path) -> tuple[Parts, str]:
    """Parts and layout of a safetensors file with or without its config.json."""
    state = read_tensors(path)
    has_config = (path.parent / CONFIG_FILE).exists()
    config = read_config(path.parent) if has_config else {}
    if "format_version" not in config:
        return from_huggingface(state, config, str(path)), "huggingface"
    if config["format_version"] != FORMAT_VERSION:
        build_model(config)  # says which versions differ
    options = config.get("classifier")
    head = {k: v for k, v in state.items() if not k.startswith("encoder.")}
    if head and not options:
        raise CheckpointError(f"{path} holds more than an encoder: {', '.join(head)}")
    origin = config.get("origin") or {}
    encoder = _below(state, "encoder.")
    missing = [name for name in FBANK_NAMES if name not in encoder]
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(missing)} of its encoder")
    parts = Parts(encoder, config["encoder"], head or None, options, origin=origin)
    stated = config["fbank_mean"], config["fbank_std"]
    if any(
        abs(a - b) > 1e-4 * max(1, abs(a))
        for a, b in zip(stated, parts.fbank, strict=True)
    ):
        raise CheckpointError(
            f"{path} has fbank mean and std {parts.fbank}, its {CONFIG_FILE} {stated}: "
            "correct that, or change both with sslam convert --fbank_mean --fbank_std"
        )
    return parts, "espnet2_sslam"


def _from_pickle(path: Path) -> tuple[Parts, str]:
    """Parts and layout of a file of torch.save: a training's or the authors'."""
    content = read_pickle(path)
    if not isinstance(content, Mapping) or MARK not in content:
        return from_fairseq(content, str(path)), "fairseq"
    file = path.parent / "config.yaml"
    if not file.is_file():
        raise CheckpointError(f"{path} needs the config.yaml of its training beside it")
    config = yaml.safe_load(file.read_text(encoding="utf-8"))
    if not isinstance(config, dict) or not isinstance(config.get("encoder_conf"), dict):
        raise CheckpointError(f"the config.yaml beside {path} is of another task")
    return _from_training(dict(content), config, path), "espnet"


def _from_training(state: State, config: dict[str, Any], path: Path) -> Parts:
    """Parts of a pre-training model or a classifier; of other tasks, the encoder."""
    options = {
        k: v for k, v in config["encoder_conf"].items() if k not in TRAINING_ONLY
    }
    sizes = EncoderConfig.from_dict(options, f"encoder_conf beside {path}")
    prefixes = ("encoder.", "decoder.", "teacher.encoder.")
    encoder, decoder, teacher = (_below(state, prefix) for prefix in prefixes)
    head = {
        name: value
        for name, value in state.items()
        if not name.startswith(prefixes) and name not in COUNTERS
    }
    parts = Parts(
        encoder,
        sizes.to_dict(STORED),
        decoder=decoder if DECODER_MARK in state else None,
        teacher=teacher or None,
    )
    if isinstance(config.get("class_list"), list):
        model_conf = config.get("model_conf") or {}
        kept = {name: model_conf[name] for name in HEAD_OPTIONS if name in model_conf}
        parts.head = head
        parts.head_options = HeadConfig(tuple(config["class_list"]), **kept).to_dict()
    elif head:
        logging.info("%s: only the encoder is taken", path)
    return parts


def _below(state: State, prefix: str) -> State:
    """Entries below a prefix, without it."""
    return {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}


def _fit_positions(stored: torch.Tensor, max_frames: int) -> torch.Tensor:
    """A stored position table for passes of another length.

    Args:
        stored: (1, steps * 8, D); its rows are kept, rounded as they may be.
        max_frames: Length of the passes; rows beyond the stored ones are computed.
    """
    steps = max_frames // PATCH_SIZE
    fitted = sincos_positions(stored.shape[-1], steps)
    both = min(fitted.shape[1], stored.shape[1])
    fitted[:, :both] = stored[:, :both]
    return fitted
