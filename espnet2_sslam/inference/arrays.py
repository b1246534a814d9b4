"""Results of many files -> NumPy's npz or Kaldi's ark, and files that appear whole."""

import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import (
    Any,
    Protocol,
)

import kaldiio
import numpy as np

from espnet2_sslam.inference.rows import Rows


class Results(Protocol):
    """What the writers read, more than once: one `Rows` per file."""

    names: Sequence[str]
    shapes: Sequence[tuple[int, ...]]

    def __iter__(self) -> Iterator[Rows]: ...


def write_npz(
    output: Path, results: Results, extra: Mapping[str, np.ndarray] = {}
) -> None:
    """Write ids, values, starts and ends of all rows as one .npz for `numpy.load`."""
    shapes = results.shapes
    inner = {shape[1:] for shape in shapes}
    if len(inner) != 1:
        raise ValueError(f"results of different shapes: {sorted(inner)}")
    total = sum(shape[0] for shape in shapes)
    longest = max(len(plain(name)) for name in results.names)
    with whole_files(output) as [stream], zipfile.ZipFile(stream, "w") as archive:
        # Repeated names deflate to nothing; values would not.
        ids = np.dtype(f"<U{max(longest, 1)}")
        with _member(archive, "ids", ids, (total,), zipfile.ZIP_DEFLATED) as file:
            for name, shape in zip(results.names, shapes):
                file.write(np.full(shape[0], plain(name), ids).tobytes())
        times: dict[str, list[np.ndarray]] = {"starts": [], "ends": []}
        values = np.dtype("<f4")
        with _member(archive, "values", values, (total, *inner.pop())) as file:
            for rows in results:
                file.write(np.ascontiguousarray(rows.values, values).data.cast("B"))
                times["starts"].append(rows.starts)
                times["ends"].append(rows.ends)
        whole = {name: np.concatenate(parts) for name, parts in times.items()}
        for name, array in {**whole, **extra}.items():
            array = np.ascontiguousarray(array).reshape(array.shape)
            with _member(archive, name, array.dtype, array.shape) as file:
                file.write(array.tobytes())


@contextmanager
def _member(archive, name, dtype, shape, compression=zipfile.ZIP_STORED):
    """A file of the archive, after the header of an array; without a date."""
    info = zipfile.ZipInfo(f"{name}.npy")
    info.compress_type = compression
    with archive.open(info, "w", force_zip64=True) as file:
        header = {
            "descr": np.lib.format.dtype_to_descr(dtype),
            "fortran_order": False,
            "shape": shape,
        }
        np.lib.format.write_array_header_1_0(file, header)
        yield file


def write_ark(
    output: Path,
    results: Results,
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
    wanted = {
        ".ark": True,
        ".segments": series,
        ".classes.txt": classes is not None,
        ".scp": True,
    }
    base = output.with_suffix("") if output.suffix in (".ark", ".scp") else output
    suffixes = [suffix for suffix, used in wanted.items() if used]
    paths = [base.with_name(base.name + suffix) for suffix in suffixes]
    with whole_files(*paths) as streams:
        out = dict(zip(suffixes, streams))
        for rows in results:
            name = kaldi_id(rows.name)
            array = rows.values if series else rows.values[0]
            if array.ndim > 2:
                raise ValueError(
                    "ark holds vectors and matrices: choose one layer, or npz"
                )
            place = f"{name} {paths[0]}:{out['.ark'].tell() + len(name.encode()) + 1}\n"
            kaldiio.save_ark(out[".ark"], {name: np.ascontiguousarray(array, "<f4")})
            out[".scp"].write(place.encode("utf-8", "surrogateescape"))
            if series:
                lines = [
                    f"{name}-{row:06d} {name} {seconds(start)} {seconds(end)}\n"
                    for row, (start, end) in enumerate(zip(rows.starts, rows.ends))
                ]
                out[".segments"].write("".join(lines).encode())
        if classes is not None:
            text = "".join(f"{label}\n" for label in classes)
            out[".classes.txt"].write(text.encode())


def plain(name: str) -> str:
    """A name as text, with escapes for bytes that are not UTF-8."""
    return name.encode("utf-8", "backslashreplace").decode()


def kaldi_id(name: str) -> str:
    """A name without blanks; `urllib.parse.unquote` gives the name back."""
    return "".join(
        c if c.isprintable() and not c.isspace() and c != "%" else _quoted(c)
        for c in name
    )


def _quoted(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in os.fsencode(character))


@contextmanager
def whole_files(*paths: Path) -> Iterator[list[Any]]:
    """Open files to write that appear together at the end, or, on an error, never."""
    temporary = [path.with_name(f".{path.name}.tmp") for path in paths]
    try:
        with ExitStack() as stack:
            streams = [stack.enter_context(open(path, "wb")) for path in temporary]
            yield streams
            for stream in streams:
                stream.flush()
                os.fsync(stream.fileno())
        for source, path in zip(temporary, paths):
            os.replace(source, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(paths[0])) from error
    finally:
        for path in temporary:
            path.unlink(missing_ok=True)


def seconds(value: float) -> str:
    """A time with microseconds where it has them."""
    return f"{value:.6f}".rstrip("0").rstrip(".")
