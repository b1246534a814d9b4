"""Lists as long as AudioSet-2M's: memory and time of preparation and of a start."""

import json
import subprocess
import sys

import numpy as np
import pytest

from espnet2_sslam.corpus import RecordBook, dump, report
from espnet2_sslam.tasks import read_labels, read_weights
from tests.corpora import large
from tests.corpus_case import LOCAL, ROOT

sys.path.insert(0, str(LOCAL))
import data_audioset

GIB = 2**30
CLIPS = 2_063_949  # training segments of AudioSet-2M
# A small process in between: a child starts with the memory of its parent.
MEASURED = """
import json, resource, subprocess, sys
said = subprocess.run(sys.argv[1:], check=True, capture_output=True, text=True).stdout
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([said, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024]))
"""
START = """
import sys
from espnet2_sslam.tasks import ClipDataset, ClipSampler, CropSampler
from espnet2_sslam.tasks import EpochIterFactory, read_keys, read_lengths, read_weights

folder = sys.argv[1]
data = [(f"{folder}/wav.scp", "speech", "sound"), (f"{folder}/text", "label", "text")]
keys = read_keys(f"{folder}/wav.scp")
dataset = ClipDataset(data)
dataset.check_keys(keys)
weights = read_weights(f"{folder}/weights", keys)
options = {"train": True, "weights": weights, "num_samples": len(keys) // 10}
sampler = ClipSampler(keys, 96, **options)
batches = EpochIterFactory(dataset, sampler).build_iter(1).batch_sampler
clips = len(next(iter(batches)))
del sampler, batches, weights
lengths = read_lengths(keys, data)
options = {"train": True, "mixture": True, "min_clips_per_rank": 2}
sampler = CropSampler(keys, lengths, 96, clip_frames=1024, **options)
assert f"{len(keys)} recordings" in sampler.describe()
batches = EpochIterFactory(dataset, sampler).build_iter(1).batch_sampler
assert clips == len(next(iter(batches)))
print(clips)
"""
STEPS = {  # without audio
    "formatting": """
import sys
from pathlib import Path
from espnet2_sslam.corpus import RecordBook, dump
from tests.corpora.large import fake_record

dump.format_file = fake_record
folder = Path(sys.argv[1])
dump.make_dump(folder / "data", folder / "dump")
assert "torch" not in sys.modules, "it takes 650 MiB"
lists = folder / "dump/as2m/train"
print(sum(len((lists / n).open().readlines()) for n in ("wav.scp", "missing.csv")) - 1)
""",
    "report": """
import sys
from pathlib import Path
from espnet2_sslam.bin import data_report
from espnet2_sslam.corpus import report

report._has_size = lambda path, size: True
print(report.collect(Path(sys.argv[1]) / "dump")["splits"]["as2m/train"]["listed"])
""",
}


def measure(*command):
    """Run Python in a fresh process: its last word, CPU seconds, largest memory."""
    result = subprocess.run(
        [sys.executable, "-c", MEASURED, sys.executable, *map(str, command)],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    said, seconds, memory = json.loads(result.stdout)
    return int(said.split()[-1]) if said[:1].isdigit() else said, seconds, memory


def prepare(tmp_path, scale):
    """Prepare a synthetic list; CPU seconds and the largest memory in bytes."""
    datadir = tmp_path / "data"
    large.make(tmp_path / "corpus", datadir / ".index.jsonl", scale)
    command = [LOCAL / "data_audioset.py", "--subsets", "2m"]
    command += ["--corpus_dir", tmp_path / "corpus", "--datadir", datadir]
    return measure(*command)[1:]


def write_lists(folder, count):
    """The lists of so many clips, as data preparation and formatting write them."""
    folder.mkdir(parents=True)
    names = sorted(large.ytids(count, np.random.default_rng(0)))
    with (
        open(folder / "wav.scp", "w") as wav,
        open(folder / "text", "w") as text,
        open(folder / "weights", "w") as weights,
        open(folder / "utt2num_samples", "w") as samples,
    ):
        for number, name in enumerate(names):
            wav.write(
                f"Y{name} /data/audioset/dump/raw/audio/{name[:2]}/Y{name}.flac\n"
            )
            text.write(f"Y{name} /m/0{number % 527:05x} /m/0{number % 31:05x}\n")
            weights.write(f"Y{name} {1 + number % 7}.25\n")
            samples.write(f"Y{name} {160_000 - number % 97 * 100}\n")
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_preparation_of_a_quarter_of_audioset_stays_below_its_share(tmp_path):
    base = prepare(tmp_path / "small", scale=0.002)[1]
    seconds, memory = prepare(tmp_path / "large", scale=0.25)
    assert base + 4 * (memory - base) < 2 * GIB
    assert seconds < 300


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_start_on_two_million_clips_takes_less_than_30_seconds(tmp_path):
    clips, seconds, memory = measure(
        "-c", START, write_lists(tmp_path / "train", CLIPS)
    )
    assert 95 <= clips <= 97
    assert seconds < 30  # of one CPU, imports included
    assert memory < 3 * GIB


def test_weights_and_labels_of_a_long_list_are_found_by_id(tmp_path):
    folder = write_lists(tmp_path / "train", 5000)
    lines = (folder / "weights").read_text().splitlines()
    keys = [line.split()[0] for line in lines]
    chosen = keys[::-7]
    weights = read_weights(folder / "weights", chosen)
    table = dict(line.split() for line in lines)
    assert weights.tolist() == [float(table[key]) for key in chosen]
    labels = read_labels([(folder / "text", "label", "text")], chosen)
    assert all(len(set(words)) in (1, 2) for words in labels)
    for text, complaint in (
        ("Yother 1\n", "lacks 715 of 715 clips"),
        (f"{chosen[0]} much\n", "is 'much', a number from 0 up is needed"),
        (f"{chosen[0]} -1\n", "is '-1'"),
    ):
        (folder / "weights").write_text(text)
        with pytest.raises(ValueError, match=complaint):
            read_weights(folder / "weights", chosen)


def test_no_step_on_a_long_list_keeps_a_record_in_memory(tmp_path, monkeypatch):
    datadir = tmp_path / "data"
    large.make(tmp_path / "corpus", datadir / ".index.jsonl", 0.002)
    words = ["--corpus_dir", tmp_path / "corpus", "--datadir", datadir]
    data_audioset.main([*map(str, words), "--subsets", "2m"])
    assert "of 4127 clips are missing" in (datadir / "notes.txt").read_text()
    monkeypatch.setattr(dump, "format_file", large.fake_record)
    monkeypatch.setattr(report, "_has_size", lambda path, size: True)
    dump.make_dump(datadir, tmp_path / "dump")
    split = report.collect(tmp_path / "dump")["splits"]["as2m/train"]
    assert split["listed"] == 4127 and split["compared"]["is_part"]
    assert split["seconds"] == {"min": 10.0, "mean": 10.0, "max": 10.0}
    book = RecordBook(tmp_path / "dump")
    assert not book.marked and len(book.offsets) > split["usable"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_formatting_and_report_of_two_million_clips_would_stay_below_2_gib(tmp_path):
    prepare(tmp_path / "small", scale=0.001)
    prepare(tmp_path / "large", scale=0.25)
    for step in STEPS:
        base = measure("-c", STEPS[step], tmp_path / "small")[2]
        clips, _, memory = measure("-c", STEPS[step], tmp_path / "large")
        assert clips == 515_987
        assert base + 4 * (memory - base) < 2 * GIB, step
