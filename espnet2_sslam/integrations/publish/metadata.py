"""The part of a model card that Hugging Face reads: YAML above the text."""

import re

from huggingface_hub import EvalResult, ModelCardData

from espnet2_sslam.integrations.publish.evaluation import METRICS
from espnet2_sslam.integrations.publish.facts import Facts

LIBRARY = "espnet2_sslam"
UNKNOWN = "unknown"  # a licence of Hugging Face's list


def metadata(facts: Facts) -> str:
    """YAML between two lines of dashes, as README.md begins on Hugging Face."""
    task = "audio-classification" if facts.is_classifier else "feature-extraction"
    results = eval_results(facts)
    names = [n for n in METRICS if any(n in s.metrics for s in facts.scores)]
    card = ModelCardData(
        library_name=LIBRARY,
        license=facts.license or UNKNOWN,
        pipeline_tag=task,
        tags=["espnet", "sslam", "audio", task],
        datasets=[slug(name) for name in facts.datasets] or None,
        metrics=names or None,
        base_model=facts.hub.split("@")[0] if facts.hub else None,
        model_name=facts.name,
        eval_results=results or None,
    )
    return f"---\n{card.to_yaml()}\n---\n"


def eval_results(facts: Facts) -> list[EvalResult]:
    """The scores of exactly this model, for the metadata's model-index."""
    known = {name: entry["dataset"] for name, entry in facts.corpora.items()}
    return [
        EvalResult(
            task_type="audio-classification",
            task_name=_task_name(score.how),
            dataset_type=slug(known.get(score.data_set, score.data_set)),
            dataset_name=score.data_set,
            dataset_split=score.split,
            metric_type=name,
            metric_value=round(score.metrics[name], 4),
            metric_name=name,
        )
        for score in facts.scores
        for name in METRICS
        if name in score.metrics and not score.on_test
    ]


def slug(name: str) -> str:
    """A name as Hugging Face accepts it for a data set."""
    return re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-.") or UNKNOWN


def _task_name(how: str) -> str | None:
    return f"audio classification, {how}" if how else None
