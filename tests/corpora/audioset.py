"""AudioSet: the official CSVs, audio named and placed as several tools leave it.

25 balanced, 30 unbalanced and 20 eval segments. Missing are MISSING; one label occurs
once, one file is there twice, one file of no clip lies about.
"""

import shutil
from pathlib import Path

from tests.corpora.sounds import Sounds

CLASSES = [  # index,mid,display_name, with commas and quotes as in the original
    ("/m/09x0r", "Speech"),
    ("/m/05zppz", "Male speech, man speaking"),
    ("/m/04rlf", "Music"),
    ("/g/122z_qxw", "Plop"),
    ("/t/dd00125", "Inside, small room"),
    ("/m/0bt9lr", "Dog"),
]
COUNTS = {"balanced": 25, "unbalanced": 30, "eval": 20}
MISSING = {"balanced": 2, "unbalanced": 3, "eval": 1}
FILES = {
    "balanced": "balanced_train_segments.csv",
    "unbalanced": "unbalanced_train_segments.csv",
    "eval": "eval_segments.csv",
}
ONCE = "/g/122z_qxw"  # a label of one balanced clip only
# How files are named and where they lie, in turn.
NAMES = (
    "{part}_train_segments/Y{ytid}.wav",
    "{part}_train_segments/part00/{ytid}.flac",
    "videos/{ytid}_{start:.3f}_{end:.3f}.wav",
    "videos/Y{ytid}_{start:.0f}.wav",
    "{part} wav/{ytid}_{milliseconds}.wav",
)


def ytid(part: str, number: int) -> str:
    """A video id of eleven characters; some begin with Y, - or _."""
    first = "Y-_ab"[number % 5]
    return f"{first}{part[:3]}_-{number:05d}"


def segments(part: str) -> list:
    """(ytid, start, labels) of a part."""
    rows = []
    for number in range(COUNTS[part]):
        labels = [CLASSES[number % 3][0], "/m/09x0r", CLASSES[4 + number % 2][0]]
        if part == "balanced" and number == 7:
            labels = [ONCE]
        labels = sorted(set(labels[: 1 + number % 3]))
        rows.append((ytid(part, number), 10.0 * (number % 4), labels))
    return rows


def make(folder: Path, clips=None) -> None:
    """Make the tree."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    table = ["index,mid,display_name"]
    table += [f'{i},{mid},"{name}"' for i, (mid, name) in enumerate(CLASSES)]
    # Without a newline at the end, as in the authors' copy.
    (folder / "class_labels_indices.csv").write_text("\n".join(table))
    sounds = Sounds(clips)
    for part, name in FILES.items():
        rows = segments(part)
        _write_csv(folder / name, rows, newline="\r\n" if part == "eval" else "\n")
        for number, (key, start, labels) in enumerate(rows[MISSING[part] :]):
            place = NAMES[number % len(NAMES)].format(
                part=part,
                ytid=key,
                start=start,
                end=start + 10,
                milliseconds=int(1000 * start),
            )
            sounds.write(folder / place, labels)
    last = next(folder.glob("balanced_train_segments/Y*.wav"))
    (folder / "zz_copies").mkdir()
    shutil.copy(last, folder / "zz_copies" / last.name)
    sounds.write(folder / "videos" / "intro.wav")


def _write_csv(path: Path, rows: list, newline: str) -> None:
    """The three lines of comment, then the segments."""
    videos, labels = len(rows), sum(len(labels) for _, _, labels in rows)
    lines = [
        "# Segments csv created Sun Mar  5 10:54:31 2017",
        f"# num_ytids={videos}, num_segs={videos}, num_unique_labels=6, "
        f"num_positive_labels={labels}",
        "# YTID, start_seconds, end_seconds, positive_labels",
    ]
    for key, start, names in rows:
        lines.append(f'{key}, {start:.3f}, {start + 10:.3f}, "{",".join(names)}"')
    path.write_bytes((newline.join(lines) + newline).encode())
