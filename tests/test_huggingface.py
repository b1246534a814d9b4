"""Our folders in Hugging Face transformers, without trust_remote_code."""

import json

import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import (
    AudioClassificationPipeline,
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    pipeline,
)
from transformers import AutoModelForAudioClassification as AutoClassifier

import espnet2_sslam.integrations.huggingface as ours
from espnet2_sslam.checkpoint import load_model, save_model
from espnet2_sslam.classifier import SSLAMClassifier
from espnet2_sslam.encoder import SSLAMEncoder

SIZES = dict(embed_dim=48, depth=2, num_heads=4, max_frames=256)
CLASSES = ["dog", "rain", "siren"]
HEADS = [
    {},
    {"task": "multi_class", "pooling": "mean"},
    {"pooling": "attentive", "weighted_layers": True},
    {"pooling": "concat", "head_norm": "batch"},
    {"pooling": "lin_softmax"},
    {"pooling": "prototypes", "prototypes_per_class": 3, "head_norm": "none"},
    {"pooling": "gated", "task": "multi_class"},
]


def _encoder(**options):
    torch.manual_seed(0)
    return SSLAMEncoder(**SIZES, fbank_mean=-5.5, fbank_std=3.25, **options).eval()


def _classifier(**options):
    model = SSLAMClassifier(_encoder(), CLASSES, **options)
    for parameter in model.pooling.parameters():
        torch.nn.init.normal_(parameter)
    for name, buffer in model.fc_norm.named_buffers():
        if name == "running_mean":
            buffer.normal_()
    torch.nn.init.normal_(model.head.bias)
    return model.eval()


@pytest.fixture
def folder(tmp_path):
    return save_model(_encoder(), tmp_path / "encoder", origin={"file": "x.pt"})


@pytest.fixture
def tagger(tmp_path):
    return save_model(_classifier(), tmp_path / "classifier")


def _clips(*sizes):
    rng = np.random.default_rng(1)
    return [rng.normal(scale=0.1, size=n).astype(np.float32) for n in sizes]


def _batch(clips):
    lengths = torch.tensor([len(clip) for clip in clips])
    rows = [torch.from_numpy(clip) for clip in clips]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), lengths


def _same_states(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert value.dtype == b[name].dtype and torch.equal(value, b[name]), name


# --- configuration


@pytest.mark.parametrize("head", [None, *HEADS])
def test_config_json_is_written_as_it_was_read(tmp_path, head):
    model = _encoder(target_frames=64) if head is None else _classifier(**head)
    folder = save_model(model, tmp_path / "a", origin={"file": "x.pt", "sha256": "0"})
    auto = AutoModel if head is None else AutoClassifier
    auto.from_pretrained(folder).save_pretrained(tmp_path / "b")
    for name in "config.json", "preprocessor_config.json":
        first, second = (json.loads((tmp_path / x / name).read_text()) for x in "ab")
        assert first == second


def test_the_config_answers_under_the_usual_names(tagger):
    config = AutoConfig.from_pretrained(tagger)
    assert (config.hidden_size, config.num_hidden_layers) == (48, 2)
    assert config.num_attention_heads == 4 and config.num_labels == 3
    assert config.id2label[2] == "siren" and config.label2id["siren"] == 2
    assert config.problem_type == "multi_label_classification"


def test_another_format_version_is_refused(folder):
    path = folder / "config.json"
    path.write_text(
        path.read_text().replace('"format_version": 1', '"format_version": 2')
    )
    with pytest.raises(ValueError, match="format_version 1"):
        AutoConfig.from_pretrained(folder)


# --- the same numbers


def test_the_encoder_gives_the_same_tokens(folder):
    clips = _clips(9_000, 60_000, 16_000)  # the second one longer than one pass
    inputs = AutoFeatureExtractor.from_pretrained(folder)(
        clips, sampling_rate=16_000, return_tensors="pt"
    )
    model = AutoModel.from_pretrained(folder)
    assert isinstance(model, ours.SSLAMModel) and not model.training
    with torch.no_grad():
        out = model(**inputs, output_hidden_states=True)
        states = _encoder().hidden_states(*_batch(clips), "all").layers
        last, lengths, _ = _encoder(freq="flatten", cls_token=True)(*_batch(clips))
    assert torch.equal(out.last_hidden_state, last)
    assert torch.equal(out.token_mask.sum(1), lengths)
    assert torch.equal(out.pooler_output, last[:, 0])
    assert len(out.hidden_states) == len(states) == 3
    for found, wanted in zip(out.hidden_states, states):
        assert torch.equal(found[out.token_mask], wanted[out.token_mask])


def test_the_configuration_carries_finer_time(folder, tagger, tmp_path):
    batch, lengths = _batch(_clips(9_000, 16_000))
    mask = torch.arange(batch.shape[1]) < lengths[:, None]
    config = AutoConfig.from_pretrained(folder)
    config.encoder["time_shifts"] = 4
    model = AutoModel.from_pretrained(folder, config=config)
    model.save_pretrained(tmp_path / "fine")
    options = {"freq": "flatten", "cls_token": True, "time_shifts": 4}
    with torch.no_grad():
        wanted, steps, _ = _encoder(**options)(batch, lengths)
        for fine in (model, AutoModel.from_pretrained(tmp_path / "fine")):
            out = fine(batch, mask)
            assert torch.equal(out.last_hidden_state, wanted)
            assert torch.equal(out.token_mask.sum(1), steps)
        logits = AutoClassifier.from_pretrained(tagger)(batch, mask).logits
        config = AutoConfig.from_pretrained(tagger)
        config.encoder["time_shifts"] = 4
        fine = AutoClassifier.from_pretrained(tagger, config=config)
        assert torch.equal(fine(batch, mask).logits, logits)  # one pass is enough


@pytest.mark.parametrize("head", HEADS)
def test_the_classifier_gives_the_same_logits_whatever_the_padding(tmp_path, head):
    classifier = _classifier(**head)
    folder = save_model(classifier, tmp_path)
    clips = _clips(9_000, 16_000)
    extract = AutoFeatureExtractor.from_pretrained(folder)
    model = AutoClassifier.from_pretrained(folder)
    padding = dict(padding="max_length", max_length=30_000)
    with torch.no_grad():
        logits = model(**extract(clips, return_tensors="pt")).logits
        assert torch.equal(logits, classifier.inference(*_batch(clips)))
        alone = [model(**extract(c, return_tensors="pt")).logits for c in clips]
        padded = model(**extract(clips, **padding, return_tensors="pt")).logits
    torch.testing.assert_close(logits, torch.cat(alone), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logits, padded, rtol=1e-5, atol=1e-6)


# --- save and load


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "make, auto", [(_encoder, AutoModel), (_classifier, AutoClassifier)]
)
def test_save_and_load_are_bit_identical(tmp_path, make, auto, dtype):
    first = auto.from_pretrained(save_model(make(), tmp_path / "a"), dtype=dtype)
    first.save_pretrained(tmp_path / "b")
    second = auto.from_pretrained(tmp_path / "b")
    _same_states(first.state_dict(), second.state_dict())
    if dtype == torch.float32:
        _same_states(load_model(tmp_path / "b").model.state_dict(), make().state_dict())


@pytest.mark.parametrize("how", ["load", "to", "half", "config"])
def test_positions_and_fbank_statistics_stay_float32(folder, how):
    model = AutoModel.from_pretrained(folder)
    if how == "load":
        model = AutoModel.from_pretrained(folder, dtype=torch.float16)
    elif how == "config":
        model = AutoModel.from_config(model.config, dtype=torch.bfloat16)
    else:
        model = model.half() if how == "half" else model.to(torch.bfloat16)
    state, exact = model.encoder.state_dict(), _encoder().state_dict()
    assert state["norm.weight"].dtype != torch.float32
    for name in ("positions", "log_mel.mean", "log_mel.std"):
        assert torch.equal(state[name], exact[name]), name


def test_the_encoder_of_a_classifier_can_be_loaded_and_saved(tagger, tmp_path):
    AutoModel.from_pretrained(tagger).save_pretrained(tmp_path / "encoder")
    loaded = load_model(tmp_path / "encoder")
    assert loaded.classes is None
    _same_states(loaded.model.state_dict(), _encoder().state_dict())


@pytest.mark.parametrize(
    "change, line",
    [
        (lambda s: s.pop("encoder.norm.weight"), "missing encoder.norm.weight"),
        (lambda s: s.update(x=torch.zeros(1)), "unknown x"),
        (lambda s: s.pop("head.bias"), "missing head.bias"),
    ],
)
def test_weights_that_do_not_fit_are_an_error(tagger, change, line):
    path = tagger / "model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=line):
        AutoClassifier.from_pretrained(tagger)


# --- training


def test_weights_that_are_not_finite_are_an_error(tagger):
    state = load_file(tagger / "model.safetensors")
    state["encoder.norm.bias"][3] = float("nan")
    save_file(state, tagger / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"encoder.norm.bias holds NaN"):
        AutoClassifier.from_pretrained(tagger)


def test_saved_files_have_the_mode_of_any_new_file(folder, tmp_path):
    AutoModel.from_pretrained(folder).save_pretrained(tmp_path / "again")
    (tmp_path / "new").touch()
    for path in (tmp_path / "again").iterdir():
        assert path.stat().st_mode == (tmp_path / "new").stat().st_mode, path.name


def test_a_new_head_on_a_pretrained_encoder_can_be_trained_and_saved(folder, tmp_path):
    torch.manual_seed(0)
    model = AutoClassifier.from_pretrained(
        folder,
        id2label={0: "low", 1: "high"},
        label2id={"low": 0, "high": 1},
        problem_type="single_label_classification",
    )
    weight = model.head.weight
    assert weight.shape == (2, 48) and 0.005 < weight.std() < 0.04
    assert not model.head.bias.any() and (model.fc_norm.weight == 1).all()
    _same_states(model.encoder.state_dict(), _encoder().state_dict())
    batch = _batch(_clips(8_000, 8_000))[0]
    model.train()(batch, labels=torch.tensor([0, 1])).loss.backward()
    assert all(p.grad is not None for p in model.head.parameters())
    model.eval().save_pretrained(tmp_path / "tuned")
    loaded = load_model(tmp_path / "tuned")
    assert loaded.classes == ["low", "high"]
    assert loaded.model.config.task == "multi_class"
    with torch.no_grad():
        logits = loaded.model.inference(batch, torch.full((2,), 8_000))
        assert torch.equal(logits, model(batch).logits)


def test_the_loss_follows_the_problem_type(tagger):
    batch, _ = _batch(_clips(8_000, 8_000))
    labels = torch.tensor([[1, 0, 1], [0, 0, 1]])
    out = AutoClassifier.from_pretrained(tagger)(batch, labels=labels)
    expected = F.binary_cross_entropy_with_logits(out.logits, labels.float())
    assert torch.equal(out.loss, expected)
    single = AutoClassifier.from_pretrained(
        tagger, problem_type="single_label_classification"
    )
    labels = torch.tensor([2, 0])
    out = single(batch, labels=labels)
    torch.testing.assert_close(out.loss, F.cross_entropy(out.logits, labels))


def test_a_head_for_other_classes_replaces_the_old_one(tagger):
    options = {"num_labels": 5, "ignore_mismatched_sizes": True}
    model = AutoClassifier.from_pretrained(tagger, **options)
    assert model.head.weight.shape == (5, 48) and model.config.num_labels == 5
    assert model.head.weight.abs().max() < 0.2


# --- what users of transformers do


def test_freezing_the_base_model_leaves_the_head_trainable(tagger):
    model = AutoClassifier.from_pretrained(tagger)
    model.base_model.requires_grad_(False)
    free = {name for name, p in model.named_parameters() if p.requires_grad}
    assert free == {n for n, _ in model.named_parameters() if "encoder." not in n} != {}
    assert "head.weight" in free


def test_a_model_can_be_made_on_the_meta_device(tagger):
    with torch.device("meta"):
        model = ours.SSLAMForAudioClassification(AutoConfig.from_pretrained(tagger))
    assert model.head.weight.is_meta and model.encoder.cls_token.is_meta


@pytest.mark.parametrize("sizes", [(8_000, 8_000), (9_000, 16_000)])
@pytest.mark.parametrize("auto", [AutoModel, AutoClassifier])
def test_gradients_of_hidden_states_can_be_kept(tagger, auto, sizes):
    model = auto.from_pretrained(tagger).train()
    inputs = ours.SSLAMFeatureExtractor()(_clips(*sizes), return_tensors="pt")
    out = model(**inputs, output_hidden_states=True)
    for state in out.hidden_states:
        state.retain_grad()
    out[0].square().mean().backward()
    assert all(state.grad.abs().sum() > 0 for state in out.hidden_states)


@pytest.mark.parametrize("auto", [AutoModel, AutoClassifier])
def test_attentions_are_refused_in_one_line(tagger, auto):
    model, batch = auto.from_pretrained(tagger), _batch(_clips(8_000))[0]
    with pytest.raises(ValueError, match="leave output_attentions out") as error:
        model(batch, output_attentions=True)
    assert "\n" not in str(error.value)
    assert torch.isfinite(model(batch, output_attentions=False)[0]).all()


@pytest.mark.parametrize("train_first", [True, False])
@pytest.mark.parametrize("every, reentrant", [(1, False), (1, True), (2, False)])
def test_gradient_checkpointing_recomputes_blocks(
    tagger, train_first, every, reentrant
):
    batch, labels = _batch(_clips(8_000, 8_000))[0], torch.tensor(
        [[1, 0, 1], [0, 0, 1]]
    )
    gradients, calls = [], []
    for enable in (False, True):
        model = AutoClassifier.from_pretrained(tagger).train(train_first)
        if enable:
            model.activation_checkpointing_enable({"use_reentrant": reentrant}, every)
        model.train()
        for block in model.encoder.blocks:
            block.norm1.register_forward_hook(lambda *_: calls.append(0))
        model(batch, labels=labels.float()).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    assert model.is_activation_checkpointing and len(calls) == 2 + 2 + 2 // every
    _same_states(*gradients)
    model.activation_checkpointing_disable()
    assert not model.is_activation_checkpointing


def test_the_base_model_is_a_model_of_the_same_weights(tagger, tmp_path):
    model = AutoClassifier.from_pretrained(tagger)
    base, batch = model.base_model, _batch(_clips(8_000))[0]
    assert isinstance(base, ours.SSLAMModel) and base.encoder is model.encoder
    assert base.base_model is base and not base.training and base.config is model.config
    assert torch.isfinite(base(batch).last_hidden_state).all()
    base.save_pretrained(tmp_path / "encoder")
    _same_states(
        load_model(tmp_path / "encoder").model.state_dict(), model.encoder.state_dict()
    )


def test_a_model_saved_in_several_files_is_read(tagger, tmp_path):
    AutoClassifier.from_pretrained(tagger).save_pretrained(
        tmp_path / "sharded", max_shard_size="100KB"
    )
    shards = sorted((tmp_path / "sharded").glob("model-*.safetensors"))
    assert len(shards) > 1
    loaded = load_model(tmp_path / "sharded")
    _same_states(loaded.model.state_dict(), _classifier().state_dict())
    shards[1].write_bytes(shards[1].read_bytes()[:-9])
    with pytest.raises(ValueError, match=f"{shards[1].name} is damaged"):
        load_model(tmp_path / "sharded")
    shards[1].unlink()
    with pytest.raises(ValueError, match=f"there is no file .*{shards[1].name}"):
        load_model(tmp_path / "sharded")
    (tmp_path / "sharded/model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match="names no files of weights"):
        load_model(tmp_path / "sharded")


# --- feature extractor


@pytest.fixture
def extract():
    return ours.SSLAMFeatureExtractor()


def test_one_clip_in_any_form_is_a_batch_of_one(extract):
    [clip] = _clips(500)
    forms = [clip, clip.astype(np.float64), clip.tolist(), torch.from_numpy(clip)]
    forms += [[clip], clip[None], torch.from_numpy(clip)[None]]
    for form in forms:
        out = extract(form, return_tensors="np")
        assert np.array_equal(out["input_values"], clip[None])
        assert out["input_values"].dtype == np.float32


def test_integers_are_scaled_to_one(extract):
    for dtype, lowest in ((np.int16, -(2**15)), (np.int32, -(2**31))):
        out = extract(np.array([lowest, 0], dtype), return_tensors="pt")
        assert out["input_values"].tolist() == [[-1.0, 0.0]]


@pytest.mark.parametrize(
    "clip, rate, line",
    [
        (np.full(500, np.nan), 16_000, "NaN or infinite"),
        (np.zeros((1, 2, 500)), 16_000, "need mono audio"),
        (np.zeros(0), 16_000, "need mono audio"),
        (np.zeros(500), 44_100, "need audio of 16000 Hz, got 44100 Hz"),
    ],
)
def test_what_is_no_clip_is_refused(extract, clip, rate, line):
    with pytest.raises(ValueError, match=line):
        extract(clip, sampling_rate=rate)


@pytest.mark.parametrize(
    "arguments, line",
    [
        ((torch.zeros(2, 1, 800),), "need input_values and attention_mask of shape"),
        ((torch.zeros(1, 800), torch.ones(1, 700)), "use SSLAMFeatureExtractor"),
        ((torch.zeros(1, 800), torch.arange(800)[None] > 9), "padded at the end"),
        ((torch.zeros(1, 100),), "a clip has 100 samples"),
    ],
)
def test_a_wrong_batch_is_refused(folder, arguments, line):
    with pytest.raises(ValueError, match=line):
        AutoModel.from_pretrained(folder)(*arguments)


# --- pipeline


@pytest.fixture
def classify(tagger):
    kind = ours.AudioFilePipeline
    return pipeline("audio-classification", model=str(tagger), pipeline_class=kind)


def _as_pairs(result):
    return {row["label"]: row["score"] for row in result}


def test_both_pipelines_score_as_the_classifier_does(classify, tagger):
    [clip] = _clips(12_000)
    model = _classifier()
    with torch.no_grad():
        wanted = model.scores(model.inference(*_batch([clip])))[0]
    expected = pytest.approx(dict(zip(CLASSES, wanted.tolist())), abs=1e-6)
    assert _as_pairs(classify(clip)) == expected
    plain = pipeline("audio-classification", model=str(tagger))
    assert type(plain) is AudioClassificationPipeline  # transformers' own takes ours
    assert _as_pairs(plain(clip)) == expected


def test_the_pipeline_takes_other_rates_files_and_bytes(classify, tmp_path):
    time = np.arange(32_000) / 32_000
    wave = (0.3 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)
    path = tmp_path / "clip.flac"
    soundfile.write(path, np.stack([wave, wave], 1), 32_000)
    resampled = _as_pairs(classify({"sampling_rate": 32_000, "raw": wave}))
    results = [classify(str(path)), classify(path), classify(path.read_bytes())]
    for result in results:
        assert _as_pairs(result) == pytest.approx(resampled, abs=1e-5)
    path.write_text("no audio")
    with pytest.raises(ValueError, match="not audio"):
        classify(str(path))


def test_the_pipeline_works_in_batches_and_in_half_precision(tagger):
    classify = pipeline(
        "audio-classification", model=str(tagger), dtype=torch.bfloat16, batch_size=2
    )
    clips = _clips(8_000, 12_000, 9_000)
    quiet = [1e-3 * clip for clip in clips]  # bfloat16 samples would change them
    exact = pipeline("audio-classification", model=str(tagger))
    for found, wanted in zip(classify(quiet), exact(quiet)):
        assert _as_pairs(found) == pytest.approx(_as_pairs(wanted), abs=0.03)


def test_an_encoder_stays_whole_on_one_device_and_is_refused_on_none(tmp_path):
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    model = ours.SSLAMModel(
        ours.SSLAMConfig(encoder={"embed_dim": 48, "depth": 4, "num_heads": 4})
    )
    model.save_pretrained(tmp_path / "model")
    places = accelerate.infer_auto_device_map(
        model,
        max_memory={0: 2**19, 1: 2**22, "cpu": 2**30},
        no_split_module_classes=model._no_split_modules,
    )
    assert places == {"": 1} or set(places) == {"encoder"}
    loaded = ours.SSLAMModel.from_pretrained(
        tmp_path / "model",
        device_map="auto",
        max_memory={"cpu": "30KB"},
        offload_folder=tmp_path / "off",
    )
    with pytest.raises(ValueError, match="the encoder is offloaded as a whole"):
        loaded(torch.zeros(1, 16_000))
