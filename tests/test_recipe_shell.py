"""The recipe's shell: which commands it gives, what it skips, and how it complains.

A stand-in for Python makes the files that the commands would make and notes their
options, so that a run of all stages takes seconds.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

RECIPE = Path(__file__).resolve().parent.parent / "egs2" / "sslam"
STAND_IN = f"""#!{sys.executable}
import hashlib, os, sys
from pathlib import Path

words = sys.argv[1:]
if words[0] == "-":  # a program on stdin
    os.execv(sys.executable, [sys.executable, *words])
here = Path(__file__).parent
if "espnet2.bin.launch" in words:
    words = words[words.index("--") + 2 :]
name = words[1].rsplit(".", 1)[-1] if words[0] == "-m" else Path(words[0]).stem
with open(here / "calls", "a") as file:
    file.write(" ".join([name, *words[1 + (words[0] == "-m") :]]) + "\\n")


def value(option):
    return Path(words[words.index(option) + 1])


def make(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        (folder / file.replace("__", ".")).write_text(text)


if (here / f"fail_{{name}}").exists():
    sys.exit(f"error: {{name}} needs 2 clips, got 1")
if name.startswith("data_") and "--datadir" in words:
    make(value("--datadir"), downstream__txt=(here / "downstream.txt").read_text())
    for split in "pretrain/train", "pretrain/valid", "a/train", "a/valid", "a/test":
        make(value("--datadir") / split, wav__scp=split, utt2num_samples=split)
        make(value("--datadir") / split, feats__scp=split, utt2num_frames=split)
        make(value("--datadir") / split, text=split)
    make(value("--datadir") / "a", classes__txt="x")
elif name == "format_audio":
    os.system(f"mkdir -p {{value('--outdir')}}")
    os.system(f"cp -rp {{value('--datadir')}}/* {{value('--outdir')}}")
elif name == "data_report":
    stats = '{{"mean": -4.5, "std": 3.25}}'
    make(value("--dump") / "report", report__json="1", fbank_stats__json=stats)
elif name in ("sslam_train", "sslam_cls_train", "beats_cls_train"):
    weights = hashlib.sha256(" ".join(words).encode()).hexdigest()
    make(value("--output_dir"), config__yaml="x", latest__pth=weights)
    make(value("--output_dir"), valid__mAP__best__pth=weights)
elif name == "score_model":
    for which in "last", "best":
        make(value("--output_dir") / which / value("--test_dir").name,
             predictions__npz="scores", metrics__json="{{}}")
elif name == "convert_weights":
    make(Path(words[2]), config__yaml=words[1], encoder__pth=words[1])
elif name in ("sslam_results", "sslam_benchmarks"):
    value("--output").write_text("results")
"""


class Recipe:
    """run.sh with the stand-in, in a folder of its own."""

    def __init__(self, folder):
        self.folder = folder
        self.exp = folder / "exp"
        (folder / "downstream.txt").write_text(
            "a multi_label a/train a/valid a/test\n"
            "a/fold1 multi_class a/train a/valid a/test\n"
        )
        for name in ("pretrain_eat", "pretrain_sslam", "linear"):
            (folder / f"{name}.yaml").write_text(f"# {name}\n")
        python = folder / "python"
        python.write_text(STAND_IN)
        python.chmod(0o755)

    def command(self, *options):
        given = {
            "--python": self.folder / "python",
            "--datadir": self.folder / "data",
            "--dumpdir": self.folder / "dump",
            "--expdir": self.exp,
            "--pretrain_config": self.folder / "pretrain_eat.yaml",
            "--pretrain2_config": self.folder / "pretrain_sslam.yaml",
            "--finetune_config": self.folder / "linear.yaml",
            "--seeds": "1",
        }
        words = [str(word) for pair in given.items() for word in pair]
        return [str(RECIPE / "run.sh"), *words, *map(str, options)]

    def run(self, *options):
        """Run the stages; return (status, stdout, stderr, the calls that were made)."""
        calls = self.folder / "calls"
        calls.unlink(missing_ok=True)
        # The recipe's own tools run with the python3 of the search path.
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        done = subprocess.run(
            self.command(*options),
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, "PATH": path},
        )
        made = calls.read_text().splitlines() if calls.exists() else []
        return done.returncode, done.stdout, done.stderr, made


@pytest.fixture
def recipe(tmp_path):
    return Recipe(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder in which all stages have run, and the calls that they made."""
    recipe = Recipe(tmp_path_factory.mktemp("finished"))
    status, _, stderr, calls = recipe.run()
    assert status == 0, stderr
    return recipe, calls


@pytest.fixture
def copy(finished, tmp_path):
    """The finished folder to change: it is put back as it was afterwards."""
    recipe, _ = finished
    kept = tmp_path / "kept"
    shutil.copytree(recipe.folder, kept)
    yield recipe
    shutil.rmtree(recipe.folder)
    shutil.copytree(kept, recipe.folder)


def names(calls):
    return [call.split()[0] for call in calls]


def options_of(calls, name, *parts):
    """Return the only call of this command that holds all the parts."""
    [call] = [c for c in calls if c.split()[0] == name and all(p in c for p in parts)]
    return call


def test_all_stages_call_their_commands_in_order(finished):
    _, calls = finished
    made = names(calls)
    assert made[:3] == ["data_mini", "format_audio", "data_report"]
    assert made[3:5] == ["sslam_train"] * 2
    assert made[5:11] == ["sslam_cls_train"] * 6  # 3 models on 2 sets
    assert made[11:-1] == ["score_model"] * 6
    assert made[-1] == "sslam_results"


def test_pre_training_gets_data_statistics_and_seed(finished):
    recipe, calls = finished
    dump = recipe.folder / "dump" / "raw"
    call = options_of(calls, "sslam_train", "/phase1_eat_seed1 ")
    for part in (
        f"--config {recipe.folder}/pretrain_eat.yaml",
        "--seed 1",
        "--input_size 1 ",
        f"{dump}/pretrain/train/wav.scp,speech,sound",
        f"--valid_shape_file {dump}/pretrain/valid/utt2num_samples",
        "--encoder_conf fbank_mean=-4.5 --encoder_conf fbank_std=3.25",
        "--resume true",
    ):
        assert part in call
    assert "--init_param" not in call


def test_phase_2_starts_from_phase_1_with_a_fresh_count(finished):
    recipe, calls = finished
    call = options_of(calls, "sslam_train", "/phase2_sslam_seed1 ")
    phase1 = recipe.exp / "pretrain" / "phase1_eat_seed1"
    assert f"--init_param {phase1}/latest.pth:::num_updates" in call


@pytest.mark.parametrize("phase, tag", [(1, "eat"), (2, "sslam")])
def test_fine_tuning_takes_the_encoder_and_its_statistics(finished, phase, tag):
    recipe, calls = finished
    out = recipe.exp / "linear" / f"phase{phase}_seed1" / "a_fold1"
    call = options_of(calls, "sslam_cls_train", f"--output_dir {out} ")
    source = recipe.exp / "pretrain" / f"phase{phase}_{tag}_seed1"
    assert f"--init_param {source}/latest.pth:encoder:encoder" in call
    assert "--model_conf task=multi_class" in call
    assert "fbank_mean" not in call and "--encoder_config" not in call


def test_a_random_encoder_is_like_phase_1_without_its_weights(finished):
    recipe, calls = finished
    out = recipe.exp / "linear" / "random_seed1" / "a "
    call = options_of(calls, "sslam_cls_train", f"--output_dir {out}")
    config = recipe.exp / "pretrain" / "phase1_eat_seed1" / "config.yaml"
    assert f"--encoder_config {config}" in call and "--init_param" not in call


def test_scoring_uses_the_last_and_the_best_model(finished):
    recipe, calls = finished
    run = recipe.exp / "linear" / "phase1_seed1" / "a"
    call = options_of(calls, "score_model", f"--output_dir {run} ")
    assert f"--checkpoint last={run}/latest.pth" in call
    assert f"--checkpoint best={run}/valid.mAP.best.pth" in call
    assert "--task multi_label" in call


def test_a_second_run_only_writes_the_report_again(copy):
    status, stdout, _, calls = copy.run()
    assert status == 0 and names(calls) == ["sslam_results"]
    assert "(phase 1 seed 1) up to date" in stdout


def test_more_processes_do_not_invalidate_anything(copy):
    assert names(copy.run("--nj", 1)[3]) == ["sslam_results"]


def test_a_changed_config_runs_what_depends_on_it_again_and_keeps_the_old(copy):
    (copy.folder / "pretrain_sslam.yaml").write_text("# other\n")
    before = (copy.exp / "pretrain/phase2_sslam_seed1/latest.pth").read_text()
    status, stdout, _, calls = copy.run("--pretrain_args", "", "--stop_stage", 5)
    assert status == 0 and names(calls) == ["sslam_train"]
    assert "phase2_sslam_seed1" in calls[0]
    assert "was made from other inputs: moved to" in stdout
    [old] = (copy.folder / "exp_replaced").iterdir()
    assert (old / "latest.pth").read_text() == before


def test_changed_weights_are_fine_tuned_and_scored_again(copy):
    (copy.folder / "pretrain_sslam.yaml").write_text("# other\n")
    weights = copy.exp / "pretrain/phase2_sslam_seed1/latest.pth"
    weights.write_text("other weights")
    calls = copy.run("--stage", 6)[3]
    trained = [call for call in calls if call.startswith("sslam_cls_train")]
    assert len(trained) == 2 and all("phase2_seed1" in call for call in trained)


def test_a_result_that_was_changed_or_removed_is_made_again(copy):
    scores = copy.exp / "linear/phase1_seed1/a/best/test/metrics.json"
    scores.unlink()
    calls = copy.run("--stage", 7)[3]
    assert names(calls) == ["score_model", "sslam_results"]
    assert scores.exists()


def test_new_data_run_all_stages_that_read_them(copy):
    (copy.folder / "data/pretrain/train/utt2num_samples").write_text("more")
    calls = copy.run("--stage", 2, "--stop_stage", 5)[3]
    # Phase 2 starts from the weights of phase 1, which are new too.
    assert names(calls) == ["format_audio", "data_report"] + ["sslam_train"] * 2


def test_interrupted_training_is_continued_in_place(copy):
    run = copy.exp / "pretrain/phase1_eat_seed1"
    (run / ".done").unlink()
    (run / "checkpoint.pth").write_text("kept")
    status, _, _, calls = copy.run("--stage", 4, "--stop_stage", 4)
    assert status == 0 and names(calls) == ["sslam_train"]
    assert (run / "checkpoint.pth").read_text() == "kept"


def test_several_seeds_tags_and_configs_have_their_own_directories(copy):
    other = copy.folder / "full.yaml"
    other.write_text("# full\n")
    status, _, stderr, calls = copy.run(
        *("--seeds", "1 2", "--models", "phase1", "--pretrain_args", "--lr 0.1"),
        *("--finetune_config", f"{copy.folder}/linear.yaml {other}"),
    )
    assert status == 0, stderr
    assert {p.name for p in (copy.exp / "pretrain").iterdir()} >= {
        "phase1_eat_lr0.1_seed1",
        "phase1_eat_lr0.1_seed2",
    }
    assert (copy.exp / "full/phase1_seed2/a_fold1/latest.pth").exists()
    assert "--seeds 1 2 --models phase1 --tags linear full" in calls[-1]
    assert "--lr 0.1" in options_of(calls, "sslam_train", "phase2", "--seed 2")


def test_many_options_make_no_name_too_long_for_a_file(copy):
    many = " ".join(f"--option_{letter * 20} {letter * 20}" for letter in "abcdef")
    found = set()
    for args in (many, many + "g"):
        words = ["--stage", 6, "--models", "phase1", "--finetune_args", args]
        status, _, stderr, calls = copy.run(*words)
        assert status == 0, stderr
        call = options_of(calls, "sslam_cls_train", "phase1_seed1/a ")
        run = call.split("--output_dir ")[1].split()[0]
        found.add(run.split("/")[-3])
    assert len(found) == 2 and all(len(tag) < 90 for tag in found)
    assert all(tag.startswith("linear_option_aaaa") for tag in found)


def test_features_as_input_have_their_own_lists_and_tags(recipe):
    status, _, stderr, calls = recipe.run("--feats_type", "fbank", "--models", "phase1")
    assert status == 0, stderr
    call = options_of(calls, "sslam_train", "/phase1_eat_fbank_seed1 ")
    train = recipe.folder / "dump/fbank/pretrain/train"
    assert f"{train}/feats.scp,speech,kaldi_ark" in call
    assert f"{train}/utt2num_frames" in call and "--input_size 128" in call


def test_a_random_encoder_without_pre_training_takes_the_config_and_statistics(recipe):
    recipe.run("--stop_stage", 3)
    calls = recipe.run("--stage", 6, "--stop_stage", 6, "--models", "random")[3]
    assert all(
        f"--encoder_config {recipe.folder}/pretrain_eat.yaml" in call
        and "fbank_mean=-4.5" in call
        for call in calls
    )
    assert len(calls) == 2


def test_a_corpus_without_labels_has_nothing_to_fine_tune(recipe):
    (recipe.folder / "downstream.txt").write_text("")
    status, stdout, _, calls = recipe.run()
    assert status == 0 and "sslam_cls_train" not in names(calls)
    assert "stage 6: there is nothing to do" in stdout


def test_data_made_by_hand_need_no_stage_1(copy):
    (copy.folder / "data/.done").unlink()
    (copy.folder / "data/.begun").unlink()
    assert copy.run("--stage", 2, "--stop_stage", 2)[0] == 0


def one_line(outcome):
    """Check that the recipe ended with status 1 and one line; return the line."""
    status, _, stderr, _ = outcome
    assert status == 1 and stderr.count("\n") == 1, stderr
    return stderr


@pytest.mark.parametrize("stage, earlier", [(2, 1), (3, 2), (4, 3), (5, 4), (6, 3)])
def test_a_stage_before_its_predecessor_names_the_stage_to_run(recipe, stage, earlier):
    line = one_line(recipe.run("--stage", stage, "--stop_stage", stage))
    assert f"stage {stage} needs" in line and f"--stage {earlier}" in line


@pytest.mark.parametrize("model, earlier", [("phase1", 4), ("phase2", 5)])
def test_fine_tuning_names_the_pre_training_that_is_missing(recipe, model, earlier):
    recipe.run("--stop_stage", 3)
    line = one_line(recipe.run("--stage", 6, "--stop_stage", 6, "--models", model))
    assert f"--stage {earlier}" in line


def test_scoring_before_fine_tuning_names_stage_6(recipe):
    recipe.run("--stop_stage", 5)
    assert "--stage 6" in one_line(recipe.run("--stage", 7))


@pytest.mark.parametrize(
    "options, complaint",
    [
        (["--sead", 1], "unknown option --sead"),
        (["--PATH", "x"], "unknown option --PATH"),
        (["--stage"], "--stage needs a value"),
        (["--stage=1"], "write --option value"),
        (["--stage", "one"], "--stage is a whole number"),
        (["--stage", 3, "--stop_stage", 2], "comes after"),
        (["--seeds", "1 x"], "--seeds holds whole numbers, not 'x'"),
        (["--models", "phase3"], "not 'phase3'"),
        (["--models", "phase1=x.pt"], "needs the form NAME=WEIGHTS with a new name"),
        (["--models", "sslam="], "needs the form NAME=WEIGHTS"),
        (["--models", "a/b=x.pt"], "the name 'a/b'"),
        (["--models", "eat=x.pt eat=y.pt"], "holds eat twice"),
        (
            ["--downstream", "as20k esc51"],
            "ks2 spass urbansed idmt fsd50k, not 'esc51'",
        ),
        (["--downstream", "ks1", "--protocol", "lin"], "--protocol holds finetune,"),
        (["--downstream", "ks1 ks2", "--corpus_dir", "x"], "is for one corpus"),
        (["--downstream", "ks1", "--stop_stage", 8], "ends with stage 7, not 8"),
        (["--pretrain_from", "exp/x"], "leave out stages 4 and 5"),
        (["--corpus", "audio"], "--corpus is one of audioset, esc50,"),
        (["--feats_type", "mfcc"], "--feats_type is raw or fbank"),
        (["--pretrain_config", "conf/none.yaml"], "no config conf/none.yaml"),
        (["--corpus", "esc50"], "needs --corpus_dir"),
        (["--corpus", "esc50", "--corpus_dir", "none"], "no corpus in none"),
        (["stray"], "got 'stray'"),
    ],
)
def test_a_wrong_option_is_one_line(recipe, options, complaint):
    assert complaint in one_line(recipe.run(*options))


def test_a_failed_training_is_named_with_its_error_and_the_rest_goes_on(recipe):
    recipe.run("--stop_stage", 3)
    (recipe.folder / "fail_sslam_train").touch()
    status, _, stderr, calls = recipe.run("--stage", 4, "--seeds", "1 2")
    assert status == 1 and len(calls) == 2
    lines = stderr.splitlines()
    assert len(lines) == 3 and lines[2].startswith("run.sh: stage 4 did not end well")
    for line in lines[:2]:
        assert "failed: error: sslam_train needs 2 clips, got 1 (log: " in line


def test_a_failed_data_stage_leaves_no_record_of_success(recipe):
    (recipe.folder / "fail_data_mini").touch()
    assert recipe.run("--stop_stage", 1)[0] == 1
    assert not (recipe.folder / "data/.done").exists()
    assert "--stage 1" in one_line(recipe.run("--stage", 2))


def test_help_names_every_option():
    shown = subprocess.run(
        [RECIPE / "run.sh", "--help"], capture_output=True, text=True, check=True
    ).stdout
    text = (RECIPE / "run.sh").read_text()
    defaults = text[: text.index("help_message=")].splitlines()
    options = [line.split("=")[0] for line in defaults if "=" in line[:20]]
    assert len(options) > 20
    for option in options:
        assert f"--{option}" in shown, option


def path_after(script, **variables):
    """Return what `script` prints after path.sh was sourced."""
    return subprocess.run(
        ["bash", "-euc", f"cd {RECIPE}; . ./path.sh; {script}"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "python": sys.executable, **variables},
    ).stdout


def test_the_runner_of_an_espnet_clone_comes_before_ours(tmp_path):
    assert path_after("command -v run.pl") == f"{RECIPE}/utils/run.pl\n"
    clone = tmp_path / "tools/kaldi/egs/wsj/s5/utils"
    clone.mkdir(parents=True)
    for name in "run.pl", "slurm.pl":
        (clone / name).touch(mode=0o755)
    script = "command -v run.pl slurm.pl once.py"
    assert path_after(script, MAIN_ROOT=str(tmp_path)).splitlines() == [
        f"{clone}/run.pl",
        f"{clone}/slurm.pl",
        f"{RECIPE}/utils/once.py",
    ]


@pytest.mark.parametrize("backend", ["local", "slurm", "queue"])
def test_the_backend_names_the_runner(backend):
    runner = {"local": "run.pl", "slurm": "slurm.pl", "queue": "queue.pl"}[backend]
    script = '. ./cmd.sh; echo "${train_cmd} ${cuda_cmd}"'
    assert path_after(script, cmd_backend=backend) == f"{runner} {runner}\n"
