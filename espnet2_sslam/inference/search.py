"""Recordings that sound alike: the nearest embeddings of what `embed` wrote.

Shapes: R rows (clips, windows or time steps), D channels, Q queries.
"""

import csv
import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from espnet2_sslam.inference.api import SSLAM
from espnet2_sslam.inference.results import weights_sha256

READABLE = ("npz", "csv", "tsv", "json", "jsonl")


class Match(NamedTuple):
    """A row of an index: cosine similarity in -1..1, and seconds of the recording."""

    file: str
    start: float
    end: float
    score: float


class EmbeddingIndex:
    """Embeddings of recordings, to be searched by cosine similarity.

    Args:
        files: Names of the rows' recordings (R,); those of windows repeat.
        starts, ends: Seconds of the rows (R,).
        values: Embeddings (R, D).
        info: What made them: model, weights_sha256, layer, pooling, chunk, ...; {}
            where that is not known.

    Raises:
        ValueError: No rows, or embeddings of all layers.
    """

    def __init__(
        self,
        files: Sequence[str],
        starts: Sequence[float] | np.ndarray,
        ends: Sequence[float] | np.ndarray,
        values: np.ndarray,
        info: Mapping[str, Any] | None = None,
    ):
        values = np.asarray(values, np.float32)
        if values.ndim != 2 or not len(values):
            raise ValueError(
                f"need embeddings of shape (rows, channels), got {values.shape}: "
                "choose one layer in sslam embed"
            )
        self.files, self.starts, self.ends = files, starts, ends
        self.vectors, self.info = _unit(values), dict(info or {})

    def __len__(self) -> int:
        return len(self.vectors)

    @classmethod
    def read(cls, path: str | Path) -> "EmbeddingIndex":
        """Read an output of `sslam embed`; only npz says what made it.

        Raises:
            ValueError: Another format, or not such an output.
        """
        kind = Path(path).suffix.lower()[1:]
        if kind not in READABLE:
            raise ValueError(
                f"{path}: need an output of sslam embed with suffix "
                f"{', '.join(READABLE)}"
            )
        try:
            if kind == "npz":
                with np.load(path) as arrays:
                    names = ("ids", "starts", "ends", "values")
                    files, starts, ends, values = (arrays[name] for name in names)
                    info = json.loads(str(arrays["info"]))
                if info["command"] != "embed":
                    raise ValueError(f"sslam {info['command']} wrote it")
                return cls(files.tolist(), starts, ends, values, info)
            files, starts, ends, values = zip(*_rows(Path(path), kind), strict=True)
            return cls(files, starts, ends, np.array(values, np.float32))
        except (LookupError, TypeError, ValueError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} is no output of sslam embed: {error}") from None

    def check(self, model: SSLAM) -> None:
        """Refuse a model that did not make the index, as far as that is known.

        Raises:
            ValueError: Vectors of another size, or other weights.
        """
        made_by, width = self.info.get("weights_sha256"), self.vectors.shape[1]
        channels = model.encoder.config.embed_dim
        if channels != width:
            raise ValueError(
                f"the index has vectors of {width} values, the model makes {channels}: "
                "take the model that made the index"
            )
        if made_by and made_by != weights_sha256(model.model):
            raise ValueError(
                f"the index was made by {self.info.get('model', 'another model')} "
                f"(weights {made_by[:12]}), this model has other weights: take that one"
            )

    def embed(self, model: SSLAM, audio: Any, rate: float | None = None) -> np.ndarray:
        """The embedding (D,) of a clip, in the way those of the index were made.

        Raises:
            ValueError: See `check`.
            AudioError: Audio that cannot be used.
        """
        self.check(model)
        pooling = "cls" if self.info.get("pooling") == "cls" else "mean"
        layer = self.info.get("layer", -1)
        return np.asarray(model.embed(audio, rate=rate, layer=layer, pooling=pooling))

    def search(self, query: np.ndarray, k: int = 10) -> list[Match]:
        """The `k` rows nearest to an embedding (D,), best first."""
        if k < 1:
            raise ValueError(f"k must be 1 or more, got {k}")
        scores = self.vectors @ _unit(np.asarray(query, np.float32))
        best = np.argsort(-scores, kind="stable")[:k]
        return [
            Match(
                *(str(self.files[i]), float(self.starts[i]), float(self.ends[i])),
                float(scores[i]),
            )
            for i in best.tolist()
        ]


def load_index_model(
    index: EmbeddingIndex, source: str | Path | None = None, **options: Any
) -> SSLAM:
    """The model that made an index, or `source` where the index does not know it.

    Args:
        index: Its `info` says weights, revision and target_frames.
        source, options: As for `SSLAM.from_pretrained`.

    Raises:
        ValueError: The model is not named, or cannot be loaded.
    """
    info = index.info
    if source is None and not info.get("model"):
        raise ValueError("the index does not say which model made it: name the model")
    stored = {name: info.get(name) for name in ("weights", "target_frames")}
    if source is None:
        stored["revision"] = info.get("revision")
    known = {name: value for name, value in stored.items() if value is not None}
    return SSLAM.from_pretrained(source or info["model"], **{**known, **options})


def search(
    index: str | Path,
    audio: Any,
    k: int = 10,
    *,
    model: str | Path | None = None,
    rate: float | None = None,
    **options: Any,
) -> list[Match]:
    """The `k` rows of an output of `sslam embed` that sound most like a clip.

    Args:
        index: The output (npz, csv, tsv, json or jsonl).
        audio: A clip, see `SSLAM`.
        k: Rows, best first.
        model: Instead of the one that the index names.
        rate: Samples per second of an array.
        options: As for `SSLAM.from_pretrained`.

    Raises:
        ValueError: No such index, or one of another model.
        AudioError: Audio that cannot be used.
    """
    read = EmbeddingIndex.read(index)
    loaded = load_index_model(read, model, **options)
    return read.search(read.embed(loaded, audio, rate), k)


def _unit(values: np.ndarray) -> np.ndarray:
    """Vectors of length 1; zeros stay."""
    lengths = np.linalg.norm(values, axis=-1, keepdims=True)
    return values / np.maximum(lengths, np.finfo(np.float32).tiny)


def _rows(path: Path, kind: str) -> Iterator[tuple[str, float, float, list[float]]]:
    """Rows of a text output: file, start, end, values."""
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as text:
        if kind in ("json", "jsonl"):
            objects: Iterable[Any] = (
                json.load(text) if kind == "json" else map(json.loads, text)
            )
            for row in objects:
                yield row["file"], row["start"], row["end"], row["values"]
            return
        # DESED's tab-separated text knows no quotes
        quoting = csv.QUOTE_MINIMAL if kind == "csv" else csv.QUOTE_NONE
        table = csv.reader(text, delimiter=",\t"[kind == "tsv"], quoting=quoting)
        header = next(table, [])
        if header[:4] != ["file", "start", "end", "v0"]:
            raise ValueError(f"its columns are {', '.join(header[:4]) or 'none'}, ...")
        for file, start, end, *values in table:
            yield file, float(start), float(end), [float(value) for value in values]
