"""The splits of a corpus with everything checked that needs no audio."""

from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional

from espnet2_sslam.corpus.datadir import (
    find_splits,
    read_downstream,
    read_split_labels,
    read_table,
)


@dataclass
class Split:
    """The lists of one split; `labels` is None without a `text`."""

    name: str
    wav: Dict[str, str]
    speakers: Dict[str, str]
    labels: Optional[Dict[str, List[str]]]


def read_split(datadir: Path, name: str) -> Split:
    """Read and check one split.

    Raises:
        ValueError: No clip, an id without a file or twice, a `segments` file, lists
            (wav.scp, utt2spk, text) that do not hold the same ids, or a label outside
            classes.txt.
    """
    folder = Path(datadir) / name
    wav = read_table(folder / "wav.scp")
    if not wav:
        raise ValueError(
            f"{folder}/wav.scp is empty: a split needs at least one clip, add some or "
            "remove the split"
        )
    for key, path in wav.items():
        if not path or path.endswith("|"):
            what = "a command" if path else "no file"
            raise ValueError(
                f"{folder}/wav.scp: the id {key!r} has {what} behind it; an audio file "
                "is needed"
            )
    if (folder / "segments").is_file():
        raise ValueError(
            f"{folder}/segments is not supported: cut the recordings into one file per "
            "clip first"
        )
    speakers = {key: key for key in wav}
    if (folder / "utt2spk").is_file():
        speakers = read_table(folder / "utt2spk")
        different = sorted(set(speakers) ^ set(wav))
        if different:
            raise ValueError(
                f"{folder}: {different[0]!r} is in only one of wav.scp and utt2spk "
                f"({len(different)} such id(s)); both must list the same clips"
            )
    return Split(name, wav, speakers, read_split_labels(datadir, name, list(wav)))


def read_corpus(datadir: Path) -> List[Split]:
    """Read and check all splits and downstream.txt.

    Raises:
        ValueError: As `read_split`; a labelled run names a split without labels; a
            clip of a multi_class run has not exactly one label.
    """
    splits = {name: read_split(datadir, name) for name in find_splits(datadir)}
    for run in read_downstream(datadir):
        for name in (run.train, run.valid, *run.tests):
            labels = splits[name].labels if name in splits else None
            if labels is None:
                raise ValueError(
                    f"{Path(datadir) / name}/text is missing, but downstream.txt uses "
                    f"this split for {run.name!r}"
                )
            if run.task == "multi_class":
                _check_one_label(Path(datadir) / name, labels)
    return list(splits.values())


def _check_one_label(folder: Path, labels: Dict[str, List[str]]) -> None:
    """A clip of a multi-class set has exactly one label."""
    for key, of_clip in labels.items():
        if len(of_clip) != 1:
            raise ValueError(
                f"{folder}/text: {key!r} has {len(of_clip)} labels, multi_class needs "
                "exactly one; correct it or use multi_label in downstream.txt"
            )
