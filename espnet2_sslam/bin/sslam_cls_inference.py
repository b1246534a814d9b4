"""Predict the classes of every clip of a list with a trained classifier."""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import yaml
from tqdm import tqdm

from espnet2_sslam.bin.cli import run_main


def get_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        epilog="Writes OUTPUT_DIR/predictions.npz: ids (N,), scores (N, C) in 0..1, "
        "logits (N, C) and classes (C,), every clip of the list in its order.",
    )
    add = parser.add_argument
    add("--config", type=Path, required=True, help="config.yaml of the training")
    add("--model_file", type=Path, required=True, help="weights, e.g. latest.pth")
    add(
        "--data_path_and_name_and_type",
        required=True,
        help="DIR/wav.scp,speech,sound or DIR/feats.scp,speech,kaldi_ark",
    )
    add("--output_dir", type=Path, required=True, help="where predictions.npz goes")
    add("--key_file", help="list of the clips to predict; all of the data by default")
    add("--batch_size", type=int, default=32, help="clips per batch")
    add("--num_workers", type=int, default=0, help="processes that read clips")
    add("--ngpu", type=int, default=0, choices=(0, 1), help="1: use the GPU")
    return parser


def load_classifier(config_file: Path, model_file: Path, build: Callable | None = None):
    """Return the classifier in evaluation mode and its configuration.

    Args:
        config_file: config.yaml of the training.
        model_file: Its weights.
        build: Makes the classifier of the configuration; SSLAM's by default.

    Raises:
        ValueError: a file is missing, or the weights do not fit the configuration.
    """
    from espnet2_sslam.checkpoint import load_weights
    from espnet2_sslam.classifier import classifier_from_config

    for path in (config_file, model_file):
        if not path.is_file():
            raise ValueError(f"{path} does not exist: train the classifier")
    config = yaml.safe_load(config_file.read_text(encoding="utf-8"))
    if not isinstance(config, dict) or not isinstance(config.get("class_list"), list):
        raise ValueError(f"{config_file} is not the config.yaml of a classifier")
    model = (build or classifier_from_config)(config)
    load_weights(model, model_file)
    return model.eval(), config


def batches(
    config: dict,
    data: str,
    keys: list[str],
    *,
    batch_size: int,
    num_workers: int,
) -> Iterator[tuple[list[str], dict[str, torch.Tensor]]]:
    """Yield (ids, batch) over all clips in the order of `keys`."""
    from espnet2_sslam.tasks import (ClipDataset, ClipPreprocessor,
                                     collate_clips)

    preprocess = ClipPreprocessor(
        False, max_samples=config["max_samples"], input_size=config["input_size"]
    )
    dataset = ClipDataset([tuple(data.split(","))], preprocess=preprocess)
    dataset.check_keys(keys)
    rows = [keys[i : i + batch_size] for i in range(0, len(keys), batch_size)]
    return torch.utils.data.DataLoader(
        dataset, batch_sampler=rows, collate_fn=collate_clips, num_workers=num_workers
    )


def write_predictions(path: Path, **arrays: np.ndarray) -> None:
    """Write the file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(partial, "wb") as stream:
            np.savez(stream, **arrays)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def main(cmd: Sequence[str] | None = None, build: Callable | None = None) -> None:
    """Load, predict, write; `build` is for classifiers on other encoders."""
    from espnet2_sslam.tasks import read_keys

    args = get_parser().parse_args(cmd)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    data = args.data_path_and_name_and_type
    if len(data.split(",")) != 3 or data.split(",")[1] != "speech":
        raise ValueError(
            f"--data_path_and_name_and_type needs PATH,speech,TYPE: {data}"
        )
    if args.batch_size < 1:
        raise ValueError(f"--batch_size must be at least 1, got {args.batch_size}")
    list_file = Path(args.key_file or data.split(",")[0])
    if not list_file.is_file():
        raise ValueError(f"{list_file} does not exist: prepare the data first")
    keys = read_keys(list_file)
    model, config = load_classifier(args.config, args.model_file, build)
    device = torch.device("cuda" if args.ngpu else "cpu")
    model.to(device)

    ids, logits, scores = [], [], []
    options = {"batch_size": args.batch_size, "num_workers": args.num_workers}
    with torch.inference_mode(), tqdm(
        total=len(keys), unit="clip", disable=not sys.stderr.isatty()
    ) as progress:
        for names, batch in batches(config, data, keys, **options):
            lengths = batch["speech_lengths"].to(device)
            out = model.inference(batch["speech"].to(device), lengths)
            ids += names
            logits.append(out.float().cpu().numpy())
            scores.append(model.scores(out).cpu().numpy())
            progress.update(len(names))
    write_predictions(
        args.output_dir / "predictions.npz",
        ids=np.array(ids),
        scores=np.concatenate(scores),
        logits=np.concatenate(logits),
        classes=np.array(model.classes),
    )
    logging.info("%d clips -> %s", len(ids), args.output_dir / "predictions.npz")


if __name__ == "__main__":
    run_main(main)
