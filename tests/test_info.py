"""What a model is, and the released models by the lines that the list gives."""

import importlib.util
import json
import shlex

import numpy as np
import pytest
import yaml
from huggingface_hub import constants
from safetensors.torch import save

from espnet2_sslam.bin.sslam_models import released_models
from espnet2_sslam.checkpoint import save_model, take_apart, to_huggingface
from espnet2_sslam.inference import SSLAM
from tests.checkpoint_case import FINETUNED, PRETRAIN, unpack
from tests.command_case import command
from tests.hub_case import serving
from tests.inference_case import classifier, encoder, noise, sslam, write

RELEASED = {model["id"]: model for model in released_models()}
NAMES = "index,mid,display_name\n" + "".join(
    f'{index},/m/{index},"{name}"\n'
    for index, name in enumerate(["Dog", "Rain, light", "Siren", "Speech"])
)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Every released id in the layout of the authors' exports, with tiny networks.

    No names of classes are in them, and Python files that must not be needed are.
    """
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    with serving(monkeypatch) as hub:
        for name in RELEASED:
            model = encoder() if "none" in RELEASED[name]["head"] else classifier()
            state, config = to_huggingface(take_apart(model))
            config.pop("id2label", None)
            config |= {
                "architectures": ["EATModel"],
                "auto_map": {
                    "AutoConfig": "configuration_eat.EATConfig",
                    "AutoModel": "modeling_eat.EATModel",
                },
            }
            files = {
                ".gitattributes": b"*.safetensors filter=lfs\n",
                "README.md": b"---\nlicense: mit\n---\n",
                "config.json": json.dumps(config).encode(),
                "configuration_eat.py": b"raise SystemExit\n",
                "eat_model.py": b"raise SystemExit\n",
                "model.safetensors": save(state),
                "model_core.py": b"raise SystemExit\n",
                "modeling_eat.py": b"raise SystemExit\n",
            }
            hub.add(name, files)
        yield hub


@pytest.mark.parametrize("name", [n for n in RELEASED if n.endswith("pretrain")])
def test_a_released_encoder_is_loaded_by_its_id(hub, name):
    model = SSLAM.from_pretrained(name, device="cpu")
    clip = noise(2)
    expected = sslam(encoder()).embed(clip, rate=16_000)
    np.testing.assert_array_equal(model.embed(clip, rate=16_000), expected)


@pytest.mark.parametrize("name", RELEASED)
def test_the_line_of_the_list_loads_the_model(hub, capsys, tmp_path, name):
    (tmp_path / "class_labels_indices.csv").write_text(NAMES)
    (tmp_path / "CLIPS").mkdir()
    clip = write("CLIPS/a.wav", noise(1))
    words = shlex.split(RELEASED[name]["load"])
    assert words[0] == "sslam" and command(capsys, *words[1:])[0] == 0
    if words[1] == "embed":
        assert np.load("OUT.npz")["values"].shape == (1, 24)
        return
    tags = SSLAM.from_pretrained("MODEL", device="cpu").tag(clip)
    assert {label for label, _ in tags} == {"Dog", "Rain, light", "Siren", "Speech"}


def test_the_list_says_all_of_every_model(capsys):
    status, out, _ = command(capsys, "models", "--json")
    assert status == 0 and json.loads(out) == list(RELEASED.values())
    needed = {"id", "for", "head", "size", "load", "source"}
    assert all(needed <= set(model) for model in RELEASED.values())
    text = command(capsys, "models")[1]
    assert all(f"{value}" in text for of in RELEASED.values() for value in of.values())


def facts(capsys, *words):
    status, out, err = command(capsys, "info", *words, "--json")
    assert (status, err) == (0, "")
    return json.loads(out)


def test_a_classifier_says_its_sizes_and_classes(tmp_path, capsys):
    model = classifier(pooling="mean", resampler="soxr", depth=3)
    save_model(model, tmp_path, {"file": "x.pt", "layout": "fairseq"})
    card = {"license": "cc-by-4.0"}
    (tmp_path / "README.md").write_text(f"---\n{yaml.safe_dump(card)}---\n# x\n")
    found = facts(capsys, tmp_path)
    expected = {
        "kind": "classifier",
        "depth": 3,
        "embed_dim": 24,
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds_per_step": 0.16,
        "max_seconds_per_pass": 122.88,
        "resampler": "soxr",
        "num_classes": 4,
        "classes": ["dog", "rain", "siren", "speech"],
        "pooling": "mean",
        "origin": {"file": "x.pt", "layout": "fairseq"},
        "license": "cc-by-4.0",
        "file": "model.safetensors",
    }
    assert expected.items() <= found.items()
    text = command(capsys, "info", tmp_path)[1]
    assert "dog, rain, siren, speech" in text and "cc-by-4.0" in text


def test_the_weights_have_one_hash_in_every_file(tmp_path, capsys):
    save_model(encoder(), tmp_path / "a")
    command(capsys, "convert", tmp_path / "a", tmp_path / "b.pt")
    one, other = facts(capsys, tmp_path / "a"), facts(capsys, tmp_path / "b.pt")
    assert one["weights_sha256"] == other["weights_sha256"]
    assert one["sha256"] != other["sha256"] and one["license"] is None
    save_model(encoder(seed=1), tmp_path / "c")
    assert facts(capsys, tmp_path / "c")["weights_sha256"] != one["weights_sha256"]


def test_files_of_the_authors(tmp_path, capsys):
    found = facts(capsys, unpack(PRETRAIN, tmp_path))
    assert found["kind"] == "encoder" and found["beside_it"] == ["decoder", "teacher"]
    teacher = facts(capsys, unpack(PRETRAIN, tmp_path), "--weights", "teacher")
    assert teacher["weights_sha256"] != found["weights_sha256"]
    assert facts(capsys, unpack(FINETUNED, tmp_path))["num_classes"] == 5


def test_a_released_classifier_has_no_names(hub, capsys):
    found = facts(capsys, "ta012/SSLAM_AS2M_Finetuned")
    assert (found["num_classes"], found["classes"]) == (4, None)
    assert found["license"] == "mit"


@pytest.mark.slow  # tracing takes seconds
@pytest.mark.skipif(
    not importlib.util.find_spec("onnxscript"), reason="onnxscript is not installed"
)
def test_an_onnx_file(tmp_path, capsys):
    save_model(classifier(), tmp_path / "m")
    command(capsys, "export", tmp_path / "m", tmp_path / "m.onnx")
    found = facts(capsys, tmp_path / "m.onnx")
    assert found["classes"] == ["dog", "rain", "siren", "speech"]
    assert found["outputs"] == ["logits", "scores"] and found["sampling_rate"] == 16_000
    assert found["fbank_mean"] == pytest.approx(-4.268)


@pytest.mark.parametrize("name", ["x.onnx", "x.pt"])
def test_what_is_no_model_is_one_line(tmp_path, capsys, name):
    if name.endswith("onnx"):
        pytest.importorskip("onnx", reason="onnx is not installed")
    (tmp_path / name).write_bytes(b"no model")
    status, out, err = command(capsys, "info", tmp_path / name)
    assert (status, out, err.count("\n")) == (1, "", 1) and name in err
