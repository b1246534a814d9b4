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
import io
import json
import lzma
import os
import re
import runpy
import sys
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
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
SAMPLED = 16  # numbers that are kept of a long array
DIGITS = 8  # significant ones: float32 has a little more than 7

# The classes, each built in one place: sizes and options are keywords here.


def build_encoder(input_size: int = 1, **options):
    """The encoder."""
    from espnet2_sslam.encoder import SSLAMEncoder

    return SSLAMEncoder(input_size, **options)


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
    "phase 1, sum": {"utterance_loss_reduction": "sum"},
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
                entry.update(layout(work, path, exact, describe))
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
            content = json.loads(json.dumps(record.make(work)))
            write_json(content, record.path)
            print(f"written: {record.path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
