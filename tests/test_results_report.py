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
    write_scores,
)

NAMED = {"sslam": [GOOD, GOOD], "random": [BAD, BAD], "mine": [SWAPPED, GOOD]}
# mAP of the rankings, over bell and dog: rain has no positive clip.
MAP = {"good": 1.0, "swapped": (7 / 12 + 1) / 2, "bad": 5 / 12}


def table_rows(text, heading):
    """Return the Markdown table under a heading as lists of cells."""
    section = text.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def three_seeds(root):
    """Write the experiment that most tests use."""
    rankings = {
        "random": [BAD, BAD, SWAPPED],
        "phase1": [GOOD, SWAPPED, GOOD],
        "phase2": [GOOD, GOOD, GOOD],
    }
    return write_experiment(root, rankings)


def test_tables_and_plots_show_what_was_scored(tmp_path):
    exp, dump = three_seeds(tmp_path)
    (dump / "mini/label_names.tsv").write_text("bell\tBell, church\ndog\tDog\n")
    texts = []
    for _ in range(2):  # the second time with the same content
        write_all(collect(exp, dump), tmp_path / "RESULTS.md")
        text = (tmp_path / "RESULTS.md").read_text()
        texts.append(text.split("## What the numbers say")[1])
        texts.append((tmp_path / "results/scores.csv").read_text())
    assert texts[:2] == texts[2:] and not list(tmp_path.rglob("*.tmp"))
    rows = table_rows(text, "mini: linear_tiny")
    assert rows[0] == ["model", "test, mAP, last", "test, mAP, best"]
    bad, swapped = 100 * MAP["bad"], 100 * MAP["swapped"]
    mean, spread = np.mean([bad, bad, swapped]), np.std([bad, bad, swapped], ddof=1)
    assert rows[2][1:] == [f"{mean:.1f} ± {spread:.1f}"] * 2
    assert [row[0] for row in rows[2:]] == ["random", "phase1", "phase2"]
    assert rows[4][1] == "100.0 ± 0.0"
    assert "All expected runs are there" in text
    assert "torch 2" in text and re.search(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", text)
    assert re.findall(r"\]\((\S+)\)", text) == ["results/pretraining.png"]
    assert (tmp_path / "results/pretraining.png").read_bytes().startswith(b"\x89PNG")
    with open(tmp_path / "results/per_class_ap_linear_tiny_mini_test_last.csv") as f:
        rows = {row["class"]: row for row in csv.DictReader(f)}
    assert float(rows["bell"]["phase1_AP"]) == pytest.approx((2 + 7 / 12) / 3, abs=1e-6)
    assert rows["rain"]["phase1_AP"] == "" and rows["rain"]["name"] == "rain"
    assert rows["bell"]["name"] == "Bell, church"


def test_missing_and_unfinished_runs_are_listed_and_in_no_average(tmp_path, capsys):
    exp, dump = three_seeds(tmp_path)
    folder = exp / "linear_tiny/phase1_seed2/mini/last/test"
    (folder / "metrics.json").unlink()
    write_history(exp / "linear_tiny/random_seed1/mini", [3.0], max_epoch=5)
    (exp / "pretrain/phase2_tiny_seed2/checkpoint.pth").unlink()
    arguments = ["--expdir", exp, "--dump", dump, "--output", tmp_path / "RESULTS.md"]
    main([str(argument) for argument in arguments])
    assert "17 scores, 3 missing" in capsys.readouterr().out
    text = (tmp_path / "RESULTS.md").read_text()
    rows = table_rows(text, "mini: linear_tiny")
    assert rows[3][1] == "100.0 ± 0.0 (2 of 3)"
    assert "- linear_tiny/phase1_seed2, mini: test last\n" in text
    unfinished = text.split("Not trained to the end:")[1].split("##")[0]
    assert "1 of 5 epochs" in unfinished and "phase2_tiny_seed2" in unfinished


def test_folds_are_averaged_and_a_seed_that_lacks_one_is_left_out(tmp_path):
    lines = [f"esc50/fold{n} multi_label a/b c/d esc50/fold{n}/test" for n in (1, 2)]
    write_dump(tmp_path / "dump", lines)
    rankings = {(1, 1): GOOD, (1, 2): BAD, (2, 1): BAD, (3, 1): GOOD, (3, 2): SWAPPED}
    for (seed, fold), ranking in rankings.items():
        run = tmp_path / f"exp/linear/random_seed{seed}/esc50_fold{fold}"
        write_history(run, [1.0])
        for checkpoint in ("last", "best"):
            test = tmp_path / f"dump/esc50/fold{fold}/test"
            write_scores(run / checkpoint / "test", test, ranking)
    record = collect(tmp_path / "exp", tmp_path / "dump", models=("random",))
    assert list(record.missing["fold"]) == ["fold2", "fold2"]
    write_all(record, tmp_path / "RESULTS.md")
    rows = table_rows((tmp_path / "RESULTS.md").read_text(), "esc50: linear")
    seeds = [50 * (MAP["good"] + MAP[other]) for other in ("bad", "swapped")]
    mean, spread = np.mean(seeds), np.std(seeds, ddof=1)
    assert rows[2][1] == f"{mean:.1f} ± {spread:.1f} (2 of 3)"
    # Without a complete seed, what is scored is shown as such.
    record = collect(tmp_path / "exp", tmp_path / "dump", models=("random",), seeds=[2])
    write_all(record, tmp_path / "RESULTS.md")
    text = (tmp_path / "RESULTS.md").read_text()
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
    ],
    ids=["predictions", "labels", "damaged"],
)
def test_scores_that_belong_to_something_else_are_refused(
    tmp_path, name, change, message
):
    exp, dump = three_seeds(tmp_path)
    (tmp_path / name).write_bytes(change((tmp_path / name).read_bytes()))
    with pytest.raises(ValueError, match=message) as error:
        collect(exp, dump)
    assert "\n" not in str(error.value)


def test_nothing_scored_says_what_to_run(tmp_path):
    write_dump(tmp_path / "dump")
    with pytest.raises(ValueError, match="train and score"):
        collect(tmp_path / "exp", tmp_path / "dump")
    with pytest.raises(ValueError, match=r"downstream\.txt is missing"):
        collect(tmp_path / "exp", tmp_path / "elsewhere")


def test_a_set_without_labels_gives_a_report_of_pretraining_alone(tmp_path):
    (tmp_path / "dump").mkdir()
    (tmp_path / "dump/downstream.txt").write_text("")
    write_history(tmp_path / "exp/pretrain/phase1_tiny_seed1", [2.0, 1.0])
    write_all(collect(tmp_path / "exp", tmp_path / "dump"), tmp_path / "RESULTS.md")
    text = (tmp_path / "RESULTS.md").read_text()
    row = table_rows(text, "Pre-training runs")[2]
    assert row[:5] == ["phase1", "tiny", "1", "2", "20"]


def test_comparisons_are_no_stronger_than_the_numbers(tmp_path):
    exp, dump = three_seeds(tmp_path)
    first, second, phases = comparisons(collect(exp, dump))
    assert [c["model"] + c["other"] for c in (first, second, phases)] == [
        *("phase1random", "phase2random", "phase2phase1")
    ]
    assert first["difference"] == pytest.approx(38.9, abs=0.05)
    assert first["distinct"] and (first["higher"], first["pairs"]) == (3, 3)
    assert not phases["distinct"] and phases["higher"] == 1
    write_all(collect(exp, dump), tmp_path / "RESULTS.md")
    rows = table_rows((tmp_path / "RESULTS.md").read_text(), "What the numbers say")
    assert rows[2][1:] == [
        *("phase1 against random", "+38.9", "93.1, 54.2", "12.0, 21.7", "yes", "3 of 3")
    ]
    assert rows[4][5] == "no"
    folder = exp / "linear_tiny"
    for seed in (2, 3):
        for model in ("random", "phase1"):
            shutil.rmtree(folder / f"{model}_seed{seed}")
    shutil.rmtree(folder / "phase2_seed1/mini/last")
    one_seed, missing, _ = comparisons(collect(exp, dump, seeds=[1]))
    assert one_seed["difference"] and one_seed["distinct"] is None
    assert missing["difference"] is None


def test_published_numbers_come_with_a_warning_for_a_subset(tmp_path):
    lines = [
        "esc50/fold1 multi_class esc50/fold1/train esc50/fold1/test esc50/fold1/test"
    ]
    write_dump(tmp_path / "dump", lines)
    test = tmp_path / "dump/esc50/fold1/test"
    labels = {clip: ["bell" if clip in "ab" else "dog"] for clip in LABELS}
    text = [" ".join([clip, *names]) for clip, names in labels.items()]
    (test / "text").write_text("\n".join(text) + "\n")
    run = tmp_path / "exp/finetune/phase2_seed1/esc50_fold1"
    write_history(run, [1.0])
    for checkpoint in ("last", "best"):
        write_scores(run / checkpoint / "test", test, GOOD, "multi_class")
    record = collect(tmp_path / "exp", tmp_path / "dump", models=("phase2",))
    write_all(record, tmp_path / "RESULTS.md")
    report = (tmp_path / "RESULTS.md").read_text()
    rows = table_rows(report, "esc50: finetune")
    assert rows[0][-1] == "papers, accuracy" and rows[2][-1].startswith("96.2 (table1)")
    # Best class per clip: a bell, b dog, c bell and dog tie (first wins), d neither.
    scores = json.loads((run / "last/test/metrics.json").read_text())
    predicted = np.load(run / "last/test/predictions.npz")["scores"].argmax(1)
    right = [CLASSES[p] == labels[c][0] for c, p in zip(LABELS, predicted, strict=True)]
    assert rows[2][1] == f"{100 * np.mean(right):.1f} (one seed)"
    assert scores["accuracy"] == np.mean(right)
    ours = 100 * np.mean(right)
    apart = f"96.2 (table1): ours {ours - 96.2:+.1f}"
    assert f"| accuracy of phase2, test | {ours:.1f} (" in report and apart in report
    assert "no data report" in report
    assert "chosen on the test clips" in report


def test_the_data_report_is_summed_up_with_its_warnings(tmp_path):
    exp, dump = three_seeds(tmp_path)
    split = {
        "usable": 4,
        "listed": 9,
        "missing": 2,
        "compared": {"expected": None, "is_part": False, "differences": []},
        "left_out": {"empty": 1, "truncated": 2},
        "hours": 0.5,
        "label_counts": {"bell": 2, "dog": 2, "rain": 0},
        "classes_without_positives": ["rain"],
        "content_sha256": "0123456789abcdef",
    }
    report = {
        "splits": {"mini/test": split},
        "leaks": [
            {
                "run": "mini",
                "train": "mini/train",
                "split": "mini/test",
                "clips": 3,
                "examples": ["a", "b", "c"],
            }
        ],
        "duplicates": {"groups": 0, "contradicting_labels": 0},
        "pretraining_overlaps": [],
        "notes": ["Made with seed 0."],
    }
    (dump / "report").mkdir()
    (dump / "report/report.json").write_text(json.dumps(report))
    write_all(collect(exp, dump), tmp_path / "RESULTS.md")
    text = (tmp_path / "RESULTS.md").read_text()
    row = table_rows(text, "Data")[2]
    counts = ["4", "9", "2", "3", "-", "0.500", "3", "1"]
    assert row == ["mini/test", *counts, "0123456789"]
    assert "LEAK: 3 clips of mini/test" in text and "Made with seed 0." in text


def test_models_of_any_name_have_rows_findings_and_colours(tmp_path):
    exp, dump = write_experiment(tmp_path, NAMED)
    record = collect(exp, dump, models=tuple(NAMED))
    write_all(record, tmp_path / "RESULTS.md")
    text = (tmp_path / "RESULTS.md").read_text()
    rows = table_rows(text, "mini: linear_tiny")
    assert [row[0] for row in rows[2:]] == ["random", "sslam", "mine"]
    by_model = {c["model"]: c["difference"] for c in comparisons(record)}
    assert by_model["sslam"] == pytest.approx(58.3, abs=0.05)
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
    assert rows[0][3:5] == ["41.7 (41.7*)", "100.0 (100.0*)"]
    assert "SSLAM 40.9 (table1)" in rows[0][5]
    assert rows[1][3] == "missing" and rows[1][5] == "- |"
    assert "- bat: re-run" in text and "- table2" not in text


def test_a_benchmark_without_scores_is_one_line(tmp_path, capsys):
    one = write_benchmark(tmp_path, "ks1", {})
    words = ["--benchmark", *one, "--output", tmp_path / "B.md"]
    assert "no scored run" in error_line(main, capsys, *words)


def test_a_series_has_tables_and_one_plot_of_all_evaluations(tmp_path):
    lines = ["p multi_label p/train p/valid p/degree_10,p/degree_2,p/other_1"]
    models = {"random": BAD, "sslam": GOOD}
    exp, dump = write_benchmark(tmp_path, "p", models, lines)
    for tag in "linear_p", "probe_p":
        shutil.copytree(f"{exp}/finetune_p", f"{exp}/{tag}")
    record = collect(exp, dump, models=tuple(models))
    tag, data_set, name, series = next(all_series(record))
    assert (tag, data_set, name) == ("finetune_p", "p", "degree")
    pairs = list(zip(series["model"], series["number"], strict=True))
    assert pairs == [("random", 2), ("random", 10), ("sslam", 2), ("sslam", 10)]
    assert series["mAP"].iloc[2] == 1.0 and series["chance"].iloc[0] == 0.5
    write_all(record, tmp_path / "RESULTS.md")
    text = (tmp_path / "RESULTS.md").read_text()
    rows = table_rows(text, "p over degree: finetune_p")
    assert rows[0] == ["degree", "2", "10"]
    assert [row[0] for row in rows[2:]] == ["random", "sslam", "chance"]
    assert rows[3][1:] == ["100.0", "100.0"] and rows[4][1:] == ["50.0", "50.0"]
    assert text.count("series_p_degree.png") == 1
    folder = tmp_path / "results"
    assert (folder / "series_p_degree.png").stat().st_size > 10_000
    for tag in "finetune_p", "linear_p", "probe_p":
        numbers = (folder / f"series_{tag}_p_degree.csv").read_text().splitlines()
        assert numbers[0] == "model,degree,mAP,spread,seeds,chance"
        assert len(numbers) == 5
