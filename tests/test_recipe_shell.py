"""The recipe's shell: which commands it gives, what it skips, and how it complains.

A stand-in for Python makes the files that the commands would make and notes their
options, so that a run of all stages takes seconds.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

RECIPE = Path(__file__).resolve().parent.parent / "egs2" / "sslam"
# The recipe's own tools run with the python3 of the search path.
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
STAND_IN = f"""#!{sys.executable}
import hashlib, os, sys
from pathlib import Path

words = sys.argv[1:]
if words[0] == "-c" or words[0].endswith("once.py"):  # a program of its own
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
if (here / f"stop_{{name}}").exists():  # as a launcher does after a signal
    Path(sys.argv[sys.argv.index("--log") + 1]).write_text("# Ended (code 85) now\\n")
    sys.exit(1)
if name.startswith("data_") and "--datadir" in words:
    make(value("--datadir"), downstream__txt=(here / "downstream.txt").read_text())
    for split in "pretrain/train", "pretrain/valid", "a/train", "a/valid", "a/test":
        make(value("--datadir") / split, wav__scp=split, utt2num_samples=split)
        make(value("--datadir") / split, feats__scp=split, utt2num_frames=split)
        make(value("--datadir") / split, text=split, utt2sha256=split)
    make(value("--datadir") / "a", classes__txt="x")
elif name == "format_audio":
    os.system(f"mkdir -p {{value('--outdir')}}")
    os.system(f"cp -rp {{value('--datadir')}}/* {{value('--outdir')}}")
elif name == "data_report":
    stats = '{{"mean": -4.5, "std": 3.25}}'
    make(value("--dump") / "report", report__json="1", fbank_stats__json=stats)
elif name in ("sslam_train", "sslam_cls_train", "beats_cls_train"):
    text = value("--config").read_text() + " ".join(words)
    weights = hashlib.sha256(text.encode()).hexdigest()
    make(value("--output_dir"), config__yaml="x: 1", latest__pth=weights)
    make(value("--output_dir"), valid__mAP__best__pth=weights)
elif name == "score_model":
    for which in "last", "best":
        make(value("--output_dir") / which / value("--test_dir").name,
             predictions__npz="scores", metrics__json="{{}}")
elif name == "convert_weights":
    weights = Path(words[1]).read_text()
    if words[-1] == "--phase1":
        conf = "# 2 blocks\\nencoder_conf: {{depth: 2, fbank_std: 3.5}}\\nfresh: "
        make(Path(words[2]), config__yaml=conf + weights, latest__pth=weights)
    else:
        make(Path(words[2]), config__yaml="x: 1", encoder__pth=weights)
elif name == "sslam_results":
    value("--output").write_text("results")
"""


class Recipe:
    """run.sh with the stand-in, in a folder of its own."""

    def __init__(self, folder):
        self.folder, self.exp = folder, folder / "exp"
        (folder / "downstream.txt").write_text(
            "a multi_label a/train a/valid a/test\n"
            "a/fold1 multi_class a/train a/valid a/test\n"
        )
        self.options = {
            "--python": folder / "python",
            "--datadir": folder / "data",
            "--dumpdir": folder / "dump",
            "--expdir": self.exp,
            "--seeds": "1",
        }
        names = {"pretrain": "pretrain_eat", "pretrain2": "pretrain_sslam"}
        for option, name in {**names, "finetune": "linear"}.items():
            self.options[f"--{option}_config"] = folder / f"{name}.yaml"
            (folder / f"{name}.yaml").write_text(f"# {name}\n")
        (folder / "python").write_text(STAND_IN)
        (folder / "python").chmod(0o755)

    def run(self, *options):
        """Run the stages: (status, stdout, stderr, the calls that were made)."""
        calls = self.folder / "calls"
        calls.unlink(missing_ok=True)
        words = [word for pair in self.options.items() for word in pair]
        done = subprocess.run(
            [str(RECIPE / "run.sh"), *map(str, [*words, *options])],
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, "PATH": PATH},
        )
        lines = calls.read_text().splitlines() if calls.exists() else []
        return done.returncode, done.stdout, done.stderr, lines

    def calls(self, *options):
        """Run the stages, which must end well: the calls that were made."""
        status, _, stderr, calls = self.run(*options)
        assert status == 0, stderr
        return calls

    def complaint(self, *options):
        """Run the stages, which must end with one line: the line."""
        status, _, stderr, _ = self.run(*options)
        assert status == 1 and stderr.count("\n") == 1, stderr
        return stderr


@pytest.fixture
def recipe(tmp_path):
    return Recipe(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder in which all stages have run, and the calls that they made."""
    recipe = Recipe(tmp_path_factory.mktemp("finished"))
    return recipe, recipe.calls()


@pytest.fixture
def prepared(finished, recipe):
    """A folder with data for stages 4 to 7."""
    for name in "data", "dump":
        shutil.copytree(finished[0].folder / name, recipe.folder / name)
    return recipe


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the finished folder, elsewhere."""
    shutil.copytree(finished[0].folder, tmp_path / "copy")
    return Recipe(tmp_path / "copy")


def names(calls):
    return [call.split()[0] for call in calls]


def options_of(calls, name, *parts):
    """The only call of this command that holds all the parts."""
    [call] = [c for c in calls if c.split()[0] == name and all(p in c for p in parts)]
    return call


def test_all_stages_call_their_commands_in_order(finished):
    assert names(finished[1]) == [
        *("data_mini", "format_audio", "data_report"),
        *["sslam_train"] * 2,
        *["sslam_cls_train"] * 6,  # 3 models on 2 sets
        *["score_model"] * 6,
        "sslam_results",
    ]


DUMP, PHASE1 = "{0}/dump/raw", "{0}/exp/pretrain/phase1_eat_seed1"
RUN = "{0}/exp/linear/phase1_eat_seed1/a"
CALLS = {  # command and output folder: options that it has (and, behind !, has not)
    "sslam_train /phase1_eat_seed1": [
        "--config {0}/pretrain_eat.yaml --seed 1 --input_size 1 --resume true",
        f"_path_and_name_and_type {DUMP}/pretrain/train/wav.scp,speech,sound",
        f"--valid_shape_file {DUMP}/pretrain/valid/utt2num_samples",
        "--encoder_conf fbank_mean=-4.5 --encoder_conf fbank_std=3.25",
        "!--init_param",
    ],
    "sslam_train /phase2_sslam_seed1": [
        f"--init_param {PHASE1}/latest.pth:::num_updates"
    ],
    "sslam_cls_train /phase1_eat_seed1/a_fold1": [
        f"--init_param {PHASE1}/latest.pth:encoder:encoder",
        f"--class_list {DUMP}/a/classes.txt --model_conf task=multi_class",
        f"--valid_data_path_and_name_and_type {DUMP}/a/valid/text,label,text",
        *("!fbank_mean", "!--encoder_config"),
    ],
    "sslam_cls_train /phase2_sslam_seed1/a": [
        "--init_param {0}/exp/pretrain/phase2_sslam_seed1/latest.pth:encoder:encoder"
    ],
    "sslam_cls_train /random_eat_seed1/a": [
        f"--encoder_config {PHASE1}/config.yaml",
        "!--init_param",
    ],
    "score_model /phase1_eat_seed1/a": [
        f"--checkpoint last={RUN}/latest.pth",
        f"--checkpoint best={RUN}/valid.mAP.best.pth",
        f"--task multi_label --test_dir {DUMP}/a/test",
    ],
}


@pytest.mark.parametrize("call, options", CALLS.items(), ids=list(CALLS))
def test_each_command_gets_its_data_weights_and_options(finished, call, options):
    recipe, calls = finished
    name, run = call.split()
    words = options_of(calls, name, f"{run} ")
    for option in options:
        text = option.removeprefix("!").format(recipe.folder)
        assert (text in words) != option.startswith("!")


def test_a_second_run_with_other_processes_only_writes_the_report_again(finished):
    status, stdout, _, calls = finished[0].run("--nj", 1)
    assert status == 0 and names(calls) == ["sslam_results"]
    assert "(phase 1 seed 1) up to date" in stdout


def begun_again(calls):
    """The trainings among the calls."""
    return [call for call in calls if call.split()[0].endswith("_train")]


HOW = "# a note\nnum_workers: 2\nlog_interval: 5\n"


@pytest.mark.parametrize("change", ["moved", "note", "python", "touched"])
def test_what_does_not_decide_the_result_trains_nothing_again(copy, change):
    options = []
    if change == "note":
        for name in "pretrain_eat", "pretrain_sslam", "linear":
            (copy.folder / f"{name}.yaml").write_text(HOW)
    elif change == "python":
        (copy.folder / "python3.12").symlink_to(copy.folder / "python")
        options = ["--python", copy.folder / "python3.12"]
    elif change == "touched":
        for path in copy.folder.rglob("*"):
            os.utime(path, (1, 1))
    assert begun_again(copy.calls(*options)) == []


@pytest.mark.parametrize("split", ["pretrain/valid", "a/train", "a/test"])
def test_what_audio_holds_decides_what_is_done_again(copy, split):
    """Of each split for what reads it: scoring is redone, trainings are asked for."""
    (copy.folder / f"dump/raw/{split}/utt2sha256").write_text("other")
    status, _, stderr, calls = copy.run("--stage", 4)
    if split == "a/test":
        assert (status, names(calls)) == (0, [*["score_model"] * 6, "sslam_results"])
        return
    assert (status, calls) == (1, [])
    name = "valid/utt2sha256" if "valid" in split else "train/utt2sha256"
    assert f"was made from something else: {name} was " in stderr
    stage = ("phase 1 seed 1" if "pretrain" in split else "a random seed 1") + ":"
    assert stage in stderr and "--replace true" in stderr and "--keep true" in stderr


def content(folder):
    """Every file below a folder but those that say that somebody looked."""
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in (".once.lock", "calls")
    }


def test_a_changed_config_is_named_and_changes_nothing_unasked(copy):
    copy.calls("--stage", 4)
    before = content(copy.exp)
    (copy.folder / "pretrain_sslam.yaml").write_text("optim_conf: {lr: 0.5}\n")
    status, _, stderr, calls = copy.run("--stage", 4)
    assert (status, calls) == (1, []) and content(copy.exp) == before
    assert "phase 2 seed 1: " in stderr
    assert "--optim_conf was nothing, is {'lr': 0.5}. Nothing was changed." in stderr


def test_what_is_replaced_on_request_is_moved_with_all_that_follows(copy):
    (copy.folder / "pretrain_sslam.yaml").write_text("optim_conf: {lr: 0.5}\n")
    before = (copy.exp / "pretrain/phase2_sslam_seed1/latest.pth").read_text()
    _, stdout, _, calls = copy.run("--stage", 4, "--replace", "true")
    work = ["sslam_train", *["sslam_cls_train"] * 2, *["score_model"] * 2]
    assert names(calls) == [*work, "sslam_results"]
    assert all("/phase2_" in call for call in calls[:-1])
    assert "was made from other inputs: moved to" in stdout
    [old] = (copy.folder / "exp_replaced").glob("*pretrain_phase2*")
    assert (old / "latest.pth").read_text() == before
    assert names(copy.calls("--stage", 4)) == ["sslam_results"]


def test_what_is_kept_on_request_is_gone_on_with_and_says_so(copy):
    (copy.folder / "pretrain_sslam.yaml").write_text("optim_conf: {lr: 0.5}\n")
    status, stdout, _, calls = copy.run("--stage", 4, "--keep", "true")
    assert (status, names(calls)) == (0, ["sslam_results"])
    run = copy.exp / "pretrain/phase2_sslam_seed1"
    line = "--optim_conf was nothing, then {'lr': 0.5}"
    assert (run / "kept.txt").read_text() == f"{line}\n"
    assert json.loads((run / ".done").read_text())["kept"] == [line]
    assert "kept: --optim_conf was nothing" in stdout
    assert names(copy.calls("--stage", 4)) == ["sslam_results"]


def test_an_unfinished_training_is_kept_by_the_training_itself(copy):
    (copy.exp / "pretrain/phase1_eat_seed1/.done").unlink()
    (copy.folder / "pretrain_eat.yaml").write_text("optim_conf: {lr: 0.5}\n")
    words = ["--stage", 4, "--stop_stage", 4]
    assert copy.run(*words)[0] == 1
    [call] = copy.calls(*words, "--keep", "true")
    assert "sslam_train" in call and "--keep true" in call


def test_a_raised_number_of_epochs_goes_on_in_place(copy):
    run = copy.exp / "pretrain/phase1_eat_seed1"
    words = ["--stage", 4, "--stop_stage", 4]
    config = copy.folder / "pretrain_eat.yaml"
    config.write_text("max_epoch: 3\n")
    assert copy.run(*words)[0] == 1  # it was not known before
    assert len(copy.calls(*words, "--replace", "true")) == 1
    (run / "checkpoint.pth").write_text("kept")
    config.write_text("max_epoch: 5\n")
    _, stdout, _, calls = copy.run(*words)
    assert names(calls) == ["sslam_train"]
    assert "max_epoch 3 -> 5: goes on" in stdout
    assert (run / "checkpoint.pth").read_text() == "kept"
    config.write_text("max_epoch: 4\n")
    assert "--max_epoch was 5, is 4" in copy.run(*words)[2]


def test_a_damaged_result_is_named_and_not_trained_over(copy):
    (copy.exp / "linear/phase1_eat_seed1/a/latest.pth").write_text("damaged")
    status, _, stderr, calls = copy.run("--stage", 6)
    assert (status, calls) == (1, [])
    assert "output latest.pth was " in stderr


@pytest.mark.parametrize(
    "options, complaint",
    [
        ("--python /no/python", "--python: there is no /no/python"),
        ("--python /bin/false", "--python: /bin/false does not run"),
        ("--pretrain_config {0}/damaged.yaml", "damaged.yaml is not valid YAML"),
        ("--corpus folder --corpus_dir {0}/none", "there is no corpus in"),
        ("--corpus folder --corpus_dir {0}/exp", "--corpus"),
        ("--keep true --replace true", "exclude each other"),
        ("--keep yes", "--keep is true or false, not 'yes'"),
    ],
)
def test_a_slip_changes_nothing_on_the_disk(copy, options, complaint):
    (copy.folder / "damaged.yaml").write_text("a: [")
    before = content(copy.folder)
    status, _, stderr, calls = copy.run(*options.format(copy.folder).split())
    assert status == 1 and complaint in stderr and calls == []
    assert content(copy.folder) == before


def test_a_training_that_cannot_begin_leaves_the_earlier_one_in_place(copy):
    run = copy.exp / "pretrain/phase1_eat_seed1"
    before = content(run)
    (copy.folder / "pretrain_eat.yaml").write_text("optim_conf: {lr: 0.5}\n")
    (copy.folder / "fail_sslam_train").touch()
    words = ["--stage", 4, "--stop_stage", 4, "--replace", "true"]
    status, _, stderr, _ = copy.run(*words)
    assert status == 1 and "what was there before is back" in stderr
    assert content(run) == before


def test_interrupted_training_is_continued_in_place(copy):
    run = copy.exp / "pretrain/phase1_eat_seed1"
    (run / ".done").unlink()
    (run / "checkpoint.pth").write_text("kept")
    assert names(copy.calls("--stage", 4, "--stop_stage", 4)) == ["sslam_train"]
    assert (run / "checkpoint.pth").read_text() == "kept"


def test_several_seeds_tags_and_configs_have_their_own_directories(prepared):
    other = prepared.folder / "full.yaml"
    other.write_text("# full\n")
    dump = prepared.folder / "dump/raw"
    (dump / "downstream.txt").write_text("a multi_label a/train a/valid a/test\n")
    calls = prepared.calls(
        *("--stage", 4, "--seeds", "1 2", "--pretrain_args", "--lr 0.1"),
        *("--models", "phase1"),
        *("--finetune_config", f"{prepared.folder}/linear.yaml {other}"),
    )
    assert {p.name for p in (prepared.exp / "pretrain").iterdir()} >= {
        "phase1_eat_lr0.1_seed1",
        "phase1_eat_lr0.1_seed2",
    }
    assert (prepared.exp / "full/phase1_eat_lr0.1_seed2/a/latest.pth").exists()
    runs = [f"{t}/phase1_eat_lr0.1_seed{n}" for t in ("linear", "full") for n in (1, 2)]
    assert calls[-1].endswith(f"--expect {' '.join(runs)}")
    assert "--lr 0.1" in options_of(calls, "sslam_train", "phase2", "--seed 2")


def test_variants_of_phase_2_start_from_the_same_phase_1_in_folders_of_their_own(
    prepared,
):
    config = prepared.folder / "pretrain_clip.yaml"
    config.write_text("# regions per clip\n")
    words = "random phase1 phase2:unmixed phase2:mixed phase2:both phase2"
    models = ["--models", f"{words} phase2:{config}"]
    calls = prepared.calls("--stage", 4, *models)
    assert names(calls).count("sslam_train") == 1 + 5
    start = (
        f"--init_param {prepared.exp}/pretrain/phase1_eat_seed1/latest.pth:::num_upd"
    )
    [clip] = (prepared.exp / "pretrain").glob("phase2_clip_????????_seed1")
    clip = clip.name.removesuffix("_seed1")
    arms = {"phase1-more_sslam": "unmixed", "phase2_sslam": "", clip: ""}
    arms |= {"phase2-mixed_sslam": "mixed", "phase2-both_sslam": "both"}
    for run, variant in arms.items():
        call = options_of(calls, "sslam_train", f"/pretrain/{run}_seed1 ")
        own = config if "clip" in run else prepared.folder / "pretrain_sslam.yaml"
        assert f"--config {own} --seed 1 " in call and start in call
        assert ("--variant" in call) == bool(variant)
        assert call.endswith(f" --variant {variant}") == bool(variant)
        weights = prepared.exp / f"pretrain/{run}_seed1/latest.pth"
        call = options_of(calls, "sslam_cls_train", f"/linear/{run}_seed1/a ")
        assert f"--init_param {weights}:encoder:encoder" in call
    assert "linear/phase1-more_sslam_seed1 linear/phase2-mixed_sslam_seed1" in calls[-1]
    status, stdout, _, calls = prepared.run("--stage", 4, *models)
    assert status == 0 and names(calls) == ["sslam_results"]
    assert "(phase 2:mixed seed 1) up to date" in stdout
    # the same word with other options displaces nothing
    prepared.calls("--stage", 5, "--models", "phase2", "--pretrain2_args", "--lr 1")
    assert not (prepared.folder / "exp_replaced").exists()
    assert (prepared.exp / "linear/phase2_sslam_lr1_seed1/a/latest.pth").exists()


def test_files_of_one_name_in_two_places_displace_nothing(prepared):
    exp, folders = prepared.exp, [prepared.folder / name for name in ("x", "y")]
    for folder in folders:
        folder.mkdir()
        (folder / "EAT.pt").write_text(f"'' # {folder}")
        (folder / "pretrain_sslam.yaml").write_text(f"# {folder}\n")
    words = ["--stage", 5, "--stop_stage", 5, "--models"]
    prepared.calls("--stage", 4, "--stop_stage", 4)
    prepared.calls(*words, "phase2")
    for folder in folders:
        prepared.calls(*words, f"phase2:{folder}/pretrain_sslam.yaml")
    for folder in folders:
        prepared.calls(*words, "phase2", "--phase1", folder / "EAT.pt")
    assert len(list(exp.glob("pretrain/phase2_sslam_????????_seed1"))) == 2
    assert len(list(exp.glob("pretrain/phase2_sslam_from_EAT_????????_seed1"))) == 2
    assert len(list(exp.glob("models/phase1_EAT_????????"))) == 2
    assert not (prepared.folder / "exp_replaced").exists()
    # however the same source is written, it has the same place
    again = os.path.relpath(folders[0] / "EAT.pt", RECIPE)
    prepared.calls(*words, "phase2", "--phase1", again)
    assert len(list(exp.glob("pretrain/*"))) == 6


def test_options_of_a_phase_do_not_reach_the_other_and_may_hold_blanks(prepared):
    words = ["--stage", 4, "--stop_stage", 5, "--pretrain_args", "--both 0"]
    words += ["--pretrain1_args", "--one '{a: 1, b: 2}'", "--pretrain2_args", "--two 2"]
    first, second = prepared.calls(*words)
    assert first.endswith(" --both 0 --one {a: 1, b: 2}")
    assert second.endswith(" --both 0 --two 2")
    runs = {path.name for path in (prepared.exp / "pretrain").iterdir()}
    one = "eat_both0_onea1b2"
    assert runs == {f"phase1_{one}_seed1", f"phase2_sslam_both0_two2_from_{one}_seed1"}
    record = prepared.exp / f"pretrain/phase1_{one}_seed1/.begun"
    assert json.loads(record.read_text())["options"]["one"] == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    "fresh, taken",
    [
        ("''", "encoder:encoder teacher.encoder:teacher.encoder decoder:decoder"),
        ("decoder", "encoder:encoder teacher.encoder:teacher.encoder"),
        ("teacher decoder", "encoder:encoder encoder:teacher.encoder"),
    ],
)
def test_phase_2_may_start_from_weights_that_stage_4_has_not_made(
    prepared, fresh, taken
):
    (prepared.folder / "EAT-base.pt").write_text(fresh)
    words = [
        "--stage",
        4,
        "--phase1",
        prepared.folder / "EAT-base.pt",
        "--seeds",
        "1 2",
    ]
    status, stdout, stderr, calls = prepared.run(*words, "--models", "phase1 phase2")
    assert status == 0, stderr
    assert "stage 4: left out, --phase1 gives its weights" in stdout
    assert f"phase 1 is {prepared.folder}/EAT-base.pt: 2 blocks" in stdout
    assert names(calls).count("convert_weights") == 1
    assert names(calls).count("sslam_train") == 2
    [source] = (prepared.exp / "models").glob("phase1_EAT-base_????????")
    run = f"phase2_sslam_from_{source.name.removeprefix('phase1_')}_seed2"
    call = options_of(calls, "sslam_train", f"/pretrain/{run} ")
    init = " ".join(f"{source}/latest.pth:{part}" for part in taken.split())
    assert f"--init_param {init} --train_data" in call
    assert "--encoder_conf depth=2 --encoder_conf fbank_std=3.5" in call
    assert "fbank_mean=-4.5" not in call  # the corpus's
    call = options_of(calls, "sslam_cls_train", f"/linear/{source.name}_seed2/a ")
    assert f"--init_param {source}/latest.pth:encoder:encoder" in call
    options_of(calls, "sslam_cls_train", f"/linear/{run}/a ")


def test_every_seed_may_have_weights_of_its_own(prepared):
    for seed in 1, 2:
        folder = prepared.folder / f"old_seed{seed}"
        folder.mkdir()
        (folder / "latest.pth").write_text(f"''  # {seed}")
    weights = prepared.folder / "old_seed{seed}/latest.pth"
    words = ["--stage", 5, "--stop_stage", 5, "--phase1", weights, "--seeds", "1 2"]
    calls = prepared.calls(*words)
    for seed in 1, 2:
        [source] = (prepared.exp / "models").glob(f"phase1_old_????????_seed{seed}")
        run = source.name.replace("phase1", "phase2_sslam_from")
        call = options_of(calls, "sslam_train", f"/{run} ")
        assert f"--init_param {source}/la" in call


def test_many_options_make_no_name_too_long_for_a_file(prepared):
    many = " ".join(f"--option_{letter * 20} {letter * 20}" for letter in "abcdef")
    tags = set()
    for args in (many, many + "g"):
        words = ["--stage", 6, "--stop_stage", 6, "--models", "random"]
        calls = prepared.calls(*words, "--finetune_args", args)
        call = options_of(calls, "sslam_cls_train", "random_eat_seed1/a ")
        tags.add(call.split("--output_dir ")[1].split()[0].split("/")[-3])
    assert len(tags) == 2 and all(len(tag) < 90 for tag in tags)
    assert all(tag.startswith("linear_option_aaaa") for tag in tags)


def test_features_as_input_have_their_own_lists_and_tags(recipe):
    calls = recipe.calls("--feats_type", "fbank", "--stop_stage", 4)
    call = options_of(calls, "sslam_train", "/phase1_eat_fbank_seed1 ")
    train = recipe.folder / "dump/fbank/pretrain/train"
    assert f"{train}/feats.scp,speech,kaldi_ark" in call
    assert f"{train}/utt2num_frames" in call and "--input_size 128" in call


def test_an_encoder_without_pre_training_takes_config_and_statistics(prepared):
    calls = prepared.calls("--stage", 6, "--stop_stage", 6, "--models", "random")
    config = prepared.folder / "pretrain_eat.yaml"
    assert len(calls) == 2
    for call in calls:
        assert f"--encoder_config {config}" in call and "fbank_mean=-4.5" in call


@pytest.mark.parametrize("which", ["own", "given"])
def test_fine_tunings_may_take_the_statistics_of_their_corpus(prepared, which):
    weights = prepared.exp / "pretrain/phase1_eat_seed1"
    weights.mkdir(parents=True)
    for name in ".done", "latest.pth", "config.yaml":
        (weights / name).touch()
    words = ["--stage", 6, "--stop_stage", 6, "--models", "phase1"]
    calls = prepared.calls(*words, "--fbank_stats", which)
    own = "--encoder_conf fbank_mean=-4.5 --encoder_conf fbank_std=3.25"
    own += " --encoder_conf override_fbank_stats=true"
    assert len(calls) == 2
    for call in calls:
        assert (own in call) == ("/linear_own_stats/" in call) == (which == "own")


def test_a_corpus_without_labels_has_nothing_to_fine_tune(prepared):
    (prepared.folder / "dump/raw/downstream.txt").write_text("")
    status, stdout, _, calls = prepared.run("--stage", 6, "--stop_stage", 6)
    assert (status, calls) == (0, [])
    assert "stage 6: there is nothing to do" in stdout


def test_data_made_by_hand_need_no_stage_1(copy):
    (copy.folder / "data/.done").unlink()
    (copy.folder / "data/.begun").unlink()
    assert copy.run("--stage", 2, "--stop_stage", 2)[0] == 0


@pytest.mark.parametrize(
    "stage, model, earlier",
    [(5, "phase1", 4), (6, "phase1", 4), (6, "phase2", 5), (7, "random", 6)],
)
def test_a_stage_names_the_one_that_it_needs(prepared, stage, model, earlier):
    words = ["--stage", stage, "--stop_stage", stage, "--models", model]
    line = prepared.complaint(*words)
    assert f"stage {stage} needs" in line and f"--stage {earlier}" in line


def test_data_that_were_not_made_are_named_with_their_stage(recipe):
    for stage, earlier in ((2, 1), (3, 2), (4, 3), (6, 3)):
        line = recipe.complaint("--stage", stage, "--stop_stage", stage)
        assert f"stage {stage} needs" in line and f"--stage {earlier}" in line


@pytest.mark.parametrize(
    "options, complaint",
    [
        ("--sead 1", "unknown option --sead; did you mean --seeds?"),
        ("--qwertz 1", "unknown option --qwertz; --help lists the options"),
        ("--models b=beats:gone.pt", "--models: there is no file gone.pt"),
        ("--stage 8", "--stage 8 comes after --stop_stage 7: add --stop_stage 8"),
        ("--skip_train true", "unknown option --skip_train; here: --stage 7"),
        ("--skip_eval true", "here: --stop_stage 6"),
        ("--inference_model x", "here: stage 7 scores the last and the best"),
        (
            "--pretrained_model x",
            "here: --models NAME=WEIGHTS, or for phase 2 --phase1",
        ),
        ("--download_model x", "here: --models NAME=USER/MODEL"),
        ("--local-data-opts x", "here: --data_args"),
        ("--ssl_config x", "here: --pretrain_config and --pretrain2_config"),
        ("--ssl_tag x", "here: --pretrain_tag"),
        ("--cls_config x", "here: --finetune_config"),
        ("--inference_nj 4", "here: --nj"),
        ("--train_set x", "here: --corpus; its local/data_<corpus>.py names"),
        ("--audio-format wav", "here: --format_args '--audio_format FORMAT'"),
        ("--skip_packing true", "here: --stop_stage 7 ends before stage 9"),
        ("--train_config x", "here: --pretrain_config and --pretrain2_config"),
        ("--max_wav_duration 20", "here: --format_args '--cut SECONDS'"),
        ("--use_lightning true", "here: ESPnet's own trainer trains"),
        ("--PATH x", "unknown option --PATH"),
        ("--stage", "--stage needs a value"),
        ("--stage=1", "write --option value"),
        ("--stage one", "--stage is a whole number"),
        ("--stage 3 --stop_stage 2", "comes after"),
        ("--seeds x", "--seeds holds whole numbers, not 'x'"),
        ("--models phase3", "not 'phase3'"),
        (
            "--models phase2:ua",
            "phase2:both, phase2:<YAML>, NAME=WEIGHTS, not 'phase2:ua",
        ),
        ("--models phase2:none.yaml", "there is no config none.yaml"),
        ("--models phase1_more,phase2:unmixed", "holds phase1_more twice"),
        ("--models phase2_new=x.pt", "needs the form NAME=WEIGHTS with a new name"),
        ("--data_args 'a", "--data_args has a quote without its other half: 'a"),
        ("--models phase1=x.pt", "needs the form NAME=WEIGHTS with a new name"),
        ("--models sslam=", "needs the form NAME=WEIGHTS"),
        ("--models a/b=x.pt", "the name 'a/b'"),
        ("--models eat=x.pt,eat=y.pt", "holds eat twice"),
        ("--downstream as20k,esc51", "ks2 spass urbansed idmt fsd50k, not 'esc51'"),
        ("--downstream ks1 --protocol lin", "--protocol holds finetune,"),
        ("--downstream ks1,ks2 --corpus_dir x", "is for one corpus"),
        ("--downstream ks1 --stop_stage 8", "ends with stage 7, not 8"),
        ("--pretrain_from exp/x", "leave out stages 4 and 5"),
        ("--corpus audio", "--corpus is one of audioset esc50 "),
        ("--feats_type mfcc", "--feats_type is raw or fbank"),
        ("--fbank_stats mine", "--fbank_stats is own or given, not 'mine'"),
        ("--pretrain_config conf/none.yaml", "no config conf/none.yaml"),
        ("--corpus esc50", "needs --corpus_dir (or ESC50 in db.sh)"),
        ("--corpus esc50 --corpus_dir none", "no corpus in none"),
        ("stray", "got 'stray'"),
    ],
)
def test_a_wrong_option_is_one_line(recipe, options, complaint):
    words = [word.replace(",", " ") for word in options.split()]
    assert complaint in recipe.complaint(*words)


def test_a_failed_training_is_named_with_its_error_and_the_rest_goes_on(prepared):
    (prepared.folder / "fail_sslam_train").touch()
    status, _, stderr, calls = prepared.run("--stage", 4, "--seeds", "1 2")
    assert status == 1 and len(calls) == 2
    *failures, last = stderr.splitlines()
    assert len(failures) == 2 and last.startswith("run.sh: stage 4 did not end well")
    for line in failures:
        assert "failed: error: sslam_train needs 2 clips, got 1 (log: " in line


def test_a_training_that_a_signal_has_stopped_goes_on_with_the_same_command(prepared):
    (prepared.folder / "stop_sslam_train").touch()
    status, stdout, _, calls = prepared.run("--stage", 4, "--seeds", "1 2", "--nj", 1)
    assert status == 85 and len(calls) == 1
    assert "stopped by a signal" in stdout and "failed" not in stdout
    (prepared.folder / "stop_sslam_train").unlink()
    status, _, _, calls = prepared.run("--stage", 4, "--stop_stage", 4)
    assert status == 0 and names(calls) == ["sslam_train"]


def test_help_names_every_option():
    shown = subprocess.run(
        [RECIPE / "run.sh", "--help"], capture_output=True, text=True, check=True
    ).stdout
    text = (RECIPE / "run.sh").read_text()
    defaults = text[: text.index("help_message=")].splitlines()
    options = [line.split("=")[0] for line in defaults if "=" in line[:20]]
    assert len(options) > 20
    assert [option for option in options if f"--{option}" not in shown] == []


@pytest.mark.parametrize("backend", ["local", "slurm", "queue"])
def test_the_runner_of_an_espnet_clone_comes_before_ours(tmp_path, backend):
    runner = "run.pl" if backend == "local" else f"{backend}.pl"
    clone = tmp_path / "tools/kaldi/egs/wsj/s5/utils"
    clone.mkdir(parents=True)
    (clone / runner).touch(mode=0o755)
    script = '. ./path.sh; . ./cmd.sh; command -v "${train_cmd}" "${cuda_cmd}" once.py'
    names = {"python": sys.executable, "MAIN_ROOT": str(tmp_path)}
    shown = subprocess.run(
        ["bash", "-euc", f"cd {RECIPE}; {script}"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **names, "cmd_backend": backend},
    ).stdout.split()
    assert shown == [*[f"{clone}/{runner}"] * 2, f"{RECIPE}/utils/once.py"]
