"""Small trainings of both tasks, and what may happen to them in the middle."""

import io
import os
import re
import signal
import subprocess
from functools import partial
from pathlib import Path

import torch

from espnet2_sslam.tasks import SSLAMClassificationTask, SSLAMTask
from tests.test_real_training import PRETRAIN, SMALL, classify
from tests.toy_task import arguments, fork, free_port, write_clips

TASKS = {
    "pretrain": (SSLAMTask, [*PRETRAIN, "--model_conf", "mixture=true"]),
    "classify": (SSLAMClassificationTask, None),
}


def write_sets(folder):
    """Write a training set of 13 clips and a validation set of 7, with two classes."""
    sets = []
    for name, count in (("train", 13), ("valid", 7)):
        sets.append(write_clips(folder / name, count, shortest=9000))
        lines = [f"clip{i:02d} {('cat', 'dog')[i % 2]}\n" for i in range(count)]
        (sets[-1] / "text").write_text("".join(lines))
    (folder / "classes.txt").write_text("cat\ndog\n")
    return sets


def training(data, name, more, folder):
    """A function that trains into a folder."""
    task, options = TASKS[name]
    if options is None:
        augmentation = "{mixup_alpha: 0.8, mask_ratio: 0.2, noise: 0.1}"
        options = classify(data, *SMALL, "--augment_conf", augmentation)
    return partial(task.main, cmd=arguments(*data, folder, *options, *more))


def fork_ranks(trains, *logs):
    """Train on gloo ranks, given each one's function of its options; the processes."""
    options = ["--dist_backend", "gloo", "--dist_world_size", str(len(trains))]
    options += ["--dist_master_addr", "localhost", "--dist_master_port", free_port()]
    return [
        fork(train([*options, "--dist_rank", str(rank)]), log)
        for rank, (train, log) in enumerate(zip(trains, logs, strict=True))
    ]


def die(number=signal.SIGKILL):
    os.kill(os.getpid(), number)


def group_gets(number):
    """A signal to the training and its workers, as Slurm and a terminal send it."""
    subprocess.run(["sh", "-c", f"kill -{int(number)} 0"])


def in_a_group(function):
    """Run it as a terminal does, whatever started the tests (nohup ignores SIGHUP)."""
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    function()


def nothing(*_):
    pass


def watch_updates(before=nothing, after=nothing):
    """Call both with the optimizer around each update of this process."""
    step = torch.optim.AdamW.step

    def stepped(self, *args, **kwargs):
        before(self)
        result = step(self, *args, **kwargs)
        after(self)
        return result

    torch.optim.AdamW.step = stepped


def watch_writes(event):
    """Call `event` with the name of each moment of a write in this process."""

    def watch(name, path):
        plain = getattr(os, name)

        def call(*args, **kwargs):
            place = f"{name} {role(path(*args))}"
            event(f"before {place}")
            result = plain(*args, **kwargs)
            event(f"after {place}")
            return result

        setattr(os, name, call)

    save = torch.save

    def in_halves(states, stream, **options):
        if not hasattr(stream, "name"):  # a copy in memory
            return save(states, stream, **options)
        whole = io.BytesIO()
        save(states, whole, **options)
        content = whole.getvalue()
        stream.write(content[: len(content) // 2])
        stream.flush()
        event(f"half of {role(stream.name)}")
        stream.write(content[len(content) // 2 :])

    watch("fsync", lambda descriptor: os.readlink(f"/proc/self/fd/{descriptor}"))
    watch("replace", lambda source, target: target)
    watch("unlink", lambda path, **_: path)
    torch.save = in_halves


def role(path):
    """A file's name without what differs from run to run; a folder's is `folder`."""
    if os.path.isdir(path):
        return "folder"
    name = re.sub(r"^\.(.*)\.\d+\.tmp$", r"\1 (temporary)", Path(path).name)
    return re.sub(r"\d+epoch", "Nepoch", name)


def damage(path):
    """Change 16 bytes in the middle of a file."""
    content = bytearray(path.read_bytes())
    for place in range(len(content) // 2, len(content) // 2 + 16):
        content[place] ^= 0x55
    path.write_bytes(content)
