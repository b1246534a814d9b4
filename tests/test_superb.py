"""SUPERB-style evaluation: grid, choice on dev, records, table, and what it refuses."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from espnet2_sslam.checkpoint import save_model
from tests.checkpoint_case import small_encoder
from tests.corpus_case import run_recipe
from tests.s3prl_data import (
    noisy_sounds,
    tone_digits,
    write_hear_scene,
    write_speech_commands,
)

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "egs2" / "sslam"
sys.path.insert(0, str(RECIPE / "superb"))
import sslam_superb  # noqa: E402
from superb_tasks import TASKS, read_data  # noqa: E402

# superb_run.py with this in place of s3prl, which writes what s3prl writes: dev is 0.8,
# or 0.5 for a rate of 0.01; of a fold a hundredth more; test is dev - 0.1.
FAKE = f"""
import sys
sys.path.insert(0, {str(RECIPE / "superb")!r})
import superb_run
command = superb_run.s3prl_command
superb_run.s3prl_command = lambda *a: [
    sys.executable, __file__.replace("run.py", "s3prl.py"), *command(*a)[3:]]
superb_run.main()
"""
FAKE_S3PRL = """
import sys, yaml
from pathlib import Path

words, here = sys.argv[1:], Path.cwd()
with open(Path(__file__).with_name("calls"), "a") as calls:
    print(here, *words, file=calls)
broken = Path(__file__).with_name("broken")
if broken.exists() and broken.read_text() in str(here):
    sys.exit("Traceback (most recent call last):\\nKeyError: 'speaker'")
config = yaml.safe_load(open("task.yaml"))
if "s3prl.main" in words:
    dev = {0.01: 0.5}.get(config["build_optimizer"]["conf"]["lr"], 0.8)
    dev += config["prepare_data"]["test_fold"] / 100
    if "--stop" in words:
        for folder in "train/valid_best", "train/step_4", "configs":
            (here / folder).mkdir(parents=True)
        stats = {"valid_best_metrics": {"top1_acc": dev}, "global_step": 4}
        (here / "train/valid_best/training_stats.yaml").write_text(yaml.dump(stats))
        (here / "configs/1.yaml").write_text("train: {total_steps: 4000}")
    else:
        (here / "evaluate/valid_best/test").mkdir(parents=True)
        scores = yaml.dump({"top1_acc": dev - 0.1, "aucroc": float("nan")})
        (here / "evaluate/valid_best/test/result.yaml").write_text(scores)
else:
    dev = {0.01: 0.5, 0.03: 0.5}.get(config["optimizer"]["lr"], 0.8)
    with open("log.log", "a") as log:
        if "evaluate" in words:
            print(f"test at step 0: {dev - 0.1}", file=log)
        else:
            print(f"dev at step 2: {dev}\\nNew best on dev at step 2: {dev}", file=log)
            (here / "dev-best.ckpt").touch()
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Folders of both tasks and of a model: ks, HearESC50, mine."""
    folder = tmp_path_factory.mktemp("data")
    write_speech_commands(folder / "ks", tone_digits(4), test_from=3)
    write_hear_scene(folder / "HearESC50", noisy_sounds(2, 5))
    save_model(small_encoder(), folder / "mine")
    return folder


class Sweep:
    """The command, with FAKE_S3PRL in place of s3prl."""

    def __init__(self, folder):
        self.folder, self.exp = folder, folder / "superb"
        (folder / "run.py").write_text(FAKE)
        (folder / "s3prl.py").write_text(FAKE_S3PRL)

    def __call__(self, *words, upstreams=("fbank_no_cmvn",), lrs=(1e-2, 1e-3)):
        """Run it; returns the commands that s3prl got, those for tests last."""
        calls = self.folder / "calls"
        calls.write_text("")
        words = ["--upstreams", *upstreams, "--expdir", self.exp, *words, "--lrs", *lrs]
        words += ["--config_dir", ROOT / "conf" / "s3prl", "--nj", 2]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sslam_superb, "PROGRAM", self.folder / "run.py")
            sslam_superb.main(list(map(str, words)))
        return calls.read_text().splitlines()

    def table(self):
        return (self.exp / "SUPERB.md").read_text()

    def config(self, path):
        return yaml.safe_load((self.exp / path).read_text())

    def results(self):
        return json.loads((self.exp / "SUPERB.json").read_text())["results"]


@pytest.fixture
def sweep(tmp_path):
    return Sweep(tmp_path)


def test_the_best_rate_on_dev_is_tested_once(sweep, data):
    *_, test = commands = sweep("--tasks", f"ks={data / 'ks'}", "--steps", 8)
    assert [("evaluate" in c) for c in commands] == [False, False, True]
    assert test.endswith("-e dev-best.ckpt")
    [row] = sweep.results()
    assert (row["lr"], row["dev"], row["test"]) == (1e-3, 0.8, pytest.approx(0.7))
    assert "| ks | fbank_no_cmvn | 0.001 ! | 80.0 | 70.0 | 8 |" in sweep.table()
    assert "`!`: at the edge of the grid" in sweep.table()
    runner = sweep.config("ks/fbank_no_cmvn_seed1/lr0.001/task.yaml")["runner"]
    assert (runner["total_steps"], runner["eval_step"]) == (8, 2)
    assert runner["eval_dataloaders"] == ["dev"]


def test_only_what_is_new_or_has_other_settings_is_run_again(sweep, data):
    tasks = ["--tasks", f"ks={data / 'ks'}"]
    assert len(sweep(*tasks)) == 3
    assert sweep(*tasks, "--num_workers", 0, "--device", "cuda") == []
    assert len(sweep(*tasks, lrs=(1e-4, 1e-2, 1e-3))) == 2  # the new rate, its test
    with pytest.raises(ValueError, match="1 failed"):
        sweep(*tasks, "--steps", "ks=9", lrs=[1e-3])  # is not moved unasked
    assert not (sweep.folder / "superb_replaced").exists()
    words = ["--steps", "ks=9", "--replace", "true"]
    assert len(sweep(*tasks, *words, lrs=[1e-3])) == 2
    [old] = (sweep.folder / "superb_replaced").iterdir()
    assert old.name.startswith("ks_fbank_no_cmvn_seed1_lr0.001.")
    assert sweep.results()[0]["steps"] == 9


def test_a_failing_run_keeps_the_others_and_is_continued(sweep, data, capfd):
    tasks = ["--tasks", f"ks={data / 'ks'}"]
    (sweep.folder / "broken").write_text("lr0.01")
    with pytest.raises(ValueError, match=r"1 failed.*ks of fbank_no_cmvn, lr 0.01"):
        sweep(*tasks)
    out, err = capfd.readouterr()
    assert "0 of 1 results" in out and "KeyError: 'speaker' (log: " in err
    assert "Missing: fbank_no_cmvn on ks" in sweep.table()
    torn = sweep.exp / "ks" / "fbank_no_cmvn_seed1" / "lr0.01" / "states-4.ckpt"
    torn.write_bytes(b"PK half")
    (sweep.folder / "broken").unlink()
    assert len(sweep(*tasks)) == 2  # the rest of the training, and the test
    assert not torn.exists() and not (sweep.folder / "superb_replaced").exists()


def test_upstreams_tasks_folds_and_seeds_are_one_table_with_what_is_missing(
    sweep, data
):
    (sweep.folder / "broken").write_text("HearESC50/mine")
    with pytest.raises(ValueError, match=r"10 failed"):
        sweep(
            *("--tasks", f"ks={data / 'ks'}", f"HearESC50={data / 'HearESC50'}"),
            *("--seeds", 1, 2, "--options", "freq=mean"),
            upstreams=(f"random={data / 'mine'}", f"mine={data / 'mine'}"),
            lrs=[1e-3],
        )
    text = sweep.table()
    assert "| upstream | ks (accuracy) | HearESC50 (top1_acc) |" in text
    assert "| random | 70.0 ± 0.0 | 72.0 ± 0.0 |" in text  # 0.8 + 0.02 - 0.1
    assert "| mine | 70.0 ± 0.0 | missing |" in text
    assert "Missing: mine on HearESC50" in text and "s3prl 0.4.18" in text
    header, *rows = (sweep.exp / "SUPERB.csv").read_text().splitlines()
    assert len(rows) == 3 and header.startswith("task,metric,upstream,lr,steps,seeds")
    row = sweep.results()[-1]
    assert (row["folds"], row["steps"], row["seeds"]) == (5, 4000, "1 2")
    assert not list(sweep.exp.rglob("step_*"))

    ckpt = str((sweep.exp / "models" / "mine_seed1").resolve())
    assert f"-k {ckpt} -g upstream.yaml" in (sweep.folder / "calls").read_text()
    assert sweep.config("ks/mine_seed1/lr0.001/upstream.yaml") == {"freq": "mean"}
    config = sweep.config("HearESC50/mine_seed1/lr0.001_fold0/task.yaml")
    extra = config["build_upstream"]["extra_conf"]
    assert extra == {"ckpt": ckpt, "freq": "mean"}


def test_random_is_the_same_network_with_weights_of_its_seed(tmp_path, data):
    def prepare(name, seed):
        return sslam_superb.prepare(name, str(data / "mine"), seed, tmp_path)

    mine, one, again = prepare("mine", 1), prepare("random", 1), prepare("random", 1)
    assert one.sha256 == again.sha256
    assert len({mine.sha256, one.sha256, prepare("random", 2).sha256}) == 3
    paths = [Path(u.ckpt) / "config.json" for u in (mine, one)]
    configs = [json.loads(path.read_text()) for path in paths]
    for name in ("encoder", "fbank_mean"):
        assert configs[0][name] == configs[1][name]
    with pytest.raises(ValueError, match=r"model7"):  # a source may name the seed
        sslam_superb.prepare("mine", str(tmp_path / "model{seed}"), 7, tmp_path)


@pytest.mark.parametrize(
    "words, complaint",
    [
        ("--tasks ks", "needs its data: ks=DIR"),
        ("--tasks keywords=x", "there is no task 'keywords'; there are ks, ic"),
        ("--tasks asr=x", "asr cannot be learnt here: its CTC loss"),
        ("--tasks ks=x ks=y", "ks is given twice"),
        ("--upstreams a/b", "an upstream is NAME=SOURCE or a name of s3prl, got 'a/b'"),
        ("--upstreams x=1 x=2", "an upstream .* x is given twice"),
        ("--upstreams random", "upstream random needs the model"),
        ("--options frequency=mean", "--options takes name=value with .*freq"),
        ("--options weights=teacher", "--options takes name=value"),
        ("--steps 0", "--steps takes N or TASK=N from 1 on, got '0'"),
        ("--steps er=3", "--steps names er, which --tasks does not"),
        ("--nj 0", "--nj starts at 1, got 0"),
        ("--eval_every 0", "--eval_every starts at 1, got 0"),
        ("--lrs 0", "learning rates are above 0, got 0"),
    ],
)
def test_a_wrong_word_is_one_line_before_anything_is_read(words, complaint, tmp_path):
    command = ["--tasks", "ks=none", "--upstreams", "fbank", "--expdir", str(tmp_path)]
    with pytest.raises(ValueError, match=complaint):
        sslam_superb.main([*command, *words.split()])


@pytest.mark.parametrize(
    "task, complaint",
    [
        ("ks", "has no speech_commands_v0"),
        ("ic", "has no data/train_data.csv"),
        ("sid", "has no iden_split.txt"),
        ("er", "has no Session1/dialog"),
        ("HearESC50", "has no 48000"),
    ],
)
def test_missing_data_is_one_line(tmp_path, task, complaint):
    with pytest.raises(ValueError, match=rf"{task}: .* {complaint}"):
        read_data(TASKS[task], tmp_path, tmp_path)
    with pytest.raises(ValueError, match=rf"{task}: there is no folder"):
        read_data(TASKS[task], tmp_path / "no", tmp_path)


def write_wave(path, samples=4000):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.zeros(samples), 16000)


def test_clips_without_a_step_are_refused_before_training(sweep, tmp_path, data):
    write_speech_commands(tmp_path / "ks", tone_digits(2), test_from=1)
    write_wave(tmp_path / "ks/speech_commands_v0.01/yes/short.wav", 1000)
    words = ["--tasks", f"ks={tmp_path / 'ks'}"]
    with pytest.raises(ValueError, match=r"ks: 1 clip.* no step at 2560 samples"):
        sweep(*words, upstreams=[f"mine={data / 'mine'}"])
    more = [*words, "--options", "upsample=8"]
    assert len(sweep(*more, upstreams=[f"m={data / 'mine'}"])) == 3
    assert len(sweep(*words)) == 3  # s3prl's own upstreams have a rate of their own


def test_lists_of_emotions_leave_the_tested_session_out(tmp_path):
    for number in range(1, 6):
        session, turns = tmp_path / f"Session{number}", []
        for i, label in enumerate(("neu", "exc", "fru", "sad")):
            name = f"Ses0{number}F_impro01_F00{i}"
            write_wave(session / "sentences/wav/impro01" / f"{name}.wav")
            turns.append(f"[6.29 - 8.23]\t{name}\t{label}\t[2.5, 2.5, 2.5]\n")
        path = session / "dialog/EmoEvaluation/impro01.txt"
        path.parent.mkdir(parents=True)
        path.write_text(
            "% [START_TIME - END_TIME] TURN_NAME EMOTION\n" + "".join(turns)
        )
    options, samples = read_data(TASKS["er"], tmp_path, tmp_path / "lists")
    assert len(samples) == 15  # frustration is not asked for
    session = Path(options["meta_data"]) / "Session2"
    train = json.loads((session / "train_meta_data.json").read_text())
    test = json.loads((session / "test_meta_data.json").read_text())
    assert len(train["meta_data"]) == 12 and len(test["meta_data"]) == 3
    assert {c["path"].split("/")[0] for c in test["meta_data"]} == {"Session2"}
    labels = [clip["label"] for clip in test["meta_data"]]
    assert labels == ["neu", "hap", "sad"] and train["labels"]["hap"] == 1


def test_speakers_are_read_from_voxcelebs_own_list(tmp_path):
    name = "id10001/1zcIwhmdeo4/00001.wav"
    write_wave(tmp_path / "dev/wav" / name)
    (tmp_path / "iden_split.txt").write_text(f"1 {name}\n")
    options, _ = read_data(TASKS["sid"], tmp_path, tmp_path / "lists")
    assert Path(options["meta_data"]).read_text() == f"1 {name}\n"
    (tmp_path / "iden_split.txt").write_text("1 id10002/a/00001.wav\n")
    with pytest.raises(ValueError, match=r"lacks id10002/a/00001.wav"):
        read_data(TASKS["sid"], tmp_path, tmp_path / "lists")


@pytest.mark.slow
def test_stage_8_trains_tests_and_compares_with_real_s3prl(tmp_path, data):
    write_speech_commands(tmp_path / "ks", tone_digits(6), test_from=5)
    hear = write_hear_scene(tmp_path / "hear", noisy_sounds(2, 6), folds=3)
    for split, fold in (("train", "fold00"), ("valid", "fold01"), ("test", "fold02")):
        (hear / f"{fold}.json").rename(hear / f"{split}.json")
        (hear / "48000" / fold).rename(hear / "48000" / split)
    words = [
        *("--stage", 8, "--stop_stage", 8),
        *("--seeds", "1", "--nj", "2", "--expdir", tmp_path / "exp"),
        *("--superb_tasks", f"ks={tmp_path / 'ks'} HearGSC5hr={hear}"),
        *("--superb_upstreams", f"fbank_no_cmvn mine={data / 'mine'}"),
        *("--superb_lrs", "1e-2"),
        *("--superb_args", "--steps ks=4 HearGSC5hr=2 --num_workers 0"),
    ]
    run_recipe(*words)
    text = (tmp_path / "exp" / "SUPERB.md").read_text()
    assert "| ks | mine | 0.01 |" in text and "missing" not in text
    results = json.loads((tmp_path / "exp" / "SUPERB.json").read_text())["results"]
    assert [row["steps"] for row in results] == [4, 4, 2, 2]
    assert all(0 <= row["test"] <= 1 for row in results)
