"""Results of many files -> one output: CSV, JSON, NumPy or Kaldi; whole or not at all.

Every writer streams: the memory is that of one file's result. The same results give
the same bytes. In text a row is a clip, a window or a time step; times are seconds.
"""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import (
    Any,
)

import numpy as np

from espnet2_sslam.inference.arrays import (
    Results,
    plain,
    seconds,
    whole_files,
    write_ark,
    write_npz,
)
from espnet2_sslam.inference.events import HEADER, Event, event_lines
from espnet2_sslam.inference.rows import Rows

SUFFIXES = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".npz": "npz",
    ".ark": "ark",
    ".scp": "ark",
}
Label = tuple[str, float]


def output_format(
    output: str | Path, chosen: str | None, allowed: Sequence[str]
) -> str:
    """Return the format of an output: the chosen one, else by its suffix.

    Raises:
        ValueError: Neither says which, or it is not among the allowed ones.
    """
    suffix = Path(output).suffix.lower()
    name = chosen or SUFFIXES.get(suffix)
    if name not in allowed:
        got = f"--format {chosen}" if chosen else f"suffix {suffix or '(none)'}"
        raise ValueError(
            f"{output}: need one of the formats {', '.join(allowed)}, got {got}; name "
            "the output with such a suffix or give --format"
        )
    return name


def write_embeddings(
    output: Path,
    format: str,
    results: Results,
    info: Mapping[str, Any],
    series: bool = False,
) -> None:
    """Write embeddings: values (W, D), or (W, L, D) with all layers, per file.

    - csv, tsv: file, start, end, (layer,) v0, v1, ... in a row.
    - json, jsonl: objects with file, start, end, values.
    - npz: ids, starts, ends (R,), values (R, D) or (R, L, D), info (JSON text).
    - ark: see `write_ark`.

    Args:
        output: File to write; put in place in one step when it is complete.
        info: What the results are (model, options), for the formats that can say it.
        series: A file has several rows (windows, time steps) even if it has just one.
    """
    if format == "npz":
        write_npz(output, results, {"info": np.array(json.dumps(info))})
    elif format == "ark":
        write_ark(output, results, series)
    elif format in ("json", "jsonl"):
        write_text(output, _json_lines(format, _embedding_objects(results)))
    else:
        write_text(output, _embedding_lines(format, results))


def write_scores(
    output: Path,
    format: str,
    results: Results,
    info: Mapping[str, Any],
    classes: Sequence[str],
    choose: Callable[[np.ndarray], list[Label]],
    series: bool = False,
) -> None:
    """Write the scores of classes: values (W, C) per file.

    - csv, tsv: file, start, end, label, score; a row per label that `choose` takes.
    - json, jsonl: objects with file, start, end, labels: [{label, score}, ...].
    - npz: as for embeddings, all scores (R, C), and classes (C,).
    - ark: all scores; NAME.classes.txt holds the names.

    Args:
        choose: Scores of a row (C,) to its labels, see `best_labels`.
    """
    if format == "npz":
        extra = {"classes": np.array(classes), "info": np.array(json.dumps(info))}
        write_npz(output, results, extra)
    elif format == "ark":
        write_ark(output, results, series, classes)
    elif format in ("json", "jsonl"):
        write_text(output, _json_lines(format, _label_objects(results, choose)))
    else:
        write_text(output, _label_lines(format, results, choose))


def best_labels(
    classes: Sequence[str], top_k: int, limits: np.ndarray
) -> Callable[[np.ndarray], list[Label]]:
    """Return the choice of the `top_k` (0: all) labels that reach their limit (C,)."""

    def choose(scores: np.ndarray) -> list[Label]:
        order = np.argsort(-scores, kind="stable")[: top_k or None]
        reached = scores >= limits.astype(scores.dtype)
        return [(classes[i], float(scores[i])) for i in order if reached[i]]

    return choose


def write_events(
    output: Path,
    format: str,
    results: Results,
    find: Callable[[Rows], list[Event]],
) -> None:
    """Write events: DESED's table (tsv, csv), or objects (json, jsonl).

    Args:
        find: A file's scores to its events, see `find_events`.
    """
    if format in ("json", "jsonl"):
        write_text(output, _json_lines(format, _event_objects(results, find)))
    elif format == "csv":
        cells, _ = _cells(format)
        lines = (cells(line.split("\t")) for line in event_table(results, find))
        write_text(output, lines)
    else:
        write_text(output, event_table(results, find))


def event_table(
    results: Iterable[Rows], find: Callable[[Rows], list[Event]]
) -> Iterator[str]:
    """The lines of DESED's table, header first."""
    yield "\t".join(HEADER)
    for rows in results:
        yield from event_lines(rows.name, find(rows))


def _event_objects(results: Results, find) -> Iterator[str]:
    for rows in results:
        for onset, offset, label in find(rows):
            yield (
                f'{{"file": {json_text(rows.name)}, "onset": {seconds(onset)}, '
                f'"offset": {seconds(offset)}, "label": {json_text(label)}}}'
            )


def write_text(output: Path, lines: Iterable[str]) -> None:
    """Write lines of text as UTF-8; names that are not UTF-8 keep their bytes."""
    with whole_files(output) as [stream]:
        for line in lines:
            stream.write(f"{line}\n".encode("utf-8", "surrogateescape"))


def _json_lines(format: str, objects: Iterable[str]) -> Iterator[str]:
    """Lines of a JSON list, or of JSON lines."""
    if format == "jsonl":
        yield from objects
        return
    yield "["
    previous = None
    for text in objects:
        if previous is not None:
            yield previous + ","
        previous = text
    if previous is not None:
        yield previous
    yield "]"


def _object(rows: Rows, row: int, key: str, value: str) -> str:
    """A row as JSON; the value is JSON already."""
    name = json_text(rows.name)
    start, end = seconds(rows.starts[row]), seconds(rows.ends[row])
    return f'{{"file": {name}, "start": {start}, "end": {end}, "{key}": {value}}}'


def json_text(text: str) -> str:
    """A JSON string; what is no character (bytes of a file's name) stays escaped."""
    return plain(json.dumps(text, ensure_ascii=False))


def _embedding_objects(results: Results) -> Iterator[str]:
    for rows in results:
        for row, values in enumerate(rows.values):
            if values.ndim == 1:
                text = f"[{_numbers(values, ', ')}]"
            else:
                text = ", ".join(f"[{_numbers(layer, ', ')}]" for layer in values)
                text = f"[{text}]"
            yield _object(rows, row, "values", text)


def _label_objects(results: Results, choose) -> Iterator[str]:
    for rows in results:
        for row, scores in enumerate(rows.values):
            labels = ", ".join(
                f'{{"label": {json_text(label)}, "score": {score:.6g}}}'
                for label, score in choose(scores)
            )
            yield _object(rows, row, "labels", f"[{labels}]")


def _embedding_lines(format: str, results: Results) -> Iterator[str]:
    """Lines of a table of embeddings."""
    cells, between = _cells(format)
    shape = results.shapes[0]
    layers = ["layer"] if len(shape) == 3 else []
    yield cells(["file", "start", "end", *layers, *(f"v{i}" for i in range(shape[-1]))])
    for rows in results:
        for start, end, values in zip(rows.starts, rows.ends, rows.values):
            head = [rows.name, seconds(start), seconds(end)]
            for layer, vector in enumerate(values.reshape(-1, values.shape[-1])):
                number = [str(layer)] if layers else []
                yield cells(head + number) + between + _numbers(vector, between)


def _label_lines(format: str, results: Results, choose) -> Iterator[str]:
    """Lines of a table of labels."""
    cells, _ = _cells(format)
    yield cells(["file", "start", "end", "label", "score"])
    for rows in results:
        for start, end, scores in zip(rows.starts, rows.ends, rows.values):
            head = [rows.name, seconds(start), seconds(end)]
            for label, score in choose(scores):
                yield cells([*head, label, f"{score:.6g}"])


class _Echo:
    """A file for `csv.writer` that returns what it is given."""

    @staticmethod
    def write(text: str) -> str:
        return text


def _cells(format: str) -> tuple[Callable[[list[str]], str], str]:
    """The function from cells to a line, and what separates them."""
    between = "\t" if format == "tsv" else ","
    writer = csv.writer(_Echo, delimiter=between, lineterminator="")
    return writer.writerow, between


def _numbers(vector: np.ndarray, between: str) -> str:
    """Numbers with the nine digits that give a float32 back."""
    return between.join(["%.9g"] * len(vector)) % tuple(vector.tolist())
