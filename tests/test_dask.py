"""`sslam embed|tag --dask`: the bytes of one process, whatever happens to workers."""

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from espnet2_sslam.bin.cli import main, run_main
from espnet2_sslam.inference import ResultFolder, cluster, results
from tests.inference_case import classifier, encoder, noise, sslam, write

distributed = pytest.importorskip("distributed", reason="Dask is not installed")

COMMANDS = [
    *(("embed encoder", f"x.{suffix}") for suffix in ("npz", "csv")),
    ("embed encoder --pooling frames", "x.ark"),
    ("embed encoder --layer all --chunk 0.5", "x.jsonl"),
    ("tag classifier", "x.json"),
    ("tag classifier --frames", "x.npz"),
    ("tag classifier --events --threshold 0.6", "x.tsv"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models, and clips of which two cannot be used."""
    folder = tmp_path_factory.mktemp("dask")
    sslam(encoder()).save_pretrained(folder / "encoder")
    sslam(classifier()).save_pretrained(folder / "classifier")
    (folder / "clips").mkdir()
    lengths = np.random.default_rng(0).uniform(0.3, 2.5, 40)
    for number, length in enumerate(lengths):
        write(folder / f"clips/{number:02d}.wav", noise(length, seed=number))
    (folder / "clips/07.wav").write_bytes(b"")
    (folder / "clips/20.wav").write_text("no audio")
    return folder


@pytest.fixture(scope="module")
def local():
    """A cluster of two workers that are threads of this process."""
    options = {"processes": False, "dashboard_address": ":0"}
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, **options) as made:
        yield made.scheduler_address


@pytest.fixture(autouse=True)
def small_shards(monkeypatch, folder):
    """About eight files a shard, and short batches."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(results, "SHARD_BYTES", (300_000, 300_000))


def run(capsys, words, output, *more):
    """Run a command: its exit status, what it says, the bytes of its output."""
    words = [*words.split(), "clips", "-o", str(output), "--batch_seconds", "6", *more]
    with pytest.raises(SystemExit) as stop:
        run_main(lambda: main(words))
    lines = capsys.readouterr().err.splitlines()
    files = sorted(output.parent.glob(f"{output.stem}.*"))
    made = {path.name: path.read_bytes() for path in files if path.is_file()}
    return stop.value.code, [ln for ln in lines if not ln.startswith("--dask")], made


def both(folder, name):
    """Two outputs of one name."""
    outputs = [folder / kind / name for kind in ("one", "dask")]
    for output in outputs:
        output.parent.mkdir(exist_ok=True)
    return outputs


def same(one, other, outputs):
    """Whether two runs have said and made the same, each at its place."""
    status, lines, made = other
    there, here = map(str, (outputs[1].parent, outputs[0].parent))
    lines = [line.replace(there, here) for line in lines]
    made = {
        name: text.replace(there.encode(), here.encode()) for name, text in made.items()
    }
    return one == (status, lines, made)


@pytest.mark.parametrize("words, name", COMMANDS)
def test_the_output_is_that_of_one_process(capsys, tmp_path, local, words, name):
    outputs = both(tmp_path, name)
    one = run(capsys, words, outputs[0])
    other = run(capsys, words, outputs[1], "--dask", local)
    assert same(one, other, outputs)
    status, lines, made = one
    assert status == 1 and made and "2 of 40 files could not be used" in lines[-1]
    assert "07.wav" in lines[-3] and "20.wav" in lines[-2]
    assert not list(tmp_path.rglob(cluster.PIECES))


@pytest.mark.parametrize("first", ["one", "dask"])
def test_a_stopped_run_goes_on_with_and_without_a_cluster(
    capsys, tmp_path, local, monkeypatch, first
):
    outputs, dask = both(tmp_path, "x.npz"), ["--dask", local]
    one = run(capsys, "embed encoder", outputs[0])
    add = ResultFolder.add

    def stop(self, item, result):
        if len(self) == 13:
            raise KeyboardInterrupt
        add(self, item, result)

    monkeypatch.setattr(ResultFolder, "add", stop)
    more = dask if first == "dask" else []
    status, lines, made = run(capsys, "embed encoder", outputs[1], *more)
    assert (status, made) == (130, {}) and "13 of 40 files are done" in lines[0]
    assert not (tmp_path / "dask/x.npz.part" / cluster.PIECES).exists()
    monkeypatch.setattr(ResultFolder, "add", add)
    more = [] if first == "dask" else dask
    status, lines, made = run(capsys, "embed encoder", outputs[1], *more)
    assert lines.pop(0) == "13 of 40 files are done already, 27 to go"
    assert same(one, (status, lines, made), outputs)


def test_no_more_shards_are_given_out_than_the_workers_need(folder, tmp_path, local):
    with cluster.Cluster(local) as client:
        model = str(folder / "encoder")
        weights = results.weights_sha256(encoder())
        options = (("device", "cpu"),)
        pieces = tmp_path / "pieces"
        method = "embed_files", {"pooling": "cls"}
        work = cluster.Work(model, options, weights, *method, str(pieces))
        clips = [str(folder / "clips/01.wav")]
        shards = [results.Shard(place, clips) for place in range(30)]
        with_results = client.compute(work, shards)
        places = [next(with_results).index]
        deadline = time.monotonic() + 1.5
        while time.monotonic() < deadline:
            assert len(list(pieces.iterdir())) <= 2 * client.num_threads() + 2
            time.sleep(0.1)
        places += [result.index for result in with_results]
    assert sorted(places) == list(range(30))
    assert not pieces.exists()


@pytest.mark.parametrize(
    "address, complaint",
    [
        ("127.0.0.1:9", "error: --dask 127.0.0.1:9: no scheduler: "),
        ("nowhere.json", "neither HOST:PORT nor a scheduler file that is here"),
        ("text.json", "error: --dask text.json: no scheduler: "),
    ],
)
def test_a_scheduler_that_is_not_there_is_one_line(
    capsys, tmp_path, monkeypatch, address, complaint
):
    monkeypatch.setattr(cluster, "CONNECT", 0.5)
    Path("text.json").write_text("{}")
    status, lines, made = run(
        capsys, "embed encoder", tmp_path / "x.npz", "--dask", address
    )
    assert (status, made) == (1, {}) and len(capsys.readouterr().err) == 0
    assert len(lines) == 1 and complaint in lines[0]


def test_a_cluster_needs_an_output(capsys, folder):
    with pytest.raises(SystemExit) as stop:
        run_main(lambda: main(["tag", "classifier", "clips", "--dask", "host:8786"]))
    assert stop.value.code == 1
    assert capsys.readouterr().err == "error: --dask needs -o: the file to write\n"


@pytest.mark.parametrize(
    "what, complaint",
    [
        ("audio", "No such file or directory: '/elsewhere.wav'"),
        ("output", "No such file or directory: '/elsewhere/"),
        ("model", "has other weights here than for the client"),
        ("version", "version 9.9.9 instead of "),
    ],
)
def test_a_worker_that_does_not_see_the_same_says_so_in_one_line(
    folder, tmp_path, local, monkeypatch, what, complaint
):
    weights = results.weights_sha256(encoder(seed=int(what == "model")))
    pieces = str(tmp_path / "pieces")
    method = "embed_files", {}
    model = str(folder / "encoder")
    work = cluster.Work(model, (("device", "cpu"),), weights, *method, pieces)
    here = ["/elsewhere.wav"] if what == "audio" else []
    if what == "output":
        work = work._replace(folder="/elsewhere")
    if what == "version":
        monkeypatch.setattr(cluster, "__version__", "9.9.9")
    with distributed.Client(local) as client:
        future = client.submit(cluster._compute, work, here, here, pure=False)
        with pytest.raises(ValueError) as error:
            future.result()
    assert str(error.value).startswith("worker ") and complaint in str(error.value)
    assert str(error.value).count("\n") == 0


POISON = """
import os, signal, time
from espnet2_sslam.inference import stream

def blocks(source, *more, _read=stream.source_blocks):
    if str(source).endswith("11.wav") and os.path.exists("{folder}/poison"):
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep({pause})
    return _read(source, *more)

stream.source_blocks = blocks
"""


@pytest.fixture
def processes(folder, tmp_path):
    """A cluster of two workers that are processes, each slow at reading."""
    preload = tmp_path / "poison.py"
    preload.write_text(POISON.format(folder=tmp_path, pause=0.1))
    import dask

    options = {"dashboard_address": ":0", "preload": str(preload)}
    with (
        dask.config.set(
            {
                "distributed.scheduler.allowed-failures": 1,
                "distributed.deploy.lost-worker-timeout": "600 s",  # a busy machine
            }
        ),
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, **options) as made,
    ):
        yield made.scheduler_address


@pytest.mark.slow
def test_a_killed_worker_costs_nothing(capsys, tmp_path, processes, monkeypatch):
    outputs = both(tmp_path, "x.npz")
    one = run(capsys, "embed encoder", outputs[0])
    added, add = [], ResultFolder.add

    def note(self, item, result):
        added.append(item.name)
        add(self, item, result)

    monkeypatch.setattr(ResultFolder, "add", note)
    killed = []

    def kill():
        with distributed.Client(processes, set_as_default=False) as client:
            while len(added) < 5:
                time.sleep(0.05)
            pids = client.run(os.getpid)
            busy = [address for address, keys in client.processing().items() if keys]
            killed.append(pids[busy[0]])
            os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    other = run(capsys, "embed encoder", outputs[1], "--dask", processes)
    killer.join()
    assert killed and same(one, other, outputs)
    assert len(added) == len(set(added)) == 38


@pytest.mark.slow
def test_a_file_that_kills_every_worker_is_named(capsys, tmp_path, processes):
    outputs = both(tmp_path, "x.npz")
    (tmp_path / "poison").touch()
    status, lines, made = run(capsys, "embed encoder", outputs[1], "--dask", processes)
    assert status == 1 and "3 of 40 files could not be used" in lines[-1]
    [line] = [line for line in lines if "11.wav" in line]
    assert "each worker that works on it dies" in line
    # all others are as if it could not be read
    clip = Path("clips/11.wav")
    content = clip.read_bytes()
    clip.write_bytes(content[:30].ljust(len(content), b"x"))
    one = run(capsys, "embed encoder", outputs[0])
    clip.write_bytes(content)
    assert made == one[2]
