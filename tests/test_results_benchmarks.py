"""Models of any name, curves over numbered splits, several benchmarks in one table."""

import json
import shutil
from statistics import NormalDist

import numpy as np
import pytest

from espnet2_sslam.bin.sslam_benchmarks import main
from espnet2_sslam.results import (
    all_series,
    chance_level,
    collect,
    draw_figures,
    findings,
    in_order,
    numbered_splits,
    paper,
    score_files,
    write_all,
)
from tests.corpus_case import error_line
from tests.results_case import (
    BAD,
    GOOD,
    SWAPPED,
    write_dump,
    write_experiment,
    write_history,
    write_scores,
)
from tests.test_results_report import table_rows
from tests.test_results_scoring import write_case

NAMED = {"sslam": [GOOD, GOOD], "random": [BAD, BAD], "mine": [SWAPPED, GOOD]}


def test_areas_and_intervals_are_scored(tmp_path):
    metrics = score_files(**write_case(tmp_path), resamples=200, seed=1)
    # ROC areas by hand: bell 3 of 4 pairs, dog 2 of 3, rain 3 of 3; siren has none.
    assert metrics["auc"] == pytest.approx((3 / 4 + 2 / 3 + 1) / 3)
    quantile = NormalDist().inv_cdf((3 / 4 + 2 / 3 + 1) / 3)
    assert metrics["d_prime"] == pytest.approx(2**0.5 * quantile)
    low, high = metrics["intervals"]["mAP"]
    assert 0 < low < metrics["mAP"] < high <= 1
    assert metrics["bootstrap"] == {"resamples": 200, "seed": 1}
    assert "intervals" not in score_files(**write_case(tmp_path), resamples=0)


def test_a_perfect_ranking_has_no_finite_d_prime(tmp_path):
    scores = np.array([[1.0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0]])
    metrics = score_files(**write_case(tmp_path, scores=scores))
    assert metrics["auc"] == 1.0 and metrics["d_prime"] is None


def test_random_and_phases_come_first_whatever_their_order():
    assert in_order(["b", "phase2", "a", "random"]) == ["random", "phase2", "b", "a"]


def test_models_of_any_name_have_rows_findings_and_colours(tmp_path):
    exp, dump = write_experiment(tmp_path, NAMED)
    record = collect(exp, dump, models=tuple(NAMED))
    write_all(record, tmp_path / "RESULTS.md")
    text = (tmp_path / "RESULTS.md").read_text()
    rows = table_rows(text, "mini: linear_tiny")
    assert [row[0] for row in rows[2:]] == ["random", "sslam", "mine"]
    assert any("sslam is 58.3 points above random" in line for line in findings(record))
    areas = table_rows(text, "Intervals, ROC areas")
    assert {row[3] for row in areas[2:]} == set(NAMED)
    assert all(row[4].startswith("mAP ") for row in areas[2:])


def test_scores_of_an_earlier_version_have_no_intervals(tmp_path):
    exp, dump = write_experiment(tmp_path, NAMED)
    for path in exp.glob("*/*/*/*/*/metrics.json"):
        metrics = json.loads(path.read_text())
        for name in "auc", "d_prime", "intervals", "bootstrap":
            del metrics[name]
        path.write_text(json.dumps(metrics))
    write_all(collect(exp, dump, models=tuple(NAMED)), tmp_path / "RESULTS.md")
    rows = table_rows((tmp_path / "RESULTS.md").read_text(), "Intervals, ROC areas")
    assert all(row[4:] == ["-", "-", "-"] for row in rows[2:])


@pytest.mark.parametrize(
    "name, phase",
    [("phase2", "phase2"), ("SSLAM-AS2M", "phase2"), ("eat_ft", "phase1"), ("x", "x")],
)
def test_names_of_weights_say_which_published_row_they_belong_to(name, phase):
    assert paper.row(name) == phase


def test_everything_that_is_published_stands_in_one_line():
    line = paper.all_numbers("as20k", "mAP", "finetune")
    assert line == (
        "EAT 40.2 (table1), 40.28-40.37 (bat); "
        "SSLAM 40.9 (table1), 39.97-40.26 (bat), 40.9 last, 40.9 best (log)"
    )
    assert paper.all_numbers("mini", "mAP", "linear") == ""


def write_benchmark(root, name, models, lines=None):
    """An experiment with a dump of its own below root/name."""
    lines = lines or [f"{name} multi_label {name}/train {name}/test {name}/test"]
    write_dump(root / name / "dump", lines)
    tests = lines[0].split()[4].split(",")
    for model, ranking in models.items():
        run = root / name / "exp" / f"finetune_{name}" / f"{model}_seed1" / name
        write_history(run, [1.0])
        for test in tests:
            folder = root / name / "dump" / test
            for checkpoint in "last", "best":
                write_scores(run / checkpoint / folder.name, folder, ranking)
    return [str(root / name / "exp"), str(root / name / "dump")]


def test_benchmarks_stand_in_one_table_beside_what_is_published(tmp_path, capsys):
    one = write_benchmark(tmp_path, "as20k", {"random": BAD, "sslam": GOOD})
    two = write_benchmark(tmp_path, "fsd50k", {"sslam": SWAPPED})
    words = ["--benchmark", *one, "--benchmark", *two, "--models", "random", "sslam"]
    main([*words, "--output", str(tmp_path / "B.md")])
    assert "2 rows" in capsys.readouterr().out
    text = (tmp_path / "B.md").read_text()
    rows = [line.split(" | ") for line in text.splitlines() if "| finetune_" in line]
    assert rows[0][:3] == ["| as20k", "finetune_as20k", "mAP"]
    assert rows[0][3:5] == [
        "41.7 (41.7*)",
        "100.0 (100.0*)",
    ]
    assert "SSLAM 40.9 (table1)" in rows[0][5]
    assert rows[1][3] == "missing" and rows[1][5] == "- |"
    assert "- bat: re-run" in text and "- table2" not in text


def test_a_benchmark_without_scores_is_one_line(tmp_path, capsys):
    one = write_benchmark(tmp_path, "ks1", {})
    words = ["--benchmark", *one, "--output", tmp_path / "B.md"]
    assert "no scored run" in error_line(main, capsys, *words)


def test_series_are_splits_with_numbers_in_their_order():
    tests = ["a/degree_10", "a/degree_2", "a/test", "a/other_1"]
    assert numbered_splits(tests) == {"degree": ["degree_2", "degree_10"]}


def test_chance_is_the_share_of_positive_clips_of_classes_that_have_some():
    metrics = {"positives": {"a": 2, "b": 4, "c": 0}, "num_clips": 10}
    assert chance_level(metrics) == pytest.approx(0.3)


def test_a_series_has_a_table_a_plot_and_its_numbers(tmp_path):
    tests = "p/degree_1,p/degree_3"
    lines = [f"p multi_label p/train p/valid {tests}"]
    models = {"random": BAD, "sslam": GOOD}
    exp, dump = write_benchmark(tmp_path, "p", models, lines)
    record = collect(exp, dump, models=tuple(models))
    [(tag, data_set, name, found)] = all_series(record)
    assert (tag, data_set, name) == ("finetune_p", "p", "degree")
    assert [(p.model, p.number) for p in found] == [
        ("random", 1),
        ("random", 3),
        ("sslam", 1),
        ("sslam", 3),
    ]
    assert found[2].mean == 1.0 and found[0].chance == pytest.approx(0.5)
    write_all(record, tmp_path / "RESULTS.md")
    rows = table_rows(
        (tmp_path / "RESULTS.md").read_text(), "p over degree: finetune_p"
    )
    assert rows[0] == ["degree", "1", "3"]
    assert [row[0] for row in rows[2:]] == ["random", "sslam", "chance"]
    assert rows[3][1:] == ["100.0", "100.0"] and rows[4][1:] == ["50.0", "50.0"]
    folder = tmp_path / "results"
    assert (folder / "series_p_degree.png").stat().st_size > 10_000
    numbers = (folder / "series_finetune_p_p_degree.csv").read_text().splitlines()
    assert numbers[0] == "model,degree,mAP,spread,seeds,chance" and len(numbers) == 5


def test_several_evaluations_are_panels_of_one_figure(tmp_path):
    lines = ["p multi_label p/train p/valid p/degree_1,p/degree_3"]
    exp, dump = write_benchmark(tmp_path, "p", {"sslam": GOOD}, lines)
    for tag in "linear_p", "probe_p":
        shutil.copytree(f"{exp}/finetune_p", f"{exp}/{tag}")
    record = collect(exp, dump, models=("sslam",))
    drawn = [path.name for _, path in draw_figures(record, tmp_path)]
    assert drawn.count("series_p_degree.png") == 1
    tables = sorted(path.name for path in tmp_path.glob("series_*.csv"))
    assert tables == [
        f"series_{tag}_p_degree.csv" for tag in ("finetune_p", "linear_p", "probe_p")
    ]
