"""The data report and the log-mel statistics."""

import json
import shutil

import numpy as np
import pytest
import soundfile
import torch
import yaml

from espnet2_sslam.audio import read_audio
from espnet2_sslam.bin.data_report import main, write_report
from espnet2_sslam.corpus import compare, make_dump, read_table
from espnet2_sslam.features import kaldi_fbank
from tests.corpus_case import error_line, make_corpus, noise, replace_line


def report_of(tmp_path, edit=None, **kwargs):
    """Report on a toy corpus after `edit(datadir)`, its text, and the dump."""
    datadir = make_corpus(tmp_path)
    if edit is not None:
        edit(datadir)
    make_dump(datadir, tmp_path / "dump", **kwargs)
    report = write_report(tmp_path / "dump", nj=1)
    return report, (tmp_path / "dump/report/report.txt").read_text()


def test_report_counts_clips_durations_and_labels(tmp_path):
    report, text = report_of(tmp_path)
    split = report["splits"]["toy/train"]
    assert (split["listed"], split["usable"], split["duplicates"]) == (6, 6, 0)
    assert split["seconds"] == {"min": 0.5, "mean": 0.515625, "max": 0.53125}
    assert sum(split["seconds_histogram"]["counts"]) == 6
    assert split["label_counts"] == {"cat": 3, "dog": 3}
    assert split["labels_per_clip"] == {"1": 6}
    assert report["classes"] == {"toy": ["cat", "dog"]}
    assert report["leaks"] == [] and "no duplicates, no leaks" in text
    written = json.loads((tmp_path / "dump/report/report.json").read_text())
    assert written == report


def test_the_report_says_how_much_padding_the_authors_way_would_add(tmp_path):
    report, text = report_of(tmp_path)
    splits = report["splits"]
    assert splits["pretrain/train"]["padding"] == pytest.approx(1 - 50 / 1024, abs=0.01)
    assert "padding" not in splits["toy/train"]
    assert "(padding: authors), 95 % of the frames would be padding" in text


@pytest.mark.parametrize("short", [2, 6])
def test_clips_too_short_for_pretraining_are_counted_or_all_refused(
    tmp_path, capsys, short
):
    def shorten(datadir):
        for split, count in (("train", short), ("valid", 1)):
            for number in range(count):
                path = datadir.parent / f"audio/pretrain-{split}-{number}.wav"
                soundfile.write(path, noise(7919, 90 + number), 16000)

    if short == 6:
        with pytest.raises(ValueError, match="all 6 clips of .* shorter than 48"):
            report_of(tmp_path, shorten)
        return
    report, text = report_of(tmp_path, shorten)
    counts = {name: split.get("too_short") for name, split in report["splits"].items()}
    assert counts["pretrain/train"] == 2 and counts["pretrain/valid"] == 1
    assert counts["toy/train"] is None
    assert "padding: none, which leaves out 2 of 6 clips, shorter than 0.495 s" in text
    assert "1 of 6 clips of pretrain/valid are shorter than 0.495 s" in text
    main(["--dump", str(tmp_path / "dump")])
    assert "3 too short for padding: none" in capsys.readouterr().out


def test_statistics_are_those_of_all_real_frames_of_pretrain_train(tmp_path):
    report_of(tmp_path)
    stats = json.loads((tmp_path / "dump/report/fbank_stats.json").read_text())
    wav = read_table(tmp_path / "dump/pretrain/train/wav.scp").values()
    frames = [kaldi_fbank(torch.from_numpy(read_audio(p))[None])[0][0] for p in wav]
    values = torch.cat(frames).double()
    assert set(stats) == {"mean", "std", "num_frames", "split"}
    assert stats["split"] == "pretrain/train" and stats["num_frames"] == len(values)
    assert stats["mean"] == pytest.approx(float(values.mean()), rel=1e-6)
    assert stats["std"] == pytest.approx(float(values.std(correction=0)), rel=1e-6)


def test_statistics_do_not_depend_on_the_number_of_processes(tmp_path):
    datadir = make_corpus(tmp_path, clips=20)
    make_dump(datadir, tmp_path / "dump")
    serial = write_report(tmp_path / "dump", nj=1)["fbank"]
    parallel = write_report(tmp_path / "dump", nj=2)["fbank"]
    assert parallel["num_frames"] == serial["num_frames"]
    assert parallel["mean"] == pytest.approx(serial["mean"], rel=1e-6)
    few = write_report(tmp_path / "dump", nj=1, max_stats_clips=5)["fbank"]
    assert few["num_clips"] == 5


def test_audio_shared_by_train_and_test_is_flagged_as_a_leak(tmp_path):
    def leak(datadir):
        audio = datadir.parent / "audio"
        samples, _ = soundfile.read(audio / "toy-train-2.wav", dtype="int16")
        soundfile.write(audio / "toy-test-2.flac", samples, 16000)  # another container
        line = f"toy-test-2 {audio / 'toy-test-2.flac'}"
        replace_line(datadir / "toy/test/wav.scp", "toy-test-2", line)

    report, text = report_of(tmp_path, leak)
    [found] = report["leaks"]
    assert (found["split"], found["clips"]) == ("toy/test", 1)
    assert found["examples"] == ["toy-test-2"]
    assert "!!! LEAK: 1 clips of toy/test" in text and "!!! DUPLICATES: 1" in text


def test_copies_within_a_split_and_different_labels_are_flagged(tmp_path):
    def copy(datadir):
        audio = datadir.parent / "audio"
        shutil.copy(audio / "toy-train-0.wav", audio / "toy-train-1.wav")

    report, text = report_of(tmp_path, copy)
    assert report["splits"]["toy/train"]["duplicates"] == 1
    assert report["duplicates"]["groups"] == 1
    assert report["duplicates"]["contradicting_labels"] == 1  # one cat, one dog
    assert "!!! LABELS: 1 times" in text


def test_test_clips_in_pretraining_are_noted(tmp_path):
    def share(datadir):
        path = datadir.parent / "audio/toy-test-0.wav"
        line = f"pretrain-train-0 {path}"
        replace_line(datadir / "pretrain/train/wav.scp", "pretrain-train-0", line)

    report, text = report_of(tmp_path, share)
    assert report["pretraining_overlaps"] == [{"split": "toy/test", "clips": 1}]
    assert report["leaks"] == []
    assert "1 clips of toy/test are heard in pre-training" in text


def test_problems_and_classes_without_positives_are_reported(tmp_path):
    def spoil(datadir):
        audio = datadir.parent / "audio"
        (audio / "toy-train-0.wav").unlink()
        (audio / "toy-train-1.wav").write_bytes(b"RIFF")
        soundfile.write(audio / "toy-train-2.wav", np.zeros(8000), 16000)
        (datadir / "toy/classes.txt").write_text("cat\ncow\ndog\n")

    report, text = report_of(tmp_path, spoil, max_bad=0.5)
    split = report["splits"]["toy/train"]
    assert (split["listed"], split["usable"]) == (6, 4)
    assert split["left_out"]["missing"] == 1 and sum(split["left_out"].values()) == 2
    assert split["warnings"] == {"silent": 1}
    assert split["classes_without_positives"] == ["cow"]
    assert "!!! NO POSITIVES in toy/train: cow" in text
    assert "left out: missing: 1" in text and "warnings: silent: 1" in text


def test_content_hash_tells_changed_audio_and_labels(tmp_path):
    def hashes(name, edit=None):
        report, _ = report_of(tmp_path / name, edit)
        return [split["content_sha256"] for split in report["splits"].values()]

    def new_audio(datadir):
        path = datadir.parent / "audio/toy-test-0.wav"
        soundfile.write(path, noise(8000, seed=77), 16000)

    def new_label(datadir):
        replace_line(datadir / "toy/test/text", "toy-test-0", "toy-test-0 dog")

    first = hashes("a")
    assert hashes("b") == first  # wherever the files lie
    for name, edit in (("c", new_audio), ("d", new_label)):
        assert sum(a != b for a, b in zip(hashes(name, edit), first, strict=True)) == 1


def test_report_on_an_unfinished_or_damaged_dump_says_what_to_run(tmp_path, capsys):
    line = error_line(main, capsys, "--dump", tmp_path / "dump")
    assert "is missing: prepare the data first" in line
    report_of(tmp_path)
    path = next((tmp_path / "dump").glob("audio/*/*.wav"))
    path.write_bytes(b"")
    line = error_line(main, capsys, "--dump", tmp_path / "dump")
    assert str(path) in line and "format the data again" in line


def test_real_counts_are_compared_and_a_part_is_told_apart():
    def compared(name, listed, classes, **more):
        labels = {"8": listed - 4 * listed // 5, "9": 4 * listed // 5}  # 8.8 a clip
        split = {"listed": listed, "usable": listed, "labels_per_clip": labels, **more}
        return compare(name, split, [f"c{i}" for i in range(classes)])

    assert compared("toy/train", 10, 2)["expected"] is None
    full = compared("spass_market/train", 3750, 22)
    assert not full["is_part"] and full["differences"] == []
    part = compared("spass_market/train", 12, 5)
    assert part["is_part"] and part["differences"] == []
    other = compared("spass_market/train", 3749, 21, clips_of_other_length=3)
    assert other["differences"] == [
        "3749 clips are listed, 3750 expected",
        "21 classes, 22 expected",
        "3 clips are not 10 s (+- 0.5 s) long",
    ]
    once = compared("spass_market/train", 3750, 22, labels_per_clip={"1": 3750})
    assert once["differences"] == ["1.00 labels per clip, 8.8 expected"]
    # Silence is cut by a seed and does not count.
    ks1 = compared("ks1/train", 51448, 12, label_counts={"_silence_": 360})
    assert ks1["differences"] == []
    assert compared("esc50/fold3/test", 400, 50)["differences"] == []


def test_differences_and_missing_clips_are_in_the_text(tmp_path, monkeypatch):
    row = {"clips": 7, "classes": 3, "seconds": 10, "source": "its page"}
    path = tmp_path / "expected.yaml"
    path.write_text(yaml.safe_dump({"toy/t*": row}))
    monkeypatch.setattr("espnet2_sslam.corpus.report.EXPECTED", path)

    def lose(datadir):
        path = datadir / "toy/test/missing.csv"
        path.write_text("id,file,reason\nx,/none/x.wav,no such file\n")

    report, text = report_of(tmp_path, lose)
    assert report["splits"]["toy/test"]["listed"] == 7
    assert "missing: 1 clips, see missing.csv" in text
    assert "!!! DIFFERENT in toy/train: 6 clips are listed, 7 expected; 2 clas" in text
    assert "!!! DIFFERENT in toy/test: 2 classes, 3 expected; 6 clips are not" in text
    assert (tmp_path / "dump/toy/test/missing.csv").exists()


def test_without_a_pretraining_set_the_training_splits_give_the_statistics(tmp_path):
    datadir = make_corpus(tmp_path)
    shutil.rmtree(datadir / "pretrain")
    make_dump(datadir, tmp_path / "dump")
    stats = write_report(tmp_path / "dump", nj=1)["fbank"]
    assert stats["split"] == "toy/train" and stats["num_clips"] == 6
