"""sslam export: one file, any batch and length, the numbers of PyTorch, or no file."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from espnet2_sslam.bin import sslam_export
from espnet2_sslam.checkpoint import save_model
from espnet2_sslam.classifier import SSLAMClassifier
from espnet2_sslam.encoder import SSLAMEncoder
from espnet2_sslam.integrations import onnx as export
from tests.command_case import command

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

SHARED = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
REAL_AUDIO = Path(os.environ.get("SSLAM_REAL_AUDIO", SHARED))
SMALL = dict(embed_dim=24, depth=2, num_heads=2, max_frames=320)
LIMIT = 51_599  # samples that 320 frames hold
CLASSES = ["dog bark", "pluie", "水"]


def encoder(**options):
    torch.manual_seed(0)
    return SSLAMEncoder(**{**SMALL, **options}).eval()


def classifier(pooling="mean", **options):
    torch.manual_seed(0)
    return SSLAMClassifier(encoder(), CLASSES, pooling=pooling, **options).eval()


def padded(sizes):
    """Waveforms of such sizes in one batch, and the sizes."""
    generator = torch.Generator().manual_seed(sum(sizes))
    waves = [0.1 * torch.randn(size, generator=generator) for size in sizes]
    batch = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
    return batch, torch.tensor(sizes)


def session_of(path):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def run(session, speech, lengths):
    inputs = {"speech": speech.numpy(), "speech_lengths": lengths.numpy()}
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, inputs)))


@pytest.fixture(scope="module")
def encoder_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "encoder.onnx"
    return export.export_onnx(encoder(), path, origin={"file": "a.pt"}).path


@pytest.fixture(scope="module")
def classifier_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "classifier.onnx"
    return export.export_onnx(classifier(), path).path


@pytest.mark.parametrize(
    "sizes", [[400], [2_960], [LIMIT], [16_000] * 5, [30_000, 400, 2_000, LIMIT, 801]]
)
@torch.no_grad()
def test_the_file_gives_the_encoders_features_for_any_batch(encoder_file, sizes):
    speech, lengths = padded(sizes)
    features, steps, _ = encoder()(speech, lengths)
    found = run(session_of(encoder_file), speech, lengths)
    np.testing.assert_allclose(found["features"], features, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(found["feature_lengths"], steps)
    means = [clip[:n].mean(0) for clip, n in zip(features, steps)]
    np.testing.assert_allclose(found["embedding"], torch.stack(means), atol=1e-5)


@torch.no_grad()
def test_the_file_gives_the_classifiers_logits_and_scores(classifier_file):
    speech, lengths = padded([30_000, 400, 2_000])
    logits = classifier().inference(speech, lengths)
    found = run(session_of(classifier_file), speech, lengths)
    np.testing.assert_allclose(found["logits"], logits, rtol=0, atol=1e-5)
    np.testing.assert_allclose(found["scores"], logits.sigmoid(), rtol=0, atol=1e-5)


def test_real_clips_pass_the_check(encoder_file):
    files = sorted((REAL_AUDIO / "esc50-mini/audio").glob("*.flac"))[::40]
    files += sorted((REAL_AUDIO / "fsdd-mini/recordings").glob("*.flac"))[::400]
    if not files:
        pytest.skip(f"no real clips at {REAL_AUDIO}: set SSLAM_REAL_AUDIO")
    check = export.check_file(encoder(), encoder_file, export.read_clips(files))
    assert check.clips == len(files) and max(check.largest.values()) < 1e-4


def test_the_metadata_says_what_a_user_must_know(encoder_file, classifier_file):
    known = session_of(encoder_file).get_modelmeta().custom_metadata_map
    assert known["sampling_rate"] == "16000" and known["min_samples"] == "400"
    assert int(known["max_samples"]) == LIMIT
    assert float(known["fbank_mean"]) == pytest.approx(-4.268)
    assert float(known["fbank_std"]) == pytest.approx(4.569)
    assert float(known["seconds_per_step"]) == 0.16
    assert json.loads(known["origin"]) == {"file": "a.pt"}
    known = session_of(classifier_file).get_modelmeta().custom_metadata_map
    assert json.loads(known["classes"]) == CLASSES
    assert known["task"] == "multi_label"


@pytest.mark.parametrize("length", [0, -5, 100, 399, 2_001, 2**40])
def test_a_length_that_cannot_be_gives_nan_for_its_clip_alone(
    encoder_file, classifier_file, length
):
    speech, lengths = padded([2_000, 1_000, 400])
    wrong = lengths.clone()
    wrong[1] = length
    for file in encoder_file, classifier_file:
        right, found = (run(session_of(file), speech, n) for n in (lengths, wrong))
        for name, values in found.items():
            assert np.isfinite(right[name]).all()
            np.testing.assert_allclose(values[::2], right[name][::2], atol=1e-6)
            if name == "feature_lengths":
                assert values[1] == 0
            else:
                assert np.isnan(values[1]).all()
        known = session_of(file).get_modelmeta().custom_metadata_map
        assert "NaN" in known["invalid_lengths"]


def test_too_long_speech_is_refused(encoder_file):
    with pytest.raises(Exception, match="onnxruntime|ONNXRuntime"):
        run(session_of(encoder_file), *padded([LIMIT + 161]))


@pytest.mark.slow
@pytest.mark.parametrize(
    "make, options, pooling, opset",
    [
        (encoder, dict(layer="all", freq="concat", cls_token=True), "cls", 18),
        (encoder, dict(layer=0, freq="flatten", upsample=2), "cls", 18),
        (encoder, dict(target_frames=160), "mean", 20),
        (classifier, dict(pooling="cls", task="multi_class"), "mean", 22),
        (classifier, dict(pooling="concat", head_norm="batch"), "mean", 18),
        (classifier, dict(pooling="attentive", weighted_layers=True), "mean", 18),
        (classifier, dict(pooling="lin_softmax"), "mean", 18),
        (classifier, dict(pooling="prototypes", head_norm="none"), "mean", 18),
        (classifier, dict(pooling="gated", task="multi_class"), "mean", 20),
    ],
)
def test_every_model_can_be_exported(tmp_path, make, options, pooling, opset):
    path = tmp_path / "a.onnx"
    exported = export.export_onnx(make(**options), path, pooling=pooling, opset=opset)
    assert exported.size == path.stat().st_size and exported.check.batches == 2
    assert exported.check.clips == len(export.made_clips())
    assert onnx.load(path).opset_import[0].version == opset


def test_finer_time_is_refused_in_one_line(tmp_path):
    with pytest.raises(ValueError, match="steps of 160 ms: leave time_shifts out"):
        export.export_onnx(encoder(time_shifts=4), tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


def test_a_float16_file_is_smaller_and_says_how_exact_it_is(tmp_path, encoder_file):
    model = encoder()
    exported = export.export_onnx(model, tmp_path / "a.onnx", dtype="float16")
    assert model.norm.weight.dtype == torch.float32  # the model is not changed
    assert 1e-4 < exported.check.largest["features"] < exported.check.tolerance == 2e-2
    assert exported.size < encoder_file.stat().st_size
    speech = padded([8_000])
    assert run(session_of(exported.path), *speech)["features"].dtype == np.float32


@pytest.fixture(scope="module")
def int8_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "int8.onnx"
    return export.export_onnx(encoder(), path, dtype="int8").path


def test_int8_keeps_the_embedding_of_quiet_and_loud_clips(int8_file, encoder_file):
    # 8 bits for the power spectrum of the log-mel change it by 50 to 150 %
    clips = export.made_clips()
    files = sorted((REAL_AUDIO / "esc50-mini/audio").glob("*.flac"))[::60]
    for clip in [*clips, *(clip[:LIMIT] for clip in export.read_clips(files))]:
        given = torch.from_numpy(clip)[None, :LIMIT], torch.tensor([clip[:LIMIT].size])
        exact, rounded = (
            run(session_of(path), *given)["embedding"]
            for path in (encoder_file, int8_file)
        )
        assert 0 < np.linalg.norm(rounded - exact) < 0.01 * np.linalg.norm(exact)


def test_int8_rounds_every_weight_product_of_the_blocks_and_no_other(int8_file):
    nodes = onnx.load(int8_file).graph.node
    names = [node.op_type for node in nodes]
    assert names.count("MatMulInteger") == 4 * SMALL["depth"]
    # the mel filters, and two products of attention in each block
    assert names.count("MatMul") == 1 + 2 * SMALL["depth"]
    known = session_of(int8_file).get_modelmeta().custom_metadata_map
    assert known["dtype"] == "int8" and known["min_samples"] == "400"


def test_onnxruntimes_own_quantisation_of_a_float_file_keeps_the_features(
    encoder_file, tmp_path
):
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(encoder_file, tmp_path / "q.onnx", weight_type=QuantType.QInt8)
    speech, lengths = padded([16_000, 30_000])
    wanted, found = (
        run(session_of(path), speech, lengths)["features"]
        for path in (encoder_file, tmp_path / "q.onnx")
    )
    assert np.linalg.norm(found - wanted) < 0.05 * np.linalg.norm(wanted)


@pytest.mark.parametrize("flag, dtype", [("--int8", "int8"), ("--fp16", "float16")])
def test_the_flags_name_the_type(folders, tmp_path, flag, dtype):
    out = tmp_path / "a.onnx"
    sslam_export.main([str(folders / "classifier"), str(out), flag])
    known = session_of(out).get_modelmeta().custom_metadata_map
    assert known["dtype"] == dtype


@pytest.mark.parametrize("samples", [0, 100, 399])
def test_a_batch_without_a_frame_is_refused_by_every_file(
    encoder_file, classifier_file, int8_file, samples
):
    for file in encoder_file, classifier_file, int8_file:
        with pytest.raises(Exception, match="ONNXRuntimeError.*Conv"):
            run(session_of(file), torch.zeros(1, samples), torch.tensor([samples]))


@pytest.fixture(scope="module")
def web_engine():
    """node, with onnxruntime-web where it finds it."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("the browsers' engine needs node")
    words = [node, "-e", "require.resolve('onnxruntime-web')"]
    if subprocess.run(words, capture_output=True, timeout=60).returncode:
        pytest.skip(
            "node finds no onnxruntime-web: npm install onnxruntime-web somewhere, and "
            "set NODE_PATH to its node_modules"
        )
    return node


@pytest.mark.parametrize(
    "file, output, tolerance",
    [
        ("encoder_file", "embedding", 1e-5),
        ("classifier_file", "scores", 1e-5),
        ("int8_file", "embedding", 1e-2),
    ],
)
def test_the_browsers_engine_gives_the_same(
    request, web_engine, tmp_path, file, output, tolerance
):
    path, (speech, lengths) = request.getfixturevalue(file), padded([30_000])
    speech.numpy().tofile(tmp_path / "speech.f32")
    script = Path(__file__).with_name("onnx_web.js")
    words = [web_engine, script, path, tmp_path / "speech.f32", output]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    expected = run(session_of(path), speech, lengths)[output][0]
    np.testing.assert_allclose(json.loads(done.stdout), expected, atol=tolerance)


@pytest.mark.slow
def test_a_page_in_a_real_browser_gives_the_same(web_engine, encoder_file, tmp_path):
    webdriver = pytest.importorskip(
        "selenium.webdriver", reason="selenium is not there"
    )
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("no Chromium here: chromium and chromedriver are needed")
    speech, lengths = padded([30_000])
    speech.numpy().tofile(tmp_path / "speech.f32")
    shutil.copy(encoder_file, tmp_path / "model.onnx")
    shutil.copy(Path(__file__).with_name("onnx_web.html"), tmp_path)
    words = [web_engine, "-p", "require.resolve('onnxruntime-web')"]
    found = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    (tmp_path / "dist").symlink_to(Path(found.strip()).parent)
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    options = webdriver.ChromeOptions()
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(word)
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        driver = webdriver.Chrome(options=options, service=service)
        try:
            place = f"http://127.0.0.1:{server.server_port}/onnx_web.html"
            driver.get(f"{place}?output=embedding")
            end = time.monotonic() + 60
            while driver.title[:1] not in ("[", "!") and time.monotonic() < end:
                time.sleep(0.1)
            title = driver.title
        finally:
            driver.quit()
            server.shutdown()
    assert title.startswith("["), title
    expected = run(session_of(encoder_file), speech, lengths)["embedding"][0]
    np.testing.assert_allclose(json.loads(title), expected, atol=1e-5)


def test_what_cannot_be_written_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "PROTOBUF_LIMIT", 2**24)
    with pytest.raises(ValueError, match="holds 2 GiB: use --dtype float16"):
        export.export_onnx(encoder(), tmp_path / "a.onnx")


def test_a_file_that_differs_is_not_written(tmp_path, monkeypatch):
    path = tmp_path / "a.onnx"
    path.write_text("from before")
    monkeypatch.setitem(export.TOLERANCE, "float32", 1e-12)
    with pytest.raises(ValueError, match="does not equal the model") as error:
        export.export_onnx(encoder(), path)
    assert "\n" not in str(error.value) and "features" in str(error.value)
    assert path.read_text() == "from before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    save_model(encoder(), root / "encoder")
    save_model(classifier(), root / "classifier")
    return root


def test_the_command_writes_and_checks_a_classifier(folders, tmp_path, capsys):
    clip = tmp_path / "clip.wav"
    soundfile.write(clip, padded([12_345])[0][0].numpy(), 22_050)
    out = tmp_path / "out.onnx"
    words = [str(folders / "classifier"), str(out), "--check_audio", str(clip)]
    sslam_export.main(words)
    printed = capsys.readouterr().out
    assert f"{len(export.made_clips()) + 1} clips" in printed and "logits" in printed
    found = run(session_of(out), *padded([4_000, 9_000]))
    assert found["scores"].shape == (2, 3)


@pytest.mark.parametrize(
    "name, options, complaint",
    [
        ("classifier", ["--layer", "1"], "add --encoder_only"),
        ("encoder", ["--encoder_only"], "leave --encoder_only out"),
        ("encoder", ["--opset", "16"], "opset must be in 18..22"),
        ("encoder", ["--check_audio", "missing.wav"], "missing.wav"),
    ],
)
def test_a_users_mistake_is_one_line(
    folders, tmp_path, capsys, name, options, complaint
):
    out = tmp_path / "out.onnx"
    status, _, line = command(capsys, "export", folders / name, out, *options)
    assert status == 1 and line.count("\n") == 1
    assert complaint in line and not out.exists()


def test_without_the_extra_it_says_what_to_install(
    folders, tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    words = folders / "encoder", tmp_path / "a.onnx"
    line = command(capsys, "export", *words)[2]
    assert "pip install onnx onnxruntime onnxscript" in line
