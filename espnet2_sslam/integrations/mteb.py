"""SSLAM as a model of MTEB, whose audio part is MAEB."""

from pathlib import Path
from typing import Any

import numpy as np
from mteb.models import ModelMeta  # type: ignore[import]
from mteb.models.abs_encoder import AbsEncoder  # type: ignore[import]
from mteb.models.modality_collators import AudioCollator  # type: ignore[import]

from espnet2_sslam.checkpoint import load_model, weights_file
from espnet2_sslam.inference import SSLAM
from espnet2_sslam.store import sha256
from espnet2_sslam.units import FRAME_LENGTH, SAMPLE_RATE

DEFAULTS = {"pooling": "mean", "layer": -1}


class MtebEncoder(AbsEncoder):
    """Embeddings of clips for MTEB's tasks; `model_meta` names it to MTEB.

    Args:
        name: MTEB's name of the model.
        revision: Of a Hugging Face id, else nothing.
        device: As for `SSLAM`.
        source: A model, as for `SSLAM.from_pretrained`; by default the name.
        pooling, layer: See `SSLAM.embed`.
    """

    def __init__(
        self,
        name: str,
        revision: str | None = None,
        device: str | None = None,
        *,
        source: str | None = None,
        pooling: str = "mean",
        layer: int = -1,
    ):
        check_options({"pooling": pooling, "layer": layer})
        revision = None if source else revision
        source = source or name
        self.model = SSLAM.from_pretrained(source, revision=revision, device=device)
        self.options = {"pooling": pooling, "layer": layer}

    def get_audio_embeddings(self, inputs: Any, **others: Any) -> np.ndarray:
        """Embeddings (clips, D) of a DataLoader of {"audio": [{"array", ...}, ...]}."""
        inputs.collate_fn = AudioCollator(
            target_sampling_rate=SAMPLE_RATE, min_samples=FRAME_LENGTH
        )
        embeddings = [self.model.embed(x["audio"], **self.options) for x in inputs]
        return np.concatenate(embeddings)

    def encode(self, inputs: Any, **others: Any) -> np.ndarray:
        """The same, whatever the task."""
        return self.get_audio_embeddings(inputs)


def check_options(options: dict[str, Any]) -> dict[str, Any]:
    """Those options that are not the defaults.

    Raises:
        ValueError: Another option, or one that gives more than a vector for a clip.
    """
    known = {"pooling": ("mean", "cls"), "layer": range(-100, 100)}
    for name, value in options.items():
        if name not in known or value not in known[name]:
            raise ValueError(
                f"need pooling mean or cls and a number as layer, got {name}={value!r}"
            )
    return {k: v for k, v in options.items() if (k, v) not in DEFAULTS.items()}


def model_meta(
    source: str | Path,
    revision: str | None = None,
    fields: dict[str, Any] | None = None,
    **options: Any,
) -> ModelMeta:
    """What MTEB has to know of a model, to load it and to keep its results apart.

    Args:
        source: A local model or a Hugging Face id, as for `SSLAM.from_pretrained`.
        revision: Of a Hugging Face id; of a local model the hash of its weights.
        fields: Others of `ModelMeta`, as license, training_datasets, release_date.
        options: pooling, layer; part of the experiment's name.

    Raises:
        CheckpointError: What cannot be loaded, and why.
        ValueError: See `check_options`.
    """
    options = check_options(options)
    encoder = load_model(source, revision=revision).encoder
    name, loading, path = str(source), {}, Path(source).expanduser()
    if path.exists():
        loading = {"source": str(path.resolve())}
        name = f"espnet2_sslam/{path.resolve().name}"
        revision = sha256(weights_file(path) if path.is_dir() else path)
    size = sum(weight.numel() for weight in encoder.parameters())
    known = {
        "loader": MtebEncoder,
        "loader_kwargs": loading,
        "name": name,
        "revision": revision,
        "n_parameters": size,
        "memory_usage_mb": 4 * size / 2**20,
        "embed_dim": encoder.config.embed_dim,
        "framework": ["PyTorch"],
        "modalities": ["audio"],
        "use_instructions": False,
        "experiment_kwargs": options or None,
    }
    return ModelMeta.create_empty({**known, **(fields or {})})
