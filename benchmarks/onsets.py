"""What finer steps bring to the onsets of events: made recordings with known onsets.

    python benchmarks/onsets.py --data us8k-mini --updates 400

Sounds of four classes are cut where they begin and laid over a quiet background, three
in ten seconds. A small classifier (random at first) is trained on windows of 1 s, as a
clip classifier is. Two ways to events, each with steps of 160 / k ms:

- windows: `SSLAM.tag_frames`, the score of the window of 1 s around each step
- frames: `SSLAM.embed_files(pooling="frames")` with `time_shifts=k` and a logistic
  regression on the steps, trained for this k: one hears the 160 ms that begin with it

FOLDER holds audio/ and one .csv with filename, label and split (train, test).
"""

import argparse
import csv
import time
from pathlib import Path

import numpy as np
import torch

from espnet2_sslam import SSLAM, SSLAMClassifier, SSLAMEncoder
from espnet2_sslam.audio import read_audio
from espnet2_sslam.inference import find_events

CLASSES = ("car_horn", "dog_bark", "drilling", "siren")
BACKGROUNDS = ("air_conditioner", "engine_idling")
RATE, SECONDS, SLOTS = 16_000, 10.0, 3
LOUDER = 25.0  # dB, of a sound over the background
FILTERS = {"threshold": 0.5, "median": 0.48, "min_duration": 0.25}
COLLAR = 0.2  # s; an offset may be off by a fifth of the event, too
NEAR = 1.0  # s: an onset further away belongs to something else


def main() -> None:
    """Train, and print one line of a table for each way and k."""
    parser = argparse.ArgumentParser(description="Onsets, with steps of 160, 80, 40 ms")
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--updates", type=int, default=400)
    parser.add_argument("--recordings", type=int, default=30, help="of each set")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    torch.manual_seed(args.seed)
    table = next(args.data.glob("*.csv"))
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    sets = {}
    for split, count in ("train", 5 * args.recordings), ("test", args.recordings):
        chosen = [row for row in rows if row["split"] == split]
        sounds = {
            name: [
                read_audio(args.data / "audio" / row["filename"])
                for row in chosen
                if row["label"] == name
            ]
            for name in (*CLASSES, *BACKGROUNDS)
        }
        for name in CLASSES:
            sounds[name] = [s for s in map(begun, sounds[name]) if len(s) >= RATE // 2]
        sets[split] = [recording(sounds, rng) for _ in range(count)]
    model = trained(sets["train"], args.updates, rng)
    print(
        "| way | k | step | found | mean error | median | F1 onset | F1 both | CPU s |"
    )
    print("|---|" + "---:|" * 8)
    test = [(samples, RATE) for samples, _ in sets["test"]]
    truth = [events for _, events in sets["test"]]
    encoder = model.encoder
    for way in "windows", "frames":
        for shifts in 1, 2, 4:
            encoder.config = encoder.config.replace(time_shifts=shifts)
            api = SSLAM(model if way == "windows" else encoder, device="cpu")
            if way == "frames":
                head = step_head(api, sets["train"])
            begin = time.process_time()
            if way == "windows":
                results = list(api.tag_frames(test))
                scores = [result.values for result in results]
            else:
                results = list(api.embed_files(test, pooling="frames"))
                scores = [head(result.values) for result in results]
            seconds = time.process_time() - begin
            found = [
                find_events(each, result.starts, result.ends, CLASSES, **FILTERS)
                for each, result in zip(scores, results, strict=True)
            ]
            step = f"{160 // shifts} ms"
            cells = way, shifts, step, figures(truth, found), f"{seconds:.1f}"
            print("|", " | ".join(map(str, cells)), "|", flush=True)


def begun(samples: np.ndarray) -> np.ndarray:
    """At most 2 s of a clip from where it becomes loud (-15 dB of its peak)."""
    frames = samples[: len(samples) // 160 * 160].reshape(-1, 160)
    power = (frames**2).mean(1)
    first = int(np.argmax(power > power.max() * 10**-1.5))
    return samples[160 * first :][: 2 * RATE]


def recording(sounds: dict, rng: np.random.Generator) -> tuple[np.ndarray, list]:
    """Samples, and the events (onset, offset, class) in them."""
    noises = sounds[BACKGROUNDS[rng.integers(len(BACKGROUNDS))]]
    noise = noises[rng.integers(len(noises))]
    samples = np.resize(noise, round(SECONDS * RATE)).astype(np.float32)
    samples *= 0.01 / (samples.std() + 1e-9)
    events = []
    for slot in range(SLOTS):
        label = CLASSES[rng.integers(len(CLASSES))]
        sound = sounds[label][rng.integers(len(sounds[label]))]
        first = round((slot * SECONDS / SLOTS + rng.uniform(0.1, 1.2)) * RATE)
        gain = 0.01 * 10 ** (LOUDER / 20) / (sound.std() + 1e-9)
        samples[first : first + len(sound)] += gain * sound
        events.append((first / RATE, (first + len(sound)) / RATE, label))
    return samples, events


def trained(
    recordings: list, updates: int, rng: np.random.Generator
) -> SSLAMClassifier:
    """A classifier of windows of 1 s; a label fills half of one, or is in it."""
    encoder = SSLAMEncoder(embed_dim=96, depth=4, num_heads=4, mlp_ratio=2.0)
    model = SSLAMClassifier(encoder, CLASSES, pooling="mean").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    warmup = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda n: min(1, (n + 1) / 50)
    )
    lengths = torch.full((32,), RATE)
    for update in range(updates):
        speech, labels = np.zeros((32, RATE), np.float32), np.zeros((32, len(CLASSES)))
        for row in range(32):
            samples, events = recordings[rng.integers(len(recordings))]
            first = rng.uniform(0, SECONDS - 1)
            speech[row] = samples[round(first * RATE) :][:RATE]
            for onset, offset, label in events:
                shared = min(offset, first + 1) - max(onset, first)
                if shared >= min(0.5, offset - onset):
                    labels[row, CLASSES.index(label)] = 1
        loss, *_ = model(torch.from_numpy(speech), lengths, torch.from_numpy(labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        warmup.step()
        if (update + 1) % 100 == 0:
            print(f"update {update + 1}: loss {float(loss.detach()):.3f}", flush=True)
    return model.eval()


def step_head(api: SSLAM, recordings: list):
    """A logistic regression on steps: is a class there in the middle of a step?"""
    files = [(samples, RATE) for samples, _ in recordings]
    steps, labels = [], []
    for result in api.embed_files(files, pooling="frames"):
        middles = (result.starts + result.ends) / 2
        active = np.zeros((len(middles), len(CLASSES)), np.float32)
        for onset, offset, label in recordings[result.index][1]:
            active[(middles >= onset) & (middles < offset), CLASSES.index(label)] = 1
        steps.append(result.values)
        labels.append(active)
    x, y = (torch.from_numpy(np.concatenate(each)) for each in (steps, labels))
    mean, std = x.mean(0), x.std(0)
    linear = torch.nn.Linear(x.shape[1], len(CLASSES))
    optimizer = torch.optim.AdamW(linear.parameters(), lr=1e-2, weight_decay=1e-3)
    for _ in range(300):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            linear((x - mean) / std), y
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def head(values: np.ndarray) -> np.ndarray:
        return linear((torch.from_numpy(values) - mean) / std).sigmoid().numpy()

    return head


def figures(truth: list, found: list) -> str:
    """Share of events found, mean and median onset error in ms, F1 in %."""
    errors, hits = [], {"onset": 0, "both": 0}
    total = sum(map(len, truth)) + sum(map(len, found))
    for wanted, events in zip(truth, found, strict=True):
        for onset, offset, label in wanted:
            same = [e for e in events if e.label == label]
            near = [abs(e.onset - onset) for e in same]
            errors += [min(near)] if near and min(near) <= NEAR else []
            right = [e for e in same if abs(e.onset - onset) <= COLLAR]
            late = max(COLLAR, 0.2 * (offset - onset))
            hits["onset"] += bool(right)
            hits["both"] += any(abs(e.offset - offset) <= late for e in right)
    share = len(errors) / sum(map(len, truth))
    errors = errors or [np.nan]
    cells = f"{100 * share:.0f} % | {1000 * np.mean(errors):.0f} ms"
    cells += f" | {1000 * np.median(errors):.0f} ms"
    return " | ".join([cells, *(f"{200 * n / total:.1f}" for n in hits.values())])


if __name__ == "__main__":
    main()
