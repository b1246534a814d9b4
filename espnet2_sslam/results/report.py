"""RESULTS.md: everything that finished runs say, with what made them."""

import json
from pathlib import Path

from espnet2_sslam.corpus import warnings
from espnet2_sslam.results import paper
from espnet2_sslam.results.differences import differences
from espnet2_sslam.results.runs import Experiment, History
from espnet2_sslam.results.tables import (
    all_series,
    comparisons,
    measures,
    render,
    score_table,
    write_tables,
)
from espnet2_sslam.store import sha256


def write_all(experiment: Experiment, output: Path) -> None:
    """Write RESULTS.md, and CSV files and plots into a folder beside it.

    Raises:
        ValueError: An output without a suffix, which would be the folder's name.
    """
    from espnet2_sslam.results.plots import draw_figures  # matplotlib

    output = Path(output)
    folder = output.with_name(output.stem.lower())
    if folder == output:
        raise ValueError(f"--output {output} needs a suffix, such as {output}.md")
    write_tables(experiment, folder)
    figures = draw_figures(experiment, folder)
    path = experiment.dump / "report" / "report.json"
    report = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    sections = []
    for evaluation in experiment.evaluations:
        tag, data_set, line, metric, kind = evaluation
        valid = Path(line.valid).name
        sections.append(
            {
                "tag": tag,
                "data_set": data_set,
                "metric": metric,
                "table": score_table(experiment, evaluation),
                "only_test": list(line.tests) == [line.valid],
                "chosen_on": valid if line.valid in line.tests else "",
                "published": paper.all_numbers(data_set, metric, kind),
                "differences": differences(experiment, evaluation, report),
                "notes": paper.notes(data_set, kind),
            }
        )
    missing: dict[str, list[str]] = {}
    for row in experiment.missing.itertuples():
        fold = f"/{row.fold}" if row.fold else ""
        run = f"{row.tag}/{row.model}_seed{row.seed}, {row.data_set}{fold}"
        missing.setdefault(run, []).append(f"{row.split} {row.checkpoint}")
    render(
        "RESULTS.md.j2",
        output,
        folder=folder.name,
        pretraining_hours=sum(run.hours for run in experiment.pretraining.values()),
        downstream_hours=sum(run.hours for run in experiment.finetuning.values()),
        comparisons=comparisons(experiment),
        sections=sections,
        sources=paper.sources([section["published"] for section in sections]),
        series=list(all_series(experiment)),
        measures=measures(experiment),
        missing=missing,
        unfinished=experiment.unfinished,
        pretraining=_pretraining(experiment),
        downstream=_downstream(experiment),
        report=report,
        report_hash=sha256(path)[:10] if report else "",
        data_table=_data(report) if report else [],
        warnings=warnings(report) if report else [],
        figures=[(caption, path.name) for caption, path in figures],
    )


def _pretraining(experiment: Experiment) -> list[dict]:
    """Return settings, time and final validation values of each pre-training."""

    def last(run: History, name: str) -> str:
        values = run.epoch_curve("valid", name)[1]
        return f"{values[-1]:.4f}" if len(values) else "-"

    return [
        {
            "phase": phase,
            "tag": tag,
            "seed": seed,
            "epochs": run.epochs,
            "updates": run.updates,
            "hours": f"{run.hours:.3f}",
            "settings": run.settings_hash,
            "torch": run.torch_version or "-",
            "espnet": run.config.get("version", "-"),
            "machine": "; ".join(run.machines) or "-",
            "validation loss": last(run, "loss"),
            "target spread": last(run, "target_var"),
        }
        for (phase, tag, seed), run in experiment.pretraining.items()
    ]


def _downstream(experiment: Experiment) -> list[dict]:
    """Return settings and time of the downstream runs, per model."""
    groups: dict[tuple[str, str], list[History]] = {}
    for path, run in experiment.finetuning.items():
        model = path.parent.name.partition("_seed")[0]
        groups.setdefault((path.parent.parent.name, model), []).append(run)
    return [
        {
            "tag": tag,
            "model": model,
            "runs": len(runs),
            "updates": ", ".join(map(str, sorted({run.updates for run in runs}))),
            "hours": f"{sum(run.hours for run in runs):.3f}",
            "settings": ", ".join(sorted({run.settings_hash for run in runs})),
            "machine": "; ".join(dict.fromkeys(m for run in runs for m in run.machines))
            or "-",
        }
        for (tag, model), runs in sorted(groups.items())
    ]


def _data(report: dict) -> list[dict]:
    """Return clips and hashes of all splits, as the data report has them."""
    return [
        {
            "split": name,
            "clips": split["usable"],
            "listed": split["listed"],
            "missing": split["missing"],
            "left out": sum(split["left_out"].values()),
            "expected": (split["compared"]["expected"] or {}).get("clips", "-"),
            "hours": f"{split['hours']:.3f}",
            "classes": len(split.get("label_counts", {})) or "-",
            "without a positive": len(split.get("classes_without_positives", [])),
            "hash": split["content_sha256"][:10],
        }
        for name, split in sorted(report["splits"].items())
    ]
