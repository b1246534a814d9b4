"""Jobs of a cluster: what they are given, and how a stopped one goes on.

Stand-ins for sbatch, qsub and scontrol, and for ESPnet's slurm.pl and queue.pl, which
read the conf files and write the jobs' scripts in the same way.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.corpus_case import output_folders, run_recipe
from tests.test_recipe_shell import PATH, STAND_IN, Recipe

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "egs2" / "sslam"
RUNNER = f"""#!{sys.executable}
import re, subprocess, sys
from pathlib import Path

kind = Path(__file__).stem
options, words = {{"gpu": "0"}}, sys.argv[1:]
while words[0].startswith("--"):
    options[words[0][2:]], words = words[1], words[2:]
array = re.fullmatch(r"(\\w+)=1:(\\d+)", words[0])
log, *words = words[bool(array) :]
log, task, places = Path(log).absolute(), "", [""]
if array:  # every task has its number in place of the name
    label, number = array.groups()
    task = {{"slurm": "SLURM_ARRAY_TASK_ID", "queue": "SGE_TASK_ID"}}[kind]
    places = [str(1 + place) for place in range(int(number))]
    words = [word.replace(label, f"${{{{{{task}}}}}}") for word in words]
    assert label in log.name
command, given = "", {{}}
for line in open(f"conf/{{kind}}.conf"):
    line = re.sub(r"\\s*#.*", "", line.rstrip("\\n"))
    if match := re.match(r"command (.+)", line):
        command = match[1]
    elif match := re.match(r"option ([^=]+)=(\\S+) ?(.*)$", line):
        name, value, argument = match.groups()
        if value == options.get(name) or (value == "*" and name in options):
            exact = value != "*", argument.replace("$0", options[name])
            given[name] = max(exact, given.get(name, exact))
    else:
        assert not line or re.match(r"default (\\S+)=(\\S+)", line), line
given = " ".join(argument for _, argument in given.values())
blank = re.compile(r"\\s")
quoted = " ".join(f'"{{word}}"' if blank.search(word) else word for word in words)
logs = [log if not array else log.with_name(log.name.replace(label, place))
        for place in places]
if array:
    log = log.with_name(log.name.replace(label, f"${{{{{{task}}}}}}"))
    option = {{"slurm": f"--array 1-{{number}}", "queue": f"-t 1:{{number}}"}}[kind]
    given += " " + option
script = logs[0].with_suffix(".sh")
script.parent.mkdir(parents=True, exist_ok=True)
script.write_text(
    f"#!/bin/bash\\ncd {{Path.cwd()}}\\n. ./path.sh\\n"
    f"( {{quoted}} ) &>{{log}}\\nret=$?\\n"
    f"echo '#' Finished at `date` with status $ret >>{{log}}\\nexit $[$ret ? 1 : 0]\\n"
)
subprocess.run(f"{{command}} {{given}} {{script}}", shell=True)
sys.exit(any("with status 0" not in log.read_text().splitlines()[-1] for log in logs))
"""
# Nothing but PATH and the scheduler's own variables reaches a job.
SUBMIT = r"""#!/bin/bash
echo "$(basename "$0") $*" >>"$(dirname "$0")/submitted"
number="$(sed -nE 's/.*(--array 1-|-t 1:)([0-9]+) .*/\2/p' <<<"$*")"
for task in $(seq "${number:-1}"); do
    env -i PATH="${PATH}" JOB_ID=7 SLURM_JOB_ID=7 \
        ${number:+SGE_TASK_ID="${task}" SLURM_ARRAY_TASK_ID="${task}"} \
        bash "${@: -1}" &
done
wait
echo "Submitted batch job 7"
"""


class Cluster(Recipe):
    """A copy of the recipe, a stand-in for Python, and a scheduler."""

    def __init__(self, folder):
        super().__init__(folder)
        (folder / "tools").mkdir()
        self.write("tools/setup_env.sh", '#!/bin/bash\ntouch "$0.called"\nexit 1\n')
        shutil.copytree(ROOT / "conf", folder / "conf")
        shutil.copytree(RECIPE, folder / "egs2/sslam", symlinks=True)
        (folder / "espnet2_sslam").symlink_to(ROOT / "espnet2_sslam")
        for name in "slurm.pl", "queue.pl", "pbs.pl":
            self.write(f"clone/utils/{name}", RUNNER)
        for name in "sbatch", "qsub":
            self.write(f"bin/{name}", SUBMIT)
        # the launcher gives its job to the runner; a job says what it was given
        text = STAND_IN.replace(
            'if "espnet2.bin.launch" in words:\n',
            'if words[0].endswith(("once.py", "jobs.py")):\n'
            "    os.execv(sys.executable, [sys.executable, *words])\n"
            'if "espnet2.bin.launch" in words:\n'
            '    own, job = words, words[words.index("--") + 1 :]\n'
            "    def of(name): return own[own.index(name) + 1]\n"
            '    runner = [of("--cmd"), "--gpu", of("--ngpu"), of("--log"), *job]\n'
            "    os.execvp(runner[0], runner)\n"
            '    words = words[words.index("--") + 2 :]\n'
            'if "JOB_ID" in os.environ:\n'
            '    (here / "environment").write_text(" ".join(os.environ))\n'
            '    if (here / ("stop_" + words[1].rsplit(".", 1)[-1])).exists():\n'
            "        sys.exit(85)\n"
            "if False:\n",
        )
        text = text.replace("Path(__file__).parent", f"Path({str(folder)!r})")
        self.write("python", text)
        self.write("env/bin/python3", text)

    def write(self, name, text):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def start(self, *options, **variables):
        """Run run.sh with other variables: (status, output)."""
        words = [word for pair in self.options.items() for word in pair]
        done = subprocess.run(
            list(map(str, [self.folder / "egs2/sslam/run.sh", *words, *options])),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            env={**os.environ, "PATH": f"{self.folder}/bin:{PATH}", **variables},
        )
        return done.returncode, done.stdout


@pytest.fixture
def cluster(tmp_path):
    return Cluster(tmp_path)


@pytest.mark.parametrize("backend", ["slurm", "queue", "pbs"])
@pytest.mark.parametrize("activated", [False, True])
def test_a_job_uses_the_interpreter_of_run_sh_and_builds_nothing(
    cluster, backend, activated
):
    variables = {
        "cmd_backend": backend,
        "MAIN_ROOT": str(cluster.folder / "clone"),
    }
    if activated:
        del cluster.options["--python"]
        environment = str(cluster.folder / "env")
        variables["VIRTUAL_ENV"] = environment
        variables["PATH"] = f"{environment}/bin:{cluster.folder}/bin:{PATH}"
    status, output = cluster.start("--stop_stage", 4, **variables)
    assert status == 0, output
    assert (cluster.exp / "pretrain/phase1_eat_seed1/latest.pth").exists()
    assert "sslam_train" in (cluster.folder / "calls").read_text()
    given = set((cluster.folder / "environment").read_text().split())
    assert "PATH" in given
    assert not given & {"HOME", "VIRTUAL_ENV", "MAIN_ROOT", "cmd_backend"}
    assert not (cluster.folder / "tools/setup_env.sh.called").exists()
    [line] = (cluster.folder / "bin/submitted").read_text().splitlines()
    expected = {
        "slurm": "sbatch --export=PATH --requeue -p cpu --cpus-per-task 4",
        "queue": "qsub -v PATH -cwd -S /bin/bash -j y -r y",
        "pbs": "qsub -v PATH -S /bin/bash -j oe -r y",
    }
    assert line.startswith(expected[backend])


def test_a_job_asks_for_its_gpus(cluster):
    variables = {"cmd_backend": "slurm", "MAIN_ROOT": str(cluster.folder / "clone")}
    status, output = cluster.start("--stop_stage", 4, "--ngpu", 2, **variables)
    assert status == 0, output
    submitted = (cluster.folder / "bin/submitted").read_text()
    assert "-p gpu --gres gpu:2 --cpus-per-task 8" in submitted


def test_a_stopped_job_is_told_from_a_failed_one(cluster):
    variables = {"cmd_backend": "slurm", "MAIN_ROOT": str(cluster.folder / "clone")}
    for kind, expected in ("stop", 85), ("fail", 1):
        (cluster.folder / f"{kind}_sslam_train").touch()
        status, output = cluster.start("--stop_stage", 4, **variables)
        assert status == expected, output
        assert ("stopped by a signal" in output) == (kind == "stop")
        assert ("needs 2 clips" in output) == (kind == "fail")
        (cluster.folder / f"{kind}_sslam_train").unlink()
    status, output = cluster.start("--stage", 4, "--stop_stage", 4, **variables)
    assert status == 0 and "(phase 1 seed 1) done" in output


@pytest.mark.parametrize(
    "backend, main_root, options, complaint",
    [
        ("slurm", "", "", "needs slurm.pl: set MAIN_ROOT"),
        ("queue", "", "", "needs queue.pl: set MAIN_ROOT"),
        ("slurm", "/nowhere", "", "no slurm.pl in MAIN_ROOT=/nowhere"),
        (
            "local",
            "",
            "--num_nodes 2",
            "--num_nodes 2 needs cmd_backend=slurm, queue or pbs",
        ),
        ("local", "", "--ngpu 99", "--ngpu 99: PyTorch sees "),
    ],
)
def test_what_a_machine_lacks_is_one_line_before_stage_1(
    cluster, backend, main_root, options, complaint
):
    variables = {"cmd_backend": backend, "MAIN_ROOT": main_root}
    status, output = cluster.start(*options.split(), **variables)
    assert (status, output.count("\n")) == (1, 1), output
    assert complaint in output and not (cluster.folder / "data").exists()


def test_a_scheduler_that_is_not_here_is_one_line(cluster):
    (cluster.folder / "bin/sbatch").unlink()
    variables = {"cmd_backend": "slurm", "MAIN_ROOT": str(cluster.folder / "clone")}
    status, output = cluster.start(**variables)
    assert (status, output.count("\n")) == (1, 1) and "no sbatch here" in output


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["slurm", "queue"])
def test_formatting_and_report_of_array_jobs_are_those_of_one_process(cluster, backend):
    folder = cluster.folder
    data = ["--data_args", "--mini_scale 0.3", *output_folders(folder)]

    def made(*options, **variables):
        """Everything below dump/, where the lists name it."""
        run_recipe(*data, "--feats_type", "fbank", *options, **variables)
        shutil.rmtree(folder / "dump/fbank/feats")  # others: of as many clips as a task
        tables = ("feats.scp", "records.jsonl")  # name them, and when files were made
        dump = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in (folder / "dump").rglob("*")
            if path.is_file() and path.name[0] != "." and path.name not in tables
        }
        shutil.rmtree(folder / "dump")
        return dump

    expected = made("--stop_stage", 3)
    array = {
        "cmd_backend": backend,
        "MAIN_ROOT": str(folder / "clone"),
        "PATH": f"{folder}/bin:{PATH}",
    }
    found = made("--stage", 2, "--stop_stage", 3, "--nj", 4, **array)
    assert found == expected and "dump/fbank/report/fbank_stats.json" in found
    submitted = (folder / "bin/submitted").read_text().splitlines()
    assert len(submitted) == 2  # (arks of 256 clips are too few)
    assert all(
        {"slurm": "--array 1-4", "queue": "-t 1:4"}[backend] in s for s in submitted
    )


WAITING = f"""#!{sys.executable}
import os, signal, sys, time
from pathlib import Path

words = sys.argv[1:]
if "espnet2_sslam.bin.sslam_train" not in words or "espnet2.bin.launch" in words:
    if "espnet2.bin.launch" in words or words[0] == "-c":
        os.execv(sys.executable, [sys.executable, *words])
    os.execv("{{}}", ["python", *words])
here = Path(words[words.index("--output_dir") + 1])
numbers = []
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
    signal.signal(number, lambda number, frame: numbers.append(number))
(here / "waiting").touch()
while not numbers:
    time.sleep(0.05)
time.sleep(1)  # the checkpoint is written
(here / "got").write_text(signal.Signals(numbers[0]).name)
sys.exit(85)
"""


@pytest.mark.parametrize(
    "name, to_all",
    [
        *((name, to_all) for name in ("SIGTERM", "SIGUSR1") for to_all in (0, 1)),
        *(("SIGHUP", 1), ("SIGINT", 1)),  # as a terminal sends them
    ],
)
def test_a_signal_reaches_the_trainings_and_run_sh_waits_for_them(
    cluster, name, to_all
):
    assert cluster.start("--stop_stage", 3)[0] == 0
    cluster.write("waiting", WAITING.replace("{}", str(cluster.options["--python"])))
    cluster.options["--python"] = cluster.folder / "waiting"
    words = [word for pair in cluster.options.items() for word in pair]
    words += ["--stage", 4, "--seeds", "1 2 3", "--nj", 2]
    with open(cluster.folder / "log", "w") as log:
        process = subprocess.Popen(
            list(map(str, [cluster.folder / "egs2/sslam/run.sh", *words])),
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, "PATH": PATH},
        )
    runs = [cluster.exp / f"pretrain/phase1_eat_seed{seed}" for seed in (1, 2, 3)]
    deadline = time.time() + 60
    while not all((run / "waiting").exists() for run in runs[:2]):
        assert time.time() < deadline and process.poll() is None
        time.sleep(0.05)
    number = getattr(signal, name)
    os.killpg(process.pid, number) if to_all else process.send_signal(number)
    assert process.wait(60) == 85
    assert [(run / "got").read_text() for run in runs[:2]] == [name, name]
    assert not runs[2].exists()  # nothing else is begun
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    text = (cluster.folder / "log").read_text()
    assert "Traceback" not in text and "failed" not in text
    assert text.count("stopped by a signal, all is kept") == 2


SCONTROL = """#!/bin/bash
[ "$*" = "requeue ${SLURM_JOB_ID}" ] && touch "$(dirname "$0")/requeued"
"""


def sbatch(folder, script, words, variables, log, when):
    """Run a job as Slurm does, again while it asks for it: the status of each run.

    In the first run only the batch shell gets the signal that the script asks for.
    """
    text = script.read_text()
    assert "#SBATCH --requeue --signal B:USR1@" in text
    copy = folder / "spool"  # Slurm runs a copy, in the folder of the submission
    copy.write_text(text)
    statuses, requeued = [], folder / "bin/requeued"
    while not statuses or requeued.exists():
        requeued.unlink(missing_ok=True)
        with open(log, "a") as stream:
            job = subprocess.Popen(
                ["bash", str(copy), *map(str, words)],
                stdout=stream,
                stderr=stream,
                cwd=script.parent,
                env={**variables, "SLURM_JOB_ID": "7"},
                start_new_session=True,
            )
        if not statuses:
            deadline = time.time() + 300
            while not when():
                assert job.poll() is None and time.time() < deadline, log.read_text()
                time.sleep(0.05)
            job.send_signal(signal.SIGUSR1)
        statuses.append(job.wait(300))
        with pytest.raises(ProcessLookupError):  # it leaves nobody behind
            os.killpg(job.pid, 0)
    return statuses


@pytest.mark.slow
def test_a_job_at_its_time_limit_is_requeued_and_ends_with_the_same_weights(tmp_path):
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    (bin_ / "scontrol").write_text(SCONTROL)
    (bin_ / "scontrol").chmod(0o755)
    few = "--max_epoch 2 --num_iters_per_epoch 30 --scheduler_conf warmup_steps=1"
    words = ["--seeds", 1, *output_folders(tmp_path), "--data_args", "--mini_scale 0.1"]
    words += ["--pretrain_args", few, "--stop_stage", 4, "--python", sys.executable]
    run_recipe(*words, "--expdir", tmp_path / "undisturbed")
    [folder] = (tmp_path / "undisturbed/pretrain").glob("phase1_*")
    log = tmp_path / "exp/pretrain" / folder.name / "train.log"

    def training():
        return log.exists() and "1epoch:train:1-" in log.read_text()

    variables = {**os.environ, "PATH": f"{bin_}:{PATH}"}
    job = tmp_path / "sslam-7.log"
    statuses = sbatch(
        tmp_path, RECIPE / "slurm_job.sh", words, variables, job, training
    )
    assert statuses == [85, 0], job.read_text()
    assert "stopped by SIGUSR1 after batch" in log.with_name("train.1.log").read_text()
    weights = [
        torch.load(path, weights_only=True)
        for path in (folder / "latest.pth", log.with_name("latest.pth"))
    ]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
