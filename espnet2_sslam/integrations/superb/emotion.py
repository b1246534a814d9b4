"""The lists of IEMOCAP's clips that s3prl's emotion recognition reads."""

import re
from pathlib import Path

from espnet2_sslam.store import write_json

SESSIONS = [f"Session{number}" for number in range(1, 6)]
LABELS = {"neu": 0, "hap": 1, "ang": 2, "sad": 3}
SAME = {"exc": "hap"}  # excited counts as happy
# [6.2901 - 8.2357]<tab>Ses01F_impro01_F000<tab>neu<tab>[2.5, 2.5, 2.5]
TURN = re.compile(r"\[.*?\]\s+(\S+)\s+(\w+)\s")


def write_emotion_lists(root: Path, folder: Path) -> list[Path]:
    """Write train_meta_data.json and test_meta_data.json for each session as test set.

    Args:
        root: IEMOCAP's folder with Session1 to Session5.
        folder: Where the lists go, one folder per session.

    Returns:
        All clips of the four emotions.

    Raises:
        ValueError: A session, its evaluations or its clips are missing.

    Source: s3prl's downstream/emotion/IEMOCAP_preprocess.py, by its results: files and
    clips are in the order of their names here.
    """
    sessions = {name: _clips(root, name) for name in SESSIONS}
    for name in SESSIONS:
        others = [
            clip for other in SESSIONS if other != name for clip in sessions[other]
        ]
        for split, clips in (("train", others), ("test", sessions[name])):
            content = {"labels": LABELS, "meta_data": clips}
            write_json(folder / name / f"{split}_meta_data.json", content)
    return [root / clip["path"] for clips in sessions.values() for clip in clips]


def _clips(root: Path, session: str) -> list[dict[str, str]]:
    """Path, label and speaker of each clip of a session that has one of the labels."""
    evaluations = sorted((root / session / "dialog/EmoEvaluation").glob("[!.]*.txt"))
    waves = {p.stem: p for p in (root / session / "sentences/wav").rglob("[!.]*.wav")}
    if not evaluations or not waves:
        raise ValueError(
            f"er: {root} needs {session}/dialog/EmoEvaluation/*.txt and "
            f"{session}/sentences/wav/*/*.wav of IEMOCAP"
        )
    clips = []
    for path in evaluations:
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            match = TURN.match(line)
            if match is None or match[1] not in waves:
                continue
            label = SAME.get(match[2], match[2])
            if label in LABELS:
                wave = waves[match[1]].relative_to(root)
                speaker = match[1].split("_")[0]
                clips.append({"path": str(wave), "label": label, "speaker": speaker})
    return clips
