"""Long recordings become consecutive clips that lose nothing."""

import numpy as np
import pytest
import soundfile

from espnet2_sslam.audio import duration, read_audio
from espnet2_sslam.bin import data_report
from espnet2_sslam.bin.format_audio import main
from espnet2_sslam.corpus import read_split, read_table
from tests.corpus_case import error_line, make_corpus, noise, replace_line

SPLIT = "toy/train"


def with_long(tmp_path, seconds, name="long.wav", rate=16000, split=SPLIT):
    """A corpus in which one recording is long; its data folder and the recording."""
    datadir = make_corpus(tmp_path)
    path, wave = tmp_path / name, noise(round(seconds * rate), seed=7)
    soundfile.write(path, wave, rate)
    key = f"{split.replace('/', '-')}-1"
    replace_line(datadir / split / "wav.scp", key, f"{key} {path}")
    return datadir, path


def cut(datadir, dump, *more):
    words = ["--datadir", datadir, "--outdir", dump, "--cut", "2", *more]
    main([str(word) for word in words])
    return read_split(dump, SPLIT)


@pytest.mark.parametrize("name", ["long.wav", "long.flac", "long.mp3", "long.ogg"])
@pytest.mark.parametrize(
    "seconds, starts",
    [
        (7.0, ["00000.000", "00002.000", "00004.000", "00006.000"]),
        (6.4, ["00000.000", "00002.000", "00004.000"]),
    ],
)
def test_clips_follow_each_other_to_the_recordings_end(
    tmp_path, capsys, seconds, starts, name
):
    datadir, path = with_long(tmp_path, seconds, name)
    split = cut(datadir, tmp_path / "dump")
    keys = [f"toy-train-1_{start}" for start in starts]
    assert [key for key in split.wav if key.startswith("toy-train-1")] == keys
    printed = capsys.readouterr().out
    assert f"1 of 30 recordings are longer than 2 s and were cut into {len(keys)}" in (
        printed
    )
    joined = np.concatenate([read_audio(split.wav[key]) for key in keys])
    whole = read_audio(path)
    assert abs(len(joined) - len(whole)) <= (
        2 if "wav" in name or "flac" in name else 8
    )
    np.testing.assert_allclose(joined[:96_000], whole[:96_000], atol=2e-3)
    lengths = read_table(tmp_path / "dump" / SPLIT / "utt2num_samples")
    assert [int(lengths[key]) for key in keys[:-1]] == [32_000] * (len(keys) - 1)
    assert len(split.wav) == 5 + len(keys)  # short ones stay as they are


def test_labels_speakers_and_weights_are_carried_along(tmp_path):
    datadir, _ = with_long(tmp_path, 5.0)
    lines = [f"toy-train-{i} {0.5 * i}\n" for i in range(6)]
    (datadir / SPLIT / "weights").write_text("".join(lines))
    split = cut(datadir, tmp_path / "dump")
    keys = [f"toy-train-1_{start:09.3f}" for start in (0, 2, 4)]
    assert [split.labels[key] for key in keys] == [["dog"]] * 3
    assert [split.speakers[key] for key in keys] == ["toy-train-1"] * 3
    assert (
        split.labels["toy-train-2"] == ["cat"] and "toy-train-2" not in split.speakers
    )
    weights = read_table(tmp_path / "dump" / SPLIT / "weights")
    assert [float(weights[key]) for key in keys] == [pytest.approx(0.5 / 3)] * 3
    assert weights["toy-train-2"] == "1"
    assert "were cut into 3 clips" in (tmp_path / "dump/notes.txt").read_text()


def test_a_part_of_a_recording_is_cut_within_its_bounds(tmp_path):
    datadir, _ = with_long(tmp_path, 9.0, rate=8000)
    folder = datadir / SPLIT
    keys = read_table(folder / "wav.scp")
    lines = [
        f"{key} {key} {'1.5 6.5' if key == 'toy-train-1' else '0 -1'}\n" for key in keys
    ]
    (folder / "segments").write_text("".join(lines))
    split = cut(datadir, tmp_path / "dump")
    parts = [
        split.wav[f"toy-train-1_{at}"] for at in ("00001.500", "00003.500", "00005.500")
    ]
    lengths = [len(read_audio(part)) for part in parts]
    assert lengths == [32_000, 32_000, 16_000]


def test_a_second_run_and_another_length_replace_what_was_cut(tmp_path):
    datadir, _ = with_long(tmp_path, 6.0)
    first = cut(datadir, tmp_path / "dump")
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("dump/audio/*/*")}
    assert cut(datadir, tmp_path / "dump") == first
    assert times == {path: path.stat().st_mtime_ns for path in times}
    assert len(cut(datadir, tmp_path / "dump", "--cut", "3").wav) == 5 + 2


def test_what_cannot_be_cut_is_named(tmp_path, capsys):
    datadir, path = with_long(tmp_path, 5.0)
    words = ["--datadir", datadir, "--outdir", tmp_path / "dump"]
    assert "--cut must be 1 second" in error_line(main, capsys, *words, "--cut", "0.2")
    path.write_bytes(b"no audio")
    cut(datadir, tmp_path / "dump", "--max_bad", "0.2")
    assert "toy-train-1\t" in (tmp_path / "dump/problems.tsv").read_text()


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp3", "a.ogg"])
def test_the_duration_of_a_file_or_part_is_told(tmp_path, name):
    soundfile.write(tmp_path / name, noise(22_050 * 3), 22_050)
    assert duration(f"{tmp_path / name}") == pytest.approx(3, abs=0.12)
    assert duration(f"{tmp_path / name}#t=0.5,-1") == pytest.approx(2.5, abs=0.12)
    assert duration(f"{tmp_path / name}#t=0.5,1.25") == 0.75


def test_the_report_says_how_much_of_long_recordings_an_epoch_hears(tmp_path):
    datadir, _ = with_long(tmp_path, 40.96, split="pretrain/train")
    main(["--datadir", str(datadir), "--outdir", str(tmp_path / "dump")])
    data_report.main(["--dump", str(tmp_path / "dump")])
    text = (tmp_path / "dump/report/report.txt").read_text()
    line = "longer than 10.24 s: 1 clips; one crop of 10.24 s of each per epoch "
    line += "(padding: authors) hears 25.0 % of them, 25.0 % of the longest (41 s)"
    assert line in text
