"""Whether a resumed training is the one that was started: options, lists, processes."""

import argparse
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

import yaml
from espnet2.train.distributed_utils import get_num_nodes, get_world_size

from espnet2_sslam import store
from espnet2_sslam.corpus import table_lines
from espnet2_sslam.tasks.saving import has_checkpoint

# What may change on the way: how a training is run, logged and kept, how long it is,
# and where its lists lie; what is in them may not.
FREE = re.compile(
    r"config|output_dir|resume|version|required|distributed|dry_run|collect_stats|"
    r"write_collected_feats|print_config|ngpu|num_workers|max_cache_fd|dist_.*|"
    r"local_rank|multiprocessing_distributed|log_.*|use_tensorboard|use_matplotlib|"
    r"use_wandb|wandb_.*|create_graph_in_tensorboard|num_att_plot|detect_anomaly|"
    r"checkpoint_.*|min_target_var|min_prediction_var|collapse_from|max_epoch|"
    r"patience|early_stopping_criterion|compile|activation_checkpointing|use_tf32|"
    r"cudnn_.*|unused_parameters|gradient_as_bucket_view|.*_path_and_name_and_type|"
    r".*_shape_file|sample_weights|max_bad|keep|stall_minutes"
)


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
    """SHA-256 of each list; of one of files without their folders, which may move."""
    hashes = {}
    for part in ("train", "valid"):
        for path, name, kind in getattr(args, f"{part}_data_path_and_name_and_type"):
            places = not kind.startswith("text")
            hashes[f"{part} {name}"] = (
                _names_hash(path) if places else store.sha256(path)
            )
        for path in getattr(args, f"{part}_shape_file"):
            hashes[f"{part} {PurePath(path).name}"] = store.sha256(path)
    if args.sample_weights is not None:
        hashes["sample_weights"] = store.sha256(args.sample_weights)
    return hashes


def _names_hash(path: str) -> str:
    digest = hashlib.sha256()
    for _, key, place in table_lines(Path(path)):
        digest.update(f"{key} {place.rpartition('/')[2]}\n".encode())
    return digest.hexdigest()


def check_unchanged(args: argparse.Namespace) -> None:
    """Refuse to resume another training than the one that is there.

    A raised `max_epoch` goes on, and the schedule follows it.

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
        if not FREE.fullmatch(name):
            different += differences(f"--{name}", before[name], now[name])
    different = [
        f"{name} {old}, this run has {new}"
        for name, old, new in different
        if not (longer and name == "--scheduler_conf total_steps")
    ]
    if different:
        raise ValueError(
            f"{output_dir} was trained with {'; '.join(different)}: resume with the "
            "same settings or give a new --output_dir"
        )


def differences(name: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    """Every value that differs: its name, in sections too, the old and the new one."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            pair = old.get(key, "nothing"), new.get(key, "nothing")
            yield from differences(f"{name} {key}", *pair)
    elif old != new:
        yield name, old, new
