"""ESPnet's own commands with SSLAM in them, as users run them: processes on CPU."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml

from espnet2_sslam.checkpoint import save_model
from espnet2_sslam.encoder import SSLAMEncoder
from tests.corpus_case import real_audio
from tests.host_archives import source_archive

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "egs2" / "sslam"
TINY = {"embed_dim": 48, "depth": 1, "num_heads": 3, "mlp_ratio": 1.0}
WRAPPER = ("-m", "espnet2_sslam")
ASR = (*WRAPPER, "-m", "espnet2.bin.asr_train")
TOKENS = "<blank> <unk> <space> a b c d <sos/eos>".split()


def python(*words, code=0, cwd=None):
    """Run Python and return (stdout, stderr) after a check of its exit status."""
    path = f"{RECIPE / 'utils'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    packages = f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"
    result = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=cwd,
        text=True,
        capture_output=True,
        timeout=590,
        env={**os.environ, "PATH": path, "PYTHONPATH": packages},
    )
    assert result.returncode == code, result.stdout + result.stderr
    return result.stdout, result.stderr


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Eight clips of noise with letters as text; the list of tokens."""
    folder = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    scp, text = "", ""
    for number in range(8):
        path = folder / f"clip{number}.wav"
        noise = 0.1 * generator.standard_normal(16_000 + 2_000 * number)
        soundfile.write(path, noise, 16_000)
        scp += f"clip{number} {path}\n"
        text += f"clip{number} {'abcdabcd'[:2 + number % 3]}\n"
    (folder / "wav.scp").write_text(scp)
    (folder / "text").write_text(text)
    (folder / "long").write_text(text.replace("\n", "abcdabcdabcdabcd\n"))
    (folder / "tokens.txt").write_text("\n".join(TOKENS) + "\n")
    return folder


def asr_options(data, out, text="text"):
    """Options of a small ASR training of one epoch."""
    words = ["--token_type", "char", "--token_list", data / "tokens.txt"]
    for part in "train", "valid":
        option = f"--{part}_data_path_and_name_and_type"
        words += [option, f"{data}/wav.scp,speech,sound"]
        words += [option, f"{data}/{text},text,text"]
        words += [f"--{part}_shape_file", data / "text"]
    decoder = "{attention_heads: 2, linear_units: 16, num_blocks: 1}"
    words += ["--decoder", "transformer", "--decoder_conf", decoder]
    words += ["--model_conf", "{report_cer: false, report_wer: false}"]
    words += ["--batch_type", "unsorted", "--batch_size", 4, "--max_epoch", 1]
    words += ["--use_matplotlib", "false", "--use_tensorboard", "false"]
    return [*words, "--num_workers", 1, "--output_dir", out]


def conf(place, **options):
    """One --<place>_conf option."""
    return [f"--{place}_conf", json.dumps({**TINY, **options})]


ENCODER = ["--encoder", "sslam", "--input_size", 1, "--normalize", "none"]
CONFORMER = ["--encoder", "conformer", "--encoder_conf"]
CONFORMER += ["{output_size: 16, attention_heads: 2, linear_units: 16, num_blocks: 1}"]
CONFORMER += ["--encoder_conf", "input_layer=linear"]
FRONTEND = ["--frontend", "sslam", "--normalize", "utterance_mvn", *CONFORMER]


@pytest.fixture(scope="module")
def packed(data, tmp_path_factory):
    """A model trained from pre-trained weights, packed; its source is gone after."""
    folder = tmp_path_factory.mktemp("packed")
    torch.manual_seed(3)
    source = save_model(SSLAMEncoder(**TINY, max_frames=640), folder / "source")
    printed, _ = python(*ASR, "--print_config", *ENCODER[:2], "--frontend", "sslam")
    options = yaml.safe_load(printed)  # nothing but YAML on stdout
    assert options["encoder_conf"]["freq"] == "mean"
    assert options["frontend_conf"]["freeze"] is True
    for name in SSLAM_SIZES:  # they are those of the source
        del options["encoder_conf"][name]
    (folder / "config.yaml").write_text(yaml.safe_dump(options))
    train = folder / "train"
    python(
        *("-m", "espnet2.bin.launch", "--cmd", "run.pl --mem 1G", "--ngpu", 0),
        *("--log", train / "train.log", "--init_file_prefix", train / ".dist_"),
        *("--", sys.executable, *ASR, "--config", folder / "config.yaml", *ENCODER),
        *asr_options(data, train),
        *("--encoder_conf", f"pretrained={source}", "--encoder_conf", "upsample=4"),
    )
    source.rename(folder / "gone")
    python(
        *WRAPPER,
        *("-m", "espnet2.bin.pack", "asr", "--outpath", folder / "model.zip"),
        *("--asr_train_config", "train/config.yaml"),
        *("--asr_model_file", "train/1epoch.pth"),
        cwd=folder,
    )
    return folder


SSLAM_SIZES = ("embed_dim", "depth", "num_heads", "mlp_ratio", "max_frames")


def test_the_training_began_with_the_pre_trained_weights(packed):
    config = yaml.safe_load((packed / "train" / "config.yaml").read_text())
    assert config["encoder_conf"]["embed_dim"] == 48
    assert config["encoder_conf"]["max_frames"] == 640
    log = (packed / "train" / "train.log").read_text()
    assert f"pre-trained weights of {packed / 'source'} loaded" in log
    before = torch.load(packed / "train" / "1epoch.pth")["encoder.log_mel.std"]
    assert float(before) == pytest.approx(4.569)


UNPACK = """
import sys, soundfile, torch
from pathlib import Path
from espnet2.main_funcs.pack_funcs import unpack
from espnet2.bin.asr_inference import Speech2Text
import espnet2_sslam

files = unpack("model.zip", sys.argv[1])
speech2text = Speech2Text.from_pretrained(**files, beam_size=2, maxlenratio=-3)
weights = torch.load(files["asr_model_file"])
own = speech2text.asr_model.state_dict()
assert all(torch.equal(own[name], weights[name]) for name in weights)
print(type(speech2text.asr_model.encoder).__name__)
print(len(speech2text(soundfile.read(sys.argv[2])[0])))
"""


def test_a_packed_model_needs_no_other_file(packed, data, tmp_path):
    with zipfile.ZipFile(packed / "model.zip") as archive:
        names = {Path(name).name for name in archive.namelist()}
    assert names == {"meta.yaml", "config.yaml", "1epoch.pth"}
    out, _ = python("-c", UNPACK, tmp_path / "x", data / "clip0.wav", cwd=packed)
    assert out.split()[-2:] == ["PretrainedEncoder", "1"]


def test_a_missing_source_and_a_ctc_that_cannot_learn_are_one_line(data, tmp_path):
    missing = [*conf("encoder", pretrained="gone/model.pt")]
    _, err = python(*ASR, *ENCODER, *asr_options(data, tmp_path), *missing, code=1)
    last = err.splitlines()[-1]
    assert last.startswith("error: pretrained: 'gone/model.pt'"), err
    assert "Traceback" not in err
    options = asr_options(data, tmp_path, text="long")
    _, err = python(*ASR, *ENCODER, *options, *conf("encoder"), code=1)
    assert err.splitlines()[-1].startswith("error: CTC cannot learn: 4 of the first 4")
    assert "Traceback" not in err
    assert not list(tmp_path.glob("*.pth"))


def free_port():
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


def test_torchrun_trains_the_frontend_on_two_ranks_with_their_workers(data, tmp_path):
    python(
        *("-m", "torch.distributed.run", "--nproc_per_node", 2),
        *("--master_port", free_port(), *ASR, *FRONTEND),
        *asr_options(data, tmp_path),
        *conf("frontend", freeze=False, upsample=2),
        *("--ngpu", 0, "--dist_backend", "gloo"),
    )
    states = torch.load(tmp_path / "1epoch.pth")
    assert states["frontend.layer_weights"].abs().sum() > 0


FILES = "train_config", "model_file"


@pytest.mark.parametrize("place", ["encoder", "frontend"])
@pytest.mark.parametrize("name", ["spk", "lid", "diar"])
def test_a_packed_model_of_clips_and_speakers_infers_alone(
    name, place, tmp_path, monkeypatch
):
    from espnet2.bin.diar_inference import DiarizeSpeech
    from espnet2.bin.spk_inference import Speech2Embedding
    from espnet2.main_funcs.pack_funcs import pack, unpack
    from espnet2.utils.yaml_no_alias_safe_dump import yaml_no_alias_safe_dump

    from tests import host_tasks

    torch.manual_seed(3)
    source = save_model(SSLAMEncoder(**TINY, max_frames=640), tmp_path / "source")
    (tmp_path / "tokens").write_text("\n".join(TOKENS) + "\n")
    more = [f"--{place}_conf", f"pretrained={source}"]
    module = f"{host_tasks.ESPNET2}{name}"
    task, args, model = host_tasks.build(module, place, tmp_path / "tokens", more)
    monkeypatch.chdir(tmp_path)
    torch.save(model.state_dict(), "model.pth")
    Path("config.yaml").write_text(yaml_no_alias_safe_dump(vars(args)))
    pack({"model_file": "model.pth"}, {"train_config": "config.yaml"}, "model.zip")
    for file in "source", "model.pth", "config.yaml":
        Path(file).rename(f"gone-{file}")
    files = unpack("model.zip", "unpacked")
    speech = 0.1 * torch.randn(1, 20_477)
    with torch.no_grad():
        if name == "diar":
            diarize = DiarizeSpeech(**files, num_spk=2)
            _, found = diarize(speech, fs=16_000)
            assert found.shape == (1, 1 + 20_477 // 320, 2)
            diarize.diar_model = model.eval()
            _, wanted = diarize(speech, fs=16_000)
        else:
            inputs = {"speech": speech, "extract_embd": True}
            if name == "lid":
                inputs["speech_lengths"] = torch.tensor([20_477])
            wanted = model.eval()(**inputs)
            if name == "spk":
                found = Speech2Embedding(**files)(speech[0].numpy())
            else:  # as lid_inference does
                loaded, _ = task.build_model_from_file(*map(files.get, FILES))
                found = loaded.eval()(**inputs)
    for part, same in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(part, same)


TASKS = """
from tests import host_tasks as tasks
offered = {(m, place) for m, places in tasks.OFFERED.items() for place in places}
found = tasks.everywhere()
assert found <= offered, found - offered  # not where it cannot work
missing = {module for module, _ in offered - found}
# ESPnet 202511 has neither
assert missing <= {tasks.ESPNET3_ASR, tasks.ESPNET2 + "aqa"}, missing
for module in missing:
    del tasks.OFFERED[module]
made = tasks.table()
print(made == tasks.documented() if not missing else "trained")
"""


def test_sslam_is_offered_where_it_trains_as_the_docs_say():
    out, _ = python("-c", TASKS, cwd=ROOT)
    assert out.split()[-1] in ("True", "trained"), "python -m tests.host_tasks --write"


ESPNETEZ = """
import espnet2_sslam
from espnetez.task import get_ez_task
parser = get_ez_task("asr").get_parser()
words = "--encoder sslam --frontend sslam".split()
args = parser.parse_args(words)
print(args.encoder, args.frontend)
"""


def test_espnet_ez_offers_sslam():
    probe = "import importlib.util as u; print(bool(u.find_spec('espnetez')))"
    if python("-c", probe)[0].strip() != "True":
        pytest.skip("this ESPnet has no espnetez")
    pytest.importorskip(
        "six", reason="espnetez needs six, which ESPnet does not install"
    )
    assert python("-c", ESPNETEZ)[0].splitlines()[-1] == "sslam sslam"


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """Thirty-two real clips of four classes, as cls_train wants them."""
    corpus = real_audio("esc50-mini")
    folder = tmp_path_factory.mktemp("sounds")
    rows = (corpus / "meta" / "esc50.csv").read_text().splitlines()[1:]
    rows = sorted((row.split(",") for row in rows), key=lambda row: int(row[2]))[:32]
    classes = sorted({row[3] for row in rows})
    lists = {"wav.scp": "", "text": ""}
    for row in sorted(rows):
        key = Path(row[0]).stem
        lists["wav.scp"] += f"{key} {(corpus / 'audio' / row[0]).resolve()}\n"
        lists["text"] += f"{key} {row[3]}\n"
    for name, content in lists.items():
        (folder / name).write_text(content)
    (folder / "tokens.txt").write_text("\n".join([*classes, "<unk>"]) + "\n")
    return folder


@pytest.mark.parametrize("place", ["encoder", "frontend"])
def test_cls_train_learns_real_sounds(sounds, tmp_path, place):
    pytest.importorskip("torcheval", reason="cls_train needs torcheval")
    words = []
    for part in "train", "valid":
        option = f"--{part}_data_path_and_name_and_type"
        words += [option, f"{sounds}/wav.scp,speech,sound"]
        words += [option, f"{sounds}/text,label,text"]
        words += [f"--{part}_shape_file", sounds / "text"]
    python(
        *(*WRAPPER, "-m", "espnet2.bin.cls_train"),
        *("--config", ROOT / "conf" / f"cls_sslam_{place}_tiny.yaml", *words),
        *("--token_list", sounds / "tokens.txt", "--output_dir", tmp_path),
        *("--max_epoch", 4, "--batch_size", 8),
    )
    state = torch.load(tmp_path / "checkpoint.pth", weights_only=False)
    reporter = state["reporter"]["stats"]
    losses = [reporter[epoch]["train"]["loss"] for epoch in sorted(reporter)]
    assert losses[-1] < losses[0]


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A function that makes the folder of a recipe in a clone of ESPnet."""
    folder = tmp_path_factory.mktemp("clone")
    source = source_archive("espnet", folder)
    template = source / "egs2" / "TEMPLATE"

    def recipe(task):
        here = folder / "root" / "egs2" / "mini" / task
        (here / "local").mkdir(parents=True)
        (here / "conf").mkdir()
        (here / "local" / "path.sh").touch()
        for name in "utils", "scripts", "pyscripts", "steps", "path.sh", "cmd.sh":
            (here / name).symlink_to(template / "asr1" / name)
        script = f"{task.removesuffix('1')}.sh"
        (here / script).symlink_to(template / task / script)
        torch.manual_seed(3)
        tiny = SSLAMEncoder(**TINY, max_frames=640)
        save_model(tiny, here / "models" / "sslam")
        return here

    (folder / "root").mkdir()
    (folder / "root" / "tools").symlink_to(source / "tools")
    return recipe


def documented(task):
    """The YAML and the command that docs/hosts.md gives for a script."""
    text = (ROOT / "docs" / "hosts.md").read_text().split(f"(`{task}.sh`)")[1]
    config, command = (text.split(f"```{kind}\n")[1] for kind in ("yaml", "sh"))
    return config.split("```")[0], command.split("```")[0].replace("\\\n", " ")


SMALLER = {  # added to the documented command: few epochs of few clips on a CPU
    "asr": "--stage 10 --stop_stage 11 --token_type char --use_lm false --lang en",
    "cls": "--stage 5 --stop_stage 6",
    "spk": "--stage 4 --stop_stage 5",
}
ARGS = "--max_epoch 1 --batch_type unsorted --batch_size 4 --num_workers 1 "
ARGS += "--use_matplotlib false --use_tensorboard false"
MORE = {
    "asr": "--decoder_conf linear_units=16 --decoder_conf num_blocks=1 "
    "--decoder_conf attention_heads=2",
    "cls": "",
    "spk": "--num_iters_per_epoch 2 --valid_batch_size 4",
}


def script(here, *words):
    """Run a script of a recipe with the commands of this checkout to its good end."""
    programs = here / "programs"
    programs.mkdir(exist_ok=True)
    python3 = programs / "espnet2-sslam-python"
    python3.write_text(f'#!/bin/sh\nexec {sys.executable} -m espnet2_sslam "$@"\n')
    python3.chmod(0o755)
    path = f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    packages = f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"
    process = subprocess.Popen(
        ["bash", *words],
        cwd=here,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env={**os.environ, "PATH": path, "PYTHONPATH": packages},
    )
    try:
        output, _ = process.communicate(timeout=900)
    finally:  # a script that hangs leaves neither job nor loader worker behind
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    logs = [log.read_text()[-3000:] for log in here.glob("exp/*/train.log")]
    assert process.returncode == 0, output[-5000:] + str(logs)


@pytest.mark.parametrize("task", SMALLER)
def test_the_documented_recipe_trains_by_espnets_own_script(task, clone, data):
    if task == "cls":
        pytest.importorskip("torcheval", reason="cls_train needs torcheval")
    here = clone(f"{task}1")
    config, command = documented(task)
    (here / f"{task}.yaml").write_text(config)
    words = shlex.split(command)
    train, valid = (
        words[words.index(f"--{part}_set") + 1] for part in ("train", "valid")
    )
    lines = (data / "wav.scp").read_text().splitlines()
    keys = [line.split()[0] for line in lines]
    for part in train, valid:
        dump = here / "dump" / ("" if task == "cls" else "raw") / part
        dump.mkdir(parents=True)
        (dump / "feats_type").write_text("raw\n")
        (dump / "audio_format").write_text("wav\n")
        if task == "cls":
            text = "".join(f"{key} {'ab'[i % 2]}\n" for i, key in enumerate(keys))
        else:
            text = (data / "text").read_text()
        speakers = "".join(f"{key} {'ab'[i % 2]}\n" for i, key in enumerate(keys))
        trials = "".join(
            f"{key}*{keys[0]} {line.split()[1]}\n"
            for key, line in zip(keys, lines, strict=True)
        )
        other = "".join(f"{key}*{keys[0]} {lines[0].split()[1]}\n" for key in keys)
        labels = "".join(f"{key}*{keys[0]} {1 - i % 2}\n" for i, key in enumerate(keys))
        files = {"wav.scp": "\n".join(lines) + "\n", "text": text}
        files |= {"utt2spk": speakers, "trial.scp": trials, "trial2.scp": other}
        files |= {"trial_label": labels}
        files["spk2utt"] = "".join(
            f"{name} {' '.join(keys[i::2])}\n" for i, name in enumerate("ab")
        )
        for name, content in files.items():
            (dump / name).write_text(content)
    tokens = here / "data" / "en_token_list" / "char" / "tokens.txt"
    tokens.parent.mkdir(parents=True)
    tokens.write_text("\n".join(TOKENS) + "\n")
    (here / "data" / "token_list").write_text("a\nb\n<unk>\n")
    args = f"{ARGS} {MORE[task]}"
    more = f"{SMALLER[task]} --ngpu 0 --nj 2 --audio_format wav".split()
    if task == "spk":
        more += ["--speed_perturb_factors", ""]
    script(here, *words, *more, f"--{task}_args", args)
    (trained,) = here.glob("exp/*/1epoch.pth")
    assert "encoder.blocks.0.attn.qkv.weight" in torch.load(trained)
    written = yaml.safe_load((trained.parent / "config.yaml").read_text())
    assert written["encoder"] == "sslam" and written["normalize"] is None
    assert written["encoder_conf"]["embed_dim"] == 48  # the documented weights'


def commands_of(title):
    """The command lines that docs/hosts.md gives below a title."""
    text = (ROOT / "docs" / "hosts.md").read_text().split(f"## {title}\n")[1]
    return text.split("```sh\n")[1].split("```")[0].splitlines()


@pytest.fixture(scope="module")
def template(clone, data):
    """A recipe of the clone made from our template, pre-trained on a few clips."""
    root = clone("ssl1").parents[2]
    (root / "egs2" / "TEMPLATE").symlink_to(
        (root / "egs2/mini/ssl1/utils").resolve().parents[1]
    )
    made, entered, *_ = commands_of("A recipe inside an ESPnet clone")
    words = shlex.split(made, comments=True)
    subprocess.run([ROOT / words[0], root / words[1].split("/", 1)[1]], check=True)
    here = root / entered.split()[1].split("/", 1)[1]
    local = here / "local" / "data.sh"
    lists = ""
    for part, clips in {"train": range(6), "valid": (6, 7), "test": (6, 7)}.items():
        folder = f"data/{part}"
        lists += f"mkdir -p {folder}; rm -f {folder}/*\n"
        for clip in clips:
            rows = {"wav.scp": f"cat {data}/clip{clip}.wav |", "text": "ab"[clip % 2]}
            for name, value in {**rows, "utt2spk": f"clip{clip}"}.items():
                lists += f"echo 'clip{clip} {value}' >>{folder}/{name}\n"
        lists += f"cp {folder}/utt2spk {folder}/spk2utt\n"
    local.write_text(f"#!/usr/bin/env bash\n. ./path.sh\n{lists}")
    local.chmod(0o755)
    configs = "conf/train_eat_tiny.yaml conf/train_sslam_tiny.yaml"
    args = "--max_epoch 1 --num_iters_per_epoch 2 --batch_size 4 "
    args += "--model_conf clip_frames=96"
    words = ["./run.sh", "--ngpu", "0", "--nj", "1", "--train_configs", configs]
    script(here, *words, "--ssl_args", args)
    return here


def test_the_template_becomes_a_recipe_of_a_clone_that_pre_trains(template):
    links = {p.name for p in template.iterdir() if p.is_symlink() and p.exists()}
    assert links == set("path.sh db.sh scripts pyscripts steps utils cls.sh".split())
    confs = {path.name for path in (template / "conf").glob("*.conf")}
    assert {"slurm.conf", "queue.conf", "pbs.conf"} <= confs
    stats = (template / "exp/ssl_stats_raw/train.options").read_text()
    first, second = (
        yaml.safe_load((template / f"exp/ssl_train_{p}_tiny/config.yaml").read_text())
        for p in ("eat", "sslam")
    )
    assert f"fbank_mean={first['encoder_conf']['fbank_mean']} " in stats
    assert second["init_param"] == ["exp/ssl_train_eat_tiny/latest.pth:::num_updates"]
    old, new = (
        torch.load(template / f"exp/ssl_train_{p}_tiny/latest.pth")
        for p in ("eat", "sslam")
    )
    assert new["encoder.log_mel.std"] == old["encoder.log_mel.std"]
    published = template / "exp/publish/ssl_train_sslam_tiny"
    assert (published / "espnet_model.zip").exists()
    assert "datasets:\n- mycorpus\n" in (published / "README.md").read_text()


def test_the_pre_trained_encoder_is_fine_tuned_by_espnets_cls_script(template):
    pytest.importorskip("torcheval", reason="cls_train needs torcheval")
    source = "exp/ssl_train_sslam_tiny/latest.pth"
    args = f"{ARGS} --use_amp false --encoder_conf pretrained={source}"
    words = ["./run_cls.sh", "--ngpu", "0", "--nj", "1", "--inference_nj", "1"]
    script(template, *words, "--cls_tag", "tiny", "--cls_args", args)
    results = (template / "exp/cls_tiny/RESULTS.md").read_text()
    assert "\ncls_test|" in results and "\ncls_valid|" in results
    log = (template / "exp/cls_tiny/train.log").read_text()
    assert f"pre-trained weights of {source} loaded" in log
