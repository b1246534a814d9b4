"""What may make a score differ from the published ones: rows `what, ours, papers`.

What is only known of the papers is in paper.yaml; everything else is read from the runs
and from the data report.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import yaml

from espnet2_sslam.corpus import Downstream
from espnet2_sslam.results import paper
from espnet2_sslam.results.experiment import (
    Evaluation,
    Experiment,
    measures,
    select,
)
from espnet2_sslam.results.runs import NOT_SETTINGS, History

Row = tuple[str, str, str]  # what, ours, papers
# Options that a config leaves at these values unless it says otherwise.
DEFAULTS = {"accum_grad": 1, "patience": None, "freeze_param": [], "max_samples": None}


def differences(
    experiment: Experiment, evaluation: Evaluation, report: dict | None
) -> list[Row]:
    """Return the table of an evaluation, empty without published numbers.

    `report` is the data report, where there is one.
    """
    tag, data_set, line, metric, kind = evaluation
    if not paper.all_numbers(data_set, metric, kind):
        return []
    rows = [*_scores(experiment, evaluation)]
    if report is not None:
        rows += _clips(line, data_set, report)
    scored = select(experiment.scored, tag=tag, data_set=data_set)
    # Models with no published number have none to differ from.
    known = scored["word"].map(paper.published_model)
    known = known.isin([*paper.NAMES, *paper.VARIANTS])
    runs = scored[known].drop_duplicates("run").sort_values("run")
    models_by_row: dict[Row, dict[str, None]] = {}  # runs that are alike are one row
    for run in runs.itertuples():
        if history := experiment.finetuning.get(run.run):
            for row in _run(history, run.word, run.seed, data_set, kind):
                models_by_row.setdefault(row, {})[run.model] = None
    for (name, ours, papers), models in models_by_row.items():
        alike = set(models) == set(runs["model"])
        rows.append((name if alike else f"{name}, {', '.join(models)}", ours, papers))
    return rows


def _scores(experiment: Experiment, evaluation: Evaluation) -> Iterator[Row]:
    """Yield the last checkpoints of every comparable model, split by split."""
    tag, data_set, _, metric, kind = evaluation
    here = {"tag": tag, "data_set": data_set, "metric": metric}
    cells = select(experiment.summary, **here, checkpoint="last")
    keys = ["tag", "data_set", "split", "model", "metric"]
    cells = cells.merge(measures(experiment), on=keys)
    for cell in cells[cells["seeds"] > 0].itertuples():
        score, low, high = 100 * cell.mean, 100 * cell.low, 100 * cell.high
        facts = [f"95 % interval {low:.1f} to {high:.1f}"] if np.isfinite(low) else []
        spread = f"± {100 * cell.spread:.1f} over {cell.seeds} seeds"
        facts.append(spread if cell.seeds > 1 else "one seed")
        word = experiment.models[cell.model][0]
        for entry in paper.entries(data_set, metric, kind, word):
            published = [float(word) for word in str(entry["value"]).split("-")]
            lowest, highest = published[0], published[-1]
            apart = f"ours {score - np.clip(score, lowest, highest):+.1f}"
            if lowest <= round(score, 1) <= highest:
                apart = "the same"
            elif low <= highest and high >= lowest:
                apart += ", which is in the interval"
            yield (
                f"{metric} of {cell.model}, {cell.split}",
                f"{score:.1f} ({', '.join(facts)})",
                f"{entry['value']} ({entry['source']}): {apart}",
            )


def _clips(line: Downstream, data_set: str, report: dict) -> Iterator[Row]:
    """Yield how many clips were trained and tested on (of the first fold)."""
    known = paper.load()["clips"].get(data_set, {})
    names = [("training", line.train), *(("test", test) for test in line.tests)]
    for role, name in names:
        if split := report["splits"].get(name):
            missing, lost = split["missing"], sum(split["left_out"].values())
            text = str(split["usable"])
            if missing or lost:
                text += f" of {split['listed']} listed ({missing} missing, {lost} not "
                text += "usable)"
            yield f"{role} clips, {name}", text, str(known.get(role, "not known"))


def _run(
    history: History, model: str, seed: int, data_set: str, kind: str
) -> Iterator[Row]:
    """Yield encoder, weights, settings and learning curve of one run."""
    config = history.config
    sizes = config.get("encoder_conf") or {}
    blocks, channels = sizes.get("depth", 12), sizes.get("embed_dim", 768)
    yield "encoder", f"{blocks} blocks of {channels} channels", "12 of 768"
    if config.get("init_param"):
        folder = Path(config["init_param"][0].split(":")[0]).parent
        path = folder / "config.yaml"
        text = path.read_text(encoding="utf-8") if path.exists() else "{}"
        weights = re.sub(r"_seed\d+$", "", folder.name) + ", pre-trained here"
        if origin := yaml.safe_load(text).get("origin"):
            weights = origin.get("file", "unknown")
            if origin.get("sha256"):
                weights += f", SHA-256 {origin['sha256'][:10]}"
        yield "weights", weights, "pre-trained on AudioSet-2M"
    yield from _settings(config, f"{kind}_{data_set.split('_')[0]}.yaml")
    if not history.finished:
        text = f"{history.epochs} of {config['max_epoch']} trained"
        yield f"epochs, seed {seed}", text, "-"
    curve = paper.authors_curves().get((data_set, kind))
    if paper.published_model(model) == "phase2" and curve is not None:
        try:
            for measure, points in paper.compare_run(history, data_set, kind).items():
                name = f"curve of {measure}, seed {seed}"
                yield name, *paper.verdict(measure, points)
        except ValueError:
            updates = curve["mAP"]["updates"]
            text = f"updates {updates[0]} to {updates[-1]}"
            yield f"curve, seed {seed}", "no validation among the authors'", text


def _settings(config: dict, benchmark: str) -> Iterator[Row]:
    """Yield which YAML a run was trained with, and its options that differ from it.

    Only options that the YAML names are compared, and those of `DEFAULTS`.
    """
    path = Path(config.get("config") or "")
    if not path.is_file():
        text = f"{path.name or 'no config'}, not there to compare"
        yield "settings", text, benchmark
        return
    planned = yaml.safe_load(path.read_text(encoding="utf-8"))
    changed = []
    for name, value in {**DEFAULTS, **planned}.items():
        if NOT_SETTINGS.fullmatch(name) or name == "use_amp":  # told below
            continue
        options = [(name, value, config.get(name, value))]
        if isinstance(value, dict):
            used = config.get(name) or {}
            options = [(f"{name}.{k}", v, used.get(k)) for k, v in value.items()]
        changed += [
            (f"option {option}", f"{now} ({path.name}: {before})", "-")
            for option, before, now in options
            if before != now
        ]
    text = f"{path.name}, {'changed' if changed else 'unchanged'}"
    yield "settings", text, benchmark
    yield from changed
    device = f"{config['ngpu']} GPU" if config.get("ngpu") else "CPU"
    # Unless its kind was given, mixed precision has no effect on a CPU.
    kind = config.get("amp_dtype")
    mixed = config.get("use_amp") and (kind or device != "CPU")
    precision = f"{kind or ''} mixed precision".strip() if mixed else "float32"
    precision += ", products in TF32" if config.get("use_tf32") else ""
    yield "trained on", f"{device}, {precision}", "1 GPU, float16"
