"""Validated, restartable formatting that leaves nothing out silently."""

import logging
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import kaldiio
import numpy as np
import pytest
import soundfile
import torch

from espnet2_sslam.audio import cut_name, read_audio
from espnet2_sslam.bin.data_report import write_report
from espnet2_sslam.bin.format_audio import main
from espnet2_sslam.corpus import (
    Clip,
    CorpusWriter,
    Format,
    label_vector,
    make_dump,
    read_classes,
    read_sources,
    read_table,
    write_table,
)
from espnet2_sslam.corpus.fbank import fbank_pieces
from espnet2_sslam.features import kaldi_fbank
from espnet2_sslam.store import lock, sha256
from tests.corpus_case import (
    ROOT,
    error_line,
    make_bad,
    make_corpus,
    noise,
    real_audio,
    replace_line,
    task_runner,
)

BAD_KINDS = (
    "missing empty text no_frames one_sample short truncated nan infinity".split()
)
BAD_KINDS += ["truncated.flac", "truncated.mp3", "truncated.ogg"]


def tree(folder):
    """Content of every file below a folder, by relative path; not when it was made."""
    states = re.compile(rb'_state": \[[^]]*|^state .*', re.MULTILINE)
    return {
        path.relative_to(folder).as_posix(): states.sub(b"", path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def problems(dump):
    """Rows of problems.tsv: (split, id, file, reason, action)."""
    lines = (dump / "problems.tsv").read_text().splitlines()
    return [tuple(line.split("\t")) for line in lines[1:]]


def test_dump_holds_every_clip_at_16_khz_mono_16_bit(tmp_path):
    datadir = make_corpus(tmp_path)
    soundfile.write(tmp_path / "audio/toy-train-2.wav", noise(44100, channels=2), 44100)
    make_dump(datadir, tmp_path / "dump")
    for split in ("pretrain/train", "toy/train", "toy/test"):
        wav = read_table(tmp_path / "dump" / split / "wav.scp")
        lengths = read_table(tmp_path / "dump" / split / "utt2num_samples")
        sources = read_table(datadir / split / "wav.scp")
        assert list(wav) == list(sources) == list(lengths)
        for key, path in wav.items():
            info = soundfile.info(path)
            form = (info.samplerate, info.channels, info.subtype)
            assert form == (16000, 1, "PCM_16")
            assert info.frames == int(lengths[key])
            np.testing.assert_allclose(
                read_audio(path), read_audio(sources[key]), atol=2**-16 + 1e-7
            )
    for name in ("downstream.txt", "toy/classes.txt", "toy/train/text"):
        assert (tmp_path / "dump" / name).read_text() == (datadir / name).read_text()
    assert problems(tmp_path / "dump") == []


@pytest.mark.parametrize("feats_type", ["raw", "fbank"])
def test_parallel_equals_serial(tmp_path, feats_type):
    datadir = make_corpus(tmp_path)
    outdir = tmp_path / "dump"
    make_dump(datadir, outdir, feats_type=feats_type, nj=1)
    serial = tree(outdir)
    shutil.rmtree(outdir)
    make_dump(datadir, outdir, feats_type=feats_type, nj=2)
    assert tree(outdir) == serial


@pytest.mark.parametrize("kind", BAD_KINDS)
def test_a_bad_file_is_left_out_and_reported(tmp_path, kind):
    datadir = make_corpus(tmp_path)
    bad = make_bad(tmp_path / "bad", kind)
    replace_line(datadir / "toy/train/wav.scp", "toy-train-3", f"toy-train-3 {bad}")
    summary = make_dump(datadir, tmp_path / "dump", max_bad=0.1)
    assert "30 clips in 5 splits: 29 usable" in summary and "1 left out" in summary
    [(split, key, path, reason, action)] = problems(tmp_path / "dump")
    assert (split, key, path) == ("toy/train", "toy-train-3", str(bad))
    assert reason and action == "left out"
    kept = [f"toy-train-{i}" for i in (0, 1, 2, 4, 5)]
    for name in ("wav.scp", "text", "utt2spk", "utt2num_samples"):
        assert list(read_table(tmp_path / "dump/toy/train" / name)) == kept
    assert read_table(tmp_path / "dump/toy/train/text")["toy-train-4"] == "cat"


def test_silent_clips_are_kept_with_a_warning(tmp_path):
    datadir = make_corpus(tmp_path)
    soundfile.write(tmp_path / "audio/toy-test-0.wav", np.zeros(8000), 16000)
    summary = make_dump(datadir, tmp_path / "dump")
    assert "30 usable, 1 of them with a warning (silent 1)" in summary
    assert problems(tmp_path / "dump")[0][1::3] == ("toy-test-0", "kept")


def test_too_many_bad_files_stop_the_stage_with_one_line(tmp_path, capsys):
    datadir = make_corpus(tmp_path)
    (tmp_path / "audio/toy-train-1.wav").unlink()
    outdir = tmp_path / "dump"
    line = error_line(main, capsys, "--datadir", datadir, "--outdir", outdir)
    assert "1 of 30 clips" in line and "toy-train-1" in line and "missing" in line
    assert "problems.tsv" in line and len(problems(tmp_path / "dump")) == 1
    assert not (tmp_path / "dump" / "downstream.txt").exists()


def test_a_split_without_usable_clips_is_an_error(tmp_path):
    datadir = make_corpus(tmp_path, clips=1)
    (tmp_path / "audio/toy-test-0.wav").write_bytes(b"")
    with pytest.raises(ValueError, match="toy/test"):
        make_dump(datadir, tmp_path / "dump", max_bad=0.9)


@pytest.mark.parametrize(
    "file, old, new, message",
    [
        ("toy/train/wav.scp", "-1", "toy-train-0 x.wav", "'toy-train-0' .*twice"),
        ("toy/train/wav.scp", "-1", "toy-train-1", "no file behind"),
        ("toy/train/wav.scp", "-1", "toy-train-1 cat x |", "a command"),
        ("toy/train/wav.scp", None, "", "empty"),
        ("toy/train/text", "-1", "", "in wav.scp only.*toy-train-1"),
        ("toy/train/text", "-1", "other cat", "toy-train-1"),
        ("toy/train/text", "-1", "toy-train-1 cow", "'toy-train-1': the label 'cow'"),
        ("toy/train/text", "-1", "toy-train-1 cat cat", "same label twice"),
        ("toy/train/text", "-1", "toy-train-1 cat dog", "has 2 labels"),
        ("toy/train/text", "-1", "toy-train-1", "has 0 labels"),
        ("toy/train/utt2spk", "-1", "", "toy-train-1"),
        ("toy/train/segments", None, "x gone 0 1\n", "recording 'gone' is not in"),
        ("toy/train/segments", None, "x toy-train-0 2 1\n", "line 1: .* <start> <end>"),
        ("toy/train/segments", None, "x toy-train-0 2\n", "line 1: .* <start> <end>"),
        ("toy/train/text", None, "toy-train-0 caf\udce9\n", "line 1: no UTF-8 text"),
        ("toy/train/weights", None, "toy-train-0 1.5\n", "5 id.*weights"),
        ("toy/train/weights", None, "toy-train-0 much\n", "'much' is no number"),
        ("toy/classes.txt", "cat", "dog", "'dog' occurs twice"),
        ("toy/classes.txt", None, "", "empty"),
        ("downstream.txt", "toy", "toy multi_class toy/train", "'toy' must read"),
        (
            *("downstream.txt", "toy"),
            *("toy multi_class toy/train toy/valid toy/nope", "toy/nope"),
        ),
    ],
)
def test_wrong_lists_are_named_errors(tmp_path, file, old, new, message):
    datadir = make_corpus(tmp_path)
    if old is None:
        (datadir / file).write_bytes(new.encode(errors="surrogateescape"))
    else:
        replace_line(datadir / file, old.replace("-1", "toy-train-1"), new)
    with pytest.raises(ValueError, match=message):
        make_dump(datadir, tmp_path / "dump")


@pytest.mark.parametrize(
    "content, complaint",
    [
        (b"\xef\xbb\xbfdog\ncat\n", None),
        (b"dog\r\ncat\r\n", None),
        (b"\ndog\n\n  \ncat", None),
        (b" dog \ncat\n", None),
        (b"dog\nbig cat\n", "line 2: the label 'big cat' holds a blank"),
        (b"dog\ncat\ndog\n", "line 3: the label 'dog' occurs twice"),
        (b"\n", "is empty"),
        (None, "is missing"),
    ],
)
def test_a_class_list_of_any_editor_is_read_and_a_wrong_one_named(
    tmp_path, content, complaint
):
    path = tmp_path / "classes.txt"
    if content is not None:
        path.write_bytes(content)
    if complaint is None:
        assert read_classes(path) == ["dog", "cat"]
        return
    with pytest.raises(ValueError) as error:
        read_classes(path)
    assert complaint in str(error.value) and str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_labels_become_a_vector_of_0_and_1():
    index = {"dog": 0, "cow": 1, "cat": 2}
    vector = label_vector(["cat", "dog"], index)
    assert vector.tolist() == [1, 0, 1] and vector.dtype == np.float32
    with pytest.raises(ValueError, match="'bird' is not in the class list"):
        label_vector(["cat", "bird"], index)


def test_wrong_options_are_one_line(tmp_path, capsys):
    assert "prepare the data first" in error_line(
        main, capsys, "--datadir", tmp_path / "data"
    )
    assert "--max_bad" in error_line(main, capsys, "--max_bad", 2)
    assert "true or false" in error_line(main, capsys, "--link_ok", "perhaps")


def stamps(dump):
    """When each formatted file was written, by the name of its source."""
    return {
        path.name[:-17]: path.stat().st_mtime_ns for path in dump.glob("audio/*/*.wav")
    }


def test_a_file_in_several_splits_is_converted_once(tmp_path):
    datadir, dump = make_corpus(tmp_path), tmp_path / "dump"
    key = "pretrain-train-0"
    line = f"{key} {tmp_path}/audio/toy-train-0.wav"
    replace_line(datadir / "pretrain/train/wav.scp", key, line)
    make_dump(datadir, dump)
    assert len(stamps(dump)) == 29
    assert len((dump / "records.jsonl").read_text().splitlines()) == 29
    shared = read_table(dump / "pretrain/train/wav.scp")[key]
    assert shared == read_table(dump / "toy/train/wav.scp")["toy-train-0"]


def same_size(path):
    """Change bytes of a file but neither its size nor its time; whether it differs."""
    path = Path(path)
    before, content = path.stat(), bytearray(path.read_bytes())
    for place in range(len(content) // 2, len(content) // 2 + 8):
        content[place] ^= 0x15
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return path.stat().st_mtime_ns == before.st_mtime_ns


def test_damaged_features_are_made_again(tmp_path):
    datadir, dump = make_corpus(tmp_path), tmp_path / "dump"
    make_dump(datadir, dump, feats_type="fbank")
    before = tree(dump)
    [ark] = dump.glob("feats/*.ark")
    same_size(ark)
    make_dump(datadir, dump, feats_type="fbank")
    assert tree(dump) == before


def test_only_verifying_looks_where_the_state_is_the_same(tmp_path, monkeypatch):
    """A disk that loses bits changes no time."""
    datadir, dump = make_corpus(tmp_path), tmp_path / "dump"
    make_dump(datadir, dump)
    before = tree(dump)
    path = Path(read_table(dump / "toy/train/wav.scp")["toy-train-4"])
    records = dump / "records.jsonl"
    old = records.read_text()
    damaged = path.stat()
    same_size(path)
    now = path.stat().st_ctime_ns
    records.write_text(old.replace(str(damaged.st_ctime_ns), str(now)))
    make_dump(datadir, dump)
    assert tree(dump) != before
    make_dump(datadir, dump, verify=True)
    assert tree(dump) == before


def test_contents_are_the_same_wherever_equal_data_lie(tmp_path):
    hashes = []
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        datadir = make_corpus(tmp_path / place)
        make_dump(datadir, tmp_path / place / "dump")
        write_report(tmp_path / place / "dump", 1)
        files = [*(tmp_path / place / "dump").glob("*/*/utt2sha256")]
        files += [tmp_path / place / "dump/report/report.json"]
        hashes.append(
            {path.relative_to(tmp_path / place): sha256(path) for path in files}
        )
    assert hashes[0] == hashes[1] and len(hashes[0]) == 6
    finer = tmp_path / "finer"
    make_dump(tmp_path / "one/data", finer, form=Format(bits=24))
    coarse = read_table(tmp_path / "one/dump/toy/test/utt2sha256")
    assert set(read_table(finer / "toy/test/utt2sha256").values()).isdisjoint(
        coarse.values()
    )


def test_a_second_run_redoes_only_what_is_not_valid(tmp_path):
    datadir, dump = make_corpus(tmp_path), tmp_path / "dump"
    make_dump(datadir, dump)
    before, first = tree(dump), stamps(dump)
    make_dump(datadir, dump)
    assert stamps(dump) == first and tree(dump) == before

    wav = read_table(dump / "toy/train/wav.scp")
    os.unlink(wav["toy-train-0"])
    with open(wav["toy-train-1"], "r+b") as file:
        file.truncate(100)
    touched = tmp_path / "audio/toy-train-2.wav"
    os.utime(touched, (1, 1))  # another time, the same content
    changed = tmp_path / "audio/toy-train-3.wav"
    soundfile.write(changed, noise(9000, seed=99), 16000)
    same_size(wav["toy-train-4"])
    contents = read_table(dump / "toy/train/utt2sha256")
    assert same_size(tmp_path / "audio/toy-train-5.wav")
    make_dump(datadir, dump)
    second = stamps(dump)
    redone = {name for name in first if second[name] != first[name]}
    assert redone == {f"toy-train-{i}" for i in (0, 1, 3, 4, 5)}
    now = read_table(dump / "toy/train/utt2sha256")
    differ = {key for key in now if now[key] != contents[key]}
    assert differ == {"toy-train-3", "toy-train-5"}
    new = read_table(dump / "toy/train/utt2num_samples")
    assert new["toy-train-3"] == "9000"


def test_a_killed_run_is_continued(tmp_path, caplog):
    datadir, dump = make_corpus(tmp_path), tmp_path / "dump"
    clips = 80
    lines = []
    for i in range(clips):
        path = tmp_path / f"audio/long-{i}.wav"
        soundfile.write(path, noise(48000, seed=i), 16000)
        lines.append(f"long-{i:04d} {path}\n")
    (datadir / "pretrain/train/wav.scp").write_text("".join(lines))
    (datadir / "pretrain/train/utt2spk").unlink()
    command = [sys.executable, "-m", "espnet2_sslam.bin.format_audio"]
    command += ["--datadir", str(datadir), "--outdir", str(dump)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL)
    records = dump / "records.jsonl"
    deadline = time.monotonic() + 60
    while not records.exists() or records.read_bytes().count(b"\n") < 20:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = records.read_bytes().count(b"\n")
    assert 20 <= done < clips + 24 and not (dump / "downstream.txt").exists()
    left = next(dump.glob("audio/*")) / ".x.wav.1.tmp"
    left.write_bytes(b"half")
    records.write_bytes(records.read_bytes() + b'{"source": "ha')
    caplog.set_level(logging.INFO)
    make_dump(datadir, dump)
    assert "are formatted already" in caplog.text and not left.exists()
    after = tree(dump)
    shutil.rmtree(dump)
    make_dump(datadir, dump)
    assert tree(dump) == after


def test_a_full_disk_is_one_line_and_leaves_no_file_that_looks_finished(
    tmp_path, capsys
):
    datadir, dump = make_corpus(tmp_path), tmp_path / "dump"
    soundfile.write(tmp_path / "audio/toy-test-5.wav", noise(160000), 16000)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, old[1]))  # bytes of a file
    try:
        line = error_line(main, capsys, "--datadir", datadir, "--outdir", dump)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert "too large" in line and "toy-test-5" in line
    assert not (dump / "downstream.txt").exists()
    assert not list(dump.rglob("*toy-test-5*.wav"))
    assert not list(dump.rglob("*.tmp"))
    make_dump(datadir, dump)
    assert read_table(dump / "toy/test/utt2num_samples")["toy-test-5"] == "160000"


def test_link_ok_uses_good_files_where_they_lie(tmp_path):
    datadir = make_corpus(tmp_path)
    soundfile.write(tmp_path / "audio/toy-train-2.wav", noise(8000), 8000)
    make_dump(datadir, tmp_path / "dump", form=Format(link_ok=True))
    wav = read_table(tmp_path / "dump/toy/train/wav.scp")
    assert wav["toy-train-1"] == str(tmp_path / "audio/toy-train-1.wav")
    assert wav["toy-train-2"].startswith(str(tmp_path / "dump/audio/"))
    make_dump(datadir, tmp_path / "dump")  # and back to copies
    wav = read_table(tmp_path / "dump/toy/train/wav.scp")
    assert wav["toy-train-1"].startswith(str(tmp_path / "dump/audio/"))


def write_split(datadir, name, wav, **tables):
    """A split of the data folder `datadir` that is not labelled."""
    folder = datadir / name
    folder.mkdir(parents=True)
    write_table(folder / "wav.scp", sorted(wav.items()))
    for table, rows in tables.items():
        write_table(folder / table, rows)
    (datadir / "downstream.txt").touch()


def formatted(datadir, dump, split="pretrain/train", **options):
    """The samples of each clip of the dump, as training reads them."""
    make_dump(datadir, dump, form=Format(**options))
    wav = read_table(dump / split / "wav.scp")
    return {key: soundfile.read(path, dtype="float32") for key, path in wav.items()}


@pytest.mark.parametrize("audio_format", ["flac", "wav"])
@pytest.mark.parametrize("rate, bits, step", [(16000, 16, 15), (8000, 24, 23)])
def test_what_training_reads_is_what_tagging_reads(
    tmp_path, audio_format, rate, bits, step
):
    """But for the rounding; also where samples go beyond [-1, 1]."""
    waves = {"quiet": noise(rate), "loud": 1.9 * np.sign(noise(rate, 1))}
    for name, wave in waves.items():
        path = tmp_path / f"{name}.wav"
        soundfile.write(path, wave, rate, subtype="FLOAT")
        write_split(tmp_path / "data", f"pretrain/{name}", {name: path})
    for name in waves:
        samples = formatted(
            *(tmp_path / "data", tmp_path / "dump", f"pretrain/{name}"),
            audio_format=audio_format,
        )
        step = 2.0**-step / 2 if name == "quiet" else 0
        expected = read_audio(tmp_path / f"{name}.wav")
        np.testing.assert_allclose(samples[name][0], expected, atol=step + 1e-9)
    table = read_table(tmp_path / "dump/pretrain/quiet/wav.scp")
    assert soundfile.info(table["quiet"]).subtype == f"PCM_{bits}"


def test_a_linked_file_is_never_said_to_be_limited_and_then_is_not(tmp_path):
    for name, scale in (("beyond", 5), ("integers", 10000)):
        wave = (scale * np.sin(np.arange(16000) / 5)).astype(np.float32)
        soundfile.write(tmp_path / f"{name}.wav", wave, 16000, subtype="FLOAT")
    wav = {name: tmp_path / f"{name}.wav" for name in ("beyond", "integers")}
    write_split(tmp_path / "data", "pretrain/train", wav)
    make_dump(
        tmp_path / "data", tmp_path / "dump", form=Format(link_ok=True), max_bad=0.5
    )
    assert list(read_table(tmp_path / "dump/pretrain/train/wav.scp")) == ["beyond"]
    lines = (tmp_path / "dump/problems.tsv").read_text().splitlines()
    assert "overload: peak 5.0" in lines[1] and lines[1].endswith("kept")
    assert "divide integers" in lines[2] and lines[2].endswith("left out")


def test_another_resampler_or_precision_is_formatted_anew_and_recorded(tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(32000), 32000)
    write_split(tmp_path / "data", "pretrain/train", {"a": tmp_path / "a.wav"})
    run = partial(formatted, tmp_path / "data", tmp_path / "dump")
    first, again = run()["a"][0], run()["a"][0]
    np.testing.assert_array_equal(first, again)
    assert (tmp_path / "dump/pretrain/train/resampler").read_text() == "sinc\n"
    soxr = run(resampler="soxr")["a"][0]
    assert np.abs(soxr - first).max() > 1e-3
    assert (tmp_path / "dump/pretrain/train/resampler").read_text() == "soxr\n"
    assert np.abs(run(bits=24)["a"][0] - first).max() < 2.0**-15


@pytest.mark.parametrize("form", ["wav", "flac", "mp3", "ogg"])
def test_segments_are_cut_from_their_recordings(tmp_path, form):
    seconds = np.arange(10 * 22050) / 22050
    sweep = 0.3 * np.sin(2 * np.pi * (200 + 50 * seconds) * seconds)
    soundfile.write(tmp_path / f"r.{form}", sweep, 22050)
    times = {"a": (0.0, 2.0), "b": (3.2, 7.6), "c": (8.0, -1)}
    rows = [(key, f"r {start} {end}") for key, (start, end) in times.items()]
    rows += [("d", "r 9 12")]  # ends behind the file
    write_split(
        tmp_path / "data",
        "pretrain/train",
        {"r": tmp_path / f"r.{form}"},
        segments=rows,
    )
    make_dump(tmp_path / "data", tmp_path / "dump", max_bad=0.3)
    wav = read_table(tmp_path / "dump/pretrain/train/wav.scp")
    assert list(wav) == ["a", "b", "c"]
    assert "cut: it ends at 12.0 s" in (tmp_path / "dump/problems.tsv").read_text()
    whole = read_audio(tmp_path / f"r.{form}")
    for key, (start, end) in times.items():
        samples = read_audio(wav[key])
        expected = whole[int(start * 16000) :][: len(samples)]
        assert len(samples) == pytest.approx(
            ((10 if end < 0 else end) - start) * 16000, abs=2 + 2000 * (form == "mp3")
        )
        inside = slice(100, min(len(samples), len(expected)) - 100)
        error = np.abs(samples[inside] - expected[inside]).max()
        assert error < (1e-3 if form in ("wav", "flac") else 0.05)


def test_a_corpus_of_cuts_is_written_as_kaldi_segments(tmp_path):
    soundfile.write(tmp_path / "r.wav", noise(64000), 16000)
    writer = CorpusWriter(tmp_path / "data")
    path = str(tmp_path / "r.wav")
    clips = [Clip("b", cut_name(path, 1.0, 2.5)), Clip("a", path)]
    writer.add("pretrain/train", clips, labelled=False)
    writer.finish([])
    folder = tmp_path / "data/pretrain/train"
    assert next(iter(read_table(folder / "segments").values())).endswith(" 0 -1")
    assert read_table(folder / "segments")["b"].endswith(" 1.0 2.5")
    assert dict(read_sources(folder)) == {"a": path, "b": f"{path}#t=1.0,2.5"}
    samples = formatted(tmp_path / "data", tmp_path / "dump")
    assert {key: len(wave) for key, (wave, _) in samples.items()} == {
        "a": 64000,
        "b": 24000,
    }


def test_fbank_ark_holds_the_log_mel_of_the_formatted_audio(tmp_path):
    datadir, dump = make_corpus(tmp_path), tmp_path / "dump"
    make_dump(datadir, dump, feats_type="fbank")
    for split in ("pretrain/valid", "toy/test"):
        wav = read_table(dump / split / "wav.scp")
        frames = read_table(dump / split / "utt2num_frames")
        feats = kaldiio.load_scp(str(dump / split / "feats.scp"))
        assert list(feats) == list(wav) == list(frames)
        for key in feats:
            expected, _ = kaldi_fbank(torch.from_numpy(read_audio(wav[key]))[None])
            assert feats[key].dtype == np.float32
            assert feats[key].shape == (int(frames[key]), 128)
            # Near the floor float32 rounds differently from run to run.
            np.testing.assert_allclose(feats[key], expected[0].numpy(), atol=5e-3)


def test_fbank_pieces_of_long_audio_equal_the_whole(tmp_path, monkeypatch):
    path = str(tmp_path / "a.wav")
    soundfile.write(path, noise(50_000) + 0.1, 16000)
    [whole] = fbank_pieces(path)
    monkeypatch.setattr("espnet2_sslam.corpus.fbank.PIECE_FRAMES", 37)
    pieces = list(fbank_pieces(path))
    assert len(pieces) > 5
    np.testing.assert_allclose(np.concatenate(pieces), whole, atol=1e-3)


def test_two_runs_at_once_do_not_write_into_each_other(tmp_path):
    datadir, dump = make_corpus(tmp_path), tmp_path / "dump"
    with lock(dump / ".lock"), pytest.raises(ValueError, match="another run"):
        make_dump(datadir, dump)


def test_real_clips_are_all_usable(tmp_path):
    datadir = make_corpus(tmp_path)
    clips = sorted(real_audio("fsdd-mini").glob("recordings/*.flac"))[:20]
    lines = "".join(f"{clip.stem} {clip}\n" for clip in clips)
    (datadir / "pretrain/train/wav.scp").write_text(lines)
    (datadir / "pretrain/train/utt2spk").unlink()
    make_dump(datadir, tmp_path / "dump", max_bad=0)
    samples = read_table(tmp_path / "dump/pretrain/train/utt2num_samples")
    assert list(samples) == sorted(clip.stem for clip in clips)
    for clip in clips:  # 8 kHz
        assert int(samples[clip.stem]) == 2 * soundfile.info(str(clip)).frames


@pytest.mark.parametrize("feats_type", ["raw", "fbank"])
def test_an_array_job_makes_what_one_process_makes(tmp_path, monkeypatch, feats_type):
    datadir, words = make_corpus(tmp_path, clips=20), ["--feats_type", feats_type]
    dump = tmp_path / "dump"  # the same place: lists name it
    words += ["--datadir", str(datadir), "--outdir", str(dump), "--nj", "3"]
    main(words)
    expected = tree(dump)
    shutil.rmtree(dump)
    monkeypatch.setattr("espnet2_sslam.corpus.fbank.CLIPS_PER_ARK", 10)
    main([*words, "--cmd", task_runner(tmp_path)])
    made = tree(dump)
    if feats_type == "fbank":  # other arks: the same matrices
        assert len(list((dump / "feats").glob("*.ark"))) == 10
        for split in ("pretrain/train", "toy/test"):
            matrices = kaldiio.load_scp(str(dump / split / "feats.scp"))
            for key, path in read_table(dump / split / "wav.scp").items():
                fbank = np.concatenate(list(fbank_pieces(path)))
                np.testing.assert_array_equal(matrices[key], fbank)
        made, expected = (
            {k: v for k, v in of.items() if "feats" not in k} for of in (made, expected)
        )
    assert made == expected


def test_what_tasks_of_a_failed_run_have_formatted_is_kept(tmp_path):
    datadir, dump = make_corpus(tmp_path, clips=20), tmp_path / "dump"
    words = ["--datadir", str(datadir), "--outdir", str(dump), "--nj", "3"]
    main(words)
    expected = tree(dump)
    shutil.rmtree(dump)
    cmd = task_runner(tmp_path)
    runner = tmp_path / "tasks.pl"
    text = runner.read_text()
    fails = "subprocess.Popen(['false']) if task == 2 else start(task)"
    runner.write_text(text.replace("append(start(task))", f"append({fails})"))
    with pytest.raises(ChildProcessError, match=r"1 of 3 tasks \(audio\) failed"):
        main([*words, "--cmd", cmd])
    before = {path: path.stat().st_mtime_ns for path in dump.rglob("*.wav")}
    assert 60 < len(before) < 70
    main(words)  # here, or on the cluster
    assert tree(dump) == expected
    assert all(path.stat().st_mtime_ns == made for path, made in before.items())
