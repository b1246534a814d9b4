"""Every command of docs/own-data.md, one after the other, on real clips."""

import csv
import lzma
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.corpus_case import real_audio

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs/own-data.md").read_text("utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
EAT = ROOT / "tests/golden/tiny_fairseq_pretrain.pt.xz"
# What a training of the pages' commands gets at their end, to be short.
FEW = "--max_epoch 2 --num_iters_per_epoch 2 --batch_size 4 --accum_grad 1"
SHORT = "--model_conf clip_frames=64 --num_workers 0"
EXTRA = {
    "--pretrain1_args": f"{FEW} {SHORT} --model_conf clone_batch=2",
    "--pretrain2_args": f"{FEW} {SHORT} --model_conf clone_batch=2",
    "--finetune_args": "--max_epoch 1 --num_iters_per_epoch 2 --batch_size 4 "
    "--num_workers 0",
}
# The decoder of the tiny weights.
DECODER = " --model_conf decoder_conf.num_layers=2 --model_conf decoder_conf.groups=4"


def write(path, *waves):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.concatenate(waves), 16_000)


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """SOUNDS: the folders that the page names, of ESC-50, UrbanSound8K and digits."""
    folder = tmp_path_factory.mktemp("sounds")
    corpora = {name: real_audio(name) for name in ("esc50-mini", "us8k-mini")}
    corpora["fsdd-mini"] = real_audio("fsdd-mini")
    street = sorted((corpora["us8k-mini"] / "audio").iterdir())[::56]
    digits = sorted((corpora["fsdd-mini"] / "recordings").iterdir())[::100]
    for path in [*street, *digits]:
        (folder / "recordings").mkdir(exist_ok=True)
        shutil.copy(path, folder / "recordings")
    with open(corpora["esc50-mini"] / "meta/esc50.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    clips: dict = {}
    for row in rows:
        clips.setdefault(row["category"], []).append(row)
    few = [row for category in sorted(clips)[:4] for row in clips[category]]
    waves, lines = [], ["path,start,end,label"]
    for index, row in enumerate(few):
        source = corpora["esc50-mini"] / "audio" / row["filename"]
        place = folder / "labelled" / row["category"].replace("_", " ")
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, place)
        waves.append(soundfile.read(source, dtype="float32")[0])
        start = 5 * (index % 2)
        name = f"day{index // 2:02d}.wav"
        lines.append(f"{name},{start + 0.5},{start + 4.25},{row['category']}")
    for day, pair in enumerate(zip(waves[::2], waves[1::2], strict=True)):
        write(folder / f"annotated/day{day:02d}.wav", *pair)
    (folder / "annotated/metadata.csv").write_text("\n".join(lines))
    for number in range(3):
        write(
            folder / f"field/night{number}.flac", *waves[number::4], *waves[number::5]
        )
    weights = lzma.decompress(EAT.read_bytes())
    (folder / "EAT-base_epoch10_pt.pt").write_bytes(weights)
    # a runner of Slurm's name, that starts jobs here, and the command it would use
    (folder / "espnet/utils").mkdir(parents=True)
    runner = folder / "espnet/utils/slurm.pl"
    script = '#!/bin/sh\necho "$@" >> "$(dirname "$0")/jobs"\n'
    runner.write_text(f'{script}exec "{ROOT}/egs2/sslam/utils/run.pl" "$@"\n')
    runner.chmod(0o755)
    runner.with_name("sbatch").symlink_to("/bin/false")
    return folder


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, sounds):
    """A copy of the recipe, so that what it makes lies in a folder of the test."""
    copy = tmp_path_factory.mktemp("clone") / "egs2/sslam"
    made = shutil.ignore_patterns("data", "dump", "exp", "*_replaced")
    shutil.copytree(ROOT / "egs2/sslam", copy, ignore=made)
    return copy


def run(recipe, sounds, block):
    """Run a block of commands as bash does; what it printed."""
    extra = dict(EXTRA)
    if "--phase1" in block:
        extra["--pretrain2_args"] += DECODER
    words = " ".join(f"{option} '{value}'" for option, value in extra.items())
    words += f" --python '{sys.executable}' --ngpu 0 --nj 2"
    lines = block.replace("./run.sh", "run_sh").replace("SOUNDS", str(sounds))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    python = f'"{sys.executable}" -m espnet2_sslam.bin.sslam "$@"'
    script = f'run_sh() {{ ./run.sh "$@" {words}; }}\nsslam() {{ {python}; }}\n{lines}'
    done = subprocess.run(
        ["bash", "-euc", script],
        cwd=recipe,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, f"{block}\n{done.stdout}"
    return done.stdout


def test_the_page_names_files_that_exist():
    for name in re.findall(r"`?((?:conf|tests)/[\w/]+\.(?:yaml|py))", TEXT):
        assert (ROOT / name).is_file(), name
    for name in re.findall(r"\]\(([^)#]+)", TEXT):
        assert (ROOT / "docs" / name).exists(), name
    assert len(BLOCKS) >= 9


@pytest.mark.slow
def test_every_command_of_the_page_runs(recipe, sounds):
    printed = [run(recipe, sounds, block) for block in BLOCKS]
    everything = "\n".join(printed)
    exp = recipe / "exp"
    # unlabelled, then labelled
    assert (exp / "folder/pretrain/phase2_mine_seed1/latest.pth").exists()
    assert len(np.load(sounds / "features.npz").files) > 0
    for folder in "birds", "events":
        text = (exp / folder / "RESULTS.md").read_text()
        assert re.search(r"^\| phase2 \| \d", text, re.MULTILINE), text
    assert (sounds / "labels.csv").stat().st_size > 0
    assert (sounds / "events.tsv").read_text().startswith("filename")
    names = (recipe / "dump/birds/raw/birds/label_names.tsv").read_text()
    assert "can opening" in names
    # times cut clips, and long recordings are cut
    clips = (recipe / "dump/events/raw/pretrain/train/utt2num_samples").read_text()
    assert {line.split()[1] for line in clips.splitlines()} == {"60000"}
    clips = (recipe / "dump/field/raw/pretrain/train/utt2num_samples").read_text()
    assert max(int(line.split()[1]) for line in clips.splitlines()) <= 168_000
    assert "3 of 3 recordings are longer than 10 s and were cut into" in everything
    # EAT, a size, memory, curves, time, Slurm
    assert "teacher taken, decoder taken" in everything
    assert (exp / "folder/pretrain/phase2_small_seed1/latest.pth").exists()
    config = exp / "folder/pretrain/phase1_lean_seed1/config.yaml"
    assert "activation_checkpointing: all" in config.read_text()
    assert "patch loss:" in everything
    assert "Estimated time to finish" in everything
    assert "phase1_cluster_seed1" in (sounds / "espnet/utils/jobs").read_text()


@pytest.mark.slow
def test_the_log_says_what_share_of_long_recordings_a_pass_takes(recipe, sounds):
    block = "./run.sh --corpus folder --corpus_dir SOUNDS/field --datadir data/long "
    block += "--dumpdir dump/long --expdir exp/long --seeds 1 --pretrain_tag long "
    run(recipe, sounds, f"{block} --stop_stage 4")
    log = (recipe / "exp/long/pretrain/phase1_long_seed1/train.log").read_text()
    assert re.search(r"recordings, 0\.\d+ h; a pass is \d+ crops of \d+ frames", log)
    assert int(re.search(r"batches, (\d+) % of the audio", log)[1]) > 90
    report = (recipe / "dump/long/raw/report/report.txt").read_text()
    assert "longer than 10.24 s" in report
