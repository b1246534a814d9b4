"""Which trainings made a model, on what, and for how long: read from their records."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from espnet2_sslam.integrations.publish.records import (
    find,
    read_record,
    recorded,
    state_of,
    without_machine,
)
from espnet2_sslam.results import History, read_history
from espnet2_sslam.store import sha256

EPOCH_FILE = re.compile(r"(\d+)epoch\.pth")
DATA_OPTION = "train_data_path_and_name_and_type"
REPORT = Path("report") / "report.json"


class Data(NamedTuple):
    """The clips of a training; `report` is stage 3's report on their corpus."""

    split: str
    clips: int
    hours: float
    sha256: str
    report: dict[str, Any]


@dataclass(frozen=True)
class Training:
    """One training run, as far as its files tell.

    Args:
        run: Its folder.
        config: Its config.yaml.
        weights: The file of weights that was used of it.
        history: Epochs, updates and hours; None where the folder lacks them.
        data: None where the data are not there any more, or were changed.
    """

    run: Path
    config: dict[str, Any]
    weights: Path
    history: History | None
    data: Data | None

    @property
    def kind(self) -> str:
        """What this training is called."""
        model = self.config.get("model_conf") or {}
        if "class_list" in self.config:
            return "linear evaluation" if model.get("freeze_encoder") else "fine-tuning"
        return "phase 2" if model.get("mixture") else "phase 1"

    @property
    def epoch(self) -> int | None:
        """The epoch of the weights; None for an average, or where it is not known."""
        found = EPOCH_FILE.fullmatch(self.weights.resolve().name)
        return int(found[1]) if found else None

    @property
    def updates(self) -> int | None:
        """Optimizer updates up to the weights."""
        if self.history is None or not 1 <= (self.epoch or 0) <= self.history.epochs:
            return None
        return int(self.history.steps("train")[self.epoch - 1])

    @property
    def hours(self) -> float | None:
        """Wall hours of the training up to the weights, validation included."""
        if self.updates is None:
            return None
        parts = (p for e in range(1, self.epoch + 1) for p in self._stats(e))
        return sum(part["time"].total_seconds() for part in parts) / 3600

    def _stats(self, epoch: int) -> list[dict]:
        return list(self.history.stats.get(epoch, {}).values())


@dataclass
class Lineage:
    """The trainings behind a model, and what is not known of them.

    Args:
        trainings: The last one first.
        start: Origin of the weights that the first one started from, where these are
            not from a training of ours; see `checkpoint.model_config`.
        unknown: In words.
    """

    trainings: list[Training] = field(default_factory=list)
    start: dict[str, Any] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)


def read_config(folder: Path) -> dict[str, Any]:
    """A folder's config.yaml; empty without one."""
    path = folder / "config.yaml"
    if not path.is_file():
        return {}
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    return config if isinstance(config, dict) else {}


def is_training(config: dict[str, Any]) -> bool:
    """Whether a config.yaml is that of a training, not of weights from elsewhere."""
    return bool(config.get(DATA_OPTION))


def read_lineage(weights: Path) -> Lineage:
    """Follow a model's weights back through the trainings that they started from.

    Args:
        weights: A .pth file in the folder of a training of ours.
    """
    lineage, seen = Lineage(), set()
    while weights is not None and weights.resolve() not in seen:
        seen.add(weights.resolve())
        training = _read_training(weights, lineage)
        lineage.trainings.append(training)
        weights = _start_of(training, lineage)
    return lineage


def _read_training(weights: Path, lineage: Lineage) -> Training:
    """One training; notes what its folder lacks."""
    run = weights.parent
    config = read_config(run)
    name = f"{run.parent.name}/{run.name}"
    try:
        history = read_history(run)
    except (FileNotFoundError, ValueError):
        history = None
        lineage.unknown.append(f"how long {name} was trained")
    data = _read_data(run, config)
    if data is None:
        lineage.unknown.append(f"what {name} was trained on")
    return Training(run, config, weights, history, data)


def _start_of(training: Training, lineage: Lineage) -> Path | None:
    """The weights that a training started from, if they are those of a training."""
    for text in training.config.get("init_param") or []:
        name = text.split(":")[0]
        path = find(name, training.run)
        before = recorded(read_record(training.run)["inputs"], name)
        what = f"how the weights were made that {training.kind} started from"
        if path is None:
            lineage.unknown.append(f"{what} ({without_machine(name)} is not there)")
        elif before is not None and before != state_of(path):
            lineage.unknown.append(f"{what} ({without_machine(name)} has changed)")
        elif not is_training(read_config(path.parent)):
            lineage.unknown.append(what)
            origin = read_config(path.parent).get("origin")
            lineage.start = origin or {"file": path.name, "sha256": sha256(path)}
        else:
            return path
    return None


def _read_data(run: Path, config: dict[str, Any]) -> Data | None:
    """The training's clips, if the data report still speaks of the same."""
    lists = config.get(DATA_OPTION) or []
    path = find(lists[0][0], run) if lists else None
    if path is None:
        return None
    before = recorded(read_record(run)["inputs"], lists[0][0])
    if before is not None and before != state_of(path):
        return None
    for dump in list(path.resolve().parents)[1:5]:
        if (dump / REPORT).is_file():
            split = path.resolve().parent.relative_to(dump).as_posix()
            report = json.loads((dump / REPORT).read_text(encoding="utf-8"))
            found = report["splits"].get(split)
            if found is not None:
                content = found["content_sha256"]
                return Data(split, found["usable"], found["hours"], content, report)
    return None
