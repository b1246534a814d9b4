"""Uploads to a small Hub on this machine, and stage 9 of the recipe."""

import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from huggingface_hub import constants

from espnet2_sslam.bin.cli import main as sslam
from espnet2_sslam.checkpoint import save_model
from espnet2_sslam.integrations.publish import push
from tests.command_case import command
from tests.publish_case import small_classifier
from tests.publish_hub import TOKEN, WritableHub
from tests.test_recipe_shell import Recipe

REPO = "me/tiny"
ROOT = Path(__file__).resolve().parent.parent
OTHERS = {"model.bin": b"somebody else's", ".gitattributes": b""}


@pytest.fixture
def hub(monkeypatch):
    """The Hub, with a token that it accepts."""
    hub = WritableHub()
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE
    template = template.replace(constants.ENDPOINT, hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    # Its other way of sending large files needs the real servers.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    waits = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: waits(min(seconds, 0.01)))
    yield hub
    hub.close()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A published folder."""
    tmp = tmp_path_factory.mktemp("written")
    save_model(small_classifier(), tmp / "model")
    sslam(["publish", str(tmp / "model"), "--output", str(tmp / "tiny")])
    return tmp / "tiny"


@pytest.fixture
def folder(written, tmp_path):
    """A copy of it to change."""
    return Path(shutil.copytree(written, tmp_path / "tiny"))


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def refused(capsys, hub, folder):
    """Upload in vain and return the one line; folder and Hub are as they were."""

    def run(*options, repo=REPO):
        before = content(folder)
        words = ["publish", folder, "--hf_repo", repo, *options]
        status, _, stderr = command(capsys, *words)
        assert status == 1 and stderr.count("\n") == 1, stderr
        assert content(folder) == before and hub.commits == 0
        return stderr

    return run


def test_a_new_repository_holds_the_folder_in_one_commit(hub, folder):
    (folder / ".secret").write_text("not for others")
    assert push(folder, REPO) == f"{hub.url}/{REPO}"
    remote, local = hub.files(REPO), content(folder)
    assert remote.keys() == local.keys() - {".secret"} and hub.commits == 1
    changed = {name for name in remote if remote[name] != local[name]}
    assert changed == {"README.md"}  # the card says where it is
    assert b'MODEL = "me/tiny"\n' in remote["README.md"]
    sent = len(hub.uploads)
    push(folder, REPO)  # again: nothing to do
    assert hub.commits == 1 and len(hub.uploads) == sent


def test_an_edited_card_is_uploaded_as_it_is(hub, folder):
    (folder / "old.png").write_bytes(b"png")
    push(folder, REPO)
    card = folder / "README.md"
    card.write_text(card.read_text() + "My own words.\n")
    (folder / "old.png").rename(folder / "picture.png")
    push(folder, REPO)
    remote = hub.files(REPO)
    assert remote["README.md"].endswith(b"My own words.\n")
    assert remote["picture.png"] == b"png" and "old.png" not in remote
    assert len(hub.uploads) == 2  # the weights were there already


def test_private_and_branch(hub, folder):
    push(folder, REPO, private=True, branch="v2")
    assert REPO in hub.private
    assert hub.files(REPO, "main") == {}
    assert b'MODEL = "me/tiny@v2"\n' in hub.files(REPO, "v2")["README.md"]
    push(folder, REPO, branch="v2")  # stays private without a word
    assert hub.commits == 1


def test_a_new_branch_replaces_what_it_begins_with(hub, folder):
    hub.add(REPO, OTHERS)
    push(folder, REPO, branch="v2")
    assert "model.bin" not in hub.files(REPO, "v2")
    assert hub.files(REPO) == {"model.bin": OTHERS["model.bin"]}


# --- what goes wrong


def test_without_a_token_the_line_says_how_to_get_one(
    hub, refused, monkeypatch, tmp_path
):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    line = refused()
    assert "no token found" in line and "`hf auth login`" in line
    assert "is kept: go on with `sslam publish" in line and hub.requests == []


def test_what_the_hub_answers_is_one_line(hub, refused, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "401 Unauthorized" in refused()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.invalid_card = '"license" must be one of [apache-2.0, ...]'
    assert 'Invalid metadata in README.md. - "license" must be' in refused()
    hub.invalid_card, hub.forbidden = "", True
    assert "403 Forbidden" in refused()
    hub.status[REPO] = 500
    assert "500 Internal Server Error" in refused()
    hub.close()
    assert "Connection refused" in refused()


def test_a_repository_with_other_files_is_not_touched(hub, refused, folder):
    hub.add(REPO, OTHERS)
    line = refused()
    assert "is there and holds other files (model.bin" in line
    assert hub.files(REPO) == {"model.bin": OTHERS["model.bin"]}
    push(folder, REPO, overwrite=True)
    assert "model.bin" not in hub.files(REPO) and "README.md" in hub.files(REPO)


def test_a_public_repository_does_not_become_private_by_itself(hub, refused):
    hub.add(REPO, {".gitattributes": b""})
    assert "is there and public" in refused("--private")


def test_an_interrupted_upload_leaves_nothing_and_goes_on(hub, refused, folder):
    pack = (folder / "espnet_model.zip").read_bytes()
    hub.cut[hashlib.sha256(pack).hexdigest()] = 1000
    assert "is kept: go on with" in refused()
    assert hub.files(REPO) == {}
    arrived = list(hub.uploads)
    assert len(arrived) <= 1  # the other large file may have been faster
    hub.cut.clear()
    push(folder, REPO)
    assert hub.commits == 1 and sorted(hub.uploads) == sorted(set(hub.uploads))
    assert set(arrived) < set(hub.uploads)


def test_a_folder_of_something_else_is_not_uploaded(hub, refused, folder):
    (folder / "espnet_model.zip").unlink()
    assert "was not written by `sslam publish`" in refused()
    assert hub.requests == []


@pytest.mark.parametrize("repo", ["me/tiny/x", "../x", "me/ti ny"])
def test_what_is_no_repository_is_refused_at_once(hub, refused, repo):
    assert "--hf_repo is user/name" in refused(repo=repo)
    assert hub.requests == []


def test_what_was_uploaded_is_loaded_by_its_name(hub, written, tmp_path):
    """As users do it: the command and Python in processes of their own."""
    model, out = str(written.parent / "model"), str(tmp_path / "out")
    code = (
        "from espnet2_sslam.bin.cli import main as sslam\n"
        f"sslam(['publish', {model!r}, '--output', {out!r}, '--hf_repo', {REPO!r}])\n"
        "from espnet2_sslam import SSLAM\n"
        f"print(SSLAM.from_pretrained({REPO!r}))\n"
    )
    env = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    env |= {"HF_HOME": str(tmp_path / "hf"), "HOME": str(tmp_path)}
    env |= {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert f"uploaded: {hub.url}/{REPO}" in done.stdout
    assert "SSLAM(depth 2, 32 channels, 3 classes" in done.stdout
    assert hub.files(REPO) == content(Path(out))


# --- stage 9

PUBLISHED = """
elif name == "sslam_publish":
    if "--output" in words:
        make(value("--output"), model__safetensors="m", config__json="{}",
             README__md="card")
"""


@pytest.fixture(scope="module")
def all_stages(tmp_path_factory):
    """The recipe after its other stages, with a stand-in that knows publishing too."""
    recipe = Recipe(tmp_path_factory.mktemp("recipe"))
    with open(recipe.folder / "python", "a") as script:
        script.write(PUBLISHED)
    # Nothing is published unless it is asked for.
    assert not [call for call in recipe.calls() if call.startswith("sslam_publish")]
    recipe.options.update({"--stage": 9, "--stop_stage": 9})
    return recipe


@pytest.fixture
def recipe(all_stages):
    """The same, put back as it was afterwards."""
    weights = all_stages.exp / "pretrain/phase2_sslam_seed1/latest.pth"
    before = weights.read_bytes()
    yield all_stages
    weights.write_bytes(before)
    shutil.rmtree(all_stages.exp / "publish", ignore_errors=True)


def test_stage_9_writes_the_folder_of_phase_2_once_and_keeps_an_edited_card(recipe):
    status, stdout, stderr, calls = recipe.run("--publish_args", "--license mit")
    assert status == 0, stderr
    run = recipe.exp / "pretrain/phase2_sslam_seed1"
    out = recipe.exp / "publish/sslam_mini_phase2"
    assert calls == [f"sslam_publish {run} --output {out} --license mit"]
    assert "README.md; --hf_repo user/name uploads" in stdout
    (out / "README.md").write_text("edited")
    assert recipe.calls("--publish_args", "--license mit") == []
    assert (out / "README.md").read_text() == "edited"
    (run / "latest.pth").write_text("trained again")
    assert len(recipe.calls("--publish_args", "--license mit")) == 1


def test_stage_9_uploads_the_folder_after_it_was_written(recipe):
    options = ["--hf_repo", REPO, "--hf_args", "--private --revision v2"]
    written, uploaded = recipe.calls(*options)
    out = recipe.exp / "publish/sslam_mini_phase2"
    assert "--hf_repo" not in written
    assert uploaded == f"sslam_publish {out} --hf_repo {REPO} --private --revision v2"
    assert recipe.calls(*options) == [uploaded]


def test_stage_9_takes_runs_seeds_and_weights_from_elsewhere(recipe):
    weights = recipe.folder / "EAT-base.pt"
    weights.write_text("weights")
    words = f"linear/phase1_eat_seed1/a phase1_seed1 {weights}"
    exp, out = recipe.exp, recipe.exp / "publish"
    assert [call.strip() for call in recipe.calls("--publish", words)] == [
        f"sslam_publish {model} --output {out}/sslam_mini_{name}"
        for model, name in (
            (exp / "linear/phase1_eat_seed1/a", "linear_phase1_eat_seed1_a"),
            (exp / "pretrain/phase1_eat_seed1", "phase1_seed1"),
            (weights, "EAT-base"),
        )
    ]


@pytest.mark.parametrize(
    "options, complaint",
    [
        (["--publish", ""], "--publish needs a word"),
        (["--publish", "phase1 phase2", "--hf_repo", REPO], "takes one model"),
        (["--hf_repo", "tiny"], "--hf_repo is user/name, not 'tiny'"),
        (["--seeds", "2"], "run stage 5 with the same options first"),
        (["--seeds", "2", "--publish", "phase1"], "run stage 4 with the same options"),
    ],
)
def test_what_stage_9_cannot_do_is_one_line(recipe, options, complaint):
    assert complaint in recipe.complaint(*options)
