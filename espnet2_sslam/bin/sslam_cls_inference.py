"""Predict the classes of every clip of a list with a trained classifier."""

import argparse
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from espnet2_sslam.bin.cli import run_main
from espnet2_sslam.progress import Progress
from espnet2_sslam.store import read_yaml, writing
from espnet2_sslam.units import FRAME_SHIFT, SAMPLE_RATE


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
    text = "DIR/wav.scp,speech,sound or DIR/feats.scp,speech,kaldi_ark"
    add("--data_path_and_name_and_type", required=True, help=text)
    add("--output_dir", type=Path, required=True, help="where predictions.npz goes")
    add("--key_file", help="list of the clips to predict; all of the data by default")
    add("--batch_size", type=int, default=32, help="clips (default: 32)")
    add("--num_workers", type=int, default=0, help="processes that read clips")
    add("--ngpu", type=int, default=0, choices=(0, 1), help="1: use the GPU")
    return parser


def main(cmd: Sequence[str] | None = None, build: Callable | None = None) -> None:
    """Load, predict, write; `build` is for classifiers on other encoders."""
    from espnet2_sslam.checkpoint import load_weights
    from espnet2_sslam.classifier import classifier_from_config
    from espnet2_sslam.tasks import (
        ClipDataset,
        ClipPreprocessor,
        check_resampler,
        collate_clips,
        read_keys,
    )

    args = get_parser().parse_args(cmd)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    data = args.data_path_and_name_and_type
    if data.split(",")[1:2] != ["speech"] or data.count(",") != 2:
        raise ValueError(
            f"--data_path_and_name_and_type needs PATH,speech,TYPE: {data}"
        )
    if args.batch_size < 1:
        raise ValueError(f"--batch_size must be at least 1, got {args.batch_size}")
    keys = read_keys(Path(args.key_file or data.split(",")[0]))
    config = read_yaml(args.config)
    if not isinstance(config.get("class_list"), list):
        raise ValueError(f"{args.config} is not the config.yaml of a classifier")
    check_resampler(config.get("encoder_conf") or {}, [data.split(",")[0]])
    model = (build or classifier_from_config)(config).eval()
    load_weights(model, args.model_file)
    device = torch.device("cuda" if args.ngpu else "cpu")
    model.to(device)
    preprocess = ClipPreprocessor(
        False, max_samples=config["max_samples"], input_size=config["input_size"]
    )
    # ESPnet's annotation of `preprocess` is narrower than what it takes.
    source = [tuple(data.split(","))]
    dataset = ClipDataset(source, preprocess=preprocess)  # type: ignore
    dataset.check_keys(keys)
    size = args.batch_size
    batches = torch.utils.data.DataLoader(
        dataset,
        batch_sampler=[keys[i : i + size] for i in range(0, len(keys), size)],
        collate_fn=collate_clips,
        num_workers=args.num_workers,
    )
    ids, logits, scores = [], [], []
    shift = 1 if config["input_size"] == 1 else FRAME_SHIFT
    work = f"predictions of {args.model_file.name}"
    with torch.inference_mode(), Progress(work, len(keys), "clip") as progress:
        for names, batch in batches:
            lengths = batch["speech_lengths"].to(device)
            out = model.inference(batch["speech"].to(device), lengths)
            ids += names
            logits.append(out.float().cpu().numpy())
            scores.append(model.scores(out).cpu().numpy())
            samples = shift * int(batch["speech_lengths"].sum())
            progress.update(len(names), samples / SAMPLE_RATE)
    path = args.output_dir / "predictions.npz"
    with writing(path, "wb") as stream:
        np.savez(
            stream,
            ids=np.array(ids),
            scores=np.concatenate(scores),
            logits=np.concatenate(logits),
            classes=np.array(config["class_list"]),
        )
    logging.info("%d clips -> %s", len(ids), path)


if __name__ == "__main__":
    run_main(main)
