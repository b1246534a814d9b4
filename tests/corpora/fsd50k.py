"""FSD50K: two folders of audio named by number, and the ground truth.

12 training, 4 validation and 6 evaluation clips of five classes; one evaluation clip is
missing, labels are propagated upwards (several per clip).
"""

from pathlib import Path

from tests.corpora.sounds import Sounds

CLASSES = [
    ("Accelerating_and_revving_and_vroom", "/m/07q2z82"),
    ("Animal", "/m/0jbk"),
    ("Bird", "/m/015p6"),
    ("Domestic_sounds_and_home_sounds", "/t/dd00071"),
    ("Toothbrush", "/m/012xff"),
]
COUNTS = {"train": 12, "val": 4, "eval": 6}
MISSING = "9004.wav"


def make(folder: Path, clips=None) -> None:
    """Make the tree."""
    folder, sounds = Path(folder), Sounds(clips, rate=44100)
    truth = folder / "FSD50K.ground_truth"
    truth.mkdir(parents=True)
    lines = (f"{i},{name},{mid}\n" for i, (name, mid) in enumerate(CLASSES))
    (truth / "vocabulary.csv").write_text("".join(lines))
    tables = {"dev": ["fname,labels,mids,split"], "eval": ["fname,labels,mids"]}
    for split, count in COUNTS.items():
        part = "eval" if split == "eval" else "dev"
        for number in range(count):
            name = {"train": 1000, "val": 5000, "eval": 9000}[split] + number
            chosen = [CLASSES[number % 5]]
            if chosen[0][0] == "Bird":
                chosen.append(CLASSES[1])
            labels = ",".join(label for label, _ in chosen)
            mids = ",".join(mid for _, mid in chosen)
            row = f'{name},"{labels}","{mids}"'
            tables[part].append(row + (f",{split}" if part == "dev" else ""))
            if f"{name}.wav" != MISSING:
                audio = folder / f"FSD50K.{part}_audio" / f"{name}.wav"
                sounds.write(audio, labels.split(","), seconds=0.3 + 0.05 * number)
    for part, rows in tables.items():
        (truth / f"{part}.csv").write_text("\n".join(rows) + "\n")
