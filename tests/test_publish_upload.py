"""Uploads to a small Hub on this machine, and stage 9 of the recipe."""

import hashlib
import os
import re
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
from tests.test_recipe_shell import Recipe, names, one_line

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


@pytest.fixture
def refused(capsys, folder):
    """Upload in vain and return the one line; the folder is as it was."""

    def run(*options, repo=REPO):
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        words = ["publish", folder, "--hf_repo", repo, *options]
        status, _, stderr = command(capsys, *words)
        assert status == 1 and stderr.count("\n") == 1, stderr
        assert before == {path.name: path.read_bytes() for path in folder.iterdir()}
        return stderr

    return run


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_new_repository_holds_the_folder_in_one_commit(hub, folder):
    assert push(folder, REPO) == f"{hub.url}/{REPO}"
    there, here = hub.files(REPO), content(folder)
    assert there.keys() == here.keys() and hub.commits == 1
    changed = {name for name in here if there[name] != here[name]}
    assert changed == {"README.md", "checksums.txt"}  # the card says where it is


def test_the_uploaded_card_names_the_repository_and_fits_its_hash(hub, folder):
    push(folder, REPO, branch="v2")
    there = hub.files(REPO, "v2")
    assert b'MODEL = "me/tiny@v2"\n' in there["README.md"]
    for line in there["checksums.txt"].decode().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256(there[name]).hexdigest() == digest


def test_a_second_upload_of_the_same_does_nothing(hub, folder):
    push(folder, REPO)
    sent = len(hub.uploads)
    push(folder, REPO)
    assert hub.commits == 1 and len(hub.uploads) == sent


def test_an_edited_card_is_uploaded_as_it_is(hub, folder):
    push(folder, REPO)
    card = folder / "README.md"
    card.write_text(card.read_text() + "My own words.\n")
    (folder / "picture.png").write_bytes(b"png")
    with pytest.raises(ValueError, match="--overwrite"):
        push(folder, REPO)
    push(folder, REPO, overwrite=True)
    there = hub.files(REPO)
    assert there["README.md"].endswith(b"My own words.\n")
    assert there["picture.png"] == b"png" and b"picture.png" in there["checksums.txt"]
    assert len(hub.uploads) == 2  # the weights were there already


def test_writing_and_uploading_at_once(hub, written, tmp_path, capsys):
    model = str(written.parent / "model")
    words = ["publish", model, "--output", str(tmp_path / "x"), "--hf_repo", REPO]
    sslam(words)
    assert f"uploaded: {hub.url}/{REPO}" in capsys.readouterr().out
    assert hub.files(REPO) == content(tmp_path / "x")
    assert "# tiny" in (tmp_path / "x/README.md").read_text()


def test_private_and_branch(hub, folder):
    push(folder, REPO, private=True, branch="v2")
    assert REPO in hub.private
    assert hub.files(REPO, "main") == {} and "README.md" in hub.files(REPO, "v2")
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
    assert "there is no token: `hf auth login`, or HF_TOKEN" in line
    assert "is kept: go on with `sslam publish" in line and hub.requests == []


def test_a_token_that_is_not_accepted(hub, refused, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "does not accept the token" in refused()


def test_a_token_without_permission(hub, refused):
    hub.forbidden = True
    assert "may not write there: it needs the permission" in refused()
    hub.add(REPO, {".gitattributes": b""})
    assert "may not write there" in refused()


def test_no_network(hub, refused, folder):
    hub.close()
    assert "cannot be reached" in refused()


def test_offline(hub, refused, monkeypatch):
    from huggingface_hub.utils import close_session

    close_session()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    try:
        assert "HF_HUB_OFFLINE is set" in refused()
    finally:
        close_session()


def test_a_hub_that_answers_with_an_error(hub, refused):
    hub.status[REPO] = 500
    assert "the Hub answers 500" in refused()


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
    assert hub.commits == 0


def test_metadata_that_the_hub_refuses(hub, refused):
    hub.invalid_card = '"license" must be one of [apache-2.0, ...]'
    assert 'Invalid metadata in README.md. - "license" must be' in refused()
    assert hub.commits == 0


def test_an_interrupted_upload_leaves_nothing_and_goes_on(hub, refused, folder):
    pack = (folder / "espnet_model.zip").read_bytes()
    hub.cut[hashlib.sha256(pack).hexdigest()] = 1000
    line = refused()
    assert "interrupted or the Hub cannot be reached" in line
    assert hub.commits == 0 and hub.files(REPO) == {}
    arrived = list(hub.uploads)
    assert len(arrived) <= 1  # the other large file may have been faster
    hub.cut.clear()
    push(folder, REPO)
    assert hub.commits == 1 and sorted(hub.uploads) == sorted(set(hub.uploads))
    assert set(arrived) < set(hub.uploads)


@pytest.mark.parametrize("how", ["changed", "missing"])
def test_a_damaged_folder_is_not_uploaded(hub, refused, folder, how):
    path = folder / "model.safetensors"
    path.write_bytes(b"x") if how == "changed" else path.unlink()
    assert f"model.safetensors {how} since it was written" in refused()
    assert hub.requests == []


@pytest.mark.parametrize("repo", ["tiny", "me/tiny/x", "me/", "../x", "me/ti ny"])
def test_what_is_no_repository_is_refused_at_once(hub, refused, repo):
    assert "--hf_repo is user/name" in refused(repo=repo)
    assert hub.requests == []


def test_options_of_the_card_have_no_place_in_a_mere_upload(hub, refused):
    assert "edit its README.md instead of --license" in refused("--license", "mit")


def test_what_was_uploaded_is_loaded_by_its_name(hub, folder, tmp_path):
    """As users do it: the command and Python in processes of their own."""
    env = {
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "PYTHONPATH": str(ROOT),
        "HOME": str(tmp_path),
        "PATH": os.environ["PATH"],
    }
    code = (
        "from espnet2_sslam.bin.cli import main as sslam\n"
        f"sslam(['publish', {str(folder)!r}, '--hf_repo', {REPO!r}])\n"
        "from espnet2_sslam import SSLAM\n"
        f"print(SSLAM.from_pretrained({REPO!r}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert f"uploaded: {hub.url}/{REPO}" in done.stdout
    assert "SSLAM(depth 2, 32 channels, 3 classes" in done.stdout


# --- stage 9

PUBLISHED = """
elif name == "sslam_publish":
    if "--output" in words:
        make(value("--output"), model__safetensors="m", config__json="{}",
             README__md="card")
"""


def publishing_recipe(folder):
    """The recipe with its stand-in, which knows publishing too."""
    recipe = Recipe(folder)
    with open(recipe.folder / "python", "a") as script:
        script.write(PUBLISHED)
    return recipe


@pytest.fixture
def recipe(tmp_path):
    return publishing_recipe(tmp_path)


def stage_9(recipe, *options):
    return recipe.run("--stage", 9, "--stop_stage", 9, *options)


@pytest.fixture(scope="module")
def all_stages(tmp_path_factory):
    """The recipe after its other stages."""
    recipe = publishing_recipe(tmp_path_factory.mktemp("recipe"))
    status, _, stderr, calls = recipe.run()
    assert status == 0, stderr
    assert "sslam_publish" not in names(calls)  # only when it is asked for
    return recipe


@pytest.fixture
def trained(all_stages):
    """The same, put back as it was afterwards."""
    weights = all_stages.exp / "pretrain/phase2_sslam_seed1/latest.pth"
    before = weights.read_bytes()
    yield all_stages
    weights.write_bytes(before)
    shutil.rmtree(all_stages.exp / "publish")


def test_stage_9_writes_the_folder_of_phase_2(trained):
    status, stdout, stderr, calls = stage_9(trained, "--publish_args", "--license mit")
    assert status == 0, stderr
    [call] = calls
    run = trained.exp / "pretrain/phase2_sslam_seed1"
    out = trained.exp / "publish/sslam_mini_phase2"
    assert call == f"sslam_publish {run} --output {out} --license mit"
    assert "README.md; --hf_repo user/name uploads" in stdout


def test_stage_9_again_writes_nothing_and_keeps_an_edited_card(trained):
    stage_9(trained)
    card = trained.exp / "publish/sslam_mini_phase2/README.md"
    card.write_text("edited")
    status, stdout, _, calls = stage_9(trained)
    assert status == 0 and calls == [] and "up to date" in stdout
    assert card.read_text() == "edited"


def test_stage_9_writes_again_what_was_trained_again(trained):
    stage_9(trained)
    (trained.exp / "pretrain/phase2_sslam_seed1/latest.pth").write_text("new")
    assert names(stage_9(trained)[3]) == ["sslam_publish"]


def test_stage_9_uploads_the_folder_after_it_was_written(trained):
    options = ["--hf_repo", REPO, "--hf_args", "--private --revision v2"]
    calls = stage_9(trained, *options)[3]
    out = trained.exp / "publish/sslam_mini_phase2"
    assert len(calls) == 2 and "--hf_repo" not in calls[0]
    assert calls[1] == f"sslam_publish {out} --hf_repo {REPO} --private --revision v2"
    assert stage_9(trained, *options)[3] == calls[1:]


def test_stage_9_takes_runs_seeds_and_weights_from_elsewhere(trained):
    weights = trained.folder / "EAT-base.pt"
    weights.write_text("weights")
    words = f"linear/phase1_seed1/a phase1_seed1 {weights}"
    status, _, stderr, calls = stage_9(trained, "--publish", words)
    assert status == 0, stderr
    found = [re.fullmatch(r"sslam_publish (\S+) --output (\S+) ?", c) for c in calls]
    assert [(Path(f[1]), Path(f[2]).name) for f in found] == [
        (trained.exp / "linear/phase1_seed1/a", "sslam_mini_linear_phase1_seed1_a"),
        (trained.exp / "pretrain/phase1_eat_seed1", "sslam_mini_phase1_seed1"),
        (weights, "sslam_mini_EAT-base"),
    ]


@pytest.mark.parametrize(
    "options, complaint",
    [
        (["--publish", ""], "--publish needs a word"),
        (["--publish", "phase1 phase2", "--hf_repo", REPO], "takes one model"),
        (["--hf_repo", "tiny"], "--hf_repo is user/name, not 'tiny'"),
        ([], "run stage 5 with the same options first"),
        (["--publish", "phase1"], "run stage 4 with the same options first"),
    ],
)
def test_what_stage_9_cannot_do_is_one_line(recipe, options, complaint):
    assert complaint in one_line(stage_9(recipe, *options))
