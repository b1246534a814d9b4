"""Results of many files -> outputs: CSV, JSON, NumPy, Kaldi, tables for other tools.

Each file is written whole or not at all.

`FORMATS` is the table of formats: a name, which is the suffix too, and what writes a
`Content`. All of them stream: the memory is that of one file's result. The same results
give the same bytes. In text a row is a clip, a window or a time step, times are in
seconds.
"""

import csv
import io
import json
import os
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple
from urllib.parse import quote

import numpy as np

from espnet2_sslam import store
from espnet2_sslam.audio import SUFFIXES
from espnet2_sslam.inference.api import Label
from espnet2_sslam.inference.events import Event
from espnet2_sslam.inference.results import TIMES, VALUES, StoredRows
from espnet2_sslam.units import SAMPLE_RATE

HEAD = ("file", "start", "end")
Choose = Callable[[np.ndarray], list[Label]]
NamedEvents = Iterable[tuple[str, list[Event]]]  # of each file
# Formats with a file for each recording, and how its name ends.
PER_RECORDING = {
    "audacity": ".txt",
    "raven": ".Table.1.selections.txt",  # as Raven names them
    "scores": ".tsv",
}


class Content(NamedTuple):
    """What is written, as the formats take it."""

    header: Sequence[str]  # of the columns
    cells: Iterable[Sequence[str]]  # rows of a table (csv, tsv)
    objects: Iterable[Mapping[str, Any]]  # rows (json, jsonl)
    results: StoredRows | None = None  # all values (npz, ark)
    series: bool = False  # a file may have several rows (windows, time steps)
    info: Mapping[str, Any] = {}  # what the results are (model, options)
    classes: Sequence[str] | None = None  # of the values


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
    - ark: NAME.ark and NAME.scp, see `_write_ark`.

    Args:
        output: File to write; put in place in one step when it is complete.
        info, series: See `Content`.
    """
    *inner, width = results.shapes[0][1:]
    header = ["layer"] * len(inner) + [f"v{index}" for index in range(width)]
    cells = (
        [*head, *[str(layer)] * len(inner), *(f"{x:.9g}" for x in vector)]
        for head, _, values in _rows(results)
        for layer, vector in enumerate(values.reshape(-1, width).tolist())
    )
    # Nine digits give a float32 back.
    shorter = np.vectorize(lambda x: float(f"{x:.9g}"), otypes=[float])
    objects = (
        {**times, "values": shorter(values).tolist()}
        for _, times, values in _rows(results)
    )
    content = Content([*HEAD, *header], cells, objects, results, series, info)
    FORMATS[format](output, content)


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
        for head, _, scores in _rows(results)
        for label, score in choose(scores)
    )
    objects = (
        {
            **times,
            "labels": [
                {"label": label, "score": float(f"{score:.6g}")}
                for label, score in choose(scores)
            ],
        }
        for _, times, scores in _rows(results)
    )
    header = [*HEAD, "label", "score"]
    content = Content(header, cells, objects, results, series, info, classes)
    FORMATS[format](output, content)


def write_events(output: Path, format: str, events: NamedEvents) -> None:
    """Write the events of files into one file.

    - tsv, csv: DESED's table, see `event_table`.
    - json, jsonl: objects with file, onset, offset, label, confidence.
    - audacity: labels of one recording, onset, offset and label between tabs. Without
      the confidence: Audacity does not show it, and sed_eval refuses four columns.
    - raven: a selection table of one recording, over all that the model hears.
    """
    if format in EVENT_LINES:
        text = "".join(f"{line}\n" for line in EVENT_LINES[format](events))
        store.write_bytes(output, text.encode("utf-8", "surrogateescape"))
        return
    cells = (line.split("\t") for line in event_table(events))
    objects = (
        {
            "file": name,
            "onset": round(onset, 6),
            "offset": round(end, 6),
            "label": label,
            "confidence": round(confidence, 6),
        }
        for name, file_events in events
        for onset, end, label, confidence in file_events
    )
    FORMATS[format](output, Content(next(cells), cells, objects))


def recording_path(folder: Path, name: str, format: str) -> Path:
    """The file of a recording in the folder of a `PER_RECORDING` format.

    Folders in its name are folders there; its suffix is replaced.
    """
    path = Path(name)
    parts = [part for part in path.parts[:-1] if part not in (path.anchor, "..")]
    stem = path.stem if path.suffix.lower() in SUFFIXES else path.name
    return Path(folder, *parts, stem + PER_RECORDING[format])


def write_event_files(folder: Path, format: str, events: NamedEvents) -> None:
    """Write a file for each recording: format audacity or raven of `write_events`."""
    for name, file_events in events:
        path = recording_path(folder, name, format)
        write_events(path, format, [(name, file_events)])


def write_score_tables(
    folder: Path, results: StoredRows, classes: Sequence[str]
) -> None:
    """Write the scores of time steps (T, C) as sed_scores_eval reads them.

    A .tsv for each recording: onset, offset and a column for each class. A step begins
    exactly where the one before it ends.

    Source: fgnt/sed_scores_eval@c7a3b71, base_modules/scores.py.
    """
    for name, starts, ends, scores in results:
        edges = [_seconds(time) for time in (*starts, ends[-1])]
        with store.writing(recording_path(folder, name, "scores")) as text:
            text.write(f"{_tsv_line(['onset', 'offset', *classes])}\n")
            for start, end, row in zip(edges[:-1], edges[1:], scores, strict=True):
                text.write("\t".join([start, end, *(f"{x:.9g}" for x in row)]) + "\n")


def event_table(events: NamedEvents) -> Iterator[str]:
    """DESED's table: header first, tabs between, seconds with three decimals.

    Its tools find their columns by name, so the confidence may stand behind. A file
    without events has no row, as in DESED's predictions.
    """
    yield "filename\tonset\toffset\tevent_label\tconfidence"
    for name, file_events in events:
        for event in file_events:
            onset, offset, label, confidence = _event_cells(event)
            yield _tsv_line([name, onset, offset, label, confidence])


def _audacity_lines(events: NamedEvents) -> Iterator[str]:
    """Labels without a header, as Audacity imports them."""
    for _, file_events in events:
        yield from (_tsv_line(_event_cells(event)[:3]) for event in file_events)


def _raven_lines(events: NamedEvents) -> Iterator[str]:
    """A selection table: times within the recording, one channel, all frequencies."""
    yield (
        "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\t"
        "High Freq (Hz)\tBegin File\tFile Offset (s)\tAnnotation\tConfidence"
    )
    frequencies = "0", str(SAMPLE_RATE // 2)
    for name, file_events in events:
        for number, event in enumerate(file_events, start=1):
            onset, offset, *label = _event_cells(event)
            place = *frequencies, os.path.basename(name), onset
            head = str(number), "Spectrogram 1", "1", onset, offset
            yield _tsv_line([*head, *place, *label])


EVENT_LINES = {"audacity": _audacity_lines, "raven": _raven_lines}


def _event_cells(event: Event) -> tuple[str, str, str, str]:
    """Onset, offset, label and confidence as text."""
    onset, offset, label, confidence = event
    return f"{onset:.3f}", f"{offset:.3f}", label, f"{confidence:.4f}"


def output_format(
    output: str | Path, chosen: str | None, allowed: Sequence[str]
) -> str:
    """The format of an output: the chosen one, else by its suffix.

    Raises:
        ValueError: Neither says which, or it is not among the allowed ones.
    """
    suffix = Path(output).suffix.lower()
    name = chosen or {".scp": "ark"}.get(suffix, suffix[1:])
    if name not in allowed:
        got = f"--format {chosen}" if chosen else f"suffix {suffix or '(none)'}"
        raise ValueError(
            f"{output}: need one of the formats {', '.join(allowed)}, got {got}; name "
            "the output with such a suffix or give --format"
        )
    return name


def _write_csv(output: Path, content: Content) -> None:
    with _text(output) as text:
        table = csv.writer(text, lineterminator="\n")
        table.writerow(content.header)
        table.writerows(content.cells)


def _write_tsv(output: Path, content: Content) -> None:
    with _text(output) as text:
        text.write(f"{_tsv_line(content.header)}\n")
        text.writelines(f"{_tsv_line(cells)}\n" for cells in content.cells)


def _write_json(output: Path, content: Content) -> None:
    with _text(output) as text:
        text.write("[")
        for number, row in enumerate(content.objects):
            text.write(f"{',' if number else ''}\n{_json(row)}")
        text.write("\n]\n")


def _write_jsonl(output: Path, content: Content) -> None:
    with _text(output) as text:
        text.writelines(f"{_json(row)}\n" for row in content.objects)


def _write_npz(output: Path, content: Content) -> None:
    """Write arrays for `numpy.load`, part by part: `savez` needs them in memory."""
    results, times = content.results, []
    assert results is not None

    def values() -> Iterator[np.ndarray]:
        for rows in results:
            times.append((rows.starts, rows.ends))
            yield rows.values

    names = [plain(name) for name in results.names]
    counts = [shape[0] for shape in results.shapes]
    text, total = np.dtype(f"<U{max(map(len, names))}"), sum(counts)
    ids = (np.full(n, name, text) for name, n in zip(names, counts, strict=True))
    # name -> type, shape, parts; in this order: `times` come with the values
    arrays: dict[str, tuple[np.dtype, tuple[int, ...], Iterable[np.ndarray]]] = {
        "ids": (text, (total,), ids),
        "values": (VALUES, (total, *results.shapes[0][1:]), values()),
        "starts": (TIMES, (total,), (starts for starts, _ in times)),
        "ends": (TIMES, (total,), (ends for _, ends in times)),
    }
    extra = {"classes": content.classes, "info": json.dumps(content.info)}
    for name, value in extra.items():
        if value is not None:
            array = np.array(value)
            arrays[name] = array.dtype, array.shape, [array]
    with _streams(output) as [stream], zipfile.ZipFile(stream, "w") as archive:
        for name, (dtype, shape, parts) in arrays.items():
            info = zipfile.ZipInfo(f"{name}.npy")  # without a date
            if name == "ids":  # names repeat; values would not get smaller
                info.compress_type = zipfile.ZIP_DEFLATED
            descr = np.lib.format.dtype_to_descr(dtype)
            header = {"descr": descr, "fortran_order": False, "shape": shape}
            with archive.open(info, "w", force_zip64=True) as file:
                np.lib.format.write_array_header_1_0(file, header)
                file.writelines(part.tobytes() for part in parts)


def _write_ark(output: Path, content: Content) -> None:
    """Write NAME.ark and NAME.scp, as Kaldi's tools and ESPnet read them.

    A vector per file, or for a series a matrix with a row per window or time step,
    whose times NAME.segments lists (`<id>-<row> <id> <start> <end>`). Ids are the
    files' names, blanks and % written as in a URL.

    Raises:
        ValueError: All layers of a series: Kaldi has no arrays of three dimensions.
    """
    results, series = content.results, content.series
    assert results is not None
    if series and len(results.shapes[0]) > 2:
        raise ValueError("ark holds vectors and matrices: choose one layer, or npz")
    base = output.with_suffix("") if output.suffix in (".ark", ".scp") else output
    suffixes = [".scp", *[".segments"] * series]
    suffixes += [".classes.txt"] * (content.classes is not None)
    suffixes += [".ark"]  # put in place first
    paths = {suffix: base.with_name(base.name + suffix) for suffix in suffixes}
    with _streams(*paths.values()) as streams:
        out = dict(zip(paths, streams, strict=True))

        def line(suffix: str, text: str) -> None:
            out[suffix].write(f"{text}\n".encode("utf-8", "surrogateescape"))

        ark = out[".ark"]
        for name, starts, ends, values in results:
            key, array = _kaldi_id(name), values if series else values[0]
            ark.write(f"{key} ".encode())
            line(".scp", f"{key} {paths['.ark']}:{ark.tell()}")
            # Kaldi's binary format: a float vector or matrix, its sizes, its numbers
            ark.write(b"\0BFV " if array.ndim == 1 else b"\0BFM ")
            ark.writelines(struct.pack("<bi", 4, size) for size in array.shape)
            ark.write(array.tobytes())
            if series:
                for row, (start, end) in enumerate(zip(starts, ends, strict=True)):
                    times = f"{_seconds(start)} {_seconds(end)}"
                    line(".segments", f"{key}-{row:06d} {key} {times}")
        for label in content.classes or ():
            line(".classes.txt", label)


FORMATS: dict[str, Callable[[Path, Content], None]] = {
    "csv": _write_csv,
    "tsv": _write_tsv,
    "json": _write_json,
    "jsonl": _write_jsonl,
    "npz": _write_npz,
    "ark": _write_ark,
}


def plain(name: str) -> str:
    """A name as text, with escapes for bytes that are not UTF-8."""
    return name.encode("utf-8", "backslashreplace").decode()


def _rows(
    results: StoredRows,
) -> Iterator[tuple[list[str], dict[str, Any], np.ndarray]]:
    """Each row: its file, start and end as cells and as an object; its values."""
    for name, *arrays in results:
        for start, end, values in zip(*arrays, strict=True):
            times = {"file": name, "start": round(start, 6), "end": round(end, 6)}
            yield [name, _seconds(start), _seconds(end)], times, values


def _seconds(value: float) -> str:
    """A time with microseconds where it has them."""
    return f"{value:.6f}".rstrip("0").rstrip(".")


def _tsv_line(cells: Iterable[str]) -> str:
    """Cells between tabs, without quotes, which the tools of DESED do not know."""
    return "\t".join(
        " ".join(cell.split()) if any(c in cell for c in "\t\n\r") else cell
        for cell in cells
    )


def _json(row: Mapping[str, Any]) -> str:
    """An object; what is no character (bytes of a file's name) stays escaped."""
    return plain(json.dumps(row, ensure_ascii=False))


def _kaldi_id(name: str) -> str:
    """A name without blanks; `urllib.parse.unquote` gives the name back."""
    return "".join(
        c if c.isprintable() and not c.isspace() and c != "%" else quote(os.fsencode(c))
        for c in name
    )


@contextmanager
def _text(output: Path) -> Iterator[IO[str]]:
    """Text in UTF-8; names that are not keep their bytes."""
    with (
        _streams(output) as [stream],
        io.TextIOWrapper(stream, "utf-8", "surrogateescape", newline="") as text,
    ):
        yield text


@contextmanager
def _streams(*paths: Path) -> Iterator[list[IO[bytes]]]:
    """Files that appear at the end, the last one first, or, on an error, never.

    What killed writers of these files have left is removed.
    """
    try:
        with ExitStack() as stack:
            for path in paths:
                store.remove_leftovers_of(path)
            yield [stack.enter_context(store.writing(path, "wb")) for path in paths]
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(paths[-1])) from error
