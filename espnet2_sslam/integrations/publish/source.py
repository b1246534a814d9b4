"""What is published: the model, and where its weights come from."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espnet2_sslam.checkpoint import Model, load_model, resolve, weights_file
from espnet2_sslam.classifier import SSLAMClassifier
from espnet2_sslam.encoder import SSLAMEncoder
from espnet2_sslam.integrations.publish.lineage import is_training, read_config

SNAPSHOT = re.compile(r"models--(.+?)--(.+)/snapshots/([0-9a-f]{40})(/|$)")


@dataclass(frozen=True)
class Source:
    """A model and the file that it was read from.

    Args:
        model: Encoder or classifier.
        config: Content of its config.json, with `origin`.
        weights: The file of weights.
        hub: "user/name@commit" where it came from Hugging Face.
    """

    model: Model
    config: dict[str, Any]
    weights: Path
    hub: str | None = None

    @property
    def origin(self) -> dict[str, Any]:
        """File, SHA-256 and layout that the weights were first read from."""
        return self.config["origin"]

    @property
    def run(self) -> Path | None:
        """The folder of the training of ours that wrote the weights, if it is here."""
        here = self.weights.parent
        ours = self.weights.suffix == ".pth" and is_training(read_config(here))
        return here if ours else None

    @property
    def encoder(self) -> SSLAMEncoder:
        """The encoder, of a classifier too."""
        return self.model.encoder if self.is_classifier else self.model

    @property
    def is_classifier(self) -> bool:
        """Whether the model has a head."""
        return isinstance(self.model, SSLAMClassifier)

    @property
    def classes(self) -> list[str]:
        """Class names, none of an encoder."""
        return list(self.model.classes) if self.is_classifier else []

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(p.numel() for p in self.model.parameters())


def read_source(
    model: str,
    *,
    weights: str = "student",
    revision: str | None = None,
    cache_dir: Path | None = None,
) -> Source:
    """Load a model and find out where it comes from.

    Args:
        model, weights, revision, cache_dir: As for `checkpoint.load_model`.

    Raises:
        CheckpointError: It cannot be loaded.
    """
    path = resolve(model, revision=revision, cache_dir=cache_dir)
    file = weights_file(path) if path.is_dir() else path
    loaded = load_model(file, weights=weights, cache_dir=cache_dir)
    found = SNAPSHOT.search(str(path))
    hub = f"{found[1]}/{found[2]}@{found[3]}" if found else None
    config = loaded.config
    if file.suffix == ".pth" and "origin" in read_config(file.parent):
        config = {**config, "origin": read_config(file.parent)["origin"]}
    return Source(loaded.model, config, file, hub)
