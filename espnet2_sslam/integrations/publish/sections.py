"""The sections of a model card that tell what the records tell, or that they do not."""

from typing import Any

from espnet2_sslam.integrations.publish.evaluation import METRICS, Score
from espnet2_sslam.integrations.publish.facts import Facts
from espnet2_sslam.integrations.publish.lineage import Training
from espnet2_sslam.integrations.publish.records import without_machine
from espnet2_sslam.results import markdown

UNKNOWN = "unknown"
BASE_BLOCKS, BASE_CHANNELS = 12, 768  # ViT-Base, the paper's encoder
PAPER_DATA = "AudioSet-2M"
LAYOUTS = {
    "espnet": "a training of espnet2_sslam",
    "fairseq": "a checkpoint in the layout of the authors of EAT and SSLAM (.pt)",
    "huggingface": "an export in the layout of the authors of EAT and SSLAM",
    "espnet2_sslam": "a folder of espnet2_sslam that does not say where it is from",
}


def training(facts: Facts) -> list[str]:
    """The trainings behind the model, the first one first, and their data."""
    if not facts.lineage.trainings:
        return ["Unknown: the weights came without the records of a training."]
    header = ["training", "data", "clips", "hours of audio", "updates", "wall hours"]
    header += ["seed", "settings", "torch", "ESPnet"]
    rows = [_training_row(t) for t in reversed(facts.lineage.trainings)]
    parts = [
        markdown(header, rows),
        "Each training starts from the one above it. `settings` is a hash of all "
        "options but seed, paths and machine; the options themselves are in "
        "`config*.yaml`. A training does not record its hardware.",
    ]
    splits: dict[str, str] = {
        t.data.split: t.data.sha256 for t in facts.lineage.trainings if t.data
    }
    lines = [f"- {entry['what']}" for entry in facts.corpora.values()]
    notes = [
        n for t in facts.lineage.trainings if t.data for n in t.data.report["notes"]
    ]
    lines += [f"- {without_machine(note)}" for note in dict.fromkeys(notes)]
    lines += [
        f"- `{split}`: SHA-256 of ids, samples and labels `{content}`"
        for split, content in splits.items()
    ]
    if lines:
        parts += ["Data:", "\n".join(lines)]
    if facts.lineage.start:
        start = facts.lineage.start
        parts.append(
            f"The first of them started from `{start.get('file', UNKNOWN)}` "
            f"({LAYOUTS.get(start.get('layout'), 'weights from elsewhere')}; SHA-256 "
            f"`{start.get('sha256', UNKNOWN)}`)."
        )
    if facts.lineage.unknown:
        parts.append("Unknown: " + "; ".join(facts.lineage.unknown) + ".")
    return parts


def _training_row(one: Training) -> list[str]:
    """A line of the table of trainings."""
    known = one.data is not None
    history = one.history
    updates = f"{one.updates} (epoch {one.epoch})" if one.updates else UNKNOWN
    return [
        one.kind,
        one.data.split if known else UNKNOWN,
        str(one.data.clips) if known else UNKNOWN,
        f"{one.data.hours:.3f}" if known else UNKNOWN,
        updates,
        f"{one.hours:.3f}" if one.hours is not None else UNKNOWN,
        str(one.config.get("seed", UNKNOWN)),
        history.settings_hash if history else UNKNOWN,
        (history and history.torch_version) or UNKNOWN,
        str(one.config.get("version", UNKNOWN)),
    ]


def results(facts: Facts) -> list[str]:
    """Scores of these weights, and the experiment that they are from."""
    if not facts.scores:
        return ["No scores of these weights are recorded."]
    intervals = any(score.metrics.get("intervals") for score in facts.scores)
    more = "; in brackets the 95 % interval over the test clips" if intervals else ""
    parts = [
        f"Of exactly these weights (one seed), in %{more}:",
        markdown(
            ["data set", "test split", "clips", *METRICS, "how"],
            [_score_row(score) for score in facts.scores],
        ),
    ]
    if any(score.on_test for score in facts.scores):
        parts.append(
            "There is no validation split: the checkpoint `best` was chosen on the "
            "test clips, so its scores are optimistic (and not in the metadata)."
        )
    if facts.table:
        parts += [
            "The experiment that the model is from: mean ± standard deviation over the "
            "seeds (of folds the mean first); `random` is the same encoder untrained.",
            *facts.table,
        ]
    if facts.made_with:
        words = ", ".join(f"{name} {value}" for name, value in facts.made_with.items())
        parts.append(f"From RESULTS.md: {words}.")
    return parts


def _score_row(score: Score) -> list[str]:
    """A line of the table of scores."""
    folds = score.metrics.get("folds", 1)
    name = f"{score.data_set}, mean of {folds} folds" if folds > 1 else score.data_set
    words = [score.how, f"checkpoint {score.checkpoint}" if score.checkpoint else ""]
    return [
        name,
        score.split,
        str(score.metrics["num_clips"]),
        *(_percent(score.metrics, metric) for metric in METRICS),
        ", ".join(filter(None, words)) or "scores named by the publisher",
    ]


def _percent(metrics: dict[str, Any], name: str) -> str:
    """A score, with its 95 % interval over the test clips where there is one."""
    if metrics.get(name) is None:
        return "-"
    bounds = (metrics.get("intervals") or {}).get(name)
    shown = " ({:.1f} to {:.1f})".format(*(100 * b for b in bounds)) if bounds else ""
    return f"{100 * metrics[name]:.1f}{shown}"


def limits(facts: Facts) -> list[str]:
    """What a user should know before relying on the model."""
    encoder = facts.source.encoder
    lines = []
    if encoder.config.depth < BASE_BLOCKS or encoder.config.embed_dim < BASE_CHANNELS:
        lines.append(
            f"Small: {encoder.config.depth} blocks of {encoder.config.embed_dim} channels, where the "
            f"paper's encoder has {BASE_BLOCKS} of {BASE_CHANNELS}. It shows that the "
            "method runs, not how good it is."
        )
    heard = [t for t in facts.lineage.trainings if t.data and "phase" in t.kind]
    if heard:
        hours = max(t.data.hours for t in heard)
        lines.append(
            f"Pre-training heard {hours:.1f} hours of audio; the paper's is on "
            f"{PAPER_DATA}."
        )
    lines += [e["limit"] for e in facts.corpora.values() if e.get("limit")]
    lines += _overlaps(facts)
    if facts.is_classifier:
        lines.append(
            f"It knows its {len(facts.source.classes)} classes only: any other sound "
            "is given scores of these."
        )
    empty = {c for s in facts.scores for c in s.metrics["classes_without_positives"]}
    if empty:
        lines.append(f"No test clip of: {', '.join(sorted(empty))}.")
    lines.append("A time step is 160 ms, and nothing above 8 kHz is heard.")
    lines.append(
        "Nothing but the results above was measured: not other recordings, not noise, "
        "not who or what it serves worse."
        if facts.scores
        else "Nothing was measured: its quality is unknown."
    )
    return lines


def _overlaps(facts: Facts) -> list[str]:
    """Test clips that the trainings have heard."""
    reports = [t.data.report for t in facts.lineage.trainings if t.data]
    seen = {
        (o["split"], o["clips"]) for r in reports for o in r["pretraining_overlaps"]
    }
    leaks = {(o["split"], o["clips"]) for r in reports for o in r["leaks"]}
    lines = []
    if seen:
        named = ", ".join(f"{clips} of {split}" for split, clips in sorted(seen))
        lines.append(f"Pre-training heard test clips, without labels: {named}.")
    if leaks:
        named = ", ".join(f"{clips} of {split}" for split, clips in sorted(leaks))
        lines.append(f"LEAK: the training clips hold test clips: {named}.")
    return lines


def licence(facts: Facts) -> list[str]:
    """Licences of weights, data and code; what nobody has said is unknown."""
    weights = facts.license or "unknown: the publisher has not said it"
    lines = [f"- weights: {weights}"]
    known = {name: entry["licence"] for name, entry in facts.corpora.items()}
    lines += [f"- data {name}: {text}" for name, text in known.items()]
    if facts.options.data_license:
        lines.append(f"- data, in the publisher's words: {facts.options.data_license}")
    elif not known:
        lines.append("- training data: unknown")
    lines.append("- code (espnet2_sslam): Apache-2.0")
    return ["\n".join(lines)]


def origin(facts: Facts) -> list[str]:
    """Which file the weights were read from."""
    found = facts.source.origin
    rows = [
        ("read from", LAYOUTS.get(found.get("layout"), UNKNOWN)),
        ("file", f"`{found.get('file', UNKNOWN)}`"),
        ("SHA-256", f"`{found.get('sha256', UNKNOWN)}`"),
        ("weights", f"the {found.get('weights', UNKNOWN)}'s"),
        ("converted by", found.get("converter", UNKNOWN)),
    ]
    if facts.hub:
        rows.append(("Hugging Face", f"`{facts.hub}`"))
    parts = [markdown(["", ""], rows)]
    if found.get("layout") in ("fairseq", "huggingface"):
        parts.append(
            "The authors' terms apply to their weights; the file does not state them."
        )
    return parts
