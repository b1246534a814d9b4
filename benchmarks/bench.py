"""What users get, each figure beside a limit of the same machine, in one command.

    make bench                                # writes benchmarks/BENCH.md, 10 minutes
    python -m benchmarks.bench --rows data,imports --out results
    python -m benchmarks.bench --tiny --out results      # a small model, seconds

Each group is a process of its own; what is compared is measured in turn in it, so that
a busy machine slows both down. Utilisation is the model's floating-point work
over its time, against the best matrix product of the process.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
import torch

from benchmarks import step as bench
from benchmarks.rows import ROOT, get_parser, run
from espnet2_sslam.machine import machine

LIMITS = {  # seconds of each group, in the order in which they run
    "steps": 260,
    "inference": 200,
    "files": 60,
    "data": 60,
    "checkpoint": 90,
    "imports": 90,
    "projection": 30,
}
TINY = dict(embed_dim=48, depth=2, num_heads=4)
WORK = {"clips": 2, "clones": 4, "bare": 3, "batches": (1, 8, 32), "files": 48}
TINY_WORK = {"clips": 2, "clones": 2, "bare": 2, "batches": (1, 2), "files": 24}
SECONDS = (1, 5, 10, 60)
ENOUGH = 5.0  # seconds: one call of so long is not repeated
TOO_LONG = 30.0  # seconds: not run
# One H200, benchmarks/GPU.md: ms of an update of 12 clips, and how it was measured
H200 = {
    "phase 1, 12 x 16, eager": (75.0, "bare step, d8d8663"),
    "phase 2, 12 x 8, eager": (84.0, "bare step, d8d8663"),
    "phase 2, 12 x 8, compiled, half decoder": (52.2, "bare step, d8d8663"),
    "phase 2, 12 x 8, compiled, half decoder, trainer": (67.1, "trainer, d8d8663"),
}
CLIPS_OF_A_GPU, CLIPS, CLIP_SECONDS = 12, 2_000_000, 10
ALL_REDUCE_MS = 2.0  # 351 MB over NVLink, hidden in the backward pass for the most part

tiny = False  # set by the command


def sizes():
    """The encoder's sizes, and how much is done."""
    return (TINY, TINY_WORK) if tiny else (bench.BASE, WORK)


def judged(ok):
    """Whether a criterion holds; a small model says nothing of it."""
    return None if tiny else ok


def seconds_of(function):
    """Wall time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def in_turn(functions, rounds):
    """Seconds of each function, a list over the rounds, after a first one for all."""
    for function in functions.values():
        function()
    times = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            times[name].append(seconds_of(function))
    return times


def ratio(times, name, other):
    """Median over the rounds of one's time over the other's."""
    pairs = zip(times[name], times[other], strict=True)
    return statistics.median(a / b for a, b in pairs)


def rates():
    """Best matrix product in float32 and bfloat16, FLOP/s."""
    size = 512 if tiny else 2048
    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    return {name: bench.best_rate("cpu", kind, size) for name, kind in kinds.items()}


# ------------------------------------------------------------------------- groups


def steps(row):
    """An update of phase 2 on this CPU, bare (model, loss, AdamW, teacher) and through
    SSLAMTask's own trainer and a DataLoader, in float32 and `--amp_dtype bf16`."""
    model, work = sizes()
    limits, steps, args = rates(), {}, {}
    for name, bf16 in (("float32", False), ("bfloat16", True)):
        args[name] = argparse.Namespace(
            clips=work["clips"],
            clones=work["clones"],
            phase1=False,
            half_decoder=False,
            bf16=bf16,
            device="cpu",
            compile=None,
            model=model,
        )
        steps[name] = bench.make_step(args[name])
    times = in_turn(steps, work["bare"])
    steps.clear()
    shape = f"phase 2, {work['clips']} clips x {work['clones']} clones"
    flops = bench.step_flops(True, work["clips"], work["clones"], model)
    for name, seconds in times.items():
        rate = max(limits[name], rates()[name])
        median = statistics.median(seconds)
        row(
            f"{shape}, {name}, bare",
            f"{median:.2f} s (best {min(seconds):.2f}), utilisation "
            f"{flops / median / rate:.2f} of {rate / 1e9:.0f} GFLOP/s",
        )
    gain = 1 / ratio(times, "bfloat16", "float32")
    fast = torch.backends.cpu.get_cpu_capability()
    name = f"bfloat16 beside float32 ({fast})"
    row(name, f"{gain:.2f} times as fast", ">= 1.5", judged(gain >= 1.5))
    own = bench.through_trainer(args["float32"], work["bare"] + 1, 1, skip=1)
    beside = statistics.median(own) / statistics.median(times["float32"])
    row(
        f"{shape}, float32, through the trainer",
        f"{statistics.median(own):.2f} s, {beside:.3f} of the bare step "
        f"(best: {min(own) / min(times['float32']):.3f})",
        "<= 1.05",
        judged(beside <= 1.05),
    )


def inference(row):
    """Features of clips in memory, waveforms in, features out (`SSLAM.embed`), by batch
    and length, with the precision that `--dtype` takes."""
    from espnet2_sslam.encoder import SSLAMEncoder
    from espnet2_sslam.features import num_frames, num_patch_steps
    from espnet2_sslam.inference import SSLAM
    from espnet2_sslam.units import PATCHES_PER_STEP, SAMPLE_RATE

    model, work = sizes()
    limits = rates()
    torch.manual_seed(0)
    encoder = SSLAMEncoder(**model)
    options = {"device": "cpu", "batch_seconds": 2000.0}
    models = {
        name: SSLAM(encoder, dtype=name, **options) for name in ("float32", "bfloat16")
    }
    generator = np.random.default_rng(0)
    second = dict.fromkeys(models, 0.0)  # of compute for one of audio, so far
    for length in SECONDS:
        samples = length * SAMPLE_RATE
        wave = generator.standard_normal(samples).astype(np.float32) * 0.1
        steps = int(num_patch_steps(num_frames(torch.tensor(samples))))
        tokens = steps * PATCHES_PER_STEP + 1
        for batch in work["batches"]:
            expected = second["float32"] * batch * length
            name = f"batch {batch}, {length} s"
            if expected > TOO_LONG:
                row(name, f"not run: about {expected:.0f} s")
                continue
            clips = [wave] * batch
            calls = {
                name: partial(each.embed, clips, rate=SAMPLE_RATE)
                for name, each in models.items()
            }
            if expected > ENOUGH:
                times = {name: [seconds_of(call)] for name, call in calls.items()}
            else:
                times = in_turn(calls, 2 if expected > 1 else 5)
            values = []
            for kind, measured in times.items():
                median = statistics.median(measured)
                second[kind] = median / batch / length
                rate = batch * bench.block_flops(tokens, model) / median
                values.append(
                    f"{kind} {1e3 * median / batch:.1f} ms a clip, utilisation "
                    f"{rate / limits[kind]:.2f}"
                )
            gain = 1 / ratio(times, "bfloat16", "float32")
            row(name, f"{'; '.join(values)}; {gain:.2f} times as fast")


def files(row):
    """`embed_files` from FLAC files (read, decoded, resampled, log-mel), beside the
    encoder alone on patches in memory, float32."""
    from espnet2_sslam.encoder import SSLAMEncoder
    from espnet2_sslam.inference import SSLAM

    model, work = sizes()
    torch.manual_seed(0)
    sslam = SSLAM(SSLAMEncoder(**model), device="cpu", dtype="float32")
    number, batch = work["batches"][1], 4
    patches = torch.randn(min(batch, number), 63 * 8, model["embed_dim"])

    @torch.inference_mode()
    def alone():
        for start in range(0, number, batch):
            sslam.encoder.encode(patches[: number - start]).last[:, 1:].mean(1)

    with tempfile.TemporaryDirectory() as folder:
        calls = {"alone": alone}
        for rate in (44_100, 16_000):
            paths = write_clips(Path(folder), number, "flac", rate)
            calls[f"{rate} Hz"] = lambda paths=paths: list(sslam.embed_files(paths))
        times = in_turn(calls, 3)
    for name in list(times)[1:]:
        seconds = statistics.median(times[name]) / number
        beside = ratio(times, name, "alone")
        row(
            f"embed_files, 10 s, {name}",
            f"{1e3 * seconds:.0f} ms a clip, {beside:.3f} of the encoder alone",
            "<= 1.10",
            judged(beside <= 1.10),
        )


def write_clips(folder, number, form, rate=16_000):
    """Files of 10 s of coloured noise; their paths."""
    generator = np.random.default_rng(0)
    paths = []
    for place in range(number):
        noise = generator.standard_normal(10 * rate + 31)
        samples = 0.05 * np.convolve(noise, np.hanning(32), "valid")
        paths.append(folder / f"{rate}_{place}.{form}")
        soundfile.write(paths[-1], samples, rate, subtype="PCM_16")
    return paths


def data(row):
    """From a dump to batches: clips of 10 s at 16 kHz a second and core (CPU time of
    one process), beside plain soundfile reading; with its size on the disk."""
    from espnet2_sslam.tasks import (
        ClipDataset,
        ClipPreprocessor,
        ClipSampler,
        EpochIterFactory,
        collate_clips,
    )

    torch.set_num_threads(1)
    number = sizes()[1]["files"]
    for form in ("wav", "flac"):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            paths = write_clips(folder, number, form)
            size = statistics.mean(path.stat().st_size for path in paths)
            keys = [f"clip{place}" for place in range(number)]
            lines = (f"{k} {p}\n" for k, p in zip(keys, paths, strict=True))
            (folder / "wav.scp").write_text("".join(lines))
            dataset = ClipDataset(
                [(str(folder / "wav.scp"), "speech", "sound")],
                preprocess=ClipPreprocessor(True, max_samples=160_000),
            )
            sampler = ClipSampler(keys, min(12, number), train=True)
            factory = EpochIterFactory(dataset, sampler, collate_fn=collate_clips)
            calls = {
                "plain": lambda paths=paths: [
                    soundfile.read(path, dtype="float32") for path in paths
                ],
                "ours": lambda factory=factory: [len(b) for b in factory.build_iter(1)],
            }
            speed = {name: number / cpu_seconds(call) for name, call in calls.items()}
        row(
            f"{form}, {size / 1e3:.0f} kB a clip",
            f"{speed['ours']:.0f} clips/s a core, {speed['ours'] / speed['plain']:.2f} "
            f"of plain reading ({speed['plain']:.0f})",
            ">= 500" if form == "wav" else "",
            speed["ours"] >= 500 if form == "wav" else None,
            clips_per_second=speed["ours"],
        )


def cpu_seconds(function, rounds=5):
    """Median CPU time of a call, after a first one."""
    function()
    times = []
    for _ in range(rounds):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return statistics.median(times)


def checkpoint(row):
    """checkpoint.pth of a training (weights, teacher, AdamW), whole or not at all,
    beside plain writing of as many bytes to the same disk, both flushed to it."""
    from espnet2_sslam.tasks.saving import save_whole

    model = sizes()[0]
    pretraining = bench.make_model(
        argparse.Namespace(
            phase1=False, clones=2, half_decoder=False, device="cpu", model=model
        )
    )
    trained = [p for p in pretraining.parameters() if p.requires_grad]
    state = {n: [torch.zeros_like(p) for p in trained] for n in ("exp_avg", "exp_sq")}
    states = {"model": pretraining.state_dict(), "optimizer": state}

    with tempfile.TemporaryDirectory(prefix=".bench-", dir=ROOT) as folder:
        path = Path(folder) / "checkpoint.pth"
        save_whole(states, path)
        content = bytes(path.stat().st_size)

        def plain():
            with open(Path(folder) / "plain", "wb") as stream:
                stream.write(content)
                os.fsync(stream.fileno())

        calls = {"ours": partial(save_whole, states, path), "plain": plain}
        times = {name: [seconds_of(call)] for name, call in calls.items()}
    speed = len(content) / statistics.median(times["ours"])
    row(
        f"{len(content) / 1e9:.2f} GB",
        f"{statistics.median(times['ours']):.2f} s, {speed / 1e6:.0f} MB/s, "
        f"{ratio(times, 'ours', 'plain'):.2f} of plain writing",
        seconds=statistics.median(times["ours"]),
    )


def imports(row):
    """Start of a process, beside one that imports what cannot be done without."""
    pairs = {
        "sslam --help": ("-m espnet2_sslam --help", "-c pass"),
        "import espnet2_sslam.inference": (
            "-c import`espnet2_sslam.inference",
            "-c import`torch,torchaudio",
        ),
        "import espnet2_sslam.tasks": (
            "-c import`espnet2_sslam.tasks",
            "-c import`espnet2.train.trainer",
        ),
    }
    for name, commands in pairs.items():
        calls = {}
        for kind, words in zip(("ours", "limit"), commands, strict=True):
            command = [word.replace("`", " ") for word in words.split()]
            call = partial(subprocess.run, [sys.executable, *command], check=True)
            calls[kind] = partial(call, cwd=ROOT, capture_output=True)
        if tiny:
            times = {kind: [seconds_of(call)] for kind, call in calls.items()}
        else:
            times = in_turn(calls, 2)
        row(
            name,
            f"{statistics.median(times['ours']):.2f} s, "
            f"{ratio(times, 'ours', 'limit'):.2f} of `python {commands[1]}`".replace(
                "-c import`", "-c import "
            ),
        )


def projection(row):
    """Estimate, not measured: hours for two million clips (AudioSet-2M), from the time
    of an update on one H200 (benchmarks/GPU.md) and, on several GPUs, 2 ms for their
    sum of the gradients; no waiting for data, no validation, no checkpoints. Beside it
    the cores that then read the clips, by the rates above."""
    speed = {
        each["name"].split(",")[0]: each["clips_per_second"]
        for each in row.read()
        if each["group"] == "data" and "clips_per_second" in each
    }
    for name, (ms, source) in H200.items():
        hours, needs = [], ""
        for gpus in (1, 4, 8):
            update = ms + (ALL_REDUCE_MS if gpus > 1 else 0.0)
            clips = gpus * CLIPS_OF_A_GPU / update * 1e3
            hours.append(f"{CLIPS / clips / 3600:.2f}")
            cores = [f"{clips / v:.1f} cores ({k})" for k, v in speed.items()]
            needs = f"; 8 GPUs read {clips:.0f} clips/s: {', '.join(cores)}"
        row(
            f"{name}: {ms:g} ms ({source})",
            f"estimate: {' / '.join(hours)} h on 1 / 4 / 8 GPUs{needs}",
        )


GROUPS = dict(
    steps=steps,
    inference=inference,
    files=files,
    data=data,
    checkpoint=checkpoint,
    imports=imports,
    projection=projection,
)


def where():
    """The machine in words, its load (with this) and versions."""
    parts = [machine(), f"{torch.get_num_threads()} threads"]
    parts += [f"load average {max(os.getloadavg()):.1f}", f"torch {torch.__version__}"]
    return ", ".join([*parts, f"Python {platform.python_version()}"])


def main():
    """Run the groups; then the page."""
    global tiny
    parser = get_parser(__doc__, ROOT / "benchmarks", 10.0, tuple(LIMITS))
    parser.add_argument("--tiny", action="store_true", help="a small model, for tests")
    args = parser.parse_args()
    tiny = args.tiny
    run(
        "benchmarks.bench",
        args,
        LIMITS,
        GROUPS,
        "BENCH",
        "What users get on this machine",
        where,
        ["--tiny"] if tiny else [],
        bench.MALLOC,  # as the recipe sets it
    )


if __name__ == "__main__":
    main()
