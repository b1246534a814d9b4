"""Tables, words and the plot of what evidence.py put on record."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from evidence_measures import contrast, gate, interval, mean_of, slope

from espnet2_sslam.store import replacing, write_text

NAMES = {
    "random": "random",
    "phase1": "phase 1",
    "phase1_more": "phase 1 continued (control)",
    "sslam": "SSLAM",
    "both": "unmixed and mixed, no retention",
    "mixed": "mixed only",
    "sslam_clip_regions": "SSLAM, regions per clip",
    "sslam_logsumexp": "SSLAM, logsumexp",
    "sslam_waveform": "SSLAM, mixed as waveforms",
}
Records = Mapping[tuple[str, int], dict]


def write_report(records: Records, plan: dict, design: dict, out: Path) -> None:
    """Write EVIDENCE.md and evidence.png below `out`."""
    import jinja2

    facts = collect(records, plan, design)
    folder = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=folder,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701  (Markdown)
    )
    template = environment.get_template("EVIDENCE.md.j2")
    if facts["contrasts"]:
        plot(facts, out / "evidence/evidence.png")
    write_text(out / "EVIDENCE.md", template.render(**facts))


def collect(records: Records, plan: dict, design: dict) -> dict:
    """All facts of the report."""
    degrees, analysis = design["corpus"]["degrees"], design["analysis"]
    arms, beyond = list(design["arms"]), list(design.get("beyond", {}))
    used = [
        model
        for model in ["random", "phase1", *arms, *beyond]
        if any(name == model for name, _ in records)
    ]
    seeds_of = {
        model: sorted(seed for name, seed in records if name == model) for model in used
    }
    of, against = analysis["primary"]["of"], analysis["primary"]["against"]
    primary = mean_of(analysis["primary"]["degrees"])
    resamples = analysis["resamples"]

    def compare(model, coefficients, probe="linear"):
        return contrast(records, model, against, coefficients, probe, resamples)

    by_probe = {
        probe: {
            "table": {
                model: _table_row(records, model, seeds_of[model], degrees, probe)
                for model in used
            },
            "primary": compare(of, primary, probe),
            "trend": compare(of, slope(degrees), probe),
            "contrasts": {
                model: {
                    **{
                        degree: compare(model, {degree: 1.0}, probe)
                        for degree in degrees
                    },
                    "primary": compare(model, primary, probe),
                }
                for model in used
                if model not in ("random", against)
                and set(seeds_of[model]) & set(seeds_of.get(against, []))
            },
        }
        for probe in ("linear", "attentive")
    }
    of_gate = _gate(records, seeds_of, analysis["gate"])
    passed = of_gate is not None and of_gate["passed"]
    return {
        "names": {model: NAMES.get(model, model) for model in used},
        "used": used,
        "seeds_of": seeds_of,
        "wanted": design["seeds"],
        "degrees": degrees,
        "primary_degrees": analysis["primary"]["degrees"],
        "of": of,
        "against": against,
        "gate": of_gate,
        "probes": by_probe,
        "contrasts": by_probe["linear"]["contrasts"],
        "verdict": _verdict(by_probe["linear"]["primary"], passed),
        "mechanism": _mechanism(records, seeds_of, of, against, resamples),
        "levels": [f"{level:g}" for level in plan["pair_snr"]],
        "counts": plan["counts"],
        "mixtures": {
            name: stop - start for name, (start, stop) in plan["groups"].items()
        },
        "phase1": design["phase1"],
        "phase2": design["phase2"],
        "batch_size": design["train_conf"]["batch_size"],
        "made": _made(records),
    }


def _table_row(records, model, seeds, degrees, probe) -> dict:
    """Mean and standard deviation over seeds of mAP in % by degree."""
    values = np.array(
        [
            [100 * records[model, s]["probes"][probe]["mAP"][str(k)] for k in degrees]
            for s in seeds
        ]
    )
    spread = values.std(0, ddof=1).tolist() if len(seeds) > 1 else [None] * len(degrees)
    return {
        k: (float(mean), std)
        for k, mean, std in zip(degrees, values.mean(0), spread, strict=True)
    }


def _gate(records, seeds_of, deviations) -> dict | None:
    """Whether phase 1 learnt something: single sounds, linear probe."""
    seeds = sorted(set(seeds_of.get("random", [])) & set(seeds_of.get("phase1", [])))
    if len(seeds) < 2:
        return None
    single = [
        np.array(
            [100 * records[model, s]["probes"]["linear"]["mAP"]["1"] for s in seeds]
        )
        for model in ("random", "phase1")
    ]
    gain, deviation = gate(*single)
    return {
        "gain": gain,
        "deviation": deviation,
        "needed": deviations,
        "passed": gain > deviations * deviation,
        "by_seed": dict(zip(seeds, zip(*single, strict=True), strict=True)),
    }


def _verdict(primary: dict | None, passed: bool) -> str | None:
    """What the interval says: "helps", "harms" or "open"; "void" without the gate."""
    if primary is None or len(primary["by_seed"]) < 3:
        return None
    if not passed:
        return "void"
    if primary["low"] > 0:
        return "helps"
    return "harms" if primary["high"] < 0 else "open"


def _mechanism(records, seeds_of, of, against, resamples) -> dict:
    """Means over seeds by measure, model and level, and the difference over seeds."""
    measures = {}
    for name in ("recall_weaker", "r2_louder", "r2_weaker"):
        rows = {}
        for model, seeds in seeds_of.items():
            parts = [records[model, s]["mechanism"][name] for s in seeds]
            rows[model] = {
                level: 100 * float(np.mean([part[level] for part in parts]))
                for level in parts[0]
            }
        both = sorted(set(seeds_of.get(of, [])) & set(seeds_of.get(against, [])))
        difference = None
        if len(both) > 1:
            values = np.array(
                [
                    100
                    * np.mean(
                        [
                            records[of, s]["mechanism"][name][level]
                            - records[against, s]["mechanism"][name][level]
                            for level in records[of, s]["mechanism"][name]
                        ]
                    )
                    for s in both
                ]
            )
            difference = interval(values, np.zeros((len(both), 0)), resamples)
        measures[name] = {"rows": rows, "difference": difference}
    return measures


def _made(records: Records) -> dict:
    """Dates, commits, machines and hours of the records."""
    values = records.values()
    phase1 = {r["weights"]: 0.0 for r in values if r["model"] != "random"}
    seconds = sum(r["seconds_training"] + r["seconds_measuring"] for r in values)
    return {
        "dates": sorted({r["date"][:10] for r in values}),
        "commits": sorted({r["commit"] for r in values}),
        "devices": sorted({r["device"] for r in values}),
        "machines": sorted({r["machine"] for r in values}),
        "versions": sorted({r["versions"] for r in values}),
        "hours": seconds / 3600,
        "records": len(records),
        "phase1": len(phase1),
    }


def plot(facts: dict, path: Path) -> None:
    """Draw each arm's difference to the control over the degree."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    probes = {"linear": "linear probe", "attentive": "attentive probe"}
    figure, axes = pyplot.subplots(
        1, len(probes), figsize=(10, 4), sharey=True, layout="constrained"
    )
    degrees = facts["degrees"]
    place = np.arange(len(degrees))
    for axis, (probe, title) in zip(axes, probes.items(), strict=True):
        rows = facts["probes"][probe]["contrasts"]
        for number, (model, row) in enumerate(rows.items()):
            parts = [row[degree] for degree in degrees]
            middle = np.array([part["estimate"] for part in parts])
            low = middle - [part["low"] for part in parts]
            high = [part["high"] for part in parts] - middle
            shift = 0.12 * (number - (len(rows) - 1) / 2)
            axis.errorbar(
                place + shift,
                middle,
                [low, high],
                label=facts["names"][model],
                marker="o",
                markersize=4,
                capsize=2,
                linewidth=1,
                color="black" if model == facts["of"] else f"C{number}",
                zorder=3 if model == facts["of"] else 2,
            )
        axis.axhline(0, color="grey", linewidth=1)
        axis.set_xticks(place, [str(degree) for degree in degrees])
        axis.set_xlabel("sounds in a mixture")
        axis.set_title(title)
    axes[0].set_ylabel("mAP minus the control's, points")
    axes[0].legend(fontsize=7)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
    pyplot.close(figure)
