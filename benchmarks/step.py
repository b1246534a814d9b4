"""Time of a pre-training step at ViT-Base size: seconds, memory, FLOP utilisation.

    python benchmarks/step.py                       # 2 clips x 4 clones, phase 2
    python benchmarks/step.py --clips 4 --clones 8
    python benchmarks/step.py --device cuda --clips 12 --clones 8 --bf16

The utilisation is the step's floating-point work over its time, against the best
matrix-product rate measured in the same run, so that it can be compared between
machines. The authors' figures are from their code's own trainer on 2 cores of an AMD
EPYC (Zen 4), float32, torch 2.8, with the allocator set as here (default allocator in
brackets); the limit of that machine was 196.6 GFLOP/s.
"""

import argparse
import os
import resource
import statistics
import sys
import time

import numpy as np
import torch

from espnet2_sslam.encoder import SSLAMEncoder
from espnet2_sslam.pretrain_model import SSLAMPretrainModel

# Large tensors from the heap instead of a fresh, page-faulting mapping each.
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "34359738368",
    "MALLOC_TRIM_THRESHOLD_": "34359738368",
}
WARM_UP = 3  # steps until the heap has grown to its size
BASE = dict(embed_dim=768, depth=12, num_heads=12)
DECODER_LAYERS, KERNEL, GROUPS = 6, 3, 16
PATCHES, VISIBLE, HIDDEN, REGION_PATCHES = 512, 102, 410, 240
# (mixture, clips, clones): seconds tuned, seconds default, GFLOP/s tuned
AUTHORS = {
    (True, 2, 4): (8.81, 9.91, 167),
    (True, 4, 8): (28.8, 38.4, 171),
    (False, 2, 4): (4.36, 4.75, 158),
    (False, 4, 8): (13.96, 16.6, 169),
}
AUTHORS_PEAK = 196.6  # GFLOP/s of the best matrix product on the authors' machine


def block_flops(tokens, model=BASE):
    """Forward work of the transformer on one row of `tokens` tokens."""
    width = model["embed_dim"]
    return model["depth"] * (24 * tokens * width**2 + 4 * tokens**2 * width)


def step_flops(mixture, clips, clones, model=BASE):
    """Work of one step without any avoidable part (backward = twice forward)."""
    width = model["embed_dim"]
    streams = 2 if mixture else 1
    rows = streams * clips * clones
    student = 3 * rows * block_flops(VISIBLE + 1, model)
    conv = 2 * PATCHES * KERNEL**2 * width * width // GROUPS * DECODER_LAYERS
    decoder = 3 * rows * (conv + 2 * HIDDEN * width**2)
    teacher = streams * clips * block_flops(PATCHES + 1, model)
    if mixture:
        teacher += clips * block_flops(PATCHES - REGION_PATCHES + 1, model)
    patch = 2 * PATCHES * 256 * width * streams * clips
    return student + decoder + teacher + (2 + 1) * patch  # forward, weights; teacher


def best_rate(device, dtype, size=None):
    """Best matrix-product rate in FLOP/s."""
    size = size or (4096 if device == "cpu" else 8192)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    seconds = min(timed(lambda: torch.mm(a, b, out=out), device) for _ in range(8))
    return 2 * size**3 / seconds


def timed(function, device):
    """Seconds of one call."""
    synchronize(device)
    start = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device):
    """Wait for the GPU, if there is one."""
    if device != "cpu":
        torch.cuda.synchronize()


def make_model(args):
    """The model of a step, with random weights."""
    torch.manual_seed(0)
    return SSLAMPretrainModel(
        SSLAMEncoder(**args.model),
        mixture=not args.phase1,
        clone_batch=args.clones,
        padding="authors",  # 10 s as 1,024 frames
        decoder_conf={"half_precision": args.half_decoder},
    ).to(args.device)


def make_step(args):
    """A function that makes one whole update, as the trainer does."""
    model = make_model(args)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=1e-5, betas=(0.9, 0.95), weight_decay=0.05, fused=True
    )
    optimizer.register_step_post_hook(lambda *_: model.update_teacher())
    speech = torch.randn(args.clips, 160_000, device=args.device) * 0.1
    lengths = torch.full((args.clips,), 160_000, device=args.device)
    model.train()
    if args.compile:
        model.compile_step(mode=args.compile)

    def step():
        with torch.autocast(args.device, torch.bfloat16, enabled=args.bf16):
            loss, _, _ = model(speech, lengths)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 4.0)
        optimizer.step()
        optimizer.zero_grad()

    step.model, step.trained, step.optimizer = model, trained, optimizer
    return step


def through_trainer(args, updates, workers, skip=8):
    """Seconds of updates as the recipe makes them: DataLoader, task, trainer.

    Args:
        args: As for `make_step`.
        updates: How many, with those that are skipped.
        workers: Processes that make batches.
        skip: So many are not counted.

    Returns:
        On a CPU the seconds of each update; on a GPU, which is waited for at the ends
        only, their mean.
    """
    from espnet2.train.distributed_utils import DistributedOption
    from espnet2.train.reporter import Reporter

    from espnet2_sslam.tasks import SSLAMTask
    from espnet2_sslam.tasks.base import scheduler_classes
    from espnet2_sslam.tasks.data import collate_clips

    words = ["--output_dir", "unused", "--max_epoch", "1", "--grad_clip", "4"]
    words += ["--log_interval", "50", "--compile", str(bool(args.compile)).lower()]
    if args.bf16:
        words += ["--use_amp", "true", "--amp_dtype", "bf16"]
    options = SSLAMTask.get_parser().parse_args(words)
    options.optim_conf = dict(lr=1e-5, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
    model = make_model(args)
    [optimizer] = SSLAMTask.build_optimizers(options, model)
    schedule = scheduler_classes[options.scheduler](
        optimizer, warmup_steps=10, total_steps=1000
    )
    generator = np.random.default_rng(0)
    waves = generator.standard_normal((64, 160_000)).astype(np.float32) * 0.1

    class Clips(torch.utils.data.Dataset):
        def __len__(self):
            return updates * args.clips

        def __getitem__(self, index):
            return f"clip{index}", {"speech": waves[index % 64]}

    loader = torch.utils.data.DataLoader(
        Clips(),
        args.clips,
        num_workers=workers,
        collate_fn=collate_clips,
        pin_memory=args.device != "cpu",
    )
    options = SSLAMTask.trainer.build_options(options)
    options.ngpu = int(args.device != "cpu")
    reporter = Reporter()
    reporter.set_epoch(1)
    times = []

    class Marks:  # the time at which a batch is asked for
        def __len__(self):
            return len(loader)

        def __iter__(self):
            for number, batch in enumerate(loader):
                if args.device == "cpu" and number >= skip:
                    times.append(time.perf_counter())
                elif number in (skip, len(loader) - 1):
                    synchronize(args.device)
                    times.append(time.perf_counter())
                yield batch

    with reporter.observe("train") as sub_reporter:
        SSLAMTask.trainer.train_one_epoch(
            model=model,
            iterator=Marks(),
            optimizers=[optimizer],
            schedulers=[schedule],
            scaler=None,
            reporter=sub_reporter,
            summary_writer=None,
            options=options,
            distributed_option=DistributedOption(),
        )
    if args.device == "cpu":
        times.append(time.perf_counter())
        return np.diff(times).tolist()
    return [(times[1] - times[0]) / (updates - 1 - skip)]


def peak_memory(device):
    """Highest memory so far in GiB."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def tuned_allocator():
    """Start this process anew with the recipe's setting of the allocator."""
    if any(os.environ.get(name) != value for name, value in MALLOC.items()):
        os.environ.update(MALLOC)  # read by the C library when the process starts
        os.execv(sys.executable, [sys.executable, *sys.argv])  # noqa: S606


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=2)
    parser.add_argument("--clones", type=int, default=4)
    parser.add_argument("--phase1", action="store_true", help="default: phase 2")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--bf16", action="store_true", help="default: float32")
    text = "residuals and norms of the decoder in bf16, too"
    parser.add_argument("--half_decoder", action="store_true", help=text)
    modes = ("default", "reduce-overhead", "max-autotune-no-cudagraphs")
    parser.add_argument("--compile", choices=modes, help="mode of torch.compile")
    args = parser.parse_args()
    args.model = BASE
    tuned_allocator()
    dtype = torch.bfloat16 if args.bf16 else torch.float32
    rate = best_rate(args.device, dtype)
    step = make_step(args)
    for _ in range(WARM_UP):
        step()
    seconds = [timed(step, args.device) for _ in range(args.steps)]
    rate = max(rate, best_rate(args.device, dtype))
    median, work = statistics.median(seconds), step_flops(
        not args.phase1, args.clips, args.clones
    )
    print(
        f"phase {1 if args.phase1 else 2}, {args.clips} clips x {args.clones} clones, "
        f"{args.device} {str(dtype)[6:]}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads"
    )
    print(
        f"step: median {median:.3f} s, best {min(seconds):.3f} s of {args.steps}; "
        f"{work / 1e9:.1f} GFLOP; peak memory {peak_memory(args.device):.2f} GiB"
    )
    print(
        f"rate: {work / median / 1e9:.1f} GFLOP/s of {rate / 1e9:.1f} by the best "
        f"matrix product: utilisation {work / median / rate:.3f} "
        f"(best step {work / min(seconds) / rate:.3f})"
    )
    known = AUTHORS.get((not args.phase1, args.clips, args.clones))
    if known and args.device == "cpu" and not args.bf16:
        tuned, default, theirs = known
        print(
            f"authors: {tuned} s [{default} s], {theirs} GFLOP/s of {AUTHORS_PEAK}: "
            f"utilisation {theirs / AUTHORS_PEAK:.3f}"
        )


if __name__ == "__main__":
    main()
