"""SSLAMClassifier: what is trained, what is counted, what is refused."""

import numpy as np
import pytest
import torch

from espnet2_sslam import metrics
from espnet2_sslam.augment import Augmentation
from espnet2_sslam.classifier import Pooling, SSLAMClassifier
from espnet2_sslam.config import POOLINGS
from espnet2_sslam.encoder import EncoderOutput, SSLAMEncoder
from espnet2_sslam.losses import classification_loss
from espnet2_sslam.optim import parameter_groups

CLASSES = ["bird", "car", "dog"]
LENGTHS = torch.tensor([9000, 5000, 3000])
EVERYTHING = {"roll_and_gain": True, "noise": 0.1, "mixup_alpha": 0.8}
EVERYTHING["mask_ratio"] = 0.2
HEADS = [{"pooling": pooling} for pooling in POOLINGS]  # gated sums the layers anyway
HEADS += [{"weighted_layers": True, **head} for head in HEADS[:-1]]


def build(*, encoder=None, augmentation=None, **options):
    torch.manual_seed(0)
    options["augmentation"] = Augmentation(**(augmentation or {}))
    encoder = {"embed_dim": 16, "depth": 2, "num_heads": 2, **(encoder or {})}
    return SSLAMClassifier(SSLAMEncoder(**encoder), CLASSES, **options)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    speech = torch.randn(3, 9000, generator=generator)
    for clip, length in zip(speech, LENGTHS):
        clip[length:] = 0
    return {
        "speech": speech,
        "speech_lengths": LENGTHS,
        "label": torch.tensor([[1.0, 0, 1], [0, 1, 0], [0, 0, 0]]),
        "utt_id": ["a", "b", "c"],
    }


@pytest.mark.parametrize("task", ["multi_label", "multi_class"])
@pytest.mark.parametrize("head", HEADS)
def test_a_clip_gives_the_same_logits_alone_and_in_a_batch(batch, head, task):
    model = build(**head, task=task).eval()
    with torch.no_grad():
        together = model.inference(batch["speech"], LENGTHS)
        alone = [
            model.inference(clip[None, :length], length[None])
            for clip, length in zip(batch["speech"], LENGTHS)
        ]
    assert torch.allclose(together, torch.cat(alone), rtol=1e-5, atol=1e-6)


def test_attentive_pooling_starts_as_the_mean_and_weighted_layers_as_theirs():
    generator = torch.Generator().manual_seed(1)
    layers = [torch.randn(2, 17, 4, generator=generator) for _ in range(2)]
    real = torch.tensor([[True] * 16, [True] * 8 + [False] * 8])
    output = EncoderOutput(layers[-1], layers, [], real)
    means = torch.stack([output.last[0, 1:].mean(0), output.last[1, 1:9].mean(0)])
    torch.testing.assert_close(Pooling("attentive", 4)(output), means)
    weighted = Pooling("cls", 4, num_layers=2)(output)
    torch.testing.assert_close(weighted, (layers[0] + layers[1])[:, 0] / 2)


def test_concat_is_the_mean_over_time_with_frequencies_side_by_side():
    tokens = torch.randn(1, 17, 4, generator=torch.Generator().manual_seed(1))
    pooling = Pooling("concat", 4)
    pooled = pooling(EncoderOutput(tokens, [], []))
    assert pooled.shape == (1, pooling.output_size)
    torch.testing.assert_close(pooled.view(8, 4), (tokens[0, 1:9] + tokens[0, 9:]) / 2)


def random_output(*, clips=2, patches=16, blocks=3, valid=None):
    """Tokens of 4 channels, more different from block to block than in an encoder."""
    generator = torch.Generator().manual_seed(1)
    shape = clips, 1 + patches, 4
    layers = [n * torch.randn(shape, generator=generator) for n in range(1, blocks + 2)]
    frames = torch.full((clips,), 2 * patches)
    return EncoderOutput(layers[-1], layers, [], valid, frames)


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def test_gates_are_convex_and_one_alone_gives_the_probe_of_that_block():
    pooling, output = Pooling("gated", 4, 3, num_prototypes=5), random_output()
    vectors = unit(pooling.prototypes)
    for block in range(3):
        with torch.no_grad():
            pooling.layer_weights.fill_(-200)[block] = 0
        x = unit(output.layers[1 + block]) @ vectors.T
        wanted = torch.cat([x[:, 1:].amin(1), x[:, 1:].amax(1), x[:, 0]], 1)
        torch.testing.assert_close(pooling(output), wanted)
    for weights in torch.randn(20, 3) * 10:
        with torch.no_grad():
            pooling.layer_weights.copy_(weights)
        assert pooling(output).abs().max() <= 1 + 1e-5  # cosines, or shorter
    with torch.no_grad():
        pooling.layer_weights.zero_()
    total = sum(unit(layer) for layer in output.layers[1:]) / 3
    torch.testing.assert_close(pooling(output)[:, 10:], total[:, 0] @ vectors.T)


def test_prototypes_are_signs_compared_with_every_real_patch():
    pooling = Pooling("prototypes", 4, num_prototypes=5)
    real = torch.tensor([[True] * 16, [True] * 8 + [False] * 8])
    output = random_output(valid=real)
    signs = torch.where(pooling.prototypes >= 0, 1.0, -1.0)
    wanted = [unit(output.last[0, 1:]), unit(output.last[1, 1:9])]
    wanted = torch.stack([(x @ signs.T / 2).amax(0) for x in wanted])
    pooled = pooling(output)
    torch.testing.assert_close(pooled, wanted)
    pooled.sum().backward()  # the signs let the gradient pass
    assert pooling.prototypes.grad.abs().sum(1).min() > 0


@pytest.mark.parametrize("kind, layers", [("prototypes", 1), ("gated", 3)])
def test_neither_order_nor_padding_of_patches_counts(kind, layers):
    pooling, output = Pooling(kind, 4, layers, num_prototypes=5), random_output()
    order = torch.cat([torch.zeros(1).long(), 1 + torch.randperm(16)])
    mixed = [x[:, order] for x in output.layers]
    pooled = pooling(output._replace(last=mixed[-1], layers=mixed))
    torch.testing.assert_close(pooled, pooling(output))
    valid = torch.ones(2, 24, dtype=torch.bool)
    valid[:, 16:] = False
    longer = [torch.cat([x, 100 * torch.randn(2, 8, 4)], 1) for x in output.layers]
    padded = output._replace(last=longer[-1], layers=longer, valid=valid)
    torch.testing.assert_close(pooling(padded), pooling(output))


@pytest.mark.parametrize("pooling", ["prototypes", "gated"])
def test_a_probe_trains_its_head_alone_and_keeps_prototypes_from_decay(batch, pooling):
    head = {"pooling": pooling, "head_norm": "none", "prototypes_per_class": 2}
    model = build(**head, freeze_encoder=True).train()
    model(**batch)[0].backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    own = {"prototypes"} | ({"layer_weights"} if pooling == "gated" else set())
    assert trained == {f"pooling.{n}" for n in own} | {"head.weight", "head.bias"}
    assert model.pooling.prototypes.shape == (6, 16)
    groups = parameter_groups(model, lr=1.0, weight_decay=0.5)
    [decayed] = [group["params"] for group in groups if group["weight_decay"]]
    assert len(decayed) == 1 and decayed[0] is model.head.weight


def test_asymmetric_loss_weighs_absent_classes_by_their_score():
    logits = torch.tensor([[2.0, -1.0, 0.5]], requires_grad=True)
    targets = torch.tensor([[1.0, 0.0, 0.0]])
    loss = classification_loss(logits, targets, "asymmetric")
    scores = logits.detach().sigmoid()[0]
    wanted = -scores[0].log() - (scores[1:] * (1 - scores[1:]).log()).sum()
    assert loss.item() == pytest.approx(wanted.item())
    loss.backward()  # the weight is no part of what is differentiated
    assert logits.grad[0, 1].item() == pytest.approx(scores[1].item() ** 2)


def test_head_dropout_is_of_training_and_keyed_by_seed_and_batch(batch):
    options = {"head_dropout": 0.5, "freeze_encoder": True, "pooling": "gated"}
    model, again = build(**options).train(), build(**options).train()
    losses = [model(**batch)[0].item() for _ in range(3)]
    assert len(set(losses)) == 3
    torch.manual_seed(5)
    assert [again(**batch)[0].item() for _ in range(3)] == losses
    plain = build(**{**options, "head_dropout": 0.0}).eval()
    assert model.eval()(**batch)[0] == plain(**batch)[0]


@pytest.mark.parametrize(
    "options, complaint",
    [
        ({"pooling": "gated", "weighted_layers": True}, "gated weighs the layers"),
        ({"prototypes_per_class": 0}, "need 1 <= prototypes_per_class <= 10000, got 0"),
        ({"head_dropout": 1.0}, "head_dropout 1.0 is not in 0..1"),
        ({"loss": "asymmetric", "task": "multi_class"}, "needs task: multi_label"),
    ],
)
def test_impossible_probes_are_refused_in_one_line(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        build(**options)


def test_every_trainable_parameter_gets_a_gradient(batch):
    for head in HEADS:
        model = build(**head)
        model(**batch)[0].backward()
        assert all(p.grad is not None for p in model.parameters()), head


def test_frozen_encoder_has_no_gradient_and_stays_in_evaluation_mode(batch):
    model = build(freeze_encoder=True, encoder={"drop_path": 0.9}).train()
    assert model.training and not model.encoder.training
    first, second = model(**batch)[0], model(**batch)[0]
    assert first.item() == second.item()
    first.backward()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"}
    assert all(p.grad is None for p in model.encoder.parameters())


def test_authors_frozen_drop_path_is_active_in_training_only(batch):
    options = {"freeze_encoder": True, "frozen_drop_path": True}
    model = build(**options, encoder={"drop_path": 0.9}).train()
    assert len({model(**batch)[0].item() for _ in range(8)}) > 1
    model.eval()
    assert len({model(**batch)[0].item() for _ in range(3)}) == 1


@pytest.mark.parametrize("pooling", ["cls", "mean", "lin_softmax"])
def test_cached_features_train_the_same_head_and_encode_a_clip_once(batch, pooling):
    options = {"freeze_encoder": True, "pooling": pooling}
    plain, cached = build(**options), build(**options, cache_features=True)
    calls = []
    cached.encoder.patch_embed.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(3):
        expected, result = plain(**batch)[0], cached(**batch)[0]
        assert result.item() == pytest.approx(expected.item(), rel=1e-5)
    assert len(calls) == 3  # clips, not batches
    result.backward()
    assert cached.head.weight.grad.abs().max() > 0


def test_features_that_change_are_not_cached():
    for options in (
        {},
        {"freeze_encoder": True, "frozen_drop_path": True},
        {"freeze_encoder": True, "pooling": "attentive"},
        {"freeze_encoder": True, "pooling": "prototypes"},
        {"freeze_encoder": True, "head_dropout": 0.1},
        {"freeze_encoder": True, "weighted_layers": True},
        {"freeze_encoder": True, "augmentation": {"mask_ratio": 0.1}},
    ):
        with pytest.raises(ValueError, match="cache_features does not go with"):
            build(cache_features=True, **options)


def test_draws_depend_on_seed_and_batch_and_repeat_after_a_reload(batch):
    options = {"augmentation": EVERYTHING, "encoder": {"drop_path": 0.1}}
    model = build(**options, seed=1)
    losses = [model(**batch)[0].item() for _ in range(3)]
    assert len(set(losses)) == 3
    assert build(**options, seed=2)(**batch)[0].item() != losses[0]
    resumed = build(**options, seed=1)
    resumed(**batch)
    state = resumed.state_dict()
    again = build(**options, seed=1)
    again.load_state_dict(state)
    assert [again(**batch)[0].item() for _ in range(2)] == losses[1:]


def test_draws_differ_between_ranks_and_ignore_the_global_seed(batch, monkeypatch):
    def loss(rank):
        distributed = torch.distributed
        monkeypatch.setattr(distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(distributed, "get_rank", lambda: rank)
        model = build(augmentation=EVERYTHING)
        torch.manual_seed(rank + 7)
        return model(**batch)[0].item()

    assert loss(0) == loss(0) != loss(1)


def test_mixed_precision_gives_a_float32_loss_close_to_the_full_one(batch):
    model = build(augmentation={"mixup_alpha": 0.8, "mask_ratio": 0.2})
    full = model(**batch)[0]
    model.num_batches.zero_()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(**batch)[0]
    assert mixed.dtype == torch.float32
    assert mixed.item() == pytest.approx(full.item(), rel=0.02)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_training_and_evaluation_run_on_a_gpu(batch):
    on_gpu = {k: v.cuda() if k != "utt_id" else v for k, v in batch.items()}
    model, same = build(augmentation=EVERYTHING), build()
    same.load_state_dict(model.state_dict())
    expected = same.eval()(**batch)[0].item()
    loss, _, weight = model.cuda()(**on_gpu)
    loss.backward()
    assert loss.is_cuda and weight.is_cuda and torch.isfinite(loss)
    assert model.eval()(**on_gpu)[0].item() == pytest.approx(expected, rel=1e-3)


def test_augmentation_is_off_in_evaluation(batch):
    with_it, without = build(augmentation=EVERYTHING).eval(), build().eval()
    assert with_it(**batch)[0].item() == without(**batch)[0].item()


def test_loss_weights_make_means_over_batches_exact(batch):
    for reduction in ("positives", "clips", "elements"):
        model = build(loss_reduction=reduction).eval()
        whole, _, weight = model(**batch)
        parts = [
            model(**{key: value[rows] for key, value in batch.items()})
            for rows in (slice(0, 1), slice(1, 2))
        ]
        if reduction != "positives":  # the last clip has no label
            parts.append(model(**{k: v[2:] for k, v in batch.items()}))
            total = sum(loss * part for loss, _, part in parts)
            assert torch.allclose(total / weight, whole, rtol=1e-5)
        assert weight == {"positives": 3, "clips": 3, "elements": 9}[reduction]


def test_validation_counts_every_clip_once_in_odd_batches_and_over_ranks(batch):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    rng = np.random.default_rng(0)
    clips = torch.from_numpy(rng.normal(size=(7, 4000)).astype(np.float32))
    labels = torch.from_numpy((rng.random((7, 3)) < 0.5).astype(np.float32))
    model, names = build().eval(), list("abcdefg")

    def validate(rows):
        model.begin_validation()
        for part in rows:
            lengths = torch.full((len(part),), 4000)
            ids = [names[i] for i in part]
            model(clips[part], lengths, labels[part], utt_id=ids)
        return model._collected.clips

    with torch.no_grad():
        one = validate([[0, 1], [2, 3], [4, 5], [6]])
        whole = model.finish_validation(lambda part: [part])
        ranks = [validate([[0, 1, 2], [6]]), validate([[3, 4, 5], [6]]), {}]
        split = model.finish_validation(lambda part: ranks)
        scores = model.scores(model.inference(clips, torch.full((7,), 4000)))
    assert len(one) == 7 and whole["num_clips"] == split["num_clips"] == 7
    expected = metrics.mean_average_precision(labels.numpy(), scores.numpy())
    assert whole["mAP"] == split["mAP"] == pytest.approx(expected)


@torch.no_grad()
def test_validation_reports_accuracy_and_leaves_out_classes_without_positives(batch):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")

    def validate(labels, **options):
        model = build(**options).eval()
        model.begin_validation()
        model(**{**batch, "label": torch.tensor(labels, dtype=torch.float32)})
        return model, model.finish_validation(lambda part: [part])

    model, stats = validate(np.eye(3), task="multi_class")
    scores = model.scores(model.inference(batch["speech"], LENGTHS))
    assert torch.allclose(scores.sum(1), torch.ones(3))
    assert stats["accuracy"] == metrics.accuracy(np.eye(3), scores.numpy())
    assert 0 < validate([[1, 0, 0], [0, 1, 0], [1, 0, 0]])[1]["mAP"] <= 1
    with pytest.raises(ValueError, match="none of the 3 validation clips"):
        validate(np.zeros((3, 3)))


def test_labels_that_do_not_fit_are_refused(batch):
    with pytest.raises(ValueError, match="3 classes"):
        build()(**{**batch, "label": torch.zeros(3, 4)})
    with pytest.raises(ValueError, match="exactly one label"):
        build(task="multi_class")(**batch)


def test_training_clip_beyond_the_position_table_is_refused(batch):
    model = build(encoder={"max_frames": 32})
    with pytest.raises(ValueError, match="crop the clips"):
        model(**batch)
    assert model.eval().inference(batch["speech"], LENGTHS).shape == (3, 3)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"loss_reduction": "sum"}, "loss_reduction must be one of"),
        ({"loss": "cross_entropy"}, "multi_class"),
        ({"label_smoothing": 0.1}, "cross_entropy"),
        ({"frozen_drop_path": True}, "freeze_encoder"),
        ({"augmentation": {"mixup_per": "pair"}}, "batch, clip"),
        ({"augmentation": {"mask_ratio": 2.0}}, "0..1"),
        ({"augmentation": {"noise": -1.0}}, "negative"),
        (
            {"augmentation": {"roll_and_gain": True}, "encoder": {"input_size": 128}},
            "waveforms",
        ),
    ],
)
def test_contradicting_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)
