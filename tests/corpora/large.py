"""A list as long as AudioSet-2M's without audio: CSVs and the journal of a scan."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np

from espnet2_sslam.corpus import Record, dump

ALPHABET = np.array(
    list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_0123456789")
)
FULL = {"balanced": 22_160, "unbalanced": 2_041_789, "eval": 20_371}
CLASSES = 527
PER_FOLDER = 50_000
FILES = {
    "balanced": "balanced_train_segments.csv",
    "unbalanced": "unbalanced_train_segments.csv",
    "eval": "eval_segments.csv",
}


def ytids(count: int, rng: np.random.Generator) -> list:
    """Different video ids: a number in base 64 behind random letters."""
    letters = ALPHABET[rng.integers(64, size=(count, 7))]
    numbers = np.arange(count)[:, None] // 64 ** np.arange(4) % 64
    codes = np.concatenate([letters, ALPHABET[numbers]], axis=1)
    return ["".join(row) for row in codes]


def make(
    folder: Path, journal: Path, scale: float = 1.0, missing: float = 0.06
) -> None:
    """Write the CSVs below `folder` and a journal of a scan that found the audio.

    Args:
        folder: The corpus directory.
        journal: Where data preparation keeps its index.
        scale: Share of AudioSet's segments.
        missing: Share of the segments without audio.
    """
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    mids = [f"/m/0{number:05x}" for number in range(CLASSES)]
    lines = [f'{i},{mid},"Sound, number {i}"' for i, mid in enumerate(mids)]
    table = "\n".join(["index,mid,display_name", *lines]) + "\n"
    (folder / "class_labels_indices.csv").write_text(table)
    counts = {part: max(2, int(scale * count)) for part, count in FULL.items()}
    names = ytids(sum(counts.values()), rng)
    share = 1 / np.arange(1, CLASSES + 1)
    share /= share.sum()
    start = 0
    for part, count in counts.items():
        labels = rng.choice(CLASSES, size=(count, 3), p=share)
        with open(folder / FILES[part], "w") as file:
            file.write("# Segments csv created Sun Mar  5 10:54:31 2017\n")
            for name, row in zip(names[start : start + count], labels, strict=True):
                words = ",".join(dict.fromkeys(mids[i] for i in row))
                file.write(f'{name}, 30.000, 40.000, "{words}"\n')
        start += count
    there = [
        name
        for name, kept in zip(names, rng.random(start) >= missing, strict=True)
        if kept
    ]
    write_journal(folder, journal, there)


def write_journal(folder: Path, journal: Path, names: list) -> None:
    """The journal of a scan that found `names` in folders of 50,000 files."""
    groups = [names[i : i + PER_FOLDER] for i in range(0, len(names), PER_FOLDER)]
    folders = [f"unbalanced_train_segments_part{i:02d}" for i in range(len(groups))]
    for name in folders:
        (folder / name).mkdir()
    journal.parent.mkdir(parents=True, exist_ok=True)
    with open(journal, "w") as file:
        for name, found in [("", []), *zip(folders, groups, strict=True)]:
            entry = {
                "folder": name,
                "mtime": os.stat(folder / name).st_mtime_ns,
                "folders": [] if name else folders,
                "names": [f"Y{ytid}.wav" for ytid in found],
            }
            file.write(json.dumps(entry) + "\n")


def fake_record(source: str, outdir: Path, form: dump.Format) -> Record:
    """What formatting would say of a file, without it."""
    code = hashlib.sha256(source.encode()).hexdigest()
    audio = str(dump.target_path(outdir, source, form.audio_format))
    return Record(
        source=source,
        audio=audio,
        source_state=[10**6, 1, 1, 1],
        source_sha256=code,
        audio_state=[10**5, 1, 1, 1],
        file_sha256=code,
        audio_sha256=code,
        subtype="PCM_16",
        num_samples=160000,
        settings=str(form),
    )
