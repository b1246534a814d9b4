"""What a checkpoint does not say and only its user can know."""

from dataclasses import replace

from espnet2_sslam.checkpoint.errors import CheckpointError
from espnet2_sslam.checkpoint.parts import Parts


def complete(
    parts: Parts,
    source: str,
    *,
    num_heads: int | None = None,
    classes: list[str] | None = None,
    task: str | None = None,
    fbank: tuple[float, float] | None = None,
) -> Parts:
    """Fill in what is given and refuse what is still missing.

    Args:
        parts: As read; not changed.
        source: What errors call it.
        num_heads: Attention heads, where the source does not say or says it wrongly.
        classes: Class names instead of the source's.
        task: "multi_label" or "multi_class" instead of the source's.
        fbank: (mean, std) instead of the source's.

    Raises:
        CheckpointError: The number of heads or the class names are unknown, or do not
            fit the weights; class options for a model without a head.
    """
    config = {**parts.config, "encoder": dict(parts.config["encoder"])}
    if num_heads is not None:
        config["encoder"]["num_heads"] = num_heads
    if config["encoder"].get("num_heads") is None:
        raise CheckpointError(
            f"{source} does not say how many attention heads it has: convert it with "
            "sslam-convert --num_heads N"
        )
    if fbank is not None:
        config["fbank_mean"], config["fbank_std"] = fbank
    if parts.head is None:
        if classes is not None or task is not None:
            raise CheckpointError(
                f"{source} has no classification head: leave labels and task out"
            )
        return replace(parts, config=config)
    head = dict(config["classifier"])
    head["classes"] = classes or head["classes"]
    head["task"] = task or head["task"]
    number = len(parts.head["head.weight"]) if "head.weight" in parts.head else 0
    if not head["classes"]:
        raise CheckpointError(
            f"{source} has {number} classes without names: convert it with "
            "sslam-convert --labels FILE"
        )
    if len(head["classes"]) != number:
        raise CheckpointError(
            f"{source} has {number} classes, {len(head['classes'])} names were given"
        )
    config["classifier"] = head
    config["id2label"] = {str(i): name for i, name in enumerate(head["classes"])}
    config["label2id"] = {name: i for i, name in enumerate(head["classes"])}
    return replace(parts, config=config)
