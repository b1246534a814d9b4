"""The layouts of weights, each to `Parts` and back: the authors', a training's, ours.

"fairseq" is what the authors' trainer writes (.pt), "huggingface" their exports
(safetensors), "espnet" the .pth file of a training with its config.yaml. Our own folder
is model.safetensors (an encoder's entries under `encoder.`) and config.json, which is a
valid Hugging Face configuration too. Names are those of `SSLAMEncoder`, `ConvDecoder`
and `SSLAMClassifier`.

Source: key lists of checkpoints written by the trainer of ta012/SSLAM@0a3c0ff (fairseq;
it keeps the layout of cwx-worst-one/EAT@06c1c34), and the configuration that its loader
rebuilds the network from; the exports' layout as their public loaders read it.
"""

import json
import logging
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import save

from espnet2_sslam.config import RESAMPLERS, STORED, EncoderConfig, HeadConfig
from espnet2_sslam.store import remove_leftovers_of, replacing
from espnet2_sslam.units import (
    AUDIOSET_MEAN,
    AUDIOSET_STD,
    PATCH_SIZE,
    PATCHES_PER_STEP,
    SAMPLE_RATE,
)

State = dict[str, torch.Tensor]

FORMAT_VERSION = 1
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = f"{WEIGHTS_FILE}.index.json"  # of weights in several files
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
ENCODERS = ("encoder.", "teacher.encoder.")
FBANK_NAMES = ("log_mel.mean", "log_mel.std")  # below these

# Authors' prefix -> ours; a trailing dot stands for everything below. (A block of their
# decoder is a sequence, whose first entry is the convolution: see `rename`.)
ENCODER_NAMES = {
    "modality_encoders.IMAGE.extra_tokens": "encoder.cls_token",
    "modality_encoders.IMAGE.local_encoder.proj.": "encoder.patch_embed.proj.",
    "modality_encoders.IMAGE.fixed_positional_encoder.positions": "encoder.positions",
    "modality_encoders.IMAGE.context_encoder.norm.": "encoder.norm.",
    "blocks.": "encoder.blocks.",
}
DECODER_NAMES = {
    "modality_encoders.IMAGE.decoder.blocks.": "decoder.convs.",
    "modality_encoders.IMAGE.decoder.proj.": "decoder.proj.",
}
HEAD_NAMES = {"fc_norm.": "fc_norm.", "head.": "head."}
HUGGINGFACE_NAMES = {
    "model.extra_tokens": "encoder.cls_token",
    "model.local_encoder.proj.": "encoder.patch_embed.proj.",
    "model.fixed_positional_encoder.positions": "encoder.positions",
    "model.pre_norm.": "encoder.norm.",
    "model.blocks.": "encoder.blocks.",
    "model.fc_norm.": "fc_norm.",
    "model.head.": "head.",
}

HEAD_WIDTH = 64  # channels per attention head in every released model
POOLINGS = {"CLS_TOKEN": "cls", "MEAN_POOLING": "mean", "LIN_SOFTMAX": "lin_softmax"}
# The authors' loader chooses the fbank mean and std by these flags of the task.
FBANK_BY_FLAG = {"esc50_eval": (-6.627, 5.359), "spcv2_eval": (-6.846, 5.565)}
# Options of the authors' models, in any section, that our encoder has built in.
BUILT_IN = {
    "layer_norm_first": False,
    "norm_eps": 1e-6,
    "norm_affine": True,
    "num_extra_tokens": 1,
    "prenet_depth": 0,
    "use_alibi_encoder": False,
    "in_chans": 1,
    "patch_size": PATCH_SIZE,
    "fixed_positions": True,
}
WRAPPERS = ("module.", "_orig_mod.", "model.")
# What else the authors' trainer writes and their loader reads; sizes are filled in.
CFG_FILE = Path(__file__).with_name("fairseq.yaml")
SHARED_SIZES = ("embed_dim", "depth", "num_heads", "mlp_ratio")  # named alike in all
# What training adds to an encoder and a stored model has no use for.
TRAINING_ONLY = "drop_path freeze input_size override_fbank_stats pretrained".split()
MAX_DIMS = 8  # of a tensor
COUNTERS = ("num_updates", "num_batches")  # buffers that only training has


class CheckpointError(ValueError):
    """A model or checkpoint that cannot be used; one line that says what it is."""


@dataclass
class Parts:
    """A model taken apart: tensors under our names, whatever the file's layout was.

    Args:
        tensors: By the names of our trainings: `encoder.`; from pre-training `decoder.`
            and `teacher.encoder.`; of a classifier `fc_norm.`, `head.`, `pooling.`.
        sizes: Fields of `EncoderConfig` that config.json keeps; num_heads may be None,
            where the file does not say.
        head_options: Of a classifier, the fields of `HeadConfig`; classes may be None.
        origin: Where the weights come from (file, sha256, layout, ...).
    """

    tensors: State
    sizes: dict[str, Any]
    head_options: dict[str, Any] | None = None
    origin: dict[str, Any] = field(default_factory=dict)

    def below(self, prefix: str) -> State:
        """The tensors below a prefix, without it."""
        return below(self.tensors, prefix)

    @property
    def fbank(self) -> tuple[float, float]:
        """Mean and std of the log-mel, as many digits as float32 has."""
        encoder = self.below("encoder.")
        mean, std = (round(float(encoder[name]), 6) for name in FBANK_NAMES)
        return mean, std

    def state(self) -> State:
        """The content of model.safetensors."""
        training = ("decoder.", "teacher.")
        return {k: v for k, v in self.tensors.items() if not k.startswith(training)}

    def config(self) -> dict[str, Any]:
        """The content of config.json."""
        (mean, std), options = self.fbank, self.head_options
        kind = "SSLAMForAudioClassification" if options else "SSLAMModel"
        config = {
            "model_type": "sslam",
            "architectures": [kind],
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
            num_heads, classes, task, fbank: Instead of what the source says, if given.

        Raises:
            CheckpointError: No teacher; the number of heads or the class names are
                unknown, or do not fit the weights; class options without a head.
        """
        tensors, origin = self.tensors, dict(self.origin)
        if weights not in ("student", "teacher"):
            raise CheckpointError(f"weights are student or teacher, not {weights!r}")
        if weights == "teacher":
            teacher = self.below("teacher.encoder.")
            if not teacher:
                raise CheckpointError(
                    f"{source} holds no teacher (EMA): take weights student"
                )
            others = {k: v for k, v in tensors.items() if not k.startswith("encoder.")}
            tensors = {**put_below(teacher, "encoder."), **others}
            origin["weights"] = weights
        sizes = {**self.sizes, "num_heads": num_heads or self.sizes.get("num_heads")}
        if sizes["num_heads"] is None:
            raise CheckpointError(
                f"{source} does not say how many attention heads it has: convert it "
                "with sslam convert --num_heads N"
            )
        if fbank is not None:
            tensors = with_fbank(tensors, fbank)
        if self.head_options is None:
            if classes or task:
                raise CheckpointError(
                    f"{source} has no classification head: leave labels and task out"
                )
            return Parts(tensors, sizes, origin=origin)
        options = dict(self.head_options)
        options["classes"] = classes or options["classes"]
        options["task"] = task or options["task"]
        number, named = len(tensors.get("head.weight", ())), options["classes"]
        if not named or len(named) != number:
            names = f", {len(named)} names were given" if named else " without names: "
            remedy = "" if named else "convert it with sslam convert --labels FILE"
            raise CheckpointError(f"{source} has {number} classes{names}{remedy}")
        return Parts(tensors, sizes, options, origin)


def with_fbank(tensors: State, fbank: tuple[float, float]) -> State:
    """The tensors, each encoder with this mean and std of the log-mel."""
    tensors = dict(tensors)
    for prefix in ENCODERS:
        if any(name.startswith(prefix) for name in tensors):
            for name, value in zip(FBANK_NAMES, fbank, strict=True):
                tensors[prefix + name] = torch.tensor(float(value))
    return tensors


def below(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Entries below a prefix, without it."""
    return {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}


def put_below(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The entries with a prefix."""
    return {prefix + name: value for name, value in state.items()}


# --- our folder and our trainings


def shards_of(index: Path) -> list[str]:
    """Names of the files, beside `index`, that hold the weights of a large model.

    Raises:
        CheckpointError: Not the index that Hugging Face writes.
    """
    try:
        shards = set(json.loads(index.read_bytes())["weight_map"].values())
        return sorted({Path(name).name for name in shards} - {""})
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{index} names no files of weights") from None


def write_folder(config: dict[str, Any], state: State, folder: str | Path) -> Path:
    """Write config.json and model.safetensors; each file is whole or not there.

    In our own format also what Hugging Face's AutoFeatureExtractor reads.
    """
    folder = Path(folder)
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    texts = {CONFIG_FILE: config}
    if "format_version" in config:
        texts[PREPROCESSOR_FILE] = PREPROCESSOR
    with ExitStack() as stack:  # nothing is replaced before all is written
        for name in (WEIGHTS_FILE, *texts):
            remove_leftovers_of(folder / name)
        # not save_file, which has temporary files of its own: a kill leaves them
        path = stack.enter_context(replacing(folder / WEIGHTS_FILE))
        path.write_bytes(save(tensors, metadata={"format": "pt"}))
        for name, content in texts.items():
            path = stack.enter_context(replacing(folder / name))
            text = json.dumps(content, indent=2, ensure_ascii=False)
            path.write_text(text + "\n", encoding="utf-8")
    return folder


def from_folder(state: State, config: Mapping[str, Any], source: str) -> Parts:
    """Take apart the content of a folder in our format.

    Raises:
        CheckpointError: Weights and config.json that contradict each other.
    """
    for name, kinds in (
        ("encoder", dict),
        ("fbank_mean", (int, float)),
        ("fbank_std", (int, float)),
        ("classifier", (dict, NoneType)),
        ("origin", (dict, NoneType)),
    ):
        if not isinstance(config.get(name), kinds):
            raise CheckpointError(
                f"{CONFIG_FILE} beside {source} has no usable {name}: get it again"
            )
    config = {
        **config,
        "encoder": EncoderConfig.from_dict(config["encoder"]).to_dict(STORED),
    }
    options = config.get("classifier")
    if options:
        options = HeadConfig.from_dict(options, "classifier of config.json").to_dict()
    head = [name for name in state if not name.startswith("encoder.")]
    if head and not options:
        raise CheckpointError(f"{source} holds more than an encoder: {', '.join(head)}")
    check_tensors(state, source)
    _check_fbank(state, source)
    parts = Parts(state, config["encoder"], options, config.get("origin") or {})
    stated = float(config["fbank_mean"]), float(config["fbank_std"])
    if not np.allclose(parts.fbank, stated, rtol=1e-4, atol=1e-4):
        raise CheckpointError(
            f"{source} has fbank mean and std {parts.fbank}, its {CONFIG_FILE} "
            f"{stated}: correct that, or change both with sslam convert --fbank_mean "
            "--fbank_std"
        )
    return parts


def _check_fbank(state: State, source: str) -> None:
    """Refuse an encoder without the mean and std of its log-mel."""
    for name in FBANK_NAMES:
        value = state.get(f"encoder.{name}")
        if value is None or value.numel() != 1:
            raise CheckpointError(f"{source} lacks {name} of its encoder")


def from_training(state: State, config: dict[str, Any], source: str) -> Parts:
    """Take apart a .pth file; of other tasks than ours, the encoder.

    Args:
        state: Its tensors.
        config: The config.yaml beside it.
        source: What errors call the file.
    """
    check_tensors(state, source)
    _check_fbank(state, source)
    conf = config["encoder_conf"].items()
    options = {name: value for name, value in conf if name not in TRAINING_ONLY}
    sizes = EncoderConfig.from_dict(options, f"encoder_conf beside {source}")
    tensors = {name: value for name, value in state.items() if name not in COUNTERS}
    parts = Parts(tensors, sizes.to_dict(STORED))
    names = config.get("class_names") or config.get("class_list")
    if isinstance(names, list):
        defaults = HeadConfig(tuple(names)).to_dict()
        conf = config.get("model_conf") or {}
        if not isinstance(conf, Mapping):
            raise CheckpointError(
                f"model_conf beside {source} must hold names and values"
            )
        parts.head_options = {k: conf.get(k, value) for k, value in defaults.items()}
        return parts
    # ConvDecoder's, not that of an ASR model
    has_decoder = "decoder.convs.0.weight" in tensors
    prefixes = (*ENCODERS, "decoder.") if has_decoder else ENCODERS
    parts.tensors = {k: v for k, v in tensors.items() if k.startswith(prefixes)}
    if len(parts.tensors) < len(tensors):
        logging.info("%s: only the encoder is taken", source)
    return parts


def to_training(parts: Parts) -> State:
    """A state dict for `--init_param` of our trainings.

    Pre-training: `encoder`, and `decoder` and `teacher.encoder` where they are, with
    the counters at 0; fine-tuning: `encoder` and the head.
    """
    state = dict(parts.tensors)
    if parts.below("decoder.") or parts.below("teacher."):
        state |= {name: torch.zeros(()) for name in COUNTERS}
    return state


# --- the authors' files


class StandIn:
    """In place of a configuration class: keeps the pickled state, does nothing."""

    def __init__(self, *args: Any, **kwargs: Any):
        self.__dict__.update(kwargs)

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


def plain(value: Any) -> Any:
    """A configuration as plain dicts, lists and values, whatever classes it came in."""
    if isinstance(value, StandIn):
        value = vars(value)
        # omegaconf's containers, omegaconf's values, an enumeration
        for name in ("_content", "_val", "_value_"):
            if name in value:
                return plain(value[name])
    if isinstance(value, dict):
        return {str(plain(name)): plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def from_fairseq(checkpoint: Any, source: str) -> Parts:
    """Take apart what the authors' trainer wrote.

    Args:
        checkpoint: The unpickled file: a dict with `model`, or a bare state dict.
        source: What errors call the file.

    Raises:
        CheckpointError: Not an EAT or SSLAM model; all entries that are too many;
            an architecture that the encoder does not have.
    """
    content = checkpoint if isinstance(checkpoint, Mapping) else {}
    state = content.get("model", content.get("state_dict", checkpoint))
    if "optimizers" in content or "optimizer_states" in content:
        raise CheckpointError(
            f"{source} is the state of a training, to be resumed: take its weights, "
            "latest.pth or <N>epoch.pth beside it"
        )
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{source} holds a {type(state).__name__}, no model")
    state = unwrapped(state)
    if isinstance(state.get("_ema"), Mapping):
        state.update(put_below(state.pop("_ema"), "_ema."))
    if not all(isinstance(name, str) for name in state):
        raise CheckpointError(f"{source} is no model: its entries have no names")
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            raise CheckpointError(
                f"{source} is no model: {name} is a {type(value).__name__}, no tensor"
            )
    check_tensors(state, source)
    teacher = below(state, "_ema.")
    state = {k: v for k, v in state.items() if not k.startswith("_ema.")}
    if any(name.startswith("model.modality_encoders.") for name in state):
        # fine-tuned: the pre-trained network is one level down, the head is not
        state = {name.removeprefix("model."): value for name, value in state.items()}
    names = {**ENCODER_NAMES, **DECODER_NAMES, **HEAD_NAMES}
    tensors = from_authors(source, state, names)
    if teacher:
        teacher = from_authors(f"{source} (EMA)", teacher, ENCODER_NAMES)
        tensors.update(put_below(teacher, "teacher."))
    cfg = _section(source, content, "cfg")
    model_cfg, task_cfg = _section(source, cfg, "model"), _section(source, cfg, "task")
    pretrained = _section(source, model_cfg, "pretrained_model_args")
    base_cfg = _section(source, pretrained, "model") or model_cfg
    image_cfg = _section(source, _section(source, base_cfg, "modalities"), "image")
    _check_architecture(source, base_cfg, image_cfg)
    labels = _section(source, _section(source, content, "task_state"), "labels")
    classes = None
    if labels:  # {name: number}
        if not all(str(number).isdecimal() for number in labels.values()):
            raise CheckpointError(f"{source}: its labels are not numbered")
        classes = sorted(map(str, labels), key=lambda name: int(str(labels[name])))
    details = {**base_cfg, **task_cfg, **model_cfg}
    return _parts(tensors, details, base_cfg.get("num_heads"), classes)


def _section(source: str, content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A part of the authors' configuration, empty if it is not there."""
    section = plain(content.get(name)) or {}
    if not isinstance(section, Mapping):
        raise CheckpointError(f"{source}: {name} must hold names and values")
    return section


def from_huggingface(state: State, config: Mapping[str, Any], source: str) -> Parts:
    """Take apart an export of the authors; `config` may be empty.

    Raises:
        CheckpointError: As in `from_fairseq`.
    """
    tensors = from_authors(source, state, HUGGINGFACE_NAMES)
    _check_architecture(source, config)
    labels = config.get("id2label") or {}
    if not isinstance(labels, Mapping) or not all(str(k).isdecimal() for k in labels):
        raise CheckpointError(f"{source}: id2label of config.json must number names")
    classes = [str(labels[key]) for key in sorted(labels, key=int)]
    check_tensors(tensors, source)
    if all(name.startswith("LABEL_") for name in classes):
        classes = None
    return _parts(tensors, {}, config.get("num_heads"), classes)


def unwrapped(state: Mapping[str, Any]) -> dict[str, Any]:
    """The entries without what DistributedDataParallel and torch.compile put before.

    Lightning's `model.` as well, where it stands before every entry.
    """
    state = dict(state)
    while prefix := next(
        (of for of in WRAPPERS if all(k.startswith(of) for k in state)), ""
    ):
        if not state:
            break
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def check_tensors(state: Mapping[str, torch.Tensor], source: str) -> None:
    """Refuse what is no plain tensor, would take more memory than its file, or is NaN.

    Raises:
        CheckpointError: The first of them by name.
    """
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            kind = type(value).__name__
            raise CheckpointError(f"{source} is no model: {name!r:.40} is a {kind}")
        if value.dim() > MAX_DIMS:
            raise CheckpointError(f"{source}: {name} has {value.dim()} dimensions")
        if value.layout != torch.strided or value.is_quantized or value.is_complex():
            raise CheckpointError(
                f"{source}: {name} is sparse, quantized or complex: save it as float32"
            )
        if value.is_meta:  # shapes alone
            continue
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise CheckpointError(
                f"{source}: {name} claims to be larger than what is stored of it: get "
                "the file again"
            )
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise CheckpointError(f"{source}: {name} holds NaN or infinity")


def to_fairseq(parts: Parts) -> dict[str, Any]:
    """The content of a .pt file that the authors' code loads.

    Tensors are the same objects as in `parts`. A classifier becomes their fine-tuned
    layout; an encoder their pre-training layout, with decoder and EMA where they are.

    Raises:
        CheckpointError: A head that their classifier does not have.
    """
    stored = yaml.safe_load(CFG_FILE.read_text(encoding="utf-8"))
    cfg = {"model": _model_cfg(parts, stored), "task": stored["task"]}
    task_state, options = {}, parts.head_options
    if options is None:
        names = {**ENCODER_NAMES, **DECODER_NAMES}
        state: OrderedDict[str, Any] = OrderedDict(to_authors(parts.tensors, names))
        if teacher := parts.below("teacher."):
            state["_ema"] = to_authors(teacher, ENCODER_NAMES)
    else:
        _check_head(parts)
        student = to_authors(parts.tensors, ENCODER_NAMES)
        head = to_authors(parts.tensors, HEAD_NAMES)
        state = OrderedDict({**put_below(student, "model."), **head})
        classes = options["classes"]
        task_state = {"labels": {name: str(i) for i, name in enumerate(classes)}}
        both: dict[str, Any] = {
            flag: parts.fbank == values for flag, values in FBANK_BY_FLAG.items()
        }
        both["target_length"] = parts.sizes["target_frames"] or 1024
        [mode] = [k for k, pooling in POOLINGS.items() if pooling == options["pooling"]]
        model = {
            **stored["classifier"],
            "num_classes": len(classes),
            "prediction_mode": mode,
            "pretrained_model_args": cfg,
        }
        task = {**cfg["task"], **stored["classifier_task"]}
        cfg = {"model": {**model, **both}, "task": {**task, **both}}
    return {**stored["file"], "cfg": cfg, "model": state, "task_state": task_state}


def to_huggingface(parts: Parts) -> tuple[State, dict[str, Any]]:
    """The tensors and the config.json of the authors' exports.

    Raises:
        CheckpointError: As in `to_fairseq`.
    """
    options, sizes = parts.head_options, parts.sizes
    config = {
        "model_type": "eat",
        "model_variant": "finetune" if options else "pretrain",
        **{name: sizes[name] for name in SHARED_SIZES},
        "max_length": sizes["max_frames"] // PATCH_SIZE,
        **yaml.safe_load(CFG_FILE.read_text(encoding="utf-8"))["export"],
    }
    if options is not None:
        _check_head(parts)
        config["num_classes"] = len(options["classes"])
        names = enumerate(options["classes"])
        config["id2label"] = {str(i): name for i, name in names}
    return to_authors(parts.tensors, HUGGINGFACE_NAMES), config


def rename(name: str, names: dict[str, str]) -> str | None:
    """A name that begins as in `names`, with the other beginning; None if it does not.

    Among the decoder's also between convs.N.0.weight, theirs, and convs.N.weight.
    """
    for prefix, other in names.items():
        if name == prefix or (prefix.endswith(".") and name.startswith(prefix)):
            rest = name[len(prefix) :]
            if other == "decoder.convs.":
                rest = rest.replace(".0.", ".", 1)
            elif prefix == "decoder.convs.":
                rest = rest.replace(".", ".0.", 1)
            return other + rest
    return None


def to_authors(state: State, names: dict[str, str]) -> State:
    """The entries of ours that a table of the authors' names has, under these."""
    ours = {ours: theirs for theirs, ours in names.items()}
    renamed = ((rename(name, ours), value) for name, value in state.items())
    return {name: value for name, value in renamed if name is not None}


def from_authors(source: str, state: State, names: dict[str, str]) -> State:
    """The authors' entries under our names, in float32.

    Raises:
        CheckpointError: Entries that are not in the table, or none that is.
    """
    renamed = {name: rename(name, names) for name in state}
    unknown = sorted(name for name, ours in renamed.items() if ours is None)
    if len(unknown) == len(state):  # nothing known at all is another model
        raise CheckpointError(
            f"{source} is not an EAT or SSLAM model: it holds "
            f"{', '.join(unknown[:3]) or 'nothing'}, ..."
        )
    if unknown:
        raise CheckpointError(
            f"{source} holds entries that no EAT or SSLAM model has: "
            f"{', '.join(unknown)}"
        )
    return {
        str(renamed[name]): value.float() if value.is_floating_point() else value
        for name, value in state.items()
    }


def _parts(
    tensors: State,
    details: Mapping[str, Any],
    num_heads: int | None,
    classes: list[str] | None,
) -> Parts:
    """Put renamed tensors together with what shapes and configuration say of them.

    Args:
        details: Options of the authors' configuration, by name.
        num_heads: None: as in every released model of this width, or unknown.

    Raises:
        CheckpointError: The entries that tell the sizes are missing.
    """
    encoder = below(tensors, "encoder.")
    dims = {"patch_embed.proj.weight": 4, "positions": 3, "blocks.0.mlp.fc1.weight": 2}
    needed = {name: encoder.get(name, torch.zeros(())) for name in dims}
    missing = [n for n, of in needed.items() if of.dim() != dims[n] or not len(of)]
    if missing:
        raise CheckpointError(f"not an SSLAM encoder: it lacks {', '.join(missing)}")
    width = len(encoder["patch_embed.proj.weight"])
    if num_heads is None and width % HEAD_WIDTH == 0:
        num_heads = width // HEAD_WIDTH
    sizes = {
        "embed_dim": width,
        "depth": len({k.split(".")[1] for k in encoder if k.startswith("blocks.")}),
        "mlp_ratio": len(encoder["blocks.0.mlp.fc1.weight"]) / width,
        "max_frames": encoder["positions"].shape[1] // PATCHES_PER_STEP * PATCH_SIZE,
        "num_heads": num_heads,
        "target_frames": None,
        "resampler": RESAMPLERS[0],
    }
    flags = [flag for flag in FBANK_BY_FLAG if details.get(flag)]
    fbank = FBANK_BY_FLAG[flags[-1]] if flags else (AUDIOSET_MEAN, AUDIOSET_STD)
    parts = Parts(with_fbank(tensors, fbank), sizes)
    if any(name.startswith("head.") for name in tensors):
        mode = str(details.get("prediction_mode", "CLS_TOKEN")).split(".")[-1]
        parts.head_options = {
            "classes": classes,
            "task": "multi_class" if flags else "multi_label",
            "pooling": POOLINGS.get(mode, mode),
            "head_norm": "layer",
            "weighted_layers": False,
        }
    return parts


def _check_architecture(source: str, *sections: Mapping[str, Any]) -> None:
    """Refuse options that change the network in ways our encoder does not have."""
    wrong = [
        f"{name}: {section[name]} (not {value})"
        for section in sections
        for name, value in BUILT_IN.items()
        if section.get(name) not in (None, value)
    ]
    if wrong:
        raise CheckpointError(f"{source} has another architecture: {', '.join(wrong)}")


def _check_head(parts: Parts) -> None:
    """Refuse a classifier that the authors' code does not have."""
    options = parts.head_options or {}
    if (
        any(name.startswith("pooling.") for name in parts.tensors)
        or options["pooling"] not in POOLINGS.values()
        or options["head_norm"] != "layer"
        or options["weighted_layers"]
    ):
        raise CheckpointError(
            "the authors' classifier has pooling cls, mean or lin_softmax of the last "
            f"layer and a layer norm; this one has pooling {options['pooling']}, "
            f"{options['head_norm']} norm, weighted_layers {options['weighted_layers']}"
        )


def _model_cfg(parts: Parts, stored: dict[str, Any]) -> dict[str, Any]:
    """Their section `model` of pre-training."""
    sizes, decoder = parts.sizes, parts.below("decoder.")
    width = sizes["embed_dim"]
    layers, channels, groups, kernel = 6, width, 16, 3  # the paper's
    if decoder:
        first = decoder["convs.0.weight"]
        layers = len([name for name in decoder if name.endswith("weight")]) - 1
        channels, groups, kernel = len(first), width // first.shape[1], first.shape[-1]
    image = {
        **stored["image"],
        "embed_dim": width,
        "model_depth": sizes["depth"],
        "num_alibi_heads": sizes["num_heads"],
        "max_length": sizes["max_frames"] // PATCH_SIZE,
        "decoder": {
            **stored["decoder"],
            "decoder_dim": channels,
            "decoder_groups": groups,
            "decoder_kernel": kernel,
            "decoder_layers": layers,
        },
    }
    return {
        **stored["model"],
        **{name: sizes[name] for name in SHARED_SIZES},
        "average_top_k_layers": sizes["depth"],
        "modalities": {"_name": None, "image": image},
    }
