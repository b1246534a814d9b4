"""What may make a score differ from the published ones, as the records have it.

For every table with published numbers: how far the scores are apart, and what differs
in data, encoder, settings and learning curve. What is only known of the papers is in
paper.yaml; everything else is read from the runs and from the data report.
"""

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import yaml

from espnet2_sslam.corpus import warnings
from espnet2_sslam.results import curves, paper
from espnet2_sslam.results.data import read_data_report
from espnet2_sslam.results.history import RUN_KEYS, History
from espnet2_sslam.results.record import Record
from espnet2_sslam.results.runs import Key, data_set_and_fold
from espnet2_sslam.results.summary import Cell, models_present, summarise
from espnet2_sslam.results.tables import main_metric

INTRODUCTION = (
    "Each score against the published numbers, and what differs from how they were "
    "made. A difference within the 95 % interval may be chance in the choice of the "
    "test clips."
)
# Options that a config leaves at these values unless it says otherwise.
DEFAULTS = {"accum_grad": 1, "patience": None, "freeze_param": [], "max_samples": None}


def difference_sections(record: Record) -> list[str]:
    """Return a heading and a list for each tag and data set with published numbers."""
    report = read_data_report(record.dump)
    parts = []
    for tag in record.tags:
        for data_set, line in record.data_sets.items():
            metric = main_metric(line.task)
            if not paper.all_numbers(data_set, metric, record.kind(tag)):
                continue
            lines = [
                *_score_lines(record, tag, data_set, metric),
                *_clip_lines(record, data_set, report),
                *_run_lines(record, tag, data_set),
                *paper.notes(data_set, record.kind(tag)),
            ]
            parts += [f"### {data_set}: {tag}", "\n".join(f"- {x}" for x in lines)]
    if parts:
        parts = ["## What differs from the papers", INTRODUCTION, *parts]
    return parts


def _score_lines(record: Record, tag: str, data_set: str, metric: str) -> list[str]:
    """Compare the last checkpoints of every comparable model, split by split."""
    lines = []
    for model in models_present(record.scores, tag):
        for test in record.data_sets[data_set].tests:
            split = Path(test).name
            where = (tag, model, data_set, split, "last")
            cell = summarise(record.scores, *where, metric)
            found = paper.entries(data_set, metric, record.kind(tag), model)
            if found and cell.values:
                bounds = _interval(record, where, metric)
                apart = "; ".join(_apart(cell, bounds, entry) for entry in found)
                lines.append(f"{model}, {split}, {_describe(cell, bounds)}: {apart}")
    return lines


def _interval(record: Record, where: tuple, metric: str) -> tuple | None:
    """Return the mean bounds of the bootstrap over test clips; None for folds."""
    tag, model, data_set, split, checkpoint = where
    found = [
        metrics.get("intervals", {}).get(metric)
        for key, metrics in record.scores.found.items()
        if (key.tag, key.model, key.data_set, key.split) == where[:4]
        and (key.checkpoint, key.fold) == (checkpoint, "")
    ]
    if not found or None in found:
        return None
    return tuple(np.mean(found, axis=0))


def _describe(cell: Cell, bounds: tuple | None) -> str:
    """Return a score in percent with what is known about its chance."""
    text = f"{100 * cell.mean:.1f}"
    extra = []
    if bounds:
        extra.append(f"95 % interval {100 * bounds[0]:.1f} to {100 * bounds[1]:.1f}")
    if cell.spread is None:
        extra.append("one seed")
    else:
        extra.append(f"± {100 * cell.spread:.1f} over {len(cell.values)} seeds")
    return f"{text} ({', '.join(extra)})"


def _apart(cell: Cell, bounds: tuple | None, entry: dict) -> str:
    """Say how far the score is from one published number or range."""
    low, high = paper.bounds(entry)
    ours, name = 100 * cell.mean, f"{entry['value']} ({entry['source']})"
    if low <= round(ours, 1) <= high:
        return f"as {name}"
    gap = low - ours if ours < low else ours - high
    text = f"{gap:.1f} {'below' if ours < low else 'above'} {name}"
    if bounds and 100 * bounds[0] <= high and 100 * bounds[1] >= low:
        text += ", which is in the interval"
    return text


def _clip_lines(record: Record, data_set: str, report: dict | None) -> list[str]:
    """Say how many clips were trained and tested on, and what the data report found."""
    if report is None:
        return ["there is no data report (stage 3): the clips are not compared"]
    names: dict[str, set[str]] = {"training": set(), "test": set()}
    for run in record.scores.downstream:
        if data_set_and_fold(run.name)[0] == data_set:
            names["training"].add(run.train)
            names["test"].update(run.tests)
    counted: dict[str, list[str]] = {}  # splits by what is to say of them
    for what, splits in names.items():
        for name in sorted(splits & set(report["splits"])):
            text = _clips(what, report["splits"][name], data_set)
            counted.setdefault(text, []).append(name)
    found = [
        f"data report: {text}"
        for text in warnings(report)
        if any(name in text for splits in names.values() for name in splits)
    ]
    return [f"{_shorten(of)}: {text}" for text, of in counted.items()] + found


def _shorten(names: list[str]) -> str:
    """Return a few names, or the first and last of many."""
    if len(names) < 3:
        return ", ".join(names)
    return f"{names[0]} to {names[-1]} ({len(names)})"


def _clips(what: str, split: dict, data_set: str) -> str:
    """Say how many clips of a split were used, and how many the papers used."""
    lost = sum(split["left_out"].values())
    missing = split["missing"]
    text = f"{split['usable']} {what} clips"
    if missing or lost:
        text += f" of {split['listed']} listed ({missing} missing, {lost} not usable)"
    known = paper.clips(data_set, what)
    if known is None:
        return text + "; how many the papers have is not known"
    if known == split["usable"]:
        return text + ", as the papers"
    return text + f"; the papers have {known}"


def _run_lines(record: Record, tag: str, data_set: str) -> list[str]:
    """Say what differs in encoder, settings and curve, alike runs in one line."""
    runs = {
        run: key
        for key, run in record.scores.run_dirs.items()
        if (key.tag, key.data_set) == (tag, data_set)
        and paper.row(key.model) in paper.NAMES  # others have no number to differ from
    }
    lines: dict[str, dict[str, None]] = {}  # text: models
    for path, key in sorted(runs.items()):
        if path in record.finetuning:
            for text in _history_lines(record.finetuning[path], key, record.kind(tag)):
                lines.setdefault(text, {})[key.model] = None
    models = {key.model for key in runs.values()}
    return [
        text if set(of) == models else f"{', '.join(of)}: {text}"
        for text, of in lines.items()
    ]


def _history_lines(history: History, key: Key, kind: str) -> Iterable[str]:
    """Yield what differs between one run and the papers'."""
    yield encoder(history.config)
    yield from settings(history.config, key.data_set, kind)
    if not history.finished:
        yield (
            f"seed {key.seed}: {history.epochs} of {history.config['max_epoch']} "
            "epochs trained"
        )
    if paper.row(key.model) == "phase2":
        yield from _curve_lines(history, key, kind)


def encoder(config: dict) -> str:
    """Say how large the encoder is and where its weights come from."""
    conf = config.get("encoder_conf") or {}
    size = conf.get("depth", 12), conf.get("embed_dim", 768)
    text = f"encoder: {size[0]} blocks of {size[1]} channels"
    text += ", as the papers'" if size == (12, 768) else " (the papers': 12 of 768)"
    if config.get("init_param"):
        folder = Path(config["init_param"][0].split(":")[0]).parent
        text += f"; weights: {_origin(folder)}"
    return text


def _origin(folder: Path) -> str:
    """Return where the weights in a folder come from, as its config.yaml has it."""
    path = folder / "config.yaml"
    record = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
    origin = record.get("origin")
    if origin:
        code = f", SHA-256 {origin['sha256'][:10]}" if origin.get("sha256") else ""
        return f"{origin.get('file', 'unknown')}{code}"
    name = re.sub(r"_seed\d+$", "", folder.name)
    return f"{name}, pre-trained here (the papers': on AudioSet-2M)"


def settings(config: dict, data_set: str, kind: str) -> list[str]:
    """Say where a run's options differ from its YAML, and which YAML that is."""
    path = Path(config.get("config") or "")
    wanted = f"{kind}_{data_set.split('_')[0]}"
    lines = []
    if path.stem != wanted:
        lines.append(
            f"settings: {path.name or 'no config'}, not the benchmark's {wanted}.yaml: "
            "the scores stand side by side for orientation"
        )
    if not path.is_file():
        return [*lines, f"settings: {path.name or 'a config'} is not there to compare"]
    planned = yaml.safe_load(path.read_text(encoding="utf-8"))
    changed = changed_options(planned, config)
    if changed:
        lines.append(f"options other than in {path.name}: {', '.join(changed)}")
    elif not lines:
        lines.append(f"settings: {path.name}, unchanged")
    device = f"{config['ngpu']} GPU" if config.get("ngpu") else "CPU"
    precision = "mixed precision" if config.get("use_amp") else "float32"
    if device == "CPU":
        precision = "float32"  # mixed precision has no effect there
    return [*lines, f"trained on {device} in {precision}; the papers: 1 GPU, float16"]


def changed_options(planned: dict, used: dict) -> list[str]:
    """Return `name value (config: value)` of every option that differs.

    Only options that the config names are compared, and those of `DEFAULTS`.
    """
    changed = []
    for name, value in {**DEFAULTS, **planned}.items():
        if (
            RUN_KEYS.fullmatch(name) or name == "use_amp"
        ):  # no matter, or told elsewhere
            continue
        if isinstance(value, dict):
            inside = used.get(name) or {}
            pairs = [(f"{name}.{k}", v, inside.get(k)) for k, v in value.items()]
        else:
            pairs = [(name, value, used.get(name, value))]
        changed += [
            f"{what} {_plain(now)} (config: {_plain(before)})"
            for what, before, now in pairs
            if _plain(before) != _plain(now)
        ]
    return changed


def _plain(value):
    """Return tuples as lists and whole numbers as such, so that equal is equal."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _curve_lines(history: History, key: Key, kind: str) -> Iterable[str]:
    """Yield where the learning curve leaves the authors' band."""
    curve = paper.authors_curves().get((key.data_set, kind))
    if curve is None:
        return
    try:
        found = curves.compare_run(history, curve)
    except ValueError:
        yield (
            f"seed {key.seed}: no validation among the updates of the authors' curve "
            f"({curve['mAP']['updates'][0]} to {curve['mAP']['updates'][-1]})"
        )
        return
    for comparison in found:
        text = curves.verdict(comparison)
        yield f"seed {key.seed}, against the authors' curve: {text}"
