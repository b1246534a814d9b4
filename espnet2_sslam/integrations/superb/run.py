"""One training of s3prl: its configuration, its commands, its scores, its records."""

import json
import math
import re
import shutil
import sys
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import yaml

from espnet2_sslam.integrations.superb.tasks import Task
from espnet2_sslam.integrations.superb.upstreams import Upstream
from espnet2_sslam.store import write_json, write_text

LOG = "s3prl.log"
CONFIG = "task.yaml"
# SID's lists of files would go into s3prl's own folder and be used for other data.
_SPEAKERS = (
    "import os, s3prl.downstream.voxceleb1.dataset as d; "
    "d.CACHE_PATH = os.path.join(os.getcwd(), 'cache', ''); "
    "from s3prl.run_downstream import main; main()"
)


class Schedule(NamedTuple):
    """How long a run trains, and on what; None keeps the configuration's value.

    Attributes:
        steps: Updates by task; "" stands for the tasks that are not named.
        eval_every: Updates between two scores on the dev set; a quarter of `steps` by
            default.
        num_workers: Processes that read audio.
        device: cpu or cuda.
    """

    steps: Mapping[str, int] = MappingProxyType({})
    eval_every: int | None = None
    num_workers: int | None = None
    device: str = "cpu"

    def runner(self, task: Task) -> dict[str, int]:
        """What it changes in s3prl's options of a task's training."""
        steps = self.steps.get(task.name, self.steps.get(""))
        every = self.eval_every or (steps and max(1, steps // 4))
        changed = {} if steps is None else {"total_steps": steps}
        if every:
            every = min(every, steps or every)
            changed.update(eval_step=every, save_step=every, log_step=every)
        return changed


@dataclass(frozen=True)
class Run:
    """One task, upstream, learning rate, seed and fold.

    Attributes:
        folder: Where everything of the run goes; s3prl is started there.
        config: s3prl's configuration without the weights' place.
        settings: What the result depends on.
    """

    task: Task
    upstream: Upstream
    lr: float
    seed: int
    fold: int
    folder: Path
    config: dict[str, Any]
    settings: dict[str, Any]
    schedule: Schedule

    @property
    def name(self) -> str:
        """For progress lines and errors."""
        fold = f", fold {self.fold}" if self.task.folds > 1 else ""
        return (
            f"{self.task.name} of {self.upstream.name}, lr {self.lr:g}, "
            f"seed {self.seed}{fold}"
        )

    def train_command(self) -> list[str]:
        """Train and choose the best checkpoint by the dev set; continues if begun."""
        if self.task.hear:
            return [*self._hear(), "--stop", "2"]
        words = ["-m", "train", "-a", "-p", ".", "-c", CONFIG, "--seed", str(self.seed)]
        words += ["-d", self.task.module, "-u", self.upstream.entry]
        if self.upstream.ckpt is not None:
            words += ["-k", str(self.upstream.ckpt), "-g", "upstream.yaml"]
        return [*self._downstream(), *words]

    def test_command(self) -> list[str]:
        """Score the best checkpoint on the test set."""
        if self.task.hear:
            return [*self._hear(), "--start", "3"]
        best = self.folder / "dev-best.ckpt"  # missing if every dev score was 0
        if not best.exists():
            best = max(self.folder.glob("states-*.ckpt"), key=_step_of)
        return [*self._downstream(), "-m", "evaluate", "-t", "test", "-e", best.name]

    def _downstream(self) -> list[str]:
        start = ["-m", "s3prl.run_downstream"]
        if self.task.name == "sid":
            start = ["-c", _SPEAKERS]
        words = [sys.executable, "-m", "espnet2_sslam", *start]
        return [*words, "--device", self.schedule.device]

    def _hear(self) -> list[str]:
        words = [sys.executable, "-m", "espnet2_sslam", "-m", "s3prl.main"]
        words += [self.task.module, "--config", CONFIG, "--device"]
        workers = self.schedule.num_workers
        workers = 4 if workers is None else workers
        return [*words, self.schedule.device, "--num_workers", str(workers)]

    def write_config(self) -> None:
        """Write the files that the commands name."""
        config = json.loads(json.dumps(self.config))
        upstream, workers = self.upstream, self.schedule.num_workers
        if self.task.hear:
            if upstream.ckpt is not None:
                extra = {"ckpt": str(upstream.ckpt), **upstream.options}
                config["build_upstream"]["extra_conf"] = extra
        else:
            if workers is not None:
                config["downstream_expert"]["datarc"]["num_workers"] = workers
            options = yaml.safe_dump(upstream.options)
            write_text(self.folder / "upstream.yaml", options)
        write_text(self.folder / CONFIG, yaml.safe_dump(config, sort_keys=False))

    def dev_score(self) -> tuple[float, int]:
        """Best score on the dev set, and after how many updates."""
        if self.task.hear:
            stats = _read_yaml(self.folder / "train/valid_best/training_stats.yaml")
            score = stats["valid_best_metrics"][self.task.metric]
            return float(score), int(stats["global_step"])
        log = (self.folder / "log.log").read_text(encoding="utf-8")
        found = re.findall(r"^New best on dev at step (\d+): (\S+)$", log, re.M)
        if found:
            return float(found[-1][1]), int(found[-1][0])
        if re.search(r"^dev at step", log, re.M):
            return 0.0, 0  # nothing is better than nothing
        raise ValueError(f"{self.folder / 'log.log'} has no score on the dev set")

    def test_scores(self) -> dict[str, float | None]:
        """Scores on the test set by metric, None for those that are not defined."""
        if self.task.hear:
            [result] = self.folder.glob("evaluate/valid_best/*/result.yaml")
            scores = _read_yaml(result)
            return {k: v if math.isfinite(v) else None for k, v in scores.items()}
        log = (self.folder / "log.log").read_text(encoding="utf-8")
        return {
            "accuracy": float(re.findall(r"^test at step 0: (\S+)$", log, re.M)[-1])
        }

    def total_steps(self) -> int:
        """Updates of the whole training."""
        if self.task.hear:
            latest = max((self.folder / "configs").glob("*.yaml"))
            return int(_read_yaml(latest)["train"]["total_steps"])
        return int(self.config["runner"]["total_steps"])

    def begin(self, replaced: Path) -> None:
        """Make the folder ready; a run with other settings there is moved away."""
        if self.folder.exists() and self.record("begun") != self.settings:
            stamp = time.strftime("%Y%m%d-%H%M%S")
            target = replaced / f"{'_'.join(self.folder.parts[-3:])}.{stamp}"
            target.parent.mkdir(parents=True, exist_ok=True)
            self.folder.rename(target)
        write_json(self.folder / ".begun", self.settings)
        self.write_config()
        self._remove_torn()

    def record(self, name: str) -> dict[str, Any] | None:
        """A record (begun, trained, tested), None without one of these settings."""
        try:
            found = json.loads((self.folder / f".{name}").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        settings = found if name == "begun" else found.get("settings")
        return found if settings == self.settings else None

    def write_record(self, name: str, **content: Any) -> None:
        """Record that a part is done."""
        record = {"settings": self.settings, **content}
        write_json(self.folder / f".{name}", record)

    def tidy(self) -> None:
        """Remove what only a continued training needs, as big as the model each."""
        for step in (self.folder / "train").glob("step_*"):
            shutil.rmtree(step)

    def _remove_torn(self) -> None:
        """Remove checkpoints that were not written to their end."""
        for path in self.folder.glob("*.ckpt"):
            if not zipfile.is_zipfile(path):
                path.unlink()
        for step in (self.folder / "train").glob("step_*"):
            if not (step / "config.yaml").exists():  # s3prl writes it last
                shutil.rmtree(step)


def make_config(
    task: Task,
    base: dict[str, Any],
    data: dict[str, Any],
    upstream: Upstream,
    lr: float,
    seed: int,
    fold: int,
    schedule: Schedule,
) -> dict[str, Any]:
    """s3prl's configuration of a run.

    Args:
        task, upstream, lr, seed, fold, schedule: Of the run.
        base: The task's configuration; HEAR's are in s3prl itself and need none.
        data: The data's paths by s3prl's names.
    """
    config = json.loads(json.dumps(base))
    if task.hear:
        config = {
            "target_dir": ".",
            "cache_dir": "cache",
            "prepare_data": dict(data),
            "build_upstream": {"name": upstream.entry},
            "build_optimizer": {"name": "Adam", "conf": {"lr": lr}},
            "train": {"seed": seed, **schedule.runner(task)},
        }
        if task.folds > 1:
            config["prepare_data"].update(test_fold=fold, num_folds=task.folds)
        return config
    config["runner"].update(schedule.runner(task))
    config["optimizer"]["lr"] = lr
    config["downstream_expert"]["datarc"].update(data)
    if task.name == "er":
        config["downstream_expert"]["datarc"]["test_fold"] = f"fold{fold}"
    return config


def error_line(log: Path) -> str:
    """The line of a log that best says what went wrong."""
    if not log.exists():
        return "it left no log"
    text = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [x for x in lines if re.match(r"(error:|[\w.]*(Error|Exception)\b)", x)]
    return (errors or lines or ["it said nothing"])[-1]


def _read_yaml(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _step_of(path: Path) -> int:
    return int(path.stem.split("-")[-1])
