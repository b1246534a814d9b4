"""A user who kills, changes, damages, repairs and extends a whole run.sh, at random.

    python -m tests.scripted_user --rounds 50 --seed 1 --folder /tmp/user

After each round the scores are those of a fresh run on what is on the disk, bit by bit.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import soundfile
import yaml

from tests.fork_python import fork_python

RECIPE = Path(__file__).resolve().parent.parent / "egs2" / "sslam"
CLASSES = ("low", "mid", "high")
SPLITS = {"train": 4, "valid": 2, "test": 2}  # clips of each class
COMMON = {
    "batch_size": 4,
    "num_iters_per_epoch": 2,
    "max_epoch": 1,
    "num_workers": 0,
    "use_matplotlib": False,
    "use_tensorboard": False,
    "keep_nbest_models": 1,
    "optim": "adamw",
    "scheduler": "sslam_warmup_cosine",
    # so many in any case: a training that goes on for longer equals a longer one
    "scheduler_conf": {"warmup_steps": 0, "total_steps": 100},
}
PRETRAINING = {
    **COMMON,
    "encoder_conf": {"embed_dim": 24, "depth": 2, "num_heads": 2, "max_frames": 320},
    "model_conf": {
        "clip_frames": 96,
        "clone_batch": 2,
        "decoder_conf": {"num_layers": 1, "groups": 4},
    },
    "optim_conf": {"lr": 0.003},
}
SECOND = {**PRETRAINING, "model_conf": {**PRETRAINING["model_conf"], "mixture": True}}
FINETUNING = {
    **COMMON,
    "model_conf": {"task": "multi_class", "pooling": "mean"},
    "optim_conf": {"lr": 0.01},
    "best_model_criterion": [["valid", "mAP", "max"]],
}
REFUSED = "--replace true"


class User:
    """One experiment on a disk, and what its user does to it.

    Args:
        folder: Where everything goes.
        python: The interpreter of run.sh.
        seed: Of all choices.
    """

    def __init__(self, folder: Path, python: Path, seed: int):
        self.folder, self.python = folder, python
        self.draw, self.done = random.Random(seed), Counter()
        self.corpus = folder / "corpus"
        self.corpus.mkdir(parents=True)
        self.rows: dict[str, tuple[str, str]] = {}  # file: label, split
        self.originals: dict[Path, bytes] = {}
        for split, count in SPLITS.items():
            for label in CLASSES:
                for _ in range(count):
                    self.add_clip(split, label)
        self.write_table()
        self.configs = {
            "pretrain": dict(PRETRAINING),
            "pretrain2": dict(SECOND),
            "finetune": dict(FINETUNING),
        }
        self.write_configs()

    # What is on the disk

    def add_clip(self, split: str, label: str) -> None:
        name = f"{split}_{label}_{len(self.rows):03d}.wav"
        self.rows[name] = (label, split)
        self.write_audio(self.corpus / name)

    def write_audio(self, path: Path) -> None:
        """Noise and a tone, always of one length."""
        draw = np.random.default_rng(self.draw.randrange(2**32))
        tone = np.sin(draw.uniform(0.05, 1.5) * np.arange(16_000))
        wave = 0.3 * tone + 0.1 * draw.standard_normal(16_000)
        soundfile.write(path, wave, 16_000, subtype="PCM_16")

    def write_table(self) -> None:
        lines = [f"{name},{label},{of}\n" for name, (label, of) in self.rows.items()]
        table = self.corpus / "metadata.csv"
        table.write_text("path,labels,split\n" + "".join(lines))

    def write_configs(self) -> None:
        for name, config in self.configs.items():
            path = self.folder / f"{name}.yaml"
            path.write_text(yaml.safe_dump(config))

    # What the user does

    def command(self, place: str, *more: str) -> list[str]:
        words: list = [RECIPE / "run.sh", "--python", self.python, "--nj", 1]
        words += ["--corpus", "folder", "--corpus_dir", self.corpus, "--seeds", 1]
        for name in ("data", "dump", "exp"):
            words += [f"--{name}dir", self.folder / place / name]
        for name in self.configs:
            words += [f"--{name}_config", self.folder / f"{name}.yaml"]
        return [str(word) for word in (*words, "--models", "phase2", *more)]

    def start(self, place: str, *more: str) -> subprocess.Popen:
        path = f"{self.python.parent}:{Path(sys.executable).parent}"
        return subprocess.Popen(
            self.command(place, *more),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            process_group=0,
            env={
                **os.environ,
                "PATH": f"{path}:{os.environ['PATH']}",
                "OMP_NUM_THREADS": "1",
            },
        )

    def run(self, place: str, *more: str) -> tuple[int, str]:
        process = self.start(place, *more)
        output, _ = process.communicate(timeout=300)
        return process.returncode, output

    def kill(self) -> None:
        """Kill a run at any moment."""
        process = self.start("work", *self.draw.choice([(), ("--replace", "true")]))
        time.sleep(self.draw.uniform(0.2, self.seconds))
        number = self.draw.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
        end(process, number)

    def change_audio(self) -> None:
        """Replace clips by others of equal size, perhaps with the old time."""
        for name in self.draw.sample(sorted(self.rows), self.draw.randint(1, 3)):
            path = self.corpus / name
            before = path.stat()
            self.originals.setdefault(path, path.read_bytes())
            self.write_audio(path)
            if self.draw.random() < 0.5:
                os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    def change_label(self) -> None:
        name = self.draw.choice(sorted(self.rows))
        label = self.draw.choice(CLASSES)
        self.rows[name] = (label, self.rows[name][1])
        self.write_table()

    def change_config(self) -> None:
        config = self.configs[self.draw.choice(sorted(self.configs))]
        if self.draw.random() < 0.5:
            config["num_workers" if self.draw.random() < 0.3 else "log_interval"] = 1
        else:
            config["optim_conf"] = {"lr": self.draw.choice([0.01, 0.003, 0.001])}
        self.write_configs()

    def repair(self) -> None:
        """Put audio back as it was."""
        for path in self.draw.sample(sorted(self.originals), len(self.originals)):
            path.write_bytes(self.originals.pop(path))
            if self.draw.random() < 0.5:
                break

    def extend_data(self) -> None:
        for _ in range(self.draw.randint(1, 3)):
            split = self.draw.choice(sorted(SPLITS))
            self.add_clip(split, self.draw.choice(CLASSES))
        self.write_table()

    def extend_training(self) -> None:
        config = self.configs[self.draw.choice(sorted(self.configs))]
        config["max_epoch"] = min(config["max_epoch"] + 1, 4)
        self.write_configs()

    def damage(self) -> None:
        """Flip bytes of, cut or remove something that run.sh has made."""
        work = self.folder / "work"
        patterns = ("dump/raw/audio/*/*", "exp/**/latest.pth", "exp/**/predictions.npz")
        patterns += ("exp/**/metrics.json", "dump/raw/*/*/utt2sha256", "data/*/*/text")
        pattern = self.draw.choice(patterns)
        paths = sorted(path for path in work.glob(pattern) if path.is_file())
        if not paths:
            return
        path = self.draw.choice(paths).resolve()
        content = bytearray(path.read_bytes())
        how = self.draw.choice(["flip", "cut", "remove"])
        if how == "remove":
            path.unlink()
        elif how == "cut":
            path.write_bytes(content[: len(content) // 2])
        else:
            content[len(content) // 2] ^= 0x55
            before = path.stat()
            path.write_bytes(content)
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    seconds = 20.0  # of an undisturbed run
    of_fresh: dict | None = None  # what the last fresh run was made from

    def content(self) -> dict[Path, bytes]:
        """The corpus and the configs."""
        paths = [*self.corpus.iterdir(), *self.folder.glob("*.yaml")]
        return {path: path.read_bytes() for path in paths}

    def round(self) -> None:
        """Do some things, run to the good end, and compare with a fresh run."""
        acts = [self.kill, self.change_audio, self.change_label, self.change_config]
        acts += [self.repair, self.extend_data, self.extend_training, self.damage]
        acts += [self.kill, self.damage]
        names = []
        for act in self.draw.choices(acts, k=self.draw.randint(1, 4)):
            act()
            names.append(act.__name__)
            self.done[act.__name__] += 1
        status, output = self.run("work")
        if status and REFUSED in output:
            self.done["asked"] += 1
            names.append("replace")
            status, output = self.run("work", "--replace", "true")
        assert status == 0, f"after {names}: status {status}\n{output}"
        if self.content() != self.of_fresh:
            shutil.rmtree(self.folder / "fresh", ignore_errors=True)
            status, output = self.run("fresh")
            assert status == 0, f"fresh: {output}"
            self.of_fresh = self.content()
        ours, fresh = (scores(self.folder / name) for name in ("work", "fresh"))
        assert ours.keys() == fresh.keys() and len(fresh) == 2
        for name in fresh:
            for key, values in fresh[name].items():
                same = np.array_equal(ours[name][key], values)
                assert same, f"after {names}: other {key} in {name}"
        print(f"{', '.join(names)}: as a fresh run", flush=True)


def end(process: subprocess.Popen, number: int) -> None:
    """Signal a run's processes and wait for all of them."""
    deadline = time.time() + 60
    try:
        os.killpg(process.pid, number)
        process.communicate(timeout=60)
        while time.time() < deadline:
            os.killpg(process.pid, 0)
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        process.communicate()


def scores(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """The predictions and scores of all checkpoints, by place."""
    found = {}
    for path in sorted((folder / "exp").glob("*/*/*/*/*/predictions.npz")):
        with np.load(path) as arrays:
            values = {name: arrays[name] for name in arrays.files}
        metrics = yaml.safe_load(path.with_name("metrics.json").read_text())
        for name in ("mAP", "accuracy", "num_clips"):
            values[name] = np.array(metrics[name])
        found[str(path.relative_to(folder))] = values
    return found


def play(folder: Path, rounds: int, seed: int) -> Counter:
    """Some rounds; how often what was done. Raises AssertionError at a wrong score."""
    with fork_python(folder / "python") as python:
        user = User(folder, python, seed)
        began = time.time()
        status, output = user.run("work")
        assert status == 0, output
        user.seconds = time.time() - began
        for _ in range(rounds):
            user.round()
    return user.done


def main() -> None:
    """Play by hand."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, required=True)
    args = parser.parse_args()
    began = time.time()
    done = play(args.folder, args.rounds, args.seed)
    counts = ", ".join(f"{name} {count}" for name, count in sorted(done.items()))
    seconds = time.time() - began
    print(f"{args.rounds} rounds in {seconds:.0f} s, all as a fresh run; {counts}")


if __name__ == "__main__":
    main()
