"""What users see of the package, as records to compare with.

The records in tests/contract/ hold what the package did when they were written. They
may change only together with a decision that users shall see something else:

    python -m tests.contract_record                        # the names of the records
    python -m tests.contract_record --write                # write all anew
    python -m tests.contract_record --write embed layouts  # or some of them
    git diff tests/contract                                # what users will see

`tests/test_contract.py` compares. Only public faces are used: commands, run.sh, files
and what README tells people to import.
"""

import argparse
import contextlib
import csv
import dataclasses
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
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import soundfile
import torch
import yaml

import espnet2_sslam
from espnet2_sslam import (
    SSLAM,
    EncoderConfig,
    FileResult,
    HeadConfig,
    SSLAMClassifier,
    SSLAMEncoder,
    SSLAMPretrainModel,
    checkpoint,
)
from espnet2_sslam.augment import Augmentation

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "egs2" / "sslam"
CONF = ROOT / "conf"
RECORDS = ROOT / "tests" / "contract"
AUDIO = (".wav", ".flac", ".ark")
CASES = yaml.safe_load((ROOT / "tests/contract_cases.yaml").read_text())
SIZE = CASES["size"]
SAMPLED = 12  # numbers that are kept of a long array

POOLINGS = ("cls", "mean", "concat", "attentive", "lin_softmax")

# Records: name -> how to make and compare them


@dataclasses.dataclass(frozen=True)
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
        text = json.dumps(plain(self.make(work)), ensure_ascii=False)
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
    lines = []
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old | new:
            place = f"{where} / {key}" if where else key
            if key not in new:
                lines.append(f"{place}: gone, was {_short(old[key])}")
            elif key not in old:
                lines.append(f"{place}: not there before, now {_short(new[key])}")
            else:
                lines += differences(old[key], new[key], rtol, place)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        sizes = [abs(item) for item in old if _is_number(item) and item == item]
        largest = max(sizes, default=0.0)
        for index, pair in enumerate(zip(old, new, strict=True)):
            lines += differences(*pair, rtol, f"{where} [{index}]", largest)
    elif isinstance(old, list) and isinstance(new, list):
        gone = _short([item for item in old if item not in new])
        added = _short([item for item in new if item not in old])
        count = f"{len(old)} items before, {len(new)} now"
        lines = [f"{where}: {count}; gone: {gone}; added: {added}"]
    elif _is_number(old) and _is_number(new):
        room = 1.1e-3 if " / printed [" in where else rtol * max(abs(old), scale)
        both_nan = old != old and new != new
        if old != new and not both_nan and not abs(old - new) <= room:
            lines = [f"{where}: was {old}, is {new}"]
    elif type(old) is not type(new) or old != new:
        lines = [f"{where}: was {_short(old)}, is {_short(new)}"]
    return lines


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _short(value) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 300 else f"{text[:300]}..."


def plain(value):
    """A value as JSON holds it, numbers rounded; long rows of numbers are thinned."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind not in "fiub":
        value = value.tolist()
    if isinstance(value, np.ndarray):
        kind = {"shape": list(value.shape), "dtype": str(value.dtype)}
        return kind | _thin(value)
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return float(f"{value:.7g}")  # as many digits as float32 has
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        if len(value) > 2 * SAMPLED and all(map(_is_number, value)):
            return {"count": len(value), **_thin(np.array(value))}
        return [plain(item) for item in value]
    return value if value is None or isinstance(value, (int, str)) else str(value)


def _thin(array: np.ndarray) -> dict:
    """Some of the numbers, and the norm of all."""
    flat = array.astype(np.float64).ravel()
    keep = np.unique(np.linspace(0, max(len(flat) - 1, 0), SAMPLED).astype(int))
    values = flat[keep[: len(flat)]].tolist()
    return {"values": plain(values), "norm": plain(float(np.linalg.norm(flat)))}


def as_json(value, indent: str = "\n") -> str:
    """JSON with a line per item, but not per number or short item."""
    text = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, (dict, list)):
        return text
    items = value.values() if isinstance(value, dict) else value
    flat = not any(isinstance(item, (dict, list)) for item in items)
    if len(text) < 100 or (flat and isinstance(value, list) and len(text) < 400):
        return text
    inner = indent + " "
    if isinstance(value, dict):
        pairs = value.items()
        lines = [
            f"{json.dumps(k, ensure_ascii=False)}: {as_json(v, inner)}"
            for k, v in pairs
        ]
        return "{" + ",".join(inner + line for line in lines) + indent + "}"
    return "[" + ",".join(inner + as_json(item, inner) for item in value) + indent + "]"


# Commands, in this process: their modules take seconds to import


def console_scripts() -> dict[str, str]:
    """Names of the console scripts of the packaging, and what they call."""
    text = "".join((ROOT / f).read_text() for f in ("setup.py", "pyproject.toml"))
    return dict(re.findall(r"\"?([\w-]+)\"?\s*=\s*\"?(espnet2_sslam[\w.]*:\w+)", text))


def command(name: str, *words, cwd: Path | str = ".") -> tuple[int, str, str]:
    """Run `name` with words: exit status, stdout, stderr.

    Args:
        name: A console script, a module ("espnet2_sslam.bin.sslam_train") or a program
            of the recipe ("local/data_mini.py").
        cwd: Where to run.
    """
    out, err, status = io.StringIO(), io.StringIO(), 0
    with (
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.object(sys, "argv", [name, *map(str, words)]),
        mock.patch.object(sys, "path", [*sys.path]),
        mock.patch.dict(os.environ),
        warnings.catch_warnings(action="ignore"),
    ):
        try:
            if name.endswith(".py"):
                sys.path.insert(0, str((RECIPE / name).parent))
                runpy.run_path(str(RECIPE / name), run_name="__main__")
            elif name in (scripts := console_scripts()):
                module, _, function = scripts[name].partition(":")
                sys.exit(getattr(importlib.import_module(module), function)())
            else:
                runpy.run_module(name, run_name="__main__", alter_sys=True)
        except SystemExit as stop:
            status = stop.code or 0
            if isinstance(status, str):
                err.write(f"{status}\n")
                status = 1
    return status, out.getvalue(), err.getvalue()


def succeed(name: str, *words) -> str:
    """Run a command that must end well: its stdout."""
    status, out, err = command(name, *words)
    assert status == 0, f"{name} {' '.join(map(str, words))}: {status}\n{out}{err}"
    return out


def printed_config(module: str, *words) -> dict:
    """What a training command prints with --print_config."""
    from espnet2.tasks.abs_task import AbsTask

    # ESPnet prints to the stdout that was there when its module was imported
    printing = AbsTask.print_config.__func__
    captured = classmethod(lambda cls: printing(cls, sys.stdout))
    with mock.patch.object(AbsTask, "print_config", captured):
        return yaml.safe_load(succeed(module, *words, "--print_config"))


def options_of(name: str, *words) -> dict[str, dict]:
    """Options of a command: their defaults and what else limits them."""
    parsers = []

    def keep(parser, file=None):
        parsers.append(parser)

    with mock.patch.object(argparse.ArgumentParser, "print_help", keep):
        succeed(name, *words, "--help")
    return described(parsers[-1])


def described(parser: argparse.ArgumentParser) -> dict[str, dict]:
    """The options of a parser."""
    options = {}
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        entry = {"default": plain(parser.get_default(action.dest))}
        if action.choices is not None:
            entry["choices"] = [str(choice) for choice in action.choices]
        if action.required and action.option_strings:
            entry["required"] = True
        if action.nargs is not None:
            entry["nargs"] = action.nargs
        options[" ".join(sorted(action.option_strings)) or action.dest] = entry
    return options


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


# Files and models to work on, made when they are asked for


class Workspace:
    """A folder with audio, data, checkpoints and trainings."""

    def __init__(self, folder: Path):
        self.folder = folder

    def new(self, name: str) -> Path:
        """An empty folder."""
        return Path(tempfile.mkdtemp(prefix=f"{name}_", dir=self.folder))

    def clean(self, text: str) -> str:
        """A text without what belongs to this machine."""
        text = text.replace(str(self.folder), "FOLDER").replace(str(ROOT), "ROOT")
        text = text.replace(sys.executable, "PYTHON")
        return re.sub(r"(FOLDER/[a-z0-9]+)_[a-z0-9_]{8}(?=/|\s|$)", r"\1", text)

    def read_json(self, path: Path):
        """A JSON file without this machine's paths and the digests that hold them."""
        text = self.clean(path.read_text(encoding="utf-8"))
        return json.loads(re.sub('"[0-9a-f]{64}"', '"(sha256)"', text))

    def words(self, text: str) -> list:
        """Lines of words, numbers as numbers."""
        lines = self.clean(text).splitlines()
        return [[number(word) for word in line.split()] for line in lines]

    def authors(self, name: str) -> Path:
        """One of the authors' tiny checkpoints."""
        path = self.folder / f"tiny_fairseq_{name}.pt"
        if not path.exists():
            packed = ROOT / "tests" / "golden" / f"{path.name}.xz"
            path.write_bytes(lzma.decompress(packed.read_bytes()))
        return path

    @functools.cached_property
    def pretrained(self) -> Path:
        """The authors' tiny pre-training checkpoint."""
        return self.authors("pretrain")

    @functools.cached_property
    def finetuned(self) -> Path:
        """The authors' tiny fine-tuned checkpoint."""
        return self.authors("finetuned")

    @functools.cached_property
    def classifier(self) -> Path:
        """A classifier in our own format whose scores depend strongly on the audio."""
        names = ["dog", "rain, light", "siren", "speech"]
        model = fill(SSLAMClassifier(SSLAMEncoder(**SIZE), names, pooling="mean"))
        model.head.weight.data *= 2
        return checkpoint.save_model(model, self.folder / "classifier")

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
                lists["wav.scp"] += f"{key} {path}\n"
                lists["text"] += f"{key} {'high low' if index == count - 1 else one}\n"
                lists["text1"] += f"{key} {one}\n"
                lists["utt2num_samples"] += f"{key} {len(wave)}\n"
            for name, text in lists.items():
                (folder / split / name).write_text(text)
        (folder / "classes.txt").write_text("\n".join([*classes, ""]))
        return folder

    def train(self, name: str, init: str = "", labels: str = "", **config) -> Path:
        """Run a training command; its folder."""
        output = self.new(name)
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**CASES["training"], **config}))
        words = ["--config", path, "--output_dir", output]
        for split in ("train", "valid"):
            option = f"--{split}_data_path_and_name_and_type"
            words += [option, f"{self.data / split}/wav.scp,speech,sound"]
            words += [f"--{split}_shape_file", self.data / split / "utt2num_samples"]
            if labels:
                words += [option, f"{self.data / split}/{labels},label,text"]
        words += ["--class_list", self.data / "classes.txt"] if labels else []
        words += ["--init_param", init] if init else []
        module = "sslam_cls_train" if labels else "sslam_train"
        succeed(f"espnet2_sslam.bin.{module}", *words)
        return output

    @functools.cached_property
    def phase1(self) -> Path:
        """20 updates of phase 1."""
        return self.train("phase1", **CASES["pretraining"])

    @functools.cached_property
    def phase2(self) -> Path:
        """20 updates of phase 2 from phase 1."""
        model = {
            **CASES["pretraining"]["model_conf"],
            "mixture": True,
            "clone_batch": 2,
        }
        init = f"{self.phase1}/latest.pth:::num_updates"
        return self.train(
            "phase2", init, **{**CASES["pretraining"], "model_conf": model}
        )

    @functools.cached_property
    def finetuning(self) -> Path:
        """6 updates of fine-tuning from phase 2, with all augmentation."""
        init = f"{self.phase2}/latest.pth:encoder:encoder"
        return self.train("finetuning", init, labels="text", **CASES["finetuning"])

    @functools.cached_property
    def linear(self) -> Path:
        """6 updates of linear evaluation of phase 2's encoder, one label per clip."""
        init = f"{self.phase2}/latest.pth:encoder:encoder"
        return self.train("linear", init, labels="text1", **CASES["linear"])

    @functools.cached_property
    def recipe(self) -> Path:
        """Output of run.sh, stages 1 to 7, a few updates of everything."""
        folder = self.new("recipe")
        few = "--max_epoch 2 --num_iters_per_epoch 3"
        options = {
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
        run_sh(*[word for pair in options.items() for word in pair])
        return folder


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


def number(cell: str):
    """A cell or word, as a number if it is one."""
    try:
        return float(cell)
    except ValueError:
        return cell


def output(path: Path):
    """What a command wrote, numbers as numbers."""
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            content = dict(arrays)
        if "info" in content:
            info = json.loads(str(content["info"]))
            content["info"] = {**info, "espnet2_sslam": "(version)"}
        return content
    if path.suffix == ".scp":
        import kaldiio

        return dict(kaldiio.load_scp(str(path)))
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        return json.loads(text)
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines()]
    rows = csv.reader(
        io.StringIO(text), "excel" if path.suffix == ".csv" else "excel-tab"
    )
    return [[number(cell) for cell in row] for row in rows]


def names(folder: Path) -> list[str]:
    """Of what lies in a folder."""
    return sorted(path.name for path in folder.iterdir())


def tensors(path) -> dict:
    """A file of torch.save, trusted: our own."""
    return torch.load(path, map_location="cpu", weights_only=False)


def shapes(state: dict) -> dict[str, str]:
    """Names, dtypes and shapes of a state dict."""
    return {
        name: f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
        for name, value in state.items()
        if isinstance(value, torch.Tensor)
    }


def digest(state: dict) -> str:
    """Of names, dtypes and shapes, where the whole list stands elsewhere."""
    lines = [f"{name} {text}" for name, text in sorted(shapes(state).items())]
    return f"{len(lines)} tensors {sha256(chr(10).join(lines))}"


def contents(state: dict) -> dict[str, str]:
    """Names, dtypes, shapes and a digest of each tensor's bytes, and one of all."""
    listed, whole = {}, hashlib.sha256()
    for name, text in sorted(shapes(state).items()):
        data = state[name].detach().cpu().contiguous().reshape(-1)
        data = data.view(torch.uint8).numpy().tobytes()
        listed[name] = f"{text} {sha256(data)[:12]}"
        whole.update(f"{name} {text} ".encode() + data)
    return {**listed, "sha256 of all": whole.hexdigest()}


def total(state: dict) -> str:
    """The digest of names, shapes and contents alone."""
    return contents(state)["sha256 of all"]


def sha256(content: bytes | str) -> str:
    """In hexadecimal."""
    data = content.encode() if isinstance(content, str) else content
    return hashlib.sha256(data).hexdigest()


def norm(parts) -> float:
    """Of many tensors together."""
    return sum(float(part.double().square().sum()) for part in parts) ** 0.5


def gradient_norm(model: torch.nn.Module) -> float:
    """Of all gradients."""
    return norm(p.grad for p in model.parameters() if p.grad is not None)


def progress(folder: Path) -> dict:
    """Every statistic of every epoch of a training, without times and memory."""
    states = tensors(folder / "checkpoint.pth")
    statistics: dict[str, list] = {}
    for _, epoch in sorted(states["reporter"]["stats"].items()):
        for part in ("train", "valid"):
            for name, value in epoch.get(part, {}).items():
                if not re.search(r"time|mem|speed", name):
                    statistics.setdefault(f"{part} {name}", []).append(float(value))
    keys = ("initial_lr", "lr", "weight_decay")
    groups = [
        {**{key: group[key] for key in keys}, "parameters": len(group["params"])}
        for group in states["optimizers"][0]["param_groups"]
    ]
    return {"statistics": statistics, "optimizer groups": groups}


# 1. Pre-training


@record(rtol=1e-5)
def pretraining(work: Workspace) -> dict:
    """20 updates of both phases by the training command."""
    return {"phase 1": progress(work.phase1), "phase 2": progress(work.phase2)}


def pretrain_model(encoder: SSLAMEncoder, **options) -> SSLAMPretrainModel:
    """A small one."""
    conf = {
        "clip_frames": 128,
        "padding": "authors",
        "decoder_conf": {"num_layers": 2, "groups": 4},
    }
    return SSLAMPretrainModel(encoder, **{**conf, **options})


@record(rtol=1e-5)
def pretraining_options(work: Workspace) -> dict:
    """Two steps and a validation under every option; gradients of the first step."""
    cases: dict = {}
    for name, options in CASES["pretraining_options"].items():
        options = {"clone_batch": 2, "mask_block_size": 2, **options}
        encoder = SSLAMEncoder(**SIZE, drop_path=0.2)
        model = fill(pretrain_model(encoder, **options)).train()
        steps = []
        for _ in range(2):
            loss, stats, weight = model(*batch(), utt_id=["a", "b", "c", "d"])
            steps.append({**stats, "weight": weight})
            if len(steps) == 1:
                loss.backward()
                gradient = gradient_norm(model)
        model.eval()
        with torch.no_grad():
            _, stats, _ = model(*batch(), utt_id=["a", "b", "c", "d"])
        cases[name] = {
            "steps": [{k: float(v) for k, v in step.items()} for step in steps],
            "gradient norm": gradient,
            "validation": {key: float(value) for key, value in stats.items()},
        }
    model.train()
    model.update_teacher()
    teacher = [v for k, v in model.state_dict().items() if k.startswith("teacher.")]
    return {**cases, "teacher after an update": {"norm": norm(teacher)}}


@record()
def states(work: Workspace) -> dict:
    """Names and shapes of parameters and buffers, and which are trained."""
    models = {
        "pre-training": pretrain_model(SSLAMEncoder(**SIZE)),
        "encoder": SSLAMEncoder(**SIZE),
        "encoder, log-mel": SSLAMEncoder(input_size=128, **SIZE),
    }
    heads = {pooling: {"pooling": pooling} for pooling in POOLINGS}
    heads["weighted layers"] = {"weighted_layers": True}
    heads["batch norm"] = {"head_norm": "batch", "freeze_encoder": True}
    for name, options in heads.items():
        model = SSLAMClassifier(SSLAMEncoder(**SIZE), ["a", "b", "c"], **options)
        models[f"classifier, {name}"] = model
    cases: dict = {}
    for name, model in models.items():
        state = shapes(model.state_dict())
        trained = sorted(n for n, p in model.named_parameters() if p.requires_grad)
        if name.startswith("classifier"):  # its encoder is the one above
            assert shapes(model.encoder.state_dict()) == cases["encoder"]["state"]
            state = {k: v for k, v in state.items() if not k.startswith("encoder.")}
        cases[name] = {
            "state": state,
            "parameters": sum(p.numel() for p in model.parameters()),
            "trained": len(trained),
            "digest of what is trained": sha256("\n".join(trained))[:16],
        }
    base = SSLAMEncoder()
    lines = [f"{k} {v}" for k, v in sorted(shapes(base.state_dict()).items())]
    cases["encoder by default"] = {
        "parameters": sum(p.numel() for p in base.parameters()),
        "digest of the state": sha256("\n".join(lines)),
    }
    return cases


@record(rtol=1e-5)
@torch.no_grad()
def encoder_outputs(work: Workspace) -> dict:
    """Outputs and lengths of the encoder under its options."""
    cases: dict = {}
    for name, options in CASES["encoder_outputs"].items():
        encoder = fill(SSLAMEncoder(**{**SIZE, **options})).eval()
        out, lengths, _ = encoder(*batch(3))
        cases[name] = {
            "output_size": encoder.output_size(),
            "lengths": lengths.tolist(),
            "output": out,
        }
    encoder = fill(SSLAMEncoder(**SIZE, layer="all")).eval()
    (last, layers), _, _ = encoder(*batch(2))
    cases["all layers"] = {"last": last, "layers": layers}
    log_mel, frames = SSLAMEncoder(**SIZE).fbank(*batch(3))
    cases["log-mel"] = {"frames": frames.tolist(), "values": log_mel}
    return cases


# 2. Fine-tuning


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
    cases = CASES["finetuning_options"]
    return {name: updates(**options) for name, options in cases.items()}


def updates(augment: dict | None = None, **options) -> dict:
    """Losses of three updates, the validation loss, logits and scores.

    By plain gradient descent: Adam makes whole steps of the rounding noise in
    gradients that are zero, which no two processors share.
    """
    model = fill(
        SSLAMClassifier(
            SSLAMEncoder(**SIZE, drop_path=0.1),
            ["a", "b", "c"],
            augmentation=Augmentation(**(augment or {})),
            **options,
        )
    )
    label = torch.eye(3)[[0, 1, 2, 0]]
    if options.get("task") != "multi_class":
        label[3, 2] = 1.0
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.02)
    losses, ids = [], ["a", "b", "c", "d"]
    for _ in range(3):
        model.train()
        loss, _, weight = model(*batch(), label, utt_id=ids)
        losses.append([loss.item(), weight.item()])
        optimizer.zero_grad()
        loss.sum().backward()
        if len(losses) == 1:
            gradient = gradient_norm(model)
        optimizer.step()
    model.eval()
    with torch.no_grad():
        loss, _, weight = model(*batch(), label, utt_id=ids)
        logits = model.inference(*batch())
    return {
        "losses and weights": losses,
        "gradient norm": gradient,
        "validation": [float(loss), float(weight)],
        "logits": logits.tolist(),
        "scores": model.scores(logits).tolist(),
    }


# 3. Embeddings and tags


def runs(work: Workspace, kind: str, model: Path, cases: dict) -> dict:
    """Run `sslam KIND MODEL FILES` with options; what is written and printed."""
    entries = {}
    for name, text in cases.items():
        suffix, *options = text.split(" ")
        folder = work.new(kind)
        out = folder / f"out{suffix}"
        words = [*names(work.audio), *(["-o", out] if suffix else []), *options]
        status, printed, err = command("sslam", kind, model, *words, cwd=work.audio)
        entries[name] = entry = {"status": status, "printed": work.words(printed)}
        if suffix:
            entry["files"] = names(folder)
        if out.is_file():
            entry["content"] = output(out)
        if status:
            entry["complaint"] = work.clean(err).splitlines()[-1:]
    return entries


@record(rtol=2e-5)
def embed(work: Workspace) -> dict:
    """`sslam embed` of four files by the authors' pre-trained tiny checkpoint."""
    return runs(work, "embed", work.pretrained, CASES["embed"])


@record(rtol=2e-5)
def tag(work: Workspace) -> dict:
    """`sslam tag` of four files by a classifier with distinct scores; the authors'."""
    some = ("clips", "chunks", "frames", "events", "fixed length")
    authors = {name: CASES["tag"][name] for name in some}
    return {
        "own": runs(work, "tag", work.classifier, CASES["tag"]),
        "the authors'": runs(work, "tag", work.finetuned, authors),
    }


# 4. Layouts of weights


def layout(work: Workspace, path: Path, exact: bool, describe: Callable) -> dict:
    """Names, tensors and descriptions of what `sslam convert` wrote.

    Args:
        exact: The bytes of the tensors are the source's: no arithmetic made them.
        describe: What is kept of a state dict.
    """
    if path.is_dir():
        from safetensors.torch import load_file

        weights = path / "model.safetensors"
        texts = {
            file.name: steady(work, file.read_text(encoding="utf-8"), exact)
            for file in sorted(path.glob("*.json"))
        }
        parts = {"files": names(path), **texts, "tensors": describe(load_file(weights))}
        if exact:
            parts["sha256 of model.safetensors"] = sha256(weights.read_bytes())
        return parts
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        parts = {"files": list(members)}
        volatile = ("timestamp", "python", "torch", "espnet", "espnet2_sslam")
        for name, data in members.items():
            if name.endswith(".yaml"):
                content = yaml.safe_load(data)
                hidden = {key: "(volatile)" for key in volatile if key in content}
                parts[name] = {**content, **hidden}
            else:
                parts[name] = describe(tensors(io.BytesIO(data)))
        return parts
    content = tensors(path)
    parts = {"type": type(content).__name__, "tensors": describe(content)}
    parts |= {k: v for k, v in content.items() if not isinstance(v, torch.Tensor)}
    if "model" in parts:
        parts["model _ema"] = describe(parts["model"].get("_ema") or {})
        parts["model"] = describe(parts["model"])
    return parts


def steady(work: Workspace, text: str, exact: bool) -> dict:
    """A JSON file without what changes from run to run."""
    content = json.loads(work.clean(text))
    origin = content.get("origin") or {}
    if "converter" in origin:
        origin["converter"] = re.sub(r"[\d.]+", "VERSION", origin["converter"])
    if "sha256" in origin and not exact:
        origin["sha256"] = "x" * len(origin["sha256"])
    return content


@record()
def layouts(work: Workspace) -> dict:
    """`sslam convert` from the authors' checkpoints and our trainings to everything."""
    cases: dict = {}
    for name, text in CASES["layouts"].items():
        source, *words = text.split()
        exact = source in ("pretrained", "finetuned")
        for target, words_of_target in CASES["targets"].items():
            file, *more = words_of_target.split()
            if words and target not in ("folder", "training"):
                continue  # the options change what is read, which shows here
            path = work.new("convert") / file
            words_of_case = [getattr(work, source), path, *words, *more]
            status, out, err = command("sslam", "convert", *words_of_case)
            cases[f"{name} -> {target}"] = entry = {
                "status": status,
                "printed": work.clean(out).splitlines(),
            }
            if status:
                entry["complaint"] = work.clean(err).splitlines()[-1:]
                continue
            describe = (total if words else contents) if exact else digest
            written = layout(work, path, exact, describe)
            if not exact and target in ("fairseq", "huggingface"):
                # the authors' checkpoints show the content; here only the digest
                text = json.dumps(plain(written), sort_keys=True)
                written = {"sha256": sha256(text)}
            entry.update(written)
    for source in ("pretrained", "finetuned"):
        again = work.new("convert")
        first, back, second = again / "first", again / "back.pt", again / "second"
        for start, end in ((getattr(work, source), first), (first, back)):
            succeed("sslam", "convert", start, end)
        succeed("sslam", "convert", back, second)
        one, two = (layout(work, p, True, contents)["tensors"] for p in (first, second))
        cases[f"there and back by fairseq, {source}"] = {"the same": one == two}
    return cases


# 5. What the stages of the recipe leave


def spread(name: str) -> str:
    """The folder of an audio file, without those that share out many files."""
    return re.sub(r"/[0-9a-f]{2}$", "", str(Path(name).parent))


def tree(work: Workspace, folder: Path) -> dict:
    """Files below a folder: digest and lines of texts, the number of audio files."""
    files: dict[str, str | int] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if not path.is_file() or any(part[0] == "." for part in name.split("/")):
            continue
        if path.suffix in AUDIO:
            place = f"{spread(name)}/*{path.suffix}"
            files[place] = files.get(place, 0) + 1
            continue
        text = path_hashes(work.clean(path.read_text(encoding="utf-8")))
        count = f"{len(text.splitlines())} lines"
        notes = path.suffix == ".jsonl" or name.startswith("feats/")  # sizes, times
        files[path_hashes(name)] = count if notes else f"{count} {sha256(text)[:12]}"
    return files


def path_hashes(text: str) -> str:
    """A text without hashes of paths in names of files, and without their order."""
    text = re.sub(r"/[0-9a-f]{2}/(?=[^/\s]+-[0-9a-f]{12}\b)", "/XX/", text)
    text = re.sub(r"\b[0-9a-f]{12,}\b", "HASH", text)
    return re.sub(r"(?<=\.ark):\d+$", ":OFFSET", text, flags=re.MULTILINE)


@record(rtol=1e-4)
def stages(work: Workspace) -> dict:
    """Stage 1 of every corpus on a miniature; stages 2 and 3 of the embedded one."""
    data, mini = work.new("corpora"), work.new("miniatures")
    cases: dict = {}

    def prepare(name: str, script: str, *options) -> None:
        words = [*options, "--datadir", data / name]
        succeed(f"local/data_{script}.py", *words)
        cases[f"stage 1, {name}"] = tree(work, data / name)

    for name, text in CASES["stages"].items():
        corpus, script, *options = text.split()
        if not (mini / corpus).exists():
            (mini / corpus).mkdir()
            importlib.import_module(f"tests.corpora.{corpus}").make(mini / corpus)
        prepare(name, script, "--corpus_dir", mini / corpus, *options)
    small = "--degrees 1 2 4 --train_clips 6 --valid_clips 3 --test_clips 3"
    words = [*small.split(), "--seconds", 0.4, "--corpus_dir", data / "esc50"]
    prepare("polyphony", "polyphony", *words)

    sounds = data / "sounds"
    for index in range(12):
        path = sounds / ("bark", "rain drops")[index % 2] / f"{index}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, sound(0.2, 16_000, index), 16_000)
    prepare("folder", "folder", "--corpus_dir", sounds, "--label_from", "parent")

    prepare("mini", "mini", "--mini_scale", 0.02)
    cases["stage 1, mini"]["loudness"] = loudness(data / "mini")
    for kind in ("raw", "fbank"):
        dump = data / "dump" / kind
        words = ["--datadir", data / "mini", "--outdir", dump, "--feats_type", kind]
        printed = succeed("espnet2_sslam.bin.format_audio", *words)
        cases[f"stage 2, {kind}"] = {**tree(work, dump), "printed": printed}
    features = output(data / "dump/fbank/pretrain/valid/feats.scp")
    cases["stage 2, fbank"]["features"] = features
    dump = data / "dump" / "raw"
    cases["stage 2, raw"]["loudness"] = loudness(dump)
    succeed("espnet2_sslam.bin.data_report", "--dump", dump)
    report = dump / "report"
    lines = work.words((report / "report.txt").read_text())
    cases["stage 3"] = {
        "files": names(report),
        "fbank_stats.json": output(report / "fbank_stats.json"),
        "report.json": work.read_json(report / "report.json"),
        "report.txt": [line for line in lines if line],
    }
    return cases


def loudness(folder: Path) -> dict:
    """Samples of all audio below a folder, and their root mean square."""
    files = [p for p in sorted(folder.rglob("*")) if p.suffix in AUDIO[:2]]
    samples = np.concatenate([soundfile.read(path)[0] for path in files])
    power = np.mean(samples**2)
    return {"samples": samples.size, "root mean square": float(power**0.5)}


# 6. Configurations


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


def keyword_options(cls: type, config: type | None = None) -> dict:
    """Keyword options of a class, those of its configuration too, and defaults."""
    options = {}
    for source in (config, cls):
        parameters = inspect.signature(source).parameters.values() if source else ()
        for parameter in parameters:
            if source is config or parameter.kind == parameter.KEYWORD_ONLY:
                none = parameter.default is parameter.empty
                options[parameter.name] = "(required)" if none else parameter.default
    return dict(sorted(options.items()))


@record()
def configurations(work: Workspace) -> dict:
    """What every YAML sets, as the training commands read it; all keys they take."""
    cases: dict = {}
    for path in sorted(CONF.glob("*.yaml")):
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        kind = path.stem.partition("_")[0]
        if kind in ("asr", "cls"):
            continue  # ESPnet's own commands read these: see `espnet`
        module = "sslam_train" if kind == "pretrain" else "sslam_cls_train"
        words = ["--config", path]
        parsed = printed_config(f"espnet2_sslam.bin.{module}", *words)
        if kind != "pretrain":
            words += ["--class_list", work.data / "classes.txt"]
        words += ["--output_dir", work.new("refused")]
        _, _, err = command(f"espnet2_sslam.bin.{module}", *words)
        sections = {key: parsed.get(key, "(unknown option)") for key in config}
        if "optim_conf" in config:  # of torch's options only what is set
            optim = {k: parsed["optim_conf"][k] for k in config["optim_conf"]}
            sections["optim_conf"] = optim
        cases[path.name] = {
            "command": module,
            # it got as far as the data, which were not given
            "keys are accepted": "data_path_and_name_and_type" in err.splitlines()[-1],
            **sections,
        }
    s3prl = sorted((CONF / "s3prl").glob("*.yaml"))
    cases["s3prl"] = {path.name: yaml.safe_load(path.read_text()) for path in s3prl}
    lines = (CONF / "benchmarks.txt").read_text(encoding="utf-8").splitlines()
    cases["benchmarks.txt"] = [
        [cell.strip() for cell in line.split("|")] for line in lines if line[:1] != "#"
    ]
    both = ("encoder_conf", "model_conf", "optim_groups_conf", "scheduler_conf")
    own = {"sslam_train": (), "sslam_cls_train": ("augment_conf",)}
    for module, more in own.items():
        for option in (*both, *more):
            keys = accepted_keys(work, module, option, "nosuchkey=1")
            cases[f"keys of {module} {option}"] = keys
        accepted_keys(work, module, "optim_conf", "nosuchkey=1")  # torch's
    decoder = ("sslam_train", "model_conf", "decoder_conf={nosuchkey: 1}")
    cases["keys of sslam_train model_conf decoder_conf"] = accepted_keys(work, *decoder)
    for cls, config in (
        (SSLAMEncoder, EncoderConfig),
        (SSLAMClassifier, HeadConfig),
        (Augmentation, Augmentation),
        (SSLAMPretrainModel, None),
    ):
        cases[f"defaults of {cls.__name__}"] = keyword_options(cls, config)
    return cases


# 7. Commands

TRAININGS = {  # name: module or script
    "python -m espnet2_sslam.bin.sslam_train": "espnet2_sslam.bin.sslam_train",
    "python -m espnet2_sslam.bin.sslam_cls_train": "espnet2_sslam.bin.sslam_cls_train",
    "beats/beats_cls_train.py": "beats/beats_cls_train.py",
}


@record()
def commands(work: Workspace) -> dict:
    """Names of the commands, their options and defaults."""
    from espnet2.tasks.abs_task import AbsTask

    class Bare(AbsTask):
        num_optimizers = 1

        @classmethod
        def add_task_arguments(cls, parser):
            pass

    cases: dict = {"console scripts": sorted(console_scripts())}
    for name in CASES["subcommands"]:
        cases[f"sslam {name}"] = options_of("sslam", name)
    for name in CASES["modules"]:
        module = f"espnet2_sslam.bin.{name}"
        cases[f"python -m {module}"] = options_of(module)
    module = "espnet2_sslam.bin.sslam_publish"
    same = options_of(module) == cases["sslam publish"]
    cases[f"python -m {module}"] = "as sslam publish" if same else "other options"
    espnets = described(Bare.get_parser())
    for name, program in TRAININGS.items():
        own = sorted(options_of(program).items())
        cases[name] = {key: entry for key, entry in own if entry != espnets.get(key)}
    # superb_run.py and these are called by a program of the recipe only
    inner = ("once.py", "jobs.py")
    recipe = [*RECIPE.glob("local/*.py"), *RECIPE.glob("utils/*.py")]
    for path in sorted([*recipe, *RECIPE.glob("superb/sslam_*.py")]):
        if "__main__" in path.read_text(encoding="utf-8") and path.name not in inner:
            name = str(path.relative_to(RECIPE))
            cases[name] = options_of(name)
    cases["sslam --help"] = re.findall(r"^sslam (\w+)", succeed("sslam"), re.MULTILINE)
    usage = succeed("espnet2-sslam-python", "--help").splitlines()[0]
    cases["espnet2-sslam-python --help"] = usage
    status, out, err = command("sslam", "nothing")
    cases["sslam nothing"] = {"status": status, "stdout": out, "stderr": err}
    return cases


# 8. Folders of models and trainings

OWN_OPTIONS = ("encoder_conf", "model_conf", "augment_conf", "class_list")
OWN_OPTIONS += ("input_size", "optim_groups_conf", "scheduler_conf")
OWN_OPTIONS += ("encoder_config", "max_samples")


@record(rtol=1e-5)
def folders(work: Workspace) -> dict:
    """Files of save_model and of trainings; predictions and scores of a classifier."""
    cases: dict = {}
    encoder = fill(SSLAMEncoder(**SIZE, fbank_mean=-5.0, fbank_std=3.0))
    options = {"pooling": "attentive", "weighted_layers": True, "task": "multi_class"}
    classifier = fill(SSLAMClassifier(encoder, ["a", "b"], **options))
    for name, model, origin in (
        ("encoder", encoder, None),
        ("classifier", classifier, {"a": 1}),
    ):
        path = Path(checkpoint.save_model(model, work.new(name), origin))
        cases[f"save_model, {name}"] = layout(work, path, True, contents)
        again = checkpoint.load_model(path)
        cases[f"load_model, {name}"] = {
            "type": type(again.model).__name__,
            "classes": again.classes,
            "config": steady(work, json.dumps(again.config), True),
            "training mode": again.model.training,
        }
    for name in ("phase1", "phase2", "finetuning", "linear"):
        folder = getattr(work, name)
        config = yaml.safe_load((folder / "config.yaml").read_text())
        cases[f"training, {name}"] = {
            "files": {
                path.name: f"-> {os.readlink(path)}" if path.is_symlink() else "file"
                for path in sorted(folder.iterdir())
            },
            "config.yaml": {key: config[key] for key in OWN_OPTIONS if key in config},
            "checkpoint.pth": sorted(tensors(folder / "checkpoint.pth")),
            "latest.pth": digest(tensors(folder / "latest.pth")),
        }
    for name, labels, task in (
        ("finetuning", "text", "multi_label"),
        ("linear", "text1", "multi_class"),
    ):
        folder, out = getattr(work, name), work.new("predictions")
        wav = f"{work.data}/valid/wav.scp,speech,sound"
        words = ["--config", folder / "config.yaml", "--output_dir", out]
        words += ["--model_file", folder / "latest.pth"]
        words += ["--data_path_and_name_and_type", wav, "--batch_size", 2]
        succeed("espnet2_sslam.bin.sslam_cls_inference", *words)
        words = ["--predictions", out / "predictions.npz", "--output_dir", out]
        words += ["--text", work.data / "valid" / labels, "--task", task]
        words += ["--class_list", work.data / "classes.txt"]
        succeed("espnet2_sslam.bin.sslam_score", *words)
        cases[f"predictions, {name}"] = {
            "files": names(out),
            "predictions.npz": output(out / "predictions.npz"),
            "metrics.json": work.read_json(out / "metrics.json"),
        }
    return cases


# 9. Names in Python and in the hosts

FRESH = "import sys, espnet2_sslam; print('torch' in sys.modules)"


def signature(function) -> str:
    """Parameters with their defaults, without annotations; keywords with dashes."""
    return ", ".join(
        ("--" if parameter.kind == parameter.KEYWORD_ONLY else "")
        + str(parameter.replace(annotation=parameter.empty))
        for parameter in inspect.signature(function).parameters.values()
    )


def public_methods(cls: type) -> dict[str, str]:
    """Its public methods and properties, without those of the hosts' classes."""
    methods = {}
    ours = [base for base in cls.__mro__ if base.__module__.startswith("espnet2_sslam")]
    for name in sorted({name for base in ours for name in vars(base)}):
        value = inspect.getattr_static(cls, name)
        if name.startswith("_"):
            continue
        if isinstance(value, property):
            methods[name] = "(property)"
        elif callable(getattr(cls, name, None)):
            methods[name] = signature(getattr(cls, name))
    return methods


@record(rtol=1e-5)
def python_names(work: Workspace) -> dict:
    """What README tells to import, public methods and their parameters; the API."""
    classes = (SSLAM, FileResult, SSLAMEncoder, SSLAMClassifier, SSLAMPretrainModel)
    cases = {f"methods of {each.__name__}": public_methods(each) for each in classes}
    cases["SSLAM()"] = signature(SSLAM)
    cases["espnet2_sslam"] = {
        "__all__": sorted(espnet2_sslam.__all__),
        "__version__": type(espnet2_sslam.__version__).__name__,
    }
    cases["espnet2_sslam.checkpoint"] = {
        name: signature(getattr(checkpoint, name))
        for name in ("load_model", "read_parts", "save_model")
    }
    model = SSLAM.from_pretrained(work.classifier, device="cpu")
    files = sorted(map(str, work.audio.iterdir()))
    [result] = model.embed_files(files[:1])
    fields = dict(vars(result))
    cases["FileResult"] = {"type": type(result).__name__, "fields": fields}
    wave = sound(1.0, 16_000, 1).astype(np.float32)
    cases["SSLAM"] = {
        "repr": repr(model),
        "classes": model.classes,
        "is_classifier": model.is_classifier,
        "embed file": model.embed(files[0]),
        "embed array": model.embed(wave, rate=16_000),
        "embed list": model.embed([wave, wave[:9000]], rate=16_000, pooling="cls"),
        "embed frames": model.embed((wave, 22_050), pooling="frames"),
        "embed layers": model.embed(wave, rate=16_000, layer="all"),
        "embed chunks": model.embed(wave, rate=8_000, chunk=0.5, hop=0.25),
        "tag": model.tag(files[0], top_k=2),
        "tag list": model.tag(files[:2], top_k=1),
        "tag_files": [each.values for each in model.tag_files(files, chunk=1.0)],
        "tag_frames": [each.values for each in model.tag_frames(files)],
        "save_pretrained": names(Path(model.save_pretrained(work.new("api")))),
    }
    encoder = SSLAM(SSLAMEncoder(**SIZE), device="cpu")
    for name, call in {
        "embed nothing": lambda: model.embed(files[0], layer=7),
        "tag by an encoder": lambda: encoder.tag(files[0]),
        "no such source": lambda: SSLAM.from_pretrained(work.folder / "nowhere"),
    }.items():
        try:
            call()
            cases[f"error, {name}"] = "(none)"
        except ValueError as error:
            cases[f"error, {name}"] = f"ValueError: {error}"
    fresh = subprocess.run(
        [sys.executable, "-c", FRESH],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    cases["import espnet2_sslam imports torch"] = fresh.stdout.strip()
    return cases


@record(rtol=1e-4, needs=("transformers",))
@torch.no_grad()
def huggingface(work: Workspace) -> dict:
    """Names, and what a folder of ours gives through transformers."""
    import transformers
    from safetensors.torch import load_file

    import espnet2_sslam.integrations.huggingface as ours

    source = work.classifier
    config = transformers.AutoConfig.from_pretrained(source)
    extractor = transformers.AutoFeatureExtractor.from_pretrained(source)
    auto = transformers.AutoModelForAudioClassification
    model = auto.from_pretrained(source).eval()
    encoder = transformers.AutoModel.from_pretrained(source).eval()
    wave = sound(1.0, 16_000, 1).astype(np.float32)
    inputs = extractor([wave, wave[:9000]], sampling_rate=16_000, return_tensors="pt")
    pipe = transformers.pipeline(
        "audio-classification",
        model=str(source),
        pipeline_class=ours.AudioFilePipeline,  # reads files without ffmpeg
    )
    tags = pipe(str(work.audio / "mono16.wav"), top_k=2)
    outputs = encoder(**inputs, output_hidden_states=True)
    saved = work.new("huggingface")
    model.save_pretrained(saved)
    defaults = type(config)().to_diff_dict()
    defaults.pop("transformers_version", None)
    sizes = ("hidden_size", "num_hidden_layers", "id2label")
    return {
        "names": sorted(ours.__all__),
        "classes": [type(each).__name__ for each in (config, extractor, model)],
        "model_type": config.model_type,
        "config": {name: getattr(config, name) for name in sizes},
        "inputs": dict(inputs),
        "logits": model(**inputs).logits,
        "pipeline": [[each["label"], each["score"]] for each in tags],
        "defaults": defaults,
        "outputs": sorted(outputs.keys()),
        "last_hidden_state": outputs.last_hidden_state,
        "saved": names(saved),
        "saved tensors": digest(load_file(saved / "model.safetensors")),
        "forward": {
            "model": signature(type(encoder).forward),
            "classification": signature(type(model).forward),
        },
    }


@record(rtol=1e-4, needs=("s3prl",))
@torch.no_grad()
def s3prl(work: Workspace) -> dict:
    """Names of the upstreams, and the hidden states of some."""
    with contextlib.redirect_stderr(io.StringIO()):
        import s3prl.hub as hub

    upstreams = sorted(name for name in dir(hub) if name.startswith("sslam"))
    cases: dict = {name: signature(getattr(hub, name)) for name in upstreams}
    clips = [torch.from_numpy(sound(s, 16_000, 1)).float() for s in (1.0, 0.4)]
    for name, upstream, options in (
        ("sslam", "sslam", {}),
        ("sslam_mean", "sslam_mean", {}),
        ("sslam, flatten", "sslam", {"freq": "flatten"}),
        ("sslam, upsample", "sslam", {"upsample": 8, "layers": [1, 2]}),
        ("sslam, fixed", "sslam_local", {"target_frames": 64}),
    ):
        place = f"{name}: hidden states"
        try:
            expert = getattr(hub, upstream)(ckpt=str(work.classifier), **options).eval()
            rate = expert.get_downsample_rates("hidden_states")
            hidden = expert(clips)["hidden_states"]
            cases[place] = {"rate": rate, "states": list(hidden)}
        except (ValueError, TypeError) as error:
            cases[place] = str(error)
    return cases


@record(rtol=1e-5, needs=("torcheval", "six"))
def espnet(work: Workspace) -> dict:
    """ESPnet's choices that hold `sslam`, their options, our YAML files for them."""
    cases: dict = {}
    kept = ("encoder", "encoder_conf", "frontend", "frontend_conf")
    for task in ("asr", "cls"):
        module = importlib.import_module(f"espnet2.tasks.{task}")
        for name, value in sorted(vars(module).items()):
            if name.endswith("_choices") and "sslam" in getattr(value, "classes", ()):
                kind = name.removesuffix("_choices")
                words = [f"--{kind}", "sslam"]
                parsed = printed_config(f"espnet2.bin.{task}_train", *words)
                cases[f"{task} {kind}: sslam"] = {
                    "class": value.get_class("sslam").__name__,
                    "options": dict(sorted(parsed[f"{kind}_conf"].items())),
                }
        for path in sorted(CONF.glob(f"{task}_*.yaml")):
            config = yaml.safe_load(path.read_text(encoding="utf-8"))
            parsed = printed_config(f"espnet2.bin.{task}_train", "--config", path)
            sections = {key: config[key] for key in kept if key in config}
            confs = {k: v for k, v in sections.items() if isinstance(v, dict)}
            same = all(conf.items() <= parsed[k].items() for k, conf in confs.items())
            cases[path.name] = {
                "keys": sorted(config),
                **sections,
                "parsed as written": same,
            }
    import espnet2.tasks.abs_task as abs_task
    from espnet2.tasks.asr import encoder_choices, frontend_choices

    encoder = fill(encoder_choices.get_class("sslam")(1, **SIZE)).eval()
    frontend = fill(frontend_choices.get_class("sslam")(16_000, **SIZE)).eval()
    with torch.no_grad():
        cases["encoder's output"] = encoder(*batch(2))[0]
        cases["frontend's output"] = frontend(*batch(2))[0]
    importlib.import_module("espnet2_sslam.tasks")
    schedulers = [n for n in abs_task.scheduler_classes if n.startswith("sslam")]
    cases["schedulers"] = sorted(schedulers)
    return cases


# 10. The recipe


@record()
def recipe_options(work: Workspace) -> dict:
    """Options of run.sh with their defaults, and its stages, from its help."""
    options, numbered = {}, {}
    for line in run_sh("--help", timeout=60).splitlines():
        words = re.split(r"\s{2,}", line)
        if len(words) > 1 and words[1].startswith("--"):
            default = re.search(r"\[([^\]]*)\]$", line)
            for name in re.findall(r"--\w+", words[1]):
                options[name] = default[1] if default else "(not said)"
        for word in words:
            if stage := re.fullmatch(r"(\d) (\S.+)", word):
                numbered[stage[1]] = stage[2]
    script = (RECIPE / "run.sh").read_text(encoding="utf-8")
    head = script.partition("help_message=")[0]
    variables = dict(re.findall(r"^(\w+)=(.*)$", head, re.MULTILINE))
    return {"help": options, "stages": numbered, "variables": variables}


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
            name = f"{spread(name)}/*{path.suffix}"
        files[name] = files.get(name, 0) + 1
    cases: dict = {"files": [f"{count} {name}" for name, count in files.items()]}
    for path in sorted(work.recipe.rglob("checkpoint.pth")):
        cases[str(path.parent.relative_to(work.recipe))] = progress(path.parent)
    return cases


@record(rtol=0.03, slow=True)
def recipe_results(work: Workspace) -> dict:
    """Scores and RESULTS.md of the same run."""
    cases: dict = {}
    kept = ("task", "num_clips", "mAP", "auc", "positives")
    for path in sorted(work.recipe.rglob("metrics.json")):
        metrics = work.read_json(path)
        cases[str(path.parent.relative_to(work.recipe))] = {
            "keys": sorted(metrics),
            **{key: metrics[key] for key in kept if key in metrics},
        }
    text = (work.recipe / "exp/RESULTS.md").read_text(encoding="utf-8")
    cases["RESULTS.md"] = results_lines(work.clean(text))
    for path in sorted((work.recipe / "exp/results").glob("*.csv")):
        cases[path.name] = output(path)[:1]
    return cases


def results_lines(text: str) -> list:
    """RESULTS.md without times, machines, hashes and what is said about scores."""
    volatile = {"hours", "settings", "torch", "espnet", "machine", "hash"}
    lines, columns = [], []
    for line in text.splitlines():
        if not line.startswith("|"):
            columns = []
            line = re.sub(r"`[0-9a-f]{10}`", "`(hash)`", line)
            line = line.split(": ")[0] if line.startswith("- ") else line
            lines += [line] if line.strip() else []
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        columns = columns or cells
        row = []
        for name, cell in zip(columns, cells):
            cell = "-" if name in volatile and cell != name else cell
            row += [*map(number, cell.split()), "|"]
            if columns == ["what", "value"]:
                break
        lines.append(row)
    return lines


def main() -> None:
    """Write records, or list them."""
    parser = argparse.ArgumentParser(description="Write records, or list them.")
    parser.add_argument("--write", nargs="*", metavar="NAME", help="all by default")
    args = parser.parse_args()
    if args.write is None:
        print(" ".join(RECORDED))
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        work = Workspace(Path(folder).resolve())
        for name in args.write or RECORDED:
            record = RECORDED[name]
            record.path.write_text(as_json(record.content(work)) + "\n", "utf-8")
            print(f"written: {record.path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
