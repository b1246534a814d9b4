"""SPASS: five scenes of 16 clips, one row of a table for each event.

Folders have blanks for three scenes and `_` for two. STREET has clips of another length
(0.2 s where all others have 0.5 s, in place of 10 s). A label occurs once, a clip of
Park is missing, Square's table has a BOM and CRLF, Market has a file without rows.
"""

from pathlib import Path

from tests.corpora.sounds import Sounds

SCENES = ("Market", "Park", "Square", "Street", "Waterfront")
CLASSES = {
    "Market": "crowd talk music steps".split(),
    "Park": "bird dog talk wind rain".split(),
    "Square": "crowd siren car_moving steps".split(),
    "Street": "car_moving car_idling horn bus_moving talk braking".split(),
    "Waterfront": "Vwater river waves bird talk".split(),
}
CLIPS = 16
MISSING = "park00003.wav"
RARE = "fireworks"  # one clip of Waterfront
SHORT = ("street00002.wav", "street00009.wav")


def events(scene: str) -> list:
    """(file name, class) rows; a class comes several times in a clip."""
    rows = []
    for number in range(1, CLIPS + 1):
        name = f"{scene.lower()}{number:05d}.wav"
        classes = CLASSES[scene]
        chosen = [classes[(number + i) % len(classes)] for i in range(1 + number % 3)]
        if scene == "Waterfront" and number == 4:
            chosen.append(RARE)
        rows += [(name, label) for label in [*chosen, chosen[0]]]
    # Not in the order of names, as nothing promises it.
    return rows[5:] + rows[:5]


def make(folder: Path, clips=None) -> None:
    """Make the tree."""
    folder, sounds = Path(folder), Sounds(clips, rate=44100)
    for place, scene in enumerate(SCENES, 1):
        rows = events(scene)
        lines = ["id,audio_filename,class,start_time,end_time"]
        lines += [f"{i},{name},{label},0.5,3.2" for i, (name, label) in enumerate(rows)]
        table = folder / "SPASS_META_DATA" / f"{place}_MatrixLabels{scene}.csv"
        table.parent.mkdir(parents=True, exist_ok=True)
        odd = scene == "Square"
        text = ("\r\n" if odd else "\n").join(lines) + "\n"
        table.write_bytes(text.encode("utf-8-sig" if odd else "utf-8"))
        blank = " " if scene in ("Market", "Park", "Street") else "_"
        audio = folder / f"{scene} audio files".replace(" ", blank)
        for name in sorted({name for name, _ in rows}):
            if name != MISSING:
                labels = [label for other, label in rows if other == name]
                seconds = 0.2 if name in SHORT else 0.5
                sounds.write(audio / name, labels, seconds=seconds)
    sounds.write(folder / "Market audio files" / "market99999.wav")
