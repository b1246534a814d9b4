"""SSLAM on recordings: passes, chunks, time steps, threads, memory."""

import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile
import torch

from espnet2_sslam.config import POOLINGS
from espnet2_sslam.inference.jobs import Backbone
from tests.inference_case import (
    classifier,
    clip_scores,
    difference,
    encoder,
    forward,
    noise,
    sslam,
    tokens,
)

RATE = 16_000
PASS = 320 * 160  # samples of a pass of 320 frames
LONG = [
    400,
    16_208,
    PASS + 239,
    PASS + 240,
    PASS + 399,
    PASS + 400,
    3 * PASS + 240,
    3 * PASS + 9_000,
]
BORDERS = [PASS + 240 + 160 * frames + more for frames in (1, 12) for more in (-1, 0)]


def readers():
    return [t for t in threading.enumerate() if t.name.startswith("sslam-reader")]


@pytest.mark.parametrize("samples", LONG)
def test_recordings_equal_what_the_encoder_makes_of_them_in_chunks(samples):
    clip = noise(samples / RATE)
    model = sslam(encoder(max_frames=320))
    state = tokens(model.encoder, clip)
    expected = {"mean": state[1:].mean(0), "cls": state[0]}
    expected["frames"] = forward(model.encoder, clip)
    for pooling, values in expected.items():
        embedded = model.embed(clip, rate=RATE, pooling=pooling)
        assert difference(embedded, values) < 1e-4


@pytest.mark.parametrize("samples", [*LONG, *BORDERS])
def test_finer_steps_of_recordings_are_the_encoders(samples):
    clip = noise(samples / RATE)
    model = sslam(encoder(max_frames=320, time_shifts=4))
    others = [(noise(1.0), RATE), (noise(0.3), RATE)]
    result, *_ = model.embed_files([(clip, RATE), *others], pooling="frames")
    frames = (samples - 400) // 160 + 1
    assert result.starts == pytest.approx(np.arange(-(-frames // 4)) * 0.04)
    assert result.ends == pytest.approx([*result.starts[1:], samples / RATE])
    assert difference(result.values, forward(model.encoder, clip)) < 1e-4
    whole = sslam(encoder(max_frames=320))
    for pooling in ("mean", "cls"):  # of a clip: those of the first pass
        one, other = (m.embed(clip, rate=RATE, pooling=pooling) for m in (model, whole))
        assert np.array_equal(one, other)
    [tokens] = model.embed([(clip, RATE)], pooling="tokens")
    assert len(tokens) == 1 + 8 * len(result.values)


def test_finer_steps_of_windows_begin_with_each_window():
    clip, model = noise(2.5), sslam(encoder(time_shifts=2))
    [result] = model.embed_files([(clip, RATE)], pooling="frames", chunk=1.0)
    wanted = [forward(model.encoder, clip[a : a + RATE]) for a in (0, RATE, 2 * RATE)]
    assert difference(result.values, np.concatenate(wanted)) < 1e-4
    assert result.starts[13:15] == pytest.approx([1.0, 1.08])
    fixed = sslam(encoder(target_frames=320, time_shifts=2))
    short = noise(1.0)
    [result] = fixed.embed_files([(short, RATE)], pooling="frames")
    assert result.starts == pytest.approx(np.arange(13) * 0.08)
    assert difference(result.values, forward(fixed.encoder, short)[:13]) < 1e-4


@pytest.mark.parametrize("bucketed", [False, True])
def test_finer_steps_do_not_depend_on_the_batch_on_any_device(bucketed):
    model = encoder(time_shifts=4)
    backbone = Backbone(model, torch.device("cpu"), "float32", bucketed=bucketed)
    clips = [noise(0.01 * n, seed=n) for n in (7, 19, 101, 313)]
    with torch.no_grad():
        out = backbone.encode(clips, -1, 4)
    for clip, states, steps in zip(clips, out.last, out.steps, strict=True):
        grid = states[1 : 1 + 8 * int(steps)].unflatten(0, (-1, 8)).mean(1)
        assert difference(grid.numpy(), forward(model, clip)) < 1e-4


@pytest.mark.parametrize("weighted_layers", [False, True])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_tags_of_short_and_long_recordings_equal_the_classifiers(
    pooling, weighted_layers
):
    weighted_layers = weighted_layers and pooling != "gated"  # it is, anyway
    options = {"weighted_layers": weighted_layers, "max_frames": 320}
    model = sslam(classifier(pooling, **options))
    for samples in LONG:
        clip = noise(samples / RATE)
        [result] = model.tag_files([(clip, RATE)])
        assert difference(result.values[0], clip_scores(model.model, clip)) < 1e-4


@pytest.mark.parametrize(
    "seconds, chunk, hop, spans",
    [
        (4.0, 1.0, None, [(0, 1), (1, 2), (2, 3), (3, 4)]),
        (2.5, 1.0, None, [(0, 1), (1, 2), (2, 2.5)]),
        (2.02, 1.0, None, [(0, 1), (1, 2)]),  # 20 ms are too short for a row
        (2.025, 1.0, None, [(0, 1), (1, 2), (2, 2.025)]),
        (2.0, 1.0, 0.5, [(0, 1), (0.5, 1.5), (1, 2)]),
        (2.2, 1.0, 0.5, [(0, 1), (0.5, 1.5), (1, 2), (1.5, 2.2)]),
        (5.0, 1.0, 2.0, [(0, 1), (2, 3), (4, 5)]),
        (4.5, 1.0, 2.0, [(0, 1), (2, 3), (4, 4.5)]),
        (4.0, 1.0, 2.0, [(0, 1), (2, 3)]),
        (0.3, 1.0, None, [(0, 0.3)]),
        (9.0, 8.0, None, [(0, 8), (8, 9)]),  # longer than a pass
    ],
)
def test_chunks_have_their_times_and_are_encoded_as_clips(seconds, chunk, hop, spans):
    model = sslam(classifier("mean", max_frames=320))
    clip = noise(seconds)
    files = [(clip, RATE)]
    [embedded] = model.embed_files(files, chunk=chunk, hop=hop)
    [tagged] = model.tag_files(files, chunk=chunk, hop=hop)
    for result in (embedded, tagged):
        times = np.stack([result.starts, result.ends], 1)
        np.testing.assert_allclose(times, spans, atol=1e-9)
        assert result.duration == seconds
    assert embedded.values.shape == (len(spans), 24)
    for row, (start, end) in enumerate(spans):
        part = clip[round(start * RATE) : round(end * RATE)]
        wanted = tokens(model.encoder, part)[1:].mean(0)
        assert difference(embedded.values[row], wanted) < 1e-4
        assert difference(tagged.values[row], clip_scores(model.model, part)) < 1e-4
    [frames] = model.embed_files(files, chunk=chunk, hop=hop, pooling="frames")
    steps = []
    for start, end in spans:  # 160 ms each, the last one to the end of its chunk
        count = -(-(round((end - start) * RATE - 240) // 160) // 16)
        steps += [
            [start + 0.16 * step, start + 0.16 * (step + 1)] for step in range(count)
        ]
        steps[-1][1] = end
    np.testing.assert_allclose(np.stack([frames.starts, frames.ends], 1), steps)
    start, end = (round(time * RATE) for time in spans[-1])
    last = forward(model.encoder, clip[start:end])
    assert difference(frames.values[-len(last) :], last) < 1e-4
    assert model.embed(clip, rate=RATE, chunk=chunk, hop=hop).shape == (len(spans), 24)


def test_a_fixed_clip_length_pads_short_clips_and_cuts_long_ones(caplog):
    model = sslam(classifier("mean", target_frames=320))
    short, long = noise(1.0), noise(8.0)
    for clip in (short, long):
        wanted = forward(model.encoder, clip)
        assert difference(model.embed(clip, rate=RATE), wanted.mean(0)) < 1e-5
        [result] = model.tag_files([(clip, RATE)])
        assert difference(result.values[0], clip_scores(model.model, clip)) < 1e-5
    assert result.ends[0] == 3.2 and result.duration == 8.0
    frames = model.embed(short, rate=RATE, pooling="frames")  # padding is no time
    assert difference(frames, forward(model.encoder, short)[:7]) < 1e-5
    assert len(caplog.records) == 1 and "only the first 3.20 s" in caplog.text
    [result] = model.embed_files([(long, RATE)], chunk=3.2)
    assert result.ends == pytest.approx([3.2, 6.4, 8.0]) and len(caplog.records) == 1
    last = forward(model.encoder, long[round(6.4 * RATE) :]).mean(0)
    assert difference(result.values[2], last) < 1e-5
    [result] = model.embed_files([(noise(10.0), RATE)], chunk=8.0, hop=1.0)
    assert list(result.starts) == [0, 1, 2]  # the third reaches the end
    assert result.ends == pytest.approx([3.2, 4.2, 5.2])


@pytest.mark.parametrize("seconds", [0.025, 0.1, 0.77, 3.0])
@pytest.mark.parametrize(
    "resolution, window", [(0.16, None), (0.16, 0.16), (0.04, 0.4)]
)
@pytest.mark.parametrize("pooling", ["cls", "mean", "prototypes", "gated"])
def test_time_steps_are_scored_by_windows_around_them(
    seconds, resolution, window, pooling
):
    model = classifier(pooling)
    clip = noise(seconds)
    options = {"resolution": resolution, "window": window}
    [result] = sslam(model).tag_frames([(clip, RATE)], **options)
    shifts = round(0.16 / resolution)  # the other way to ask for it
    fine = sslam(classifier(pooling, time_shifts=shifts))
    [same] = fine.tag_frames([(clip, RATE)], window=window)
    assert np.array_equal(same.values, result.values)
    assert np.array_equal(same.starts, result.starts)
    frames = (len(clip) - 400) // 160 + 1
    assert len(result.values) == -(-frames // round(resolution * 100))
    assert result.starts == pytest.approx(np.arange(len(result.values)) * resolution)
    assert result.ends[-1] == len(clip) / RATE
    half = (window or 1.0) / 2
    for row in (0, len(result.values) // 2, len(result.values) - 1):
        middle = (row + 0.5) * resolution
        first = max(0, round((middle - half) * RATE))
        part = clip[first : round((middle + half) * RATE)]
        assert difference(result.values[row], clip_scores(model, part)) < 1e-5


def test_closing_or_losing_the_iterator_ends_the_threads():
    model = sslam(batch_seconds=1.0)
    for end in (lambda results: results.close(), lambda results: None):
        results = model.embed_files((noise(1.0), RATE) for _ in iter(int, 1))  # endless
        assert next(results).index == 0 and readers()
        end(results)
        del results
        assert not readers()


def test_reading_ahead_is_bounded_and_an_error_of_the_list_comes_after_its_files():
    taken = []

    def files(count):
        for number in range(count):
            taken.append(number)
            yield noise(1.0), RATE
        raise RuntimeError("the list is broken")

    results = sslam(batch_seconds=2.0).embed_files(files(2_000))
    next(results)
    time.sleep(0.2)
    assert len(taken) <= 2 * (4 * 2) + 4  # gathered, read ahead, in the threads' hands
    results.close()
    results = sslam().embed_files(files(1))
    assert next(results).error is None
    with pytest.raises(RuntimeError, match="the list is broken"):
        next(results)
    assert not readers()


def test_thousands_of_files_come_out_in_order_and_leave_nothing_behind():
    model = sslam(encoder(depth=1, embed_dim=8), batch_seconds=2.0)
    clip = noise(0.1)
    lengths = [1_600, 800, 399] * 800  # the last ones are too short
    results = model.embed_files((clip[:length], RATE) for length in lengths)
    tracemalloc.start()
    try:
        for number, (result, length) in enumerate(zip(results, lengths, strict=True)):
            assert result.index == number
            assert (result.error is None) == (length >= 400)
            assert result.error or result.ends[0] == length / RATE
            if number == 500:
                before = tracemalloc.get_traced_memory()[0]
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 200_000  # bytes: not 110 per file


def test_threads_may_share_a_model():
    model = sslam()
    clips = [noise(0.5, seed=seed) for seed in range(20)]
    expected = model.embed(clips, rate=RATE)
    with ThreadPoolExecutor(4) as pool:
        for values in pool.map(lambda _: model.embed(clips, rate=RATE), range(4)):
            assert difference(values, expected) < 1e-5


ENDLESS = """
import numpy as np
from tests.inference_case import noise, sslam
clip = noise(1.0), 16_000
results = sslam(batch_seconds=1.0).embed_files(clip for _ in iter(int, 1))
print(next(results).index, flush=True)
"""


def python(code, **options):
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.mark.slow
def test_an_open_iterator_does_not_keep_the_interpreter_from_ending():
    out, err = python(ENDLESS).communicate(timeout=60)
    assert (out, err) == ("0\n", "")


@pytest.mark.slow
def test_ctrl_c_ends_the_run():
    process = python(ENDLESS + "for _ in results: pass")
    assert process.stdout.readline() == "0\n"
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert err.strip().endswith("KeyboardInterrupt") and process.returncode != 0


PEAK = """
import resource, sys
import torch
torch.set_num_threads(1)
from tests.inference_case import classifier, sslam
model = sslam(classifier("mean", embed_dim=16, depth=1))
path = sys.argv[1]
[result] = model.embed_files([path])
assert result.values.shape == (1, 16) and result.ends[0] == result.duration
[result] = model.tag_files([path], chunk=10.0)
assert len(result.values) == round(result.duration / 10.0)
print(result.duration, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_three_hours_need_less_than_two_gibibytes(tmp_path):
    path = tmp_path / "long.flac"
    minute = np.round(noise(60.0, 8_000) * 500).astype(np.int16)
    with soundfile.SoundFile(path, "w", 8_000, 1, "PCM_16") as file:
        for _ in range(180):
            file.write(minute)
    code = PEAK.replace("sys.argv[1]", repr(str(path)))
    out, err = python(code).communicate(timeout=500)
    assert not err, err
    duration, peak = out.split()
    assert float(duration) == 3 * 3_600
    print(f"peak {int(peak) / 2**20:.2f} GiB")
    assert int(peak) < 2 * 2**20  # KiB
