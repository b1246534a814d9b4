"""Whether a resumed training is the one that was started: options, lists, processes."""

import argparse
import hashlib
import logging
from pathlib import Path, PurePath

import yaml
from espnet2.train.distributed_utils import get_num_nodes, get_world_size

from espnet2_sslam import store
from espnet2_sslam.config import OPERATIONAL, differences
from espnet2_sslam.corpus import CONTENT_FILE, table_lines
from espnet2_sslam.tasks.saving import has_checkpoint


def record(args: argparse.Namespace) -> None:
    """Add to the options what else decides the result: lists, number of processes."""
    args.list_sha256 = list_hashes(args)
    args.world_size = world_size(args)


def world_size(args: argparse.Namespace) -> int:
    """Return the number of training processes that there will be, on all nodes."""
    if args.multiprocessing_distributed:
        nodes = get_num_nodes(args.dist_world_size, args.dist_launcher)
        return (nodes or 1) * max(args.ngpu, 1)
    return get_world_size(args.dist_world_size, args.dist_launcher)


def list_hashes(args: argparse.Namespace) -> dict[str, str]:
    """SHA-256 of what each list and file names or holds, wherever it lies."""
    hashes = {}
    for part in ("train", "valid"):
        for path, name, kind in getattr(args, f"{part}_data_path_and_name_and_type"):
            places = not kind.startswith("text")
            hashes[f"{part} {name}"] = (
                _content_hash(Path(path)) if places else store.sha256(path)
            )
        for path in getattr(args, f"{part}_shape_file"):
            hashes[f"{part} {PurePath(path).name}"] = store.sha256(path)
    if args.sample_weights is not None:
        hashes["sample_weights"] = store.sha256(args.sample_weights)
    for number, source in enumerate(args.init_param, 1):
        path, _, parts = source.partition(":")
        if Path(path).is_file():  # not needed once the training has begun
            hashes[f"init_param {number}"] = f"{store.sha256(path)}:{parts}"
    return hashes


def _content_hash(path: Path) -> str:
    """A hash of the clips of a list by content, where a list beside it says that.

    Otherwise by the names of their files without the folders, which may move.
    """
    contents, names = hashlib.sha256(), hashlib.sha256()
    beside = path.with_name(CONTENT_FILE)
    known = table_lines(beside) if beside.is_file() else iter(())
    complete = True
    for _, key, place in table_lines(path):
        names.update(f"{key} {place.rpartition('/')[2]}\n".encode())
        _, same, content = next(known, (0, "", ""))
        complete = complete and key == same
        contents.update(f"{key} {content}\n".encode())
    return contents.hexdigest() if complete else names.hexdigest()


def check_unchanged(args: argparse.Namespace) -> None:
    """Refuse to resume another training than the one that is there.

    A raised `max_epoch` goes on, and the schedule follows it. With `keep` everything
    does, and kept.txt says what differs.

    Raises:
        ValueError: All that differs, old and new, or no config.yaml to compare with.
    """
    output_dir = Path(args.output_dir)
    config = output_dir / "config.yaml"
    if not (args.resume and has_checkpoint(output_dir)):
        return
    if not config.exists():
        raise ValueError(
            f"{config} is missing beside checkpoint.pth: delete {output_dir} and train "
            "again"
        )
    before = store.read_yaml(config)
    if hasattr(args, "padding"):  # a training from before there was the option
        before.setdefault("padding", "authors")
    now = yaml.safe_load(yaml.safe_dump(vars(args)))  # tuples as lists
    longer = now["max_epoch"] > before.get("max_epoch", now["max_epoch"])
    different = []
    for name in sorted(now.keys() & before.keys()):
        if not OPERATIONAL.fullmatch(name):
            different += differences(f"--{name}", before[name], now[name])
    different = [
        row
        for row in different
        if not (longer and row[0] == "--scheduler_conf total_steps")
        and not (row[0].startswith("--list_sha256 init_param") and row[2] == "nothing")
    ]
    length = ("--max_epoch", before.get("max_epoch"), now["max_epoch"])
    if length[1] != length[2]:  # which the user knows, not what follows from it
        different = [
            length if row[0] == "--scheduler_conf total_steps" else row
            for row in different
        ]
    said = "; ".join(
        f"{name} {old}, this run has {new}" for name, old, new in different
    )
    if different and not args.keep:
        raise ValueError(
            f"{output_dir} was trained with {said}: resume with the same settings, "
            "give a new --output_dir, or go on nevertheless with --keep true"
        )
    if different:
        logging.warning(f"{output_dir} was trained with {said}: goes on (--keep true)")
        store.note_kept(output_dir, different)
