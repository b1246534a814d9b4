"""SSLAMEncoder: lengths, padding, chunks, output forms, modes."""

import pytest
import torch

from espnet2_sslam.encoder import SSLAMEncoder, drop_path, sincos_positions
from espnet2_sslam.features import kaldi_fbank
from tests.golden_data import tiny_states

SMALL = dict(embed_dim=24, depth=2, num_heads=2, max_frames=320)
SIZES = [400, 2_000, 2_561, 16_000, 50_000, 51_600, 160_000]  # 320 frames: 51,440


def encoder(**options):
    torch.manual_seed(0)
    return SSLAMEncoder(**{"input_size": 1, **SMALL, **options}).eval()


def batch(sizes=SIZES):
    generator = torch.Generator().manual_seed(1)
    waves = [torch.randn(size, generator=generator) * 0.1 for size in sizes]
    padded = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
    return waves, padded, torch.tensor(sizes)


@pytest.mark.parametrize(
    "options",
    [
        dict(freq="concat", cls_token=True),
        dict(freq="flatten"),
        dict(upsample=8, cls_token=True),
        dict(layer=0),
        dict(time_shifts=4, cls_token=True),
        dict(time_shifts=16, upsample=2, freq="flatten"),
    ],
)
@torch.no_grad()
def test_a_clip_gives_the_same_output_alone_and_in_any_batch(options):
    model = encoder(**options)
    waves, padded, lengths = batch()
    out, olens, _ = model(padded, lengths)
    assert out.shape[1] == olens.max() and out.shape[2] == model.output_size()
    for clip, wave in enumerate(waves):
        alone, length, _ = model(wave[None], lengths[clip : clip + 1])
        assert length[0] == olens[clip] == alone.shape[1]
        error = (alone[0] - out[clip, : length[0]]).norm() / alone.norm()
        assert error < 1e-5
        assert not out[clip, length[0] :].any()


@torch.no_grad()
def test_a_user_of_espnet_gives_the_input_size_first_and_may_leave_lengths_out():
    torch.manual_seed(0)
    model = SSLAMEncoder(1, **SMALL).eval()
    assert vars(model.config) == vars(encoder().config)
    _, padded, _ = batch([16_000, 9_000])
    out, olens, _ = model(padded)
    wanted, lengths, _ = model(padded, torch.full((2,), 16_000))
    assert torch.equal(out, wanted) and torch.equal(olens, lengths)
    with pytest.raises(ValueError, match="input_size .* must be one of 1, 128, got 80"):
        SSLAMEncoder(80)


@pytest.mark.parametrize("samples", [400, 2_799, 2_800, 2_960, 160_000])
@torch.no_grad()
def test_output_lengths_are_exact(samples):
    frames = 1 + (samples - 400) // 160
    steps = -(-frames // 16)
    lengths = torch.tensor([samples])
    wave = torch.randn(1, samples)
    for options, wanted in (
        (dict(), steps),
        (dict(freq="flatten"), 8 * steps),
        (dict(upsample=4), 4 * steps),
        (dict(cls_token=True), steps + 1),
        (dict(time_shifts=4), -(-frames // 4)),
        (dict(time_shifts=2, upsample=3, freq="flatten"), 24 * -(-frames // 8)),
        (dict(time_shifts=4, target_frames=320), 80),
    ):
        out, olens, _ = encoder(**options)(wave, lengths)
        assert olens.tolist() == [wanted] and out.shape[1] == wanted


@torch.no_grad()
def test_log_mel_input_gives_the_same_as_waveforms():
    model, other = encoder(), encoder(input_size=128)
    _, padded, lengths = batch()
    fbank, frames = kaldi_fbank(padded, lengths)
    fbank = fbank + 5.0 * (fbank == 0)  # padding must not matter
    out, olens, _ = model(padded, lengths)
    same, same_lens, _ = other(fbank, frames)
    assert torch.equal(olens, same_lens)
    torch.testing.assert_close(out, same)


@pytest.mark.parametrize("time_shifts", [2, 4, 8, 16])
@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(freq="concat", upsample=2),
        dict(freq="flatten", layer="all"),
        dict(target_frames=160),
    ],
)
@torch.no_grad()
def test_a_step_is_that_of_the_log_mel_that_begins_there(time_shifts, options):
    hop = 16 // time_shifts
    fine = encoder(input_size=128, time_shifts=time_shifts, **options)
    whole = encoder(input_size=128, **options)
    for num_frames in (1, hop + 1, 17, 160, 333, 700):  # the last two in chunks of 320
        fbank = torch.randn(1, num_frames, 128) * 4 - 4
        out, olens, _ = fine(fbank, torch.tensor([num_frames]))
        outs = [out] if torch.is_tensor(out) else [layer for _, layer in out[1]]
        if "target_frames" in options:
            fbank = fbank[:, :160]
        frames = options.get("target_frames", num_frames)
        per_step = outs[0].shape[1] // -(-frames // hop)
        assert olens.tolist() == [outs[0].shape[1]] == [per_step * -(-frames // hop)]
        for shift in range(min(time_shifts, fbank.shape[1])):
            begun = fbank[:, shift * hop :]
            if not begun.shape[1]:
                continue
            length = torch.tensor([begun.shape[1]])
            alone, _, _ = whole(begun, length)
            alones = [alone] if torch.is_tensor(alone) else [x for _, x in alone[1]]
            for some, wanted in zip(outs, alones, strict=True):
                steps = some.unflatten(1, (-1, per_step))[:, shift::time_shifts]
                steps = steps.flatten(1, 2)
                assert steps.shape == wanted.shape
                torch.testing.assert_close(steps, wanted, rtol=0, atol=1e-5)


@torch.no_grad()
def test_what_stands_for_a_clip_is_of_the_pass_without_a_shift():
    _, padded, lengths = batch([8_000, 60_000])
    fine = encoder(time_shifts=4).hidden_states(padded, lengths, "all")
    whole = encoder().hidden_states(padded, lengths, "all")
    for some, wanted in zip(fine.layers, whole.layers, strict=True):
        assert torch.equal(some[:, 0], wanted[:, 0])
    assert fine.steps.tolist() == fine.real()[:, ::8].sum(1).tolist()


@pytest.mark.parametrize("options", [{}, {"input_size": 128}, {"target_frames": 320}])
@torch.no_grad()
def test_lengths_that_are_not_read_give_the_same(monkeypatch, options):
    model = encoder(time_shifts=4, **options)
    _, batch_, lengths = batch([8_000, 33_000])
    if "input_size" in options:
        batch_, lengths = kaldi_fbank(batch_, lengths)
    wanted, olens, _ = model(batch_, lengths)
    # as in training on a GPU
    monkeypatch.setattr(SSLAMEncoder, "_unseen", lambda self, frames: True)
    out, same, _ = model(batch_, lengths)
    assert same.tolist() == olens.tolist() and out.shape[1] == olens.max()
    torch.testing.assert_close(out, wanted, rtol=0, atol=1e-5)


@torch.no_grad()
def test_half_precision_works_with_shifts_as_without():
    _, padded, lengths = batch([8_000, 60_000])
    exact, _, _ = encoder(time_shifts=4)(padded, lengths)
    low = encoder(time_shifts=4).bfloat16()(padded, lengths)[0]
    with torch.autocast("cpu", torch.bfloat16):
        auto = encoder(time_shifts=4)(padded, lengths)[0]
    for some in (low, auto):
        assert (some.float() - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_goes_through_all_shifted_passes(checkpointing):
    model = encoder(time_shifts=4, drop_path=0.1).train()
    model.checkpointing = checkpointing
    _, padded, lengths = batch([400, 8_000, 60_000])
    out, _, _ = model(padded, lengths)
    for step in range(4):  # each pass by itself
        model.zero_grad()
        out[1, step].sum().backward(retain_graph=True)
        for name, weight in model.named_parameters():
            assert weight.grad is not None and weight.grad.isfinite().all(), name
        assert model.patch_embed.proj.weight.grad.any()


@torch.no_grad()
def test_a_clip_longer_than_the_table_is_encoded_in_chunks():
    model = encoder(cls_token=True)
    wave = torch.randn(1, 200_000) * 0.1
    out, olens, _ = model(wave, torch.tensor([200_000]))
    fbank, frames = model.fbank(wave, torch.tensor([200_000]))
    lengths = [320, 320, 320, int(frames) - 960]
    parts = []
    for part, length in zip(fbank.split(320, 1), lengths):
        patches = model.embed(part)
        real = model.patch_mask(torch.tensor([length]), patches.shape[1])
        parts.append(model.encode(patches, real).last)
    grid = torch.cat([part[:, 1:].view(1, -1, 8, 24).mean(2) for part in parts], 1)
    torch.testing.assert_close(out[:, 1:], grid[:, : out.shape[1] - 1])
    shares = torch.tensor(lengths) / float(frames)
    cls = sum(share * part[:, :1] for share, part in zip(shares, parts))
    torch.testing.assert_close(out[:, :1], cls)
    assert olens.tolist() == [1 + -(-int(frames) // 16)]


@torch.no_grad()
def test_target_frames_pads_and_attends_and_cuts():
    model = encoder(target_frames=160)
    _, padded, lengths = batch([8_000, 60_000])
    _, olens, _ = model(padded, lengths)
    assert olens.tolist() == [10, 10]
    fbank, frames = model.fbank(padded, lengths)
    assert frames.tolist() == [160, 160] and fbank.shape[1] == 160
    assert float(fbank[0, -1, 0]) == pytest.approx(0.4670606)


@torch.no_grad()
def test_layers_and_max_layer():
    _, padded, lengths = batch([8_000, 30_000])
    (last, layers), _, _ = encoder(layer="all")(padded, lengths)
    assert [index for index, _ in layers] == [1, 2]
    assert torch.equal(last, layers[-1][1])
    first, _, _ = encoder(layer=1)(padded, lengths)
    cut, _, _ = encoder(max_layer=1)(padded, lengths)
    called, _, _ = encoder()(padded, lengths, max_layer=1)
    for found in (first, cut, called):
        torch.testing.assert_close(found, layers[0][1])


def test_a_frozen_encoder_stays_in_evaluation_mode():
    model = encoder(freeze=True, drop_path=0.5).train()
    assert not any(module.training for module in model.modules())
    assert not any(p.requires_grad for p in model.parameters())
    model = encoder(drop_path=0.5).requires_grad_(False)  # as ESPnet's --freeze_param
    assert not model.train().training
    model.norm.requires_grad_(True)
    assert model.train().training


def test_drop_path_needs_a_seed_only_in_training():
    model = encoder(drop_path=0.9)
    _, padded, lengths = batch([8_000] * 20)
    one, _, _ = model(padded, lengths)
    assert torch.equal(one, model(padded, lengths)[0])
    patches = model.embed(model.fbank(padded, lengths)[0])
    model.train()
    seeds = [torch.Generator().manual_seed(seed) for seed in (1, 1, 2)]
    outs = [model.encode(patches, generator=seed).last for seed in seeds]
    assert torch.equal(outs[0], outs[1]) and not torch.equal(outs[0], outs[2])


def test_drop_path_drops_whole_clips_and_keeps_the_mean():
    x = torch.ones(20_000, 2, 3)
    draws = torch.rand(20_000, 1, 1, generator=torch.Generator().manual_seed(0))
    dropped = drop_path(x, 0.25, draws)
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3])
    assert float(dropped.mean()) == pytest.approx(1, abs=0.02)
    assert (dropped.flatten(1).std(1) == 0).all()


def test_positions_equal_the_authors_table():
    table = tiny_states()[0][
        "modality_encoders.IMAGE.fixed_positional_encoder.positions"
    ]
    torch.testing.assert_close(sincos_positions(48, 96), table, rtol=0, atol=5e-6)


def test_wrong_input_and_mistyped_options_are_refused():
    with pytest.raises(ValueError, match="dropp_path"):
        encoder(dropp_path=0.1)
    with pytest.raises(ValueError, match="input_size"):
        encoder(input_size=128)(torch.zeros(2, 100, 80), torch.tensor([100, 100]))
    with pytest.raises(ValueError, match="at least 400"):
        encoder()(torch.zeros(1, 300), torch.tensor([300]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", [{}, {"layer": "all"}, {"input_size": 128}])
@torch.no_grad()
def test_an_encoder_in_half_precision_keeps_its_fbank_and_positions(dtype, options):
    lengths = torch.tensor([60_000, 9_000])  # the first one in chunks
    clips = batch([60_000, 9_000])[1]
    if options.get("input_size") == 128:
        clips, lengths = kaldi_fbank(clips, lengths)
    exact = encoder(**options).hidden_states(clips, lengths).last
    model = encoder(**options).to(dtype)
    assert model.cls_token.dtype == dtype
    assert {buffer.dtype for buffer in model.buffers()} == {torch.float32}
    assert torch.equal(model.positions, encoder().positions)
    rounded = model.hidden_states(clips, lengths).last
    assert rounded.dtype == dtype
    assert 0 < (rounded.float() - exact).norm() < 0.02 * exact.norm()
    model(clips, lengths)
