"""URBAN-SED: audio and annotations in three splits, .txt and .jams.

12/6/6 clips. A clip of train has no event, one of test only a .jams file, one of
validate no audio, and one audio file of train no annotation.
"""

import json
from pathlib import Path

from tests.corpora.sounds import Sounds

CLASSES = (
    "air_conditioner car_horn children_playing dog_bark drilling engine_idling "
    "gun_shot jackhammer siren street_music"
).split()
COUNTS = {"train": 12, "validate": 6, "test": 6}
SILENT = "soundscape_train_bimodal3"
JAMS_ONLY = "soundscape_test_uniform2"
MISSING = "soundscape_validate_unimodal1"
BARE = "soundscape_train_uniform99"
FORMS = ("bimodal", "unimodal", "uniform")


def clip_events(number: int) -> list:
    """(start, end, label) of a clip's events; a label may come twice."""
    labels = [CLASSES[(3 * number + i) % 10] for i in range(1 + number % 3)]
    labels += labels[:1] if number % 2 else []
    return [(0.5 * i, 0.5 * i + 1.25, label) for i, label in enumerate(labels)]


def jams(events: list) -> str:
    """A jams file as scaper writes it, with the background as an event of its own."""

    def observation(start, end, label, role):
        value = {"label": label, "source_file": f"{label}.wav", "role": role, "snr": 9}
        return {
            "time": start,
            "duration": end - start,
            "value": value,
            "confidence": 1.0,
        }

    data = [observation(0.0, 10.0, "noise", "background")]
    data += [observation(*event, "foreground") for event in events]
    annotation = {"namespace": "scaper", "data": data, "sandbox": {"scaper": {}}}
    return json.dumps({"annotations": [annotation], "file_metadata": {"duration": 10}})


def make(folder: Path, clips=None) -> None:
    """Make the tree."""
    folder, sounds = Path(folder), Sounds(clips, rate=44100)
    for split, count in COUNTS.items():
        notes = folder / "annotations" / split
        notes.mkdir(parents=True)
        for number in range(count):
            stem = f"soundscape_{split}_{FORMS[number % 3]}{number}"
            events = [] if stem == SILENT else clip_events(number)
            (notes / f"{stem}.jams").write_text(jams(events))
            if stem != JAMS_ONLY:
                lines = (f"{start}\t{end}\t{label}\n" for start, end, label in events)
                (notes / f"{stem}.txt").write_text("".join(lines))
            if stem != MISSING:
                labels = [label for *_, label in events]
                sounds.write(folder / "audio" / split / f"{stem}.wav", labels)
    sounds.write(folder / "audio" / "train" / f"{BARE}.wav")
