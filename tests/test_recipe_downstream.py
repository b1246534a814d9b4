"""Every benchmark from its miniature tree to the table beside the paper's numbers."""

import importlib
import json
import lzma
import re
from contextlib import suppress
from pathlib import Path

import pytest

from tests.corpus_case import output_folders, real_audio, run_recipe

RECIPE = Path(__file__).resolve().parent.parent / "egs2" / "sslam"
GOLDEN = Path(__file__).resolve().parent / "golden"
TINY = "tiny_fairseq_pretrain.pt"  # in the authors' layout: what one would download
FEW = (
    "--max_epoch 1 --num_iters_per_epoch 2 --batch_size 4 --num_workers 0 "
    "--use_amp false --scheduler_conf warmup_steps=0"
)
CASES = {  # word: corpus, protocols, more options, rows of the table, published number
    "as2m": ("audioset", "finetune", "", 1, "SSLAM 50.2 (table1)"),
    "esc50": ("esc50", "finetune mean", "", 2, "SSLAM 96.2 (table1)"),
    "ks1": ("speechcommands", "finetune attentive", "", 2, "SSLAM 98.8 (table1)"),
    "spass": ("spass", "finetune linear", "--scenes market", 2, "SSLAM 68.5 (table2)"),
    "urbansed": ("urbansed", "finetune linear", "", 4, "SSLAM 71.4 (table2)"),
    "fsd50k": ("fsd50k", "weighted gated prototypes", "", 3, "-"),
}
LIST = {  # word: corpus, trainings, published number
    "as20k": ("audioset", 2, "SSLAM 16.9 (table2)"),
    "ks2": ("speechcommands", 1, "SSLAM 98.1 (table1)"),
    "idmt": ("idmt_desed_fl", 2, "SSLAM 94.5 (table2)"),
}
pytestmark = pytest.mark.slow


@pytest.fixture
def weights(tmp_path):
    """A checkpoint as the authors' trainer writes it, with a tiny encoder."""
    packed = (GOLDEN / f"{TINY}.xz").read_bytes()
    (tmp_path / TINY).write_bytes(lzma.decompress(packed))


def make_trees(folder, corpora, clips=None):
    """Make the miniature of each corpus, and say where it lies as db.sh would."""
    places = {}
    for corpus in corpora:
        module = importlib.import_module(f"tests.corpora.{corpus}")
        module.make(folder / corpus, clips)
        places[corpus.upper()] = str(folder / corpus)
    return places


def run(folder, places, *options):
    """Run run.sh below `folder`: what it printed, and the rows of the table."""
    words = [*output_folders(folder), "--seeds", 1, "--nj", 2]
    words += ["--models", f"sslam={folder / TINY}", *options]
    printed = run_recipe(*words, **places)
    table = (folder / "exp/BENCHMARKS.md").read_text()
    return printed, re.findall(r"^\| .*\d \(\d.*$", table, re.MULTILINE)


def results_of(folder, word):
    """RESULTS.md of a benchmark, which must be complete."""
    text = (folder / f"exp/{word}/RESULTS.md").read_text()
    assert "All expected runs are there and finished." in text
    return text


@pytest.mark.parametrize("word", CASES)
def test_a_benchmark_runs_from_its_tree_to_the_table(tmp_path, weights, word):
    corpus, protocol, data_args, number, published = CASES[word]
    # The miniature has fewer clips than an epoch of weighted sampling.
    clips = "8" if word in ("as2m", "ks1") else "none"
    _, rows = run(
        *(tmp_path, make_trees(tmp_path, [corpus]), "--downstream", word),
        *("--protocol", protocol, "--data_args", data_args),
        *("--finetune_args", f"{FEW} --balanced_clips_per_epoch {clips}"),
    )
    results_of(tmp_path, word)
    assert len(rows) == number and any(published in row for row in rows), rows
    for folder in (tmp_path / f"exp/{word}").glob("*/sslam_seed1/*/last/*"):
        scored = (folder / "metrics.json").read_text()
        assert '"intervals"' in scored and '"auc"' in scored


def test_a_list_of_benchmarks_runs_once_and_on_real_clips(tmp_path, weights):
    """One command for several corpora; their miniatures hold parts of real clips."""
    clips = None
    with suppress(pytest.skip.Exception):
        clips = sorted((real_audio("esc50-mini") / "audio").glob("*.flac"))
    places = make_trees(tmp_path, {corpus for corpus, _, _ in LIST.values()}, clips)
    options = ["--downstream", " ".join(LIST), "--finetune_args", FEW]
    _, rows = run(tmp_path, places, *options)
    assert len(rows) == 5
    for word, (_, trainings, published) in LIST.items():
        report = tmp_path / f"dump/{word}/raw/report/report.json"
        splits = json.loads(report.read_text())["splits"].values()
        assert not any(split["left_out"] for split in splits)
        section = results_of(tmp_path, word).split("## What differs from the papers")[1]
        assert section.count(".yaml, changed |") == trainings
        assert any(published in row for row in rows), rows
    again, _ = run(tmp_path, places, *options, "--stage", 6)
    assert "started" not in again
