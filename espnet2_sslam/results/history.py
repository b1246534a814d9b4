"""What a finished training run says about itself: settings, time, curves."""

import datetime
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml

# What differs between seeds and folds of one experiment, and where it ran.
RUN_KEYS = re.compile(
    r"config|output_dir|seed|init_param|resume|ngpu|num_workers|log_.*|dist_.*|version"
    r"|distributed|multiprocessing_distributed|local_rank|required|wandb.*"
    r"|use_(tensorboard|matplotlib|wandb)"
    r"|(train|valid)_(data_path_and_name_and_type|shape_file)"
)
Curve = tuple[np.ndarray, np.ndarray]  # updates, values


@dataclass(frozen=True)
class History:
    """One training run. `stats[epoch]["train" | "valid"][name]` are epoch means.

    `machines` are those that its log names: several after a resume elsewhere.
    """

    path: Path
    config: dict
    stats: dict
    torch_version: str | None
    machines: tuple[str, ...] = ()

    @property
    def epochs(self) -> int:
        """Number of finished epochs."""
        return max(self.stats, default=0)

    @property
    def finished(self) -> bool:
        """True when all epochs were trained, or training may stop before."""
        early = self.config.get("patience") is not None
        return early or self.epochs >= self.config["max_epoch"]

    @property
    def updates(self) -> int:
        """Number of optimizer updates (iterations over accum_grad)."""
        return int(self.steps("train")[-1]) if self.stats else 0

    @property
    def hours(self) -> float:
        """Wall hours of training and validation, over all resumed parts."""
        return sum(
            part["time"].total_seconds()
            for epoch in self.stats.values()
            for part in epoch.values()
        ) / (60 * 60)

    @property
    def settings_hash(self) -> str:
        """First 10 hex digits of the SHA-256 of the settings shared by all seeds."""
        shared = {k: v for k, v in self.config.items() if not RUN_KEYS.fullmatch(k)}
        if scheduler := shared.get("scheduler_conf"):
            # Filled in from the number of clips, which differs between folds.
            shared["scheduler_conf"] = {**scheduler, "total_steps": None}
        text = json.dumps(shared, sort_keys=True, default=str)
        return hashlib.sha256(text.encode("utf-8")).hexdigest()[:10]

    def steps(self, split: str) -> np.ndarray:
        """Updates at the end of each epoch that has the split."""
        accum_grad = self.config.get("accum_grad", 1)
        epochs = [epoch for epoch in sorted(self.stats) if split in self.stats[epoch]]
        counts = [self.stats[epoch]["train"]["total_count"] for epoch in epochs]
        return np.array(counts) // accum_grad

    def epoch_curve(self, split: str, name: str) -> Curve:
        """Return (updates, epoch means) of a stat; empty when it was not recorded."""
        parts = [
            self.stats[e][split] for e in sorted(self.stats) if split in self.stats[e]
        ]
        values = np.array([part.get(name, np.nan) for part in parts], dtype=float)
        known = np.isfinite(values)
        return self.steps(split)[known], values[known]


def read_history(run_dir: Path) -> History:
    """Read config.yaml, checkpoint.pth and train.log of an ESPnet output directory.

    Raises:
        FileNotFoundError: when the run has not finished an epoch.
        ValueError: when the checkpoint is not readable.
    """
    run_dir = Path(run_dir)
    config, checkpoint = run_dir / "config.yaml", run_dir / "checkpoint.pth"
    for path in (config, checkpoint):
        if not path.exists():
            raise FileNotFoundError(
                f"{path} is missing: no finished epoch there; train the model first"
            )
    return History(
        path=run_dir,
        config=yaml.safe_load(config.read_text(encoding="utf-8")),
        stats=_read_reporter(checkpoint),
        torch_version=next(_logged(run_dir, r"pytorch\.version=([^\s,]+)"), None),
        machines=tuple(dict.fromkeys(_logged(run_dir, r" INFO: machine: (.+)"))),
    )


def train_curves(history: History, names: list[str]) -> dict[str, Curve]:
    """Return {name: (updates, values)} of training stats, as finely as logged.

    Taken from the TensorBoard events. ESPnet writes an epoch's mean under the name of
    the interval means too (espnet2/train/reporter.py): it is used only for an epoch
    without another point. After a resume the later value of an update counts.
    """
    points = _tensorboard_points(history.path / "tensorboard" / "train", names)
    accum_grad = history.config.get("accum_grad", 1)
    curves = {}
    for name in names:
        ends, means = history.epoch_curve("train", name)
        kept = {step // accum_grad: value for step, value in points.get(name, [])}
        previous = 0
        for end, mean in zip(ends.tolist(), means.tolist()):
            if end in kept and np.isclose(kept[end], mean, rtol=1e-6):
                del kept[end]
                others = [v for s, v in points[name] if s // accum_grad == end]
                finer = [v for v in others if not np.isclose(v, mean, rtol=1e-6)]
                if finer:
                    kept[end] = finer[-1]
            if not any(previous < update <= end for update in kept):
                kept[end] = mean
            previous = end
        updates = np.array(sorted(kept), dtype=int)
        curves[name] = updates, np.array([kept[update] for update in updates.tolist()])
    return curves


def thin_out(steps: np.ndarray, values: np.ndarray, max_points: int = 400) -> Curve:
    """Average neighbouring points until at most max_points are left."""
    width = -(-len(steps) // max_points) if len(steps) else 1
    if width == 1:
        return steps, values
    edges = np.arange(0, len(steps), width)
    counts = np.diff(np.append(edges, len(steps)))
    return tuple(np.add.reduceat(x, edges) / counts for x in (steps, values))


def _read_reporter(checkpoint: Path) -> dict:
    """Return the epoch means of ESPnet's reporter; tensors stay on disk."""
    scalar = np.float64(0).__reduce__()[0]
    allowed = [datetime.timedelta, scalar, np.dtype, type(np.dtype(np.float64))]
    try:
        with torch.serialization.safe_globals(allowed):
            states = torch.load(
                checkpoint, map_location="cpu", weights_only=True, mmap=True
            )
        stats = states["reporter"]["stats"]
    except (RuntimeError, EOFError, KeyError, OSError, ValueError) as error:
        raise ValueError(
            f"{checkpoint} is not a readable checkpoint "
            f"({type(error).__name__}); train again or remove the run"
        ) from None
    for epoch in stats.values():
        for part in epoch.values():
            if isinstance(part["time"], dict):  # ESPnet >= 202607 stores seconds
                seconds = part["time"]["__timedelta_seconds__"]
                part["time"] = datetime.timedelta(seconds=seconds)
    return stats


def _tensorboard_points(
    folder: Path, names: list[str]
) -> dict[str, list[tuple[int, float]]]:
    """Return {name: [(iteration, value), ...]} in the order of writing."""
    if not folder.is_dir():
        return {}
    # Imported here: it takes a second, and tables do not need it.
    from tensorboard.backend.event_processing import event_accumulator

    events = event_accumulator.EventAccumulator(
        str(folder), size_guidance={event_accumulator.SCALARS: 0}
    ).Reload()
    return {
        name: [
            (event.step, event.value)
            for event in sorted(events.Scalars(name), key=lambda e: e.wall_time)
        ]
        for name in set(names) & set(events.Tags()["scalars"])
    }


def _logged(run_dir: Path, pattern: str) -> Iterator[str]:
    """Yield what a pattern finds in the lines of the logs, the newest one first.

    ESPnet's launcher renames the log of an earlier start to train.1.log and so on.
    """
    for log in [run_dir / "train.log", *sorted(run_dir.glob("train.*.log"))]:
        if log.exists():
            with log.open(encoding="utf-8", errors="replace") as lines:
                for line in lines:
                    if found := re.search(pattern, line):
                        yield found.group(1)
