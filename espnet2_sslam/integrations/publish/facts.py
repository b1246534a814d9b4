"""Everything that a model card says, gathered once; the unknown is None or listed."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from espnet2_sslam.integrations.publish.evaluation import (
    Score,
    experiment_of,
    over_folds,
    own_scores,
    read_metrics_files,
)
from espnet2_sslam.integrations.publish.lineage import Lineage, read_lineage
from espnet2_sslam.integrations.publish.seeds import (
    fold_names,
    has_table,
    read_made_with,
    read_table,
    seed_table,
)
from espnet2_sslam.integrations.publish.source import Source

CORPORA_FILE = Path(__file__).with_name("corpora.yaml")


@dataclass(frozen=True)
class Options:
    """What only the publisher knows.

    Args:
        name: The model's name in the card.
        license: Licence of the weights, in Hugging Face's word.
        data_license: Licence of the data, in words.
        datasets: Names of the data sets; by default what the records say.
        hf_repo: user/name where the model will be found.
        revision: Branch there.
        metrics: DATASET/SPLIT=metrics.json, see `read_metrics_files`.
        results: Experiments or runs with scores beside the model's own place.
    """

    name: str
    license: str | None = None
    data_license: str | None = None
    datasets: list[str] = field(default_factory=list)
    hf_repo: str | None = None
    revision: str | None = None
    metrics: list[str] = field(default_factory=list)
    results: list[Path] = field(default_factory=list)


@dataclass(frozen=True)
class Facts:
    """What is known about a model.

    Args:
        source: Model and origin of its weights.
        options: What the publisher says.
        lineage: The trainings behind it.
        scores: Of exactly these weights, averaged over folds.
        table: Markdown of the experiment with all its seeds, or nothing.
        made_with: Date, commit, machine and versions of the table.
        corpora: Entries of corpora.yaml that the trainings' data belong to, by name.
    """

    source: Source
    options: Options
    lineage: Lineage
    scores: list[Score]
    table: list[str]
    made_with: dict[str, str]
    corpora: dict[str, dict[str, Any]]

    @property
    def name(self) -> str:
        """The model's name."""
        return self.options.name

    @property
    def license(self) -> str | None:
        """Licence of the weights, None where nobody has said it."""
        return self.options.license

    @property
    def is_classifier(self) -> bool:
        """Whether the model has a head."""
        return self.source.is_classifier

    @property
    def hub(self) -> str | None:
        """user/name@commit that the weights were fetched from."""
        return self.source.hub

    @property
    def datasets(self) -> list[str]:
        """Names of the data sets of training, as far as they are known."""
        if self.options.datasets:
            return self.options.datasets
        return [entry["dataset"] for entry in self.corpora.values()] or self.set_names

    @property
    def set_names(self) -> list[str]:
        """The sets with labels of the data reports."""
        reports = [t.data.report for t in self.lineage.trainings if t.data]
        return sorted({name for report in reports for name in report["classes"]})


def gather(source: Source, options: Options) -> Facts:
    """Read the records around a model.

    Raises:
        ValueError: Scores that are asked for and are not of this model, or records that
            contradict each other.
    """
    student = source.run is not None
    lineage = read_lineage(source.weights) if student else Lineage()
    folders, experiments = _places(source, options.results)
    scores = own_scores(source, folders)
    read = {experiment: read_table(experiment) for experiment in experiments}
    folds = {k: v for found in read.values() for k, v in fold_names(found).items()}
    if not source.is_classifier:  # a classifier was trained for one of the folds
        scores = over_folds(scores, folds)
    table, made_with = [], {}
    for experiment, found in read.items():
        lines = seed_table(found, scores, folds)
        table += lines
        made_with = made_with or (read_made_with(experiment) if lines else {})
    scores += read_metrics_files(options.metrics, source)
    corpora = _corpora(lineage)
    return Facts(source, options, lineage, scores, table, made_with, corpora)


def _places(source: Source, results: list[Path]):
    """Folders with scores that the user names, and experiments with their tables."""
    folders = []
    for path in map(Path, results):
        if not path.exists():
            raise ValueError(f"--results {path}: there is no such file or folder")
        folders.append(path.parent if path.is_file() else path)
    home = experiment_of(source.run) if source.run else None
    places = [*folders, *([home] if home else [])]
    # The benchmarks of an experiment are experiments below it.
    tables = [t for p in places for t in [p, *p.glob("*")] if has_table(t)]
    return folders, list(dict.fromkeys(t.resolve() for t in tables))


def _corpora(lineage: Lineage) -> dict[str, dict[str, Any]]:
    """What is known of the corpora whose data reports the trainings have."""
    known = yaml.safe_load(CORPORA_FILE.read_text(encoding="utf-8"))
    reports = [t.data.report for t in lineage.trainings if t.data]
    notes = [note for report in reports for note in report["notes"]]
    sets = {name for report in reports for name in report["classes"]}
    return {
        name: entry
        for name, entry in known.items()
        if entry.get("set") in sets
        or any(note.startswith(entry.get("notes", "\n")) for note in notes)
    }
