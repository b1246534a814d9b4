"""Reading and writing the authors' checkpoints, our trainings and our own format."""

import json
import os
import pickle
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file

from espnet2_sslam.bin import sslam_convert
from espnet2_sslam.checkpoint import (
    CheckpointError,
    StandIn,
    compare_states,
    from_fairseq,
    load_model,
    model_config,
    read_parts,
    read_pickle,
    save_model,
    take_apart,
    to_fairseq,
    to_huggingface,
    to_training,
    write_folder,
)
from espnet2_sslam.encoder import EncoderOutput, SSLAMEncoder, sincos_positions
from tests.checkpoint_case import (
    FINETUNED,
    PRETRAIN,
    VARIANTS,
    small_classifier,
    small_encoder,
    unpack,
)
from tests.golden_data import load, tiny_fbank

OUTPUTS = "tiny_fairseq_outputs.npz"


@pytest.fixture(scope="module")
def authors(tmp_path_factory):
    """Return a folder with the authors' tiny checkpoints."""
    folder = tmp_path_factory.mktemp("authors")
    for name in (PRETRAIN, FINETUNED, *VARIANTS):
        unpack(name, folder)
    return folder


def tokens_of(encoder, fbank):
    """Tokens of normalised log-mel."""
    with torch.no_grad():
        return encoder.encode(encoder.embed(fbank)).last


def assert_close(given, name):
    torch.testing.assert_close(
        given, torch.from_numpy(load(OUTPUTS)[name]), rtol=1e-5, atol=1e-5
    )


def assert_same(one, other):
    """Two state dicts have the same names in the same order and the same bits."""
    assert list(one) == list(other)
    for name, value in one.items():
        if isinstance(value, dict):
            assert_same(value, other[name])
        else:
            assert value.dtype == other[name].dtype and torch.equal(value, other[name])


def sorted_state(state):
    """The same entries by name, of the EMA too."""
    pairs = sorted(state.items())
    return {k: sorted_state(v) if isinstance(v, dict) else v for k, v in pairs}


@pytest.mark.parametrize("name", (PRETRAIN, *VARIANTS))
def test_pretraining_checkpoint_gives_the_authors_features(authors, name):
    loaded = load_model(authors / name)
    tokens = tokens_of(loaded.encoder, tiny_fbank()[:2])
    assert_close(tokens[:, :65], "pretrain.features_all")
    assert loaded.config["origin"]["layout"] == "fairseq"
    assert len(loaded.config["origin"]["sha256"]) == 64


@pytest.mark.parametrize("frames", (1024, 128))
def test_finetuned_checkpoint_gives_the_authors_logits(authors, frames):
    loaded = load_model(authors / FINETUNED)
    tokens = tokens_of(loaded.encoder, tiny_fbank()[:, :frames])
    model = loaded.model
    logits = model.head(model.fc_norm(model.pooling(EncoderOutput(tokens, [], []))))
    assert_close(logits.detach(), f"finetuned.logits_T{frames}")
    if frames == 128:
        assert_close(tokens[:2], "finetuned.features_all_T128")
        assert_close(model.scores(logits).detach(), "finetuned.sigmoid_T128")
    assert loaded.classes == ["l0", "l1", "l2", "l3", "l4"]


def test_teacher_and_student_are_taken_by_choice(authors):
    content = read_pickle(authors / PRETRAIN)["model"]
    name = "modality_encoders.IMAGE.extra_tokens"
    for weights, state in (("student", content), ("teacher", content["_ema"])):
        loaded = load_model(authors / PRETRAIN, weights=weights)
        assert torch.equal(loaded.encoder.cls_token, state[name])
        assert loaded.config["origin"]["weights"] == weights
    with pytest.raises(CheckpointError, match="no teacher"):
        load_model(authors / FINETUNED, weights="teacher")


def test_flat_ema_bare_state_dict_and_half_precision_are_read_too(authors, tmp_path):
    content = read_pickle(authors / PRETRAIN)["model"]
    teacher = content.pop("_ema")
    flat = {**content, **{f"_ema.{name}": v.half() for name, v in teacher.items()}}
    checkpoint = {"cfg": {"model": {"num_heads": 4}}, "model": flat}
    # as torch wrote before it wrote zip archives
    legacy = tmp_path / "old.pt"
    torch.save(checkpoint, legacy, _use_new_zipfile_serialization=False)
    [token] = read_parts(legacy).below("teacher.encoder.cls_token").values()
    assert token.dtype == torch.float32
    torch.save(flat, tmp_path / "bare.pt")
    state, _ = to_huggingface(read_parts(authors / FINETUNED))
    save_file(state, tmp_path / "export.safetensors")
    for name in ("bare.pt", "export.safetensors"):
        with pytest.raises(CheckpointError, match=r"attention heads.*--num_heads"):
            load_model(tmp_path / name)


def wrapped(state, how):
    """A state dict as DistributedDataParallel, torch.compile or Lightning save it."""
    if how == "lightning":
        return {"state_dict": {f"model.{k}": v for k, v in state.items()}, "epoch": 3}
    return {how + name: value for name, value in state.items()}


WRAPPED = ("module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.")


@pytest.mark.parametrize("how", (*WRAPPED, "lightning"))
@pytest.mark.parametrize("name", (PRETRAIN, FINETUNED))
def test_the_authors_model_saved_from_a_wrapper_is_the_same(
    authors, tmp_path, name, how
):
    content = dict(read_pickle(authors / name))
    state = wrapped(content.pop("model"), how)
    content.update(state if how == "lightning" else {"model": state})
    torch.save(content, tmp_path / "wrapped.pt")
    found, right = read_parts(tmp_path / "wrapped.pt"), read_parts(authors / name)
    assert_same(sorted_state(found.tensors), sorted_state(right.tensors))
    assert (found.sizes, found.head_options) == (right.sizes, right.head_options)
    if name == FINETUNED:
        loaded = load_model(tmp_path / "wrapped.pt")
        tokens = tokens_of(loaded.encoder, tiny_fbank()[:, :128])
        assert_close(tokens[:2], "finetuned.features_all_T128")


@pytest.mark.parametrize("how", (*WRAPPED, "lightning"))
def test_a_training_saved_from_a_wrapper_is_the_same(tmp_path, how):
    model = small_classifier()
    torch.save(wrapped(model.state_dict(), how), tmp_path / "latest.pth")
    (tmp_path / "config.yaml").write_text(
        "input_size: 1\nencoder_conf: {embed_dim: 32, depth: 2, num_heads: 4, "
        "max_frames: 2048}\nmodel_conf: {}\n"
        f"class_list: {json.dumps(model.classes)}\n"
    )
    assert_same(load_model(tmp_path).model.state_dict(), model.state_dict())


def test_the_state_of_a_training_names_the_file_to_take(tmp_path):
    model = small_encoder()
    content = {"model": model.state_dict(), "optimizers": [{}], "reporter": {}}
    torch.save(content, tmp_path / "checkpoint.pth")
    for source in (tmp_path / "checkpoint.pth", tmp_path):
        with pytest.raises(CheckpointError, match=r"latest.pth or <N>epoch.pth") as e:
            load_model(source)
        assert "checkpoint.pth" in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("value", (float("nan"), float("inf")))
@pytest.mark.parametrize("layout", ("fairseq", "huggingface", "folder", "training"))
def test_weights_that_are_not_finite_are_refused_by_name(
    authors, tmp_path, layout, value
):
    parts = read_parts(authors / FINETUNED)
    parts.tensors["encoder.blocks.1.mlp.fc1.bias"][3] = value
    if layout == "folder":
        write_folder(parts.config(), parts.state(), tmp_path)
    elif layout == "huggingface":
        write_folder(*reversed(to_huggingface(parts)), tmp_path)
    elif layout == "fairseq":
        torch.save(to_fairseq(parts), tmp_path / "a.pt")
    else:
        torch.save(to_training(parts), tmp_path / "latest.pth")
        (tmp_path / "config.yaml").write_text(
            "encoder_conf: {embed_dim: 48, depth: 3, num_heads: 4}\nmodel_conf: {}\n"
            "class_list: [l0, l1, l2, l3, l4]\n"
        )
    with pytest.raises(CheckpointError, match=r"blocks.1.mlp.fc1.bias holds NaN") as e:
        load_model(tmp_path)
    assert "\n" not in str(e.value)


STRANGE = {
    "larger than what is stored": lambda x: torch.zeros(()).expand(10**5, 10**6),
    "is sparse, quantized or complex": lambda x: x.to_sparse(),
    "sparse, quantized or complex": lambda x: x.to(torch.complex64),
    "quantized or complex": lambda x: torch.quantize_per_tensor(x, 1, 0, torch.qint8),
    "shapes without values": lambda x: x.to("meta"),
    "9 dimensions": lambda x: x.view(*[1] * 8, -1),
    "is a list": lambda x: x.tolist(),
}


@pytest.mark.parametrize("words", STRANGE)
@pytest.mark.parametrize("layout", ("fairseq", "training"))
def test_what_is_no_plain_tensor_is_refused_before_it_takes_memory(
    authors, tmp_path, layout, words
):
    content = dict(read_pickle(authors / FINETUNED))
    state = dict(content["model"])
    if layout == "training":
        content = state = dict(small_encoder().state_dict(prefix="encoder."))
        (tmp_path / "config.yaml").write_text(
            "encoder_conf: {embed_dim: 32, depth: 2, num_heads: 4, max_frames: 2048}"
        )
    else:
        content = {"model": state}
    name = next(name for name in state if name.endswith("mlp.fc1.bias"))
    state[name] = STRANGE[words](state[name].float())
    path = tmp_path / {"fairseq": "a.pt", "training": "latest.pth"}[layout]
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=words) as error:
        load_model(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("mask", (0o022, 0o002, 0o077))
def test_files_of_a_model_have_the_mode_of_any_new_file(authors, tmp_path, mask):
    before = os.umask(mask)
    try:
        source = str(authors / FINETUNED)
        for layout in ("folder", "huggingface", "fairseq", "training"):
            sslam_convert.main([source, str(tmp_path / layout), "--to", layout])
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) >= 7
    for path in files:
        assert path.stat().st_mode & 0o777 == 0o666 & ~mask, path.name


def test_full_size_checkpoints_map_one_to_one():
    keys = load("base_checkpoint_keys.json")
    states = {
        kind: {name: torch.empty(shape, device="meta") for name, shape in names.items()}
        for kind, names in keys.items()
    }
    states["pretrain"]["_ema"] = states["pretrain_ema"]
    own = SSLAMEncoder().state_dict()
    pretrain = from_fairseq({"model": states["pretrain"]}, "pretrain")
    classifier = from_fairseq({"model": states["classifier"]}, "classifier")
    for parts in (pretrain, classifier):
        compare_states(own, parts.below("encoder."), "the checkpoint")
    compare_states(own, pretrain.below("teacher.encoder."), "its EMA")
    assert len(pretrain.below("decoder.")) == 14
    assert len(classifier.state()) == len(own) + 4
    assert pretrain.sizes["num_heads"] == 12


@pytest.mark.parametrize("name", (PRETRAIN, FINETUNED))
def test_the_authors_layout_is_written_as_they_write_it(authors, name):
    original = read_pickle(authors / name)
    written = to_fairseq(read_parts(authors / name))
    assert_same(sorted_state(written["model"]), sorted_state(original["model"]))
    assert written["task_state"] == original["task_state"]
    for section in ("model", "task"):
        assert set(written["cfg"][section]) <= set(original["cfg"][section])
    base, theirs = written["cfg"]["model"], original["cfg"]["model"]
    if name == FINETUNED:
        same = ("num_classes", "prediction_mode", "use_fc_norm", "_name")
        assert {k: base[k] for k in same} == {k: theirs[k] for k in same}
        base = base["pretrained_model_args"]["model"]
        theirs = theirs["pretrained_model_args"]["model"]
    # their fine-tuning adds its drop path to the configuration of pre-training
    assert set(base) == set(theirs) - {"drop_path_rate"}
    differing = {k for k in base if base[k] != theirs[k]}
    assert differing <= {"clone_batch", "max_update", "modalities", "seed"}
    image, their_image = (x["modalities"]["image"] for x in (base, theirs))
    assert set(image) == set(their_image)
    differing = {k for k in image if image[k] != their_image[k]}
    assert differing <= ({"decoder"} if name == FINETUNED else set())


def test_training_file_with_decoder_and_teacher_is_read_back(authors, tmp_path):
    parts = read_parts(authors / PRETRAIN)
    state = to_training(parts)
    torch.save(state, tmp_path / "latest.pth")
    (tmp_path / "config.yaml").write_text(
        "input_size: 1\nencoder_conf: {embed_dim: 48, depth: 3, num_heads: 4}\n"
    )
    again = read_parts(tmp_path)
    assert_same(again.tensors, parts.tensors)
    assert again.origin["layout"] == "espnet"
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(CheckpointError, match=r"needs the config.yaml"):
        load_model(tmp_path / "latest.pth")


def test_the_encoder_of_another_espnet_task_is_read_alone(tmp_path):
    encoder = small_encoder()
    state = {f"encoder.{name}": value for name, value in encoder.state_dict().items()}
    others = ("decoder.embed.0.weight", "ctc.ctc_lo.weight", "normalize.mean")
    torch.save({**state, **{k: torch.ones(2) for k in others}}, tmp_path / "latest.pth")
    (tmp_path / "config.yaml").write_text(
        "encoder: sslam\nencoder_conf: {embed_dim: 32, depth: 2, num_heads: 4, "
        "max_frames: 2048, pretrained: gone, upsample: 2}\n"
    )
    parts = read_parts(tmp_path)
    assert parts.state() == parts.tensors and parts.head_options is None
    assert_same(load_model(tmp_path).model.state_dict(), encoder.state_dict())


@pytest.mark.parametrize(
    "options",
    (
        {},
        {"task": "multi_class", "pooling": "attentive"},
        {"pooling": "concat", "head_norm": "batch"},
        {"weighted_layers": True, "pooling": "mean"},
        {"pooling": "prototypes", "prototypes_per_class": 3, "weighted_layers": True},
        {"pooling": "gated", "head_norm": "none", "task": "multi_class"},
    ),
)
def test_classifiers_of_every_kind_survive_our_folder(tmp_path, options):
    model = small_classifier(**options)
    speech = torch.randn(2, 8000, generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([8000, 4000])
    save_model(model, tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    assert set(state) == set(take_apart(model).state())
    assert json.loads((tmp_path / "config.json").read_text()) == model_config(model)
    again = load_model(tmp_path).model
    with torch.no_grad():
        expected = model.inference(speech, lengths)
        assert torch.equal(again.inference(speech, lengths), expected)
    assert again.classes == model.classes and again.config.task == model.config.task


def test_encoder_options_override_the_stored_ones(tmp_path):
    save_model(small_encoder(target_frames=512), tmp_path)
    assert load_model(tmp_path).encoder.config.target_frames == 512
    loaded = load_model(tmp_path, target_frames=None, freq="concat", freeze=True)
    config = loaded.encoder.config
    assert config.target_frames is None and config.freq == "concat"
    with pytest.raises(ValueError, match="fbank mean/std"):
        load_model(tmp_path, fbank_mean=-6.6, fbank_std=5.4)


@pytest.mark.parametrize("frames", (1024, 16_384))
def test_passes_may_be_shorter_or_longer_than_the_stored_positions(authors, frames):
    stored = load_model(authors / PRETRAIN).encoder
    encoder = load_model(authors / PRETRAIN, max_frames=frames).encoder
    both = min(frames, stored.config.max_frames) // 16 * 8
    assert encoder.positions.shape[1] == frames // 16 * 8
    assert torch.equal(encoder.positions[:, :both], stored.positions[:, :both])
    table = sincos_positions(48, frames // 16)
    torch.testing.assert_close(encoder.positions, table, rtol=0, atol=2**-11)


def test_all_wrong_names_and_shapes_are_listed(authors, tmp_path):
    content = read_pickle(authors / PRETRAIN)
    del content["model"]["blocks.1.norm1.bias"]
    del content["model"]["blocks.2.mlp.fc2.bias"]
    content["model"]["blocks.0.norm1.weight"] = torch.ones(3)
    torch.save({"model": content["model"], "cfg": content["cfg"]}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError) as error:
        load_model(tmp_path / "x.pt")
    for name in ("blocks.1.norm1.bias", "blocks.2.mlp.fc2.bias", "shape (3,)"):
        assert name in str(error.value)
    content["model"].update({"blocks_x.y": torch.ones(1), "zz": torch.ones(1)})
    with pytest.raises(CheckpointError, match=r"blocks_x.y, zz"):
        from_fairseq(content, "x")


def test_another_architecture_is_named(authors):
    content = read_pickle(authors / PRETRAIN)
    content["cfg"]["model"]["layer_norm_first"] = True
    content["cfg"]["model"]["modalities"]["image"]["use_alibi_encoder"] = True
    with pytest.raises(CheckpointError, match=r"layer_norm_first.*use_alibi_encoder"):
        from_fairseq(content, "x")
    with pytest.raises(CheckpointError, match="not an EAT or SSLAM model: it holds"):
        from_fairseq({"model": {"encoder.layers.0.fc1.weight": torch.ones(1)}}, "x")


class Attack:
    """Unpickled without care, this writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize(
    "place, zipped", [("model", True), ("cfg", False), ("extra_state", True)]
)
def test_malicious_pickle_runs_nothing(authors, tmp_path, place, zipped):
    content = read_pickle(authors / PRETRAIN)
    mark = tmp_path / "attacked"
    content[place] = {"x": Attack(mark)}
    path = tmp_path / "bad.pt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="system"):
        load_model(path)
    assert not mark.exists()
    with open(path, "rb") as file:  # the attack is a real one
        torch.load(file, weights_only=False)
    assert mark.exists()


def test_configuration_classes_are_not_imported_but_stood_in_for(tmp_path):
    # calls omegaconf's DictConfig with a word, as REDUCE does
    payload = b"\x80\x02comegaconf.dictconfig\nDictConfig\nU\x04word\x85R."
    torch.save({}, tmp_path / "empty.pt")
    with zipfile.ZipFile(tmp_path / "empty.pt") as old:
        members = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as new:
        for member, data in members.items():
            new.writestr(member, payload if member.endswith("data.pkl") else data)
    content = read_pickle(tmp_path / "x.pt")
    assert isinstance(content, StandIn) and vars(content) == {}


def test_other_files_are_told_apart_in_one_line(authors, tmp_path):
    whole = (authors / PRETRAIN).read_bytes()
    save_model(small_encoder(), tmp_path / "ours")
    safe = (tmp_path / "ours/model.safetensors").read_bytes()
    contents = {
        "empty.pt": (b"", "empty"),
        "lfs.pt": (b"version https://git-lfs.github.com/spec/v1\noid", "LFS pointer"),
        "page.pt": (b"<!DOCTYPE html><html>", "web page"),
        "text.safetensors": (b"hello, this is a text", "not a checkpoint"),
        "cut.pt": (whole[: len(whole) // 2], "truncated"),
        "pickle.pt": (pickle.dumps([1, 2]), "no plain tensors"),
        "cut.safetensors": (safe[: len(safe) // 2], "truncated"),
    }
    messages = {"list.pt": "holds a list", "numbers.pt": "a is a int"}
    messages["nothing.pt"] = "no such file"
    for name, (content, messages[name]) in contents.items():
        (tmp_path / name).write_bytes(content)
    torch.save([torch.ones(2)], tmp_path / "list.pt")
    torch.save({"model": {"a": 1}}, tmp_path / "numbers.pt")
    for name, message in messages.items():
        with pytest.raises(CheckpointError, match=message) as error:
            load_model(tmp_path / name)
        assert "\n" not in str(error.value) and name in str(error.value)


def test_folders_without_or_with_several_weights_are_told(tmp_path):
    with pytest.raises(CheckpointError, match="holds no weights"):
        load_model(tmp_path)
    for name in ("1epoch.pth", "2epoch.pth"):
        (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=r"name one: 1epoch.pth, 2epoch.pth"):
        load_model(tmp_path)


def test_folder_is_written_whole_or_left_alone(tmp_path, monkeypatch):
    save_model(small_encoder(), tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    monkeypatch.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(OSError("x")))
    with pytest.raises(OSError):
        save_model(small_encoder(embed_dim=16), tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
