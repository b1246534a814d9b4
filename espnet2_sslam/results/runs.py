"""What one training left behind: settings, time, machines and curves."""

import datetime
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from espnet2_sslam.config import EncoderConfig
from espnet2_sslam.store import note_kept, read_pickle

# Options that say where and on what a run was made, not how: they differ between the
# seeds, folds and machines of one experiment.
NOT_SETTINGS = re.compile(
    r"config|output_dir|seed|init_param|resume|keep|ngpu|num_workers|log_.*|dist_.*|version"
    r"|distributed|multiprocessing_distributed|local_rank|required|wandb.*"
    r"|use_(tensorboard|matplotlib|wandb)"
    r"|(train|valid)_(data_path_and_name_and_type|shape_file)"
)
# Lines of train.log that are records: ESPnet's version line, and what our trainer says
# at every start (`machine: <processor>, <cores>, <memory>; <GPUs>`).
TORCH_LINE = re.compile(r"pytorch\.version=([^\s,]+)")
MACHINE_LINE = re.compile(r" INFO: machine: (.+)")


@dataclass(frozen=True)
class History:
    """One training run. `stats[epoch]["train" | "valid"][name]` are epoch means.

    `machines` are those that its logs name: several after a resume elsewhere. `kept`
    says what differed when it was gone on with nevertheless. `bad_clips` were skipped:
    {id: {file, reason, skipped: times, bad: still}}.
    """

    path: Path
    config: dict
    stats: dict
    torch_version: str | None
    machines: tuple[str, ...] = ()
    bad_clips: dict[str, dict] = field(default_factory=dict)
    kept: tuple[str, ...] = ()

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
        parts = (part for epoch in self.stats.values() for part in epoch.values())
        return sum(part["time"].total_seconds() for part in parts) / 3600

    @property
    def kind(self) -> str:
        """`linear` for a frozen encoder, else `finetune`."""
        frozen = (self.config.get("model_conf") or {}).get("freeze_encoder")
        return "linear" if frozen else "finetune"

    @property
    def settings_hash(self) -> str:
        """First 10 hex digits of the SHA-256 of the settings shared by all seeds."""
        shared = {k: v for k, v in self.config.items() if not NOT_SETTINGS.fullmatch(k)}
        if scheduler := shared.get("scheduler_conf"):
            # Filled in from the number of clips, which differs between folds.
            shared["scheduler_conf"] = {**scheduler, "total_steps": None}
        text = json.dumps(shared, sort_keys=True, default=str)
        return hashlib.sha256(text.encode("utf-8")).hexdigest()[:10]

    def steps(self, split: str) -> np.ndarray:
        """Updates at the end of each epoch that has the split."""
        epochs = [epoch for epoch in sorted(self.stats) if split in self.stats[epoch]]
        counts = [self.stats[epoch]["train"]["total_count"] for epoch in epochs]
        return np.array(counts) // self.config.get("accum_grad", 1)

    def epoch_curve(self, split: str, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return (updates, epoch means) of a stat; empty when it was not recorded."""
        epochs = [self.stats[epoch] for epoch in sorted(self.stats)]
        parts = [epoch[split] for epoch in epochs if split in epoch]
        values = np.array([part.get(name, np.nan) for part in parts], dtype=float)
        known = np.isfinite(values)
        return self.steps(split)[known], values[known]

    def unlearnt_loss(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Return (updates, patch losses) of predicting the mean of all targets.

        Nearly: the spread is a mean over the channels. Empty when it was not recorded.
        """
        updates, spread = self.epoch_curve(split, "target_var")
        conf = self.config.get("encoder_conf") or {}
        width = conf.get("embed_dim", EncoderConfig.embed_dim)
        return updates, spread**2 * width**0.5


# The spreads at which a training ends as collapsed, unless its options say others.
COLLAPSED = {"target_var": 0.1, "prediction_var": 0.01}
LITTLE = 0.1  # of the targets' variance explained, at the end


def health(history: History) -> list[str]:
    """What the curves of a pre-training say, a line each, the worst last.

    Raises:
        ValueError: No targets were recorded: it is no pre-training.
    """
    lines, warnings = [], []
    for name, what in (("target_var", "targets"), ("prediction_var", "predictions")):
        values = history.epoch_curve("train", name)[1]
        if not len(values):
            raise ValueError(f"{history.path} recorded no {name}: no pre-training")
        lines.append(f"spread of the {what}: {values[0]:.3f} to {values[-1]:.3f}")
        least = history.config.get(f"min_{name}", COLLAPSED[name])
        if values[-1] < least:
            warnings.append(
                f"COLLAPSED: the {what} are nearly the same for all patches (spread "
                f"below {least:g}): begin again with a lower learning rate "
                "and a teacher that moves as the paper's does"
            )
    loss = history.epoch_curve("train", "loss_patch")[1]
    unlearnt = history.unlearnt_loss("train")[1]
    share = 1 - loss[-1] / unlearnt[-1]
    lines.append(
        f"patch loss: {loss[0]:.2f} to {loss[-1]:.2f}; predicting only the targets' "
        f"mean gives {unlearnt[-1]:.2f}: {100 * max(share, 0):.0f} % is explained"
    )
    if share < LITTLE and not warnings:
        warnings.append(
            f"LITTLE IS LEARNT after {history.updates} updates: train longer or, if "
            "the patch loss no longer falls, begin again with a lower learning rate"
        )
    return lines + warnings


def read_history(run_dir: Path) -> History:
    """Read config.yaml, checkpoint.pth and the logs of an ESPnet output directory.

    Raises:
        FileNotFoundError: The run has not finished an epoch.
        ValueError: config.yaml or checkpoint.pth is not readable.
    """
    run_dir = Path(run_dir)
    config, checkpoint = run_dir / "config.yaml", run_dir / "checkpoint.pth"
    for path in (config, checkpoint):
        if not path.exists():
            raise FileNotFoundError(
                f"{path} is missing: no finished epoch there; train the model first"
            )
    # ESPnet's launcher renames the log of an earlier start to train.1.log and so on.
    logs = [run_dir / "train.log", *sorted(run_dir.glob("train.*.log"))]
    versions, machines = [], []
    for log in filter(Path.exists, logs):
        with log.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                versions += TORCH_LINE.findall(line)
                machines += MACHINE_LINE.findall(line)
    stats, bad_clips = _read(checkpoint, _reporter_stats)
    if not stats:  # it is from within the first one
        raise FileNotFoundError(f"{run_dir} has no finished epoch: train on")
    return History(
        path=run_dir,
        config=_read(
            config, lambda path: dict(yaml.safe_load(path.read_text("utf-8")))
        ),
        stats=stats,
        torch_version=versions[0] if versions else None,
        machines=tuple(dict.fromkeys(machines)),
        bad_clips=bad_clips,
        kept=tuple(note_kept(run_dir, ())),
    )


def _read(path: Path, reader: Callable[[Path], Any]) -> Any:
    try:
        return reader(path)
    except Exception as error:  # half a file or another's may raise anything
        raise ValueError(
            f"{path} is not a readable file of a training ({type(error).__name__}); "
            "train again or remove the run"
        ) from None


def _reporter_stats(checkpoint: Path) -> tuple[dict, dict]:
    """Return the epoch means of ESPnet's reporter, and what was skipped.

    Tensors stay on disk.
    """
    states = read_pickle(checkpoint)
    stats = states["reporter"]["stats"]
    for part in (part for epoch in stats.values() for part in epoch.values()):
        if isinstance(part["time"], dict):  # ESPnet >= 202607 stores seconds
            seconds = part["time"]["__timedelta_seconds__"]
            part["time"] = datetime.timedelta(seconds=seconds)
    return stats, states.get("bad_clips", {})
