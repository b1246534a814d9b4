"""SSLAM in the harnesses that compare encoders: HEAR, X-ARES, MTEB; and scikit-learn.

The slow tests run the harness itself, as docs/hosts.md shows it, on few real clips with
the authors' tiny random weights: scores are above chance, and else mean nothing.
"""

import csv
import json
import os
import shlex
import subprocess
import sys
import tarfile
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from espnet2_sslam.bin import sslam
from espnet2_sslam.checkpoint import load_model, save_model
from espnet2_sslam.inference import SSLAM
from espnet2_sslam.integrations import hear
from espnet2_sslam.integrations.xares import XaresEncoder
from examples import features_sklearn
from tests.checkpoint_case import PRETRAIN, small_encoder, unpack
from tests.corpus_case import error_line, real_audio
from tests.inference_case import noise

ROOT = Path(__file__).resolve().parent.parent
CLASSES = 5  # of the 25 that the real clips have


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a small model."""
    return save_model(small_encoder(max_frames=160), tmp_path_factory.mktemp("m") / "m")


def waves(seconds, number=2):
    """Waveforms (B, N)."""
    clips = [noise(seconds, seed=seed) for seed in range(number)]
    return torch.from_numpy(np.stack(clips))


@pytest.mark.parametrize("shifts, seconds", [(1, 2.0), (1, 1.3), (2, 2.0), (4, 4.3)])
def test_hear_times_are_regular_and_none_is_past_the_end(model, seconds, shifts):
    loaded = hear.load_model(model, time_shifts=shifts)
    vectors, times = hear.get_timestamp_embeddings(waves(seconds), loaded)
    assert vectors.shape == (*times.shape, loaded.timestamp_embedding_size)
    assert vectors.dtype == torch.float32 and not vectors.requires_grad
    gaps = times.diff()
    assert (gaps - 160 / shifts).abs().max() < 1e-3
    assert times.min() > 0 and times.max() <= 1000 * seconds
    assert times.max() + gaps.max() + 160 > 1000 * seconds  # the end is not forgotten


@pytest.mark.parametrize("options", [{}, {"freq": "concat"}, {"layer": 1}])
def test_hear_scenes_are_the_mean_over_time(model, options):
    loaded = hear.load_model(model, **options)
    api = SSLAM.from_pretrained(model, device="cpu", **options)
    layer = options.get("layer", -1)
    for clips in waves(1.3), waves(3.0):  # one pass, two
        scenes = hear.get_scene_embeddings(clips, loaded)
        assert scenes.shape == (2, loaded.scene_embedding_size)
        for clip, scene in zip(clips.numpy(), scenes.numpy()):
            steps = api.embed(clip, rate=16_000, pooling="frames", layer=layer)
            np.testing.assert_allclose(scene, steps.mean(0), rtol=1e-4, atol=1e-5)


def test_hear_needs_a_checkpoint():
    with pytest.raises(
        ValueError, match="--model needs a checkpoint's folder, file or"
    ):
        hear.load_model()


@pytest.mark.parametrize("shape", [(2, 50_000), (50_000,), (3, 100)])
@pytest.mark.parametrize("options", [{}, {"time_shifts": 2, "freq": "concat"}])
def test_an_encoder_for_xares_gives_steps_of_its_hop(model, shape, options):
    encoder = XaresEncoder(model, **options)
    steps = encoder(0.1 * torch.randn(shape))
    batch = shape[0] if len(shape) == 2 else 1
    seconds = shape[-1] / encoder.sampling_rate
    hop = encoder.hop_size_in_ms / 1000
    assert steps.shape[::2] == (batch, encoder.output_dim)
    assert abs(steps.shape[1] * hop - seconds) <= 0.16
    assert not steps.requires_grad and not encoder.train().encoder.training


def test_what_a_training_wanted_of_its_encoder_does_not_reach_a_harness(tmp_path):
    stored = small_encoder(target_frames=160)
    encoder = XaresEncoder(save_model(stored, tmp_path / "fixed"))
    assert encoder(torch.randn(1, 16_000)).shape[1] == 7
    assert load_model(tmp_path / "fixed").encoder.config.target_frames == 160


def embed_clips(folder, tmp_path, rows, model):
    """Copy clips into folders named by their class and embed them."""
    for row in rows:
        place = tmp_path / "clips" / row["category"]
        place.mkdir(parents=True, exist_ok=True)
        (place / row["filename"]).symlink_to(folder / row["filename"])
    output = tmp_path / "features.npz"
    sslam.main(["embed", str(model), str(tmp_path / "clips"), "-o", str(output)])
    return output


def made_clips(folder, takes):
    """Clips of two classes, recordings with `takes` clips each; their rows."""
    folder.mkdir()
    rows = []
    for number in range(8):
        for take in range(takes):
            name = f"4-{number}-{take}-{number % 2}.wav"
            pitch = 2 * np.pi * (400 + 10 * number + take)
            tone = 0.3 * np.sin(pitch * np.arange(16_000) / 16_000)
            samples = noise(1.0, seed=2 * number + take) if number % 2 else tone
            soundfile.write(folder / name, samples, 16_000)
            rows.append({"filename": name, "category": ("tone", "noise")[number % 2]})
    return rows


def test_scikit_learn_tells_classes_apart(tmp_path, capsys, model):
    rows = made_clips(tmp_path / "made", takes=2)
    features = embed_clips(tmp_path / "made", tmp_path, rows, model)
    words = ["--recording", "^[0-9]-(.+?)-", "--folds", "4"]
    features_sklearn.main([str(features), *words])
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "16 clips, 8 recordings, 4 folds"
    assert printed[1] == "accuracy 1.000, by chance 0.500"
    assert printed[2:] == ["  1.000 noise", "  1.000 tone"]
    error = error_line(features_sklearn.main, capsys, features, *words[:2])
    assert "two classes of at least 5 recordings each (--folds), got 2, the" in error
    error = error_line(features_sklearn.main, capsys, features, "--recording", "(x)")
    assert "--recording '(x)' does not match the file name 4-" in error


def test_scikit_learn_never_learns_from_a_recording_that_it_is_asked_about():
    """Labels without a reason can only be known by having heard the recording."""
    generator = np.random.default_rng(0)
    recordings = np.repeat(np.arange(40), 4).astype(str)
    classes = np.repeat(generator.permutation(40) % 2, 4).astype(str)
    features = np.repeat(generator.standard_normal((40, 64)), 4, axis=0)
    apart = features_sklearn.predict(features, classes, recordings, 5)
    clips = np.arange(160).astype(str)
    mixed = features_sklearn.predict(features, classes, clips, 5)
    assert (mixed == classes).mean() > 0.9 > 0.75 > (apart == classes).mean()


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """ESC-50's clips of some classes: folder, rows; the authors' tiny model."""
    folder = real_audio("esc50-mini")
    with open(folder / "meta" / "esc50.csv") as file:
        rows = list(csv.DictReader(file))
    kept = sorted({int(row["target"]) for row in rows})[:CLASSES]
    rows = [row for row in rows if int(row["target"]) in kept]
    sources = sorted({row["src_file"] for row in rows})
    for row in rows:  # all are of the official fold 4: new folds, by recording
        row["fold"] = 1 + sources.index(row["src_file"]) % 5
    weights = unpack(PRETRAIN, tmp_path_factory.mktemp("weights"))
    return folder / "audio", rows, weights


def documented(title):
    """Blocks of code of a part of docs/hosts.md: [(language, text)]."""
    text = (ROOT / "docs" / "hosts.md").read_text().split(f"\n### {title}")[1]
    blocks = text.split("\n### ")[0].split("\n## ")[0].split("```")[1::2]
    return [block.partition("\n")[::2] for block in blocks]


def commands(title):
    """Commands of a part of docs/hosts.md, in words."""
    lines = "".join(text for kind, text in documented(title) if kind == "sh")
    return [shlex.split(line) for line in lines.replace("\\\n", "").splitlines()]


def run(words, folder, *places):
    """A command in a folder, with modules from `places`; what it prints."""
    path = os.pathsep.join(map(str, [ROOT, *places, os.environ.get("PYTHONPATH", "")]))
    if words[0] == "python":
        words = [sys.executable, *words[1:]]
    result = subprocess.run(
        [str(word) for word in words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=1000,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


# heareval asks for numpy 1.19 and numba 0.48, which no Python of ours has, both ask for
# tensorflow, only to see whether a model is one of its modules: they run without.
HEAR = "hearvalidator==2021.0.2 heareval==2021.1.3 intervaltree python-slugify"
HEAR += " sortedcontainers text-unidecode click"
TENSORFLOW = "class Module: ...\n"


@pytest.fixture(scope="module")
def hear_packages(tmp_path_factory):
    """A folder with HEAR's packages from pip, and tensorflow's name where it lacks."""
    folder = tmp_path_factory.mktemp("packages")
    words = [sys.executable, "-m", "pip", "install", "--no-deps", "--quiet"]
    words += ["--target", str(folder), *HEAR.split()]
    loaded = subprocess.run(words, capture_output=True, text=True)
    if loaded.returncode:
        pytest.skip(f"pip cannot install HEAR's: {loaded.stderr.splitlines()[-1]}")
    try:
        version("tensorflow")
    except PackageNotFoundError:
        (folder / "tensorflow.py").write_text(TENSORFLOW)
    return folder


def write_hear_task(folder, splits, **metadata):
    """A task as HEAR prepares it; splits {name: {file: (samples, label)}}."""
    labels = set()
    for split, clips in splits.items():
        (folder / "16000" / split).mkdir(parents=True)
        for name, (samples, label) in clips.items():
            soundfile.write(folder / "16000" / split / name, samples, 16_000)
            labels |= {x if isinstance(x, str) else x["label"] for x in label}
        table = {name: label for name, (_, label) in clips.items()}
        (folder / f"{split}.json").write_text(json.dumps(table))
    rows = [f"{index},{label}" for index, label in enumerate(sorted(labels))]
    (folder / "labelvocabulary.csv").write_text("\n".join(["idx,label", *rows]) + "\n")
    metadata |= {"task_name": folder.name, "version": "mini", "splits": list(splits)}
    (folder / "task_metadata.json").write_text(json.dumps(metadata))


def write_hear_tasks(folder, audio, rows):
    """Scenes are whole clips; events are 0.9 s of two of them in soft noise."""
    scenes = {f"fold{fold:02}": {} for fold in range(5)}
    for row in rows:
        samples = soundfile.read(audio / row["filename"], dtype="float32")[0]
        name = row["filename"].replace(".flac", ".wav")
        scenes[f"fold{row['fold'] - 1:02}"][name] = samples, [row["category"]]
    write_hear_task(
        folder / "esc50-mini",
        scenes,
        embedding_type="scene",
        prediction_type="multiclass",
        split_mode="new_split_kfold",
        sample_duration=5.0,
        evaluation=["top1_acc"],
    )
    events, generator = {}, np.random.default_rng(0)
    for number, split in enumerate(["train"] * 8 + ["valid"] * 4 + ["test"] * 4):
        samples, label = 0.001 * noise(5.0, seed=number), []
        for start in generator.uniform([0, 2.5], [1.5, 4.0]):
            row = rows[generator.integers(len(rows))]
            clip = soundfile.read(audio / row["filename"], dtype="float32")[0]
            at = round(start * 16_000)
            samples[at : at + 14_400] += clip[: len(samples[at : at + 14_400])]
            times = {"start": 1000 * start, "end": 1000 * start + 900}
            label.append({"label": row["category"], **times})
        events.setdefault(split, {})[f"{number}.wav"] = samples, label
    write_hear_task(
        folder / "events-mini",
        events,
        embedding_type="event",
        prediction_type="multilabel",
        split_mode="trainvaltest",
        sample_duration=5.0,
        evaluation=["event_onset_200ms_fms"],
    )


@pytest.mark.slow
def test_hears_own_validator_and_embeddings(tmp_path, real, hear_packages):
    audio, rows, weights = real
    write_hear_tasks(tmp_path / "tasks", audio, rows)
    (tmp_path / "models").mkdir()
    folder = save_model(load_model(weights).model, tmp_path / "models" / "sslam")
    validate, embed, _ = commands("HEAR")
    validate[:1] = ["python", "-W", "error:We suggest", "-m", "hearvalidator.validate"]
    printed = run(validate, tmp_path, hear_packages)
    assert (
        "Looks good!" in printed and "Interval between timestamps is 40.0ms" in printed
    )
    run(embed, tmp_path, hear_packages)
    output = tmp_path / "embeddings" / "espnet2_sslam.integrations.hear"
    scenes = output / "esc50-mini"
    api = SSLAM.from_pretrained(folder, device="cpu")
    row = rows[0]
    name = row["filename"].replace(".flac", ".wav")
    found = np.load(scenes / f"fold{row['fold'] - 1:02}" / f"{name}.embedding.npy")
    expected = api.embed(str(audio / row["filename"]))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    dimensions = output / "events-mini" / "test.embedding-dimensions.json"
    clips, width = json.loads(dimensions.read_text())
    assert width == 48 and 4 * (125 - 4) <= clips <= 4 * 125


# X-ARES reads audio by torchaudio.load, which needs torchcodec and FFmpeg by now.
READ = """
import soundfile, torch, torchaudio

def read(file):
    samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
    return torch.from_numpy(samples.T), rate

torchaudio.load = read
"""


@pytest.mark.slow
def test_xares_own_command(tmp_path, real):
    checker = pytest.importorskip("xares.audio_encoder_checker")
    audio, rows, weights = real
    encoder = XaresEncoder(weights)
    assert checker.check_audio_encoder(encoder)
    folder = tmp_path / "env" / "esc50"
    folder.mkdir(parents=True)
    (folder / ".audio_tar_ready").touch()
    for fold in range(1, 6):
        with tarfile.open(folder / f"wds-audio-fold-{fold}-00000.tar", "w") as tar:
            for row in rows:
                if row["fold"] == fold:
                    name = row["filename"]
                    tar.add(audio / name, name)
                    label = json.dumps({"label": int(row["target"])}).encode()
                    member = tarfile.TarInfo(name.replace(".flac", ".json"))
                    member.size = len(label)
                    tar.addfile(member, BytesIO(label))
    (tmp_path / "models").mkdir()
    save_model(load_model(weights).model, tmp_path / "models" / "sslam")
    [code] = [text for kind, text in documented("X-ARES") if kind == "python"]
    (tmp_path / "sslam_encoder.py").write_text(READ + code)
    [command] = commands("X-ARES")
    command = [
        word.replace("src/tasks/*.py", "tasks/esc50_task.py") for word in command
    ]
    printed = run([*command, "--max-jobs", "0"], tmp_path)
    [row] = [line for line in printed.splitlines() if line.startswith("ESC-50 ")]
    mlp, neighbours = map(float, row.split()[1:3])
    assert 0 < mlp <= 1 and 1 / CLASSES < neighbours <= 1
    scores = folder / "checkpoints" / "SSLAMBaseEncoder" / "knn_score.txt"
    assert float(scores.read_text().split()[0]) == pytest.approx(neighbours, abs=1e-5)


@pytest.mark.slow
def test_mtebs_own_evaluation(tmp_path, real, monkeypatch):
    mteb = pytest.importorskip("mteb")
    datasets = pytest.importorskip("datasets")
    audio, rows, weights = real
    clips = []
    for row in rows:
        samples, rate = soundfile.read(audio / row["filename"], dtype="float32")
        clips.append({"array": samples[::2], "sampling_rate": rate // 2})
    clips[0]["array"] = clips[0]["array"][:100]  # 12 ms
    columns = {"audio": clips, "target": [int(row["target"]) for row in rows]}
    task = mteb.get_task("ESC50")
    task.dataset = datasets.DatasetDict(train=datasets.Dataset.from_dict(columns))
    task.data_loaded = True
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    folder = save_model(load_model(weights).model, tmp_path / "models" / "sslam")
    monkeypatch.setattr(mteb, "get_tasks", lambda tasks: [task])
    names = {}
    [code] = [text for kind, text in documented("MTEB") if kind == "python"]
    exec(compile(code, "hosts.md", "exec"), names)
    [scores] = names["results"].task_results
    assert 1 / CLASSES < scores.get_score() <= 1
    from espnet2_sslam.integrations.mteb import model_meta

    meta = names["meta"]
    assert meta.name == "espnet2_sslam/sslam" and meta.embed_dim == 48
    stored = list((tmp_path / "results").rglob("ESC50.json"))
    assert [meta.revision in path.parts for path in stored] == [True]
    other = save_model(small_encoder(), tmp_path / "others" / "sslam")
    assert model_meta(other).revision != model_meta(folder).revision == meta.revision
    loaded = model_meta(folder, pooling="cls").load_model(device="cpu")
    inputs = torch.utils.data.DataLoader(task.dataset["train"].select([1, 0]))
    vectors = loaded.encode(inputs, task_metadata=task.metadata)
    expected = loaded.model.embed((clips[1]["array"], 8_000), pooling="cls")
    assert vectors.shape == (2, 48)
    # MTEB resamples by torchaudio's defaults, ours has a sharper filter
    assert np.abs(vectors[0] - expected).max() < 0.1 * np.abs(expected).max()
    assert "pooling" in loaded.mteb_model_meta.experiment_name


@pytest.mark.slow
def test_scikit_learn_on_real_clips(tmp_path, real, capsys):
    audio, rows, weights = real
    features = embed_clips(audio, tmp_path, rows, weights)
    _, command = commands("scikit-learn")
    features_sklearn.main([str(features), *command[3:], "--folds", "4"])
    first, second = capsys.readouterr().out.splitlines()[:2]
    recordings = len({row["src_file"] for row in rows})
    assert first == f"{len(rows)} clips, {recordings} recordings, 4 folds"
    assert float(second.split()[1].rstrip(",")) > 1.5 / CLASSES


@pytest.mark.parametrize(
    "options",
    [{"freq": "flatten"}, {"upsample": 4}, {"cls_token": True}, {"layer": "all"}],
    ids=str,
)
def test_options_that_give_no_vector_for_each_step_are_refused(model, options):
    for load in (hear.load_model, XaresEncoder):
        with pytest.raises(ValueError, match="one vector for each time step: leave"):
            load(model, **options)
