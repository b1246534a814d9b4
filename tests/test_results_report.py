"""Tables against numbers computed by hand; runs that are not right."""

import csv
import json
import re
import shutil

import numpy as np
import pytest

from espnet2_sslam.bin.sslam_results import main
from espnet2_sslam.results import all_series, collect, comparisons, write_all
from tests.corpus_case import error_line
from tests.results_case import (
    BAD,
    CLASSES,
    GOOD,
    LABELS,
    SWAPPED,
    write_dump,
    write_experiment,
    write_history,
    write_run_scores,
)

NAMED = {"sslam": [GOOD, GOOD], "random": [BAD, BAD], "mine": [SWAPPED, GOOD]}
# mAP of the rankings, over bell and dog: rain has no positive clip.
MAP = {"good": 1.0, "swapped": (7 / 12 + 1) / 2, "bad": 5 / 12}


def table_rows(text, heading):
    """Return the Markdown table under a heading as lists of cells."""
    section = text.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def write_report(root, **options):
    """Return the text of RESULTS.md of root/exp and root/dump."""
    write_all(collect(root / "exp", root / "dump", **options), root / "RESULTS.md")
    return (root / "RESULTS.md").read_text()


@pytest.fixture
def three_seeds(tmp_path):
    """The experiment that most tests use."""
    rankings = {
        "random": [BAD, BAD, SWAPPED],
        "phase1": [GOOD, SWAPPED, GOOD],
        "phase2": [GOOD, GOOD, GOOD],
    }
    write_experiment(tmp_path, rankings)
    return tmp_path


def test_tables_and_plots_show_what_was_scored(three_seeds):
    names = three_seeds / "dump/mini/label_names.tsv"
    names.write_text("bell\tBell, church\ndog\tDog\n")
    texts = []
    for _ in range(2):  # the second time with the same content
        text = write_report(three_seeds)
        texts.append(text.split("## What the numbers say")[1])
        texts.append((three_seeds / "results/scores.csv").read_text())
    assert texts[:2] == texts[2:] and not list(three_seeds.rglob("*.tmp"))
    rows = table_rows(text, "mini: linear_tiny")
    assert rows[0] == [
        "model",
        "test, mAP of 2 of 3 classes, last",
        "test, mAP of 2 of 3 classes, best",
    ]
    bad, swapped = 100 * MAP["bad"], 100 * MAP["swapped"]
    mean, spread = np.mean([bad, bad, swapped]), np.std([bad, bad, swapped], ddof=1)
    assert rows[2][1:] == [f"{mean:.1f} ± {spread:.1f}"] * 2
    assert [row[0] for row in rows[2:]] == ["random", "phase1", "phase2"]
    assert rows[4][1] == "100.0 ± 0.0"
    assert "All expected runs are there" in text and "## What differs" not in text
    assert "torch 2" in text and re.search(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", text)
    assert re.findall(r"\]\((\S+)\)", text) == ["results/pretraining.png"]
    plot = three_seeds / "results/pretraining.png"
    assert plot.read_bytes().startswith(b"\x89PNG")
    with open(three_seeds / "results/per_class_ap_linear_tiny_mini_test_last.csv") as f:
        rows = {row["class"]: row for row in csv.DictReader(f)}
    assert float(rows["bell"]["phase1_AP"]) == pytest.approx((2 + 7 / 12) / 3, abs=1e-6)
    assert rows["rain"]["phase1_AP"] == "" and rows["rain"]["name"] == "rain"
    assert rows["bell"]["name"] == "Bell, church"


def test_missing_and_unfinished_runs_are_listed_and_in_no_average(three_seeds, capsys):
    exp, output = three_seeds / "exp", three_seeds / "RESULTS.md"
    (exp / "linear_tiny/phase1_seed2/mini/last/test/metrics.json").unlink()
    write_history(exp / "linear_tiny/random_seed1/mini", [3.0], max_epoch=5)
    (exp / "pretrain/phase2_tiny_seed2/checkpoint.pth").unlink()
    options = {"expdir": exp, "dump": three_seeds / "dump", "output": output}
    main([str(word) for k, v in options.items() for word in (f"--{k}", v)])
    assert "17 scores, 3 missing" in capsys.readouterr().out
    text = output.read_text()
    assert table_rows(text, "mini: linear_tiny")[3][1] == "100.0 ± 0.0 (2 of 3)"
    assert "- linear_tiny/phase1_seed2, mini: test last\n" in text
    unfinished = text.split("Not trained to the end:")[1].split("##")[0]
    assert "1 of 5 epochs" in unfinished and "phase2_tiny_seed2" in unfinished


def test_folds_are_averaged_and_a_seed_that_lacks_one_is_left_out(tmp_path):
    lines = [f"esc50/fold{n} multi_label a/b c/d esc50/fold{n}/test" for n in (1, 2)]
    write_dump(tmp_path / "dump", lines)
    rankings = {(1, 1): GOOD, (1, 2): BAD, (2, 1): BAD, (3, 1): GOOD, (3, 2): SWAPPED}
    for (seed, fold), ranking in rankings.items():
        run = tmp_path / f"exp/linear/random_seed{seed}/esc50_fold{fold}"
        write_run_scores(run, tmp_path / f"dump/esc50/fold{fold}/test", ranking)
    text = write_report(tmp_path, models=["random"])
    assert "- linear/random_seed2, esc50/fold2: test last, test best" in text
    seeds = [50 * (MAP["good"] + MAP[other]) for other in ("bad", "swapped")]
    mean, spread = np.mean(seeds), np.std(seeds, ddof=1)
    cell = table_rows(text, "esc50: linear")[2][1]
    assert cell == f"{mean:.1f} ± {spread:.1f} (2 of 3)"
    # Without a complete seed, what is scored is shown as such.
    text = write_report(tmp_path, models=["random"], seeds=[2])
    part = f"{100 * MAP['bad']:.1f} (1 of 2 runs)"
    assert table_rows(text, "esc50: linear")[2][1:] == [part, part]
    assert table_rows(text, "Intervals, ROC areas")[2][4:] == ["-", "0.000", "-"]


RUN = "exp/linear_tiny/random_seed1/mini/last/test"


@pytest.mark.parametrize(
    "name, change, message",
    [
        (f"{RUN}/predictions.npz", lambda x: x + b"0", "changed since .*; score"),
        ("dump/mini/test/text", lambda x: x + b"e rain", "text has changed since"),
        (f"{RUN}/metrics.json", lambda x: x[:40], r"metrics\.json is not a complete"),
        (f"{RUN}/metrics.json", lambda x: b"[]", r"metrics\.json is not a complete"),
    ],
    ids=["predictions", "labels", "damaged", "other"],
)
def test_scores_that_belong_to_something_else_are_refused(
    three_seeds, name, change, message
):
    path = three_seeds / name
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=message) as error:
        collect(three_seeds / "exp", three_seeds / "dump")
    assert "\n" not in str(error.value)


def test_a_set_without_labels_gives_a_report_of_pretraining_alone(tmp_path):
    (tmp_path / "dump").mkdir()
    (tmp_path / "dump/downstream.txt").write_text("")
    write_history(tmp_path / "exp/pretrain/phase1_tiny_seed1", [2.0, 1.0])
    row = table_rows(write_report(tmp_path), "Pre-training runs")[2]
    assert row[:5] == ["phase1", "tiny", "1", "2", "20"]


def test_comparisons_are_no_stronger_than_the_numbers(three_seeds):
    first, second, phases = comparisons(
        collect(three_seeds / "exp", three_seeds / "dump")
    )
    assert [c["model"] + c["other"] for c in (first, second, phases)] == [
        *("phase1random", "phase2random", "phase2phase1")
    ]
    assert first["difference"] == pytest.approx(38.9, abs=0.05)
    assert first["distinct"] and (first["higher"], first["pairs"]) == (3, 3)
    assert not phases["distinct"] and phases["higher"] == 1
    rows = table_rows(write_report(three_seeds), "What the numbers say")
    assert rows[2][1:] == [
        *("phase1 against random", "+38.9", "93.1, 54.2", "12.0, 21.7", "yes", "3 of 3")
    ]
    assert rows[4][5] == "no"
    folder = three_seeds / "exp/linear_tiny"
    for path in (*folder.glob("*_seed[23]"), folder / "phase2_seed1/mini/last"):
        shutil.rmtree(path)
    one_seed, missing, _ = comparisons(
        collect(three_seeds / "exp", three_seeds / "dump", seeds=[1])
    )
    assert one_seed["difference"] and one_seed["distinct"] is None
    assert missing["difference"] is None


def test_published_numbers_stand_beside_ours(tmp_path):
    test = tmp_path / "dump/esc50/fold1/test"
    write_dump(tmp_path / "dump", ["esc50/fold1 multi_class a/b a/c esc50/fold1/test"])
    labels = {clip: "bell" if clip in "ab" else "dog" for clip in LABELS}
    lines = [f"{clip} {label}\n" for clip, label in labels.items()]
    (test / "text").write_text("".join(lines))
    run = tmp_path / "exp/finetune/phase2_seed1/esc50_fold1"
    write_run_scores(run, test, GOOD, "multi_class")
    report = write_report(tmp_path, models=["phase2"])
    rows = table_rows(report, "esc50: finetune")
    assert rows[0][-1] == "papers, accuracy" and rows[2][-1].startswith("96.2 (table1)")
    predicted = np.load(run / "last/test/predictions.npz")["scores"].argmax(1)
    right = [CLASSES[p] == labels[c] for c, p in zip(LABELS, predicted, strict=True)]
    ours = 100 * np.mean(right)
    assert rows[2][1] == f"{ours:.1f} (one seed)"
    apart = f"96.2 (table1): ours {ours - 96.2:+.1f}"
    assert f"| accuracy of phase2, test | {ours:.1f} (" in report and apart in report
    assert "no data report" in report


def test_the_data_report_is_summed_up_with_its_warnings(three_seeds):
    split = {
        **{"usable": 4, "listed": 9, "missing": 2, "hours": 0.5},
        "compared": {"expected": None, "is_part": False, "differences": []},
        "left_out": {"empty": 1, "truncated": 2},
        "label_counts": {"bell": 2, "dog": 2, "rain": 0},
        "classes_without_positives": ["rain"],
        "content_sha256": "0123456789abcdef",
    }
    leak = {"train": "mini/train", "split": "mini/test", "clips": 3, "examples": ["a"]}
    report = {
        "splits": {"mini/test": split},
        "leaks": [leak],
        "duplicates": {"groups": 0, "contradicting_labels": 0},
        "pretraining_overlaps": [],
        "notes": ["Made with seed 0."],
    }
    (three_seeds / "dump/report").mkdir()
    (three_seeds / "dump/report/report.json").write_text(json.dumps(report))
    text = write_report(three_seeds)
    counts = ["4", "9", "2", "3", "-", "0.500", "3", "1"]
    assert table_rows(text, "Data")[2] == ["mini/test", *counts, "0123456789"]
    assert "LEAK: 3 clips of mini/test" in text and "Made with seed 0." in text


def test_models_of_any_name_have_rows_and_findings(tmp_path):
    exp, dump = write_experiment(tmp_path, NAMED)
    text = write_report(tmp_path, models=list(NAMED))
    rows = table_rows(text, "mini: linear_tiny")
    assert [row[0] for row in rows[2:]] == ["random", "sslam", "mine"]
    record = collect(exp, dump, models=list(NAMED))
    by_model = {c["model"]: c["difference"] for c in comparisons(record)}
    assert by_model["sslam"] == pytest.approx(58.3, abs=0.05)
    areas = table_rows(text, "Intervals, ROC areas")
    assert [row[3] for row in areas[2:]] == ["random", "sslam", "mine"]
    assert all(row[4].startswith("mAP ") for row in areas[2:])
    # Scores of an earlier version have no intervals.
    for path in exp.glob("*/*/*/*/*/metrics.json"):
        metrics = json.loads(path.read_text())
        for name in "auc", "d_prime", "intervals", "bootstrap":
            del metrics[name]
        path.write_text(json.dumps(metrics))
    text = write_report(tmp_path, models=list(NAMED))
    rows = table_rows(text, "Intervals, ROC areas")
    assert all(row[4:] == ["-", "-", "-"] for row in rows[2:])


def write_benchmark(root, name, models, tests=("test",)):
    """An experiment with a dump of its own below root/name."""
    splits = ",".join(f"{name}/{test}" for test in tests)
    line = f"{name} multi_label {name}/train {name}/{tests[0]} {splits}"
    write_dump(root / name / "dump", [line])
    for model, ranking in models.items():
        run = root / name / f"exp/finetune_{name}/{model}_seed1/{name}"
        for test in tests:
            write_run_scores(run, root / name / "dump" / name / test, ranking)
    return root / name / "exp", root / name / "dump"


def test_benchmarks_stand_in_one_table_beside_what_is_published(tmp_path, capsys):
    one = write_benchmark(tmp_path, "as20k", {"random": BAD, "sslam": GOOD})
    two = write_benchmark(tmp_path, "fsd50k", {"sslam": SWAPPED})
    words = ["--benchmark", *one, "--benchmark", *two, "--models", "random", "sslam"]
    main([str(word) for word in (*words, "--output", tmp_path / "B.md")])
    assert "2 rows" in capsys.readouterr().out
    text = (tmp_path / "B.md").read_text()
    rows = [line.split(" | ") for line in text.splitlines() if "| finetune_" in line]
    assert rows[0][:3] == ["| as20k", "finetune_as20k", "mAP"]
    assert rows[0][3:5] == ["41.7 (41.7*)", "100.0 (100.0*)"]
    assert "SSLAM 40.9 (table1)" in rows[0][5]
    assert rows[1][3] == "missing" and rows[1][5] == "- |"
    assert "- bat: re-run" in text and "- table2" not in text


def test_a_benchmark_without_scores_and_no_experiment_are_one_line(tmp_path, capsys):
    one, output = write_benchmark(tmp_path, "ks1", {}), ["--output", tmp_path / "B.md"]
    line = error_line(main, capsys, "--benchmark", *one, *output)
    assert "no scored run" in line
    assert "give --expdir and --dump" in error_line(main, capsys, *output)


def test_a_series_has_tables_and_one_plot_of_all_evaluations(tmp_path):
    models, tests = {"random": BAD, "sslam": GOOD}, ("degree_10", "degree_2", "other_1")
    exp, dump = write_benchmark(tmp_path, "p", models, tests)
    for tag in "linear_p", "probe_p":
        shutil.copytree(exp / "finetune_p", exp / tag)
    record = collect(exp, dump, models=list(models))
    tag, data_set, name, series = next(all_series(record))
    assert (tag, data_set, name) == ("finetune_p", "p", "degree")
    pairs = list(zip(series["model"], series["number"], strict=True))
    assert pairs == [("random", 2), ("random", 10), ("sslam", 2), ("sslam", 10)]
    assert series["mAP"].iloc[2] == 1.0 and series["chance"].iloc[0] == 0.5
    text = write_report(tmp_path / "p", models=list(models))
    assert "`best` was chosen on `degree_10`" in text
    rows = table_rows(text, "p over degree: finetune_p")
    assert rows[0] == ["degree", "2", "10"]
    assert [row[0] for row in rows[2:]] == ["random", "sslam", "chance"]
    assert rows[3][1:] == ["100.0", "100.0"] and rows[4][1:] == ["50.0", "50.0"]
    assert text.count("series_p_degree.png") == 1
    folder = tmp_path / "p/results"
    assert (folder / "series_p_degree.png").stat().st_size > 10_000
    for tag in "finetune_p", "linear_p", "probe_p":
        numbers = (folder / f"series_{tag}_p_degree.csv").read_text().splitlines()
        assert numbers[0] == "model,degree,mAP,spread,seeds,chance"
        assert len(numbers) == 5
