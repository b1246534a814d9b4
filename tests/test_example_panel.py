"""The example `panel.py` shows what the model really computes."""

import numpy as np
import pytest
import soundfile
import torch
import yaml

from espnet2_sslam.checkpoint import load_pretrain_model
from espnet2_sslam.encoder import SSLAMEncoder
from espnet2_sslam.pretrain_model import SSLAMPretrainModel
from espnet2_sslam.units import PATCH_SIZE
from examples.panel import compute_panel, main
from tests.corpus_case import error_line

ENCODER = {"embed_dim": 16, "depth": 1, "num_heads": 2}
ENCODER |= {"fbank_mean": -6.0, "fbank_std": 4.0}
DECODER = {"groups": 2, "num_layers": 1}


def write_model(folder, **options):
    """Write a small random model as ESPnet's output directory."""
    torch.manual_seed(0)
    conf = dict(clip_frames=96, clone_batch=2, decoder_conf=DECODER, **options)
    model = SSLAMPretrainModel(SSLAMEncoder(**ENCODER), **conf)
    folder.mkdir()
    torch.save(model.state_dict(), folder / "latest.pth")
    config = {"input_size": 1, "encoder_conf": ENCODER, "model_conf": conf}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def noise_clips(*samples):
    """Return clips of noise at several levels."""
    rng = np.random.default_rng(0)
    return [0.1 * (i + 1) * rng.standard_normal(n) for i, n in enumerate(samples)]


def test_panel_of_a_mixture_agrees_with_the_patch_loss(tmp_path):
    model = load_pretrain_model(
        write_model(tmp_path / "m", mixture=True, streams="mixed")
    )
    clips = noise_clips(16_000, 14_000)
    panel = compute_panel(model, clips, seed=3)
    hidden = ~np.isnan(panel.error)
    assert (hidden == panel.mask).all()
    unmixed = np.repeat(panel.unmixed, PATCH_SIZE)
    assert (panel.mixture[unmixed] == panel.clip[unmixed]).all()
    assert (panel.mixture[~unmixed] != panel.clip[~unmixed]).any()
    assert panel.frames == 98 - 2  # cut to clip_frames
    # The mean over all rows of the model's own loss is the mean over such panels.
    waves = [torch.from_numpy(clip).float() for clip in clips]
    speech = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
    lengths = torch.tensor([16_000, 14_000])
    draws = model.draw(2, torch.Generator().manual_seed(3))
    unmixed_fbank, mixed = model.student_inputs(speech, lengths, draws)
    with torch.no_grad():
        targets = model.make_targets(unmixed_fbank, mixed, draws)
        predicted = model.predict(mixed, draws)
    rows = predicted.patch[0] - targets.patch[0][predicted.hidden_index[0]]
    expected = rows.square().sum() / (len(rows) * rows.shape[-1] ** 0.5)
    assert np.nanmean(panel.error) == pytest.approx(float(expected), rel=1e-5)


def test_phase_1_has_no_mixture_and_takes_one_clip(tmp_path):
    model_dir = write_model(tmp_path / "m")
    [clip] = noise_clips(12_000)
    panel = compute_panel(load_pretrain_model(model_dir), [clip])
    assert panel.mixture is None and panel.frames == 73
    soundfile.write(tmp_path / "a.wav", clip, 16_000)
    options = {"model_dir": model_dir, "wav": tmp_path / "a.wav"}
    options["output"] = tmp_path / "panel.png"
    main([str(word) for k, v in options.items() for word in (f"--{k}", v)])
    assert (tmp_path / "panel.png").read_bytes().startswith(b"\x89PNG")


def test_one_file_for_a_model_of_mixtures_is_an_error(tmp_path, capsys):
    model_dir = write_model(tmp_path / "m", mixture=True)
    words = ["--model_dir", model_dir, "--wav", tmp_path / "a.wav"]
    assert "give two audio files, got one" in error_line(main, capsys, *words)
