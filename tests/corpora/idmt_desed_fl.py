"""IDMT-DESED-FL in the layout that the recipe assumes (the real one is not known).

Audio in train/<client>/ and test/, with .txt beside half of the clips and .jams in a
folder of their own for the others. `make_tables` has DESED's tables instead.
"""

from pathlib import Path

from tests.corpora.sounds import Sounds
from tests.corpora.urbansed import jams

CLASSES = (
    "Alarm_bell_ringing Blender Cat Dishes Dog Electric_shaver_toothbrush Frying "
    "Running_water Speech Vacuum_cleaner"
).split()
COUNTS = {"train": 12, "validation": 4, "test": 6}


def clip_events(number: int) -> list:
    """(start, end, label) of a clip's events."""
    labels = [CLASSES[(3 * number + i) % 10] for i in range(1 + number % 3)]
    return [(0.25 * i, 0.25 * i + 2.0, label) for i, label in enumerate(labels)]


def make(folder: Path, clips=None) -> None:
    """Make the tree."""
    folder, sounds = Path(folder), Sounds(clips)
    for split, count in COUNTS.items():
        for number in range(count):
            inside = f"client{number % 3}" if split == "train" else "."
            audio = folder / split / inside / f"{split}_{number}.wav"
            events = clip_events(number)
            sounds.write(audio, [label for *_, label in events])
            if number % 2:
                lines = (f"{start}\t{end}\t{label}\n" for start, end, label in events)
                audio.with_suffix(".txt").write_text("".join(lines))
            else:
                notes = folder / "annotations" / split / f"{audio.stem}.jams"
                notes.parent.mkdir(parents=True, exist_ok=True)
                notes.write_text(jams(events))


def make_tables(folder: Path, clips=None) -> None:
    """Make the audio with one table for each split, as DESED has them."""
    folder, sounds = Path(folder), Sounds(clips)
    for split, count in COUNTS.items():
        lines = ["filename\tonset\toffset\tevent_label"]
        for number in range(count):
            name = f"{split}_{number}.wav"
            events = clip_events(number)
            sounds.write(folder / "audio" / split / name, [e[2] for e in events])
            lines += [
                f"{name}\t{start}\t{end}\t{label}" for start, end, label in events
            ]
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n")
