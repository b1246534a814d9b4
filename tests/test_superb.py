"""SUPERB-style evaluation: grid, choice on dev, records, table, and what it refuses."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from espnet2_sslam.bin.sslam_superb import main
from espnet2_sslam.checkpoint import save_model
from espnet2_sslam.integrations.superb import sweep as sweeping
from espnet2_sslam.integrations.superb.data import check_steps, read_data
from espnet2_sslam.integrations.superb.emotion import SESSIONS
from espnet2_sslam.integrations.superb.run import Schedule
from espnet2_sslam.integrations.superb.sweep import Plan, sweep
from espnet2_sslam.integrations.superb.table import write_table
from espnet2_sslam.integrations.superb.tasks import TASKS, parse_steps, parse_tasks
from espnet2_sslam.integrations.superb.upstreams import (
    Upstream,
    prepare,
    read_options,
    split_words,
)
from tests.checkpoint_case import small_encoder
from tests.s3prl_data import (
    noisy_sounds,
    tone_digits,
    write_hear_scene,
    write_speech_commands,
)

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "conf" / "s3prl"


@pytest.fixture(scope="module")
def keywords(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ks")
    write_speech_commands(folder, tone_digits(4), test_from=3)
    return folder


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("esc50")
    return write_hear_scene(folder, noisy_sounds(2, 5))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(small_encoder(), tmp_path_factory.mktemp("model"))


class FakeS3prl:
    """Writes what s3prl writes. dev is `scores` by rate, test is dev - 0.1."""

    stopped = False

    def __init__(self, scores, broken=()):
        self.scores, self.broken, self.commands = scores, broken, []

    def __call__(self, command, folder, log):
        self.commands.append(command)
        config = yaml.safe_load((folder / "task.yaml").read_text())
        if any(word in str(folder) for word in self.broken):
            log.write_text("Traceback (most recent call last):\nKeyError: 'speaker'\n")
            return 1
        if "s3prl.main" in command:
            self.hear(command, folder, config)
        else:
            self.downstream(command, folder, config)
        return 0

    def downstream(self, command, folder, config):
        dev = self.scores[config["optimizer"]["lr"]]
        if "evaluate" in command:
            line = f"test at step 0: {dev - 0.1}\n"
        else:
            line = f"dev at step 2: {dev}\nNew best on dev at step 2: {dev}\n"
            (folder / "dev-best.ckpt").write_bytes(b"")
        with (folder / "log.log").open("a") as log:
            log.write(line)

    def hear(self, command, folder, config):
        fold = config["prepare_data"]["test_fold"]
        dev = self.scores[config["build_optimizer"]["conf"]["lr"]] + fold / 100
        if "--stop" in command:
            best = folder / "train" / "valid_best"
            best.mkdir(parents=True)
            (folder / "train" / "step_4").mkdir()
            stats = {"valid_best_metrics": {"top1_acc": dev}, "global_step": 4}
            (best / "training_stats.yaml").write_text(yaml.safe_dump(stats))
            (folder / "configs").mkdir()
            (folder / "configs" / "1.yaml").write_text("train: {total_steps: 4000}")
        else:
            test = folder / "evaluate" / "valid_best" / "test"
            test.mkdir(parents=True)
            scores = {"top1_acc": dev - 0.1, "aucroc": float("nan")}
            (test / "result.yaml").write_text(yaml.safe_dump(scores))


def make_plan(tmp_path, tasks, lrs=(1e-2, 1e-3), upstreams=None, **more):
    upstreams = upstreams or {"fbank_no_cmvn": ""}
    more = {"seeds": (1,), "config_dir": CONFIGS, **more}
    return Plan(tasks, upstreams, lrs, expdir=tmp_path / "superb", **more)


def test_the_best_rate_on_dev_is_tested_once(tmp_path, keywords):
    fake = FakeS3prl({1e-2: 0.5, 1e-3: 0.8})
    plan = make_plan(tmp_path, {"ks": keywords}, schedule=Schedule({"": 8}))
    outcome = sweep(plan, fake)
    assert outcome.chosen == {("ks", "fbank_no_cmvn"): 1e-3}
    [*_, test] = fake.commands
    assert [("evaluate" in c) for c in fake.commands] == [False, False, True]
    assert test[-2:] == ["-e", "dev-best.ckpt"]
    folder = tmp_path / "superb" / "ks" / "fbank_no_cmvn_seed1" / "lr0.001"
    config = yaml.safe_load((folder / "task.yaml").read_text())
    assert config["runner"]["total_steps"] == 8 and config["runner"]["eval_step"] == 2
    assert config["runner"]["eval_dataloaders"] == ["dev"]


def test_of_equal_rates_the_smallest_is_taken(tmp_path, keywords):
    outcome = sweep(
        make_plan(tmp_path, {"ks": keywords}), FakeS3prl({1e-2: 1, 1e-3: 1})
    )
    assert set(outcome.chosen.values()) == {1e-3}


def test_finished_trainings_are_kept_when_the_grid_grows(tmp_path, keywords):
    scores = {1e-1: 0.9, 1e-2: 0.5, 1e-3: 0.8}
    sweep(make_plan(tmp_path, {"ks": keywords}), FakeS3prl(scores))
    again = FakeS3prl(scores)
    sweep(make_plan(tmp_path, {"ks": keywords}), again)
    assert again.commands == []
    sweep(make_plan(tmp_path, {"ks": keywords}, lrs=(1e-1, 1e-2, 1e-3)), again)
    assert len(again.commands) == 2  # the new rate, and its test


def test_a_run_with_other_settings_is_moved_away(tmp_path, keywords):
    fake = FakeS3prl({1e-3: 0.8})
    sweep(make_plan(tmp_path, {"ks": keywords}, (1e-3,)), fake)
    longer = make_plan(
        tmp_path, {"ks": keywords}, (1e-3,), schedule=Schedule({"ks": 9})
    )
    sweep(longer, fake)
    assert len(fake.commands) == 4
    [old] = (tmp_path / "superb_replaced").iterdir()
    assert old.name.startswith("ks_fbank_no_cmvn_seed1_lr0.001.")


def test_a_torn_checkpoint_is_removed_before_a_run_is_continued(tmp_path, keywords):
    plan = make_plan(tmp_path, {"ks": keywords}, (1e-3,))
    failing = FakeS3prl({}, broken=["ks"])
    assert sweep(plan, failing).failures
    folder = tmp_path / "superb" / "ks" / "fbank_no_cmvn_seed1" / "lr0.001"
    (folder / "states-4.ckpt").write_bytes(b"PK half")
    sweep(plan, FakeS3prl({1e-3: 0.8}))
    assert not (folder / "states-4.ckpt").exists()
    assert not (tmp_path / "superb_replaced").exists()


def test_folds_are_averaged_and_share_one_rate(tmp_path, sounds):
    outcome = sweep(
        make_plan(tmp_path, {"HearESC50": sounds}), FakeS3prl({1e-2: 0.4, 1e-3: 0.7})
    )
    write_table(outcome, tmp_path / "SUPERB.md")
    [row] = json.loads((tmp_path / "SUPERB.json").read_text())["results"]
    assert row["test"] == pytest.approx(0.62) and row["folds"] == 5  # 0.7 + 0.02 - 0.1
    assert row["steps"] == 4000 and row["lr"] == 1e-3
    assert not list((tmp_path / "superb").rglob("step_*"))


def test_the_table_shows_all_upstreams_tasks_and_what_is_missing(
    tmp_path, keywords, sounds, model
):
    upstreams = {"fbank_no_cmvn": "", "random": str(model), "mine": str(model)}
    tasks = {"ks": keywords, "HearESC50": sounds}
    plan = make_plan(tmp_path, tasks, upstreams=upstreams, seeds=(1, 2))
    fake = FakeS3prl({1e-2: 0.5, 1e-3: 0.8}, broken=["HearESC50/mine"])
    outcome = sweep(plan, fake)
    write_table(outcome, tmp_path / "SUPERB.md")
    text = (tmp_path / "SUPERB.md").read_text()
    assert "| upstream | ks (accuracy) | HearESC50 (top1_acc) |" in text
    assert "| random | 70.0 ± 0.0 | 72.0 ± 0.0 |" in text
    assert "| mine | 70.0 ± 0.0 | missing |" in text
    assert "| ks | mine | 0.001 ! |" in text and "edge of the grid" in text
    assert "Missing: mine on HearESC50" in text and "KeyError: 'speaker'" in text
    assert "s3prl 0.4.18" in text
    header, *rows = (tmp_path / "SUPERB.csv").read_text().splitlines()
    assert len(rows) == 5 and header.startswith("task,metric,upstream,lr,steps,seeds")


def test_a_failing_run_keeps_the_others_and_names_its_log(
    tmp_path, keywords, monkeypatch, capsys
):
    fake = FakeS3prl({1e-2: 0.5, 1e-3: 0.8}, broken=["lr0.01"])
    monkeypatch.setattr(sweeping, "Processes", lambda: fake)
    words = f"--tasks ks={keywords} --upstreams fbank_no_cmvn --expdir {tmp_path}/s"
    with pytest.raises(ValueError, match="1 failed.*KeyError: 'speaker'.*s3prl.log"):
        main([*words.split(), "--config_dir", str(CONFIGS), "--lrs", "1e-2", "1e-3"])
    assert "0 of 1 results" in capsys.readouterr().out
    assert (tmp_path / "s/ks/fbank_no_cmvn_seed1/lr0.001/.trained").exists()


def test_an_interruption_ends_what_runs_and_starts_no_more(tmp_path, keywords):
    class Interrupted(FakeS3prl):
        def __call__(self, command, folder, log):
            self.commands.append(command)
            raise KeyboardInterrupt

        def stop(self):
            self.stopped = True

    fake = Interrupted({})
    with pytest.raises(KeyboardInterrupt):
        sweep(make_plan(tmp_path, {"ks": keywords}, (1e-1, 1e-2, 1e-3, 1e-4)), fake)
    assert fake.stopped and len(fake.commands) < 4


def test_processes_do_not_outlive_a_stop(tmp_path):
    processes = sweeping.Processes()
    waiting = threading.Thread(
        target=processes, args=(["sleep", "60"], tmp_path, tmp_path / "log")
    )
    waiting.start()
    while not processes.running:
        time.sleep(0.01)
    processes.stop()
    waiting.join(timeout=10)
    assert not waiting.is_alive() and "# sleep 60" in (tmp_path / "log").read_text()


def test_sslam_gets_its_weights_and_options(tmp_path, keywords, sounds, model):
    plan = make_plan(
        tmp_path,
        {"ks": keywords, "HearESC50": sounds},
        (1e-3,),
        upstreams={"mine": str(model)},
        options={"freq": "mean"},
    )
    fake = FakeS3prl({1e-3: 0.8})
    sweep(plan, fake)
    ckpt = str((tmp_path / "superb" / "models" / "mine_seed1").resolve())
    keyword_training = fake.commands[0]
    assert keyword_training[keyword_training.index("-k") + 1] == ckpt
    folder = tmp_path / "superb" / "ks" / "mine_seed1" / "lr0.001"
    assert yaml.safe_load((folder / "upstream.yaml").read_text()) == {"freq": "mean"}
    folder = tmp_path / "superb" / "HearESC50" / "mine_seed1" / "lr0.001_fold0"
    config = yaml.safe_load((folder / "task.yaml").read_text())
    extra = config["build_upstream"]["extra_conf"]
    assert extra == {"ckpt": ckpt, "freq": "mean"}


def test_random_is_the_same_network_with_weights_of_its_seed(tmp_path, model):
    mine = prepare("mine", str(model), 1, {}, tmp_path)
    one = prepare("random", str(model), 1, {}, tmp_path)
    again = prepare("random", str(model), 1, {}, tmp_path)
    two = prepare("random", str(model), 2, {}, tmp_path)
    assert one.sha256 == again.sha256
    assert len({mine.sha256, one.sha256, two.sha256}) == 3
    configs = [json.loads((u.ckpt / "config.json").read_text()) for u in (mine, one)]
    assert configs[0]["encoder"] == configs[1]["encoder"]
    assert configs[0]["fbank_mean"] == configs[1]["fbank_mean"]


def test_a_source_may_depend_on_the_seed(tmp_path, model):
    pattern = str(model).replace(model.name, "") + "model{seed}"
    with pytest.raises(ValueError, match="model7"):
        prepare("mine", pattern, 7, {}, tmp_path)


@pytest.mark.parametrize(
    "words, complaint",
    [
        (["ks"], "needs its data: ks=DIR"),
        (["keywords=x"], "there is no task 'keywords'; there are ks, ic"),
        (["asr=x"], "asr cannot be learnt here: its CTC loss"),
        (["HearMaestro=x"], "steps of 160 ms"),
        (["ks=x", "ks=y"], "given twice"),
    ],
)
def test_a_wrong_task_is_one_line(words, complaint):
    with pytest.raises(ValueError, match=complaint):
        parse_tasks(words)


def test_wrong_upstreams_options_and_steps_are_one_line():
    for words in (["a/b"], ["x="], ["random"], ["x=1", "x=2"]):
        with pytest.raises(ValueError, match="upstream"):
            split_words(words)
    with pytest.raises(ValueError, match="--options takes name=value"):
        read_options(["frequency=mean"])
    for words in (["0"], ["ks=x"], ["er=3"]):
        with pytest.raises(ValueError, match="--steps"):
            parse_steps(words, ["ks"])
    assert parse_steps(["5", "ks=9"], ["ks"]) == {"": 5, "ks": 9}


def test_missing_data_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="ks: there is no folder"):
        read_data(TASKS["ks"], tmp_path / "no", tmp_path)
    with pytest.raises(ValueError, match="ks: .* has no speech_commands_v0"):
        read_data(TASKS["ks"], tmp_path, tmp_path)
    with pytest.raises(ValueError, match="ic: .* has no data/train_data.csv"):
        read_data(TASKS["ic"], tmp_path, tmp_path)
    with pytest.raises(ValueError, match="sid: .* lacks iden_split.txt"):
        read_data(TASKS["sid"], tmp_path, tmp_path)
    with pytest.raises(ValueError, match="er: .* needs Session1/dialog"):
        read_data(TASKS["er"], tmp_path, tmp_path)
    with pytest.raises(ValueError, match="HearESC50: .* lacks 48000/"):
        read_data(TASKS["HearESC50"], tmp_path, tmp_path)


def test_clips_without_a_step_are_refused_before_training(tmp_path, keywords):
    data = read_data(TASKS["ks"], keywords, tmp_path)
    short = data._replace(samples=[*data.samples, 1000])
    coarse = Upstream("mine", "sslam", tmp_path)
    with pytest.raises(ValueError, match="ks: 1 clip.* no step at 2560 samples"):
        check_steps(TASKS["ks"], short, coarse.downsample_rate)
    check_steps(TASKS["ks"], data, coarse.downsample_rate)
    fine = coarse._replace(options={"upsample": 8})
    check_steps(TASKS["ks"], short, fine.downsample_rate)
    check_steps(TASKS["ks"], short, Upstream("fbank", "fbank").downsample_rate)


def write_wave(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.zeros(4000), 16000)


def test_lists_of_emotions_leave_the_tested_session_out(tmp_path):
    for number, session in enumerate(SESSIONS, 1):
        turns = []
        for i, label in enumerate(("neu", "exc", "fru", "sad")):
            name = f"Ses0{number}F_impro01_F00{i}"
            write_wave(tmp_path / session / "sentences/wav/impro01" / f"{name}.wav")
            turns.append(f"[6.29 - 8.23]\t{name}\t{label}\t[2.5, 2.5, 2.5]\n")
        path = tmp_path / session / "dialog/EmoEvaluation/impro01.txt"
        path.parent.mkdir(parents=True)
        path.write_text(
            "% [START_TIME - END_TIME] TURN_NAME EMOTION\n" + "".join(turns)
        )
    data = read_data(TASKS["er"], tmp_path, tmp_path / "lists")
    assert len(data.samples) == 15  # frustration is not asked for
    session = Path(data.options["meta_data"]) / "Session2"
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
    data = read_data(TASKS["sid"], tmp_path, tmp_path / "lists")
    assert Path(data.options["meta_data"]).read_text() == f"1 {name}\n"
    (tmp_path / "iden_split.txt").write_text("1 id10002/a/00001.wav\n")
    with pytest.raises(ValueError, match="lacks id10002/a/00001.wav"):
        read_data(TASKS["sid"], tmp_path, tmp_path / "lists")


def test_the_configs_hold_superbs_values():
    for name, steps, batch in (("ks", 200000, 32), ("ic", 200000, 32)):
        config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
        assert config["runner"]["total_steps"] == steps
        datarc = config["downstream_expert"]["datarc"]
        assert batch in (datarc.get("batch_size"), datarc.get("train_batch_size"))


@pytest.mark.slow
def test_stage_8_trains_tests_and_compares_with_real_s3prl(tmp_path, model):
    write_speech_commands(tmp_path / "ks", tone_digits(6), test_from=5)
    recipe = ROOT / "egs2" / "sslam"
    words = [
        *("--stage", "8", "--stop_stage", "8", "--python", sys.executable),
        *("--seeds", "1", "--nj", "2", "--expdir", tmp_path / "exp"),
        *("--superb_tasks", f"ks={tmp_path / 'ks'}", "--superb_lrs", "1e-2"),
        *("--superb_upstreams", f"fbank_no_cmvn mine={model}"),
        *("--superb_args", "--steps 4 --num_workers 0"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [recipe / "run.sh", *map(str, words)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    text = (tmp_path / "exp" / "SUPERB.md").read_text()
    assert "| ks | mine | 0.01 |" in text and "missing" not in text


@pytest.mark.slow
def test_a_hear_fold_trains_and_is_tested_with_real_s3prl(tmp_path, sounds, model):
    plan = make_plan(
        tmp_path,
        {"HearESC50": sounds},
        (1e-2,),
        upstreams={"mine": str(model)},
        schedule=Schedule({"": 2}, num_workers=0),
    )
    run = sweeping.make_runs(plan)[0]
    part = sweeping._Part(sweeping.Processes(), tmp_path / "replaced")
    part.train(run)
    part.test(run)
    assert run.record("trained")["steps"] == 2
    assert 0 <= run.record("tested")["test"] <= 1
