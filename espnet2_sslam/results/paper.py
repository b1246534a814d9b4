"""Published numbers to stand beside ours."""

from importlib import resources
from typing import Optional

import yaml


def load() -> dict:
    """Return the content of paper.yaml."""
    text = resources.files("espnet2_sslam.results").joinpath("paper.yaml").read_text()
    return yaml.safe_load(text)


def numbers(data_set: str, metric: str, kind: str, model: str) -> str:
    """Return the published numbers for a row of our tables, `-` where there is none.

    `data_set` is the name in downstream.txt, `kind` is finetune or linear.
    """
    wanted = (data_set, metric, kind, model)
    found = [
        f"{entry['value']} ({entry['source']})"
        for entry in load()["numbers"]
        if (entry["data_set"], entry["metric"], entry["kind"], entry["model"]) == wanted
    ]
    return ", ".join(found) or "-"


def test_clips(data_set: str) -> Optional[int]:
    """Return how many clips the papers test on, None when not known."""
    return load()["test_clips"].get(data_set)
