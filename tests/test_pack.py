"""Packed models: what we write, ESPnet reads; what ESPnet packs, we read."""

import zipfile

import pytest
import torch
import yaml
from espnet2.main_funcs.pack_funcs import pack, unpack
from espnet2.torch_utils.load_pretrained_model import load_pretrained_model
from espnet_model_zoo.downloader import ModelDownloader

from espnet2_sslam.checkpoint import load_model
from espnet2_sslam.classifier import SSLAMClassifier
from espnet2_sslam.encoder import SSLAMEncoder
from espnet2_sslam.integrations.pack import pack_model, training_config
from espnet2_sslam.tasks import SSLAMClassificationTask
from tests.checkpoint_case import small_encoder

CLASSES = ["dog", "rain", "Flöte"]


def _encoder():
    sizes = {"embed_dim": 48, "depth": 2, "num_heads": 4, "max_frames": 256}
    return small_encoder(**sizes, fbank_mean=-5.5, fbank_std=3.25)


def _classifier(**options):
    torch.manual_seed(0)
    options = {"task": "multi_class", "pooling": "mean", **options}
    return SSLAMClassifier(_encoder(), CLASSES, **options).eval()


@pytest.fixture
def clips():
    torch.manual_seed(1)
    return 0.1 * torch.randn(2, 16_000), torch.tensor([16_000, 9_000])


@pytest.fixture
def classifier_zip(tmp_path):
    return pack_model(_classifier(), tmp_path / "new" / "classifier.zip")


@pytest.fixture
def encoder_zip(tmp_path):
    return pack_model(_encoder(), tmp_path / "encoder.zip")


def _same(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(value, b[name]) for name, value in a.items())


@pytest.mark.parametrize("reader", ["unpack", "zoo"])
def test_espnet_reads_a_packed_classifier(classifier_zip, tmp_path, reader, clips):
    if reader == "unpack":
        files = unpack(classifier_zip, tmp_path / "out")
    else:
        downloader = ModelDownloader(tmp_path / "zoo")
        files = downloader.download_and_unpack(str(classifier_zip))
    # the names of espnet2.bin.pack cls
    model, args = SSLAMClassificationTask.build_model_from_file(
        files["classification_train_config"], files["classification_model_file"]
    )
    expected = _classifier()
    _same(model.state_dict(), expected.state_dict())
    assert args.class_list == CLASSES
    with torch.no_grad():
        assert torch.equal(model.eval().inference(*clips), expected.inference(*clips))


HEAD = {"head_norm": "batch", "weighted_layers": True, "task": "multi_label"}


@pytest.mark.parametrize("make", [_encoder, _classifier, lambda: _classifier(**HEAD)])
def test_load_model_reads_a_packed_model(tmp_path, make):
    model = make()
    path = pack_model(model, tmp_path / "m.zip")
    loaded = load_model(path, cache_dir=tmp_path / "cache")
    assert type(loaded.model) is type(model)
    assert loaded.classes == getattr(model, "classes", None)
    assert getattr(loaded.model, "config", None) == getattr(model, "config", None)
    _same(loaded.model.state_dict(), model.state_dict())


def test_a_packed_encoder_starts_another_training(encoder_zip, tmp_path):
    files = unpack(encoder_zip, tmp_path / "out")
    with open(files["ssl_train_config"], encoding="utf-8") as stream:
        config = yaml.safe_load(stream)
    assert config["encoder"] == "sslam" and config["input_size"] == 1
    encoder = SSLAMEncoder(input_size=config["input_size"], **config["encoder_conf"])
    model = torch.nn.ModuleDict({"encoder": encoder})  # as in ESPnet's own models
    load_pretrained_model(f"{files['ssl_model_file']}:encoder:encoder", model, False)
    _same(encoder.state_dict(), _encoder().state_dict())


def test_a_packed_model_names_no_other_file(classifier_zip):
    with zipfile.ZipFile(classifier_zip) as archive:
        assert archive.namelist() == ["meta.yaml", "config.yaml", "model.pth"]
        config = yaml.safe_load(archive.read("config.yaml"))
    assert "/" not in str([v for v in config.values() if v != CLASSES])


def test_what_espnet_packs_is_read(tmp_path, clips, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = _classifier()
    torch.save(model.state_dict(), "latest.pth")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(training_config(model)))
    pack(
        {"classification_model_file": "latest.pth"},
        {"classification_train_config": "config.yaml"},
        "packed.zip",
    )
    loaded = load_model("packed.zip", cache_dir=tmp_path / "cache")
    with torch.no_grad():
        assert torch.equal(loaded.model.inference(*clips), model.inference(*clips))


def test_an_older_file_survives_a_failure(encoder_zip, monkeypatch):
    with pytest.raises(ValueError, match=r"is a .zip file"):
        pack_model(_encoder(), encoder_zip.with_suffix(".pth"))
    before = encoder_zip.read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        pack_model(_encoder(), encoder_zip)
    assert encoder_zip.read_bytes() == before
    assert len(list(encoder_zip.parent.iterdir())) == 1
