"""run.sh --downstream and weights from elsewhere: which commands a list gives.

With the stand-in for Python of tests/test_recipe_shell.py.
"""

import subprocess
import sys

import pytest

from tests.test_recipe_shell import RECIPE, Recipe, names, one_line, options_of

TABLE = [
    [cell.strip() for cell in line.split("|")]
    for line in (RECIPE / "conf/benchmarks.txt").read_text().splitlines()
    if not line.startswith("#")
]
WORDS = [row[0] for row in TABLE]


class Benchmarks(Recipe):
    """The recipe with the configs of the benchmarks and corpora from db.sh."""

    def __init__(self, folder):
        super().__init__(folder)
        self.given = {
            "--python": folder / "python",
            "--datadir": folder / "data",
            "--dumpdir": folder / "dump",
            "--expdir": self.exp,
            "--seeds": "1",
        }
        self.weights = folder / "SSLAM.pt"
        self.weights.write_text("weights")

    def command(self, *options):
        words = [str(word) for pair in self.given.items() for word in pair]
        return [str(RECIPE / "run.sh"), *words, *map(str, options)]


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    for row in TABLE:
        (tmp_path / "corpora" / row[1]).mkdir(parents=True, exist_ok=True)
        monkeypatch.setenv(row[1].upper(), str(tmp_path / "corpora" / row[1]))
    return Benchmarks(tmp_path)


@pytest.mark.parametrize("word, corpus, data_args, finetune, linear", TABLE)
def test_every_word_names_a_corpus_and_configs_that_exist(
    word, corpus, data_args, finetune, linear
):
    assert (RECIPE / f"local/data_{corpus}.py").is_file()
    for config in {finetune, linear} - {"-"}:
        assert (RECIPE / config).is_file()
    if data_args:
        script = (RECIPE / f"local/data_{corpus}.py").read_text()
        assert f'"{data_args.split()[0]}"' in script


def test_the_words_of_the_help_are_those_of_the_paper():
    assert WORDS == "as2m as20k esc50 ks1 ks2 spass urbansed idmt fsd50k".split()


def test_a_list_is_prepared_fine_tuned_and_scored_word_by_word(recipe):
    released = f"random sslam={recipe.weights}"
    words = ["--downstream", "as20k esc50", "--models", released]
    status, _, stderr, calls = recipe.run(*words)
    assert status == 0, stderr
    made = names(calls)
    prepared = ["format_audio", "data_report"]
    assert made[:6] == ["data_audioset", *prepared, "data_esc50", *prepared]
    assert "sslam_train" not in made  # no phase is asked for
    assert made.count("convert_weights") == 1  # shared by the benchmarks
    # as20k: fine-tuning and linear evaluation, esc50: fine-tuning; 2 models, 2 lines
    assert made.count("sslam_cls_train") == made.count("score_model") == 8 + 4
    assert made.count("sslam_results") == 2 and made[-1] == "sslam_benchmarks"
    assert (recipe.exp / "as20k/RESULTS.md").exists()

    data = options_of(calls, "data_audioset")
    assert "--subsets 20k" in data and f"{recipe.folder}/corpora/audioset" in data
    run = recipe.exp / "as20k/linear_as20k/sslam_seed1/a "
    call = options_of(calls, "sslam_cls_train", f"--output_dir {run}")
    assert "--config conf/linear_as20k.yaml" in call
    encoder = recipe.exp / "models/sslam/encoder.pth"
    assert f"--init_param {encoder}:encoder:encoder" in call
    run = recipe.exp / "esc50/finetune_esc50/random_seed1/a "
    call = options_of(calls, "sslam_cls_train", f"--output_dir {run}")
    assert f"--encoder_config {recipe.exp}/models/sslam/config.yaml" in call
    assert "--models random sslam" in options_of(calls, "sslam_results", "esc50")
    both = [
        f"{recipe.exp}/{w} {recipe.folder}/dump/{w}/raw" for w in ("as20k", "esc50")
    ]
    assert all(f"--benchmark {pair}" in calls[-1] for pair in both)


def test_beats_stands_beside_with_its_own_command(recipe):
    models = f"random sslam={recipe.weights} beats=beats:{recipe.weights}"
    words = ["--downstream", "ks1", "--protocol", "mean", "--models", models]
    status, _, stderr, calls = recipe.run(*words)
    assert status == 0, stderr
    call = options_of(calls, "beats_cls_train", "/beats_seed1/a ")
    assert f"--beats_checkpoint {recipe.weights}" in call and "--init_param" not in call
    assert names(calls).count("beats_cls_train") == 2
    assert names(calls).count("convert_weights") == 1
    assert "--models random sslam beats" in calls[-1]


def test_a_second_run_converts_trains_and_scores_nothing(recipe):
    words = ["--downstream", "ks1", "--models", f"sslam={recipe.weights}"]
    recipe.run(*words)
    assert names(recipe.run(*words)[3]) == ["sslam_results", "sslam_benchmarks"]


def test_other_weights_of_the_same_name_are_converted_and_evaluated_again(recipe):
    words = ["--downstream", "ks1", "--models", f"sslam={recipe.weights}"]
    recipe.run(*words)
    recipe.weights.write_text("other weights")
    made = names(recipe.run(*words, "--stage", 6)[3])
    assert made[0] == "convert_weights"


def test_phases_are_trained_on_the_corpus_and_shared_by_the_benchmarks(recipe):
    words = ["--downstream", "ks1 spass", "--protocol", "linear mean"]
    status, _, stderr, calls = recipe.run(*words, "--models", "phase1 phase2")
    assert status == 0, stderr
    assert names(calls).count("sslam_train") == 2
    for word, config in ("ks1", "probe_mean"), ("spass", "linear_spass"):
        run = recipe.exp / f"{word}/{config}/phase2_seed1/a "
        call = options_of(calls, "sslam_cls_train", f"--output_dir {run}")
        source = recipe.exp / "pretrain/phase2_sslam_tiny_seed1"
        assert f"--init_param {source}/latest.pth:encoder:encoder" in call
    results = options_of(calls, "sslam_results", f"{recipe.exp}/ks1 ")
    assert f"--pretrain_from {recipe.exp} " in results


def test_data_stages_prepare_the_benchmarks_alone(recipe):
    words = ["--downstream", "ks1 ks2", "--stage", 1, "--stop_stage", 3]
    made = names(recipe.run(*words)[3])
    assert made == ["data_speechcommands", "format_audio", "data_report"] * 2


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
    assert status == 1 and "sslam_cls_train" not in names(calls)
    lines = stderr.splitlines()
    assert "needs --corpus_dir (or SPEECHCOMMANDS in db.sh)" in lines[0]
    assert lines[1:] == ["run.sh: no data of ks1: see the lines above"]


def test_a_benchmark_that_fails_does_not_keep_the_others_from_running(recipe):
    words = ["--downstream", "esc50 ks1", "--models", f"sslam={recipe.weights}"]
    recipe.run(*words, "--stop_stage", 3)
    (recipe.folder / "dump/esc50/raw/report/.done").unlink()
    status, _, stderr, calls = recipe.run(*words, "--stage", 6)
    assert status == 1 and "sslam_cls_train" in names(calls)
    assert stderr.splitlines()[-1].startswith("run.sh: did not end well: esc50;")


def test_weights_that_cannot_be_read_end_with_one_line(tmp_path):
    (tmp_path / "x.pt").write_text("no weights")
    done = subprocess.run(
        [
            sys.executable,
            RECIPE / "utils/convert_weights.py",
            tmp_path / "x.pt",
            tmp_path,
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert one_line((1, "", done.stderr, [])).startswith("error: ")
