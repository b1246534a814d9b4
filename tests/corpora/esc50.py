"""ESC-50: meta/esc50.csv and audio/ with the names {fold}-{clip}-{take}-{target}.wav.

Five folds of 8 clips, four classes, two takes of each recording.
"""

from pathlib import Path

from tests.corpora.sounds import Sounds

CLASSES = {0: "dog", 10: "rain", 31: "mouse_click", 49: "hand_saw"}
HEADER = "filename,fold,target,category,esc10,src_file,take"


def make(folder: Path, clips=None) -> None:
    """Make the tree."""
    folder, sounds = Path(folder), Sounds(clips, rate=44100)
    lines = [HEADER]
    for fold in range(1, 6):
        for target, category in CLASSES.items():
            source = 10000 * fold + target
            for take in "AB":
                name = f"{fold}-{source}-{take}-{target}.wav"
                esc10 = target in (0, 10)
                lines.append(
                    f"{name},{fold},{target},{category},{esc10},{source},{take}"
                )
                sounds.write(folder / "audio" / name, [category])
    (folder / "meta").mkdir()
    (folder / "meta" / "esc50.csv").write_text("\n".join(lines) + "\n")
