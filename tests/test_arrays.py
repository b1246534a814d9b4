"""One rule for arrays and tensors, wherever they come in, in the same words.

Reference values are those of the same clips as floats in [-1, 1].
"""

import numpy as np
import pytest
import torch

from espnet2_sslam import SSLAM, config
from espnet2_sslam.augment import Augmentation
from espnet2_sslam.classifier import SSLAMClassifier
from espnet2_sslam.encoder import SSLAMEncoder
from espnet2_sslam.features import checked_waves
from espnet2_sslam.mixing import mix_waveforms
from espnet2_sslam.pretrain_model import SSLAMPretrainModel
from espnet2_sslam.units import NUM_MEL_BINS

SMALL = dict(embed_dim=16, depth=1, num_heads=2, max_frames=64)
N = 8_000
SCALES = {torch.int16: 2**15, torch.int32: 2**31, torch.uint8: 2**7}


def encoder(**options):
    torch.manual_seed(0)
    return SSLAMEncoder(**{**SMALL, **options}).eval()


def frontend():
    espnet = pytest.importorskip("espnet2_sslam.integrations.espnet")
    torch.manual_seed(0)
    model = espnet.SSLAMFrontend(**SMALL).eval()
    return lambda waves, lengths: model(waves, lengths)[0]


def upstream():
    expert = pytest.importorskip("espnet2_sslam.integrations.s3prl.expert")
    model = expert.UpstreamExpert(**SMALL).eval()
    return lambda waves, lengths: model(
        [wave[:n] for wave, n in zip(waves, lengths, strict=True)]
    )["last_hidden_state"]


def hugging_face():
    module = pytest.importorskip("espnet2_sslam.integrations.huggingface")
    torch.manual_seed(0)
    config = module.SSLAMConfig(encoder=dict(SMALL))
    model, extract = module.SSLAMModel(config).eval(), module.SSLAMFeatureExtractor()

    def read(waves, lengths):
        clips = [wave[:n] for wave, n in zip(waves, lengths, strict=True)]
        batch = extract(clips, sampling_rate=16_000, return_tensors="pt")
        return model(**batch).last_hidden_state

    return read


def training():
    data = pytest.importorskip("espnet2_sslam.tasks.data")
    preprocess = data.ClipPreprocessor(train=True)
    return lambda waves, lengths: torch.stack(
        [
            torch.from_numpy(preprocess("a", {"speech": wave[:n].numpy()})["speech"])
            for wave, n in zip(waves, lengths, strict=True)
        ]
    )


def pretraining():
    torch.manual_seed(0)
    model = SSLAMPretrainModel(
        SSLAMEncoder(**SMALL), clip_frames=64, clone_batch=2
    ).eval()
    return lambda waves, lengths: model(waves, lengths)[0]


def fine_tuning():
    model = SSLAMClassifier(
        encoder(), ["a", "b"], augmentation=Augmentation(roll_and_gain=True)
    ).train()
    label = torch.eye(2)

    def read(waves, lengths):
        model.num_batches.zero_()  # the same draws
        return model(waves, lengths, label)[0]

    return read


def api():
    model = SSLAM(encoder(), device="cpu")
    return lambda waves, lengths: torch.from_numpy(
        np.stack(
            model.embed(
                [wave[:n] for wave, n in zip(waves, lengths, strict=True)], rate=16_000
            )
        )
    )


READERS = {
    "forward": lambda: lambda *batch: encoder()(*batch)[0],
    "hidden states": lambda: lambda *batch: encoder().hidden_states(*batch).last,
    "all layers": lambda: lambda *batch: encoder().hidden_states(*batch, "all").last,
    "frontend": frontend,
    "s3prl": upstream,
    "hugging face": hugging_face,
    "training": training,
    "pre-training": pretraining,
    "fine-tuning": fine_tuning,
    "api": api,
}
# Those that take a padded batch with lengths, as ESPnet hands it out.
PADDED = ("forward", "hidden states", "all layers", "frontend", "pre-training")


@pytest.fixture(params=READERS)
def read(request, monkeypatch):
    monkeypatch.setattr(config, "_WARNED", set())
    return READERS[request.param]()


@pytest.fixture(params=PADDED)
def read_padded(request):
    return READERS[request.param]()


def clips(peak=0.4):
    generator = torch.Generator().manual_seed(0)
    waves = torch.rand(2, N, generator=generator) * 2 - 1
    return peak * waves, torch.tensor([N, N])


def one_line(function, *args):
    with pytest.raises(ValueError) as error:
        function(*args)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("dtype", SCALES)
def test_integers_are_their_floats(read, dtype):
    waves, lengths = clips()
    silence = 128 if dtype == torch.uint8 else 0
    whole = (waves * SCALES[dtype]).round()
    integers = (whole + silence).to(dtype)
    floats = (integers.double() - silence).float() / SCALES[dtype]
    torch.testing.assert_close(read(integers, lengths), read(floats, lengths))
    assert not torch.equal(read(floats, lengths), read(floats.flip(1), lengths))


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool])
def test_numbers_of_unknown_scale_are_refused(read, dtype):
    waves, lengths = clips()
    line = one_line(read, (waves * 100).to(dtype), lengths)
    name = str(dtype).removeprefix("torch.")
    words = "integers must be int16, int32, uint8" if "int" in name else "real numbers"
    assert words in line and f"got {name}" in line


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_samples_that_are_not_finite_are_refused(read, value):
    waves, lengths = clips()
    waves[1, 17] = value
    assert "not finite: NaN or infini" in one_line(read, waves, lengths)


def test_floats_in_the_range_of_integers_are_refused(read):
    line = one_line(read, *clips(10_000))
    assert "overload: peak" in line and "divide integers" in line


def test_what_is_a_little_too_loud_is_said_once(read, caplog, request):
    read(*clips(1.9))
    assert caplog.text == ""
    for _ in range(2):
        read(*clips(2.5))
    said = [text for text in caplog.messages if "overload: peak 2.5" in text]
    # recordings that are given by hand are named, each time
    assert len(said) == (4 if request.node.callspec.params["read"] == "api" else 1)


@pytest.mark.parametrize(
    "lengths, words",
    [
        (torch.tensor([N, N + 1]), "8001 samples by its length, the batch only 8000"),
        (torch.tensor([N, 0]), "0 samples, at least 400"),
        (torch.tensor([-5, N]), "-5 samples, at least 400"),
        (torch.tensor([399, N]), r"399 samples, at least 400 (25 ms at 16 kHz)"),
        (torch.tensor([N]), "a length for each of 2 clips, got (1,)"),
        (torch.tensor([N, N, N]), "a length for each of 2 clips, got (3,)"),
        (torch.tensor([[N, N]]), "a length for each of 2 clips, got (1, 2)"),
        ([N, N, N], "a length for each of 2 clips, got (3,)"),
        (torch.tensor([0.5, 1.0]), "lengths must be whole numbers, got torch.float32"),
    ],
)
def test_lengths_that_do_not_fit_the_clips_are_refused(read_padded, lengths, words):
    assert words in one_line(read_padded, clips()[0], lengths)


def test_a_list_of_lengths_will_do(read_padded):
    waves, lengths = clips()
    expected = read_padded(waves, lengths)
    torch.testing.assert_close(read_padded(waves, lengths.tolist()), expected)


@pytest.mark.parametrize("shape", [(N,), (1, 2, N), (2, N, 2)])
def test_other_shapes_are_refused(shape):
    line = one_line(encoder(), torch.zeros(shape), torch.tensor([N]))
    assert "need waveforms of shape (B, N)" in line


def test_padding_may_hold_anything():
    waves, lengths = clips()
    lengths[1] = 3_000
    clean, dirty = waves.clone(), waves.clone()
    clean[1, 3_000:], dirty[1, 3_000:] = 0, float("nan")
    assert torch.equal(
        encoder()(clean, lengths)[0], encoder()(dirty, lengths)[0]
    )  # ESPnet's zeros, or what lies there


@pytest.mark.parametrize(
    "frames, words",
    [
        ([40, 41], "41 frames by its length, the batch only 40"),
        ([40, 0], "0 frames, at least 1 are needed"),
        ([40], "a length for each of 2 clips"),
    ],
)
def test_frames_of_log_mel_follow_the_same_rule(frames, words):
    model = encoder(input_size=NUM_MEL_BINS)
    fbank = torch.zeros(2, 40, NUM_MEL_BINS)
    assert words in one_line(model, fbank, torch.tensor(frames))
    assert "real numbers" in one_line(model, fbank.int(), torch.tensor([40, 40]))


def test_augmentation_that_makes_clips_louder_stops_no_training(monkeypatch, caplog):
    monkeypatch.setattr(config, "_WARNED", set())
    read = fine_tuning()
    peaks = []
    monkeypatch.setattr(
        "espnet2_sslam.augment.roll_and_gain",
        lambda speech, *_: peaks.append(float((200 * speech).max())) or 200 * speech,
    )
    assert torch.isfinite(read(*clips(0.9))) and peaks[0] > config.INTEGER_PEAK
    assert caplog.text == ""


def test_mixtures_of_waveforms_may_be_loud(monkeypatch):
    peaks = []

    def mix(*args):
        mixture = 1_000 * mix_waveforms(*args)
        peaks.append(float(mixture.abs().max()))
        return mixture

    monkeypatch.setattr("espnet2_sslam.mixing.mix_waveforms", mix)
    model = SSLAMPretrainModel(
        SSLAMEncoder(**{**SMALL, "max_frames": 1024}),
        clip_frames=1024,
        clone_batch=2,
        mixture=True,
        mixing_rule="waveform",
    )
    loss, _, _ = model(*clips())
    assert torch.isfinite(loss) and peaks[0] > config.INTEGER_PEAK


def test_values_are_not_looked_at_on_a_device(monkeypatch):
    """No synchronisation: a meta tensor has no values to wait for, like a queue's."""
    waves = torch.zeros(2, N, dtype=torch.int16, device="meta")
    found, lengths = checked_waves(waves, torch.tensor([N, 400]))
    assert found.dtype == torch.float32 and found.shape == (2, N)
    assert lengths.device.type == "meta"
    with pytest.raises(ValueError, match="8001 samples by its length"):
        checked_waves(waves, torch.tensor([N, N + 1]))


@pytest.mark.gpu
def test_on_cuda_nothing_waits_for_the_samples():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    waves = clips()[0].cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        checked_waves(waves, [N, N])
        checked_waves((waves * 2**15).short(), torch.tensor([N, 400]))
    finally:
        torch.cuda.set_sync_debug_mode("default")
