"""Results of many files -> one output: CSV, JSON, NumPy or Kaldi; whole or not at all.

Every writer streams: the memory is that of one file's result. The same results give
the same bytes. In text a row is a clip, a window or a time step; times are seconds.
"""

import csv
import glob
import io
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
from espnet2_sslam.inference.results import StoredRows

SUFFIXES = {f".{name}": name for name in ("csv", "tsv", "json", "jsonl", "npz", "ark")}
SUFFIXES[".scp"] = "ark"
Choose = Callable[[np.ndarray], list[Label]]
HEAD = ("file", "start", "end")
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
    shape = results.shapes[0]
    layers = ["layer"] if len(shape) == 3 else []
    columns = [*layers, *(f"v{index}" for index in range(shape[-1]))]
    cells = (
        [*head, *([layer] if layers else []), *_numbers(vector)]
        for head, values in _rows(results)
        for layer, vector in enumerate(values.reshape(-1, shape[-1]))
    )
    objects = (_object(head, "values", _nested(x)) for head, x in _rows(results))
    if format == "npz":
        write_npz(output, results, info=np.array(json.dumps(info)))
    elif format == "ark":
        write_ark(output, results, series)
    else:
        _write_text(output, format, [*HEAD, *columns], cells, objects)


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
    cells = (
        [*head, label, f"{score:.6g}"]
        for head, scores in _rows(results)
        for label, score in choose(scores)
    )
    objects = (
        _object(head, "labels", _labels(choose(scores)))
        for head, scores in _rows(results)
    )
    if format == "npz":
        names = np.array(classes)
        write_npz(output, results, classes=names, info=np.array(json.dumps(info)))
    elif format == "ark":
        write_ark(output, results, series, classes)
    else:
        _write_text(output, format, [*HEAD, "label", "score"], cells, objects)


def write_events(output: Path, format: str, events: NamedEvents) -> None:
    """Write the events of files: DESED's table (tsv, csv), or objects (json, jsonl)."""
    if format == "tsv":  # without quotes, which the tools of DESED do not know
        with _streams(output) as [stream]:
            stream.writelines(_encode(f"{line}\n") for line in event_table(events))
        return
    cells = (line.split("\t") for line in event_table(events))
    objects = (
        f'{{"file": {json_text(name)}, "onset": {seconds(onset)}, '
        f'"offset": {seconds(offset)}, "label": {json_text(label)}}}'
        for name, file_events in events
        for onset, offset, label in file_events
    )
    _write_text(output, format, next(cells), cells, objects)


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
    descr = np.lib.format.dtype_to_descr(dtype)
    header = {"descr": descr, "fortran_order": False, "shape": shape}
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
        ark = out[".ark"]
        for rows in results:
            name = kaldi_id(rows.name)
            array = rows.values if series else rows.values[0]
            if array.ndim > 2:
                raise ValueError(
                    "ark holds vectors and matrices: choose one layer, or npz"
                )
            ark.write(_encode(f"{name} "))
            out[".scp"].write(_encode(f"{name} {paths['.ark']}:{ark.tell()}\n"))
            # Kaldi's binary format: a float vector or matrix, its sizes, its numbers
            ark.write(b"\0BFV " if array.ndim == 1 else b"\0BFM ")
            ark.writelines(struct.pack("<bi", 4, size) for size in array.shape)
            ark.write(array.astype("<f4").tobytes())
            if series:
                out[".segments"].writelines(
                    _encode(
                        f"{name}-{row:06d} {name} {seconds(start)} {seconds(end)}\n"
                    )
                    for row, (start, end) in enumerate(
                        zip(rows.starts, rows.ends, strict=True)
                    )
                )
        for label in classes or ():
            out[".classes.txt"].write(_encode(f"{label}\n"))


def kaldi_id(name: str) -> str:
    """A name without blanks; `urllib.parse.unquote` gives the name back."""

    def escaped(character: str) -> str:
        if character.isprintable() and not character.isspace() and character != "%":
            return character
        return "".join(f"%{byte:02X}" for byte in os.fsencode(character))

    return "".join(map(escaped, name))


def plain(name: str) -> str:
    """A name as text, with escapes for bytes that are not UTF-8."""
    return name.encode("utf-8", "backslashreplace").decode()


def seconds(value: float) -> str:
    """A time with microseconds where it has them."""
    return f"{value:.6f}".rstrip("0").rstrip(".")


def _write_text(
    output: Path,
    format: str,
    header: Sequence[str],
    cells: Iterable[Sequence[Any]],
    objects: Iterable[str],
) -> None:
    """Write the cells as csv or tsv, or the objects as json or jsonl, in UTF-8.

    Names that are not UTF-8 keep their bytes.
    """
    with (
        _streams(output) as [stream],
        io.TextIOWrapper(stream, "utf-8", "surrogateescape", newline="") as text,
    ):
        if format == "jsonl":
            text.writelines(f"{line}\n" for line in objects)
        elif format == "json":
            text.write("[")
            for number, line in enumerate(objects):
                text.write(f"{',' if number else ''}\n{line}")
            text.write("\n]\n")
        else:
            between = "\t" if format == "tsv" else ","
            table = csv.writer(text, delimiter=between, lineterminator="\n")
            table.writerow(header)
            table.writerows(cells)


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


def _rows(results: StoredRows) -> Iterator[tuple[list[str], np.ndarray]]:
    """Each row: its file, start and end, and its values."""
    for name, *arrays in results:
        for start, end, values in zip(*arrays, strict=True):
            yield [name, seconds(start), seconds(end)], values


def _object(head: Sequence[str], key: str, value: str) -> str:
    """A row as JSON; the value is JSON already."""
    name, start, end = head
    times = f'"start": {start}, "end": {end}'
    return f'{{"file": {json_text(name)}, {times}, "{key}": {value}}}'


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
    parts = _numbers(values) if values.ndim == 1 else map(_nested, values)
    return f"[{', '.join(parts)}]"


def _numbers(vector: np.ndarray) -> list[str]:
    """Numbers with the nine digits that give a float32 back."""
    return [f"{number:.9g}" for number in vector.tolist()]
