"""What s3prl lacks is filled in where it is missing, and what would fail in silence."""

import argparse
import json
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile
import torch

from espnet2_sslam.integrations.s3prl import compat
from tests.corpus_case import noise

SUPERB_EFFECTS = [["channels", "1"], ["rate", "16000"], ["gain", "-3.0"]]


@pytest.fixture
def wav(tmp_path):
    """A mono file at 16 kHz."""
    soundfile.write(tmp_path / "clip.wav", noise(16000), 16000)
    return str(tmp_path / "clip.wav")


def test_superbs_effects_are_a_mix_a_resampling_and_a_gain(tmp_path, wav):
    wave, rate = compat.apply_effects_file(wav, SUPERB_EFFECTS)
    assert (rate, wave.shape) == (16000, (1, 16000))
    samples, _ = soundfile.read(wav)
    assert np.abs(wave[0].numpy() - samples * 10**-0.15).max() < 1e-7
    tone = np.stack([np.sin(2000 * np.arange(8000) / 8000), np.zeros(8000)], 1)
    soundfile.write(tmp_path / "stereo.wav", tone, 8000)
    wave, rate = compat.apply_effects_file(tmp_path / "stereo.wav", SUPERB_EFFECTS[:2])
    expected = 0.5 * np.sin(2000 * np.arange(16000) / 16000)
    assert (rate, wave.shape) == (16000, (1, 16000))
    assert np.abs(wave[0].numpy() - expected)[200:-200].max() < 1e-3


@pytest.mark.parametrize("rate, error", [(16000, 1e-7), (8000, 1e-4), (44100, 1e-4)])
def test_effects_are_those_of_libsox_where_it_is_installed(tmp_path, rate, error):
    sox = pytest.importorskip("torchaudio.sox_effects")
    if sox.apply_effects_file is compat.apply_effects_file or not compat._works(
        sox.effect_names
    ):
        pytest.skip("torchaudio finds no libsox.so here")
    stereo = np.stack([np.sin(np.arange(rate) / 20), noise(rate)], 1) / 4
    soundfile.write(tmp_path / "clip.wav", stereo, rate)
    path = str(tmp_path / "clip.wav")
    expected, _ = sox.apply_effects_file(path, SUPERB_EFFECTS)
    wave, _ = compat.apply_effects_file(path, SUPERB_EFFECTS)
    assert (wave - expected).abs()[:, 200:-200].max() < error


def test_effects_stay_in_range_and_those_of_libsox_alone_are_named():
    loud, _ = compat.apply_effects_tensor(
        torch.tensor([[0.9, -0.9]]), 16000, [["gain", "9"]]
    )
    assert loud.tolist() == [[1.0, -1.0]]
    with pytest.raises(ValueError, match=r"SoX effect 'silence.*libsox"):
        compat.apply_effects_tensor(torch.zeros(1, 9), 16000, [["silence", "1"]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.int16])
def test_a_saved_wav_keeps_its_samples(tmp_path, dtype):
    wave = torch.from_numpy(noise(4000, channels=2)).T
    if dtype == torch.int16:
        wave = (wave * 32767).to(dtype)
    path = str(tmp_path / "clip.wav")
    compat.save(path, wave, 16000)
    back, rate = compat.load(path)
    expected = wave / 32768 if dtype == torch.int16 else wave
    assert rate == 16000 and torch.equal(back, expected)
    part, _ = compat.load(path, frame_offset=100, num_frames=50)
    assert torch.equal(part, expected[:, 100:150])
    about = compat.info(path)
    assert (about.sample_rate, about.num_frames, about.num_channels) == (16000, 4000, 2)


def test_standins_are_seen_by_s3prl_only_and_fail_when_used(monkeypatch):
    compat.fill()
    monkeypatch.setitem(compat.OPTIONAL, "not_here", ("inner",))
    monkeypatch.setattr(compat, "_absent", ["not_here"])
    module = ModuleType("s3prl.made_up")
    with compat.executing(module):
        exec(
            "import not_here\nfrom not_here.inner import Tool\n"
            "class Own(Tool): pass\ndef table(x: not_here.Table): pass",
            vars(module),
        )
    assert "not_here" not in sys.modules
    for use in (module.Tool, module.Own, lambda: module.not_here.Table.read("x")):
        with pytest.raises(ImportError, match=r"needs not_here\..*install not_here"):
            use()


def test_everything_that_s3prl_calls_is_there_after_filling_in(tmp_path, wav, capsys):
    import huggingface_hub
    import torchaudio

    assert compat.fill() == compat.fill()
    assert capsys.readouterr().err.count("fills in for s3prl") <= 1
    torchaudio.set_audio_backend("sox_io")
    assert torchaudio.info(wav).num_frames == 16000
    clip, _ = torchaudio.load(wav)
    torchaudio.save(str(tmp_path / "copy.wav"), clip, sample_rate=16000)
    assert torch.equal(torchaudio.load(str(tmp_path / "copy.wav"))[0], clip)
    louder, _ = torchaudio.sox_effects.apply_effects_file(wav, SUPERB_EFFECTS)
    assert torch.allclose(louder, clip * 10**-0.15, atol=1e-6)
    for name in ("HfFolder", "Repository"):
        with pytest.raises(ImportError, match=rf"no .*{name}.*upload"):
            getattr(huggingface_hub, name)("x")
    with pytest.raises(ImportError, match=r"upload"):
        huggingface_hub.HfFolder.get_token()
    torch.save({"Args": argparse.Namespace(device="cpu")}, tmp_path / "states.ckpt")
    assert torch.load(tmp_path / "states.ckpt")["Args"].device == "cpu"
    distance = compat.standins("editdistance")["editdistance"].eval
    assert (distance("kitten", "sitting"), distance([1, 2], [])) == (3, 2)
    Writer = compat.standins("tensorboardX")["tensorboardX"].SummaryWriter
    with Writer(str(tmp_path / "log")) as writer:
        writer.add_scalar("loss", 1.0, global_step=1)
    assert list((tmp_path / "log").iterdir())


def test_s3prls_zero_loss_of_impossible_clips_becomes_an_error():
    class Task:
        def __init__(self):
            self.criterion = torch.nn.CTCLoss(zero_infinity=True)

    def loss(criterion, steps, labels):
        logits = torch.zeros(steps, 8, 5).log_softmax(-1)
        lengths = torch.full((8,), steps), torch.tensor([len(labels)] * 8)
        return criterion(logits, torch.tensor([labels] * 8), *lengths)

    assert loss(Task().criterion, 4, [1, 2, 3, 4, 1]) == 0  # the trap
    module = ModuleType("s3prl.task.speech2text_ctc_task")
    module.Speech2TextCTCTask = Task
    for _ in range(2):
        compat.guard(module)
    criterion = Task().criterion
    assert loss(criterion, 8, [1, 1, 2, 2]) > 0
    assert loss(criterion, 4, [1, 1, 2, 2]) == 0  # half of all: a warning
    with pytest.raises(ValueError, match=r"16 of the first 24.*4 labels, 4 frames"):
        loss(criterion, 4, [1, 1, 2, 2])
    with pytest.raises(ValueError, match=r"8 of the first 8 "):  # all that there are
        loss(Task().criterion, 4, [1, 1, 2, 2])


def resampling(fails=False):
    """A module like s3prl's HEAR helper, guarded; its function counts its calls."""
    module = ModuleType("s3prl.problem.common._hear_util")
    module.calls = []
    module.Parallel = dict

    def resample_hear_corpus(task_dir, target_sr=16000, num_workers=6):
        module.calls.append(task_dir)
        target = Path(task_dir) / str(target_sr) / "fold00"
        target.mkdir(parents=True)
        names = [p.name for p in (Path(task_dir) / "48000" / "fold00").iterdir()]
        (target / names[0]).touch()
        time.sleep(0.1)
        if fails:
            raise OSError("disk full")
        (target / names[1]).touch()

    module.resample_hear_corpus = resample_hear_corpus
    compat.guard(module)
    return module


@pytest.fixture
def corpus(tmp_path):
    """Two clips of a HEAR corpus."""
    (tmp_path / "48000" / "fold00").mkdir(parents=True)
    for name in "ab":
        (tmp_path / "48000" / "fold00" / f"{name}.wav").touch()
    (tmp_path / "fold00.json").write_text(json.dumps({"a.wav": ["x"]}))
    return tmp_path


def test_a_failed_resampling_leaves_nothing_that_the_next_run_would_trust(corpus):
    with pytest.raises(OSError, match=r"disk full"):
        resampling(fails=True).resample_hear_corpus(corpus)
    assert not (corpus / "16000").exists()
    module = resampling()
    for _ in range(2):
        module.resample_hear_corpus(corpus)
    assert len(module.calls) == 1 and len(list(corpus.glob("16000/fold00/*"))) == 2
    assert not [path for path in corpus.glob(".*") if path.is_dir()]
    assert module.Parallel() == {"backend": "threading"}


def test_folds_that_run_side_by_side_resample_once(corpus):
    modules = [resampling() for _ in range(4)]
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda module: module.resample_hear_corpus(corpus), modules))
    assert sum(len(module.calls) for module in modules) == 1


def test_a_resampled_corpus_needs_neither_its_source_nor_a_writable_folder(corpus):
    resampling().resample_hear_corpus(corpus)
    shutil.rmtree(corpus / "48000")
    corpus.chmod(0o500)
    resampling().resample_hear_corpus(corpus)
    corpus.chmod(0o700)
    shutil.rmtree(corpus / "16000")
    with pytest.raises(ValueError, match=r"neither 16000/ nor 48000/"):
        resampling().resample_hear_corpus(corpus)


def test_a_half_resampled_corpus_of_unknown_origin_is_refused(corpus):
    (corpus / "16000" / "fold00").mkdir(parents=True)
    (corpus / "16000" / "fold00" / "a.wav").touch()
    with pytest.raises(ValueError, match=r"lacks 1 of 2 files.*b.wav: delete"):
        resampling().resample_hear_corpus(corpus)
