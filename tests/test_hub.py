"""Names to files: local paths, Hugging Face ids, ESPnet tags, packed models."""

import io
import json
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import constants, hf_hub_download
from safetensors.torch import load_file, save

from espnet2_sslam.checkpoint import CheckpointError, load_model, resolve, save_model
from tests.checkpoint_case import small_encoder
from tests.hub_case import COMMIT, serving

REPO = "someone/sslam"
OTHER = "b" * 40
FILES = {
    "config.json": b'{"model_type": "sslam"}',
    "preprocessor_config.json": b"{}",
    "model.safetensors": b"weights " * 100,
    "README.md": b"# not needed",
    "pictures/curve.png": b"not needed",
}

META = {
    "yaml_files": {"classification_train_config": "exp/cls/config.yaml"},
    "files": {"classification_model_file": "exp/cls/latest.pth"},
}
PACK = {
    "meta.yaml": yaml.safe_dump(META).encode(),
    "exp/cls/config.yaml": b"encoder_conf: {}\n",
    "exp/cls/latest.pth": b"weights",
    "exp/cls/images/loss.png": b"not needed",
}


@pytest.fixture
def server(monkeypatch):
    with serving(monkeypatch) as server:
        server.add(REPO, FILES)
        yield server


@pytest.fixture
def get(server, tmp_path):
    """resolve() with a cache folder of its own."""
    return lambda name=REPO, **kw: resolve(name, cache_dir=tmp_path / "hf", **kw)


def _line(error):
    text = str(error.value)
    assert "\n" not in text
    return text


# --- local paths


def test_a_local_path_comes_back_as_it_is(tmp_path, monkeypatch):
    (tmp_path / "someone" / "sslam").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve(tmp_path) == tmp_path
    assert resolve(REPO) == Path(REPO)  # also where it looks like an id
    with pytest.raises(CheckpointError, match="local path: revision"):
        resolve(tmp_path, revision="main")


@pytest.mark.parametrize(
    "name", ["./exp/model", "/no/such/folder", "exp/latest.pth", "model", "a/b/c", ""]
)
def test_a_path_that_is_not_there_is_never_downloaded(name, server):
    with pytest.raises(CheckpointError, match="no such file or folder"):
        resolve(name)
    assert server.requests == []


# --- Hugging Face


def test_the_files_of_a_model_are_downloaded_and_no_others(get, server, caplog):
    caplog.set_level("INFO")
    folder = get()
    found = sorted(path.name for path in folder.iterdir())
    assert found == ["config.json", "model.safetensors", "preprocessor_config.json"]
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert folder.name == COMMIT
    assert f"pin it with {REPO}@{COMMIT}" in caplog.text
    server.requests.clear()
    assert get() == folder
    assert not [path for _, path in server.requests if "/resolve/" in path]


def test_a_pinned_commit_needs_no_network_the_second_time(get, server):
    get(f"{REPO}@{COMMIT}")
    server.requests.clear()
    assert get(revision=COMMIT) == get(f"{REPO}@{COMMIT}")
    assert server.requests == []


def test_a_commit_of_which_only_the_weights_are_there_is_completed(
    get, server, tmp_path
):
    options = {"revision": COMMIT, "cache_dir": tmp_path / "hf"}
    hf_hub_download(REPO, "model.safetensors", **options)
    assert (get(revision=COMMIT) / "config.json").is_file()
    server.add("someone/bare", {"model.safetensors": b"weights"})  # an old export
    folder = get("someone/bare")
    server.close()
    assert get("someone/bare") == folder == get(f"someone/bare@{COMMIT}")


def test_a_revision_chooses_the_commit(get, server):
    server.add(REPO, {**FILES, "config.json": b'{"new": 1}'}, OTHER)
    assert b"new" in (get() / "config.json").read_bytes()
    assert b"new" not in (get(f"{REPO}@{COMMIT}") / "config.json").read_bytes()
    with pytest.raises(CheckpointError, match="two revisions"):
        get(f"{REPO}@{COMMIT}", revision=OTHER)


@pytest.mark.parametrize("how", ["offline", "no network"])
def test_without_network_the_cache_is_used_or_one_line_says_what_is_missing(
    get, server, monkeypatch, tmp_path, how
):
    folder = get()
    if how == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    else:
        server.close()
    assert get() == get(revision="main") == folder
    with pytest.raises(CheckpointError) as error:
        resolve(REPO, cache_dir=tmp_path / "empty")
    line = _line(error)
    assert "is not in the cache" in line and "connect to the network" in line
    assert line.index("no such folder here") < line.index("Hugging Face")
    assert ("HF_HUB_OFFLINE is set" in line) == (how == "offline")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="weights are not in the cache"):
        get()


def test_what_another_program_has_downloaded_is_used_offline(get, server, tmp_path):
    for name in ("config.json", "model.safetensors"):
        path = hf_hub_download(REPO, name, cache_dir=tmp_path / "hf")
    folder = Path(path).parent
    server.close()
    assert get() == folder
    weights = folder / "model.safetensors"
    weights.resolve().chmod(0o644)
    weights.resolve().write_bytes(b"damaged!" * 100)
    with pytest.raises(CheckpointError, match="does not have the hash"):
        get()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_damaged_file_is_fetched_again_and_a_wrong_one_refused(
    get, server, caplog, name
):
    path = get() / name
    path.resolve().chmod(0o644)
    path.resolve().write_bytes(b"x" * path.stat().st_size)
    assert (get() / name).read_bytes() == FILES[name] and "damaged" in caplog.text
    path.resolve().write_bytes(b"x" * path.stat().st_size)
    server.broken[name] = FILES[name].replace(b"s", b"z")
    with pytest.raises(CheckpointError) as error:
        get()
    assert f"{name} does not have the hash" in _line(error)


def test_an_interrupted_download_leaves_nothing_half_and_can_be_repeated(get, server):
    server.broken["model.safetensors"] = 100
    with pytest.raises(CheckpointError) as error:
        get()
    assert "could not be fetched" in _line(error) and "run again" in _line(error)
    server.broken.clear()
    server.requests.clear()
    assert (get() / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    again = {path.split("/")[-1] for _, path in server.requests if "/resolve/" in path}
    assert again == {"model.safetensors"}  # whole files were kept


@pytest.mark.parametrize(
    "status, code, line",
    [
        (404, "RepoNotFound", "no such folder here, and on the Hub no such repo"),
        (401, None, "no such folder here, and on the Hub no such repo"),
        (403, "GatedRepo", "is gated: accept its terms"),
        (403, None, "may not be read with this token"),
        (404, "RevisionNotFound", "has no such revision"),
        (503, None, "the Hub answers 503"),
    ],
)
def test_what_the_hub_refuses_is_said_in_one_line(get, server, status, code, line):
    server.status[REPO], server.error_codes[REPO] = status, code
    with pytest.raises(CheckpointError) as error:
        get(revision="v1")
    assert line in _line(error) and REPO in _line(error)


def test_a_full_disk_is_said_in_one_line(get, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device", "/cache/x")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", full)
    with pytest.raises(CheckpointError) as error:
        get()
    assert "No space left on device (/cache/x): free some" in _line(error)


INDEX = "model.safetensors.index.json"
SHARDS = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
SHARDED = {
    "config.json": b"{}",
    INDEX: json.dumps({"weight_map": dict(zip("abc", [*SHARDS, SHARDS[0]]))}).encode(),
    **dict.fromkeys(SHARDS, b"weights"),
    "other.safetensors": b"not named by the index",
}


@pytest.mark.parametrize("pinned", [True, False])
def test_weights_in_several_files_are_fetched_by_their_index(get, server, pinned):
    server.add("someone/large", SHARDED)
    name = "someone/large" + f"@{COMMIT}" * pinned
    folder = get(name)
    names = {path.name for path in folder.iterdir()}
    assert names == {"config.json", INDEX, *SHARDS}
    server.close()
    assert get(name) == folder
    (folder / SHARDS[0]).unlink()
    with pytest.raises(CheckpointError, match="weights are not in the cache"):
        get(name)


def test_a_model_in_several_files_is_loaded_from_the_hub(server, tmp_path):
    folder = save_model(small_encoder(), tmp_path / "whole")
    state = load_file(folder / "model.safetensors")
    halves = {name: SHARDS[i % 2] for i, name in enumerate(state)}
    files = {INDEX: json.dumps({"weight_map": halves}).encode()}
    files["config.json"] = (folder / "config.json").read_bytes()
    for shard in SHARDS:
        files[shard] = save({n: t for n, t in state.items() if halves[n] == shard})
    server.add("someone/large", files)
    loaded = load_model("someone/large", cache_dir=tmp_path / "hf").model
    for name, value in small_encoder().state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


@pytest.mark.parametrize(
    "files, line",
    [
        (
            dict.fromkeys(["model.safetensors.index.json"], b"{}"),
            "names no files of we",
        ),
        (dict(list(SHARDED.items())[:3]), f"lacks {SHARDS[1]}, see its model.safet"),
        ({"README.md": b"x"}, "holds no weights"),
        ({"a.pt": b"x", "b.pt": b"y"}, r"several files of weights \(a.pt, b.pt\)"),
    ],
)
def test_a_repository_without_one_file_of_weights_is_refused(get, server, files, line):
    server.add("someone/odd", files)
    with pytest.raises(CheckpointError, match=line):
        get("someone/odd")


@pytest.mark.parametrize(
    "files, name",
    [
        ({"sslam.pt": b"pickle", "README.md": b"x"}, "sslam.pt"),
        ({**FILES, "sslam.pt": b"pickle"}, COMMIT),  # a folder, without the pickle
        (PACK, "latest.pth"),
    ],
)
def test_the_best_weights_of_a_repository_are_chosen(get, server, files, name):
    server.add("someone/other", files)
    path = get("someone/other")
    assert path.name == name
    beside = {
        entry.name for entry in (path if path.is_dir() else path.parent).iterdir()
    }
    assert beside.isdisjoint({"README.md", "images"})
    assert ("sslam.pt" in beside) == (name == "sslam.pt")
    assert ("config.yaml" in beside) == (name == "latest.pth")


# --- packed models


def _zip(path, files=PACK):
    with zipfile.ZipFile(path, "w") as file:
        for name, content in files.items():
            file.writestr(name, content)
    return path


def test_a_packed_model_is_unpacked_once(tmp_path):
    path = _zip(tmp_path / "model.zip")
    weights = resolve(path, cache_dir=tmp_path / "cache")
    assert weights.name == "latest.pth" and weights.read_bytes() == b"weights"
    assert weights.with_name("config.yaml").is_file()
    weights.write_bytes(b"kept")
    assert resolve(path, cache_dir=tmp_path / "cache").read_bytes() == b"kept"
    # a new archive of the same name is another model
    _zip(path, {**PACK, "exp/cls/latest.pth": b"other weights"})
    assert resolve(path, cache_dir=tmp_path / "cache").read_bytes() == b"other weights"


def test_a_packed_tar_is_read_as_well(tmp_path):
    # an absolute path in meta.yaml is one of the archive, where it has no first slash
    meta = {section: {k: f"/{v}" for k, v in META[section].items()} for section in META}
    files = {**PACK, "meta.yaml": yaml.safe_dump(meta).encode()}
    with tarfile.open(tmp_path / "model.tgz", "w:gz") as file:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    weights = resolve(tmp_path / "model.tgz", cache_dir=tmp_path / "cache")
    assert weights.read_bytes() == b"weights"


@pytest.mark.parametrize(
    "files, line",
    [
        ({"a.txt": b"x"}, "holds no meta.yaml"),
        ({"meta.yaml": b"[]"}, "not that of ESPnet's pack"),
        ({"meta.yaml": b"files: {}"}, "must name one model_file"),
        ({"meta.yaml": PACK["meta.yaml"]}, "lacks exp/cls/config.yaml"),
    ],
)
def test_an_archive_without_a_model_says_so(tmp_path, files, line):
    with pytest.raises(CheckpointError, match=line):
        resolve(_zip(tmp_path / "m.zip", files), cache_dir=tmp_path / "cache")


def test_a_damaged_or_evil_archive_is_refused_and_leaves_nothing(tmp_path):
    damaged = _zip(tmp_path / "damaged.zip")
    content = damaged.read_bytes().replace(b"weights", b"changed")
    damaged.write_bytes(content)  # a wrong checksum inside
    (tmp_path / "cut.tar").write_bytes(b"PK\3\4 cut off")
    _zip(tmp_path / "evil.zip", {**PACK, "../evil.txt": b"x"})
    for name, line in {
        "damaged.zip": "no archive that can be unpacked",
        "cut.tar": "no archive that can be unpacked",
        "evil.zip": "not safe to unpack",
    }.items():
        with pytest.raises(CheckpointError, match=line):
            resolve(tmp_path / name, cache_dir=tmp_path / "cache")
        assert list((tmp_path / "cache").iterdir()) == []
