"""The picture shows each sound where it is, whatever the recording is like."""

import re

import matplotlib
import numpy as np
import pytest
import soundfile
import torch

from espnet2_sslam.audio import read_audio
from espnet2_sslam.features import kaldi_fbank
from espnet2_sslam.inference.plot import (
    LABEL_COLUMNS,
    Spectrogram,
    draw_timeline,
    make_timeline,
    mel_position,
    read_spectrogram,
    save_picture,
    time_ticks,
)

CLASSES = ["Dog", "Rain", "Siren"]


def _tone(path, frequency, seconds=1.0, rate=16_000, before=0.0):
    """A file with a tone, after some silence."""
    time = np.arange(int(seconds * rate)) / rate
    wave = 0.5 * np.sin(2 * np.pi * frequency * time)
    soundfile.write(path, np.r_[np.zeros(int(before * rate)), wave], rate)
    return path


def _picture(seconds=2.0, columns=50):
    level = np.linspace(-80, 0, 128 * columns).reshape(128, columns)
    return Spectrogram(level, np.linspace(0, seconds, columns + 1))


def _steps(count, step=0.16):
    starts = np.arange(count) * step
    return starts, starts + step


def test_the_spectrogram_is_that_of_the_whole_file(tmp_path):
    path = tmp_path / "noise.wav"
    wave = np.random.default_rng(0).standard_normal(3 * 16_000) * 0.1
    soundfile.write(path, wave, 16_000)
    spectrogram = read_spectrogram(path)
    whole, _ = kaldi_fbank(torch.from_numpy(read_audio(path))[None])
    expected = whole[0].double().numpy().T * 10 / np.log(10)
    np.testing.assert_allclose(spectrogram.level, expected - expected.max(), atol=0.02)
    assert spectrogram.edges[0] == 0 and spectrogram.edges[-1] == 3.0


@pytest.mark.parametrize("frequency", [125, 1000, 7000])
def test_a_long_recording_has_few_columns_and_its_energy(
    tmp_path, monkeypatch, frequency
):
    path = _tone(tmp_path / "tone.wav", frequency, seconds=5.0, before=7.3)
    exact = read_spectrogram(path)
    monkeypatch.setattr("espnet2_sslam.inference.plot.MAX_COLUMNS", 40)
    coarse = read_spectrogram(path)
    assert exact.level.shape[1] > 1200 and 20 < coarse.level.shape[1] <= 40
    assert exact.level[:, :700].max() < -60  # silence is dark
    for picture, width in ((exact, 0.03), (coarse, 0.33)):
        power = 10 ** (picture.level.max(0) / 10)
        onset = picture.edges[np.argmax(power > 0.5)]
        assert onset == pytest.approx(7.3, abs=width)
        assert picture.edges[-1] == pytest.approx(12.3)
        loudest = picture.level[:, -5:-1].mean(1).argmax() + 0.5
        assert abs(loudest - mel_position(frequency)) < 2


def test_labels_are_drawn_in_the_order_asked_for():
    scores = np.array([[0.1, 0.5, 0.2]])
    labels = ["Rain", "Dog"]
    timeline = make_timeline(scores, *_steps(1), CLASSES, 1, 0.16, labels=labels)
    assert timeline.labels == labels and timeline.scores[0].tolist() == [0.5, 0.1]


def test_one_short_sound_in_hours_is_seen():
    scores = np.zeros((100_000, 3), np.float32)
    scores[77_777, 1] = 0.8
    timeline = make_timeline(scores, *_steps(100_000), CLASSES, 1, 16_000.0)
    [column] = np.flatnonzero(timeline.scores[:, 0])
    assert timeline.labels == ["Rain"]
    assert column == int(77_777 / 100_000 * LABEL_COLUMNS)


def test_overlapping_windows_are_drawn_where_they_are_nearest_and_gaps_are_empty():
    scores = np.array([[0.0], [1.0], [0.0], [0.0]])
    starts = np.array([0.0, 5.0, 10.0, 30.0])
    timeline = make_timeline(scores, starts, starts + 10, ["Dog"], 1, 40.0)
    left_out = np.isnan(timeline.scores[:, 0])
    assert left_out.mean() == pytest.approx(0.25, abs=0.01)
    high = np.flatnonzero(timeline.scores[:, 0] == 1.0) * 40 / LABEL_COLUMNS
    assert high[[0, -1]] == pytest.approx([7.5, 12.5], abs=0.1)


@pytest.mark.parametrize(
    "end, second, unit",
    [
        (0.05, "0.05", "s"),
        (119, "15", "s"),
        (300, "0:30", "min:s"),
        (10_800, "0:30", "h:min"),
        (90_000, "4:00", "h:min"),
    ],
)
def test_time_ticks_are_few_clock_times_within_the_recording(end, second, unit):
    places, texts, unit_of_axis = time_ticks(end)
    assert 2 <= len(places) <= 11 and places[0] == 0 and places[-1] <= end * 1.001
    assert len(set(texts)) == len(texts)
    assert (texts[1], unit_of_axis) == (second, unit)


@pytest.mark.parametrize("labels", [1, 12])
def test_no_text_overlaps_another(labels):
    names = [f"Label number {i} of a very long name, and more of it" for i in range(12)]
    scores = np.random.default_rng(0).random((20, 12))
    timeline = make_timeline(scores, *_steps(20), names, labels, 3.2)
    figure = draw_timeline(
        _picture(3.2), timeline, "a file.wav\nmodel: x", "every 0.16 s"
    )
    figure.canvas.draw()
    boxes = [figure._suptitle.get_window_extent()]
    for axis in figure.axes:
        texts = [*axis.get_xticklabels(), *axis.get_yticklabels(), axis.yaxis.label]
        texts += [axis.xaxis.label, axis._left_title]
        boxes += [t.get_window_extent() for t in texts if t.get_text()]
    for number, box in enumerate(boxes):
        assert box.x0 >= 0 and box.y0 >= 0
        assert box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
        assert not any(box.overlaps(other) for other in boxes[number + 1 :])


def test_names_are_shown_as_they_are(tmp_path):
    scores = np.random.default_rng(0).random((20, 3))
    names = ["Dog", "Kosten $5$ & mehr", "Wärme"]
    timeline = make_timeline(scores, *_steps(20), names, 3, 3.2)
    figure = draw_timeline(_picture(3.2), timeline, "a_b$c$.wav\nmodel: m")
    save_picture(figure, tmp_path / "x.svg")
    svg = (tmp_path / "x.svg").read_text(encoding="utf-8")
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    peak = f"Kosten $5$ &amp; mehr  {scores[:, 1].max():.2f}"
    assert {"a_b$c$.wav", "model: m", "level (dB, maximum = 0)", peak} <= {*texts}


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_the_same_picture_has_the_same_bytes_and_global_settings_stay(tmp_path, suffix):
    before = dict(matplotlib.rcParams)
    for name in ("a", "b"):
        figure = draw_timeline(_picture(), None, "title", "no labels")
        save_picture(figure, tmp_path / f"{name}.{suffix}")
    first, second = ((tmp_path / f"{n}.{suffix}").read_bytes() for n in "ab")
    assert first == second and len(first) > 5_000
    assert dict(matplotlib.rcParams) == before
