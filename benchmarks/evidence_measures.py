"""What frozen encoders are measured by, and what the measurements say together.

A mixture's features are the patches of the last layer: their mean over time with the
frequency bands side by side (8 * D), or all of them for the attentive probe.
"""

import copy
import functools
import math
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from espnet2_sslam import HeadConfig, SSLAMClassifier
from espnet2_sslam.classifier import Pooling
from espnet2_sslam.encoder import EncoderOutput, SSLAMEncoder
from espnet2_sslam.metrics import mean_average_precision
from espnet2_sslam.optim import WarmupCosine

AT_ONCE = 64  # clips encoded together


@torch.no_grad()
def patches_of(encoder: SSLAMEncoder, waves: np.ndarray, device) -> torch.Tensor:
    """Patches of the last layer (n, N, D), on the CPU, of 16-bit waveforms (n, T)."""
    result = []
    for start in range(0, len(waves), AT_ONCE):
        part = torch.from_numpy(waves[start : start + AT_ONCE]).to(device)
        lengths = torch.full((len(part),), part.shape[1])
        tokens = encoder.hidden_states(part, lengths.to(device)).last
        result.append(tokens[:, 1:].cpu())
    return torch.cat(result)


def bands_of(patches: torch.Tensor) -> np.ndarray:
    """Mean over time, bands side by side: (n, N, D) -> (n, 8 * D)."""
    pooling = Pooling("concat", patches.shape[-1])
    # its first token is the CLS token, which this pooling leaves out
    tokens = torch.cat([patches[:, :1], patches], 1)
    return pooling(EncoderOutput(tokens, [], [])).numpy()


class Standard:
    """Features of zero mean and unit deviation over the training set."""

    def __init__(self, features: np.ndarray):
        self.mean, self.std = features.mean(0), features.std(0) + 1e-6

    def __call__(self, features: np.ndarray) -> np.ndarray:
        return (features - self.mean) / self.std


class LinearProbe:
    """Logistic regression of each class, its L2 strength chosen on validation."""

    def __init__(self, train, train_y, valid, valid_y, strengths: Sequence[float]):
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        self.scale = Standard(train)
        train, valid = self.scale(train), self.scale(valid)
        best = -1.0
        models = [LogisticRegression(max_iter=500, warm_start=True) for _ in train_y.T]
        for strength in sorted(strengths):
            for model, target in zip(models, train_y.T, strict=True):
                model.C = strength
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", ConvergenceWarning)
                    model.fit(train, target)
            weight = np.concatenate([model.coef_ for model in models]).T
            bias = np.concatenate([model.intercept_ for model in models])
            score = mean_average_precision(valid_y, valid @ weight + bias)
            if score > best:
                best, self.strength = score, strength
                self.weight, self.bias = weight, bias

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Logits (n, classes)."""
        return self.scale(features) @ self.weight + self.bias


class AttentiveProbe:
    """The package's attentive pooling, batch norm and linear layer on fixed patches.

    Trained by AdamW under a cosine; its weight decay is chosen on validation.
    """

    def __init__(self, encoder, classes, train, train_y, valid, valid_y, conf):
        best = -1.0
        targets = torch.from_numpy(train_y).float()
        for decay in conf["weight_decay"]:
            torch.manual_seed(0)
            model = SSLAMClassifier(
                copy.deepcopy(encoder).cpu(),
                HeadConfig(tuple(classes), pooling="attentive", head_norm="batch"),
                freeze_encoder=True,
            ).train()
            trained = [p for p in model.parameters() if p.requires_grad]
            optimizer = torch.optim.AdamW(trained, lr=conf["lr"], weight_decay=decay)
            size = min(conf["batch_size"], len(train))
            steps = len(train) // size
            schedule = WarmupCosine(optimizer, total_steps=conf["epochs"] * steps)
            for epoch in range(conf["epochs"]):
                order = torch.from_numpy(
                    np.random.default_rng(epoch).permutation(len(train))
                )
                for rows in order[: steps * size].split(size):
                    logits = _attend(model, train[rows])
                    loss = nn.functional.binary_cross_entropy_with_logits(
                        logits, targets[rows]
                    )
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    schedule.step()
            model.eval()
            score = mean_average_precision(valid_y, self._scores(model, valid))
            if score > best:
                best, self.model, self.strength = score, model, decay

    def scores(self, patches: torch.Tensor) -> np.ndarray:
        """Logits (n, classes)."""
        return self._scores(self.model, patches)

    @staticmethod
    @torch.no_grad()
    def _scores(model, patches):
        return torch.cat([_attend(model, part) for part in patches.split(256)]).numpy()


def _attend(model: SSLAMClassifier, patches: torch.Tensor) -> torch.Tensor:
    """Logits of patches (n, N, D), which take the place of the encoder's."""
    tokens = torch.cat([patches[:, :1], patches], 1)
    return model.logits(model.pooling(EncoderOutput(tokens, [], [])))


def weighted_map(
    targets: np.ndarray, scores: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """The macro mAP (K,) under each of K weightings of the clips (K, n).

    `metrics.mean_average_precision` where all weights are 1 and no scores are equal.
    """
    values = []
    for target, score in zip(targets.T, scores.T, strict=True):
        order = np.argsort(-score, kind="stable")
        hits = target[order].astype(bool)
        ordered = weights[:, order].astype(np.float64)
        positive = ordered * hits
        all_ = ordered.cumsum(1)
        precision = positive.cumsum(1) / np.maximum(all_, 1e-12)
        total = positive.sum(1)
        with np.errstate(invalid="ignore", divide="ignore"):
            values.append((positive * precision).sum(1) / total)
    values = np.array(values)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # no class is left
        return np.nanmean(values, 0)


def map_and_influence(
    targets: np.ndarray, scores: np.ndarray, held: np.ndarray
) -> tuple[float, np.ndarray]:
    """The macro mAP, and how much a recording's weight moves it (R,).

    Args:
        targets, scores: (n, classes).
        held: True where a mixture holds a recording (R, n).

    The influence is (1 - share) times the mAP less the mAP without the mixtures that
    hold the recording; `share` of the mixtures do. For a mean over clips it is the
    exact derivative, so that sums of influence times (draws - 1) resample recordings.
    """
    weights = np.concatenate([np.ones((1, held.shape[1])), ~held])
    values = weighted_map(targets, scores, weights)
    influence = (1 - held.mean(1)) * (values[0] - values[1:])
    return float(values[0]), np.nan_to_num(influence)


def explained(train_x, train_y, test_x: Mapping, test_y, strengths) -> dict:
    """R2 of ridge regression on test features by level; strength by leave-one-out.

    Args:
        train_x, train_y: Features of mixtures and of one source each, alone.
        test_x: Level -> features of the mixtures.
        test_y: Features of the source.
    """
    from sklearn.linear_model import RidgeCV
    from sklearn.metrics import r2_score

    scale, target = Standard(train_x), Standard(train_y)
    model = RidgeCV(strengths).fit(scale(train_x), target(train_y))
    return {
        level: float(
            r2_score(
                target(test_y),
                model.predict(scale(features)),
                multioutput="variance_weighted",
            )
        )
        for level, features in test_x.items()
    }


def recall_of_weaker(scores: np.ndarray, weaker: np.ndarray) -> float:
    """How often the weaker source's class (n,) is among the two best of (n, C)."""
    best = np.argsort(-scores, 1)[:, :2]
    return float((best == weaker[:, None]).any(1).mean())


def measure(encoder: SSLAMEncoder, mixtures, conf: dict, device) -> dict:
    """All measures of one frozen encoder, as the record holds them.

    Args:
        encoder: On `device`, in evaluation mode.
        mixtures: `evidence.Mixtures`.
        conf: The section `measures`.
    """
    encoder.eval()
    patches = {
        split: patches_of(encoder, mixtures.waves(split), device)
        for split in ("train", "valid", *mixtures.tests)
    }
    bands = {split: bands_of(part) for split, part in patches.items()}
    labels = {split: mixtures.labels(split) for split in patches}
    fit = "train", "valid"
    linear = LinearProbe(
        *(of[split] for split in fit for of in (bands, labels)), conf["linear"]["C"]
    )
    attentive = AttentiveProbe(
        *(encoder, mixtures.classes),
        *(of[split] for split in fit for of in (patches, labels)),
        conf["attentive"],
    )
    record: dict = {"probes": {}}
    probes = {"linear": (linear, bands), "attentive": (attentive, patches)}
    for name, (probe, features) in probes.items():
        of = {"strength": probe.strength, "mAP": {}, "influence": {}}
        for degree, split in zip(mixtures.degrees, mixtures.tests, strict=True):
            value, influence = map_and_influence(
                labels[split], probe.scores(features[split]), mixtures.held(split)
            )
            of["mAP"][str(degree)] = round(value, 6)
            of["influence"][str(degree)] = [round(float(x), 6) for x in influence]
        record["probes"][name] = of
    del patches
    record["mechanism"] = _mechanism(encoder, mixtures, conf, device, linear)
    return record


def _mechanism(encoder, mixtures, conf, device, probe: LinearProbe) -> dict:
    """What of either source the features of a mixture of two hold."""

    def features(name):
        return bands_of(patches_of(encoder, mixtures.waves(name), device))

    of_train = features("train_pairs")
    by_level = {f"{s:g}": features(f"test_pairs_{s:g}") for s in mixtures.pair_snr}
    weaker = mixtures.weaker_classes()
    return {
        "recall_weaker": {
            level: recall_of_weaker(probe.scores(part), weaker)
            for level, part in by_level.items()
        },
        **{
            f"r2_{role}": explained(
                *(of_train, features(f"train_{role}")),
                *(by_level, features(f"test_{role}")),
                conf["ridge"],
            )
            for role in ("louder", "weaker")
        },
    }


def interval(
    values: np.ndarray, influence: np.ndarray, resamples: int
) -> tuple[float, float, float]:
    """A mean over seeds and its 95 % interval, recordings and seeds drawn anew.

    Args:
        values: Of each seed (S,).
        influence: Of each recording on it (S, R); R may be 0: seeds alone.
        resamples: Draws.
    """
    estimate, (seeds, recordings) = values.mean(), influence.shape
    draws = np.full(resamples, estimate)
    if recordings:
        draws += (_counts(recordings, resamples) - 1) @ influence.mean(0)
    if seeds > 1:  # a sample's spread is too small by this factor
        rng = np.random.default_rng(1)
        chosen = values[rng.integers(seeds, size=(resamples, seeds))].mean(1)
        draws += (chosen - estimate) * math.sqrt(seeds / (seeds - 1))
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(estimate), float(low), float(high)


@functools.cache
def _counts(recordings: int, resamples: int) -> np.ndarray:
    """How often each recording is drawn (resamples, recordings)."""
    even = np.full(recordings, 1 / recordings)
    return np.random.default_rng(0).multinomial(recordings, even, resamples)


def gate(random: np.ndarray, trained: np.ndarray) -> tuple[float, float]:
    """The mean gain of training over the seeds (S,), and their standard deviation."""
    gain = trained - random
    return float(gain.mean()), float(gain.std(ddof=1)) if len(gain) > 1 else math.nan


def slope(degrees: Sequence[int]) -> dict[int, float]:
    """Coefficients that turn values by degree into their slope over log2(degree)."""
    x = np.log2(degrees)
    x = x - x.mean()
    return dict(zip(degrees, (x / (x**2).sum()).tolist(), strict=True))


def mean_of(degrees: Sequence[int]) -> dict[int, float]:
    """Coefficients that turn values by degree into their mean."""
    return dict.fromkeys(degrees, 1 / len(degrees))


def contrast(
    records: Mapping[tuple[str, int], dict],
    of: str,
    against: str,
    coefficients: Mapping[int, float],
    probe: str,
    resamples: int,
) -> dict | None:
    """`of` minus `against` in points of mAP over the seeds that have both, or None.

    Args:
        records: (model, seed) -> record.
        coefficients: Weight of each degree.
        probe: "linear" or "attentive".
    """
    seeds = sorted(
        seed for model, seed in records if model == of and (against, seed) in records
    )
    if not seeds:
        return None

    def total(model, seed, key):
        part = records[model, seed]["probes"][probe][key]
        return 100 * sum(c * np.array(part[str(k)]) for k, c in coefficients.items())

    values, influence = (
        np.array([total(of, s, key) - total(against, s, key) for s in seeds])
        for key in ("mAP", "influence")
    )
    estimate, low, high = interval(values, influence, resamples)
    by_seed = dict(zip(seeds, values.tolist(), strict=True))
    return {"estimate": estimate, "low": low, "high": high, "by_seed": by_seed}
