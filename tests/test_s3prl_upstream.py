"""SSLAM as an upstream of s3prl: its own checks, lengths, batch mates, weights."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from espnet2_sslam.checkpoint import save_model
from espnet2_sslam.integrations.s3prl import expert
from espnet2_sslam.integrations.s3prl.expert import UPSTREAMS, sslam, sslam_mean
from tests.checkpoint_case import PRETRAIN, small_encoder, unpack

ROOT = Path(__file__).resolve().parent.parent
TINY = dict(embed_dim=32, depth=2, num_heads=4, max_frames=64)
LENGTHS = (1, 399, 400, 1280, 2560, 2561, 2960, 5119, 40001)


def clips(*lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [0.1 * torch.randn(length, generator=generator) for length in lengths]


def states(upstream, *lengths, seed=0):
    """Hidden states, (layers, B, T, D)."""
    with torch.no_grad():
        return torch.stack(upstream(clips(*lengths, seed=seed))["hidden_states"])


@pytest.fixture(scope="module")
def hub():
    """s3prl's hub, with our upstreams in it."""
    import s3prl.hub

    expert.register(s3prl.hub)
    return s3prl.hub


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model in our own format."""
    return save_model(small_encoder(), tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize(
    "options, width, rate",
    [
        ({}, 256, 2560),
        ({"freq": "mean"}, 32, 2560),
        ({"upsample": 8}, 256, 320),
        ({"freq": "flatten"}, 32, 320),
        ({"target_frames": 48}, 256, 2560),
        ({"time_shifts": 8}, 256, 320),
        ({"time_shifts": 4, "upsample": 2, "freq": "mean"}, 32, 320),
        ({"time_shifts": 2, "freq": "flatten"}, 32, 160),
        ({"time_shifts": 4, "target_frames": 48}, 256, 640),
    ],
    ids=str,
)
def test_there_is_one_step_for_every_begun_rate_and_no_mate_is_heard(
    options, width, rate
):
    upstream = sslam(**TINY, **options)
    assert upstream.get_downsample_rates("hidden_states") == rate
    for length in LENGTHS:
        steps = len(range(0, length, rate))
        assert states(upstream, length).shape == (3, 1, steps, width), length
    mixed = states(upstream, 40001, 300, 2600)
    assert mixed.shape == (3, 3, len(range(0, 40001, rate)), width)
    assert mixed[:, 1, -(-300 // rate) :].abs().max() == 0
    for length in (300, 10240, 16001):
        alone = states(upstream, length)
        pair = states(upstream, length, 80000)[:, :1, : alone.shape[2]]
        assert (pair - alone).norm() < 1e-5 * alone.norm(), length


def test_minutes_of_audio_keep_their_length_and_all_keys_of_s3prl_are_there():
    with torch.no_grad():
        out = sslam(**TINY)(clips(16000 * 190))
    names = {f"hidden_state_{layer}" for layer in range(3)}
    assert set(out) == {"hidden_states", "last_hidden_state", *names}
    assert out["last_hidden_state"] is out["hidden_states"][-1]
    assert out["last_hidden_state"].shape == (1, 1188, 256)


def test_options_are_views_of_the_encoders_hidden_states(folder):
    encoder, speech = small_encoder(freq="concat"), clips(16000)[0][None]
    with torch.no_grad():
        out = encoder.hidden_states(speech, torch.tensor([16000]), "all")
        want = torch.stack([encoder.shaped(x, out.steps)[0] for x in out.layers])
    every = states(sslam(str(folder)), 16000)
    assert torch.equal(every, want)
    assert torch.equal(states(sslam(folder, layers=[0, -1]), 16000), every[[0, 2]])
    mean = states(sslam_mean(folder), 16000)
    assert torch.allclose(every.unflatten(-1, (8, 32)).mean(-2), mean, atol=1e-6)
    fine = states(sslam(folder, time_shifts=4), 16000)
    assert torch.allclose(fine[:, :, ::4], every, atol=1e-6)
    with torch.no_grad():
        out = encoder.hidden_states(speech, torch.tensor([16000]), "all", 4)
        want = torch.stack([encoder.shaped(x, out.steps)[0] for x in out.layers])
    assert torch.equal(fine, want)
    often = states(sslam(folder, upsample=8), 16000)
    assert torch.equal(often, every.repeat_interleave(8, 2)[:, :, :50])


def test_windows_are_padded_as_in_pretraining(folder):
    padded = small_encoder(freq="concat", target_frames=64)
    speech = clips(16000 + 2560 * 4)[0][None]
    windowed = states(sslam(folder, target_frames=64), speech.shape[1])
    with torch.no_grad():
        out = padded.hidden_states(speech, torch.tensor([speech.shape[1]]))
        want, _ = padded.shaped(out.last, out.steps)
    assert torch.allclose(windowed[-1, :, :4], want[:, :4])
    shifted = states(sslam(folder, target_frames=64, time_shifts=2), speech.shape[1])
    assert torch.allclose(shifted[-1, :, :8:2], want[:, :4], atol=1e-6)
    fbank, frames = small_encoder().fbank(speech, torch.tensor([speech.shape[1]]))
    view, _ = padded.shifted(fbank, frames, 2, 7)[1]  # from 80 ms on
    with torch.no_grad():
        out = padded.encode(padded.embed(view[:, :64]), frames=torch.tensor([64]))
        want, _ = padded.shaped(out.last, out.steps)
    assert torch.allclose(shifted[-1, :, 1:8:2], want, atol=1e-6)


def test_random_weights_depend_on_the_seed_only():
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    first = states(sslam(**TINY, seed=3), 16000)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(states(sslam(**TINY, seed=3).train(), 16000), first)
    assert not torch.equal(states(sslam(**TINY), 16000), first)


def test_options_come_from_a_file_and_keywords_win(tmp_path):
    path = tmp_path / "conf.yaml"
    path.write_text(yaml.safe_dump({**TINY, "freq": "mean", "upsample": 8}))
    upstream = sslam(ckpt=None, model_config=str(path), refresh=False)
    assert (upstream.rate, states(upstream, 16000).shape[-1]) == (320, 32)
    assert sslam(model_config=path, upsample=4).rate == 640
    path.write_text("- freq\n")
    with pytest.raises(ValueError, match=r"conf.yaml must hold names and values"):
        sslam(model_config=path)


@pytest.mark.parametrize(
    "options, complaint",
    [
        ({"seed": 1}, "needs weights: give a folder, .*or for random weights their"),
        ({**TINY, "frequency": "mean"}, "no option frequency; it has cache_dir, "),
        ({**TINY, "upsample": 3}, "upsample must divide 2560, got 3"),
        ({**TINY, "upsample": 8, "freq": "flatten"}, "not for flatten"),
        ({**TINY, "time_shifts": 3}, "time_shifts must be one of 1, 2, 4, 8, 16"),
        ({**TINY, "layers": [3]}, r"layers must be numbers in 0..2, got \[3\]"),
        ({**TINY, "target_frames": 100}, "positive multiple of 16, got 100"),
        ({**TINY, "model_config": "nowhere.yaml"}, "nowhere.yaml is not a file"),
        ({"ckpt": "nowhere/model.pt"}, "nowhere/model.pt"),
        ({"ckpt": "m", "depth": 1}, "depth are for random weights"),
    ],
    ids=str,
)
def test_wrong_options_are_one_clear_line(options, complaint):
    with pytest.raises(ValueError, match=complaint) as error:
        sslam(**options)
    assert "\n" not in str(error.value)


def test_the_authors_files_and_both_sets_of_weights_are_read(tmp_path):
    path = unpack(PRETRAIN, tmp_path)
    student = states(UPSTREAMS["sslam_local"](path), 16000)
    teacher = states(UPSTREAMS["sslam_custom"](str(path), weights="teacher"), 16000)
    assert student.shape == teacher.shape and not torch.equal(student, teacher)


def test_registering_again_is_harmless_and_a_clash_is_not(hub):
    expert.register(hub)
    assert {n for n in hub.options() if "sslam" in n} == set(UPSTREAMS)
    taken = type(hub)("s3prl.hub")
    taken.sslam_url = print
    with pytest.raises(
        ValueError, match=r"another upstream named sslam_url .of builtins"
    ):
        expert.register(taken)
    assert not hasattr(taken, "sslam")


def test_a_file_behind_an_address_is_downloaded_once(hub, tmp_path, monkeypatch):
    from s3prl.util import download

    path = unpack(PRETRAIN, tmp_path)
    calls = []

    def fetch(url, target, *args, **options):
        calls.append(url)
        Path(target).write_bytes(path.read_bytes())

    monkeypatch.setattr(download, "_download_dir", tmp_path / "cache")
    monkeypatch.setattr(download, "_download_url_to_file", fetch)
    for refresh in (False, False, True):
        address = "https://example.org/sslam.pt?download=1"
        got = states(hub.sslam_url(ckpt=address, refresh=refresh), 16000)
    assert torch.equal(got, states(sslam(path), 16000)) and len(calls) == 1
    failing = {"_download_url_to_file_requests": lambda *a: open(tmp_path / "no" / "x")}
    monkeypatch.setattr(download, "_download_url_to_file", lambda *a: 1 / 0)
    monkeypatch.setattr(download, *failing.popitem())
    with pytest.raises(ValueError, match=r"example.org/other.pt cannot be downloaded"):
        hub.sslam_url(ckpt="https://example.org/other.pt")


@pytest.mark.parametrize("name", ["sslam", "sslam_mean"])
def test_s3prls_own_checks_of_an_upstream_pass(hub, name):
    """Those of s3prl's test/test_upstream.py; for a new name there is no reference."""
    from s3prl.nn import S3PRLUpstream
    from s3prl.util.pseudo_data import get_pseudo_wavs

    def hidden(model, **options):
        return model(*get_pseudo_wavs(padded=True, **options))[0]

    model = S3PRLUpstream(name, extra_conf=TINY).eval()
    with torch.no_grad():
        first, again = hidden(model), hidden(model)
    assert all(map(torch.allclose, again, first))
    model.train()
    for seed in range(1, 4):
        assert len(hidden(model, seed=seed)) == len(first)
    for shortest, longest, number in ((0.05, 0.05, 1), (0.05, 0.05, 2), (0.05, 1, 3)):
        with torch.autograd.set_detect_anomaly(True):
            model = S3PRLUpstream(name, extra_conf=TINY)
            out = hidden(model, min_secs=shortest, max_secs=longest, n=number)
            sum(state.sum() for state in out).backward()
            assert model.upstream.encoder.cls_token.grad is not None


def test_a_model_from_a_path_gives_both_featurizers_the_right_lengths(hub, folder):
    from s3prl.nn import Featurizer, S3PRLUpstream
    from s3prl.upstream.interfaces import Featurizer as LegacyFeaturizer

    assert set(UPSTREAMS) <= set(S3PRLUpstream.available_names())
    model = S3PRLUpstream("sslam", path_or_url=str(folder)).eval()
    assert (model.num_layers, model.hidden_sizes[0]) == (3, 256)
    lengths = torch.tensor([80000, 2600, 300])
    features, steps = Featurizer(model)(*model(torch.zeros(3, 80000), lengths))
    assert features.shape == (3, 32, 256) and steps.tolist() == [32, 2, 1]

    legacy = LegacyFeaturizer(model.upstream, upstream_device="cpu")
    assert (legacy.output_dim, legacy.downsample_rate) == (256, 2560)
    wavs = clips(80000, 2600)
    cut = legacy(wavs, model.upstream(wavs))
    assert [len(feature) for feature in cut] == [31, 1]
    wavs = clips(80000, 1280)  # the trap: no step, and NaN from mean pooling
    with pytest.raises(ValueError, match=r"1 clip.* 1280 samples.*raise upsample"):
        legacy(wavs, model.upstream(wavs))


def test_espnets_s3prl_frontend_takes_it(hub, folder):
    from espnet2.asr.frontend.s3prl import S3prlFrontend

    extra = {"path_or_url": str(folder), "extra_conf": {"upsample": 8}}
    conf = {"upstream": "sslam", **extra}
    frontend = S3prlFrontend(frontend_conf=conf, multilayer_feature=True)
    assert (frontend.output_size(), frontend.hop_length) == (256, 320)
    features, lengths = frontend(torch.zeros(2, 32000), torch.tensor([32000, 9280]))
    assert features.shape == (2, 100, 256) and lengths.tolist() == [100, 29]


def test_torch_hub_loads_it_without_s3prl(folder):
    code = (
        "import sys, torch\n"
        "here, ckpt = sys.argv[1:]\n"
        "model = torch.hub.load(here, 'sslam', source='local', ckpt=ckpt)\n"
        "hidden = model([torch.zeros(16000)])['hidden_states']\n"
        "print(len(hidden), 's3prl' in sys.modules)"
    )
    words = [sys.executable, "-c", code, str(Path(expert.__file__).parent), str(folder)]
    run = subprocess.run(words, cwd=ROOT, text=True, capture_output=True)
    assert run.stdout.split() == ["3", "False"], run.stderr


def test_tasks_of_superb_and_hear_can_be_imported_and_are_guarded(hub):
    tasks = "speech_commands fluent_commands voxceleb1 emotion asr diarization"
    for task in tasks.split():
        module = importlib.import_module(f"s3prl.downstream.{task}.expert")
        assert issubclass(module.DownstreamExpert, torch.nn.Module)
    import s3prl.problem

    assert len(s3prl.problem.__all__) == 26
    for name in ("task.speech2text_ctc_task", "problem.common._hear_util"):
        assert sys.modules[f"s3prl.{name}"]._sslam_guarded
    for name in ("catalyst", "sed_eval", "tensorboardX"):
        module = sys.modules.get(name)
        assert module is None or module.__spec__ is not None  # no stand-in stays


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", [{}, {"target_frames": 64}])
def test_an_upstream_in_half_precision_gives_nearly_the_same(dtype, options):
    exact = states(sslam(**TINY, **options), 400, 40_001)
    upstream = sslam(**TINY, **options).to(dtype)
    for wavs in clips(400, 40_001), [wav.to(dtype) for wav in clips(400, 40_001)]:
        with torch.no_grad():
            rounded = torch.stack(upstream(wavs)["hidden_states"])
        assert rounded.dtype == dtype and rounded.shape == exact.shape
        assert (rounded.float() - exact).norm() < 0.05 * exact.norm()
