"""The pre-training model: options, randomness, teacher, modes."""

import pytest
import torch

from espnet2_sslam import losses
from espnet2_sslam.encoder import SSLAMEncoder
from espnet2_sslam.pretrain_model import SSLAMPretrainModel
from espnet2_sslam.teacher import Teacher, ema_decay
from tests.golden_data import load

FRAMES = 160
SAMPLES = FRAMES * 160 + 240


def model(input_size=1, depth=2, **options):
    torch.manual_seed(0)
    encoder = SSLAMEncoder(
        input_size=input_size, embed_dim=24, depth=depth, num_heads=2, max_frames=320
    )
    options = {
        "clip_frames": FRAMES,
        "clone_batch": 2,
        "decoder_conf": dict(num_layers=1, groups=4),
        **options,
    }
    return SSLAMPretrainModel(encoder, **options).train()


def clips(count=3, samples=SAMPLES):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, samples, generator=generator) * 0.1, torch.full(
        (count,), samples
    )


BOTH = "utterance patch"
OPTIONS = [  # and the terms of the loss
    (dict(), BOTH),
    (dict(mixture=True), f"{BOTH} retention"),
    (dict(mixture=True, streams="unmixed"), BOTH),
    (dict(mixture=True, streams="mixed", source_retention=False), BOTH),
    (dict(mixture=True, source_retention=False), BOTH),
    (dict(mixture=True, streams="mixed"), f"{BOTH} retention"),
    (
        dict(mixture=True, source_retention_utterance=True),
        f"{BOTH} retention retention_utterance",
    ),
    (dict(mixture=True, mixing_rule="waveform", snr_range=(-3, 3)), None),
    (dict(depth=3, target_layers=2, utterance_target_layers=1), BOTH),
    (dict(decoder_conf=dict(num_layers=2, kernel_size=4, groups=2)), BOTH),
    (dict(decoder_conf=dict(decoder_dim=16, num_layers=2, groups=8)), BOTH),
]


@pytest.mark.parametrize("options, terms", OPTIONS)
def test_every_option_trains_all_parameters(options, terms):
    trained = model(**options)
    loss, stats, weight = trained(*clips(), utt_id=["a", "b", "c"])
    assert torch.isfinite(loss) and float(weight) == 3
    names = {name for name in stats if name.startswith("loss_")}
    assert terms is None or names == {f"loss_{term}" for term in terms.split()}
    assert loss.item() == pytest.approx(sum(float(stats[name]) for name in names))
    loss.backward()
    for name, parameter in trained.named_parameters():
        if name.startswith("teacher."):
            assert parameter.grad is None
        else:
            assert parameter.grad is not None, name


@pytest.mark.parametrize("count, clones, frames", [(2, 1, 64), (5, 3, 304), (7, 4, 96)])
def test_any_batch_clone_count_and_length(count, clones, frames):
    trained = model(mixture=True, clone_batch=clones, clip_frames=frames)
    loss, _, _ = trained(*clips(count))
    assert torch.isfinite(loss)


def test_the_authors_pad_shorter_clips_and_cut_longer_ones_to_the_clip_length():
    trained = model(padding="authors")
    speech, lengths = clips(2, SAMPLES * 2)
    draws = trained.draw(2, torch.Generator().manual_seed(0))
    short, _ = trained.student_inputs(speech, lengths // 4, draws)
    long, _ = trained.student_inputs(speech, lengths, draws)
    assert short.shape == long.shape == (2, FRAMES, 128)
    pad = -float(trained.encoder.log_mel.mean) / (
        2 * float(trained.encoder.log_mel.std)
    )
    assert float(short[0, -1, 0]) == pytest.approx(pad)


@pytest.mark.parametrize("input_size", [1, 128])
@pytest.mark.parametrize("shortest, steps", [(48, 3), (63, 3), (64, 4), (400, 10)])
def test_without_padding_a_batch_is_as_long_as_its_shortest_clip(
    input_size, shortest, steps
):
    trained = model(input_size, mixture=True)
    frames = torch.tensor([shortest, shortest + 50, shortest + 9])
    shape = (3, int(frames.max()) * 160 + 240) if input_size == 1 else (3, 460, 128)
    lengths = frames * 160 + 240 if input_size == 1 else frames
    speech = torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 0.1
    for row, length in zip(speech, lengths.tolist(), strict=True):
        row[length:] = 3.0  # what lies behind a clip is not heard
    assert trained.common_steps(speech, lengths) == steps
    draws = trained.draw(3, torch.Generator().manual_seed(0), steps)
    unmixed, mixed = trained.student_inputs(speech, lengths, draws)
    assert unmixed.shape == mixed.shape == (3, 16 * steps, 128)
    size = 16 * steps * 160 + 240 if input_size == 1 else 16 * steps
    cut, _ = trained.student_inputs(speech[:, :size], lengths.clamp(max=size), draws)
    assert torch.equal(unmixed, cut)
    loss, _, _ = trained(speech, lengths)
    loss.backward()
    assert torch.isfinite(loss)


@pytest.mark.parametrize("rule", ["max", "logsumexp"])
def test_a_mixture_is_the_clip_itself_where_its_neighbour_has_ended(rule):
    """Also in batches that are not cut, which `forward` never makes."""
    trained = model(mixture=True, mixing_rule=rule)
    speech, _ = clips(2, 32_000)
    lengths = torch.tensor([32_000, 16_000])  # 198 and 98 frames
    draws = trained.draw(2, torch.Generator().manual_seed(0))
    unmixed, mixed = trained.student_inputs(speech, lengths, draws)
    assert torch.equal(mixed[0, 98:], unmixed[0, 98:])
    assert not torch.equal(mixed[0, :98], unmixed[0, :98])


def test_clips_that_are_too_short_are_refused():
    trained = model(mixture=True)
    with pytest.raises(ValueError, match="a clip has 8 frames, padding: none needs 16"):
        trained(*clips(2, 1600))
    with pytest.raises(ValueError, match="at least 3 time patches"):
        trained(*clips(2, 6000))


def test_log_mel_input_equals_waveforms():
    from espnet2_sslam.features import kaldi_fbank

    speech, lengths = clips(3)
    fbank, frames = kaldi_fbank(speech, lengths)
    one = model(mixture=True)(speech, lengths)[0]
    same = model(input_size=128, mixture=True)(fbank, frames)[0]
    assert one.item() == pytest.approx(same.item(), rel=1e-6)


def test_a_batch_of_one_is_an_error_in_phase_2_only():
    model()(*clips(1))
    with pytest.raises(ValueError, match="at least 2 clips"):
        model(mixture=True)(*clips(1))


def test_draws_change_with_every_batch_and_repeat_after_reloading():
    trained = model(mixture=True)
    first = float(trained(*clips())[0])
    state = {name: value.clone() for name, value in trained.state_dict().items()}
    second = float(trained(*clips())[0])
    assert first != second
    resumed = model(mixture=True)
    resumed.load_state_dict(state)
    assert float(resumed(*clips())[0]) == second
    assert float(model(mixture=True, seed=1)(*clips())[0]) != first


def test_draws_differ_between_ranks(monkeypatch):
    trained = model()
    one = trained._generator(torch.device("cpu"), ()).initial_seed()
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    trained.num_batches -= 1
    assert trained._generator(torch.device("cpu"), ()).initial_seed() != one


def test_validation_repeats_by_clip_names_and_changes_nothing():
    trained = model(mixture=True).eval()
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    losses_ = [float(trained(*clips(), utt_id=ids)[0]) for ids in ("abc", "abc", "abd")]
    assert losses_[0] == losses_[1] != losses_[2]
    for name, value in trained.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_training_does_not_touch_the_global_generators():
    state = torch.get_rng_state()
    model_ = model(mixture=True, mixing_rule="waveform")
    torch.set_rng_state(state)
    model_(*clips())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_teacher_cast_once_gives_what_autocast_gives(monkeypatch):
    cast, plain = model(mixture=True), model(mixture=True)
    monkeypatch.setattr(plain.teacher, "prepare", lambda _: None)
    names = cast.state_dict().keys()
    other = model(mixture=True, seed=3)
    other.encoder.norm.weight.data += 1
    for step, enabled in enumerate((True, True, False, True, True)):
        if step == 4:  # a checkpoint, in the middle
            for one in cast, plain:
                one.load_state_dict(other.state_dict())
        for one in cast, plain:
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                loss = one(*clips())[0]
            loss.backward()
            for parameter in one.encoder.parameters():
                parameter.data -= 0.1 * parameter.grad
            one.zero_grad()
            one.update_teacher()
        assert cast.state_dict().keys() == names
        for name, value in plain.state_dict().items():
            assert torch.equal(value, cast.state_dict()[name]), (step, name)
        used = [p.dtype for p in cast.teacher._cast._pairs.values()]
        assert set(used) == ({torch.bfloat16} if enabled else set())


def test_a_decoder_in_half_precision_is_as_near_to_float32_as_autocast():
    def step(half, autocast):
        conf = dict(num_layers=3, groups=4, half_precision=half)
        trained = model(mixture=True, decoder_conf=conf)
        types = []
        second = trained.decoder.convs[1]
        second.register_forward_pre_hook(
            lambda _, inputs: types.append(inputs[0].dtype)
        )
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = trained(*clips())[0]
        loss.backward()
        gradients = [p.grad.flatten() for p in trained.parameters() if p.requires_grad]
        return loss.item(), torch.cat(gradients), types[0]

    wanted, gradient, _ = step(False, False)
    assert step(True, False)[0] == wanted
    for half, stream in (False, torch.float32), (True, torch.bfloat16):
        loss, rounded, dtype = step(half, True)
        assert dtype == stream
        assert loss == pytest.approx(wanted, rel=1e-3)
        assert float((rounded - gradient).norm() / gradient.norm()) < 0.01


def test_one_teacher_step_equals_the_authors():
    golden = load("ema_step_toy.npz")
    names = ("w", "b")
    student = torch.nn.ParameterDict(
        {name: torch.from_numpy(golden[f"fp32.student.{name}"]) for name in names}
    )
    teacher = Teacher(student, 0.75, 0.75)  # the decay of the authors' toy
    for name, parameter in teacher.encoder.named_parameters():
        parameter.data.copy_(torch.from_numpy(golden[f"fp32.ema_before.{name}"]))
    assert teacher.update(student, 1) == 0.75
    for name, parameter in teacher.encoder.named_parameters():
        wanted = torch.from_numpy(golden[f"fp32.ema_fp32_after.{name}"])
        torch.testing.assert_close(parameter.data, wanted, rtol=1e-6, atol=1e-7)


def test_ema_decay_equals_the_authors_schedule():
    for updates, wanted in ((1, 0.9998000019), (1000, 0.9998019), (50_000, 0.999895)):
        assert ema_decay(updates, 0.9998, 0.99999, 100_000) == pytest.approx(
            wanted, abs=1e-12
        )
    assert ema_decay(150_000, 0.9998, 0.99999, 100_000) == 0.99999


def test_the_teacher_only_ever_evaluates_and_counts_updates():
    trained = model().eval().train()
    assert trained.encoder.training
    assert not any(module.training for module in trained.teacher.modules())
    assert not any(p.requires_grad for p in trained.teacher.parameters())
    old = trained.teacher.encoder.cls_token.clone()
    trained.encoder.cls_token.data += 1
    trained.update_teacher()
    assert float(trained.num_updates) == 1
    torch.testing.assert_close(
        trained.teacher.encoder.cls_token, old + (1 - trained.ema_decay)
    )


def test_targets_are_normalised_per_clip_and_patch():
    ffn = [torch.randn(2, 40, 12) * 5 + 3 for _ in range(3)]
    target = losses.layer_target(ffn, 2)
    torch.testing.assert_close(target.mean(-1), torch.zeros(2, 40), atol=1e-5, rtol=0)
    one = losses.layer_target([part[:1] for part in ffn], 2)
    torch.testing.assert_close(target[:1], one)


def test_collect_feats_gives_the_log_mel():
    feats = model().collect_feats(*clips(2))
    assert feats["feats"].shape == (2, FRAMES, 128)
    assert feats["feats_lengths"].tolist() == [160, 160]


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(clip_frames=100), "clip_frames"),
        (dict(clip_frames=640), "clip_frames"),
        (dict(mixing_rule="min"), "mixing_rule"),
        (dict(streams="all"), "streams"),
        (dict(padding="zero"), "padding"),
        (dict(regions_per="epoch"), "regions_per"),
        (dict(clone_batch=0), "clone_batch"),
        (dict(target_layers=3), "target_layers"),
        (dict(utterance_loss_reduction="max"), "utterance_loss_reduction"),
        (dict(mixture=True, clip_frames=32), "at least 3 time patches"),
        (dict(input_size=128, mixture=True, mixing_rule="waveform"), "waveform"),
        (dict(ema_decay=1.1), "EMA"),
        (dict(decoder_conf=dict(groups=7)), "groups"),
    ],
)
def test_impossible_options_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        model(**options)
