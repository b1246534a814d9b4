#!/usr/bin/env python3
"""Fine-tune a model on your own clips, a folder for each class, in plain PyTorch.

Example: python examples/fine_tune.py models/sslam labelled/ models/birds --epochs 20

`labelled/dog/a.wav` is a `dog`. A fifth of each class is held out and scored after each
epoch; pieces of one recording in both parts flatter the score. For clips with several
labels, resumable runs, several GPUs and tables beside a random encoder take the recipe
(docs/own-data.md).
"""

import argparse
import random
from pathlib import Path

import numpy as np
import torch

from espnet2_sslam import SSLAMClassifier
from espnet2_sslam.audio import collect_files, read_audio
from espnet2_sslam.bin.cli import run_main
from espnet2_sslam.checkpoint import load_model, save_model

RATE = 16_000


def split(folder: Path, seed: int) -> tuple[list[str], list[tuple], list[tuple]]:
    """Return the classes, and (file, class index) of training and of held-out clips."""
    classes = sorted(p.name for p in folder.iterdir() if p.is_dir())
    train, valid = [], []
    for index, name in enumerate(classes):
        files = [item.path for item in collect_files([str(folder / name)])]
        random.Random(seed).shuffle(files)
        held_out = max(1, len(files) // 5)
        valid += [(file, index) for file in files[:held_out]]
        train += [(file, index) for file in files[held_out:]]
    return classes, train, valid


def batches(clips: list[tuple], size: int, seconds: float, num_classes: int, draw=None):
    """Waveforms (B, N), lengths (B,) and labels (B, C); a random part in training."""
    for start in range(0, len(clips), size):
        waves, part = [], clips[start : start + size]
        for file, _ in part:
            wave, longest = read_audio(file), round(seconds * RATE)
            begin = draw.randrange(max(1, len(wave) - longest + 1)) if draw else 0
            waves.append(torch.from_numpy(wave[begin : begin + longest]))
        lengths = torch.tensor([len(wave) for wave in waves])
        speech = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
        index = torch.tensor([index for _, index in part])
        yield speech, lengths, torch.nn.functional.one_hot(index, num_classes)


def main() -> None:
    """Train, score after each epoch, and write the model as `sslam tag` reads it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("model", help="folder, the authors' file or Hugging Face id")
    add("clips", type=Path, help="folder of folders, one for each class")
    add("output", type=Path, help="folder to write the fine-tuned model to")
    add("--epochs", type=int, default=20, help="passes over the clips (default: 20)")
    add("--batch_size", type=int, default=16, help="clips in an update (default: 16)")
    add("--lr", type=float, default=1e-4, help="highest learning rate (default: 1e-4)")
    add("--seconds", type=float, default=10.0, help="longest part of a clip (10)")
    add("--frozen", action="store_true", help="train the head only: faster, few labels")
    add("--overwrite", action="store_true", help="replace a model in output")
    add("--seed", type=int, default=0, help="of the split, the head and the order (0)")
    args = parser.parse_args()

    if args.output.exists() and not args.overwrite:
        raise ValueError(f"{args.output} is there already: --overwrite replaces it")
    torch.manual_seed(args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    classes, train, valid = split(args.clips, args.seed)
    if len(classes) < 2 or not train:
        raise ValueError(
            f"{args.clips} needs two folders of clips or more, one a class"
        )
    model = SSLAMClassifier(
        load_model(args.model).encoder,
        classes,
        task="multi_class",
        freeze_encoder=args.frozen,
        pooling="mean",
    ).to(device)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, args.lr, weight_decay=0.05)
    updates = args.epochs * -(-len(train) // args.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, updates)

    draw = random.Random(args.seed)
    loading = (args.batch_size, args.seconds, len(classes))
    for epoch in range(1, args.epochs + 1):
        draw.shuffle(train)
        model.train()
        losses = []
        for batch in batches(train, *loading, draw):
            loss, _, _ = model(*(tensor.to(device) for tensor in batch))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        model.eval()
        right = 0
        with torch.no_grad():
            for speech, lengths, labels in batches(valid, *loading):
                scores = model.inference(speech.to(device), lengths.to(device))
                right += int((scores.argmax(1).cpu() == labels.argmax(1)).sum())
        share = f"{100 * right / len(valid):.1f} % of held-out clips right"
        print(f"epoch {epoch}: loss {np.mean(losses):.3f}, {share}")
    save_model(model.cpu(), args.output)
    print(f"written: {args.output}")


if __name__ == "__main__":
    run_main(main)
