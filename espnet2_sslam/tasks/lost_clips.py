"""A training whose list has lost clips goes on as the one with the whole list.

Its passes and their order follow from the whole list, so a training keeps, in its
folder, what its lists say. With `--keep true` the clips that a list has lost take their
places again, as clips that cannot be read: see `bad_clips`.
"""

import argparse
import gzip
from collections.abc import Iterator
from pathlib import Path

from espnet2_sslam import store
from espnet2_sslam.tasks.data import LOST
from espnet2_sslam.tasks.saving import has_checkpoint

FOLDER = "lists"
ACCEPTED = "lost.txt"  # ids that were accepted as lost
BESIDE = ("utt2num_samples", "utt2num_frames", "utt2sha256")  # of the list of audio


def remember(args: argparse.Namespace) -> None:
    """Keep what the training lists of a new training say, files without their folders.

    Raises:
        OSError: It cannot be written.
    """
    output_dir = Path(args.output_dir)
    if has_checkpoint(output_dir) or args.dry_run or args.collect_stats:
        return
    (output_dir / FOLDER / ACCEPTED).unlink(missing_ok=True)
    for name, path in _lists(args).items():
        lines = _lines(path.read_bytes())
        if name == "speech":
            lines = {
                uid: uid + b" " + line.split(None, 1)[-1].rpartition(b"/")[2]
                for uid, line in lines.items()
            }
        with store.writing(output_dir / FOLDER / f"{name}.gz", "wb") as stream:
            # no name and time: equal lists make equal files
            with gzip.GzipFile("", "wb", 1, stream, 0) as packed:
                packed.writelines(lines.values())


def go_on_without(args: argparse.Namespace) -> None:
    """Put clips that the lists of a resumed training have lost back, as lost.

    Of lists that have anything else, nothing is changed: `settings` refuses them.
    """
    output_dir = Path(args.output_dir)
    folder = output_dir / FOLDER
    if not (args.resume and has_checkpoint(output_dir) and folder.is_dir()):
        return
    agreed = folder / ACCEPTED
    if not (args.keep or agreed.exists()):
        return
    now = {name: _lines(path.read_bytes()) for name, path in _lists(args).items()}
    before = {name: _lines(_unpacked(folder / f"{name}.gz")) for name in now}
    lost: dict[bytes, None] = {}
    for name, lines in now.items():
        if not lines.keys() <= before[name].keys():
            return
        lost |= dict.fromkeys(uid for uid in before[name] if uid not in lines)
    known = agreed.read_bytes().split() if agreed.exists() else []
    if not lost or not (args.keep or lost.keys() <= set(known)):
        return
    for name, lines in before.items():
        for uid, line in lines.items():
            if name == "speech" and uid not in now[name]:
                line = uid + f" {LOST}/".encode() + line.split(None, 1)[-1]
            lines[uid] = now[name].get(uid, line)
    _use(args, before, folder / "used")
    with store.writing(agreed, "wb") as stream:
        stream.writelines(uid + b"\n" for uid in dict.fromkeys([*known, *lost]))


def accepted(args: argparse.Namespace) -> bool:
    """Whether the training goes on without clips that its lists have lost."""
    return args.resume and (Path(args.output_dir) / FOLDER / ACCEPTED).exists()


def _use(
    args: argparse.Namespace, lists: dict[str, dict[bytes, bytes]], folder: Path
) -> None:
    """Write lists and let the options name them."""

    def write(name: str, file: str) -> str:
        with store.writing(folder / file, "wb") as stream:
            stream.writelines(lists[name].values())
        return str(folder / file)

    args.train_data_path_and_name_and_type = [
        (write(name, name), name, kind)
        for _, name, kind in args.train_data_path_and_name_and_type
    ]
    args.train_shape_file = [
        write(f"shape{number}", f"shape{number}/{Path(path).name}")
        for number, path in enumerate(args.train_shape_file)
    ]
    if args.sample_weights is not None:
        args.sample_weights = write("weights", "weights")
    for name in BESIDE:
        if name in lists:
            write(name, name)


def _lists(args: argparse.Namespace) -> dict[str, Path]:
    """The lists of the training clips by what they hold."""
    paths = {}
    for path, name, _ in args.train_data_path_and_name_and_type:
        paths[name] = Path(path)
    for name in BESIDE:
        if (beside := paths["speech"].with_name(name)).is_file():
            paths[name] = beside
    for number, path in enumerate(args.train_shape_file):
        paths[f"shape{number}"] = Path(path)
    if args.sample_weights is not None:
        paths["weights"] = Path(args.sample_weights)
    return paths


def _lines(text: bytes) -> dict[bytes, bytes]:
    """The lines of a list by their ids, each as it is."""

    def pairs() -> Iterator[tuple[bytes, bytes]]:
        for line in text.splitlines(keepends=True):
            if words := line.split(None, 1):
                yield words[0], line

    return dict(pairs())


def _unpacked(path: Path) -> bytes:
    """What a list has said.

    Raises:
        ValueError: It is damaged, or was not kept.
    """
    try:
        return gzip.decompress(path.read_bytes())
    except (OSError, EOFError) as error:
        raise ValueError(
            f"{path} cannot be read ({type(error).__name__}): without it a training "
            "does not go on when its list has lost clips; restore the clips' lines"
        ) from None
