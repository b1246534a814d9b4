"""Long recordings as consecutive clips: a data folder from a data folder.

The clips of a recording follow each other without gap or overlap, the last one to its
end; their ids say where they begin, and they keep its labels.
"""

import shutil
from functools import partial
from pathlib import Path

from espnet2_sslam.audio import AudioError, cut_name, duration, split_cut
from espnet2_sslam.corpus.lists import (
    CLASS_FILE,
    DOWNSTREAM_FILE,
    LABEL_FILE,
    MISSING_FILE,
    NOTES_FILE,
    WEIGHT_FILE,
    Clip,
    CorpusWriter,
    find_splits,
    read_downstream,
    read_sources,
    read_split,
    read_values,
    write_table,
)
from espnet2_sslam.corpus.parallel import Workers, parallel_map
from espnet2_sslam.store import write_bytes

LEAST_SECONDS = 0.5  # a tail below it is no clip of its own: 48 frames are 0.495 s


def places(start: float, length: float, seconds: float) -> list[float]:
    """Return where the clips of a recording begin, in seconds.

    A rest below LEAST_SECONDS belongs to the clip before it.
    """
    number = 1 + max(int((length - LEAST_SECONDS) // seconds), 0)
    return [round(start + index * seconds, 6) for index in range(number)]


def cut_source(source: str, seconds: float) -> list[tuple[float, str]] | None:
    """Return where each clip of a source begins and its `audio.cut_name`.

    None for a source that stays as it is: it is short enough, or cannot be read, which
    its formatting will say.
    """
    path, start, end = split_cut(source)
    start, end = start or 0.0, -1 if end is None else end
    try:
        begins = places(start, duration(source), seconds)
    except AudioError:
        return None
    if len(begins) == 1:
        return None
    ends = [*begins[1:], end]
    return [(b, cut_name(path, b, e)) for b, e in zip(begins, ends, strict=True)]


def cut_corpus(datadir: Path, outdir: Path, seconds: float, nj: Workers = 1) -> str:
    """Write a data folder in which no clip is longer than `seconds` and a short tail.

    Args:
        datadir: The data folder.
        outdir: The new one; what is there is replaced.
        seconds: Length of a clip.
        nj: Processes or an array job, to find the lengths.

    Returns:
        What was cut, in one line, which is in its notes too.

    A clip's id is the recording's with its place in seconds, `rec_00010.000`; its
    speaker is the recording, unless that has another. Weights for sampling are shared
    out among the clips of a recording.

    Raises:
        ValueError: Below 1 s, bad lists, or two clips of the same id.
    """
    if not seconds >= 1:
        raise ValueError(f"--cut must be 1 second or more, got {seconds:g}")
    shutil.rmtree(outdir, ignore_errors=True)
    names = find_splits(datadir)
    sources = sorted({s for name in names for _, s in read_sources(datadir / name)})
    work = partial(cut_source, seconds=seconds)
    cuts = dict(zip(sources, parallel_map(work, sources, nj, "lengths"), strict=True))
    cuts = {source: clips for source, clips in cuts.items() if clips}
    writer = CorpusWriter(outdir)
    notes = datadir / NOTES_FILE
    if notes.is_file():
        writer.notes = notes.read_text(encoding="utf-8").splitlines()
    count = sum(map(len, cuts.values()))
    text = (
        f"{len(cuts)} of {len(sources)} recordings are longer than {seconds:g} s and "
        f"were cut into {count} clips (a tail below {LEAST_SECONDS:g} s belongs to the "
        "clip before it)"
    )
    writer.note(text)
    for name in names:
        _cut_split(datadir, name, cuts, writer)
    for source in sorted(datadir.glob(f"*/{CLASS_FILE}")):
        for file in (source, source.with_name(LABEL_FILE)):
            if file.is_file():
                write_bytes(outdir / file.relative_to(datadir), file.read_bytes())
    runs = read_downstream(datadir) if (datadir / DOWNSTREAM_FILE).is_file() else []
    writer.finish(runs)
    return text


def _cut_split(
    datadir: Path,
    name: str,
    cuts: dict[str, list[tuple[float, str]]],
    writer: CorpusWriter,
) -> None:
    """Write one split of the new folder."""
    split, folder = read_split(datadir, name), writer.datadir / name
    weights = {}
    if (datadir / name / WEIGHT_FILE).is_file():
        path = datadir / name / WEIGHT_FILE
        weights = read_values(path, split.wav, float, subset=True)
    clips, shares = [], []
    for key, source in split.wav.items():
        labels = " ".join(split.labels[key]) if split.labels is not None else ""
        parts = cuts.get(source)
        for start, part in parts or [(0.0, source)]:
            own = f"{key}_{start:09.3f}" if parts else key
            speaker = split.speakers.get(key, key if parts else "")
            clips.append(Clip(own, part, labels, speaker))
            if key in weights:
                shares.append((own, f"{weights[key] / len(parts or [0]):.9g}"))
    labelled = split.labels is not None
    writer.add(name, clips, labelled=labelled, known_to_exist=True)
    write_table(folder / WEIGHT_FILE, sorted(shares) if weights else None)
    missing = datadir / name / MISSING_FILE
    if missing.is_file():
        write_bytes(folder / MISSING_FILE, missing.read_bytes())
