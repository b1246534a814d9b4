"""The upstreams to compare: SSLAM's weights, its network at random, s3prl's own."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from espnet2_sslam.integrations.s3prl.expert import OPTIONS, SIZES, STEP
from espnet2_sslam.store import sha256

FORBIDDEN = (*SIZES, "weights", "revision", "cache_dir")  # settled with the weights
RANDOM = "random"


class Upstream(NamedTuple):
    """An upstream for one seed, ready to be run.

    Attributes:
        name: What the table calls it.
        entry: s3prl's name of it.
        ckpt: Folder of our model, None for s3prl's own upstreams.
        options: Of the sslam upstream.
        sha256: Of the weights.
        origin: What the user named.
    """

    name: str
    entry: str
    ckpt: Path | None = None
    options: dict[str, Any] = {}
    sha256: str = ""
    origin: str = ""

    @property
    def downsample_rate(self) -> int | None:
        """Samples per step, None for upstreams of s3prl."""
        if self.ckpt is None:
            return None
        flat = self.options.get("freq") == "flatten"
        return STEP // (8 if flat else self.options.get("upsample", 1))

    def identity(self) -> dict[str, Any]:
        """What decides its features."""
        return {"entry": self.entry, "sha256": self.sha256, "options": self.options}


def split_words(words: Sequence[str]) -> dict[str, str]:
    """Sources by name, from words NAME=SOURCE or a name of s3prl (source "").

    Raises:
        ValueError: A name that cannot be a folder's, or twice the same.
    """
    sources: dict[str, str] = {}
    for word in words:
        name, sign, source = word.partition("=")
        plain = name.replace("-", "").replace("_", "").replace(".", "")
        if not plain.isalnum() or name[0] in ".-" or bool(sign) != bool(source):
            raise ValueError(
                f"an upstream is NAME=SOURCE or a name of s3prl, got {word!r}"
            )
        if name == RANDOM and not source:
            raise ValueError(
                "upstream random needs the model whose network it has: random=SOURCE"
            )
        if name in sources:
            raise ValueError(f"upstream {name} is given twice")
        sources[name] = source
    return sources


def read_options(words: Sequence[str]) -> dict[str, Any]:
    """Options of the sslam upstream from words name=value (YAML values).

    Raises:
        ValueError: An unknown option, or one that is settled with the weights.
    """
    import yaml

    options = {}
    for word in words:
        name, sign, value = word.partition("=")
        if not sign or name not in OPTIONS or name in FORBIDDEN:
            known = ", ".join(n for n in OPTIONS if n not in FORBIDDEN)
            raise ValueError(f"--options takes name=value with {known}, got {word!r}")
        options[name] = yaml.safe_load(value)
    return options


def prepare(
    name: str, source: str, seed: int, options: dict[str, Any], folder: Path
) -> Upstream:
    """Make an upstream ready: read its weights once and keep them as a model folder.

    Args:
        name: Its name; `random` draws the weights anew.
        source: Anything `load_model` reads, {seed} in it is replaced; "" for a name of
            s3prl.
        seed: Of the run, and of random weights.
        options: Of the sslam upstream.
        folder: Where models are kept.

    Raises:
        ValueError: The source cannot be read.
    """
    if not source:
        return Upstream(name, name)
    from espnet2_sslam.checkpoint import save_model

    source = source.replace("{seed}", str(seed))
    model = _encoder(source, seed if name == RANDOM else None)
    target = folder / f"{name}_seed{seed}"
    part = folder / f".{target.name}.part"
    shutil.rmtree(part, ignore_errors=True)
    save_model(model, part)
    digest = sha256(part / "model.safetensors")
    if target.is_dir():
        shutil.rmtree(target)
    part.rename(target)
    ckpt = target.resolve()
    return Upstream(name, "sslam", ckpt, options, digest, source)


def _encoder(source: str, random_seed: int | None):
    """The encoder of a source, with random weights if a seed is given."""
    import torch

    from espnet2_sslam.checkpoint import build_model, load_model, model_config

    encoder = load_model(source).encoder
    if random_seed is None:
        return encoder
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(random_seed)
        return build_model(model_config(encoder))


def same_weights(upstreams: Sequence[Upstream]) -> list[str]:
    """Names that stand for the same weights: somebody took one source for another."""
    first: dict[str, str] = {}
    doubles = []
    for upstream in upstreams:
        if upstream.sha256:
            other = first.setdefault(upstream.sha256, upstream.name)
            if other != upstream.name:
                doubles.append(f"{upstream.name} has the weights of {other}")
    return doubles
