"""Everything that has to be seen on a GPU, in one command of at most nine minutes.

    make gpu                        # writes benchmarks/GPU.md
    make gpu PYTHON=python3         # with that Python and .whl/ (tools/gpu_wheels.sh)
    python -m benchmarks.gpu --rows conv,steps --out results

Each group of rows is a process of its own with a time limit; each row is written to
OUT/GPU.jsonl as soon as it is known, and GPU.md is made of them in the end. A rate is
model FLOPs over time (benchmarks/step.py counts them: no recomputation); utilisation is
that rate over the best matrix product of the same run.
"""

import argparse
import itertools
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks import step as bench
from benchmarks.conv_forms import FORMS
from benchmarks.rows import ROOT, get_parser, run

LIMITS = {  # seconds of each group, in the order in which they run
    "ceilings": 60,
    "tests": 200,
    "conv": 90,
    "steps": 240,
    "trainer": 300,
    "profile": 90,
    "embed": 150,
    "host": 150,
    "compiled": 330,
}
BF16 = torch.bfloat16


def median_ms(function, repeats=10, warm_up=3):
    """Median time of a call in milliseconds, by CUDA events."""
    for _ in range(warm_up):
        function()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def step_ms(step, updates=12, warm_up=5):
    """Time of an update in milliseconds; updates follow each other without a wait."""
    for _ in range(warm_up):
        step()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(updates):
        step()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / updates


# ------------------------------------------------------------------------- groups


def ceilings(row):
    """The card's own limits, to which everything else is compared."""
    x, y = (torch.randn(2**30, device="cuda") for _ in range(2))
    rate = 8e-9 * 2**30 / median_ms(partial(x.copy_, y))
    del x, y
    row("copy, read and written", f"{rate:.2f} TB/s", ">= 2.8 (H100), 4.0 (H200)")
    for dtype, least in ((BF16, 700), (torch.float16, 700), (torch.float32, 40)):
        tflops = bench.best_rate("cuda", dtype) / 1e12
        name = f"matrix product 8192, {str(dtype)[6:]}"
        row(name, f"{tflops:.0f} TFLOP/s", f">= {least}", tflops >= least)
    torch.backends.cuda.matmul.allow_tf32 = True
    tflops = bench.best_rate("cuda", torch.float32) / 1e12
    row("matrix product 8192, tf32", f"{tflops:.0f} TFLOP/s")


def tests(row):
    """The tests that are marked gpu, one row each."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "--tb=short"]
        command += [f"--junitxml={report}", "-p", "no:cacheprovider"]
        command += [f"tests/test_{name}.py" for name in ("gpu", "arrays", "classifier")]
        subprocess.run(command, cwd=ROOT, check=False)
        import xml.etree.ElementTree as ElementTree

        for case in ElementTree.parse(report).iter("testcase"):  # noqa: S314
            if case.find("skipped") is not None:
                continue
            bad = [case.find("failure"), case.find("error")]
            reason = [
                str(b.get("message")).split("\n")[0] for b in bad if b is not None
            ]
            value = reason[0][:160] if reason else f"{float(case.get('time')):.1f} s"
            row(case.get("name"), value, "passes", not reason)


def _with_gradients(form, x, weight, groups, gradient):
    """Forward and both gradients."""
    torch.autograd.grad(form(x, weight, groups), [x, weight], gradient)


def conv(row):
    """Forms of the decoder's convolution: forward, and with both gradients."""
    width, groups = 768, 16
    work = 2 * 512 * 9 * width * width // groups
    for rows, dtype in itertools.product((96, 192), (BF16, torch.float16)):
        if (rows, dtype) == (96, torch.float16):
            continue
        x = torch.randn(rows, 64, 8, width, device="cuda", dtype=dtype)
        weight = torch.randn(width, width // groups, 3, 3, device="cuda") * 0.05
        weight = weight.to(dtype).requires_grad_()
        x.requires_grad_()
        gradient = torch.randn_like(x)
        expected = FORMS[0](x[:4].double(), weight.double(), groups)
        for form, fixed in itertools.product(FORMS, (False, True)):
            if fixed and not form.__name__.startswith(("conv2d", "merged")):
                continue
            torch.backends.cudnn.benchmark = fixed
            try:
                value = form(x[:4], weight, groups).double()
                error = float((value - expected).norm() / expected.norm())
                forward = median_ms(partial(form, x, weight, groups), 8)
                call = partial(_with_gradients, form, x, weight, groups, gradient)
                whole = median_ms(call, 8)
            except torch.OutOfMemoryError:
                row(f"{form.__name__} rows {rows}", "out of memory")
                torch.cuda.empty_cache()
                continue
            rate = 3 * rows * work / whole / 1e9
            row(
                f"{form.__name__} rows {rows} {str(dtype)[6:]}"
                f"{' cudnn.benchmark' if fixed else ''}",
                f"forward {forward:.2f} ms, all {whole:.2f} ms, {rate:.0f} TFLOP/s",
                f"error {error:.1e}",
                error < 0.02,
                ms=whole,
                forward_ms=forward,
            )
    torch.backends.cudnn.benchmark = False


def step_args(clips, clones, *, phase1=False, bf16=True, mode=None, half=False):
    """Options of benchmarks/step.py's `make_step`."""
    sizes = dict(clips=clips, clones=clones, phase1=phase1, half_decoder=half)
    more = dict(bf16=bf16, device="cuda", compile=mode, model=bench.BASE)
    return argparse.Namespace(**sizes, **more)


def measure_step(row, name, step, args, rate, criterion="", least=0.0):
    """Time a step; a row with milliseconds, utilisation, clips per second, memory."""
    torch.cuda.reset_peak_memory_stats()
    try:
        ms = step_ms(step)
    except torch.OutOfMemoryError:
        row(name, "out of memory")
        return None
    work = bench.step_flops(not args.phase1, args.clips, args.clones)
    share = work / ms * 1e3 / rate
    clips = args.clips / ms * 1e3
    epoch = 2_000_000 / clips / 3600
    row(
        name,
        f"{ms:.1f} ms, utilisation {share:.3f}, {clips:.0f} clips/s, "
        f"peak {bench.peak_memory('cuda'):.2f} GiB; 2 million clips in {epoch:.1f} h",
        criterion,
        share >= least if criterion else None,
        ms=ms,
        utilisation=share,
        gib=bench.peak_memory("cuda"),
    )
    return ms


SHAPES = [(12, 8, False), (4, 8, False), (24, 8, False), (48, 8, False), (12, 16, True)]


COMPILED = [  # shape, mode of torch.compile, decoder in half precision
    (SHAPES[0], "default", True),
    (SHAPES[0], "default", False),
    (SHAPES[1], "default", True),
    (SHAPES[-1], "default", True),
]


def shape_name(clips, clones, phase1):
    """What a row calls a shape."""
    return f"phase {1 if phase1 else 2}, {clips} clips x {clones} clones"


def steps(row):
    """Bare updates in eager mode."""
    rate = bench.best_rate("cuda", BF16)
    row("bf16 limit of this process", f"{rate / 1e12:.0f} TFLOP/s")
    for shape in SHAPES:
        args = step_args(*shape[:2], phase1=shape[2])
        step = bench.make_step(args)
        name = f"{shape_name(*shape)}, bf16, eager"
        measure_step(row, name, step, args, rate, "utilisation >= 0.20", 0.20)
        del step
        torch.cuda.empty_cache()
    for tf32, limit in ((False, 300), (True, 100)):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        torch.backends.cudnn.allow_tf32 = tf32
        args = step_args(4, 8, bf16=False)
        name = f"{shape_name(4, 8, False)}, {'tf32' if tf32 else 'float32'}, eager"
        rate = bench.best_rate("cuda", torch.float32)
        measure_step(row, name, bench.make_step(args), args, rate, f"< {limit} ms")
        torch.cuda.empty_cache()


def compiled(row):
    """Bare updates with torch.compile."""
    rate = bench.best_rate("cuda", BF16)
    for shape, mode, half in COMPILED:
        args = step_args(*shape[:2], phase1=shape[2], mode=mode, half=half)
        start = time.perf_counter()
        step = bench.make_step(args)
        step()
        torch.cuda.synchronize()
        first = time.perf_counter() - start
        name = f"{shape_name(*shape)}, bf16, compiled ({mode})"
        name += ", half decoder" if half else ""
        measure_step(row, name, step, args, rate, "utilisation >= 0.45", 0.45)
        row(f"{name}: the first update", f"{first:.0f} s")
        del step
        torch.cuda.empty_cache()
        torch.compiler.reset()


def trainer(row):
    """The recipe's trainer beside the bare step, in one process."""
    rate = bench.best_rate("cuda", BF16)
    for compiled, shape in ((False, SHAPES[0]), (False, SHAPES[1]), (True, SHAPES[0])):
        mode = "default" if compiled else None
        args = step_args(*shape[:2], phase1=shape[2], mode=mode, half=compiled)
        bare = step_ms(bench.make_step(args))
        torch.cuda.empty_cache()
        ms = 1e3 * statistics.mean(bench.through_trainer(args, 40, workers=8))
        work = bench.step_flops(not args.phase1, args.clips, args.clones)
        way = "compiled, half decoder" if compiled else "eager"
        row(
            f"{shape_name(*shape)}, bf16, {way}, through the trainer",
            f"{ms:.1f} ms, {ms / bare:.3f} of the bare step's {bare:.1f} ms, "
            f"utilisation {work / ms * 1e3 / rate:.3f}",
            "<= 1.05 of the bare step",
            ms <= 1.05 * bare,
            ms=ms,
        )
        torch.cuda.empty_cache()


def profile(row):
    """What the GPU does during three updates: busy share and the largest kernels."""
    for mode in (None, "default"):
        _profile(row, step_args(12, 8, mode=mode))
        torch.cuda.empty_cache()


def _profile(row, args):
    """The rows of one way."""
    way = "compiled" if args.compile else "eager"
    step = bench.make_step(args)
    for _ in range(4):
        step()
    torch.cuda.synchronize()
    from torch.profiler import ProfilerActivity

    with torch.profiler.profile(
        activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]
    ) as profiler:
        start = time.perf_counter()
        for _ in range(3):
            step()
        torch.cuda.synchronize()
        wall = time.perf_counter() - start
    kernels = [
        e
        for e in profiler.key_averages()
        if e.device_type == torch.autograd.DeviceType.CUDA
    ]
    busy = sum(k.self_device_time_total for k in kernels) / 1e6
    row(f"GPU busy over three updates, {way}", f"{busy / wall:.2f}", ">= 0.95")
    kernels.sort(key=lambda k: -k.self_device_time_total)
    for kernel in kernels[:30]:
        ms = kernel.self_device_time_total / 3e3
        row(
            f"{way}: kernel {kernel.key[:110]}",
            f"{ms:.2f} ms an update, {kernel.count / 3:.0f} calls, "
            f"{ms * 3e-3 / busy:.1%}",
        )
    events = sorted(profiler.key_averages(), key=lambda e: -e.self_device_time_total)
    operators = [e for e in events if e.device_type != torch.autograd.DeviceType.CUDA]
    for event in operators[:15]:
        ms = event.self_device_time_total / 3e3
        row(f"{way}: operator {event.key[:60]}", f"{ms:.2f} ms an update")


def host(row):
    """Host time of the parts of an update, nothing waited for; GPU work is small."""
    for mode in (None, "default"):
        step = bench.make_step(step_args(4, 8, mode=mode))
        model, trained = step.model, step.trained
        times: dict[str, float] = {}
        parts = [(model, name) for name in ("draw", "student_inputs")]
        parts += [(model, "_compiled" if mode else "objective")]
        parts += [(model, "update_teacher"), (step.optimizer, "step")]
        parts += [(torch.Tensor, "backward"), (torch.nn.utils, "clip_grad_norm_")]
        parts += [(model, "_generator"), (step.optimizer, "zero_grad")]
        for _ in range(4):
            step()
        originals = [(owner, name, getattr(owner, name)) for owner, name in parts]
        for owner, name, function in originals:
            setattr(owner, name, _timing(function, name, times))
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(10):
            step()
        asked = time.perf_counter() - start
        torch.cuda.synchronize()
        whole = time.perf_counter() - start
        for owner, name, function in originals:
            setattr(owner, name, function)
        way = "compiled" if mode else "eager"
        row(
            f"{way}: an update", f"{whole * 100:.1f} ms, asked for in {asked * 100:.1f}"
        )
        for name, seconds in times.items():
            row(f"{way}: {name}", f"{seconds * 100:.1f} ms")
        del step, model, trained
        torch.cuda.empty_cache()


def _timing(function, name, times):
    """The function, adding its seconds to times[name]."""

    def timed(*args, **options):
        start = time.perf_counter()
        try:
            return function(*args, **options)
        finally:
            times[name] = times.get(name, 0.0) + time.perf_counter() - start

    return timed


def embed(row):
    """Features of clips in memory and in files: clips per second."""
    from espnet2_sslam.encoder import SSLAMEncoder
    from espnet2_sslam.inference import SSLAM

    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    equal = [generator.standard_normal(160_000).astype(np.float32) * 0.1] * 1024
    lengths = generator.integers(16_000, 320_000, 500)
    mixed = [generator.standard_normal(n).astype(np.float32) * 0.1 for n in lengths]
    seconds = sum(lengths) / 160_000
    speed = {}
    for dtype, tf32 in (("bfloat16", False), ("float32", True), ("float32", False)):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        name = "tf32" if tf32 else dtype
        model = SSLAM(SSLAMEncoder(**bench.BASE), device="cuda", dtype=dtype)
        model.embed(equal[:64], rate=16_000)
        start = time.perf_counter()
        model.embed(equal, rate=16_000)
        speed[name] = len(equal) / (time.perf_counter() - start)
        least = {"bfloat16": 2000}.get(name, 0)
        row(
            f"1,024 clips of 10 s in memory, {name}",
            f"{speed[name]:.0f} clips/s",
            f">= {least}" if least else "",
            speed[name] >= least if least else None,
        )
        if dtype == "bfloat16":
            start = time.perf_counter()
            model.embed(mixed, rate=16_000)
            rate = seconds / (time.perf_counter() - start)
            row(
                "500 clips of 500 lengths, bfloat16",
                f"{rate:.0f} times 10 s a second",
                ">= half of equal ones",
                rate >= speed[name] / 2,
            )


GROUPS = dict(
    ceilings=ceilings,
    tests=tests,
    conv=conv,
    steps=steps,
    compiled=compiled,
    trainer=trainer,
    profile=profile,
    embed=embed,
    host=host,
)


# --------------------------------------------------------------------- the command


def card():
    """Name, driver and versions, as the report's head."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    name, _, driver = done.stdout.strip().partition(", ")
    versions = f"torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}"
    return f"{name}, driver {driver}, {versions}, Python {platform.python_version()}"


def main():
    """Run the groups; then the report."""
    args = get_parser(__doc__, ROOT / "benchmarks", 9.0, tuple(LIMITS)).parse_args()
    if not args.one and not torch.cuda.is_available():
        sys.exit("error: no CUDA device: run this on a machine with an NVIDIA GPU")
    run("benchmarks.gpu", args, LIMITS, GROUPS, "GPU", "On a GPU", card)


if __name__ == "__main__":
    main()
