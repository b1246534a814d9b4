"""The pre-training step gives the authors' numbers on the authors' tiny weights."""

import numpy as np
import pytest
import torch

from espnet2_sslam import mixing
from espnet2_sslam.losses import layer_target
from espnet2_sslam.masking import split_indices
from espnet2_sslam.pretrain_model import Draws
from tests.golden_data import (
    CLONES,
    load,
    our_name,
    relative_error,
    tiny_encoder,
    tiny_fbank,
    tiny_model,
    tiny_states,
)

LOSS_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-4
PHASES = [("eat", False), ("stage2", True)]
EDGES = ["B2", "part1_2_empty", "part2_empty", "min_tail", "first_last"]


def run_step(model, fbank, mask, frames=None, noise=None):
    """Loss, stats, draws and inputs of one step with everything random given."""
    regions, mixed, mixed_patches, device = None, None, None, fbank.device
    if frames is not None:
        regions = torch.as_tensor(np.asarray(frames), device=device)[None] // 16
        mixed = mixing.mix_partially(fbank, regions, "max", model.encoder.log_mel.std)
        mixed_patches = mixing.mixed_patches(regions, 64)
    rows = len(fbank) * CLONES * len(model.streams)
    if noise is None:
        noise = torch.zeros(rows, 410, 48, device=device)
    draws = Draws(
        mask,
        *split_indices(mask, 102),
        noise.view(rows, 410, 48),
        regions=regions,
        mixed=mixed_patches,
    )
    loss, stats = model.objective(fbank, mixed, draws)
    return loss, stats, draws, mixed


def check_losses(stats, golden, prefix=""):
    names = ["loss_utterance", "loss_patch", "loss_retention"]
    terms = golden[prefix + "losses_sum"] / golden[prefix + "sample_size"]
    assert len(terms) == sum(name in stats for name in names)
    for name, term in zip(names, terms):
        assert float(stats[name]) == pytest.approx(float(term), rel=LOSS_TOLERANCE)
    total = float(golden[prefix + "loss_final"])
    assert float(stats["loss"]) == pytest.approx(total, rel=LOSS_TOLERANCE)


def check_gradients(model, golden, prefix=""):
    parameters = dict(model.named_parameters())
    squares = 0.0
    for name, norm in zip(golden[prefix + "grad_names"], golden[prefix + "grad_norms"]):
        if norm < 0:  # the position table has no gradient
            assert our_name(name) not in parameters
            continue
        gradient = parameters.pop(our_name(name)).grad
        assert float(gradient.norm()) == pytest.approx(norm, rel=GRADIENT_TOLERANCE)
        squares += float(gradient.double().square().sum())
        if "grad::" + name in golden:
            full = golden["grad::" + name]
            assert relative_error(gradient.cpu(), full) < GRADIENT_TOLERANCE
    assert all(p.grad is None for p in parameters.values()), "the teacher has gradients"
    total = float(golden[prefix + "grad_total_norm"])
    assert squares**0.5 == pytest.approx(total, rel=GRADIENT_TOLERANCE)


@pytest.mark.parametrize("phase, mixture", PHASES)
@pytest.mark.parametrize("case", ["A_nonoise", "B_noise"])
def test_losses_and_gradients_equal_the_authors(phase, mixture, case):
    golden = load(f"{phase}_tiny_{case}.npz")
    model = tiny_model(mixture=mixture)
    frames = [golden["idx_1"], golden["idx_2"]] if mixture else None
    noise = golden.get("noise_by_position")
    noise = None if noise is None else torch.from_numpy(noise)
    loss, stats, _, _ = run_step(model, tiny_fbank(), tiny_states()[2], frames, noise)
    check_losses(stats, golden)
    loss.backward()
    check_gradients(model, golden)


@torch.no_grad()
def test_phase_1_targets_equal_the_authors():
    golden = load("eat_tiny_A_nonoise.npz")
    model, fbank = tiny_model(), tiny_fbank()
    targets = model.make_targets(
        fbank, None, run_step(model, fbank, tiny_states()[2])[2]
    )
    for value, name in (
        (targets.patch[: len(golden["y_patch"])], "y_patch"),
        (targets.utterance, "y_cls_mean"),
    ):
        assert relative_error(value, golden[name]) < LOSS_TOLERANCE, name


@torch.no_grad()
def test_phase_2_targets_and_predictions_equal_the_authors():
    golden = load("stage2_tiny_A_nonoise.npz")
    model, fbank = tiny_model(mixture=True), tiny_fbank()
    frames = [golden["idx_1"], golden["idx_2"]]
    _, _, draws, mixed = run_step(model, fbank, tiny_states()[2], frames)
    targets = model.make_targets(fbank, mixed, draws)
    predicted = model.predict(torch.cat([fbank, mixed]), draws)
    teacher = model.teacher.encoder  # of the neighbour without its unmixed patches
    kept = mixing.mixed_patches(draws.regions, 64)
    kept = mixing.drop_unmixed(teacher.embed(fbank), kept)
    ffn = teacher.encode(kept, collect=True).ffn
    for value, name in (
        (targets.patch, "y_orig_patch"),
        (targets.utterance, "y_orig_cls_mean"),
        (targets.retention, "y_mix_patch"),
        (layer_target([output[:, 1:] for output in ffn], 3), "y_dropped_norolled"),
        (predicted.utterance, "student_cls"),
        (predicted.patch.flatten(0, 1)[:820], "decoder_out_masked_first820"),
    ):
        assert relative_error(value, golden[name]) < LOSS_TOLERANCE, name


@pytest.mark.parametrize("case", EDGES)
def test_phase_2_at_the_edges_equals_the_authors(case):
    golden = load("stage2_tiny_C_edges.npz")
    clips = 2 if case == "B2" else 3  # the last ones
    model, fbank = tiny_model(mixture=True), tiny_fbank()[-clips:]
    mask = tiny_states()[2][-clips * CLONES :]
    frames = golden[f"{case}::idx"]
    loss, stats, draws, mixed = run_step(model, fbank, mask, frames)
    check_losses(stats, golden, f"{case}::")
    head = model.make_targets(fbank, mixed, draws).retention[:, :, :4]
    assert relative_error(head, golden[f"{case}::y_mix_patch_head"]) < LOSS_TOLERANCE
    loss.backward()
    check_gradients(model, golden, f"{case}::")


@pytest.mark.parametrize("clips", [1, 2])
def test_phase_1_with_few_clips_equals_the_authors(clips):
    golden = load("eat_tiny_C_edges.npz")
    start = {1: 0, 2: 1}[clips]
    rows = slice(start * CLONES, (start + clips) * CLONES)
    model, fbank = tiny_model(), tiny_fbank()[start : start + clips]
    loss, stats, _, _ = run_step(model, fbank, tiny_states()[2][rows])
    check_losses(stats, golden, f"B{clips}::")
    loss.backward()
    check_gradients(model, golden, f"B{clips}::")


def test_features_of_every_layer_equal_the_authors():
    golden = load("tiny_features.npz")
    encoder, fbank = tiny_encoder().eval(), tiny_fbank()[:1]
    with torch.no_grad():
        out = encoder.encode(encoder.embed(fbank), collect=True)
    assert relative_error(out.last, golden["x_final_cls_first"]) < LOSS_TOLERANCE
    hidden, ffn = torch.cat(out.layers[1:]), torch.cat(out.ffn)
    assert relative_error(hidden, golden["block_x"]) < LOSS_TOLERANCE
    assert relative_error(ffn, golden["block_lr"]) < LOSS_TOLERANCE


@pytest.mark.parametrize("frames", [512, 250, 128])
def test_features_of_other_lengths_equal_the_authors(frames):
    golden = load("tiny_features.npz")[f"x_final_T{frames}"]
    encoder = tiny_encoder().eval()
    whole = frames // 16 * 16  # the authors' convolution drops an incomplete patch
    with torch.no_grad():
        tokens = encoder.encode(encoder.embed(tiny_fbank()[:1, :whole])).last
    assert relative_error(tokens[:, : golden.shape[1]], golden) < LOSS_TOLERANCE
