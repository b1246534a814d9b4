"""The experiment of evidence.yaml: does phase 2 help beyond phase 1 continued?

    make evidence DATA=FOLDER    # everything that is not on record yet
    python benchmarks/evidence.py --data FOLDER --device cuda --jobs 25 --hours 0.125

FOLDER holds audio/ and one table (CSV) with the columns filename, label, source (the
recording that a clip was cut from) and split (train or test). Every seed and model ends
in a record, OUT/evidence/records/<model>_seed<N>.json; what is on record is not made
again, and OUT/EVIDENCE.md and OUT/evidence/evidence.png are made of all records. It
needs no ESPnet.
"""

import argparse
import csv
import hashlib
import heapq
import itertools
import json
import logging
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import evidence_measures
import numpy as np
import torch
from evidence_report import write_report
from safetensors.torch import load_file, save_file

from espnet2_sslam import SSLAMEncoder, SSLAMPretrainModel, mixing
from espnet2_sslam.audio import read_audio
from espnet2_sslam.bin.cli import run_main
from espnet2_sslam.corpus import parallel_map, partition_groups
from espnet2_sslam.corpus.mixtures import Part, Source, by_label, choose, mix, plan
from espnet2_sslam.corpus.parallel import end_with_parent
from espnet2_sslam.features import kaldi_fbank
from espnet2_sslam.machine import environment
from espnet2_sslam.masking import keyed_generator
from espnet2_sslam.optim import WarmupCosine, parameter_groups
from espnet2_sslam.store import read_yaml, replacing, sha256, write_json, write_text
from espnet2_sslam.units import FRAME_LENGTH, FRAME_SHIFT

HERE = Path(__file__).resolve().parent
RANDOM, PHASE1 = "random", "phase1"
FULL_SCALE = 2**15
LOOK = 20  # updates between two looks at the clock
CURVE = 40  # points of a training curve


class OutOfTime(Exception):
    """The time limit has come; what was begun is begun again by the next run."""


def read_design(path: Path) -> dict:
    """The decisions, checked where they bind each other.

    Raises:
        ValueError: Arms that differ in the number of the student's rows.
    """
    design = read_yaml(path)
    rows = {name: student_rows(design, name) for name in models(design)[2:]}
    rows[PHASE1] = student_rows(design, PHASE1)
    if len(set(rows.values())) > 1:
        raise ValueError(
            f"{path}: the student must see the same number of rows in every arm, got "
            + ", ".join(f"{name} {count}" for name, count in rows.items())
        )
    return design


def models(design: dict) -> list[str]:
    """All models, the question's before those beyond it."""
    return [RANDOM, PHASE1, *design["arms"], *design.get("beyond", {})]


def model_options(design: dict, model: str) -> dict:
    """The options of `SSLAMPretrainModel` that a model is trained with."""
    if model in (RANDOM, PHASE1):
        own = design["phase1"]["model_conf"]
    else:
        own = {**design["arms"], **design.get("beyond", {})}[model]
    return {**design["model_conf"], **own}


def student_rows(design: dict, model: str) -> int:
    """Masked clips that the student sees in an update: clips x clones x streams."""
    options = model_options(design, model)
    both = options.get("mixture") and options.get("streams", "both") == "both"
    clips = design["train_conf"]["batch_size"]
    return clips * options["clone_batch"] * (2 if both else 1)


def identity(*values) -> str:
    """A name for settings: equal for equal values."""
    text = json.dumps(values, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def design_id(design: dict, model: str, data: str) -> str:
    """What a record was made with; seeds and other models do not matter."""
    common = "encoder_conf", "model_conf", "train_conf", "phase1", "measures"
    parts = [data, *(design[name] for name in common), model_options(design, model)]
    if model not in (RANDOM, PHASE1):
        parts.append(design["phase2"])
    return identity(*parts)


# Data: recordings divided, mixtures rendered, clips decoded once.


class Mixtures:
    """Rendered mixtures and what they are made of, from `prepare`'s folder."""

    def __init__(self, folder: Path, plan_: dict):
        self._waves = np.load(folder / "mixtures.npy", mmap_mode="r")
        self._plan = plan_
        self.classes: list[str] = plan_["classes"]
        self.degrees: list[int] = plan_["degrees"]
        self.tests = [f"degree_{degree}" for degree in self.degrees]
        self.pair_snr: list[float] = plan_["pair_snr"]

    def waves(self, name: str) -> np.ndarray:
        """Waveforms of a group, 16-bit (n, samples)."""
        start, stop = self._plan["groups"][name]
        return np.array(self._waves[start:stop])

    def labels(self, split: str) -> np.ndarray:
        """1 for the labels of each mixture (n, classes)."""
        index = {label: i for i, label in enumerate(self.classes)}
        rows = [row["labels"] for row in self._plan["mixtures"] if row["in"] == split]
        targets = np.zeros((len(rows), len(index)), dtype=np.int64)
        for target, labels in zip(targets, rows, strict=True):
            target[[index[label] for label in labels]] = 1
        return targets

    def held(self, split: str) -> np.ndarray:
        """True where a mixture holds a test recording (recordings, n)."""
        names = self._plan["recordings"]
        rows = [r["recordings"] for r in self._plan["mixtures"] if r["in"] == split]
        return np.array([[name in row for row in rows] for name in names])

    def weaker_classes(self) -> np.ndarray:
        """Class of the weaker source of each test pair (n,)."""
        return np.array([self.classes.index(x) for x in self._plan["weaker"]])


def read_clips(data: Path) -> dict[str, list[Source]]:
    """The clips of train and test by their table.

    Raises:
        ValueError: No table, more than one, or one that lacks something.
    """
    tables = sorted(data.glob("*.csv"))
    if len(tables) != 1:
        raise ValueError(f"{data} must hold one table (.csv), got {len(tables)}")
    with open(tables[0], newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    columns = {"filename", "label", "source", "split"}
    if not rows or not columns <= rows[0].keys():
        raise ValueError(f"{tables[0]} needs the columns {', '.join(sorted(columns))}")
    clips: dict[str, list[Source]] = {"train": [], "test": []}
    for row in rows:
        path = str(data / "audio" / row["filename"])
        source = Source(row["filename"], path, row["source"], row["label"])
        if row["split"] in clips:
            clips[row["split"]].append(source)
    shared = {s.recording for s in clips["train"]} & {
        s.recording for s in clips["test"]
    }
    if shared or not all(clips.values()):
        raise ValueError(
            f"{tables[0]}: train and test need clips, and no recording in both; "
            f"{len(shared)} are in both"
        )
    return clips


def samples_of(frames: int) -> int:
    """Samples of so many whole frames."""
    return (frames - 1) * FRAME_SHIFT + FRAME_LENGTH


def divide(clips: dict[str, list[Source]], conf: dict) -> dict[str, list[Source]]:
    """Sources of train, valid and test: no recording in two, no label in one alone."""
    train = clips["train"]
    parts = partition_groups(
        {s.key: s.recording for s in train},
        {s.key: [s.label] for s in train},
        (1 - conf["valid_share"], conf["valid_share"]),
        np.random.default_rng(conf["seed"]),
    )
    sources = {
        "train": [s for s in train if parts[s.key] == 0],
        "valid": [s for s in train if parts[s.key] == 1],
        "test": clips["test"],
    }
    labels = set.intersection(*({s.label for s in x} for x in sources.values()))
    return {
        name: [s for s in part if s.label in labels] for name, part in sources.items()
    }


def draw_pairs(sources: list[Source], count: int, seed: int, split: str) -> list:
    """Pairs of a louder and a weaker source, of different labels and recordings."""
    labelled = by_label(sources)
    rng = np.random.default_rng([seed, len(split), count])
    return [choose(labelled, 2, (0.0, 0.0), rng) for _ in range(count)]


def _decoded(path: str) -> np.ndarray:
    return to_int16(read_audio(path))


def to_int16(samples: np.ndarray) -> np.ndarray:
    """Samples in [-1, 1] as 16-bit integers."""
    return np.clip(np.rint(samples * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1).astype(
        np.int16
    )


def _rendered(parts: list[Part], num_samples: int) -> np.ndarray:
    return to_int16(mix(parts, num_samples))


def prepare(data: Path, work: Path, design: dict, nj: int) -> dict:
    """Decode the clips and render the mixtures, or find them; the plan of them.

    clips.npy (n, longest) and mixtures.npy (m, samples) are 16-bit at 16 kHz.
    """
    conf, frames = design["corpus"], design["model_conf"]["clip_frames"]
    clips = read_clips(data)
    content = [(s.key, s.label, s.recording) for x in clips.values() for s in x]
    key = identity(conf, frames, content)
    path = work / "plan.json"
    if path.is_file():
        plan_ = json.loads(path.read_text())
        if plan_["id"] == key:
            return plan_
    work.mkdir(parents=True, exist_ok=True)
    size = samples_of(frames)
    for split, part in clips.items():
        waves = parallel_map(_decoded, [s.path for s in part], nj, "clips")
        lengths = [len(wave) for wave in waves]
        clips[split] = [s for s, n in zip(part, lengths, strict=True) if n >= size]
        if len(clips[split]) < len(part):
            short = len(part) - len(clips[split])
            logging.info("%d clips of %s are too short and left out", short, split)
    sources = divide(clips, conf)

    train = [_decoded(source.path) for source in sources["train"]]
    waves = np.zeros((len(train), max(map(len, train))), dtype=np.int16)
    for row, wave in zip(waves, train, strict=True):
        row[: len(wave)] = wave
    with replacing(work / "clips.npy") as temporary, open(temporary, "wb") as file:
        np.save(file, waves)

    options = ("degrees", "train_clips", "valid_clips", "test_clips", "seed")
    mixtures = plan(
        sources, snr=tuple(conf["snr"]), **{name: conf[name] for name in options}
    )
    groups: dict[str, list[list[Part]]] = {}
    for mixture in mixtures:
        groups.setdefault(mixture.split, []).append(mixture.parts)
    levels = conf["pair_snr"]
    pairs = {}
    for split in ("train", "test"):
        count = conf[f"{split}_pairs"]
        pairs[split] = draw_pairs(sources[split], count, conf["seed"], split)
        for role, which in (("louder", 0), ("weaker", 1)):
            groups[f"{split}_{role}"] = [[pair[which]] for pair in pairs[split]]
    groups["train_pairs"] = [
        at_level(pair, levels[i % len(levels)]) for i, pair in enumerate(pairs["train"])
    ]
    for level in levels:
        name = f"test_pairs_{level:g}"
        groups[name] = [at_level(pair, level) for pair in pairs["test"]]

    everything = [parts for group in groups.values() for parts in group]
    work_ = partial(_rendered, num_samples=size)
    with replacing(work / "mixtures.npy") as temporary:
        shape = (len(everything), size)
        with open(temporary, "wb") as file:  # open_memmap wants the suffix .npy
            np.lib.format.write_array_header_1_0(
                file, {"descr": "<i2", "fortran_order": False, "shape": shape}
            )
            for wave in parallel_map(work_, everything, nj, "mixtures", chunk=32):
                file.write(np.ascontiguousarray(wave, dtype="<i2").tobytes())
    ends = np.cumsum([0, *(len(group) for group in groups.values())]).tolist()
    plan_ = {
        "id": key,
        "classes": sorted({s.label for s in sources["test"]}),
        "degrees": conf["degrees"],
        "pair_snr": levels,
        "lengths": [len(wave) for wave in train],
        "fbank": fbank_statistics(train),
        "recordings": sorted({s.recording for s in sources["test"]}),
        "counts": {
            name: [len(part), len({s.recording for s in part})]
            for name, part in sources.items()
        },
        "groups": {
            name: list(span)
            for name, span in zip(groups, itertools.pairwise(ends), strict=True)
        },
        "mixtures": [
            {
                "in": mixture.split,
                "labels": sorted(part.source.label for part in mixture.parts),
                "recordings": sorted(part.source.recording for part in mixture.parts),
            }
            for mixture in mixtures
        ],
        "weaker": [pair[1].source.label for pair in pairs["test"]],
    }
    write_json(path, plan_)
    return plan_


def fbank_statistics(waves: list[np.ndarray]) -> dict[str, float]:
    """Mean and std of the log-mel of clips."""
    made = [kaldi_fbank(torch.from_numpy(wave)[None])[0].double() for wave in waves]
    variance, mean = torch.var_mean(torch.cat(made, 1), correction=0)
    return {"mean": float(mean), "std": float(variance.sqrt())}


def at_level(pair: list[Part], level: float) -> list[Part]:
    """A pair whose second source is `level` dB below the first."""
    louder, weaker = pair
    return [louder._replace(snr=0.0), weaker._replace(snr=-level)]


# Training: a short loop around the package's own step.


def build(design: dict, model: str, seed: int, plan_: dict) -> SSLAMPretrainModel:
    """A model with the weights that its seed gives."""
    torch.manual_seed(seed)
    statistics = {f"fbank_{k}": plan_["fbank"][k] for k in ("mean", "std")}
    encoder = SSLAMEncoder(**design["encoder_conf"], **statistics)
    return SSLAMPretrainModel(encoder, seed=seed, **model_options(design, model))


class Clips:
    """The training clips on the device: log-mel for crops, samples where asked for."""

    def __init__(self, work: Path, plan_: dict, encoder: SSLAMEncoder, frames: int):
        self.device, self.frames = encoder.cls_token.device, frames
        waves = torch.from_numpy(np.load(work / "clips.npy")).to(self.device)
        self.waves, self.size = waves, samples_of(frames)
        lengths = torch.tensor(plan_["lengths"], device=self.device)
        parts = zip(waves.split(64), lengths.split(64), strict=True)
        with torch.no_grad():
            made = [encoder.fbank(*part) for part in parts]
        longest = max(fbank.shape[1] for fbank, _ in made)
        pad = torch.nn.functional.pad
        self.fbank = torch.cat(
            [pad(fbank, (0, 0, 0, longest - fbank.shape[1])) for fbank, _ in made]
        )
        self.num_frames = torch.cat([count for _, count in made]).cpu().numpy()

    def crops(self, updates: int, batch_size: int, *key: int) -> Iterator:
        """Rows and first frames (batch_size,) of every update, fixed by the key.

        An epoch holds each clip once at most; its last, incomplete batch is left out.
        """
        rng, count = np.random.default_rng(key), len(self.fbank)
        per_epoch = count // batch_size
        if not per_epoch:
            raise ValueError(f"{count} training clips, one update needs {batch_size}")
        orders = [rng.permutation(count) for _ in range(math.ceil(updates / per_epoch))]
        rows = np.stack([order[: per_epoch * batch_size] for order in orders])
        rows = rows.reshape(-1, batch_size)[:updates]
        room = self.num_frames[rows] - self.frames + 1
        starts = (rng.random(rows.shape) * room).astype(np.int64)
        on_device = (torch.from_numpy(x).to(self.device) for x in (rows, starts))
        return zip(*on_device, strict=True)

    def crop(self, rows: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
        """Normalised log-mel (B, frames, 128)."""
        index = starts[:, None] + torch.arange(self.frames, device=self.device)
        return self.fbank[rows[:, None], index]

    def crop_waves(self, rows: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
        """Samples in [-1, 1] (B, N) of the same places."""
        index = starts[:, None] * FRAME_SHIFT + torch.arange(
            self.size, device=self.device
        )
        return self.waves[rows[:, None], index].float() / FULL_SCALE


def student_inputs(model: SSLAMPretrainModel, clips: Clips, rows, starts, draws):
    """As `SSLAMPretrainModel.student_inputs`, from log-mel that is there already."""
    if draws.snr is not None:
        speech = clips.crop_waves(rows, starts)
        lengths = torch.full((len(speech),), speech.shape[1], device=speech.device)
        return model.student_inputs(speech, lengths, draws)
    unmixed = clips.crop(rows, starts)
    if draws.regions is None:
        return unmixed, None
    std = model.encoder.log_mel.std
    return unmixed, mixing.mix_partially(unmixed, draws.regions, model.mixing_rule, std)


def train(
    model: SSLAMPretrainModel,
    clips: Clips,
    phase: dict,
    conf: dict,
    key: tuple[int, int],
    deadline: float,
) -> list[dict]:
    """Make all updates of a phase; its curve.

    Args:
        model: On the device of the clips.
        phase: updates, warmup_steps, lr.
        conf: The section train_conf.
        key: Seed and phase: all draws depend on nothing else.
        deadline: Time of day.

    Raises:
        OutOfTime: The deadline has come.
        ValueError: The loss is no number any more.
    """
    updates, size = phase["updates"], conf["batch_size"]
    model.train()
    objective = model.objective
    if clips.device.type == "cuda":  # small kernels: asking for them takes longest
        objective = torch.compile(objective, fullgraph=True, dynamic=False)
    groups = parameter_groups(
        model, phase["lr"], conf["weight_decay"], decay_bias_and_norm=True
    )
    trained = [p for group in groups for p in group["params"]]
    optimizer = torch.optim.AdamW(
        groups, lr=phase["lr"], betas=tuple(conf["betas"]), fused=True
    )
    schedule = WarmupCosine(optimizer, phase["warmup_steps"], updates)
    curve = []
    for update, (rows, starts) in enumerate(clips.crops(updates, size, *key)):
        if update % LOOK == 0 and time.time() > deadline:
            raise OutOfTime
        draws = model.draw(size, keyed_generator(clips.device, *key, update))
        inputs = student_inputs(model, clips, rows, starts, draws)
        loss, stats = objective(*inputs, draws)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, conf["grad_clip"])
        optimizer.step()
        schedule.step()
        model.update_teacher()
        if update % max(1, updates // CURVE) == 0 or update == updates - 1:
            curve.append({"update": update + 1, **stats})
    if not math.isfinite(curve[-1]["loss"]):
        raise ValueError(f"the loss is {float(curve[-1]['loss'])} after {updates}")
    kept = ("update", "loss", "target_var", "prediction_var")
    names = [n for n in curve[0] if n in kept or n.startswith("loss_")]
    return [{n: round(float(point[n]), 5) for n in names} for point in curve]


# Jobs: each runs in a process of its own and leaves a file.


class Run:
    """Folders and settings that every job needs."""

    def __init__(
        self,
        design: dict,
        out: Path,
        device: str = "cpu",
        deadline: float = math.inf,
        commit: str | None = None,
    ):
        self.design, self.device, self.deadline = design, device, deadline
        self.environment = environment()
        if commit:
            self.environment["commit"] = commit
        self.records = out / "evidence/records"
        self.work = out / "evidence/work"
        self.plan = json.loads((self.work / "plan.json").read_text())

    def record_path(self, model: str, seed: int) -> Path:
        return self.records / f"{model}_seed{seed}.json"

    def weights_path(self, seed: int) -> Path:
        return self.work / f"{PHASE1}_seed{seed}.safetensors"

    def id(self, model: str) -> str:
        return design_id(self.design, model, self.plan["id"])

    def read(self, model: str, seed: int) -> dict | None:
        """A record of the present design, or None."""
        path = self.record_path(model, seed)
        record = json.loads(path.read_text()) if path.is_file() else {}
        return record if record.get("design") == self.id(model) else None

    def refuse_others(self) -> None:
        """Refuse to write over what another design has left.

        Raises:
            ValueError: Naming a record of it.
        """
        for path in sorted(self.records.glob("*_seed*.json")):
            record = json.loads(path.read_text())
            if record["model"] not in models(self.design) or record[
                "design"
            ] != self.id(record["model"]):
                raise ValueError(
                    f"{path} is of another design or other data: move it away, and "
                    "EVIDENCE.md with it, or give another --out"
                )

    def phase1_note(self, seed: int) -> dict | None:
        """What is known of phase 1's weights, if they are there and are those."""
        path = self.weights_path(seed)
        note = path.with_suffix(".json")
        if not (path.is_file() and note.is_file()):
            return None
        content = json.loads(note.read_text())
        fits = content["design"] == self.id(PHASE1) and content["weights"] == _id(path)
        return content if fits else None

    def all_records(self) -> dict[tuple[str, int], dict]:
        """What may be compared: one design, and of a seed the arms of one phase 1."""
        records = {}
        for seed in self.design["seeds"]:
            for model in models(self.design):
                record = self.read(model, seed)
                if record is not None:
                    records[model, seed] = record
            first = self.phase1_note(seed) or records.get((PHASE1, seed))
            for model in models(self.design)[1:]:
                record = records.get((model, seed))
                if record and first and record["weights"] != first["weights"]:
                    del records[model, seed]
        return records


def _id(path: Path) -> str:
    return sha256(path)[:12]


def train_phase1(run: Run, seed: int) -> None:
    """Train phase 1 of a seed; its weights stay in the work folder."""
    start = time.time()
    model = build(run.design, PHASE1, seed, run.plan).to(run.device)
    frames = run.design["model_conf"]["clip_frames"]
    clips = Clips(run.work, run.plan, model.encoder, frames)
    conf, phase = run.design["train_conf"], run.design["phase1"]
    curve = train(model, clips, phase, conf, (seed, 1), run.deadline)
    path = run.weights_path(seed)
    with replacing(path) as temporary:
        save_file(model.state_dict(), temporary)
    note = {
        "design": run.id(PHASE1),
        "weights": _id(path),
        "seconds": round(time.time() - start, 1),
        "curve": curve,
    }
    write_json(path.with_suffix(".json"), note)


def make_record(run: Run, model: str, seed: int) -> None:
    """Train an arm (phase 1 is there, random is not trained), measure, and record."""
    start, note = time.time(), run.phase1_note(seed)
    network = build(run.design, model, seed, run.plan).to(run.device)
    record: dict = {"model": model, "seed": seed, "design": run.id(model)}
    record |= run.environment | {"date": environment()["date"]}
    device = torch.cuda.get_device_name() if run.device == "cuda" else "CPU"
    record |= {"device": device, "seconds_training": 0.0}
    if model != RANDOM:
        assert note is not None
        network.load_state_dict(load_file(run.weights_path(seed)))
        network.num_updates.zero_()  # an arm's teacher begins its schedule
        record |= {"weights": note["weights"], "curve": note["curve"]}
        record["seconds_training"] = note["seconds"]
    if model not in (RANDOM, PHASE1):
        frames = run.design["model_conf"]["clip_frames"]
        clips = Clips(run.work, run.plan, network.encoder, frames)
        conf, phase = run.design["train_conf"], run.design["phase2"]
        record["curve"] = train(network, clips, phase, conf, (seed, 2), run.deadline)
        record["seconds_training"] = round(time.time() - start, 1)
        del clips
    start = time.time()
    mixtures = Mixtures(run.work, run.plan)
    network.encoder.requires_grad_(False)
    measures = run.design["measures"]
    record |= evidence_measures.measure(network.encoder, mixtures, measures, run.device)
    record["seconds_measuring"] = round(time.time() - start, 1)
    write_record(run.record_path(model, seed), record)


def write_record(path: Path, record: dict) -> None:
    """Write JSON with one line for each key, for short differences in git."""
    lines = ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in record.items())
    write_text(path, f"{{\n{lines}\n}}\n")


def jobs_to_do(run: Run, names: list[str]) -> list[tuple]:
    """(priority, function, words) of what can be begun and is not on record."""
    design, done, ready = run.design, run.all_records(), []
    for order, seed in enumerate(design["seeds"]):
        if (RANDOM, seed) not in done:
            ready.append(((1, order, 0), make_record, (RANDOM, seed)))
        missing = [
            name for name in names if name != RANDOM and (name, seed) not in done
        ]
        if missing and run.phase1_note(seed) is None:
            ready.append(((0, order, 0), train_phase1, (seed,)))
            continue
        for place, name in enumerate(missing):
            beyond = name in design.get("beyond", {})
            priority = (2 if beyond else 1, order, place + 1)
            ready.append((priority, make_record, (name, seed)))
    return ready


def _begin(threads: int, parent: int) -> None:
    end_with_parent(parent)
    torch.set_num_threads(threads)
    logging.basicConfig(level=logging.WARNING)


@contextmanager
def _no_waiting() -> Iterator[None]:
    """On Ctrl-C end the processes of the jobs, for which the pool would wait."""
    try:
        yield
    except KeyboardInterrupt:
        for process in multiprocessing.active_children():
            process.terminate()
        raise


def work_off(run: Run, names: list[str], jobs: int, threads: int) -> int:
    """Run all jobs, those first that others wait for; how many failed."""
    started: set = set()
    failed, out_of_time = 0, False
    context = multiprocessing.get_context("spawn")
    begin = _begin, (threads, os.getpid())
    with ProcessPoolExecutor(jobs, context, *begin) as pool, _no_waiting():
        pending: dict = {}
        while True:
            heap = [job for job in jobs_to_do(run, names) if job[1:] not in started]
            heapq.heapify(heap)
            while heap and len(pending) < jobs and not out_of_time:
                _, function, words = heapq.heappop(heap)
                started.add((function, words))
                pending[pool.submit(function, run, *words)] = (function, words)
            if not pending:
                return failed
            limit = max(0.0, run.deadline - time.time()) + 1.0
            finished, _ = wait(pending, min(limit, 1e6), FIRST_COMPLETED)
            out_of_time = out_of_time or time.time() > run.deadline
            for future in finished:
                function, words = pending.pop(future)
                label = "phase1" if function is train_phase1 else words[0]
                error = future.exception()
                if isinstance(error, OutOfTime):
                    out_of_time = True
                    logging.info("seed %d, %s: stopped, no time left", words[-1], label)
                elif isinstance(error, BrokenProcessPool):
                    raise error
                elif error is not None:
                    failed += 1
                    logging.error(
                        "seed %d, %s: %s", words[-1], label, error, exc_info=error
                    )
                else:
                    verb = "trained" if function is train_phase1 else "on record"
                    logging.info("seed %d, %s: %s", words[-1], label, verb)


def estimate(run: Run, names: list[str], jobs: int) -> None:
    """Say what is to be done, and about how long it takes."""
    design, todo = run.design, {}
    done = run.all_records()
    for seed in design["seeds"]:
        left = [name for name in names if (name, seed) not in done]
        for name in left:
            todo[name] = todo.get(name, 0) + 1
        if left and run.phase1_note(seed) is None and left != [RANDOM]:
            todo["training of phase 1"] = todo.get("training of phase 1", 0) + 1
    if not todo:
        logging.info("everything is on record")
        return
    seconds = {}
    frames = design["model_conf"]["clip_frames"]
    for name, options in (("phase1", PHASE1), ("phase2", "sslam")):
        model = build(design, options, 0, run.plan).to(run.device)
        clips = Clips(run.work, run.plan, model.encoder, frames)
        for updates in (3, 10):  # the first ones warm up
            phase = {**design[name], "updates": updates, "warmup_steps": 0}
            start = time.time()
            train(model, clips, phase, design["train_conf"], (0, 0), math.inf)
            if run.device == "cuda":
                torch.cuda.synchronize()
            seconds[name] = (time.time() - start) / updates
    total = todo.get("training of phase 1", 0) * design["phase1"]["updates"]
    total *= seconds["phase1"]
    arms = sum(n for m, n in todo.items() if m in models(design)[2:])
    total += arms * design["phase2"]["updates"] * seconds["phase2"]
    counts = ", ".join(f"{count} x {name}" for name, count in todo.items())
    logging.info(
        "to do: %s; an update takes %.3f s in phase 1 and %.3f s in phase 2: about "
        "%.0f min of training with %d at a time, if they do not slow each other down, "
        "and the measures",
        counts,
        *seconds.values(),
        total / jobs / 60,
        jobs,
    )


def main(argv=None) -> None:
    """Make what is missing, then the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, help="needed unless only the report is made")
    add("--design", type=Path, default=HERE / "evidence.yaml")
    add("--out", type=Path, default=HERE, help="where records and report go")
    add("--device", default="cpu", choices=("cpu", "cuda"))
    add("--jobs", type=int, default=os.cpu_count(), help="processes at a time")
    add("--threads", type=int, default=1, help="of each process")
    add("--hours", type=float, default=math.inf, help="stop cleanly after so many")
    add("--models", nargs="+", help="only these; phase 1 comes with them")
    add("--seeds", type=int, nargs="+", help="in place of the decided ones, for trials")
    add("--commit", help="to put on record where this is no checkout but a copy")
    add("--report", action="store_true", help="only make the report")
    args = parser.parse_args(argv)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S"
    )
    start = time.time()
    deadline = start + 3600 * args.hours
    design = read_design(args.design)
    if args.seeds:
        design["seeds"] = args.seeds
    names = args.models or models(design)
    unknown = set(names) - set(models(design))
    if unknown:
        raise ValueError(f"no model {', '.join(sorted(unknown))} in {args.design}")
    if args.jobs < 1 or args.threads < 1:
        raise ValueError("--jobs and --threads must be at least 1")
    os.environ.setdefault("OMP_NUM_THREADS", str(args.threads))  # of the processes
    failed, out = 0, args.out.resolve()
    if args.seeds and out == HERE:
        raise ValueError("--seeds is for trials: give their folder with --out")
    work = out / "evidence/work"
    if not args.report:
        if args.data is None:
            raise ValueError("--data is needed: the folder of audio/ and its table")
        torch.set_num_threads(args.threads)
        plan_ = prepare(args.data.resolve(), work, design, args.jobs)
        counts = ", ".join(
            f"{part}: {clips} clips of {recordings} recordings"
            for part, (clips, recordings) in plan_["counts"].items()
        )
        logging.info("data after %.0f s: %s", time.time() - start, counts)
        run = Run(design, out, args.device, deadline, args.commit)
        run.refuse_others()
        if args.device == "cpu":  # on a GPU it is a matter of minutes
            estimate(run, names, args.jobs)
        try:
            failed = work_off(run, names, args.jobs, args.threads)
        except BrokenProcessPool as error:  # the report is made of what is there
            failed = 1
            logging.error("a process was killed (out of memory?): %s", error)
    run = Run(design, out)
    run.refuse_others()
    write_report(run.all_records(), run.plan, design, out)
    logging.info("%s after %.0f s", out / "EVIDENCE.md", time.time() - start)
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    run_main(main)
