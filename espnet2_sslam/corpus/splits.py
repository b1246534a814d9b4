"""The splits of a corpus with everything checked that needs no audio."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from espnet2_sslam.corpus.datadir import (
    find_splits,
    read_downstream,
    read_split_labels,
    read_table,
    table_lines,
)


@dataclass
class Split:
    """The lists of one split.

    `speakers` has the clips whose speaker is not themselves, `labels` is None without a
    `text`.
    """

    name: str
    wav: dict[str, str]
    speakers: dict[str, str]
    labels: dict[str, list[str]] | None


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
    speakers = _read_speakers(folder, wav)
    return Split(name, wav, speakers, read_split_labels(datadir, name, list(wav)))


def _read_speakers(folder: Path, wav: dict[str, str]) -> dict[str, str]:
    """Speaker of each clip that is not its own."""
    speakers: dict[str, str] = {}
    if not (folder / "utt2spk").is_file():
        return speakers
    read, extra = 0, []
    for _, key, name in table_lines(folder / "utt2spk"):
        read += 1
        if key not in wav:
            extra.append(key)
        elif name != key:
            speakers[key] = name
    if extra or read != len(wav):
        # Off the common path: say exactly what differs.
        different = sorted(set(read_table(folder / "utt2spk")) ^ set(wav))
        raise ValueError(
            f"{folder}: {different[0]!r} is in only one of wav.scp and utt2spk "
            f"({len(different)} such id(s)); both must list the same clips"
        )
    return speakers


def read_corpus(datadir: Path) -> list[Split]:
    """All splits as `checked_splits` gives them, at once."""
    return list(checked_splits(datadir))


def checked_splits(datadir: Path) -> Iterator[Split]:
    """Read and check downstream.txt and the splits, one at a time.

    Raises:
        ValueError: As `read_split`; a labelled run names a split without labels; a
            clip of a multi_class run has not exactly one label.
    """
    names = find_splits(datadir)
    runs = read_downstream(datadir)
    for run in runs:
        for name in (run.train, run.valid, *run.tests):
            if name not in names or not (Path(datadir) / name / "text").is_file():
                raise ValueError(
                    f"{Path(datadir) / name}/text is missing, but downstream.txt uses "
                    f"this split for {run.name!r}"
                )
    single = [run for run in runs if run.task == "multi_class"]
    exclusive = {name for run in single for name in (run.train, run.valid, *run.tests)}
    for name in names:
        # No name for the split here: it would be kept while the next one is read.
        yield _checked(read_split(datadir, name), datadir, name in exclusive)


def _checked(split: Split, datadir: Path, exclusive: bool) -> Split:
    """The split, if its clips have one label each where they must."""
    if exclusive:
        _check_one_label(Path(datadir) / split.name, split.labels)
    return split


def _check_one_label(folder: Path, labels: dict[str, list[str]]) -> None:
    """A clip of a multi-class set has exactly one label."""
    for key, of_clip in labels.items():
        if len(of_clip) != 1:
            raise ValueError(
                f"{folder}/text: {key!r} has {len(of_clip)} labels, multi_class needs "
                "exactly one; correct it or use multi_label in downstream.txt"
            )
