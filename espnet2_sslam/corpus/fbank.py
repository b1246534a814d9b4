"""Un-normalised log-mel of formatted audio: in kaldi ark files, and its statistics."""

import hashlib
import struct
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
import torch

from espnet2_sslam.corpus.dump import Record
from espnet2_sslam.corpus.lists import read_table, write_table
from espnet2_sslam.corpus.parallel import Workers, parallel_map
from espnet2_sslam.features import kaldi_fbank
from espnet2_sslam.store import file_state, replacing, sha256
from espnet2_sslam.units import FRAME_LENGTH, FRAME_SHIFT, NUM_MEL_BINS

PIECE_FRAMES = 6_000  # one minute: bounds the memory on long audio
CLIPS_PER_ARK = 256
ARK_HEADER = struct.Struct("<5sxixi")  # kaldi's, of a matrix: "\\0BFM ", rows, columns


def fbank_pieces(path: str) -> Iterator[np.ndarray]:
    """Log-mel (T, 128) of a 16 kHz mono file, one minute at a time.

    The mean of a piece is removed instead of the clip's; each frame's own mean is
    removed after that, so that the result is the same but for rounding.
    """
    with soundfile.SoundFile(path) as file:
        total = (file.frames - FRAME_LENGTH) // FRAME_SHIFT + 1
        for start in range(0, total, PIECE_FRAMES):
            frames = min(PIECE_FRAMES, total - start)
            file.seek(start * FRAME_SHIFT)
            size = (frames - 1) * FRAME_SHIFT + FRAME_LENGTH
            samples = file.read(size, dtype="float32")
            yield kaldi_fbank(torch.from_numpy(samples)[None])[0][0].numpy()


def fbank_sums(path: str) -> tuple[int, float, float]:
    """Frames, sum and sum of squares (float64) of one file's log-mel."""
    frames, total, squares = 0, 0.0, 0.0
    for piece in fbank_pieces(path):
        piece = piece.astype(np.float64)
        frames += len(piece)
        total += float(piece.sum())
        squares += float(np.square(piece).sum())
    return frames, total, squares


def fbank_statistics(paths: Sequence[str], nj: Workers) -> dict[str, float]:
    """Mean and std of the log-mel over all real frames of `paths`.

    Raises:
        ValueError: There is no file.
    """
    if not paths:
        raise ValueError("fbank statistics need at least one clip, got none")
    sums = parallel_map(
        fbank_sums, paths, nj, "fbank statistics", seconds=lambda each: each[0] / 100
    )
    frames, total, squares = (sum(column) for column in zip(*sums, strict=True))
    count = frames * NUM_MEL_BINS
    mean = total / count
    variance = max(0.0, squares / count - mean**2)
    return {"mean": mean, "std": variance**0.5, "num_frames": frames}


def write_fbanks(
    folder: Path, records: Sequence[Record], nj: Workers, verify: bool = False
) -> dict[str, tuple[str, int]]:
    """Write the log-mel of all formatted files into ark files below `folder`/feats.

    An ark is named after the audio in it and there only when whole: what a killed run
    finished is used again, unless its content has changed (looked at where size, time
    or inode have, or with `verify`).

    Returns:
        `<ark>:<offset>` and the number of frames, of each record's audio path.
    """
    records = sorted(records, key=lambda record: record.audio)
    parts = [
        records[i : i + CLIPS_PER_ARK] for i in range(0, len(records), CLIPS_PER_ARK)
    ]
    (folder / "feats").mkdir(parents=True, exist_ok=True)
    work = partial(_write_ark, folder=folder / "feats", verify=verify)
    locations: dict[str, tuple[str, int]] = {}
    for scp, part in zip(
        parallel_map(work, parts, nj, "fbank arks", chunk=1, unit="ark"),
        parts,
        strict=True,
    ):
        for record, (where, frames) in zip(part, scp, strict=True):
            locations[record.audio] = (where, frames)
    return locations


def ark_shape(location: str) -> tuple[int, int, int] | None:
    """Rows, columns and first byte of a matrix in an ark; None of another format.

    Args:
        location: `<ark>:<offset>`; only uncompressed float matrices are looked into.
    """
    path, _, offset = location.rpartition(":")
    if not offset.isdigit():
        return None
    with open(path, "rb") as file:
        file.seek(int(offset))
        head = file.read(ARK_HEADER.size)
    if len(head) < ARK_HEADER.size:
        return None
    magic, rows, columns = ARK_HEADER.unpack(head)
    return (rows, columns, int(offset) + len(head)) if magic == b"\0BFM " else None


def read_ark_rows(location: str, choose: Callable[[int], tuple[int, int]]):
    """Rows of a matrix in an ark, (T, columns) float32; None of another format.

    Args:
        location: See `ark_shape`.
        choose: The matrix's rows -> the first row and the end of those to read.
    """
    shape = ark_shape(location)
    if shape is None:
        return None
    rows, columns, first = shape
    start, end = choose(rows)
    path = location.rpartition(":")[0]
    offset, count = first + 4 * start * columns, (end - start) * columns
    return np.fromfile(path, "<f4", count, offset=offset).reshape(-1, columns)


def _write_ark(
    records: list[Record], folder: Path, verify: bool
) -> list[tuple[str, int]]:
    """Write one ark file; location and frames of each record."""
    import kaldiio  # here, as only this format needs it

    content = "\n".join(record.content for record in records)
    name = hashlib.sha256(content.encode()).hexdigest()[:16]
    ark, scp = folder / f"{name}.ark", folder / f"{name}.scp"
    if not _is_whole(ark, scp, len(records), verify):
        lines: list[tuple] = []
        with replacing(ark) as part, open(part, "wb") as file:
            for i, record in enumerate(records):
                key = f"{i:06d}"
                fbank = _whole_fbank(record)
                lines.append((key, f"{file.tell() + len(key) + 1} {len(fbank)}"))
                kaldiio.save_ark(file, {key: fbank})
        lines += [("sha256", sha256(ark)), ("state", _state(ark))]
        write_table(scp, lines)
    table = read_table(scp)
    offsets = (line.split() for key, line in table.items() if key.isdigit())
    return [(f"{ark}:{offset}", int(frames)) for offset, frames in offsets]


def _whole_fbank(record: Record) -> np.ndarray:
    """Log-mel (T, 128) of one file, with room for it taken once."""
    frames = (record.num_samples - FRAME_LENGTH) // FRAME_SHIFT + 1
    fbank = np.empty((frames, NUM_MEL_BINS), np.float32)
    start = 0
    for piece in fbank_pieces(record.audio):
        fbank[start : start + len(piece)] = piece
        start += len(piece)
    assert start == frames, (record.audio, start, frames)
    return fbank


def _is_whole(ark: Path, scp: Path, count: int, verify: bool) -> bool:
    """Whether an earlier run finished this ark, and it is still what it was."""
    if not (ark.is_file() and scp.is_file()):
        return False
    table = read_table(scp)
    state = _state(ark)
    if table.get("state") != state or verify:
        if table.get("sha256") != sha256(ark):
            return False
        table["state"] = state  # looked at: not again
        write_table(scp, table.items())
    return len(table) == count + 2


def _state(path: Path) -> str:
    return ",".join(map(str, file_state(path)))
