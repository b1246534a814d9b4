"""Every benchmark from its miniature tree to the table beside the paper's numbers."""

import importlib
import json
import lzma
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.corpus_case import real_audio

RECIPE = Path(__file__).resolve().parent.parent / "egs2" / "sslam"
GOLDEN = Path(__file__).resolve().parent / "golden"
TINY = "tiny_fairseq_pretrain.pt"  # in the authors' layout: what one would download
FEW = (
    "--max_epoch 1 --num_iters_per_epoch 2 --batch_size 4 --num_workers 0 "
    "--use_amp false --scheduler_conf warmup_steps=0"
)
# word: (corpus, protocols, more options, rows of the table, published number)
CASES = {
    "as2m": ("audioset", "finetune mean", "", 2, "SSLAM 50.2 (table1)"),
    "as20k": ("audioset", "finetune linear", "", 2, "SSLAM 16.9 (table2)"),
    "esc50": ("esc50", "finetune mean", "", 2, "SSLAM 96.2 (table1)"),
    "ks1": ("speechcommands", "finetune attentive", "", 2, "SSLAM 98.8 (table1)"),
    "ks2": ("speechcommands", "finetune weighted", "", 2, "SSLAM 98.1 (table1)"),
    "spass": ("spass", "finetune linear", "--scenes market", 2, "SSLAM 68.5 (table2)"),
    "urbansed": ("urbansed", "finetune linear", "", 4, "SSLAM 71.4 (table2)"),
    "idmt": ("idmt_desed_fl", "finetune linear", "", 2, "SSLAM 94.5 (table2)"),
    "fsd50k": ("fsd50k", "finetune mean", "", 2, "-"),
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A checkpoint as the authors' trainer writes it, with a tiny encoder."""
    path = tmp_path_factory.mktemp("weights") / TINY
    path.write_bytes(lzma.decompress((GOLDEN / f"{TINY}.xz").read_bytes()))
    return path


def make_trees(folder, corpora, clips=None):
    """Make the miniature of each corpus, and say where it lies as db.sh would."""
    places = {}
    for corpus in corpora:
        module = importlib.import_module(f"tests.corpora.{corpus}")
        module.make(folder / corpus, clips)
        places[corpus.upper()] = str(folder / corpus)
    return places


def run(folder, places, *options):
    """Run run.sh below `folder` and return what it printed."""
    given = {
        "--python": sys.executable,
        "--datadir": folder / "data",
        "--dumpdir": folder / "dump",
        "--expdir": folder / "exp",
        "--seeds": "1",
        "--nj": 2,
    }
    words = [*(word for pair in given.items() for word in pair), *options]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, **places}
    done = subprocess.run(
        [str(RECIPE / "run.sh"), *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=590,
        env=environment,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("word", CASES)
def test_a_benchmark_runs_from_its_tree_to_the_table(tmp_path, weights, word):
    corpus, protocol, data_args, rows, published = CASES[word]
    places = make_trees(tmp_path, [corpus])
    options = ["--downstream", word, "--protocol", protocol, "--data_args", data_args]
    options += ["--models", f"sslam={weights}"]
    # The miniature has fewer clips than an epoch of weighted sampling.
    few = (
        f"{FEW} --balanced_clips_per_epoch {'8' if word in ('as2m', 'ks1') else 'none'}"
    )
    output = run(tmp_path, places, *options, "--finetune_args", few)
    assert "did not end well" not in output
    results = (tmp_path / f"exp/{word}/RESULTS.md").read_text()
    assert "All expected runs are there and finished." in results
    table = (tmp_path / "exp/BENCHMARKS.md").read_text()
    lines = [line for line in table.splitlines() if re.match(r"\| .*\d \(\d", line)]
    assert len(lines) == rows, table
    assert any(published in line for line in lines), table
    for folder in (tmp_path / f"exp/{word}").glob("*/sslam_seed1/*/last/*"):
        scored = (folder / "metrics.json").read_text()
        assert '"intervals"' in scored and '"auc"' in scored
    again = run(tmp_path, places, *options, "--finetune_args", few, "--stage", 6)
    assert "started" not in again


@pytest.mark.slow
def test_a_list_of_benchmarks_runs_on_real_clips(tmp_path, weights):
    """One command for several corpora, whose miniatures hold parts of real clips."""
    clips = sorted((real_audio("esc50-mini") / "audio").glob("*.flac"))
    corpora = ["audioset", "speechcommands", "idmt_desed_fl"]
    places = make_trees(tmp_path, corpora, clips)
    options = ["--downstream", "as20k ks2 idmt ", "--models", f"sslam={weights}"]
    options += ["--finetune_args", FEW]
    run(tmp_path, places, *options, "--stop_stage", 3)
    output = run(tmp_path, places, *options, "--stage", 6, "--stop_stage", 7)
    assert "did not end well" not in output
    for word, kinds in {"as20k": 2, "ks2": 1, "idmt": 2}.items():
        report = json.loads(
            (tmp_path / f"dump/{word}/raw/report/report.json").read_text()
        )
        assert not any(split["left_out"] for split in report["splits"].values())
        results = (tmp_path / f"exp/{word}/RESULTS.md").read_text()
        section = results.split("## What differs from the papers")[1]
        assert section.count(".yaml, changed |") == kinds
        assert "All expected runs are there and finished." in results
    table = (tmp_path / "exp/BENCHMARKS.md").read_text()
    assert table.count("SSLAM 98.1 (table1)") == 1 and "missing" not in table
