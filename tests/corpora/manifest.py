"""The authors' manifest of AudioSet-20K, with the files it names.

The number behind a path is the rate 32000, the ids are Y<ytid>, label_descriptors.csv
has no newline at its end and quoted names, one clip is missing. The root in the first
line is `root`, the audio of the tree by default.
"""

from pathlib import Path

from tests.corpora.audioset import CLASSES, segments
from tests.corpora.sounds import Sounds

FOLDERS = {
    "train": ("balanced", "balanced_train_segments"),
    "eval": ("eval", "eval_segments"),
}
MISSING = 1  # of eval


def make(folder: Path, clips=None, root=None) -> None:
    """Make the tree."""
    folder, sounds = Path(folder), Sounds(clips, rate=32000)
    audio = folder / "wav"
    for split, (part, inside) in FOLDERS.items():
        tsv, lbl = [f"{root or audio}/"], []
        for number, (ytid, _, labels) in enumerate(segments(part)):
            tsv.append(f"{inside}/Y{ytid}.wav\t32000")
            lbl.append(f"Y{ytid}\t{','.join(labels)}")
            if not (split == "eval" and number == 3):
                sounds.write(audio / inside / f"Y{ytid}.wav", labels)
        (folder / f"{split}.tsv").write_text("\n".join(tsv) + "\n")
        (folder / f"{split}.lbl").write_text("\n".join(lbl) + "\n")
    rows = (f'{i},{mid},"{name}"' for i, (mid, name) in enumerate(CLASSES))
    (folder / "label_descriptors.csv").write_text("\n".join(rows))
