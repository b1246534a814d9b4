"""SSLAM in ESPnet's tasks: choices, building models, CTC without enough frames."""

import argparse
import importlib
import logging
from types import ModuleType

import pytest
import torch
import yaml
from espnet2.asr.encoder.abs_encoder import AbsEncoder
from espnet2.asr.frontend.abs_frontend import AbsFrontend
from espnet2.train.class_choices import ClassChoices

from espnet2_sslam._hook import without_flash_attention_note
from espnet2_sslam.checkpoint import CheckpointError, save_model
from espnet2_sslam.encoder import SSLAMEncoder
from espnet2_sslam.integrations.espnet import PretrainedEncoder, SSLAMFrontend

with without_flash_attention_note():
    from espnet2.asr.ctc import CTC
    from espnet2.layers.label_aggregation import LabelAggregate
    from espnet2.tasks.abs_task import AbsTask
    from espnet2.train.abs_espnet_model import AbsESPnetModel
    from espnet2.utils.get_default_kwargs import get_default_kwargs

    from espnet2_sslam.integrations import espnet
    from espnet2_sslam.integrations.ctc import EAGER, missing_frames

TINY = {"embed_dim": 48, "depth": 1, "num_heads": 3, "mlp_ratio": 1.0}


class OtherEncoder(AbsEncoder):
    """Something else with our name."""

    def forward(self, xs_pad, ilens, prev_states=None):
        """Not used."""

    def output_size(self):
        """Not used."""


def choices(name="encoder", base=AbsEncoder, **classes):
    return ClassChoices(name, classes, type_check=base, default=None, optional=True)


def register(**content):
    """Register in a module of tasks with this content."""
    module = ModuleType("espnet2.tasks.asr")
    vars(module).update(content)
    espnet.register(module)


def test_sslam_is_added_to_choices_of_audio_encoders_and_frontends_only():
    audio, front = choices(other=OtherEncoder), choices("frontend", AbsFrontend)
    rest = ClassChoices("decoder", {"other": OtherEncoder})
    for _ in range(2):
        register(audio=audio, front=front, rest=rest)
    assert audio.get_class("sslam") is PretrainedEncoder
    assert issubclass(PretrainedEncoder, SSLAMEncoder)
    assert front.get_class("sslam") is SSLAMFrontend
    assert list(rest.classes) == ["other"]


def test_a_clash_of_names_is_an_error():
    with pytest.raises(ImportError, match="taken has another class named sslam .*Othe"):
        register(taken=choices(sslam=OtherEncoder))


class FakeModel(AbsESPnetModel):
    """Frontend, encoder and CTC, without anything else."""

    def __init__(self, frontend, encoder):
        super().__init__()
        self.frontend, self.encoder = frontend, encoder
        self.ctc = CTC(5, encoder.output_size())

    def forward(self, **batch):
        """Not used."""

    def collect_feats(self, **batch):
        """Not used."""


class FakeTask(AbsTask):
    """A task that chooses frontend and encoder as ESPnet's do."""

    class_choices_list = [choices("frontend", AbsFrontend), choices()]
    add_task_arguments = build_collate_fn = build_preprocess_fn = None
    required_data_names = optional_data_names = None

    @classmethod
    def build_model(cls, args):
        front, encoder = (c.get_class(getattr(args, c.name)) for c in cls.choices())
        front = front and front(**args.frontend_conf)
        return FakeModel(front, encoder(**args.encoder_conf))

    @classmethod
    def choices(cls):
        return cls.class_choices_list


for number, choice in enumerate(FakeTask.class_choices_list):
    register(**{f"choices{number}": choice})
register(FakeTask=FakeTask)


def build(frontend_conf=None, encoder_conf=TINY, **more):
    """The model of FakeTask and its changed configuration."""
    args = argparse.Namespace(
        frontend=frontend_conf and "sslam",
        frontend_conf=frontend_conf or {},
        encoder="sslam",
        encoder_conf=encoder_conf,
        **more,
    )
    return FakeTask.build_model(args=args), args


@pytest.fixture
def source(tmp_path):
    torch.manual_seed(3)
    return save_model(SSLAMEncoder(**TINY, max_frames=64), tmp_path / "source")


@pytest.mark.parametrize("place", ["frontend", "encoder"])
def test_a_trained_model_needs_no_source_of_pre_trained_weights(
    source, tmp_path, place
):
    conf = {"pretrained": str(source), "freq": "mean"}
    model, args = build(**{f"{place}_conf": conf})
    saved = yaml.safe_dump(vars(args))
    assert yaml.safe_load(saved)[f"{place}_conf"] == {**conf, **TINY, "max_frames": 64}
    (tmp_path / "config.yaml").write_text(saved)
    torch.save(model.state_dict(), tmp_path / "model.pth")
    source.rename(tmp_path / "gone")
    again, _ = FakeTask.build_model_from_file(
        tmp_path / "config.yaml", tmp_path / "model.pth"
    )
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    with pytest.raises(CheckpointError, match="there is no such file"):
        FakeTask.build_model_from_file(tmp_path / "config.yaml")


def test_a_mistyped_option_is_named():
    with pytest.raises(ValueError, match="--encoder_conf has no key embed_dimm: use"):
        build(encoder_conf={"embed_dimm": 48})
    with pytest.raises(ValueError, match="--encoder_conf has no key input_size"):
        build(encoder_conf={"input_size": 1})


@pytest.mark.parametrize(
    "given, message",
    [
        ({"normalize": "global_mvn"}, "normalize global_mvn would change the waveform"),
        ({"specaug": "specaug"}, "specaug specaug would mask the waveform .*null"),
        ({"frontend_conf": {"fs": "8k"}}, "needs audio at 16000 Hz, frontend_conf fs"),
        ({"preprocessor_conf": {"sample_rate": 8000}}, "preprocessor_conf sample_rate"),
    ],
)
def test_what_would_reach_the_waveform_another_way_is_refused(given, message):
    args = {"encoder": "sslam", "encoder_conf": TINY, "frontend": None}
    args |= {"frontend_conf": {"fs": "16k"}, "input_size": 1, **given}
    with pytest.raises(ValueError, match=message) as error:
        FakeTask.build_model(argparse.Namespace(**args))
    assert "\n" not in str(error.value)
    log_mel = argparse.Namespace(**{**args, "input_size": 128})
    FakeTask.build_model(log_mel)  # features of 128 bins may be changed
    with espnet.weights_follow():  # a trained model is read as it was trained
        FakeTask.build_model(argparse.Namespace(**args))


@pytest.mark.parametrize("size", [80, None])
def test_features_of_another_frontend_are_refused_with_the_way_out(size):
    with pytest.raises(ValueError, match=f"encoder sslam, got {size}: give input_size"):
        PretrainedEncoder(size, **TINY)


def test_specaugment_masks_the_log_mel_in_training_only():
    masks = {"freq_mask_width_range": [30, 40], "time_mask_width_range": [5, 20]}
    encoder = PretrainedEncoder(specaug_conf=masks, **TINY)
    speech, lengths = torch.randn(3, 16_000), torch.tensor([16_000, 9_000, 700])
    plain, _ = encoder.eval().fbank(speech, lengths)
    masked, frames = encoder.train().fbank(speech, lengths)
    assert masked.shape == plain.shape and frames.tolist() == [98, 54, 2]
    assert torch.equal(encoder.eval().fbank(speech, lengths)[0], plain)
    for clip, count in enumerate(frames):
        assert torch.equal(masked[clip, count:], plain[clip, count:])
    bands = (masked[0, :98] == 0).all(0).sum()
    assert 30 <= bands <= 80 and torch.isfinite(masked).all()
    encoder.train()(speech, lengths)[0].sum().backward()
    with pytest.raises(ValueError, match="specaug_conf needs a trained encoder"):
        PretrainedEncoder(specaug_conf=masks, freeze=True, **TINY)
    with pytest.raises(ValueError, match="specaug_conf has no key num_masks"):
        PretrainedEncoder(specaug_conf={"num_masks": 2}, **TINY)


@pytest.mark.parametrize("upsample, time_shifts", [(1, 1), (8, 1), (16, 1), (2, 4)])
@pytest.mark.parametrize("rule", ["center", "ceil"])
def test_outputs_are_as_long_as_the_labels_of_a_host(rule, upsample, time_shifts):
    hop = 2560 // upsample // time_shifts
    samples = torch.arange(16_000, 26_240, 97)
    labels = LabelAggregate(win_length=hop, hop_length=hop)
    steps = {"upsample": upsample, "time_shifts": time_shifts}
    options = {**steps, "output_length": rule, **TINY}
    whole = PretrainedEncoder(**steps, **TINY).eval()
    for module in PretrainedEncoder(**options), SSLAMFrontend(layer=1, **options):
        module.eval()
        for count in samples[:: 1 if module.output_size() == 48 else 20]:
            speech, length = torch.randn(1, int(count)), count[None]
            with torch.no_grad():
                out, olens, *_ = module(speech, length)
            wanted = -(-count // hop)
            if rule == "center":
                wanted = labels(torch.zeros(1, int(count), 2), length)[1]
            assert out.shape[1] == int(olens) == int(wanted)
            if module.output_size() == 48:
                whole.load_state_dict(module.state_dict())
                with torch.no_grad():
                    uncut = whole(speech, length)[0]
                same = min(out.shape[1], uncut.shape[1])
                assert torch.equal(out[:, :same], uncut[:, :same])
                assert torch.equal(
                    out[:, same:], uncut[:, -1:].expand_as(out[:, same:])
                )


def test_an_output_length_without_meaning_is_refused():
    steps = {"upsample": 64, "time_shifts": 16}  # 2560 / 1024 is no whole number
    for wrong in {"freq": "flatten"}, {"cls_token": True}, {"upsample": 3}, steps:
        with pytest.raises(ValueError, match="output_length ceil needs waveforms"):
            PretrainedEncoder(output_length="ceil", **wrong, **TINY)
    with pytest.raises(ValueError, match="output_length must be one of"):
        SSLAMFrontend(output_length="floor", **TINY)


def test_the_clip_encoder_gives_the_frames_of_the_encoder_channels_first():
    clips = espnet.ClipEncoder(**TINY).eval()
    speech = torch.randn(2, 16_000)
    wanted, _, _ = PretrainedEncoder.forward(clips, speech, torch.tensor([16_000] * 2))
    assert torch.equal(clips(speech), wanted.transpose(1, 2))
    assert get_default_kwargs(espnet.ClipEncoder)["embed_dim"] == 768
    with pytest.raises(ValueError, match="layer: all is not for"):
        espnet.ClipEncoder(layer="all", **TINY)(speech)


def test_random_frozen_features_are_mentioned(caplog):
    build({**TINY, "freeze": False})
    build(TINY, init_param=["some.pth:encoder:frontend.encoder"])
    assert not caplog.messages
    build(TINY)
    assert "frontend sslam is random and frozen" in caplog.text


def test_printed_options_are_those_that_a_configuration_may_have():
    printed = get_default_kwargs(PretrainedEncoder)
    assert printed["embed_dim"] == 768 and printed["pretrained"] is None
    assert "input_size" not in printed  # ESPnet gives it beside encoder_conf
    PretrainedEncoder(1, **{**printed, **TINY})
    SSLAMFrontend(**{**get_default_kwargs(SSLAMFrontend), **TINY})


def test_ctc_needs_a_frame_per_label_and_one_between_equal_ones():
    labels = torch.tensor([[1, 2, 3, -1], [1, 1, 1, 2], [2, -1, -1, -1]])
    missing = missing_frames(labels, torch.tensor([3, 4, 1]), torch.tensor([3, 5, 4]))
    assert missing.tolist() == [0, 1, -3]
    losses = torch.nn.CTCLoss(reduction="none")(
        torch.randn(5, 3, 5).log_softmax(2),
        labels.clamp(min=0),
        torch.tensor([3, 5, 4]),
        torch.tensor([3, 4, 1]),
    )
    assert torch.isinf(losses).tolist() == [False, True, False]


ENCODERS = {
    "conformer": {"input_layer": "linear"},
    "e_branchformer": {"input_layer": "linear"},
    "transformer": {"input_layer": "linear"},
    "rnn": {"subsample": [1, 1]},
}


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("upsample", [1, 4])
def test_any_encoder_takes_the_features_and_keeps_their_lengths(name, upsample):
    module = importlib.import_module(f"espnet2.asr.encoder.{name}_encoder")
    parts = {"rnn": "RNN", "e_branchformer": "EBranchformer"}
    encoder_class = getattr(module, f"{parts.get(name, name.capitalize())}Encoder")
    frontend = SSLAMFrontend(**TINY, upsample=upsample)
    conf = {"num_layers" if name == "rnn" else "num_blocks": 2, **ENCODERS[name]}
    conf["hidden_size" if name == "rnn" else "output_size"] = 16
    encoder = encoder_class(frontend.output_size(), **conf)
    features, lengths = frontend(torch.randn(2, 16_000), torch.tensor([16_000, 6_000]))
    out, olens, *_ = encoder(features, lengths)
    assert olens.tolist() == lengths.tolist() == [7 * upsample, 3 * upsample]
    assert out.shape[1] == 7 * upsample
    ctc = CTC(5, encoder.output_size())
    loss = ctc(out, olens, torch.tensor([[1, 2, 3], [1, 2, -1]]), torch.tensor([3, 2]))
    assert torch.isfinite(loss) and loss > 0


def ctc_step(model, frames, labels):
    """CTC's loss of utterances with so many frames and labels."""
    width = model.encoder.output_size()
    text = torch.arange(max(labels)).expand(len(labels), -1) % 4 + 1
    return model.ctc(
        torch.randn(len(frames), max(frames), width),
        torch.tensor(frames),
        text,
        torch.tensor(labels),
    )


def test_ctc_with_more_labels_than_frames_is_an_error_at_the_first_batch():
    with pytest.raises(ValueError) as error:
        ctc_step(build()[0], [6, 6, 30], [7, 12, 9])
    assert str(error.value).startswith(
        "CTC cannot learn: 2 of the first 3 utterances have more labels than encoder "
        "frames (one: 12 labels, 6 frames): raise time_shifts or upsample"
    )


def test_a_few_utterances_without_enough_frames_are_mentioned_once(caplog):
    model, _ = build()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            ctc_step(model, [30, 30, 6], [7, 8, 9])
    assert len(caplog.messages) == 1 and "1 of the first 3" in caplog.text


def test_ctc_judges_every_utterance_of_a_training():
    model, _ = build()
    for _ in range(EAGER):
        ctc_step(model, [30, 30], [7, 8])
    with pytest.raises(ValueError, match="200 of the first 300 .* 12 labels, 6 frames"):
        for _ in range(2 * EAGER):
            ctc_step(model, [6, 6], [12, 9])


def test_ctc_of_models_without_sslam_is_left_alone():
    model = FakeModel(None, SSLAMEncoder(**TINY))
    assert torch.isfinite(ctc_step(model, [6], [12]))  # ESPnet makes it zero
