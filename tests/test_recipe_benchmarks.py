"""run.sh --downstream and weights from elsewhere: which commands a list gives.

With the stand-in for Python of tests/test_recipe_shell.py.
"""

import runpy
import shutil
import sys

import pytest

from tests.test_recipe_shell import RECIPE, Recipe, names, options_of

TABLE = [
    [cell.strip() for cell in line.split("|")]
    for line in (RECIPE / "conf/benchmarks.txt").read_text().splitlines()
    if not line.startswith("#")
]


def make_recipe(folder):
    """The recipe with the configs of the benchmarks, and weights from elsewhere."""
    recipe = Recipe(folder)
    recipe.options = {k: v for k, v in recipe.options.items() if "_config" not in k}
    recipe.weights = folder / "SSLAM.pt"
    recipe.weights.write_text("weights")
    return recipe


@pytest.fixture(scope="module", autouse=True)
def corpora(tmp_path_factory):
    """The folders that db.sh names."""
    folder = tmp_path_factory.mktemp("corpora")
    with pytest.MonkeyPatch.context() as patch:
        for _, corpus, *_ in TABLE:
            (folder / corpus).mkdir(exist_ok=True)
            patch.setenv(corpus.upper(), str(folder / corpus))
        yield folder


@pytest.fixture
def recipe(tmp_path):
    return make_recipe(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A benchmark with released weights and BEATs, and the calls that it made."""
    recipe = make_recipe(tmp_path_factory.mktemp("finished"))
    recipe.words = ["--downstream", "ks1", "--protocol", "mean", "--models"]
    recipe.words += [f"sslam={recipe.weights} beats=beats:{recipe.weights}"]
    return recipe, recipe.calls(*recipe.words)


@pytest.mark.parametrize("word, corpus, data_args, finetune, linear", TABLE)
def test_every_word_names_a_corpus_and_configs_that_exist(
    word, corpus, data_args, finetune, linear
):
    assert (RECIPE / f"local/data_{corpus}.py").is_file()
    for config in {finetune, linear} - {"-"}:
        assert (RECIPE / config).is_file()
    if data_args:
        script = (RECIPE / f"local/data_{corpus}.py").read_text()
        assert f"{data_args.split()[0][2:]}=(" in script


def test_the_words_of_the_help_are_those_of_the_paper():
    words = " ".join(row[0] for row in TABLE)
    assert words == "as2m as20k esc50 ks1 ks2 spass urbansed idmt fsd50k"


def test_a_list_is_prepared_fine_tuned_and_scored_word_by_word(recipe, corpora):
    released = f"random sslam={recipe.weights}"
    (recipe.folder / "downstream.txt").write_text(
        "a multi_label a/train a/valid a/test\n"
    )
    calls = recipe.calls("--downstream", "as20k esc50", "--models", released)
    made = names(calls)
    prepared = ["format_audio", "data_report"]
    assert made[:6] == ["data_audioset", *prepared, "data_esc50", *prepared]
    assert "sslam_train" not in made  # no phase is asked for
    assert made.count("convert_weights") == 1  # shared by the benchmarks
    # as20k: fine-tuning and linear evaluation, esc50: fine-tuning; two models
    assert made.count("sslam_cls_train") == made.count("score_model") == 4 + 2
    assert made.count("sslam_results") == 2 + 1 and made[-1] == "sslam_results"
    assert (recipe.exp / "as20k/RESULTS.md").exists()

    data = options_of(calls, "data_audioset")
    assert "--subsets 20k" in data and f"{corpora}/audioset" in data
    run = recipe.exp / "as20k/linear_as20k/sslam_seed1/a "
    call = options_of(calls, "sslam_cls_train", f"--output_dir {run}")
    assert "--config conf/linear_as20k.yaml" in call
    encoder = recipe.exp / "models/sslam/encoder.pth"
    assert f"--init_param {encoder}:encoder:encoder" in call
    run = recipe.exp / "esc50/finetune_esc50/random_sslam_seed1/a "
    call = options_of(calls, "sslam_cls_train", f"--output_dir {run}")
    assert f"--encoder_config {recipe.exp}/models/sslam/config.yaml" in call
    results = options_of(calls, "sslam_results", f"--expdir {recipe.exp}/esc50 ")
    expected = (f"finetune_esc50/{run}_seed{{}}" for run in ("random_sslam", "sslam"))
    assert results.endswith("--expect " + " ".join(expected).format(1, 1))
    for word in "as20k", "esc50":
        pair = f"{recipe.exp}/{word} {recipe.folder}/dump/{word}/raw"
        assert f"--benchmark {pair}" in calls[-1]


def test_beats_stands_beside_with_its_own_command(finished):
    recipe, calls = finished
    call = options_of(calls, "beats_cls_train", "/beats_seed1/a ")
    assert f"--beats_checkpoint {recipe.weights}" in call and "--init_param" not in call
    assert names(calls).count("beats_cls_train") == 2
    assert names(calls).count("convert_weights") == 1
    expected = "--expect probe_mean/sslam_seed1 probe_mean/beats_seed1"
    assert calls[-2].endswith(expected)


def test_run_again_only_what_has_changed_is_converted_and_evaluated(finished):
    recipe, _ = finished
    assert names(recipe.calls(*recipe.words)) == ["sslam_results"] * 2
    recipe.weights.write_text("other weights")
    words = [*recipe.words, "--stage", 6, "--stop_stage", 6, "--replace", "true"]
    made = names(recipe.calls(*words))
    assert made[0] == "convert_weights" and "sslam_cls_train" in made


def test_phases_are_trained_on_the_corpus_and_shared_by_the_benchmarks(recipe):
    (recipe.folder / "downstream.txt").write_text(
        "a multi_label a/train a/valid a/test\n"
    )
    words = ["--downstream", "ks1 spass", "--protocol", "linear mean"]
    words += ["--keep", "true"]  # the data that were made by hand
    calls = recipe.calls(*words, "--models", "phase2")
    assert names(calls).count("sslam_train") == 2
    for word, config in ("ks1", "probe_mean"), ("spass", "linear_spass"):
        run = recipe.exp / f"{word}/{config}/phase2_sslam_tiny_seed1/a "
        call = options_of(calls, "sslam_cls_train", f"--output_dir {run}")
        source = recipe.exp / "pretrain/phase2_sslam_tiny_seed1"
        assert f"--init_param {source}/latest.pth:encoder:encoder" in call
    results = options_of(calls, "sslam_results", f"--expdir {recipe.exp}/ks1 ")
    assert f"--pretrain_from {recipe.exp} " in results


def test_a_word_without_a_config_for_the_protocol_is_left_out(recipe):
    words = ["--downstream", "esc50", "--protocol", "linear", "--stage", 6]
    status, stdout, stderr, calls = recipe.run(*words)
    assert status == 0 and not calls, stderr
    assert "esc50: has no config for --protocol 'linear', left out" in stdout


def test_data_that_are_not_there_are_named_before_anything_is_trained(
    recipe, monkeypatch
):
    monkeypatch.delenv("SPEECHCOMMANDS")
    words = ["--downstream", "esc50 ks1", "--models", f"sslam={recipe.weights}"]
    status, _, stderr, calls = recipe.run(*words)
    made = ["data_esc50", "format_audio", "data_report"]
    assert status == 1 and names(calls) == made
    lines = stderr.splitlines()
    assert "needs --corpus_dir (or SPEECHCOMMANDS in db.sh)" in lines[0]
    assert lines[1:] == ["run.sh: no data of ks1: see the lines above"]


def test_a_benchmark_that_fails_does_not_keep_the_others_from_running(finished):
    recipe, _ = finished
    shutil.rmtree(recipe.exp / "ks1")
    status, _, stderr, calls = recipe.run(
        *recipe.words, "--stage", 6, "--downstream", "esc50 ks1"
    )
    assert status == 1 and "sslam_cls_train" in names(calls)
    assert "needs a finished" in stderr.splitlines()[0]
    assert stderr.splitlines()[-1].startswith("run.sh: did not end well: esc50;")


def test_weights_that_cannot_be_read_end_with_one_line(tmp_path, capsys, monkeypatch):
    (tmp_path / "x.pt").write_text("no weights")
    monkeypatch.setattr(sys, "argv", ["x", str(tmp_path / "x.pt"), str(tmp_path)])
    with pytest.raises(SystemExit, match="1"):
        runpy.run_path(RECIPE / "utils/convert_weights.py", run_name="__main__")
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
