"""A training step as one compiled graph: the same numbers, compiled once."""

import pytest
import torch
from torch._dynamo.utils import counters

from espnet2_sslam.augment import Augmentation
from espnet2_sslam.classifier import SSLAMClassifier
from espnet2_sslam.encoder import SSLAMEncoder
from espnet2_sslam.pretrain_model import SSLAMPretrainModel

SIZE = dict(embed_dim=48, depth=2, num_heads=4, drop_path=0.1)
SAMPLES = 25_840  # 160 frames
CLASSES = ["a", "b", "c"]


def pretraining(**options):
    torch.manual_seed(0)
    options = {"decoder_conf": dict(num_layers=2, groups=4), **options}
    encoder = SSLAMEncoder(**SIZE)
    return SSLAMPretrainModel(encoder, clone_batch=2, clip_frames=160, **options)


def finetuning(target_frames=None, **options):
    torch.manual_seed(0)
    encoder = SSLAMEncoder(**SIZE, target_frames=target_frames)
    everything = Augmentation(
        roll_and_gain=True, noise=0.1, mixup_alpha=0.8, mask_ratio=0.2
    )
    return SSLAMClassifier(encoder, CLASSES, augmentation=everything, **options)


WAVEFORM = dict(mixture=True, mixing_rule="waveform", regions_per="clip")
MODELS = {
    "phase 1": (pretraining, {}),
    "phase 2": (pretraining, dict(mixture=True)),
    "phase 2, waveforms": (pretraining, WAVEFORM),
    "fine-tuning": (finetuning, {}),
    "fine-tuning, fixed length": (finetuning, dict(target_frames=160)),
    "linear evaluation": (
        finetuning,
        dict(freeze_encoder=True, weighted_layers=True, pooling="mean"),
    ),
    "gated probe": (
        finetuning,
        dict(freeze_encoder=True, pooling="gated", head_dropout=0.2),
    ),
}
EVERY_MODEL = pytest.mark.parametrize("name", MODELS)


def batch(seed, clips=3, samples=SAMPLES, shortest=16_000):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(shortest, samples, (clips,), generator=generator)
    lengths[0], lengths[1] = samples, shortest
    speech = torch.randn(clips, samples, generator=generator) * 0.1
    label = torch.eye(3)[torch.arange(clips) % 3]
    return dict(speech=speech, speech_lengths=lengths, label=label)


def gradients(model, inputs):
    model.zero_grad()
    loss, stats, weight = model(**inputs)
    loss.backward()
    return (
        {name: float(value) for name, value in [*stats.items(), ("weight", weight)]},
        {n: p.grad for n, p in model.named_parameters() if p.grad is not None},
    )


def compare(name, backend, batches, checkpointing=None):
    """Steps of an eager and a compiled model; the graphs that were made."""
    make, options = MODELS[name]
    eager, compiled = make(**options).train(), make(**options).train()
    if checkpointing:
        compiled.checkpoint_activations(checkpointing)
    torch._dynamo.reset()
    counters.clear()
    compiled.compile_step(backend=backend)
    for inputs in batches:
        wanted, theirs = gradients(eager, inputs)
        stats, grads = gradients(compiled, inputs)
        assert stats == pytest.approx(wanted, rel=1e-6)
        assert theirs.keys() == grads.keys()
        for parameter, gradient in theirs.items():
            # the key's bias has no gradient but rounding errors
            if not parameter.endswith("qkv.bias"):
                error = (grads[parameter] - gradient).norm() / gradient.norm()
                assert float(error) < 1e-5, parameter
    assert not counters["graph_break"]
    return counters["stats"]["unique_graphs"]


@EVERY_MODEL
def test_new_draws_and_lengths_take_the_same_graph(name):
    assert compare(name, "aot_eager", [batch(seed) for seed in range(5)]) == 1


@EVERY_MODEL
def test_other_batch_sizes_and_lengths_take_one_more_graph(name):
    shapes = [(3, 16_400), (4, 20_000, 18_700), (5, 24_000, 21_300), (6, SAMPLES)]
    batches = [batch(0, *shape) for shape in shapes]
    assert compare(name, "aot_eager", batches) == 2


@pytest.mark.parametrize("name", ["phase 2", "fine-tuning"])
def test_activation_checkpointing_goes_into_the_graph(name):
    batches = [batch(seed) for seed in range(2)]
    assert compare(name, "aot_eager", batches, "all") == 1


@pytest.mark.parametrize(
    "name, parts",
    [("phase 1", "all"), ("phase 2", "decoder"), ("phase 2", "all")]
    + [("fine-tuning", "all"), ("linear evaluation", "all")],
)
def test_activation_checkpointing_keeps_less_and_changes_no_number(name, parts):
    make, options = MODELS[name]
    plain, saving = make(**options).train(), make(**options).train()
    saving.checkpoint_activations(parts)
    kept = []
    for model in plain, saving:
        sizes = {}

        def pack(x, sizes=sizes):
            sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            model(**batch(0))
        kept.append(sum(sizes.values()))
    if name != "linear evaluation":  # nothing of a frozen encoder is kept
        assert kept[1] < 0.9 * kept[0]
    for seed in (1, 2):
        wanted, theirs = gradients(plain, batch(seed))
        stats, grads = gradients(saving, batch(seed))
        assert stats == wanted
        assert theirs.keys() == grads.keys()
        assert all(torch.equal(theirs[name], grads[name]) for name in theirs)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["phase 1", "phase 2", "fine-tuning"])
def test_the_default_compiler_gives_the_same_numbers(name):
    assert compare(name, "inductor", [batch(seed) for seed in range(5)]) == 1


def test_validation_is_not_compiled():
    model = pretraining()
    model.compile_step(backend="aot_eager")
    counters.clear()
    with torch.no_grad():
        model.eval()(**batch(0), utt_id=["a", "b", "c"])
    assert not counters["stats"]
