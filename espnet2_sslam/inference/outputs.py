"""Results of many files -> one output: CSV, JSON, NumPy or Kaldi; whole or not at all.

Every writer streams: the memory is that of one file's result. The same results give
the same bytes. In text a row is a clip, a window or a time step; times are seconds.
"""

import csv
import glob
import json
import os
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from espnet2_sslam import store
from espnet2_sslam.inference.api import Label
from espnet2_sslam.inference.events import Event
from espnet2_sslam.inference.results import Rows, StoredRows

SUFFIXES = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".npz": "npz",
    ".ark": "ark",
    ".scp": "ark",
}
Choose = Callable[[np.ndarray], list[Label]]
NamedEvents = Iterable[tuple[str, list[Event]]]  # of each file


def output_format(
    output: str | Path, chosen: str | None, allowed: Sequence[str]
) -> str:
    """The format of an output: the chosen one, else by its suffix.

    Raises:
        ValueError: Neither says which, or it is not among the allowed ones.
    """
    suffix = Path(output).suffix.lower()
    name = chosen or SUFFIXES.get(suffix, "")
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
    results: StoredRows,
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
        write_npz(output, results, info=np.array(json.dumps(info)))
    elif format == "ark":
        write_ark(output, results, series)
    elif format in ("json", "jsonl"):
        objects = (
            _object(head, "values", _nested(values)) for head, values in _rows(results)
        )
        write_text(output, _json_lines(format, objects))
    else:
        write_text(output, _embedding_table(format, results))


def write_scores(
    output: Path,
    format: str,
    results: StoredRows,
    info: Mapping[str, Any],
    classes: Sequence[str],
    choose: Choose,
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
        names = np.array(classes)
        write_npz(output, results, classes=names, info=np.array(json.dumps(info)))
    elif format == "ark":
        write_ark(output, results, series, classes)
    elif format in ("json", "jsonl"):
        objects = (
            _object(head, "labels", _labels(choose(scores)))
            for head, scores in _rows(results)
        )
        write_text(output, _json_lines(format, objects))
    else:
        header = ["file", "start", "end", "label", "score"]
        table = (
            [*head.values(), label, f"{score:.6g}"]
            for head, scores in _rows(results)
            for label, score in choose(scores)
        )
        write_text(output, _table(format, header, table))


def write_events(output: Path, format: str, events: NamedEvents) -> None:
    """Write the events of files: DESED's table (tsv, csv), or objects (json, jsonl)."""
    if format in ("json", "jsonl"):
        objects = (
            f'{{"file": {json_text(name)}, "onset": {seconds(onset)}, '
            f'"offset": {seconds(offset)}, "label": {json_text(label)}}}'
            for name, file_events in events
            for onset, offset, label in file_events
        )
        write_text(output, _json_lines(format, objects))
    elif format == "csv":
        table = (line.split("\t") for line in event_table(events))
        write_text(output, _table(format, next(table), table))
    else:
        write_text(output, event_table(events))


def event_table(events: NamedEvents) -> Iterator[str]:
    """DESED's table: header first, tabs between, seconds with three decimals.

    A file without events has no row, as in DESED's predictions.
    """

    def cell(text: str) -> str:  # without what separates cells and rows
        return " ".join(text.split()) if any(c in text for c in "\t\n\r") else text

    yield "filename\tonset\toffset\tevent_label"
    for name, file_events in events:
        for onset, offset, label in file_events:
            yield f"{cell(name)}\t{onset:.3f}\t{offset:.3f}\t{cell(label)}"


def write_npz(output: Path, results: StoredRows, **extra: np.ndarray) -> None:
    """Write ids, values, starts and ends of all rows as one .npz for `numpy.load`.

    By hand, member by member: `numpy.savez` needs everything in memory.
    """
    shapes = results.shapes
    inner = {shape[1:] for shape in shapes}
    if len(inner) != 1:
        raise ValueError(f"results of different shapes: {sorted(inner)}")
    total = sum(shape[0] for shape in shapes)
    names = [plain(name) for name in results.names]
    ids, values = np.dtype(f"<U{max(1, *map(len, names))}"), np.dtype("<f4")
    with _streams(output) as [stream], zipfile.ZipFile(stream, "w") as archive:
        # Repeated names deflate to nothing; values would not.
        with _member(archive, "ids", ids, (total,), zipfile.ZIP_DEFLATED) as file:
            for name, shape in zip(names, shapes, strict=True):
                file.write(np.full(shape[0], name, ids).tobytes())
        times = []
        with _member(archive, "values", values, (total, *inner.pop())) as file:
            for rows in results:
                file.write(rows.values.astype(values).tobytes())
                times.append([rows.starts, rows.ends])
        starts, ends = np.concatenate(times, axis=1)
        for name, array in {"starts": starts, "ends": ends, **extra}.items():
            with _member(archive, name, array.dtype, array.shape) as file:
                file.write(array.tobytes())


@contextmanager
def _member(
    archive: zipfile.ZipFile,
    name: str,
    dtype: np.dtype,
    shape: tuple[int, ...],
    compression: int = zipfile.ZIP_STORED,
) -> Iterator[IO[bytes]]:
    """A file of the archive, after the header of an array; without a date."""
    info = zipfile.ZipInfo(f"{name}.npy")
    info.compress_type = compression
    header = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": shape,
    }
    with archive.open(info, "w", force_zip64=True) as file:
        np.lib.format.write_array_header_1_0(file, header)
        yield file


def write_ark(
    output: Path,
    results: StoredRows,
    series: bool = False,
    classes: Sequence[str] | None = None,
) -> None:
    """Write NAME.ark and NAME.scp, as Kaldi's tools and ESPnet read them.

    A vector per file, or with `series` a matrix with a row per window or time step,
    whose times NAME.segments lists (`<id>-<row> <id> <start> <end>`). Ids are the
    files' names, blanks and % written as in a URL.

    Raises:
        ValueError: All layers of a series: Kaldi has no arrays of three dimensions.
    """
    base = output.with_suffix("") if output.suffix in (".ark", ".scp") else output
    suffixes = [".scp", ".ark"]  # the last one is put in place first
    suffixes[1:1] = [".segments"] * series + [".classes.txt"] * (classes is not None)
    paths = {suffix: base.with_name(base.name + suffix) for suffix in suffixes}
    with _streams(*paths.values()) as streams:
        out = dict(zip(paths, streams, strict=True))
        for rows in results:
            name = kaldi_id(rows.name)
            array = rows.values if series else rows.values[0]
            if array.ndim > 2:
                raise ValueError(
                    "ark holds vectors and matrices: choose one layer, or npz"
                )
            out[".ark"].write(_encode(f"{name} "))
            place = f"{name} {paths['.ark']}:{out['.ark'].tell()}\n"
            out[".scp"].write(_encode(place))
            # Kaldi's binary format: a float vector or matrix, its sizes, its numbers
            out[".ark"].write(b"\0BFV " if array.ndim == 1 else b"\0BFM ")
            for size in array.shape:
                out[".ark"].write(struct.pack("<bi", 4, size))
            out[".ark"].write(array.astype("<f4").tobytes())
            if series:
                times = zip(rows.starts, rows.ends, strict=True)
                for row, (start, end) in enumerate(times):
                    line = f"{name}-{row:06d} {name} {seconds(start)} {seconds(end)}\n"
                    out[".segments"].write(_encode(line))
        for label in classes or ():
            out[".classes.txt"].write(_encode(f"{label}\n"))


def kaldi_id(name: str) -> str:
    """A name without blanks; `urllib.parse.unquote` gives the name back."""
    return "".join(
        (
            c
            if c.isprintable() and not c.isspace() and c != "%"
            else "".join(f"%{byte:02X}" for byte in os.fsencode(c))
        )
        for c in name
    )


def plain(name: str) -> str:
    """A name as text, with escapes for bytes that are not UTF-8."""
    return name.encode("utf-8", "backslashreplace").decode()


def seconds(value: float) -> str:
    """A time with microseconds where it has them."""
    return f"{value:.6f}".rstrip("0").rstrip(".")


def write_text(output: Path, lines: Iterable[str]) -> None:
    """Write lines of text as UTF-8; names that are not UTF-8 keep their bytes."""
    with _streams(output) as [stream]:
        for line in lines:
            stream.write(_encode(f"{line}\n"))


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


@contextmanager
def _streams(*paths: Path) -> Iterator[list[IO[bytes]]]:
    """Files that appear at the end, the last one first, or, on an error, never.

    What killed writers of these files have left is removed.
    """
    try:
        with ExitStack() as stack:
            for path in paths:
                store.remove_leftovers(path.parent, glob.escape(path.name))
            yield [stack.enter_context(store.writing(path, "wb")) for path in paths]
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(paths[-1])) from error


def _rows(results: Iterable[Rows]) -> Iterator[tuple[dict[str, str], np.ndarray]]:
    """Each row: its file, start and end, and its values."""
    for rows in results:
        for start, end, values in zip(*rows[1:], strict=True):
            head = {"file": rows.name, "start": seconds(start), "end": seconds(end)}
            yield head, values


class _Echo:
    """A file for `csv.writer` that returns what it is given."""

    @staticmethod
    def write(text: str) -> str:
        return text


def _liner(format: str) -> tuple[Callable[[Sequence[str]], str], str]:
    """The function from cells to a line of a table, and what separates the cells."""
    between = "\t" if format == "tsv" else ","
    return csv.writer(_Echo, delimiter=between, lineterminator="").writerow, between


def _table(
    format: str, header: Sequence[str], rows: Iterable[Sequence[str]]
) -> Iterator[str]:
    """Lines of a table."""
    line, _ = _liner(format)
    yield line(header)
    yield from map(line, rows)


def _embedding_table(format: str, results: StoredRows) -> Iterator[str]:
    """Lines of a table of embeddings; with all layers a line per layer."""
    line, between = _liner(format)
    shape = results.shapes[0]
    layers = ["layer"] if len(shape) == 3 else []
    columns = [f"v{index}" for index in range(shape[-1])]
    yield line(["file", "start", "end", *layers, *columns])
    for head, values in _rows(results):
        for layer, vector in enumerate(values.reshape(-1, shape[-1])):
            cells = [*head.values(), *([str(layer)] if layers else [])]
            yield line(cells) + between + _numbers(vector, between)


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


def _object(head: Mapping[str, str], key: str, value: str) -> str:
    """A row as JSON; the value is JSON already."""
    return (
        f'{{"file": {json_text(head["file"])}, "start": {head["start"]}, '
        f'"end": {head["end"]}, "{key}": {value}}}'
    )


def json_text(text: str) -> str:
    """A JSON string; what is no character (bytes of a file's name) stays escaped."""
    return plain(json.dumps(text, ensure_ascii=False))


def _labels(labels: Iterable[Label]) -> str:
    """Labels as JSON."""
    objects = (
        f'{{"label": {json_text(label)}, "score": {score:.6g}}}'
        for label, score in labels
    )
    return f"[{', '.join(objects)}]"


def _nested(values: np.ndarray) -> str:
    """A vector or a matrix as JSON."""
    if values.ndim == 1:
        return f"[{_numbers(values, ', ')}]"
    return f"[{', '.join(map(_nested, values))}]"


def _numbers(vector: np.ndarray, between: str) -> str:
    """Numbers with the nine digits that give a float32 back."""
    return between.join(["%.9g"] * len(vector)) % tuple(vector.tolist())
