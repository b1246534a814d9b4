"""SSLAM on clips and files: values, kinds of audio, errors, order."""

import io

import numpy as np
import pytest
import torch

from espnet2_sslam import machine
from espnet2_sslam.audio import AudioError, read_audio
from espnet2_sslam.inference import SSLAM, find_events
from espnet2_sslam.inference.api import choose_dtype
from tests.inference_case import (
    CLASSES,
    classifier,
    clip_scores,
    difference,
    encoder,
    forward,
    noise,
    sslam,
    tokens,
    write,
)

EVENT_FIELDS = ("onset", "offset", "label", "confidence")
LENGTHS = [0.025, 0.4, 3.0, 1.013, 10.0, 0.4, 2.2]


@pytest.fixture(scope="module")
def clips():
    return [noise(seconds, seed=seed) for seed, seconds in enumerate(LENGTHS)]


@pytest.mark.parametrize("layer", [0, 1, 2, -1, "all"])
def test_embed_gives_mean_and_cls_of_each_layer_of_the_encoder(clips, layer):
    model = sslam()
    layers = [0, 1, 2] if layer == "all" else [layer]
    for clip in clips:
        states = [tokens(model.encoder, clip, number) for number in layers]
        means = np.stack([state[1:].mean(0) for state in states])
        cls = np.stack([state[0] for state in states])
        for pooling, expected in {"mean": means, "cls": cls}.items():
            got = model.embed(clip, rate=16_000, layer=layer, pooling=pooling)
            assert got.dtype == np.float32
            assert difference(got.reshape(expected.shape), expected) < 1e-6
    shape = (3, 24) if layer == "all" else (24,)
    assert got.shape == shape
    assert model.embed(clips, rate=16_000, layer=layer).shape == (len(clips), *shape)
    assert model.embed([], layer=layer).shape == (0, *shape)


@pytest.mark.parametrize("freq, rows", [("mean", 1), ("concat", 1), ("flatten", 8)])
def test_frames_are_what_the_encoder_gives_and_cover_the_clip(clips, freq, rows):
    model = sslam(encoder(freq=freq, max_frames=320))
    assert model.embed([], pooling="frames") == []
    files = [(clip, 16_000) for clip in clips]
    results = model.embed_files(files, pooling="frames")
    for clip, result in zip(clips, results, strict=True):
        assert difference(result.values, forward(model.encoder, clip)) < 1e-4
        steps = np.arange(len(result.values)) // rows
        assert result.starts == pytest.approx(0.16 * steps)
        assert result.ends[:-rows] == pytest.approx(result.starts[rows:])
        assert result.ends[-1] == len(clip) / 16_000


def test_tag_sorts_labels_by_score(clips):
    model = sslam(classifier())
    scores = clip_scores(model.model, clips[2])
    best = [CLASSES[index] for index in np.argsort(-scores)]
    labels = model.tag(clips[2], rate=16_000, top_k=99)
    assert [name for name, _ in labels] == best
    assert [score for _, score in labels] == pytest.approx(sorted(scores)[::-1])
    both = model.tag([clips[2], clips[3]], rate=16_000, top_k=2)
    assert [name for name, _ in both[0]] == best[:2] and len(both[1]) == 2
    assert model.tag([]) == []
    single = sslam(classifier(task="multi_class"))
    scores_of_one = dict(single.tag(clips[2], rate=16_000)).values()
    assert sum(scores_of_one) == pytest.approx(1.0)


def test_events_are_found_in_the_scores_of_the_time_steps(tmp_path, clips):
    model, options = sslam(classifier()), {"threshold": {"": 0.4, "dog": 0.2}}
    options |= {"median": 0.5, "min_duration": 0.3, "merge_gap": 0.2}
    path = write(tmp_path / "clip.wav", clips[2])
    [frames] = model.tag_frames([path], resolution=0.08, window=0.5)
    times = frames.starts, frames.ends, CLASSES
    expected = find_events(frames.values, *times, **options)
    assert expected and expected[0]._fields == EVENT_FIELDS
    options |= {"resolution": 0.08, "window": 0.5}
    for audio in (path, (read_audio(path), 16_000)):
        assert model.events(audio, **options) == expected
    assert model.events(read_audio(path), rate=16_000, **options) == expected
    several = model.events([path, clips[1]], rate=16_000, **options)
    assert [len(several), several[0]] == [2, expected]
    assert model.events([]) == []
    with pytest.raises(AudioError, match=r"gone.wav: missing"):
        model.events([path, "gone.wav"])


def test_a_picture_is_drawn_of_every_kind_of_audio(tmp_path, clips):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    model, path = sslam(classifier()), write(tmp_path / "clip.wav", clips[2])
    model.plot(path, tmp_path / "file.svg", labels=["rain"], title="a title")
    with open(path, "rb") as file:
        model.plot(file, tmp_path / "object.svg", labels=["rain"], title="a title")
    figure = model.plot(
        *(read_audio(path), tmp_path / "array.svg"),
        **{"rate": 16_000, "labels": ["rain"], "title": "a title"},
    )
    assert len(figure.axes) == 4 and model.plot(path).get_suptitle() == "clip.wav"
    pictures = {picture.read_bytes() for picture in tmp_path.glob("*.svg")}
    assert len(pictures) == 1 and b"a title" in pictures.pop()
    assert "no classifier" in sslam().plot(path).axes[0].get_title("left")


@pytest.mark.parametrize("batch_seconds", [0.01, 3.0, 1000.0])
def test_values_depend_neither_on_the_batch_nor_on_the_order(clips, batch_seconds):
    model = sslam(classifier("attentive"), batch_seconds=batch_seconds)
    alone = [model.embed(clip, rate=16_000) for clip in clips]
    scores = [clip_scores(model.model, clip) for clip in clips]
    for order in (1, -1):
        files = [(clip, 16_000) for clip in clips][::order]
        embedded = [result.values[0] for result in model.embed_files(files)]
        tagged = [result.values[0] for result in model.tag_files(files)]
        values = embedded[::order] + tagged[::order]
        for value, expected in zip(values, alone + scores, strict=True):
            assert difference(value, expected) < 1e-5


def test_a_log_mel_encoder_takes_audio_too(clips):
    waves, fbank = sslam(), sslam(encoder(input_size=128))
    values = [model.embed(clips, rate=16_000) for model in (waves, fbank)]
    assert difference(*values) < 1e-5


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_bfloat16_changes_little(clips, pooling):
    low, exact = (
        model.embed(clips[2], rate=16_000, pooling=pooling)
        for model in (sslam(dtype="bfloat16"), sslam())
    )
    assert low.dtype == np.float32 and 0 < difference(low, exact) < 0.05


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_held_in_half_precision_give_what_autocast_gives(clips, dtype):
    model, kind = sslam(encoder(), dtype=dtype), getattr(torch, dtype)
    before = {name: x.clone() for name, x in model.encoder.state_dict().items()}
    for clip in clips:
        speech = torch.from_numpy(clip)[None]
        lengths = torch.tensor([len(clip)])
        with torch.inference_mode(), torch.autocast("cpu", kind):
            expected = model.encoder.hidden_states(speech, lengths).last
        values = model.embed(clip, rate=16_000, pooling="tokens")
        np.testing.assert_array_equal(values, expected[0].float().numpy())
    after = model.encoder.state_dict()  # what `save_pretrained` writes
    assert all(torch.equal(before[name], after[name]) for name in before)
    held = {x.dtype for x in model._backbone._worker.parameters()}
    assert held == {torch.float32, kind}


@pytest.mark.parametrize(
    "device, native, speed, flags, chosen",
    [
        ("cuda", True, False, "", "bfloat16"),
        ("cuda", False, False, "", "float16"),
        ("mps", False, True, "", "float32"),
        ("cpu", False, False, "avx512f avx512_bf16", "float32"),
        ("cpu", False, True, "avx512f avx512_bf16", "bfloat16"),
        ("cpu", False, True, "amx_bf16 amx_tile", "bfloat16"),
        ("cpu", False, True, "avx512f", "float32"),
    ],
)
def test_auto_chooses_the_precision_by_the_device(
    monkeypatch, device, native, speed, flags, chosen
):
    def supported(including_emulation):
        return native

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    monkeypatch.setattr(machine, "_processor_says", lambda name: flags)
    assert choose_dtype("auto", torch.device(device), speed) == chosen
    assert choose_dtype("float16", torch.device(device), speed) == "float16"


def varied(count, longest=3.0):
    """Clips of as many lengths."""
    seconds = np.linspace(0.1, longest, count)
    return [noise(each, seed=place) for place, each in enumerate(seconds)]


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_results_do_not_depend_on_how_far_the_host_is_ahead(ahead):
    values = []
    for each in (0, ahead):
        model = sslam(classifier(), batch_seconds=4)
        model._backbone.ahead = each
        files = [*varied(30), np.zeros(0, np.float32), *varied(5)]
        results = list(model.tag_files((clip, 16_000) for clip in files))
        assert [result.index for result in results] == list(range(36))
        assert results[30].error is not None
        values += [[r.values for r in results if r.error is None]]
    np.testing.assert_array_equal(*values)


def test_many_lengths_have_few_shapes_and_the_values_of_each_clip_alone():
    """On a GPU every new shape costs a plan."""
    model, clips, shapes = sslam(batch_seconds=60), varied(150, 6.0), []
    exact = [model.embed(clip, rate=16_000, pooling="tokens") for clip in clips]
    model._backbone.bucketed = True
    encode = model.encoder.encode

    def counted(patches, *args, **options):
        shapes.append(patches.shape[:2])
        return encode(patches, *args, **options)

    model.encoder.encode = counted
    for value, expected in zip(
        model.embed(clips, rate=16_000, pooling="tokens"), exact, strict=True
    ):
        assert difference(value, expected) < 1e-6
    assert all(size < 8 or size % 8 == 0 for size, _ in shapes)
    assert len({length for _, length in shapes}) <= 27  # of 38
    patches = sum(-(-len(clip) // 2560) * 8 for clip in clips)
    assert sum(size * length for size, length in shapes) < 1.15 * patches


@pytest.mark.slow
def test_a_compiled_model_gives_the_same(clips):
    exact, compiled = sslam(classifier()), sslam(
        classifier(), compile=True, dtype="float32"
    )
    assert compiled.model.encoder is not compiled._backbone._worker
    expected = exact.embed(clips, rate=16_000, layer="all")
    assert difference(compiled.embed(clips, rate=16_000, layer="all"), expected) < 1e-5
    for one, other in zip(clips, compiled.tag(clips, rate=16_000), strict=True):
        assert dict(other) == pytest.approx(dict(exact.tag(one, rate=16_000)), abs=1e-5)


def test_every_kind_of_audio_gives_the_same(tmp_path, caplog):
    samples = np.round(noise(1.0, 8_000) * 2**15).astype(np.int16)
    path = write(tmp_path / "clip.wav", samples, 8_000, subtype="PCM_16")
    content = (tmp_path / "clip.wav").read_bytes()
    model = sslam()
    expected = model.embed(path)
    floats = samples.astype(np.float32) / 2**15
    stereo = np.stack([samples, samples])

    class Pipe(io.RawIOBase):  # cannot seek
        def __init__(self):
            self.source = io.BytesIO(content)

        def readable(self):
            return True

        def readinto(self, buffer):
            return self.source.readinto(buffer)

    for audio in [
        tmp_path / "clip.wav",
        io.BytesIO(content),
        Pipe(),
        (floats, 8_000),
        (samples, 8_000),
        (samples.astype(np.int32) << 16, 8_000),
        (stereo, 8_000.0),
        (stereo.T, 8_000),
        (torch.from_numpy(floats).double().requires_grad_(), 8_000),
        {"array": floats, "sampling_rate": 8_000, "path": None},
    ]:
        assert difference(model.embed(audio), expected) < 1e-6
    assert difference(model.embed([path, (floats, 8_000)])[1], expected) < 1e-6
    coarse = ((floats * 128) + 128).astype(np.uint8)
    assert difference(model.embed(coarse, rate=8_000), expected) < 0.1
    assert not caplog.text
    model.embed(floats * 2**5, rate=8_000)
    assert "taken to be in [-1, 1]" in caplog.text


BAD = {
    "no rate: an array needs its sampling rate": noise(1.0),
    "no rate: need 1000 to 1000000 samples per second": (noise(1.0), 0),
    "too short": (noise(0.02), 16_000),
    "not finite: NaN or infinity": (np.full(9_000, np.nan), 16_000),
    "shape: need an array": (np.zeros((20, 16_000)), 16_000),
    "integers must be int16": (np.zeros(9_000, np.int64), 16_000),
    "empty: the file has 0 bytes": io.BytesIO(),
    "got NoneType": None,
    "nowhere.wav: missing": {"path": "nowhere.wav", "bytes": None},
    "the object gives text": io.StringIO("text"),
    "not audio: ": io.BytesIO(b"this is no audio at all, but has some bytes"),
    "missing: there is no such file": "nowhere.wav",
}


@pytest.mark.parametrize("reason", BAD)
def test_audio_that_cannot_be_used_is_one_line_that_names_it(reason):
    with pytest.raises(AudioError) as error:
        sslam().embed(BAD[reason])
    assert reason in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).startswith(("audio 0: ", "nowhere.wav: "))


def test_failed_files_have_their_reason_and_the_others_go_on(tmp_path, clips):
    good = [write(tmp_path / f"{n}.wav", clip) for n, clip in enumerate(clips[:3])]
    cut = tmp_path / "cut.flac"
    write(cut, noise(30.0))
    cut.write_bytes(cut.read_bytes()[:-20_000])
    files = [good[0], "missing.wav", good[1], cut, noise(1.0), good[2], None]
    model = sslam(batch_seconds=2.0)
    results = list(model.embed_files(iter(files)))
    assert [result.index for result in results] == list(range(7))
    names = ["missing.wav", good[1], str(cut), "audio 4", good[2], "audio 6"]
    assert [result.name for result in results] == [good[0], *names]
    assert results[1].error == "missing: there is no such file"
    for result, file in zip(results, files, strict=True):
        assert (result.error is None) == (result.name in good)
        if result.error is None:
            assert difference(result.values[0], model.embed(file)) < 1e-5
        else:
            assert result.values is result.starts is result.ends is None
    with pytest.raises(AudioError, match=r"missing.wav: missing"):
        model.embed(files[:3])


@pytest.mark.parametrize(
    "method, audio, options, complaint",
    [
        ("embed_files", ["a"], {"layer": 3}, 'layer must be "all" or in -1..2'),
        ("embed_files", ["a"], {"layer": "last"}, "layer must be"),
        ("embed_files", ["a"], {"pooling": "max"}, "one of mean, cls, frames"),
        ("embed_files", ["a"], {"hop": 1.0}, "hop needs chunk"),
        ("embed_files", ["a"], {"chunk": 0.01}, "chunk must be 0.025 s or more"),
        ("embed_files", ["a"], {"chunk": 1.0, "hop": 0}, "hop must be"),
        ("embed_files", "a.wav", {}, "need a list of files"),
        ("embed_files", (noise(1.0), 16_000), {}, "need a list of files"),
        ("tag", ["a"], {"top_k": 0}, "top_k must be"),
        ("tag_frames", ["a"], {"resolution": 0.1}, "resolution must be"),
        ("tag_frames", ["a"], {"resolution": 0}, "resolution must be"),
        ("tag_frames", ["a"], {"window": 0.1}, "window must be from 0.16"),
        ("tag_frames", ["a"], {"window": 200}, "to 122.88 s"),
        ("events", ["a"], {"resolution": 0.1}, "resolution must be"),
        ("events", ["a"], {"threshold": {"Dog": 0.1}}, "did you mean dog?"),
        ("events", "a", {"min_duration": -1}, "must be 0 or more"),
        ("plot", "a", {"picture": "a.jpg"}, "suffix .png, .svg, .pdf"),
        ("plot", (noise(1.0), 16_000), {"top_k": 0}, "top_k must be"),
        ("plot", (noise(1.0), 16_000), {"labels": ["Dog"]}, "no label Dog"),
    ],
)
def test_options_outside_their_range_are_refused_at_once(
    method, audio, options, complaint
):
    if method == "plot":
        pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    with pytest.raises(ValueError, match=complaint) as error:
        getattr(sslam(classifier()), method)(audio, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "model, options, complaint",
    [
        (encoder(), {"dtype": "float8"}, "dtype must be"),
        (encoder(), {"batch_seconds": 0}, "batch_seconds must be"),
        (encoder(), {"device": "tpu"}, "device must be|not available"),
        (encoder(), {"device": "cuda:99"}, "not available|CUDA devices"),
        (torch.nn.Linear(1, 1), {}, "need an SSLAMEncoder"),
    ],
)
def test_a_model_that_cannot_run_is_refused(model, options, complaint):
    with pytest.raises(ValueError, match=complaint):
        SSLAM(model, **options)


@pytest.mark.parametrize("method", ["tag", "tag_files", "tag_frames", "events"])
def test_labels_need_a_head(method):
    with pytest.raises(ValueError, match="load a fine-tuned model"):
        getattr(sslam(), method)(["a"])


@pytest.mark.parametrize("resampler", ["sinc", "soxr"])
def test_audio_is_resampled_as_in_the_training(tmp_path, resampler):
    if resampler == "soxr":
        pytest.importorskip("soxr", reason="soxr is not installed")
    path = write(tmp_path / "clip.wav", noise(1.0, 44_100), 44_100)
    model = sslam(encoder(resampler=resampler))
    samples = read_audio(path, resampler)
    assert difference(model.embed(path), model.embed(samples, rate=16_000)) < 1e-6


def test_a_saved_model_gives_the_same_when_it_is_loaded(tmp_path, clips):
    for model in (sslam(), sslam(classifier("mean"))):
        folder = model.save_pretrained(tmp_path / str(model.is_classifier))
        loaded = SSLAM.from_pretrained(folder, device="cpu")
        given = {"rate": 16_000}
        assert np.array_equal(loaded.embed(clips, **given), model.embed(clips, **given))
        assert loaded.classes == model.classes and repr(loaded) == repr(model)
    assert loaded.tag(clips, **given) == model.tag(clips, **given)
    wide = SSLAM.from_pretrained(folder, device="cpu", freq="concat")
    assert wide.embed(clips[2], pooling="frames", **given).shape == (19, 192)
    fine = SSLAM.from_pretrained(folder, device="cpu", time_shifts=4)
    again = SSLAM.from_pretrained(fine.save_pretrained(tmp_path / "a"), device="cpu")
    steps = [len(m.embed(clips[2], pooling="frames", **given)) for m in (fine, again)]
    assert steps == [75, 19]  # of the use, not of the weights
    with pytest.raises(ValueError, match=r"not available|CUDA devices"):
        SSLAM.from_pretrained("nobody/nothing", device="cuda:99")


@pytest.mark.parametrize("layer", [-1, 1, "all"])
def test_all_patches_and_the_cls_token_are_those_of_the_encoder(clips, layer):
    model = sslam()
    layers = [0, 1, 2] if layer == "all" else [layer]
    for clip in clips:
        states = np.stack([tokens(model.encoder, clip, of) for of in layers], 1)
        expected = states if layer == "all" else states[:, 0]
        got = model.embed(clip, rate=16_000, layer=layer, pooling="tokens")
        assert difference(got, expected) < 1e-6
        got = model.embed(clip, rate=16_000, layer=layer, pooling="patches")
        assert difference(got, expected[1:]) < 1e-6


def test_patches_of_a_fixed_length_include_padding_as_the_authors_write_them():
    model = sslam(encoder(target_frames=1024, max_frames=1024))
    [result] = model.embed_files([(noise(1.0), 16_000)], pooling="tokens")
    assert result.values.shape == (513, 24)
    assert list(result.ends[:2]) == [1.0, 0.16] and result.ends[-1] == 10.24
