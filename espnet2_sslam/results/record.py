"""All runs of an experiment in one place, with what is missing from it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from espnet2_sslam.corpus import Downstream, read_label_names
from espnet2_sslam.results.history import History, read_history
from espnet2_sslam.results.runs import (
    MODELS,
    Scores,
    collect_scores,
    data_set_and_fold,
    find_pretraining,
)
from espnet2_sslam.results.summary import Cell, models_present, per_class


class Split(NamedTuple):
    """What one table column or plot shows."""

    tag: str
    data_set: str
    split: str
    checkpoint: str


@dataclass
class Record:
    """All that goes into RESULTS.md.

    `pretraining` holds the runs by (phase, tag, seed), in order; `finetuning` by their
    directory; `unfinished` says in words which runs have not reached their last epoch.
    """

    scores: Scores
    dump: Path
    pretraining: dict[tuple[str, str, int], History] = field(default_factory=dict)
    finetuning: dict[Path, History] = field(default_factory=dict)
    unfinished: list[str] = field(default_factory=list)

    @property
    def tags(self) -> list[str]:
        """The fine-tuning tags with scores or missing scores."""
        keys = [*self.scores.found, *self.scores.missing]
        return sorted({key.tag for key in keys})

    @property
    def data_sets(self) -> dict[str, Downstream]:
        """{data set: the first of its lines}."""
        found: dict[str, Downstream] = {}
        for line in self.scores.downstream:
            found.setdefault(data_set_and_fold(line.name)[0], line)
        return found

    def label_names(self, data_set: str) -> dict[str, str]:
        """Names to show of a data set's labels, of those that have one."""
        class_list = self.dump / self.data_sets[data_set].class_list
        return read_label_names(class_list.parent)

    def per_class(self, split: Split) -> dict[str, dict[str, Cell]]:
        """{model: {class: AP over folds and seeds}} of a split."""
        return {
            model: per_class(
                *(self.scores, split.tag, model),
                *(split.data_set, split.split, split.checkpoint),
            )
            for model in models_present(self.scores, split.tag)
        }

    @property
    def splits(self) -> list[Split]:
        """All that was scored, in the order of downstream.txt."""
        splits = (
            Split(k.tag, k.data_set, k.split, k.checkpoint) for k in self.scores.found
        )
        return sorted(dict.fromkeys(splits), key=lambda split: split.tag)

    def kind(self, tag: str) -> str:
        """Return `probe` (our own), `linear` (frozen encoder) or `finetune`."""
        for path, run in self.finetuning.items():
            if path.parent.parent.name == tag:
                if Path(run.config.get("config") or "").name.startswith("probe"):
                    return "probe"
                conf = run.config.get("model_conf") or {}
                return "linear" if conf.get("freeze_encoder") else "finetune"
        return "linear" if tag.startswith("linear") else "finetune"


def collect(
    expdir: Path,
    dump: Path,
    *,
    seeds: list[int] | None = None,
    models: tuple[str, ...] = MODELS,
    tags: list[str] | None = None,
    pretrain_from: Path | None = None,
) -> Record:
    """Read all runs; missing and unfinished ones are listed in the record.

    Args:
        expdir, dump: Experiment and formatted data directories.
        seeds, models, tags: What should be there; by default what is.
        pretrain_from: Experiment with the pre-trainings, `expdir` by default.

    Raises:
        ValueError: when nothing was scored, or scores do not belong to their labels.
    """
    scores = collect_scores(expdir, dump, seeds=seeds, models=models, tags=tags)
    if scores.downstream and not scores.found:
        raise ValueError(f"no scored run in {expdir}; run stages 6 and 7 first")
    record = Record(scores, Path(dump))
    for phase, tag, seed, path in find_pretraining(pretrain_from or expdir):
        if seeds is None or seed in seeds:
            if history := _read_or_note(path, record.unfinished):
                record.pretraining[phase, tag, seed] = history
    for path in sorted(set(scores.run_dirs.values())):
        if history := _read_or_note(path, record.unfinished):
            record.finetuning[path] = history
    return record


def _read_or_note(path: Path, unfinished: list[str]) -> History | None:
    """Read a run's history; note why when there is none or it is not complete."""
    try:
        history = read_history(path)
    except FileNotFoundError as error:
        unfinished.append(str(error))
        return None
    if not history.finished:
        unfinished.append(
            f"{path}: {history.epochs} of {history.config['max_epoch']} epochs trained"
        )
    return history
