"""What users see of the package, as records to compare with.

The records in tests/contract/ hold what the package did when they were written. They
may change only together with a decision that users shall see something else:

    python -m tests.contract_record                        # the names of the records
    python -m tests.contract_record --write                # write all anew
    python -m tests.contract_record --write embed layouts  # or some of them
    git diff tests/contract                                # what users will see

`tests/test_contract.py` compares. Only public faces are used: commands, run.sh, files,
`from espnet2_sslam import SSLAM`, and the classes that the four functions below build.
"""

import argparse
import contextlib
import csv
import functools
import hashlib
import importlib
import inspect
import io
import json
import lzma
import os
import re
import runpy
import subprocess
import sys
import tempfile
import typing
import warnings
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
import yaml

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "egs2" / "sslam"
GOLDEN = ROOT / "tests" / "golden"
RECORDS = ROOT / "tests" / "contract"
PRETRAINED = "tiny_fairseq_pretrain.pt"
FINETUNED = "tiny_fairseq_finetuned.pt"
SAMPLED = 12  # numbers that are kept of a long array
DIGITS = 7  # significant ones, as many as float32 has

# The classes, each built in one place: sizes and options are keywords here.


def build_encoder(input_size: int = 1, **options):
    """The encoder."""
    from espnet2_sslam.encoder import SSLAMEncoder

    return SSLAMEncoder(input_size=input_size, **options)


def build_classifier(encoder, classes, augment=None, **options):
    """The classifier, with augmentation by its options."""
    from espnet2_sslam.augment import Augmentation
    from espnet2_sslam.classifier import SSLAMClassifier

    augmentation = Augmentation(**(augment or {}))
    return SSLAMClassifier(encoder, classes, augmentation=augmentation, **options)


def build_pretrain_model(encoder, **options):
    """Student, teacher and decoder."""
    from espnet2_sslam.pretrain_model import SSLAMPretrainModel

    return SSLAMPretrainModel(encoder, **options)


# Records: name -> how to make and compare them.


@dataclass(frozen=True)
class Record:
    """One file of tests/contract: what makes it, how close a number must be."""

    name: str
    make: Callable
    rtol: float
    slow: bool
    needs: tuple[str, ...]

    @property
    def path(self) -> Path:
        """Its file."""
        return RECORDS / f"{self.name}.json"

    def content(self, work: "Workspace"):
        """What it holds now, without paths of this machine."""
        text = json.dumps(self.make(work), ensure_ascii=False)
        return json.loads(work.clean(text))


RECORDED: dict[str, Record] = {}


def record(rtol: float = 0.0, slow: bool = False, needs: tuple[str, ...] = ()):
    """Register a function of the workspace as what makes the record of its name."""

    def register(make: Callable) -> Callable:
        RECORDED[make.__name__] = Record(make.__name__, make, rtol, slow, needs)
        return make

    return register


def differences(old, new, rtol: float, where: str = "", scale: float = 0.0) -> list:
    """One line per item that differs: its place, old, new.

    A number may differ by `rtol` of itself or, in a list, of the list's largest
    (`scale`), and what a command printed with three decimals by the last of them.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        lines = []
        for key in [*old, *(key for key in new if key not in old)]:
            place = f"{where} / {key}" if where else str(key)
            if key not in new:
                lines.append(f"{place}: gone, was {_short(old[key])}")
            elif key not in old:
                lines.append(f"{place}: not there before, now {_short(new[key])}")
            else:
                lines += differences(old[key], new[key], rtol, place)
        return lines
    if isinstance(old, list) and isinstance(new, list):
        if len(old) != len(new):
            missing = [item for item in old if item not in new]
            added = [item for item in new if item not in old]
            return [
                f"{where}: {len(old)} items before, {len(new)} now; gone: "
                f"{_short(missing)}; added: {_short(added)}"
            ]
        sizes = [abs(item) for item in old if _is_number(item) and item == item]
        lines = []
        for index, pair in enumerate(zip(old, new)):
            place = f"{where} [{index}]"
            lines += differences(*pair, rtol, place, max(sizes, default=0.0))
        return lines
    if _is_number(old) and _is_number(new):
        room = 1.1e-3 if " / printed [" in where else rtol * max(abs(old), scale)
        both_nan = old != old and new != new
        same = old == new or abs(old - new) <= room or both_nan
    else:
        same = type(old) is type(new) and old == new
    return [] if same else [f"{where}: was {_short(old)}, is {_short(new)}"]


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _short(value) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 300 else f"{text[:300]}..."


def plain(value):
    """A value as JSON holds it, numbers rounded; long rows of numbers are thinned."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "fiub":
            return plain(value.tolist())
        flat = value.astype(np.float64).reshape(-1)
        return {"shape": list(value.shape), "dtype": str(value.dtype), **_thin(flat)}
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        numbers = len(value) > 2 * SAMPLED and all(map(_is_number, value))
        if numbers:
            return {"count": len(value), **_thin(np.array(value, np.float64))}
        return [plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return str(value)


def _thin(flat: np.ndarray) -> dict:
    """Some of the numbers, and the norm of all."""
    keep = np.unique(np.linspace(0, max(len(flat) - 1, 0), SAMPLED).astype(int))
    values = [plain(float(flat[index])) for index in keep] if len(flat) else []
    norm = float(np.linalg.norm(flat))
    return {"values": values, "norm": plain(norm)}


def write_json(content, path: Path) -> None:
    """Write a record with a line per item, but not per number."""
    text = json.dumps(content, indent=1, ensure_ascii=False)
    scalar = r'(?:-?[\d.eE+-]+|NaN|-?Infinity|"[^"\\\n]*"|true|false|null)'
    lists = re.compile(rf"\[\s*{scalar}(?:,\s*{scalar})*\s*\]")
    pair = rf'"[^"\\\n]*": (?:{scalar}|\[[^\[\]{{}}\n]*\])'
    dicts = re.compile(rf"\{{\s*{pair}(?:,\s*{pair})*\s*\}}")

    def joined(match: re.Match) -> str:
        line = re.sub(r"(?<=[\[{])\n\s*|\n\s*(?=[\]}])", "", match[0])
        line = re.sub(r",\n\s*", ", ", line)
        return line if len(line) < 400 else match[0]

    def short(match: re.Match) -> str:
        line = joined(match)
        return line if len(line) < 120 else match[0]

    text = dicts.sub(short, lists.sub(joined, text))
    path.write_text(text + "\n", encoding="utf-8")


# Commands, in this process: their modules take seconds to import.


def console_scripts() -> dict[str, str]:
    """Names of the console scripts of the packaging, and what they call."""
    text = ""
    for file in ("setup.py", "pyproject.toml", "setup.cfg"):
        if (ROOT / file).exists():
            text += (ROOT / file).read_text(encoding="utf-8")
    pattern = r"\"?([\w-]+)\"?\s*=\s*\"?(espnet2_sslam[\w.]*:\w+)"
    return dict(re.findall(pattern, text))


def command(name: str, *words, cwd: Path | None = None) -> tuple[int, str, str]:
    """Run `name` with words: exit status, stdout, stderr.

    Args:
        name: A console script, a module ("espnet2_sslam.bin.sslam_train") or a program
            of the recipe ("local/data_mini.py").
        cwd: Where to run; by default where we are.
    """
    out, err = io.StringIO(), io.StringIO()
    before = os.getcwd(), sys.argv, list(sys.path), dict(os.environ)
    sys.argv = [name, *map(str, words)]
    status = 0
    try:
        os.chdir(cwd or before[0])
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            _run(name)
    except SystemExit as stop:
        status = 0 if stop.code is None else stop.code
        if not isinstance(status, int):
            err.write(f"{status}\n")
            status = 1
    finally:
        os.chdir(before[0])
        sys.argv, sys.path[:] = before[1], before[2]
        os.environ.clear()
        os.environ.update(before[3])
    return status, out.getvalue(), err.getvalue()


def _run(name: str) -> None:
    if name.endswith(".py"):
        sys.path.insert(0, str((RECIPE / name).parent))
        runpy.run_path(str(RECIPE / name), run_name="__main__")
    elif name in (scripts := console_scripts()):
        module, _, function = scripts[name].partition(":")
        sys.exit(getattr(importlib.import_module(module), function)())
    else:
        runpy.run_module(name, run_name="__main__", alter_sys=True)


def succeed(name: str, *words, **options) -> str:
    """Run a command that must end well: its stdout."""
    status, out, err = command(name, *words, **options)
    assert status == 0, f"{name} {' '.join(map(str, words))}: {status}\n{out}{err}"
    return out


def parser_of(name: str, *words) -> argparse.ArgumentParser:
    """The parser whose help `name --help` prints."""
    found = []

    def keep(self, file=None):
        found.append(self)

    original = argparse.ArgumentParser.print_help
    argparse.ArgumentParser.print_help = keep
    try:
        status, out, err = command(name, *words, "--help")
    finally:
        argparse.ArgumentParser.print_help = original
    assert found and status == 0, f"{name}: no help ({status}) {out}{err}"
    return found[-1]


def options_of(parser: argparse.ArgumentParser) -> dict[str, dict]:
    """What a parser takes: by option, its default and what else limits it."""
    options = {}
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        name = " ".join(sorted(action.option_strings)) or action.dest
        entry = {"default": plain(parser.get_default(action.dest))}
        if action.choices is not None:
            entry["choices"] = [str(choice) for choice in action.choices]
        if action.required and action.option_strings:
            entry["required"] = True
        if action.nargs is not None:
            entry["nargs"] = action.nargs
        options[name] = entry
    return options


def task_options(module: str) -> dict[str, dict]:
    """Options of a training command that are not ESPnet's, or have other defaults."""
    from espnet2.tasks.abs_task import AbsTask

    class Bare(AbsTask):
        num_optimizers = 1

        @classmethod
        def add_task_arguments(cls, parser):
            pass

    theirs = options_of(Bare.get_parser())
    ours = options_of(parser_of(module))
    return {name: ours[name] for name in sorted(ours) if ours[name] != theirs.get(name)}


# Files and models to work on, made when they are asked for.


class Workspace:
    """A folder with audio, data, checkpoints and trainings."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)

    @staticmethod
    def spread(name: str) -> str:
        """The folder of an audio file, without those that share out many files."""
        return re.sub(r"/[0-9a-f]{2}$", "", str(Path(name).parent))

    def new(self, name: str) -> Path:
        """An empty folder."""
        return Path(tempfile.mkdtemp(prefix=f"{name}_", dir=self.folder))

    def clean(self, text: str) -> str:
        """A text without what belongs to this machine."""
        text = text.replace(str(self.folder), "FOLDER").replace(str(ROOT), "ROOT")
        text = text.replace(sys.executable, "PYTHON")
        return re.sub(r"(FOLDER/[a-z0-9]+)_[a-z0-9_]{8}(?=/|\s|$)", r"\1", text)

    @functools.cached_property
    def pretrained(self) -> Path:
        """The authors' tiny pre-training checkpoint."""
        return self._unpacked(PRETRAINED)

    @functools.cached_property
    def finetuned(self) -> Path:
        """The authors' tiny fine-tuned checkpoint."""
        return self._unpacked(FINETUNED)

    def _unpacked(self, name: str) -> Path:
        path = self.folder / name
        path.write_bytes(lzma.decompress((GOLDEN / f"{name}.xz").read_bytes()))
        return path

    @functools.cached_property
    def classifier(self) -> Path:
        """A classifier in our own format whose scores depend strongly on the audio."""
        from espnet2_sslam.checkpoint import save_model

        encoder = build_encoder(**SIZE)
        names = ["dog", "rain, light", "siren", "speech"]
        model = fill(build_classifier(encoder, names, pooling="mean"))
        model.head.weight.data *= 2
        return save_model(model, self.folder / "classifier")

    @functools.cached_property
    def audio(self) -> Path:
        """Clips of several rates, channels, formats and lengths."""
        folder = self.folder / "audio"
        folder.mkdir()
        for index, (name, seconds, rate, channels, subtype) in enumerate(
            (
                ("mono16.wav", 2.3, 16_000, 1, "PCM_16"),
                ("stereo44.wav", 1.7, 44_100, 2, "PCM_24"),
                ("phone8.flac", 3.1, 8_000, 1, "PCM_16"),
                ("short22.wav", 0.4, 22_050, 1, "FLOAT"),
            )
        ):
            wave = sound(seconds, rate, index, channels)
            soundfile.write(folder / name, wave, rate, subtype=subtype)
        return folder

    @functools.cached_property
    def data(self) -> Path:
        """Sets train (8 clips) and valid (3) with labels, and classes.txt."""
        folder = self.folder / "data"
        classes = ["high", "low", "noise"]
        for split, count in (("train", 8), ("valid", 3)):
            (folder / split).mkdir(parents=True)
            lists = {"wav.scp": "", "text": "", "utt2num_samples": "", "text1": ""}
            for index in range(count):
                key, path = f"{split}{index}", folder / split / f"{index}.wav"
                wave = sound(1.0 + 0.11 * index, 16_000, 10 * count + index)
                soundfile.write(path, wave, 16_000)
                one = classes[index % 3]
                both = "high low" if index == count - 1 else one
                lists["wav.scp"] += f"{key} {path}\n"
                lists["text"] += f"{key} {both}\n"
                lists["text1"] += f"{key} {one}\n"
                lists["utt2num_samples"] += f"{key} {len(wave)}\n"
            for name, text in lists.items():
                (folder / split / name).write_text(text)
        (folder / "classes.txt").write_text("".join(f"{name}\n" for name in classes))
        return folder

    def train(self, name: str, module: str, config: dict, *more, labels: str = ""):
        """Run a training command; its folder."""
        output = self.new(name)
        (self.folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
        words = ["--config", self.folder / f"{name}.yaml", "--output_dir", output]
        for split in ("train", "valid"):
            option = f"--{split}_data_path_and_name_and_type"
            words += [option, f"{self.data / split}/wav.scp,speech,sound"]
            words += [f"--{split}_shape_file", self.data / split / "utt2num_samples"]
            if labels:
                words += [option, f"{self.data / split}/{labels},label,text"]
        if labels:
            words += ["--class_list", self.data / "classes.txt"]
        succeed(f"espnet2_sslam.bin.{module}", *words, *more)
        return output

    @functools.cached_property
    def phase1(self) -> Path:
        """20 updates of phase 1."""
        return self.train("phase1", "sslam_train", pretrain_config())

    @functools.cached_property
    def phase2(self) -> Path:
        """20 updates of phase 2 from phase 1."""
        config = pretrain_config(mixture=True, clone_batch=2)
        init = f"{self.phase1}/latest.pth:::num_updates"
        return self.train("phase2", "sslam_train", config, "--init_param", init)

    @functools.cached_property
    def finetuning(self) -> Path:
        """6 updates of fine-tuning from phase 2, with all augmentation."""
        config = {
            **TRAINING,
            "max_epoch": 6,
            "encoder_conf": {"drop_path": 0.1},
            "model_conf": {"task": "multi_label", "pooling": "mean"},
            "augment_conf": AUGMENT,
            "optim_conf": {"lr": 1e-3, "weight_decay": 0.05},
            "optim_groups_conf": {"layer_decay": 0.75},
            "scheduler_conf": {"warmup_steps": 2},
            "best_model_criterion": [["valid", "mAP", "max"]],
        }
        init = f"{self.phase2}/latest.pth:encoder:encoder"
        return self.train(
            "finetuning", "sslam_cls_train", config, "--init_param", init, labels="text"
        )

    @functools.cached_property
    def linear(self) -> Path:
        """6 updates of linear evaluation of phase 2's encoder, one label per clip."""
        config = {
            **TRAINING,
            "max_epoch": 6,
            "model_conf": {
                "task": "multi_class",
                "pooling": "concat",
                "head_norm": "batch",
                "freeze_encoder": True,
                "cache_features": True,
            },
            "optim_conf": {"lr": 2e-2, "weight_decay": 0.0},
            "best_model_criterion": [["valid", "accuracy", "max"]],
        }
        init = f"{self.phase2}/latest.pth:encoder:encoder"
        return self.train(
            "linear", "sslam_cls_train", config, "--init_param", init, labels="text1"
        )

    @functools.cached_property
    def recipe(self) -> Path:
        """Output of run.sh, stages 1 to 7, a few updates of everything."""
        folder = self.new("recipe")
        few = "--max_epoch 2 --num_iters_per_epoch 3"
        given = {
            "--python": sys.executable,
            "--datadir": folder / "data",
            "--dumpdir": folder / "dump",
            "--expdir": folder / "exp",
            "--data_args": "--mini_scale 0.05",
            "--pretrain_args": f"{few} --scheduler_conf warmup_steps=1",
            "--finetune_args": few,
            "--pretrain_tag": "small",
            "--finetune_tag": "linear",
            "--seeds": 1,
            "--nj": 1,
        }
        run_sh(*[word for pair in given.items() for word in pair])
        return folder


TRAINING = {
    "batch_size": 4,
    "num_iters_per_epoch": 1,  # an epoch is an update: its statistics are one update's
    "num_workers": 0,
    "use_matplotlib": False,
    "use_tensorboard": False,
    "keep_nbest_models": 1,
    "grad_clip": 4.0,
    "optim": "adamw",
    "scheduler": "sslam_warmup_cosine",
    "seed": 3,
}
SIZE = {"embed_dim": 24, "depth": 2, "num_heads": 2, "max_frames": 320}
AUGMENT = {
    "roll_and_gain": True,
    "noise": 0.1,
    "mixup_alpha": 0.8,
    "mixup_probability": 0.7,
    "mask_ratio": 0.2,
}


def pretrain_config(**model) -> dict:
    """A configuration of 20 updates of a tiny pre-training."""
    return {
        **TRAINING,
        "max_epoch": 20,
        "encoder_conf": {**SIZE, "drop_path": 0.1},
        "model_conf": {
            "clip_frames": 128,
            "clone_batch": 3,
            "mask_block_size": 2,
            "utterance_loss_reduction": "mean",
            "decoder_conf": {"num_layers": 2, "groups": 4},
            "ema_decay": 0.9,
            "ema_end_decay": 0.99,
            "ema_anneal_updates": 15,
            **model,
        },
        "optim_conf": {"lr": 3e-3, "betas": [0.9, 0.95], "weight_decay": 0.05},
        "scheduler_conf": {"warmup_steps": 4, "min_lr": 1e-5},
    }


def sound(seconds: float, rate: int, seed: int, channels: int = 1) -> np.ndarray:
    """A tone and noise whose loudness changes (N,) or (N, channels)."""
    rng = np.random.default_rng(seed)
    size = round(seconds * rate)
    time = np.arange(size)[:, None] / rate
    tone = np.sin(2 * np.pi * (300 + 230 * seed) * time + np.arange(channels))
    loud = 0.1 + 0.3 * (np.sin(2 * np.pi * time / 0.7 + seed) > 0)
    wave = loud * (0.5 * tone + 0.2 * rng.standard_normal((size, channels)))
    return wave[:, 0] if channels == 1 else wave


def fill(model: torch.nn.Module) -> torch.nn.Module:
    """Give every parameter values that depend on its name alone."""
    for name, parameter in model.named_parameters():
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        values = 0.3 * rng.standard_normal(parameter.shape)
        norm = "norm" in name and name.endswith("weight")
        parameter.data = torch.from_numpy(values + norm).float()
    return model


def batch(count: int = 4, samples: int = 20_560) -> tuple[torch.Tensor, torch.Tensor]:
    """Waveforms (B, N) of several lengths, and the lengths."""
    lengths = [samples - 2_000 * (row % 3) for row in range(count)]
    speech = torch.zeros(count, samples)
    for row, length in enumerate(lengths):
        wave = sound(length / 16_000, 16_000, 10 + row)
        speech[row, :length] = torch.from_numpy(wave)
    return speech, torch.tensor(lengths)


def progress(folder: Path) -> dict:
    """Every statistic of every epoch of a training, without times and memory."""
    states = torch.load(folder / "checkpoint.pth", weights_only=False)
    stats = states["reporter"]["stats"]
    found: dict[str, list] = {}
    for epoch in sorted(stats):
        for part in ("train", "valid"):
            for name, value in stats[epoch].get(part, {}).items():
                if not re.search(r"time|mem|speed", name):
                    found.setdefault(f"{part} {name}", []).append(plain(float(value)))
    [optimizer] = states["optimizers"]
    groups = [
        {
            **{key: plain(group[key]) for key in ("initial_lr", "lr", "weight_decay")},
            "parameters": len(group["params"]),
        }
        for group in optimizer["param_groups"]
    ]
    return {"statistics": found, "optimizer groups": groups}


def shapes(state: dict) -> dict[str, str]:
    """Names, dtypes and shapes of a state dict."""
    return {
        name: f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
        for name, value in state.items()
        if isinstance(value, torch.Tensor)
    }


def contents(state: dict) -> dict[str, str]:
    """The same with a digest of each tensor's bytes, and one of all."""
    found, whole = {}, hashlib.sha256()
    for name, text in sorted(shapes(state).items()):
        data = state[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        data = data.numpy().tobytes()
        found[name] = f"{text} {hashlib.sha256(data).hexdigest()[:12]}"
        whole.update(f"{name} {text} ".encode() + data)
    return {**found, "sha256 of all": whole.hexdigest()}


def sha256(path: Path) -> str:
    """Of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


# 1. Pre-training


@record(rtol=1e-5)
def pretraining(work: Workspace) -> dict:
    """20 updates of both phases by the training command."""
    return {"phase 1": progress(work.phase1), "phase 2": progress(work.phase2)}


PRETRAIN_OPTIONS = {
    "phase 1": {},
    "phase 1, mean": {"utterance_loss_reduction": "mean"},
    "phase 1, weight": {"utterance_loss_weight": 0.5},
    "phase 1, layers": {"target_layers": 1, "utterance_target_layers": 1},
    "phase 1, masks": {"mask_ratio": 0.6, "mask_ratio_adjust": 0.0},
    "phase 1, decoder": {
        "decoder_conf": {
            "num_layers": 1,
            "groups": 8,
            "decoder_dim": 16,
            "kernel_size": 5,
            "noise_std": 0.1,
        }
    },
    "phase 1, seed": {"seed": 1},
    "phase 2": {"mixture": True},
    "phase 2, unmixed": {"mixture": True, "streams": "unmixed"},
    "phase 2, mixed": {"mixture": True, "streams": "mixed"},
    "phase 2, no retention": {"mixture": True, "source_retention": False},
    "phase 2, utterance": {"mixture": True, "source_retention_utterance": True},
    "phase 2, logsumexp": {"mixture": True, "mixing_rule": "logsumexp"},
    "phase 2, waveform": {
        "mixture": True,
        "mixing_rule": "waveform",
        "snr_range": [-3.0, 3.0],
    },
    "phase 2, per clip": {"mixture": True, "regions_per": "clip"},
}


@record(rtol=1e-5)
def pretraining_options(work: Workspace) -> dict:
    """Two steps and a validation under every option; gradients of the first step."""
    found = {}
    for name, options in PRETRAIN_OPTIONS.items():
        encoder = build_encoder(**SIZE, drop_path=0.2)
        basis = {
            "clip_frames": 128,
            "clone_batch": 2,
            "mask_block_size": 2,
            "decoder_conf": {"num_layers": 2, "groups": 4},
        }
        model = fill(build_pretrain_model(encoder, **{**basis, **options})).train()
        steps = []
        for step in range(2):
            loss, stats, weight = model(*batch(), utt_id=["a", "b", "c", "d"])
            entry = {key: float(value) for key, value in stats.items()}
            steps.append({**entry, "weight": float(weight)})
            if step == 0:
                loss.backward()
                gradient = gradient_norm(model)
        model.eval()
        with torch.no_grad():
            _, stats, _ = model(*batch(), utt_id=["a", "b", "c", "d"])
        found[name] = {
            "steps": steps,
            "gradient norm": gradient,
            "validation": {key: float(value) for key, value in stats.items()},
        }
    model.train()
    model.update_teacher()
    teacher = {k: v for k, v in model.state_dict().items() if k.startswith("teacher.")}
    found["teacher after an update"] = {
        "norm": sum(float(v.double().square().sum()) for v in teacher.values()) ** 0.5
    }
    return plain(found)


def gradient_norm(model: torch.nn.Module) -> float:
    """Of all gradients."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return sum(float(g.double().square().sum()) for g in gradients) ** 0.5


@record()
def states(work: Workspace) -> dict:
    """Names and shapes of parameters and buffers, and which are trained."""
    encoder = build_encoder(**SIZE)
    decoder = {"decoder_conf": {"num_layers": 2, "groups": 4}}
    models = {
        "pre-training": build_pretrain_model(encoder, clip_frames=128, **decoder),
        "encoder": build_encoder(**SIZE),
        "encoder, log-mel": build_encoder(128, **SIZE),
    }
    for pooling in POOLINGS:
        models[f"classifier, {pooling}"] = build_classifier(
            build_encoder(**SIZE), ["a", "b", "c"], pooling=pooling
        )
    for name, options in {
        "weighted layers": {"weighted_layers": True},
        "batch norm": {"head_norm": "batch", "freeze_encoder": True},
    }.items():
        models[f"classifier, {name}"] = build_classifier(
            build_encoder(**SIZE), ["a", "b", "c"], **options
        )
    found = {}
    for name, model in models.items():
        state = shapes(model.state_dict())
        trained = {n for n, p in model.named_parameters() if p.requires_grad}
        if name != "pre-training" and not name.startswith("encoder"):
            own = {k: v for k, v in state.items() if not k.startswith("encoder.")}
            inner = {k[len("encoder.") :]: v for k, v in state.items() if k not in own}
            assert inner == found["encoder"]["state"]
            state = own
        count = sum(p.numel() for p in model.parameters())
        found[name] = {
            "state": state,
            "parameters": count,
            "trained": len(trained),
            "digest of what is trained": hashlib.sha256(
                "\n".join(sorted(trained)).encode()
            ).hexdigest()[:16],
        }
    base = build_encoder()
    names = "\n".join(f"{k} {v}" for k, v in sorted(shapes(base.state_dict()).items()))
    found["encoder by default"] = {
        "parameters": sum(p.numel() for p in base.parameters()),
        "digest of the state": hashlib.sha256(names.encode()).hexdigest(),
    }
    return found


@record(rtol=1e-5)
def encoder_outputs(work: Workspace) -> dict:
    """Outputs and lengths of the encoder under its options."""
    found = {}
    for name, options in {
        "plain": {},
        "concat": {"freq": "concat"},
        "flatten": {"freq": "flatten"},
        "CLS": {"cls_token": True},
        "CLS, concat": {"cls_token": True, "freq": "concat"},
        "layer 0": {"layer": 0},
        "layer 1": {"layer": 1},
        "one block": {"max_layer": 1},
        "upsampled": {"upsample": 4},
        "fixed length": {"target_frames": 64},
        "padded": {"target_frames": 256},
        "in chunks": {"max_frames": 64},
        "statistics": {"fbank_mean": -5.0, "fbank_std": 3.0},
    }.items():
        encoder = fill(build_encoder(**{**SIZE, **options})).eval()
        with torch.no_grad():
            out, lengths, _ = encoder(*batch(3))
        found[name] = {
            "output_size": encoder.output_size(),
            "lengths": lengths.tolist(),
            "output": out,
        }
    encoder = fill(build_encoder(**SIZE, layer="all")).eval()
    with torch.no_grad():
        (last, layers), lengths, _ = encoder(*batch(2))
    found["all layers"] = {"last": last, "layers": [[i, out] for i, out in layers]}
    log_mel, frames = build_encoder(**SIZE).fbank(*batch(3))
    found["log-mel"] = {"frames": frames.tolist(), "values": log_mel}
    return plain(found)


# 2. Fine-tuning

POOLINGS = ("cls", "mean", "concat", "attentive", "lin_softmax")
HEADS = {
    "weighted layers": {"weighted_layers": True},
    "batch norm": {"head_norm": "batch", "pooling": "mean"},
    "frozen": {"freeze_encoder": True},
    "frozen, batch norm, concat": {
        "freeze_encoder": True,
        "head_norm": "batch",
        "pooling": "concat",
    },
    "frozen, drop path": {"freeze_encoder": True, "frozen_drop_path": True},
    "clips": {"loss_reduction": "clips"},
    "elements": {"loss_reduction": "elements"},
    "another seed": {"seed": 1},
}


@record(rtol=1e-5)
def finetuning(work: Workspace) -> dict:
    """Fine-tuning and linear evaluation by the training command."""
    return {
        "fine-tuning": progress(work.finetuning),
        "linear evaluation": progress(work.linear),
    }


@record(rtol=1e-5)
def finetuning_options(work: Workspace) -> dict:
    """Three updates of each pooling, task and kind of head, and the logits after."""
    found = {}
    for task in ("multi_label", "multi_class"):
        for pooling in POOLINGS:
            options = {"task": task, "pooling": pooling}
            found[f"{task}, {pooling}"] = updates(options, AUGMENT)
    for name, options in HEADS.items():
        found[name] = updates({"task": "multi_label", **options})
    smooth = {"task": "multi_class", "label_smoothing": 0.1}
    found["smoothed"] = updates(smooth)
    binary = {"task": "multi_class", "loss": "binary_cross_entropy"}
    found["multi_class by binary cross-entropy"] = updates(binary)
    for name, value in AUGMENT.items():
        if name != "mixup_probability":
            found[f"augmented by {name}"] = updates({}, {name: value})
    per_clip = {"mixup_alpha": 0.8, "mixup_per": "clip"}
    found["augmented by mixup per clip"] = updates({}, per_clip)
    return plain(found)


def updates(options: dict, augment: dict | None = None) -> dict:
    """Losses of three updates, the validation loss, logits and scores.

    By plain gradient descent: Adam makes whole steps of the rounding noise in
    gradients that are zero, which no two processors share.
    """
    encoder = build_encoder(**SIZE, drop_path=0.1)
    model = fill(build_classifier(encoder, ["a", "b", "c"], augment, **options))
    label = torch.eye(3)[[0, 1, 2, 0]]
    if options.get("task", "multi_label") == "multi_label":
        label[3, 2] = 1.0
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.02)
    losses, names = [], ["a", "b", "c", "d"]
    for _ in range(3):
        model.train()
        loss, _, weight = model(*batch(), label, utt_id=names)
        losses.append([loss.item(), weight.item()])
        optimizer.zero_grad()
        loss.sum().backward()
        if len(losses) == 1:
            gradient = gradient_norm(model)
        optimizer.step()
    model.eval()
    with torch.no_grad():
        loss, _, weight = model(*batch(), label, utt_id=names)
        logits = model.inference(*batch())
    return {
        "losses and weights": losses,
        "gradient norm": gradient,
        "validation": [float(loss), float(weight)],
        "logits": logits.tolist(),
        "scores": model.scores(logits).tolist(),
    }


# 3. Embeddings and tags


def output(path: Path):
    """What a command wrote, numbers as numbers."""
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            found = {name: arrays[name] for name in arrays.files}
        if "info" in found:
            found["info"] = json.loads(str(found["info"]))
            found["info"]["espnet2_sslam"] = "(version)"
        return found
    if path.suffix == ".json":
        return json.loads(path.read_text(encoding="utf-8"))
    if path.suffix == ".jsonl":
        lines = path.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]
    if path.suffix in (".csv", ".tsv"):
        with open(path, newline="", encoding="utf-8") as file:
            rows = csv.reader(file, delimiter="," if path.suffix == ".csv" else "\t")
            return [[_number(cell) for cell in row] for row in rows]
    import kaldiio

    return dict(kaldiio.load_scp(str(path)))


def _number(cell: str):
    try:
        return float(cell)
    except ValueError:
        return cell


def runs(work: Workspace, kind: str, model: Path, cases: dict) -> dict:
    """Run `sslam KIND MODEL FILES` with options; what is written and printed."""
    found = {}
    for name, (suffix, *words) in cases.items():
        folder = work.new(kind)
        files = sorted(path.name for path in work.audio.iterdir())
        target = ["-o", folder / f"out{suffix}"] if suffix else []
        status, out, err = command(
            "sslam", kind, model, *files, *target, *words, cwd=work.audio
        )
        found[name] = entry = {"status": status}
        if suffix:
            entry["files"] = sorted(path.name for path in folder.iterdir())
        if suffix and (folder / f"out{suffix}").exists():
            entry["content"] = output(folder / f"out{suffix}")
        lines = work.clean(out).splitlines()
        entry["printed"] = [[_number(w) for w in line.split()] for line in lines]
        if status:
            entry["complaint"] = work.clean(err).splitlines()[-1:]
    return found


EMBED = {
    "mean": (".npz",),
    "cls": (".npz", "--pooling", "cls"),
    "frames": (".npz", "--pooling", "frames"),
    "chunks": (".npz", "--chunk", 1, "--hop", 0.5),
    "all layers": (".npz", "--layer", "all"),
    "all layers, frames": (".npz", "--layer", "all", "--pooling", "frames"),
    "layer 0": (".npz", "--layer", 0),
    "layer 1, cls, chunks": (".npz", "--layer", 1, "--pooling", "cls", "--chunk", 0.7),
    "teacher": (".npz", "--weights", "teacher"),
    "fixed length": (".npz", "--target_frames", 128),
    "small batches": (".npz", "--batch_seconds", 1),
    "csv": (".csv", "--names", "file"),
    "tsv, chunks": (".tsv", "--chunk", 1),
    "json": (".json",),
    "jsonl, chunks": (".jsonl", "--chunk", 2),
    "ark": (".scp",),
    "ark, frames": (".scp", "--pooling", "frames"),
    "a file is missing": (".npz", "gone.wav"),
    "no such layer": (".npz", "--layer", 9),
    "no output": ("",),
}
TAG = {
    "printed": ("",),
    "printed, chunks": ("", "--chunk", 1, "--hop", 0.5, "--top_k", 2),
    "printed, events": ("", "--events", "--threshold", 0.5),
    "clips": (".npz",),
    "clips, csv": (".csv", "--top_k", 0),
    "clips, tsv": (".tsv", "--top_k", 2, "--names", "file"),
    "clips, json": (".json", "--threshold", 0.5),
    "clips, jsonl": (".jsonl",),
    "clips, ark": (".scp",),
    "chunks": (".npz", "--chunk", 1, "--hop", 0.5),
    "chunks, csv": (".csv", "--chunk", 1, "--hop", 0.5, "--top_k", 1),
    "frames": (".npz", "--frames"),
    "frames, fine": (".npz", "--frames", "--resolution", 0.08),
    "frames, window": (".npz", "--frames", "--window", 0.5),
    "frames, csv": (".csv", "--frames", "--top_k", 1),
    "events": (".tsv", "--events"),
    "events, json": (".json", "--events", "--names", "file"),
    "events, filtered": (
        *(".csv", "--events", "--threshold", "dog=0.9", "--median", 0.48),
        *("--min_duration", 0.2, "--merge_gap", 0.2),
    ),
    "fixed length": (".npz", "--target_frames", 128),
    "a file is missing": (".csv", "gone.wav", "--top_k", 1),
    "no such class": ("", "--threshold", "bell=0.5"),
}
AUTHORS_TAG = ("clips", "chunks", "frames", "events", "fixed length")


@record(rtol=2e-5)
def embed(work: Workspace) -> dict:
    """`sslam embed` of four files by the authors' pre-trained tiny checkpoint."""
    return plain(runs(work, "embed", work.pretrained, EMBED))


@record(rtol=2e-5)
def tag(work: Workspace) -> dict:
    """`sslam tag` of four files by a classifier with distinct scores; the authors'."""
    authors = {name: TAG[name] for name in AUTHORS_TAG}
    found = {
        "own": runs(work, "tag", work.classifier, TAG),
        "the authors'": runs(work, "tag", work.finetuned, authors),
    }
    return plain(found)


# 4. Layouts of weights


def loaded(path: Path):
    """A file of torch.save, trusted: our own."""
    return torch.load(path, map_location="cpu", weights_only=False)


def digest(state: dict) -> str:
    """Of names, dtypes and shapes, where the whole list stands elsewhere."""
    lines = "\n".join(f"{name} {text}" for name, text in sorted(shapes(state).items()))
    count = lines.count("\n") + 1 if lines else 0
    return f"{count} tensors {hashlib.sha256(lines.encode()).hexdigest()}"


def total(state: dict) -> str:
    """The digest of names, shapes and contents alone."""
    return contents(state)["sha256 of all"]


def layout(work: Workspace, path: Path, exact: bool, describe: Callable) -> dict:
    """Names, tensors and descriptions of what `sslam convert` wrote.

    Args:
        exact: The bytes of the tensors are the source's: no arithmetic made them.
        describe: What is kept of a state dict.
    """
    if path.is_dir():
        from safetensors.torch import load_file

        found = {"files": sorted(file.name for file in path.iterdir())}
        for file in sorted(path.glob("*.json")):
            found[file.name] = steady(work, file.read_text(encoding="utf-8"), exact)
        weights = path / "model.safetensors"
        found["tensors"] = describe(load_file(weights))
        if exact:
            found["sha256 of model.safetensors"] = sha256(weights)
        return found
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        found = {"files": list(members)}
        for name, data in members.items():
            if name.endswith(".yaml"):
                content = yaml.safe_load(data)
                volatile = ("timestamp", "python", "torch", "espnet", "espnet2_sslam")
                found[name] = {
                    key: "(volatile)" if key in volatile else value
                    for key, value in content.items()
                }
            else:
                found[name] = describe(loaded(io.BytesIO(data)))
        return found
    content = loaded(path)
    found = {"type": type(content).__name__, "tensors": describe(content)}
    others = {k: v for k, v in content.items() if not isinstance(v, torch.Tensor)}
    for name, value in others.items():
        if name == "model":
            found["model"] = describe(value)
            found["model _ema"] = describe(value.get("_ema") or {})
        else:
            found[name] = value
    return found


def steady(work: Workspace, text: str, exact: bool) -> dict:
    """A JSON file without what changes from run to run."""
    content = json.loads(work.clean(text))
    origin = content.get("origin")
    if isinstance(origin, dict):
        if "converter" in origin:
            origin["converter"] = re.sub(r"[\d.]+", "VERSION", origin["converter"])
        if not exact:
            origin["sha256"] = re.sub("[0-9a-f]", "x", origin["sha256"])
    return content


SOURCES = {
    "pre-trained": ("pretrained", True),
    "pre-trained, teacher": ("pretrained", True, "--weights", "teacher"),
    "pre-trained, statistics": (
        *("pretrained", True, "--fbank_mean", "-5", "--fbank_std", "3"),
    ),
    "fine-tuned": ("finetuned", True),
    "fine-tuned, one label": ("finetuned", True, "--task", "multi_class"),
    "own phase 2": ("phase2", False),
    "own fine-tuning": ("finetuning", False),
    "own linear evaluation": ("linear", False),
}
OUTPUTS = {
    "folder": ("out",),
    "fairseq": ("out.pt",),
    "huggingface": ("out", "--to", "huggingface"),
    "training": ("out.pth",),
    "espnet-pack": ("out.zip",),
}


@record()
def layouts(work: Workspace) -> dict:
    """`sslam convert` from the authors' checkpoints and our trainings to everything."""
    found = {}
    for name, (source, exact, *words) in SOURCES.items():
        for target, (file, *more) in OUTPUTS.items():
            if words and target not in ("folder", "training"):
                continue  # the options change what is read, which shows here
            path = work.new("convert") / file
            status, out, err = command(
                "sslam", "convert", getattr(work, source), path, *words, *more
            )
            entry = {"status": status, "printed": work.clean(out).splitlines()}
            if status:
                entry["complaint"] = work.clean(err).splitlines()[-1:]
            else:
                describe = (total if words else contents) if exact else digest
                written = layout(work, path, exact, describe)
                if not exact and target in ("fairseq", "huggingface"):
                    # The authors' checkpoints show the content; here only the digest.
                    text = json.dumps(plain(written), sort_keys=True)
                    written = {"sha256": hashlib.sha256(text.encode()).hexdigest()}
                entry.update(written)
            found[f"{name} -> {target}"] = entry
    for source in ("pretrained", "finetuned"):
        again = work.new("convert")
        first = again / "first"
        succeed("sslam", "convert", getattr(work, source), first)
        succeed("sslam", "convert", first, again / "back.pt")
        succeed("sslam", "convert", again / "back.pt", again / "second")
        one, two = (
            layout(work, again / part, True, contents)["tensors"]
            for part in ("first", "second")
        )
        found[f"there and back by fairseq, {source}"] = {"the same": one == two}
    return plain(found)


# 7. Commands

MODULES = (
    "format_audio",
    "data_report",
    "sslam_cls_inference",
    "sslam_score",
    "sslam_results",
    "sslam_benchmarks",
    "sslam_superb",
    "sslam_curves",
    "sslam_panels",
)
TRAININGS = ("sslam_train", "sslam_cls_train", "beats_cls_train")
SUBCOMMANDS = ("embed", "tag", "plot", "convert", "export", "publish")


@record()
def commands(work: Workspace) -> dict:
    """Names of the commands, their options and defaults."""
    found = {"console scripts": sorted(console_scripts())}
    for name in SUBCOMMANDS:
        found[f"sslam {name}"] = options_of(parser_of("sslam", name))
    for name in ("convert", "export"):
        same = options_of(parser_of(f"sslam-{name}")) == found[f"sslam {name}"]
        found[f"sslam-{name}"] = f"as sslam {name}" if same else "other options"
    for name in MODULES:
        module = f"espnet2_sslam.bin.{name}"
        found[f"python -m {module}"] = options_of(parser_of(module))
    module = "espnet2_sslam.bin.sslam_publish"
    same = options_of(parser_of(module)) == found["sslam publish"]
    found[f"python -m {module}"] = "as sslam publish" if same else "other options"
    for name in TRAININGS:
        module = f"espnet2_sslam.bin.{name}"
        found[f"python -m {module}"] = task_options(module)
    recipe = [*RECIPE.glob("local/*.py"), *RECIPE.glob("utils/*.py")]
    for path in sorted(recipe):
        if "__main__" in path.read_text(encoding="utf-8"):
            name = str(path.relative_to(RECIPE))
            if path.name != "once.py":  # only run.sh calls it
                found[name] = options_of(parser_of(name))
    found["sslam --help"] = re.findall(r"^sslam (\w+)", succeed("sslam"), re.MULTILINE)
    usage = succeed("espnet2-sslam-python", "--help").splitlines()[0]
    found["espnet2-sslam-python --help"] = usage
    status, out, err = command("sslam", "nothing")
    found["sslam nothing"] = {"status": status, "stdout": out, "stderr": err}
    return found


# 5. What the stages of the recipe leave

MINIATURES = {  # name: miniature of tests/corpora, script, options
    "audioset": (
        *("audioset", "audioset", "--subsets", "2m", "20k", "--pretrain_valid", 4),
    ),
    "esc50": ("esc50", "esc50"),
    "fsd50k": ("fsd50k", "fsd50k"),
    "idmt": ("idmt_desed_fl", "idmt_desed_fl"),
    "manifest": ("manifest", "manifest"),
    "spass": ("spass", "spass"),
    "ks1": ("speechcommands", "speechcommands", "--task", "ks1"),
    "ks2": ("speechcommands", "speechcommands", "--task", "ks2"),
    "urbansed": ("urbansed", "urbansed"),
}
AUDIO = (".wav", ".flac", ".ark")


def tree(work: Workspace, folder: Path) -> dict[str, str]:
    """Files below a folder: digest and lines of texts, the number of audio files."""
    found: dict[str, str | int] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if not path.is_file() or any(part[0] == "." for part in name.split("/")):
            continue
        if path.suffix in AUDIO:
            place = f"{work.spread(name)}/*{path.suffix}"
            found[place] = found.get(place, 0) + 1
            continue
        text = path_hashes(work.clean(path.read_text(encoding="utf-8")))
        count = f"{len(text.splitlines())} lines"
        code = hashlib.sha256(text.encode()).hexdigest()[:12]
        notes = path.suffix == ".jsonl" or name.startswith("feats/")  # sizes, times
        found[path_hashes(name)] = count if notes else f"{count} {code}"
    return found


def path_hashes(text: str) -> str:
    """A text without hashes of paths in names of files, and without their order."""
    text = re.sub(r"/[0-9a-f]{2}/(?=[^/\s]+-[0-9a-f]{12}\b)", "/XX/", text)
    text = re.sub(r"\b[0-9a-f]{12,}\b", "HASH", text)
    return re.sub(r"(?<=\.ark):\d+$", ":OFFSET", text, flags=re.MULTILINE)


def miniature(work: Workspace, name: str) -> Path:
    """The miniature of a corpus."""
    folder = work.folder / "miniatures" / name
    if not folder.exists():
        folder.mkdir(parents=True)
        importlib.import_module(f"tests.corpora.{name}").make(folder)
    return folder


@record(rtol=1e-4)
def stages(work: Workspace) -> dict:
    """Stage 1 of every corpus on a miniature; stages 2 and 3 of the embedded one."""
    found = {}
    data = work.new("corpora")
    for name, (corpus, script, *options) in MINIATURES.items():
        words = ["--corpus_dir", miniature(work, corpus), "--datadir", data / name]
        succeed(f"local/data_{script}.py", *words, *options)
        found[f"stage 1, {name}"] = tree(work, data / name)
    small = "--degrees 1 2 4 --train_clips 6 --valid_clips 3 --test_clips 3"
    words = ["--corpus_dir", data / "esc50", "--datadir", data / "polyphony"]
    words += ["--seconds", 0.4, *small.split()]
    succeed("local/data_polyphony.py", *words)
    found["stage 1, polyphony"] = tree(work, data / "polyphony")

    audio = data / "sounds"
    for index in range(12):
        path = audio / ("bark", "rain drops")[index % 2] / f"{index}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, sound(0.2, 16_000, index), 16_000)
    words = ["--corpus_dir", audio, "--datadir", data / "folder"]
    succeed("local/data_folder.py", *words, "--label_from", "parent")
    found["stage 1, folder"] = tree(work, data / "folder")

    mini = data / "mini"
    succeed("local/data_mini.py", "--datadir", mini, "--mini_scale", 0.02)
    found["stage 1, mini"] = {**tree(work, mini), "loudness": plain(loudness(mini))}
    for kind in ("raw", "fbank"):
        dump = data / "dump" / kind
        words = ["--datadir", mini, "--outdir", dump, "--feats_type", kind]
        printed = succeed("espnet2_sslam.bin.format_audio", *words)
        found[f"stage 2, {kind}"] = {**tree(work, dump), "printed": work.clean(printed)}
    feats = output(data / "dump/fbank/pretrain/valid/feats.scp")
    found["stage 2, fbank"]["features"] = plain(feats)
    dump = data / "dump" / "raw"
    found["stage 2, raw"]["loudness"] = plain(loudness(dump))
    succeed("espnet2_sslam.bin.data_report", "--dump", dump)
    found["stage 3"] = {
        "files": sorted(path.name for path in (dump / "report").iterdir()),
        "fbank_stats.json": json.loads((dump / "report/fbank_stats.json").read_text()),
        "report.json": no_digests(
            json.loads((dump / "report/report.json").read_text())
        ),
        "report.txt": words_of(work, (dump / "report/report.txt").read_text()),
    }
    return plain(found)


def loudness(folder: Path) -> dict:
    """Samples of all audio below a folder, and their root mean square."""
    power, count = 0.0, 0
    for path in sorted(folder.rglob("*")):
        if path.suffix in AUDIO[:2]:
            samples = soundfile.read(path)[0]
            power, count = power + float(np.sum(samples**2)), count + samples.size
    return {"samples": count, "root mean square": (power / count) ** 0.5}


def no_digests(content):
    """Records without the digests of files, which hold paths of this machine."""
    if isinstance(content, dict):
        return {key: no_digests(value) for key, value in content.items()}
    if isinstance(content, list):
        return [no_digests(value) for value in content]
    digest = isinstance(content, str) and re.fullmatch("[0-9a-f]{64}", content)
    return "(sha256)" if digest else content


def words_of(work: Workspace, text: str) -> list:
    """Lines of words, numbers as numbers."""
    lines = work.clean(text).splitlines()
    return [[_number(word) for word in line.split()] for line in lines if line.strip()]


# 6. Configurations

CONF = ROOT / "conf"


def accepted_keys(work: Workspace, module: str, option: str, value: str) -> list[str]:
    """The keys that a training command names when it gets an unknown one."""
    words = ["--output_dir", work.new("refused"), f"--{option}", value]
    if "cls" in module:
        words += ["--class_list", work.data / "classes.txt"]
    status, _, err = command(f"espnet2_sslam.bin.{module}", *words)
    line = err.strip().splitlines()[-1]
    keys = re.search(r"has no key nosuchkey: use one of (.*)", line)
    assert status == 1 and keys, f"{module} --{option}: {line}"
    return keys[1].split(", ")


def keyword_options(cls: type) -> dict:
    """Keyword options of a class with their defaults; those of a config object too."""
    found = {}
    hints = typing.get_type_hints(cls.__init__)
    for parameter in inspect.signature(cls).parameters.values():
        hint = hints.get(parameter.name)
        if is_dataclass(hint):
            for field in fields(hint):
                made = field.default_factory is not MISSING
                value = field.default_factory() if made else field.default
                found[field.name] = "(required)" if value is MISSING else value
        elif parameter.kind == parameter.KEYWORD_ONLY:
            none = parameter.default is parameter.empty
            found[parameter.name] = "(required)" if none else parameter.default
    return plain(dict(sorted(found.items())))


@contextlib.contextmanager
def print_config_to_stdout():
    """ESPnet prints to the stdout that was there when its module was imported."""
    from espnet2.tasks.abs_task import AbsTask

    original = AbsTask.print_config.__func__
    AbsTask.print_config = classmethod(lambda cls: original(cls, sys.stdout))
    try:
        yield
    finally:
        AbsTask.print_config = classmethod(original)


def parsed_section(parsed: dict, key: str, written):
    """What became of an option of a YAML; of torch's optimizer only what it sets."""
    value = parsed.get(key, "(unknown option)")
    if key == "optim_conf" and isinstance(value, dict):
        return {name: value.get(name, "(gone)") for name in written}
    return value


@record()
def configurations(work: Workspace) -> dict:
    """What every YAML sets, as the training commands read it; all keys they take."""
    found = {}
    for path in sorted(CONF.glob("*.yaml")):
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        kind = path.stem.partition("_")[0]
        if kind in ("asr", "cls"):
            continue  # ESPnet's own commands read these: see `espnet`
        module = "sslam_train" if kind == "pretrain" else "sslam_cls_train"
        words = ["--config", path]
        with print_config_to_stdout():
            name = f"espnet2_sslam.bin.{module}"
            parsed = yaml.safe_load(succeed(name, *words, "--print_config"))
        if module == "sslam_cls_train":
            words += ["--class_list", work.data / "classes.txt"]
        words += ["--output_dir", work.new("refused")]
        _, _, err = command(f"espnet2_sslam.bin.{module}", *words)
        complaint = err.strip().splitlines()[-1]
        found[path.name] = {
            "command": module,
            # It got as far as the data, which were not given.
            "keys are accepted": "data_path_and_name_and_type" in complaint,
            **{
                key: parsed_section(parsed, key, value) for key, value in config.items()
            },
        }
    s3prl = sorted((CONF / "s3prl").glob("*.yaml"))
    found["s3prl"] = {path.name: yaml.safe_load(path.read_text()) for path in s3prl}
    found["benchmarks.txt"] = [
        [cell.strip() for cell in line.split("|")]
        for line in (CONF / "benchmarks.txt").read_text(encoding="utf-8").splitlines()
        if not line.startswith("#")
    ]
    asked = {"encoder_conf": 1, "model_conf": 1, "optim_groups_conf": 1}
    asked = {name: "nosuchkey=1" for name in (*asked, "scheduler_conf", "optim_conf")}
    for module in ("sslam_train", "sslam_cls_train"):
        options = dict(asked)
        if module == "sslam_cls_train":
            options["augment_conf"] = "nosuchkey=1"
        else:
            options["model_conf decoder_conf"] = "decoder_conf={nosuchkey: 1}"
        for option, value in options.items():
            keys = accepted_keys(work, module, option.split()[0], value)
            if option != "optim_conf":  # torch's
                found[f"keys of {module} {option}"] = keys
    encoder = build_encoder(**SIZE)
    decoder = {"decoder_conf": {"num_layers": 1, "groups": 2}}
    classifier = build_classifier(encoder, ["a"])
    for model in (
        encoder,
        classifier,
        classifier.augmentation,
        build_pretrain_model(encoder, clip_frames=128, **decoder),
    ):
        name = type(model).__name__
        found[f"defaults of {name}"] = keyword_options(type(model))
    return plain(found)


# 8. Folders of models and trainings


@record(rtol=1e-5)
def folders(work: Workspace) -> dict:
    """Files of save_model and of trainings; predictions and scores of a classifier."""
    from espnet2_sslam.checkpoint import load_model, save_model

    found = {}
    encoder = fill(build_encoder(**SIZE, fbank_mean=-5.0, fbank_std=3.0))
    options = {"pooling": "attentive", "weighted_layers": True, "task": "multi_class"}
    for name, model, origin in (
        ("encoder", encoder, None),
        (
            "classifier",
            fill(build_classifier(encoder, ["a", "b"], **options)),
            {"a": 1},
        ),
    ):
        path = Path(save_model(model, work.new(name), origin))
        found[f"save_model, {name}"] = layout(work, path, True, contents)
        loaded_again = load_model(path)
        found[f"load_model, {name}"] = {
            "type": type(loaded_again.model).__name__,
            "classes": loaded_again.classes,
            "config": steady(work, json.dumps(loaded_again.config), True),
            "training mode": loaded_again.model.training,
        }
    for name in ("phase1", "phase2", "finetuning", "linear"):
        folder = getattr(work, name)
        files = {}
        for path in sorted(folder.iterdir()):
            link = path.is_symlink()
            files[path.name] = f"-> {os.readlink(path)}" if link else "file"
        config = yaml.safe_load((folder / "config.yaml").read_text())
        ours = (
            "encoder_conf",
            "model_conf",
            "augment_conf",
            "class_list",
            "input_size",
        )
        ours += ("optim_groups_conf", "scheduler_conf", "encoder_config", "max_samples")
        states_of = loaded(folder / "checkpoint.pth")
        found[f"training, {name}"] = {
            "files": files,
            "config.yaml": {key: config[key] for key in ours if key in config},
            "checkpoint.pth": sorted(states_of),
            "latest.pth": digest(loaded(folder / "latest.pth")),
        }
    for name, labels in (("finetuning", "text"), ("linear", "text1")):
        folder, out = getattr(work, name), work.new("predictions")
        task = "multi_label" if name == "finetuning" else "multi_class"
        wav = f"{work.data}/valid/wav.scp,speech,sound"
        words = ["--config", folder / "config.yaml", "--output_dir", out]
        words += ["--model_file", folder / "latest.pth"]
        words += ["--data_path_and_name_and_type", wav, "--batch_size", 2]
        succeed("espnet2_sslam.bin.sslam_cls_inference", *words)
        words = ["--predictions", out / "predictions.npz", "--output_dir", out]
        words += ["--text", work.data / "valid" / labels, "--task", task]
        words += ["--class_list", work.data / "classes.txt"]
        succeed("espnet2_sslam.bin.sslam_score", *words)
        found[f"predictions, {name}"] = {
            "files": sorted(path.name for path in out.iterdir()),
            "predictions.npz": output(out / "predictions.npz"),
            "metrics.json": no_digests(
                json.loads(work.clean((out / "metrics.json").read_text()))
            ),
        }
    return plain(found)


# 9. Names in Python and in the hosts


def signature(function) -> str:
    """Parameters with their defaults, without annotations."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # an exception class
        return ""
    shown = []
    for parameter in parameters:
        stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}
        text = stars.get(parameter.kind, "") + parameter.name
        if parameter.kind == parameter.KEYWORD_ONLY:
            text = f"--{text}"
        if parameter.default is not parameter.empty:
            text += f"={parameter.default!r}"
        shown.append(text)
    return ", ".join(shown)


def public_methods(cls: type) -> dict[str, str]:
    """Its public methods and properties, without those of the hosts' classes."""
    found = {}
    for name in sorted(dir(cls)):
        owner = next((base for base in cls.__mro__ if name in vars(base)), None)
        ours = owner is not None and owner.__module__.startswith("espnet2_sslam")
        if name.startswith("_") or not ours:
            continue
        value = inspect.getattr_static(cls, name)
        if isinstance(value, property):
            found[name] = "(property)"
        elif callable(getattr(cls, name)):
            found[name] = signature(getattr(cls, name))
    return found


@record(rtol=1e-5)
def python_names(work: Workspace) -> dict:
    """What can be imported, public methods and their parameters; the Python API."""
    import espnet2_sslam
    from espnet2_sslam import SSLAM, checkpoint

    encoder = build_encoder(**SIZE)
    classes = {
        "SSLAM": SSLAM,
        "SSLAMEncoder": type(encoder),
        "SSLAMClassifier": type(build_classifier(encoder, ["a"])),
        "SSLAMPretrainModel": type(
            build_pretrain_model(
                encoder, clip_frames=128, decoder_conf={"num_layers": 1, "groups": 2}
            )
        ),
    }
    found = {f"methods of {name}": public_methods(c) for name, c in classes.items()}
    found["SSLAM()"] = signature(SSLAM)
    found["espnet2_sslam"] = {"__version__": type(espnet2_sslam.__version__).__name__}
    found["espnet2_sslam.checkpoint"] = {
        name: signature(value) if callable(value := getattr(checkpoint, name)) else ""
        for name in sorted(checkpoint.__all__)
    }
    model = SSLAM.from_pretrained(work.classifier, device="cpu")
    files = sorted(map(str, work.audio.iterdir()))
    [result] = model.embed_files(files[:1])
    found["FileResult"] = {
        "type": type(result).__name__,
        "fields": {name: plain(value) for name, value in vars(result).items()},
    }
    found["FileResult"]["fields"]["name"] = work.clean(result.name)
    wave = sound(1.0, 16_000, 1).astype(np.float32)
    found["SSLAM"] = {
        "repr": repr(model),
        "classes": model.classes,
        "is_classifier": model.is_classifier,
        "embed file": model.embed(files[0]),
        "embed array": model.embed(wave, rate=16_000),
        "embed list": model.embed([wave, wave[:9000]], rate=16_000, pooling="cls"),
        "embed frames": model.embed((wave, 22_050), pooling="frames"),
        "embed layers": model.embed(wave, rate=16_000, layer="all"),
        "embed chunks": model.embed(wave, rate=8_000, chunk=0.5, hop=0.25),
        "tag": [list(pair) for pair in model.tag(files[0], top_k=2)],
        "tag list": [
            [list(pair) for pair in tags] for tags in model.tag(files[:2], top_k=1)
        ],
        "tag_files": [each.values for each in model.tag_files(files, chunk=1.0)],
        "tag_frames": [each.values for each in model.tag_frames(files)],
        "save_pretrained": sorted(
            path.name for path in Path(model.save_pretrained(work.new("api"))).iterdir()
        ),
    }
    for name, call in {
        "embed nothing": lambda: model.embed(files[0], layer=7),
        "tag by an encoder": lambda: SSLAM(encoder, device="cpu").tag(files[0]),
        "no such source": lambda: SSLAM.from_pretrained(work.folder / "nowhere"),
    }.items():
        try:
            call()
            found[f"error, {name}"] = "(none)"
        except ValueError as error:
            kind = "ValueError" if isinstance(error, ValueError) else "another"
            found[f"error, {name}"] = f"{kind}: {work.clean(str(error))}"
    script = "import sys, espnet2_sslam; print('torch' in sys.modules)"
    fresh = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    found["import espnet2_sslam imports torch"] = fresh.stdout.strip()
    return plain(found)


@record(rtol=1e-4, needs=("transformers",))
def huggingface(work: Workspace) -> dict:
    """Names, and what a folder of ours gives through transformers."""
    import transformers
    from safetensors.torch import load_file

    import espnet2_sslam.integrations.huggingface as ours

    names = [name for name in sorted(vars(ours)) if name in ours.__all__]
    config = transformers.AutoConfig.from_pretrained(work.classifier)
    extractor = transformers.AutoFeatureExtractor.from_pretrained(work.classifier)
    model = transformers.AutoModelForAudioClassification.from_pretrained(
        work.classifier
    )
    wave = sound(1.0, 16_000, 1).astype(np.float32)
    inputs = extractor([wave, wave[:9000]], sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        logits = model.eval()(**inputs).logits
    pipe = transformers.pipeline(
        "audio-classification",
        model=str(work.classifier),
        pipeline_class=ours.AudioFilePipeline,  # reads files without ffmpeg
    )
    said = pipe(str(work.audio / "mono16.wav"), top_k=2)
    encoder = transformers.AutoModel.from_pretrained(work.classifier).eval()
    with torch.no_grad():
        states_ = encoder(**inputs, output_hidden_states=True)
    saved = work.new("huggingface")
    model.save_pretrained(saved)
    return plain(
        {
            "names": names,
            "classes": [type(each).__name__ for each in (config, extractor, model)],
            "model_type": config.model_type,
            "config": {
                name: getattr(config, name)
                for name in ("hidden_size", "num_hidden_layers", "id2label")
            },
            "inputs": {name: value for name, value in inputs.items()},
            "logits": logits,
            "pipeline": [[each["label"], each["score"]] for each in said],
            "defaults": {
                name: value
                for name, value in type(config)().to_diff_dict().items()
                if name != "transformers_version"
            },
            "outputs": sorted(states_.keys()),
            "last_hidden_state": states_.last_hidden_state,
            "saved": sorted(path.name for path in saved.iterdir()),
            "saved tensors": digest(load_file(saved / "model.safetensors")),
            "forward": {
                "model": signature(type(encoder).forward),
                "classification": signature(type(model).forward),
            },
        }
    )


@record(rtol=1e-4, needs=("s3prl",))
def s3prl(work: Workspace) -> dict:
    """Names of the upstreams, and the hidden states of some."""
    import espnet2_sslam  # noqa: F401 - makes them known

    with contextlib.redirect_stderr(io.StringIO()):
        import s3prl.hub as hub

    names = sorted(name for name in dir(hub) if name.startswith("sslam"))
    found = {name: signature(getattr(hub, name)) for name in names}
    clips = [torch.from_numpy(sound(s, 16_000, 1)).float() for s in (1.0, 0.4)]
    for name, upstream, options in (
        ("sslam", "sslam", {}),
        ("sslam_mean", "sslam_mean", {}),
        ("sslam, flatten", "sslam", {"freq": "flatten"}),
        ("sslam, upsample", "sslam", {"upsample": 8, "layers": [1, 2]}),
        ("sslam, fixed", "sslam_local", {"target_frames": 64}),
    ):
        try:
            expert = getattr(hub, upstream)(ckpt=str(work.classifier), **options).eval()
            with torch.no_grad():
                states_ = expert(clips)["hidden_states"]
            rate = expert.get_downsample_rates("hidden_states")
            found[f"{name}: hidden states"] = {"rate": rate, "states": list(states_)}
        except (ValueError, TypeError) as error:
            found[f"{name}: hidden states"] = work.clean(f"{error}")
    return plain(found)


@record(rtol=1e-5, needs=("torcheval", "six"))
def espnet(work: Workspace) -> dict:
    """ESPnet's choices that hold `sslam`, their options, our YAML files for them."""
    import espnet2_sslam  # noqa: F401 - makes them known

    found = {}
    for task in ("asr", "cls"):
        module = importlib.import_module(f"espnet2.tasks.{task}")
        choices = {
            name: value
            for name, value in sorted(vars(module).items())
            if name.endswith("_choices") and "sslam" in getattr(value, "classes", ())
        }
        for name, value in choices.items():
            chosen = value.get_class("sslam")
            kind = name.removesuffix("_choices")
            words = ["--print_config", f"--{kind}", "sslam"]
            parsed = espnet_config(module, task, words)
            found[f"{task} {kind}: sslam"] = {
                "class": chosen.__name__,
                "options": dict(sorted(parsed[f"{kind}_conf"].items())),
            }
        for path in sorted(CONF.glob(f"{task}_*.yaml")):
            config = yaml.safe_load(path.read_text(encoding="utf-8"))
            parsed = espnet_config(module, task, ["--print_config", "--config", path])
            kept = ("encoder", "encoder_conf", "frontend", "frontend_conf")
            found[path.name] = {
                "keys": sorted(config),
                **{key: config[key] for key in kept if key in config},
                "parsed as written": all(
                    parsed[key].get(name) == value
                    for key in kept
                    if isinstance(config.get(key), dict)
                    for name, value in config[key].items()
                ),
            }
    from espnet2.tasks.asr import encoder_choices, frontend_choices

    encoder = fill(encoder_choices.get_class("sslam")(1, **SIZE)).eval()
    frontend = fill(frontend_choices.get_class("sslam")(16_000, **SIZE)).eval()
    with torch.no_grad():
        found["encoder's output"] = encoder(*batch(2))[0]
        found["frontend's output"] = frontend(*batch(2))[0]
    import espnet2.tasks.abs_task as abs_task

    importlib.import_module("espnet2_sslam.tasks.base")
    ours = [n for n in abs_task.scheduler_classes if n.startswith("sslam")]
    found["schedulers"] = sorted(ours)
    return plain(found)


def espnet_config(module, task: str, words: list) -> dict:
    """What a task of ESPnet prints with --print_config."""
    out = io.StringIO()
    before = sys.argv
    sys.argv = [task, *map(str, words)]
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(io.StringIO()),
            print_config_to_stdout(),
        ):
            getattr(module, f"{task.upper()}Task").main(cmd=sys.argv[1:])
    except SystemExit:
        pass
    finally:
        sys.argv = before
    return yaml.safe_load(out.getvalue())


# 10. The recipe


@record()
def recipe_options(work: Workspace) -> dict:
    """Options of run.sh with their defaults, and its stages, from its help."""
    text = run_sh("--help", timeout=60)
    options, stages_ = {}, {}
    for line in text.splitlines():
        words = re.split(r"\s{2,}", line)
        if len(words) > 1 and words[1].startswith("--"):
            default = re.search(r"\[([^\]]*)\]$", line)
            for name in re.findall(r"--\w+", words[1]):
                options[name] = default[1] if default else "(not said)"
        for word in words:
            stage = re.fullmatch(r"(\d) (\S.+)", word)
            if stage:
                stages_[stage[1]] = stage[2]
    script = (RECIPE / "run.sh").read_text(encoding="utf-8")
    head = script[: script.index("help_message=")]
    variables = dict(re.findall(r"^(\w+)=(.*)$", head, re.MULTILINE))
    return {"help": options, "stages": stages_, "variables": variables}


def run_sh(*words, timeout: int = 580) -> str:
    """Run run.sh with this Python: what it prints."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [str(RECIPE / "run.sh"), *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@record(rtol=1e-4, slow=True)
def recipe_trainings(work: Workspace) -> dict:
    """Stages 1 to 7 at a very small scale: files, and every statistic of trainings."""
    files: dict[str, int] = {}
    for path in sorted(work.recipe.rglob("*")):
        name = str(path.relative_to(work.recipe))
        if not path.is_file() or name.startswith("data/"):
            continue
        if path.name.startswith(".") and path.name != ".done":
            continue  # notes of the recipe to itself
        if path.suffix in AUDIO:
            name = f"{work.spread(name)}/*{path.suffix}"
        files[name] = files.get(name, 0) + 1
    found = {"files": [f"{count} {name}" for name, count in files.items()]}
    for path in sorted(work.recipe.rglob("checkpoint.pth")):
        name = str(path.parent.relative_to(work.recipe))
        found[name] = progress(path.parent)
    return found


@record(rtol=0.03, slow=True)
def recipe_results(work: Workspace) -> dict:
    """Scores and RESULTS.md of the same run."""
    found = {}
    for path in sorted(work.recipe.rglob("metrics.json")):
        metrics = no_digests(json.loads(work.clean(path.read_text(encoding="utf-8"))))
        kept = ("task", "num_clips", "mAP", "auc", "positives")
        name = str(path.parent.relative_to(work.recipe))
        found[name] = {
            "keys": sorted(metrics),
            **{key: metrics[key] for key in kept if key in metrics},
        }
    text = (work.recipe / "exp/RESULTS.md").read_text(encoding="utf-8")
    found["RESULTS.md"] = results_lines(work, text)
    for path in sorted((work.recipe / "exp/results").glob("*.csv")):
        found[path.name] = output(path)[:1]
    return plain(found)


def results_lines(work: Workspace, text: str) -> list:
    """RESULTS.md without times, machines, hashes and what is said about scores."""
    volatile = {"hours", "settings", "torch", "espnet", "machine", "hash"}
    lines, columns = [], []
    for line in work.clean(text).splitlines():
        if not line.startswith("|"):
            columns = []
            line = re.sub(r"`[0-9a-f]{10}`", "`(hash)`", line)
            line = line.split(": ")[0] if line.startswith("- ") else line
            lines += [line] if line.strip() else []
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        columns = columns or cells
        if columns == ["what", "value"]:
            cells = cells[:1]
        row = [
            "-" if name in volatile and cell != name else cell
            for name, cell in zip(columns, cells)
        ]
        numbers = [[_number(word) for word in cell.split()] for cell in row]
        lines.append([word for cell in numbers for word in [*cell, "|"]])
    return lines


def main() -> None:
    """Write records, or list them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", nargs="*", metavar="NAME", help="all by default")
    args = parser.parse_args()
    if args.write is None:
        print(" ".join(RECORDED))
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    RECORDS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        work = Workspace(Path(folder).resolve())
        for name in args.write or RECORDED:
            record = RECORDED[name]
            write_json(record.content(work), record.path)
            print(f"written: {record.path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
