"""The fair experiment: what was decided, what is compared, and what it is worth."""

import copy
import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from espnet2_sslam.metrics import mean_average_precision
from espnet2_sslam.teacher import ema_decay
from tests.corpus_case import error_line
from tests.test_without_hosts import BLOCK, BLOCKED

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import evidence  # noqa: E402
import evidence_measures as measures  # noqa: E402
from evidence_report import collect  # noqa: E402

DESIGN = evidence.read_design(BENCHMARKS / "evidence.yaml")


# What was decided.


def movement(start, end, anneal, updates):
    """How far the teacher moves: the sum of 1 - decay."""
    return sum(1 - ema_decay(n, start, end, anneal) for n in range(1, updates + 1))


def test_no_trial_and_no_void_run_has_used_the_seeds():
    assert len(DESIGN["seeds"]) >= 3
    assert not set(DESIGN["seeds"]) & {1, 2, 3, 11, 12, *range(21, 26)}


@pytest.mark.parametrize(
    "phase, updates, warm_up",
    [("phase1", 400_000, 53_333), ("phase2", 200_000, 25_000)],
)
def test_what_has_no_unit_is_the_papers(phase, updates, warm_up):
    own, model = DESIGN[phase], DESIGN["model_conf"]
    schedule = [model[f"ema_{n}"] for n in ("decay", "end_decay", "anneal_updates")]
    of_paper = movement(0.9998, 0.99999, 100_000, updates)
    assert movement(*schedule, own["updates"]) == pytest.approx(of_paper, rel=0.01)
    assert own["warmup_steps"] / own["updates"] == pytest.approx(
        warm_up / updates, rel=0.01
    )
    rows = evidence.student_rows(DESIGN, "sslam")
    assert model["utterance_loss_reduction"] == "sum"
    assert rows * model["utterance_loss_weight"] == 12 * 16


def test_all_arms_see_the_same_number_of_rows(tmp_path, capsys):
    rows = {
        model: evidence.student_rows(DESIGN, model)
        for model in evidence.models(DESIGN)[1:]
    }
    assert set(rows.values()) == {64}
    uneven = copy.deepcopy(DESIGN)
    uneven["arms"]["sslam"]["clone_batch"] = 4
    path = tmp_path / "uneven.yaml"
    path.write_text(yaml.safe_dump(uneven))
    line = error_line(evidence.main, capsys, "--design", path, "--data", tmp_path)
    assert "same number of rows" in line and "sslam 128" in line


# What is compared.


def make_corpus(folder, labels=4, recordings=5, seconds=3.0):
    """A table of tones in noise: each label a pitch, each recording a timbre."""
    (folder / "audio").mkdir(parents=True)
    rng = np.random.default_rng(0)
    time = np.arange(int(seconds * 16_000)) / 16_000
    rows = []
    for split, label, recording in np.ndindex(2, labels, recordings):
        for clip in range(2):
            pitch = 300 * 2**label * (1 + 0.05 * rng.standard_normal())
            wave = np.sin(2 * np.pi * pitch * time) * rng.uniform(0.1, 0.3)
            wave += 0.02 * rng.standard_normal(len(time))
            name = f"{'train test'.split()[split]}_{label}_{recording}_{clip}.wav"
            soundfile.write(folder / "audio" / name, wave, 16_000)
            source = f"{split}-{label}-{recording}"
            rows.append((name, f"l{label}", source, "train test".split()[split]))
    with open(folder / "clips.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerows([("filename", "label", "source", "split"), *rows])
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("evidence") / "corpus")


def toy_design():
    """The decided experiment in small: everything as it is but the numbers."""
    design = copy.deepcopy(DESIGN)
    design["corpus"] |= dict(degrees=[1, 2, 3], train_clips=30, valid_clips=12)
    design["corpus"] |= dict(test_clips=15, train_pairs=10, test_pairs=8)
    design["analysis"]["primary"]["degrees"] = [2, 3]
    design["encoder_conf"] |= dict(embed_dim=24, depth=2, num_heads=2)
    design["phase1"] |= dict(updates=4, warmup_steps=1)
    design["phase2"] |= dict(updates=2, warmup_steps=1)
    design["measures"]["attentive"]["epochs"] = 2
    design["seeds"] = [1, 11]
    return design


def test_no_recording_is_heard_in_two_parts(corpus):
    sources = evidence.divide(evidence.read_clips(corpus), DESIGN["corpus"])
    heard = {name: {s.recording for s in part} for name, part in sources.items()}
    assert len(set.union(*heard.values())) == sum(map(len, heard.values())) == 40
    assert all(heard.values())


def test_a_table_with_a_recording_in_train_and_test_is_refused(corpus, tmp_path):
    text = (corpus / "clips.csv").read_text().replace("1-0-0", "0-0-0")
    (tmp_path / "clips.csv").write_text(text)
    with pytest.raises(ValueError, match="1 are in both"):
        evidence.read_clips(tmp_path)


@pytest.fixture(scope="module")
def prepared(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared")
    evidence.prepare(corpus, out / "evidence/work", toy_design(), 1)
    return out


def test_arms_get_the_same_crops_in_the_same_order(prepared):
    run = evidence.Run(toy_design(), prepared)
    model = evidence.build(run.design, "sslam", 1, run.plan)
    clips = evidence.Clips(run.work, run.plan, model.encoder, 256)
    first, again, other = (
        list(clips.crops(5, 4, *key)) for key in [(1, 2)] * 2 + [(2, 2)]
    )
    for (rows, starts), (rows_again, starts_again) in zip(first, again):
        assert rows.equal(rows_again) and starts.equal(starts_again)
        assert len(set(rows.tolist())) == 4  # no clip is mixed with itself
        assert bool((starts + 256 <= clips.fbank.shape[1]).all())
    assert any(not a[0].equal(b[0]) for a, b in zip(first, other))
    rows, starts = first[0]
    spectrum, _ = model.encoder.fbank(
        clips.crop_waves(rows, starts), evidence.torch.full((4,), clips.size)
    )
    inner = clips.crop(rows, starts) - spectrum  # but for the mean of the clip
    assert float(inner.abs().median()) < 1e-3


def fake_record(run, model, seed, gain, weights):
    """A record of an encoder that is `gain` better on everything."""
    rng = np.random.default_rng(seed)
    degrees = [str(k) for k in run.plan["degrees"]]
    levels = [f"{x:g}" for x in run.plan["pair_snr"]]
    probe = {
        "strength": 1.0,
        "mAP": {k: 0.5 + gain + 0.001 * rng.standard_normal() for k in degrees},
        "influence": {k: [0.0] * len(run.plan["recordings"]) for k in degrees},
    }
    names = "recall_weaker", "r2_louder", "r2_weaker"
    record = {
        **{"model": model, "seed": seed, "design": run.id(model), "device": "CPU"},
        **run.environment,
        **{"seconds_training": 1.0, "seconds_measuring": 1.0, "weights": weights},
        "probes": {"linear": probe, "attentive": probe},
        "mechanism": {name: dict.fromkeys(levels, 0.5) for name in names},
    }
    evidence.write_record(run.record_path(model, seed), record)


def names_of(jobs):
    return sorted((job[1].__name__, *job[2]) for job in jobs)


def test_a_run_goes_on_from_the_records(prepared, tmp_path):
    design = toy_design()
    design["seeds"] = [1]
    run = evidence.Run(design, prepared)
    run.records = tmp_path
    every = evidence.models(design)
    assert names_of(evidence.jobs_to_do(run, every)) == [
        ("make_record", "random", 1),
        ("train_phase1", 1),
    ]
    for model in every:
        fake_record(run, model, 1, 0.0, "aaa")
    assert evidence.jobs_to_do(run, every) == []
    # of an arm that another phase 1 came before, nothing may be compared
    fake_record(run, "sslam", 1, 0.0, "bbb")
    assert ("sslam", 1) not in run.all_records()
    run.refuse_others()
    # another setting of one arm leaves the others' records alone
    design["arms"]["mixed"]["mask_ratio"] = 0.7
    assert {m for m, _ in run.all_records()} == set(every) - {"sslam", "mixed"}
    design["phase1"]["lr"] = 1.0
    assert not run.all_records()
    with pytest.raises(ValueError, match="another design"):  # nor written over
        run.refuse_others()


# What it is worth.


def test_the_map_without_weights_is_scikit_learns():
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, (50, 4))
    scores = rng.standard_normal((50, 4))
    keep = rng.random((3, 50)) < 0.7
    got = measures.weighted_map(targets, scores, keep)
    expected = [mean_average_precision(targets[k], scores[k]) for k in keep]
    assert got == pytest.approx(np.array(expected))


def test_the_interval_knows_that_mixtures_share_recordings():
    """Its width is that of the mAP over fresh recordings, not over fresh mixtures."""

    def draw(rng):
        """Scores of mixtures of three recordings; some recordings are easy."""
        ease = rng.standard_normal(60)
        rows = np.array([rng.permutation(60)[:3] for _ in range(150)])
        targets = rng.integers(0, 2, (150, 1))
        margin = targets[:, 0] * (1 + 2 * ease[rows].mean(1))
        scores = margin + 0.5 * rng.standard_normal(150)
        held = np.array([[r in row for row in rows] for r in range(60)])
        return targets, scores[:, None], held

    rng = np.random.default_rng(1)
    values = [
        measures.weighted_map(*draw(rng)[:2], np.ones((1, 150)))[0] for _ in range(300)
    ]
    widths = []
    for _ in range(30):
        value, influence = measures.map_and_influence(*draw(rng))
        _, low, high = measures.interval(np.array([value]), influence[None], 2000)
        widths.append(high - low)
    assert np.mean(widths) == pytest.approx(3.92 * np.std(values), rel=0.2)


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_the_interval_has_the_spread_of_the_seeds(seeds):
    values = np.random.default_rng(seeds).standard_normal(seeds)
    none = np.zeros((seeds, 0))
    estimate, low, high = measures.interval(values, none, 20_000)
    assert estimate == values.mean()
    expected = 3.92 * values.std(ddof=1) / seeds**0.5
    assert high - low == pytest.approx(expected, rel=0.15)


SURE, DOUBTFUL = [0.02, 0.021, 0.022, 0.02], [0.02, -0.02, 0.01, -0.01]


@pytest.mark.parametrize(
    "gains, sign, verdict",
    [(SURE, 1, "helps"), (SURE, -1, "harms"), (DOUBTFUL, 1, "open")],
)
def test_the_verdict_is_the_decided_one(prepared, tmp_path, gains, sign, verdict):
    signed = [sign * gain for gain in gains]
    facts = facts_of(prepared, tmp_path, {"sslam": signed, "phase1": SURE})
    assert facts["verdict"] == verdict
    by_seed = facts["probes"]["linear"]["primary"]["by_seed"]
    assert list(by_seed.values()) == pytest.approx([100 * sign * g for g in gains])


@pytest.mark.parametrize("gains, passed", [(SURE, True), (DOUBTFUL, False)])
def test_the_gate_asks_for_more_than_the_seeds_spread(
    prepared, tmp_path, gains, passed
):
    facts = facts_of(prepared, tmp_path, {"phase1": gains, "sslam": SURE})
    assert facts["gate"]["passed"] is passed
    assert facts["verdict"] == ("helps" if passed else "void")


def facts_of(prepared, records, gains):
    """The report's facts of encoders with such gains by seed over the others."""
    design = toy_design() | {"seeds": [1, 2, 3, 4]}
    run = evidence.Run(design, prepared)
    run.records = records
    for index, seed in enumerate(design["seeds"]):
        for model in ("random", "phase1", "phase1_more", "sslam"):
            gain = gains[model][index] if model in gains else 0.0
            fake_record(run, model, seed, gain, "aaa")
    return collect(run.all_records(), run.plan, design)


@pytest.mark.slow
def test_the_whole_experiment_runs_without_hosts_and_goes_on(corpus, tmp_path):
    """Twice: the second run finds everything on record."""
    design = toy_design()
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(design))
    words = ["--data", corpus, "--design", path, "--out", tmp_path, "--jobs", 2]
    hosts = "espnet2 espnet s3prl transformers".split()
    # read by every Python process, those of the jobs too
    block = BLOCK.replace(repr(BLOCKED), repr(hosts))
    assert repr(hosts) in block
    (tmp_path / "sitecustomize.py").write_text(block)
    paths = f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"

    def run(*more):
        command = [sys.executable, BENCHMARKS / "evidence.py", *words, *more]
        done = subprocess.run(
            [str(word) for word in command],
            capture_output=True,
            text=True,
            timeout=550,
            env=os.environ | {"PYTHONPATH": paths},
        )
        assert done.returncode == 0, done.stderr
        return done.stderr

    stopped = run("--hours", 1e-9, "--models", "sslam", "--seeds", 1)
    assert "seed 1, phase1: stopped, no time left" in stopped
    run()
    report = (tmp_path / "EVIDENCE.md").read_text()
    records = sorted((tmp_path / "evidence/records").glob("*.json"))
    assert len(records) == 2 * len(evidence.models(design))
    one = json.loads(records[0].read_text())
    assert {"date", "commit", "device", "seconds_training"} <= one.keys()
    assert records[0].stat().st_size < 30_000
    assert "| SSLAM | 2 |" in report
    assert (tmp_path / "evidence/evidence.png").stat().st_size > 10_000
    before = {path: path.stat().st_mtime for path in records}
    assert "everything is on record" in run()
    assert {path: path.stat().st_mtime for path in records} == before
    assert (tmp_path / "EVIDENCE.md").read_text() == report
