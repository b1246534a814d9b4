"""The method on a GPU: the authors' numbers, draws, training, resuming, features.

Every test runs on the CPU as well, so that it is kept in order where there is no GPU;
`make gpu` runs both and writes benchmarks/GPU.md.
"""

import warnings

import numpy as np
import pytest
import torch

from espnet2_sslam.augment import Augmentation
from espnet2_sslam.classifier import SSLAMClassifier
from espnet2_sslam.features import kaldi_fbank
from espnet2_sslam.inference import SSLAM
from espnet2_sslam.pretrain_model import SSLAMPretrainModel
from espnet2_sslam.tasks import SSLAMTask
from tests.golden_data import load, relative_error, tiny_fbank, tiny_model, tiny_states
from tests.inference_case import encoder, noise
from tests.test_golden_pretrain import (
    PHASES,
    check_gradients,
    check_losses,
    run_step,
)
from tests.toy_task import arguments, free_port, state, write_clips

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])]
devices = pytest.mark.parametrize("device", DEVICES)
phases = pytest.mark.parametrize("mixture", [False, True], ids=["phase1", "phase2"])
SMALL = dict(embed_dim=48, depth=2, num_heads=4)


@pytest.fixture(autouse=True)
def full_float32():
    """Golden numbers are float32 numbers: no TF32 in products or convolutions."""
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = False
    yield
    for backend, value in zip(backends, before, strict=True):
        backend.allow_tf32 = value


def pretraining(mixture, device, **options):
    """A small model in training mode, and a batch of two-second clips."""
    torch.manual_seed(0)
    options = {"clip_frames": 192, "clone_batch": 2, **options}
    decoder = dict(num_layers=2, groups=4)
    model = SSLAMPretrainModel(
        encoder(**SMALL), mixture=mixture, decoder_conf=decoder, **options
    )
    waves = torch.from_numpy(np.stack([noise(2, seed=seed) for seed in range(4)]))
    batch = dict(speech=waves, speech_lengths=torch.full((4,), waves.shape[1]))
    return model.to(device).train(), {k: v.to(device) for k, v in batch.items()}


@devices
@pytest.mark.parametrize("phase, mixture", PHASES)
@pytest.mark.parametrize("case", ["A_nonoise", "B_noise"])
def test_losses_and_gradients_equal_the_authors(device, phase, mixture, case):
    golden = load(f"{phase}_tiny_{case}.npz")
    model = tiny_model(mixture=mixture).to(device)
    frames = [golden["idx_1"], golden["idx_2"]] if mixture else None
    given = golden.get("noise_by_position")
    given = None if given is None else torch.from_numpy(given).to(device)
    fbank, mask = tiny_fbank().to(device), tiny_states()[2].to(device)
    loss, stats, _, _ = run_step(model, fbank, mask, frames, given)
    check_losses(stats, golden)
    loss.backward()
    check_gradients(model, golden)


@devices
@pytest.mark.parametrize("name", ["sine1s", "sine50ms"])
def test_log_mel_equals_the_authors(device, name):
    golden = load("fbank.npz")
    fbank, _ = kaldi_fbank(torch.from_numpy(golden[f"{name}.wave"]).to(device)[None])
    raw = golden[f"{name}.raw_fbank"]
    audible = raw > -9  # below, float32 itself is only good for 4e-4
    np.testing.assert_allclose(fbank[0].cpu()[audible], raw[audible], rtol=0, atol=1e-4)
    np.testing.assert_allclose(fbank[0].cpu(), raw, rtol=0, atol=1e-3)


@devices
@phases
def test_the_same_key_gives_the_same_draws(device, mixture):
    losses = []
    for _ in range(2):
        model, batch = pretraining(mixture, device)
        losses.append([model(**batch)[0].item() for _ in range(2)])
    assert losses[0] == losses[1] and losses[0][0] != losses[0][1]


def train(
    tmp_path, model, batch, *, updates, bad=(), fused=False, amp=None, scaler=None
):
    """Updates through the task's own optimizer, schedule and trainer."""
    from espnet2.train.distributed_utils import DistributedOption
    from espnet2.train.reporter import Reporter

    from espnet2_sslam.tasks.base import scheduler_classes

    words = ["--output_dir", str(tmp_path), "--max_epoch", "1", "--grad_clip", "4"]
    args = SSLAMTask.get_parser().parse_args(words)
    args.optim_conf = dict(lr=1e-3, betas=(0.9, 0.95), fused=fused)
    [optimizer] = SSLAMTask.build_optimizers(args, model)
    schedule = scheduler_classes[args.scheduler](
        optimizer, warmup_steps=2, total_steps=updates
    )
    losses, forward = [], model.forward

    def step(number, **tensors):
        device = model.decoder.proj.weight.device.type
        with torch.autocast(device, dtype=amp, enabled=amp is not None):
            loss, stats, weight = forward(**tensors)
        losses.append(loss.detach())
        factor = float("inf") if int(number) in bad else 1.0
        return loss * factor, stats, weight

    model.forward = step
    device = batch["speech"].device
    options = SSLAMTask.trainer.build_options(args)
    options.ngpu = int(device.type == "cuda")
    reporter = Reporter()
    reporter.set_epoch(1)
    with reporter.observe("train") as sub_reporter:
        SSLAMTask.trainer.train_one_epoch(
            model=model,
            iterator=[
                (["a"] * 4, {**batch, "number": torch.tensor(n)})
                for n in range(updates)
            ],
            optimizers=[optimizer],
            schedulers=[schedule],
            scaler=scaler,
            reporter=sub_reporter,
            summary_writer=None,
            options=options,
            distributed_option=DistributedOption(),
        )
    model.forward = forward
    steps = {int(s["step"]) for s in optimizer.state.values()}
    return torch.stack(losses).tolist(), steps, schedule.last_epoch


@devices
@phases
@pytest.mark.parametrize("fused", [False, True], ids=["foreach", "fused"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_teacher_optimizer_and_schedule_skip_together(
    device, mixture, fused, dtype, tmp_path
):
    """Two of 20 updates have infinite gradients; the loss stays that of float32."""
    if device == "cpu" and dtype == torch.float16:
        pytest.skip("float16 is not trained in on a CPU")
    model, batch = pretraining(mixture, device)
    reference, steps, _ = train(tmp_path, model, batch, updates=20)
    assert steps == {20} and int(model.num_updates) == 20
    model, batch = pretraining(mixture, device)
    scaler = torch.amp.GradScaler(device, init_scale=2.0)
    losses, steps, scheduled = train(
        tmp_path,
        model,
        batch,
        updates=20,
        bad=(5, 11),
        fused=fused,
        amp=dtype,
        scaler=scaler,
    )
    assert steps == {18} and scheduled == 18 and int(model.num_updates) == 18
    assert losses[:5] == pytest.approx(reference[:5], rel=0.02)
    assert np.isfinite(losses).all()


@pytest.mark.slow
@devices
@phases
def test_a_resumed_training_equals_an_uninterrupted_one(device, mixture, tmp_path):
    sets = [
        write_clips(tmp_path / name, count, shortest=9000)
        for name, count in (("train", 13), ("valid", 5))
    ]
    more = [
        *("--encoder_conf", "{embed_dim: 16, depth: 2, num_heads: 2}"),
        *("--model_conf", "{clip_frames: 128, clone_batch: 2, mask_block_size: 2}"),
        *("--model_conf", "decoder_conf={num_layers: 1, groups: 2}"),
        *("--model_conf", f"mixture={str(mixture).lower()}"),
        *("--scheduler_conf", "total_steps=9", "--ngpu", str(int(device == "cuda"))),
        *("--resume", "true"),
    ]
    folders = tmp_path / "once", tmp_path / "twice"
    SSLAMTask.main(cmd=arguments(*sets, folders[0], *more, "--max_epoch", "2"))
    for epochs in "12":
        SSLAMTask.main(cmd=arguments(*sets, folders[1], *more, "--max_epoch", epochs))
    once, twice = (state(folder)["model"] for folder in folders)
    for name, value in once.items():
        if device == "cpu":
            assert torch.equal(value, twice[name]), name
        else:  # cuDNN and attention add in no fixed order
            assert torch.allclose(value, twice[name], rtol=1e-4, atol=1e-5), name


@devices
def test_one_rank_alone_makes_the_step_of_no_ranks(device):
    backend = "nccl" if device == "cuda" else "gloo"
    address = f"tcp://127.0.0.1:{free_port()}"
    torch.distributed.init_process_group(
        backend, init_method=address, rank=0, world_size=1
    )
    try:
        results = []
        for wrap in (False, True):
            model, batch = pretraining(True, device)
            whole = torch.nn.parallel.DistributedDataParallel(model) if wrap else model
            loss = whole(**batch)[0]
            loss.backward()
            results.append((loss.item(), model.decoder.proj.weight.grad.clone()))
    finally:
        torch.distributed.destroy_process_group()
    (one, gradient), (other, parallel) = results
    assert one == pytest.approx(other, rel=1e-6)
    assert torch.allclose(gradient, parallel, rtol=1e-4, atol=1e-7)


@devices
@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-3), ("bfloat16", 0.02)])
def test_features_and_scores_equal_those_of_the_cpu(device, dtype, tolerance):
    clips = [noise(seconds, seed=k) for k, seconds in enumerate((1, 3.3, 0.5, 2))]
    results = []
    for where, number in (("cpu", "float32"), (device, dtype)):
        model = SSLAM(encoder(**SMALL), device=where, dtype=number)
        results.append(model.embed(clips, rate=16_000))
    for one, other in zip(*results, strict=True):
        assert relative_error(torch.as_tensor(other), one) < tolerance


def classification(device):
    """A small classifier with every augmentation, and a batch with labels."""
    augmentation = Augmentation(
        mixup_alpha=0.8, mask_ratio=0.2, noise=0.1, roll_and_gain=True
    )
    model = SSLAMClassifier(
        encoder(**SMALL, drop_path=0.1), ["cat", "dog"], augmentation=augmentation
    )
    _, batch = pretraining(False, device)
    batch["label"] = torch.eye(2, device=device).repeat(2, 1)
    return model.to(device).train(), batch


@pytest.mark.gpu
@NO_GPU
@pytest.mark.parametrize("kind", ["phase1", "phase2", "fine-tuning"])
def test_an_update_does_not_wait_for_the_gpu(kind):
    if kind == "fine-tuning":
        model, batch = classification("cuda")
    else:
        model, batch = pretraining(kind == "phase2", "cuda")
    model(**batch)[0].backward()  # the first time builds tables
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        model(**batch)[0].backward()
        if kind != "fine-tuning":
            model.update_teacher()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@NO_GPU
@phases
def test_the_trainer_waits_for_the_gpu_once_in_an_update(mixture, tmp_path):
    """For the norm of the gradients; the test's own step reads a number, too."""
    model, batch = pretraining(mixture, "cuda")
    train(tmp_path, model, batch, updates=2, fused=True)  # builds tables
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            train(tmp_path, model, batch, updates=30, fused=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [each for each in caught if "synchronizing" in str(each.message)]
    assert 30 <= len(waits) <= 2 * 30 + 15  # and some to log and at the ends
