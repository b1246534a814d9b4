"""What must be right before a training starts; each complaint is one line."""

import argparse
from collections.abc import Iterable
from pathlib import Path

import yaml

# Options that shape the updates: a resumed run must repeat them.
FIXED_BY_CHECKPOINT = (
    "seed",
    "batch_size",
    "drop_last_iter",
    "accum_grad",
    "num_iters_per_epoch",
    "balanced_clips_per_epoch",
    "sample_weights",
    "max_samples",
    "input_size",
    "optim",
    "optim_conf",
    "optim_groups_conf",
    "scheduler",
    "scheduler_conf",
    "grad_clip",
    "grad_clip_type",
    "train_dtype",
    "use_amp",
    "keep_nbest_models",
)

# option, allowed values, what to do: other values train, but not as this package needs.
SUPPORTED = (
    ("iterator_type", ("sequence",), "leave it at sequence"),
    ("valid_iterator_type", (None, "sequence"), "leave it at sequence"),
    ("batch_type", ("unsorted",), "leave it at unsorted and set --batch_size"),
    ("valid_batch_type", (None, "unsorted"), "leave it at unsorted"),
    ("multiple_iterator", (False,), "give one list with all clips"),
    ("multi_task_dataset", (False,), "give one list per data name"),
    ("max_cache_size", (0.0,), "set it to 0: a cached clip would never change"),
    ("allow_multi_rates", (False,), "format the data to 16 kHz (stage 2)"),
    ("use_adapter", (False,), "freeze parts with --freeze_param instead"),
    ("use_deepspeed", (False,), "use --multiprocessing_distributed true"),
    ("sharded_ddp", (False,), "use --multiprocessing_distributed true"),
    ("train_dtype", ("float32", "float64"), "use --use_amp true for speed"),
    ("exclude_weight_decay", (False,), "use --optim_groups_conf"),
)


def check_options(args: argparse.Namespace) -> None:
    """Refuse options under which training or resuming would not be what it says.

    Raises:
        ValueError: naming the first such option and what to set instead.
    """
    for name, allowed, remedy in SUPPORTED:
        value = getattr(args, name)
        if value not in allowed:
            raise ValueError(f"--{name} {value} is not supported here: {remedy}")
    if args.ngpu > 1 and not args.multiprocessing_distributed:
        raise ValueError(
            f"--ngpu {args.ngpu} needs --multiprocessing_distributed true (one process "
            "per GPU)"
        )
    if args.output_dir is None:
        raise ValueError("--output_dir is needed: where to keep checkpoints and logs")
    for name in ("batch_size", "accum_grad", "max_epoch", "num_iters_per_epoch"):
        value = getattr(args, name)
        if value is None and name == "num_iters_per_epoch":
            continue
        if type(value) is not int or value < 1:
            raise ValueError(
                f"--{name} must be a whole number from 1 up, got {value!r}: correct it"
            )


def check_data_files(args: argparse.Namespace, required: Iterable[str]) -> None:
    """Raise ValueError unless all required lists are there and not empty."""
    for part in ("train", "valid"):
        option = f"{part}_data_path_and_name_and_type"
        if not getattr(args, option):
            raise ValueError(
                f"--{option} is needed, for example dump/raw/pretrain/{part}/wav.scp,"
                "speech,sound"
            )
        names = [name for _, name, _ in getattr(args, option)]
        missing = [name for name in required if name not in names]
        if missing:
            raise ValueError(
                f"--{option} gives {', '.join(names)}, but {', '.join(missing)} is "
                "needed too: repeat the option for each, as in DIR/text,label,text"
            )
        paths = [path for path, _, _ in getattr(args, option)]
        for path in [*paths, *getattr(args, f"{part}_shape_file")]:
            if not Path(path).is_file() or Path(path).stat().st_size == 0:
                state = "is empty" if Path(path).is_file() else "does not exist"
                raise ValueError(f"{path} {state}: run stages 1 and 2 of run.sh first")


def check_sampling(args: argparse.Namespace) -> None:
    """Raise ValueError for a list of weights that is not there or empty."""
    path = args.sample_weights
    if path is not None and (not Path(path).is_file() or not Path(path).stat().st_size):
        raise ValueError(
            f"--sample_weights {path} does not exist or is empty: run stages 1 and 2 "
            "of run.sh first, or leave it out"
        )


def check_accumulation(iterations: int, accum_grad: int) -> None:
    """Raise ValueError if an epoch would end within an accumulated update.

    ESPnet carries the left-over gradient into the next epoch and loses it on resume.
    """
    if iterations % accum_grad:
        rounded = max(iterations // accum_grad, 1) * accum_grad
        raise ValueError(
            f"an epoch of {iterations} iterations is not a multiple of --accum_grad "
            f"{accum_grad}: a resumed run would differ; set --num_iters_per_epoch "
            f"{rounded}"
        )


def check_unchanged(args: argparse.Namespace) -> None:
    """Raise ValueError if a run to be resumed was started with other settings."""
    output_dir = Path(args.output_dir)
    config = output_dir / "config.yaml"
    if not (args.resume and (output_dir / "checkpoint.pth").exists()):
        return
    if not config.exists():
        raise ValueError(
            f"{config} is missing beside checkpoint.pth: delete {output_dir} and train "
            "again"
        )
    with open(config, encoding="utf-8") as stream:
        before = yaml.safe_load(stream) or {}
    for name in FIXED_BY_CHECKPOINT:
        now = yaml.safe_load(yaml.safe_dump(getattr(args, name)))
        if name in before and before[name] != now:
            raise ValueError(
                f"{output_dir} was trained with --{name} {before[name]}, this run has "
                f"{now}: resume with the same settings or give a new --output_dir"
            )
