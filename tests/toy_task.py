"""A tiny task on SSLAMAbsTask, for the tests of how ESPnet runs us.

As a program it trains: python -m tests.toy_task --output_dir ...
"""

import argparse
import copy
import logging
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import soundfile
import torch
from espnet2.train.abs_espnet_model import AbsESPnetModel

from espnet2_sslam.bin.cli import run_main
from espnet2_sslam.tasks import SSLAMAbsTask

ROOT = Path(__file__).resolve().parent.parent


class ToyEncoder(torch.nn.Module):
    """Mean power of a clip in slices -> features."""

    def __init__(self, width: int = 4):
        super().__init__()
        self.patch_embed = torch.nn.Linear(8, width)
        self.cls_token = torch.nn.Parameter(torch.zeros(1, 1, width))
        self.norm = torch.nn.LayerNorm(width)
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(width, width) for _ in "abc")

    def forward(self, speech: torch.Tensor) -> torch.Tensor:
        """Turn (B, N) into (B, width)."""
        length = speech.shape[1] // 8 * 8
        slices = speech[:, :length].reshape(len(speech), 8, -1).pow(2).mean(-1)
        hidden = self.norm(self.patch_embed(slices)) + self.cls_token[0]
        for block in self.blocks:
            hidden = hidden + block(hidden).tanh()
        return hidden


class ToyModel(AbsESPnetModel):
    """A student that predicts its teacher and (if given) labels."""

    def __init__(self, width: int = 4, log_clips: str = "", die_at_update: int = -1):
        super().__init__()
        self.encoder = ToyEncoder(width)
        self.head = torch.nn.Linear(width, 1)
        self.teacher = copy.deepcopy(self.encoder).requires_grad_(False)
        self.register_buffer("num_updates", torch.zeros(()))
        self.log_clips = log_clips
        self.die_at_update = die_at_update
        self.seen = None

    def forward(self, speech, speech_lengths, label=None, utt_id=None, **_):
        """Return (loss, stats, weight)."""
        hidden = self.encoder(speech)
        target = self.teacher(speech) + 1.0
        loss = (hidden - target).pow(2).mean() + self.head(hidden).pow(2).mean()
        if not self.training:
            self.seen.extend(utt_id)
        elif self.log_clips:
            with open(self.log_clips, "a", encoding="utf-8") as stream:
                stream.write(" ".join(utt_id) + "\n")
        stats = {"loss": loss.detach(), "num_updates": self.num_updates.clone()}
        return loss, stats, torch.tensor(float(len(speech)))

    def begin_validation(self) -> None:
        """Start to collect the ids of a validation epoch."""
        self.seen = []

    def finish_validation(self, gather) -> dict[str, float]:
        """Return how many clips, and how many different ones, were validated."""
        ids = [uid for part in gather(self.seen) for uid in part]
        return {"clips": len(ids), "different": len(set(ids))}

    @torch.no_grad()
    def update_teacher(self) -> None:
        """Move the teacher, count the update; die if the test asks for it."""
        for old, new in zip(
            self.teacher.parameters(), self.encoder.parameters(), strict=True
        ):
            old.lerp_(new, 0.1)
        self.num_updates += 1
        if self.num_updates == self.die_at_update:
            signal.raise_signal(signal.SIGKILL)

    def collect_feats(self, speech, speech_lengths, **_):
        """Return the input."""
        return {"feats": speech, "feats_lengths": speech_lengths}


class ToyTask(SSLAMAbsTask):
    """Train ToyModel."""

    @classmethod
    def add_task_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add the toy's own options."""
        super().add_task_arguments(parser)
        parser.add_argument("--width", type=int, default=4)
        parser.add_argument("--log_clips", default="")
        parser.add_argument("--die_at_update", type=int, default=-1)

    @classmethod
    def build_model(cls, args: argparse.Namespace) -> ToyModel:
        """Return the toy."""
        die_at_update = -1 if args.resume else args.die_at_update
        return ToyModel(args.width, args.log_clips, die_at_update)

    @classmethod
    def optional_data_names(cls, train=True, inference=False):
        """Return what a clip may have."""
        return ("label",)


class SpawningTask(ToyTask):
    """ToyTask with one spawned rank for each GPU that --ngpu claims, on the CPU."""

    @classmethod
    def main_worker(cls, args: argparse.Namespace) -> None:
        """Train without the GPU."""
        args.ngpu = 0
        super().main_worker(args)


def write_clips(
    folder: Path, count: int, rate: int = 16_000, shortest: int = 1600
) -> Path:
    """Write count noise clips and their lists; return the folder."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(count)
    scp, sizes = [], []
    for number in range(count):
        size = shortest + 160 * (number % 3)
        path = folder / f"clip{number:02d}.wav"
        wave = generator.normal(scale=0.1 + 0.02 * number, size=size)
        soundfile.write(path, wave.clip(-1, 1), rate)
        scp.append(f"{path.stem} {path}\n")
        sizes.append(f"{path.stem} {size}\n")
    (folder / "wav.scp").write_text("".join(scp))
    (folder / "utt2num_samples").write_text("".join(sizes))
    return folder


def arguments(train: Path, valid: Path, output: Path, *more: str) -> list[str]:
    """Return the command line of a short CPU training."""
    return [
        *("--train_data_path_and_name_and_type", f"{train}/wav.scp,speech,sound"),
        *("--valid_data_path_and_name_and_type", f"{valid}/wav.scp,speech,sound"),
        *("--train_shape_file", f"{train}/utt2num_samples"),
        *("--valid_shape_file", f"{valid}/utt2num_samples"),
        *("--output_dir", str(output), "--batch_size", "4", "--max_epoch", "3"),
        *("--num_workers", "0", "--use_tensorboard", "false"),
        *("--use_matplotlib", "false", "--optim_conf", "lr=0.01"),
        *more,
    ]


def state(folder):
    """Return all of checkpoint.pth but the times and speeds."""
    states = torch.load(folder / "checkpoint.pth", weights_only=False)
    for epoch in states["reporter"]["stats"].values():
        for part in epoch.values():
            for key in [k for k in part if "time" in k or "mem" in k]:
                del part[key]
    return states


def assert_same(one, other, path=""):
    """Compare nested states bit by bit."""
    assert type(one) is type(other), path
    if isinstance(one, dict):
        assert list(one) == list(other), path
        for key in one:
            assert_same(one[key], other[key], f"{path}/{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), path
        for number, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{path}/{number}")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), path
    else:
        assert one == other or one != one, path


def fork(function, log=os.devnull):
    """Call a function in a forked child, which has everything loaded; returns it.

    Its exit status is that of a command; what it says goes to `log`.
    """

    def child():
        torch.set_num_threads(1)
        with open(log, "a") as stream:
            for descriptor in (1, 2):
                os.dup2(stream.fileno(), descriptor)
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
        logging.root.handlers.clear()
        run_main(function)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    return process


def start(*command, **options):
    """Start python with the arguments in the root of the checkout."""
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def free_port():
    """Return a port that nobody uses."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return str(listener.getsockname()[1])


def train_with_two_ranks(command):
    """Start two gloo ranks and wait for both."""
    more = ["--dist_backend", "gloo", "--dist_world_size", "2"]
    more += ["--dist_master_addr", "localhost", "--dist_master_port", free_port()]
    ranks = [start(*command, *more, "--dist_rank", str(rank)) for rank in (0, 1)]
    for process in ranks:
        errors = process.communicate()[1]
        assert process.returncode == 0, errors


if __name__ == "__main__":
    ToyTask.main()
