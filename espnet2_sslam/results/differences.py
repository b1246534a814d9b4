"""What may make a score differ from the published ones: rows `what, ours, papers`.

What is only known of the papers is in paper.yaml; everything else is read from the runs
and from the data report.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import yaml

from espnet2_sslam.corpus import Downstream, warnings
from espnet2_sslam.results import curves, paper
from espnet2_sslam.results.runs import RUN_KEYS, Experiment, History, select
from espnet2_sslam.results.scoring import main_metric

Row = tuple[str, str, str]  # what, ours, papers
# Options that a config leaves at these values unless it says otherwise.
DEFAULTS = {"accum_grad": 1, "patience": None, "freeze_param": [], "max_samples": None}


def differences(
    experiment: Experiment,
    tag: str,
    data_set: str,
    line: Downstream,
    report: dict | None,
) -> list[Row]:
    """Return the table of a tag and data set, empty without published numbers.

    Args:
        experiment: All runs.
        tag, data_set, line: An item of `experiment.evaluations`.
        report: The data report, where there is one.
    """
    kind, metric = experiment.kind(tag), main_metric(line.task)
    if not paper.all_numbers(data_set, metric, kind):
        return []
    rows = [*_scores(experiment, tag, data_set, metric)]
    if report is not None:
        rows += _clips(experiment.downstream, data_set, report)
    scored = select(experiment.scored, tag=tag, data_set=data_set)
    # Models with no published number have none to differ from.
    known = scored["model"].map(paper.published_model).isin(list(paper.NAMES))
    runs = scored[known].drop_duplicates("run").sort_values("run")
    models_by_row: dict[Row, dict[str, None]] = {}  # runs that are alike are one row
    for run in runs.itertuples():
        if history := experiment.finetuning.get(run.run):
            phase = paper.published_model(run.model)
            for row in _run(history, phase, run.seed, data_set, kind):
                models_by_row.setdefault(row, {})[run.model] = None
    for row, models in models_by_row.items():
        alike = set(models) == set(runs["model"])
        what = row[0] if alike else f"{row[0]}, {', '.join(models)}"
        rows.append((what, *row[1:]))
    return rows


def _scores(
    experiment: Experiment, tag: str, data_set: str, metric: str
) -> Iterator[Row]:
    """Yield the last checkpoints of every comparable model, split by split."""
    here = {"tag": tag, "data_set": data_set, "checkpoint": "last"}
    cells = select(experiment.summary, **here, metric=metric)
    folds = select(experiment.scores, **here)["fold"].nunique()
    for cell in cells[cells["mean"].notna()].itertuples():
        entries = paper.entries(data_set, metric, experiment.kind(tag), cell.model)
        score, seeds = 100 * cell.mean, len(cell.values)
        text = f"{score:.1f} ("
        runs = select(experiment.scored, **here, model=cell.model, split=cell.split)
        low, high = 100 * runs[["low", "high"]].mean(skipna=False)
        if folds > 1:  # each has test clips of its own
            low = high = np.nan
        if np.isfinite(low):
            text += f"95 % interval {low:.1f} to {high:.1f}, "
        text += f"± {100 * cell.spread:.1f} over {seeds} seeds" if seeds > 1 else ""
        text += ")" if seeds > 1 else "one seed)"
        for entry in entries:
            lowest, highest = paper.bounds(entry)
            gap = score - np.clip(score, lowest, highest)
            if lowest <= round(score, 1) <= highest:
                apart = "the same"
            else:
                apart = f"ours {gap:+.1f}"
                if low <= highest and high >= lowest:
                    apart += ", which is in the interval"
            what = f"{metric} of {cell.model}, {cell.split}"
            yield what, text, f"{entry['value']} ({entry['source']}): {apart}"


def _clips(downstream: list[Downstream], data_set: str, report: dict) -> Iterator[Row]:
    """Yield how many clips were trained and tested on, and what the report warns of."""
    lines = [line for line in downstream if line.name.partition("/")[0] == data_set]
    splits = {
        "training": {line.train for line in lines},
        "test": {test for line in lines for test in line.tests},
    }
    for role, names in splits.items():
        known = paper.clips(data_set, role)
        names_by_text: dict[str, list[str]] = {}  # folds that are alike are one row
        for name in sorted(names & set(report["splits"])):
            split = report["splits"][name]
            missing, lost = split["missing"], sum(split["left_out"].values())
            text = str(split["usable"])
            if missing or lost:
                text += f" of {split['listed']} listed ({missing} missing, {lost} not "
                text += "usable)"
            names_by_text.setdefault(text, []).append(name)
        for text, alike in names_by_text.items():
            what = ", ".join(alike)
            if len(alike) > 2:
                what = f"{alike[0]} to {alike[-1]} ({len(alike)})"
            papers = "not known" if known is None else str(known)
            yield f"{role} clips, {what}", text, papers
    for text in warnings(report):
        if any(name in text for names in splits.values() for name in names):
            yield "data report", text, "-"


def _run(
    history: History, model: str, seed: int, data_set: str, kind: str
) -> Iterator[Row]:
    """Yield encoder, settings and learning curve of one run."""
    config = history.config
    sizes = config.get("encoder_conf") or {}
    blocks, channels = sizes.get("depth", 12), sizes.get("embed_dim", 768)
    yield "encoder", f"{blocks} blocks of {channels} channels", "12 of 768"
    if config.get("init_param"):
        folder = Path(config["init_param"][0].split(":")[0]).parent
        yield "weights", _origin(folder), "pre-trained on AudioSet-2M"
    yield from _settings(config, data_set, kind)
    if not history.finished:
        text = f"{history.epochs} of {config['max_epoch']} trained"
        yield f"epochs, seed {seed}", text, "-"
    curve = paper.authors_curves().get((data_set, kind))
    if model == "phase2" and curve is not None:
        try:
            for comparison in curves.compare_run(history, curve):
                what = f"curve of {comparison.measure}, seed {seed}"
                yield what, *curves.verdict(comparison)
        except ValueError:
            updates = curve["mAP"]["updates"]
            text = f"updates {updates[0]} to {updates[-1]}"
            yield f"curve, seed {seed}", "no validation among the authors'", text


def _origin(folder: Path) -> str:
    """Return where the weights in a folder come from, as its config.yaml has it."""
    path = folder / "config.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
    origin = config.get("origin")
    if origin:
        code = f", SHA-256 {origin['sha256'][:10]}" if origin.get("sha256") else ""
        return f"{origin.get('file', 'unknown')}{code}"
    return re.sub(r"_seed\d+$", "", folder.name) + ", pre-trained here"


def _settings(config: dict, data_set: str, kind: str) -> Iterator[Row]:
    """Yield which YAML a run was trained with, and its options that differ from it."""
    path = Path(config.get("config") or "")
    benchmark = f"{kind}_{data_set.split('_')[0]}.yaml"
    text = path.name or "no config"
    if not path.is_file():
        yield "settings", f"{text}, not there to compare", benchmark
        return
    changed = list(_changed_options(path, config))
    yield "settings", f"{text}, {'changed' if changed else 'unchanged'}", benchmark
    for name, before, now in changed:
        yield f"option {name}", f"{now} ({path.name}: {before})", "-"
    device = f"{config['ngpu']} GPU" if config.get("ngpu") else "CPU"
    # Mixed precision has no effect on a CPU.
    mixed = config.get("use_amp") and device != "CPU"
    precision = "mixed precision" if mixed else "float32"
    yield "trained on", f"{device}, {precision}", "1 GPU, float16"


def _changed_options(path: Path, used: dict) -> Iterator[tuple[str, object, object]]:
    """Yield name, planned and used value of every option that differs from a YAML.

    Only options that the YAML names are compared, and those of `DEFAULTS`.
    """
    planned = yaml.safe_load(path.read_text(encoding="utf-8"))
    for name, value in {**DEFAULTS, **planned}.items():
        if RUN_KEYS.fullmatch(name) or name == "use_amp":  # of no matter, or told above
            continue
        if isinstance(value, dict):
            inside = used.get(name) or {}
            pairs = [(f"{name}.{k}", v, inside.get(k)) for k, v in value.items()]
        else:
            pairs = [(name, value, used.get(name, value))]
        for option, before, now in pairs:
            if _plain(before) != _plain(now):
                yield option, _plain(before), _plain(now)


def _plain(value: object) -> object:
    """Return tuples as lists and whole numbers as such, so that equal is equal."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
