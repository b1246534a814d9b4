"""Tables against numbers computed by hand; runs that are not right."""

import csv
import inspect
import json
import re
import shutil

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from espnet2_sslam.bin.sslam_results import main
from espnet2_sslam.pretrain_model import SSLAMPretrainModel
from espnet2_sslam.results import (
    all_series,
    collect,
    comparisons,
    score_files,
    write_all,
)
from espnet2_sslam.results.experiment import UNSAID
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
    text = write_report(tmp_path)
    assert "- linear/random_seed2, esc50/fold2: test last, test best" in text
    seeds = [50 * (MAP["good"] + MAP[other]) for other in ("bad", "swapped")]
    mean, spread = np.mean(seeds), np.std(seeds, ddof=1)
    cell = table_rows(text, "esc50: linear")[2][1]
    assert cell == f"{mean:.1f} ± {spread:.1f} (2 of 3)"
    # Without a complete seed, what is scored is shown as such.
    for seed in 1, 3:
        shutil.rmtree(tmp_path / f"exp/linear/random_seed{seed}")
    text = write_report(tmp_path)
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
        record = collect(
            three_seeds / "exp", three_seeds / "dump", expected=[RUN[4:28]]
        )
    assert "\n" not in str(error.value)
    if "random" in name:  # of no interest: nothing is lost but the table says so
        record = collect(three_seeds / "exp", three_seeds / "dump")
        assert len(record.scored) == 17 and re.search(message, record.stale[0])
        assert "Of other data, so not shown:" in write_report(three_seeds)


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
        collect(three_seeds / "exp", three_seeds / "dump")
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
    report = write_report(tmp_path)
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
    text = write_report(tmp_path)
    rows = table_rows(text, "mini: linear_tiny")
    assert [row[0] for row in rows[2:]] == ["random", "mine", "sslam"]
    record = collect(exp, dump)
    by_model = {c["model"]: c["difference"] for c in comparisons(record)}
    assert by_model["sslam"] == pytest.approx(58.3, abs=0.05)
    areas = table_rows(text, "Intervals, ROC areas")
    assert [row[3] for row in areas[2:]] == ["random", "mine", "sslam"]
    assert all(row[4].startswith("mAP ") for row in areas[2:])
    # Scores of an earlier version have no intervals.
    for path in exp.glob("*/*/*/*/*/metrics.json"):
        metrics = json.loads(path.read_text())
        for name in "auc", "d_prime", "intervals", "bootstrap":
            del metrics[name]
        path.write_text(json.dumps(metrics))
    text = write_report(tmp_path)
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
    words = ["--benchmark", *one, "--benchmark", *two]
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
    record = collect(exp, dump)
    tag, data_set, name, series = next(all_series(record))
    assert (tag, data_set, name) == ("finetune_p", "p", "degree")
    pairs = list(zip(series["model"], series["number"], strict=True))
    assert pairs == [("random", 2), ("random", 10), ("sslam", 2), ("sslam", 10)]
    assert series["mAP"].iloc[2] == 1.0 and series["chance"].iloc[0] == 0.5
    text = write_report(tmp_path / "p")
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


ARMS = ("random_eat", "phase1_eat", "phase1-more_sslam", "phase2-mixed_sslam")


def write_arms(root, arms, tag="linear"):
    """Runs with the folders' names, and their pre-trainings."""
    for name in arms:
        run = root / f"exp/{tag}/{name}_seed1"
        write_run_scores(run / "mini", root / "dump/mini/test", GOOD)
        word, _, tag_ = name.partition("_")
        if word.startswith("phase"):
            config = {"batch_size": 8, "model_conf": {"clone_batch": 4}}
            if word != "phase1":
                start = "pretrain/phase1_eat_seed1"
                if "_from_" in tag_:  # weights from elsewhere
                    start = f"models/phase1_{tag_.partition('_from_')[2]}"
                config["init_param"] = [f"{root}/exp/{start}/latest.pth:::num_updates"]
            if word == "phase2":
                config["model_conf"] = {"clone_batch": 2, "mixture": True}
            losses = [2.0, 1.0] if word == "phase1" else [3.0]
            write_history(root / f"exp/pretrain/{name}_seed1", losses, **config)


def claims(root):
    return [
        (c["model"], c["other"], c["fewer"])
        for c in comparisons(collect(root / "exp", root / "dump"))
    ]


def test_phase_2_is_compared_with_phase_1_continued_where_it_is_there(tmp_path):
    write_dump(tmp_path / "dump")
    write_arms(tmp_path, ["random_eat", "phase1_eat", "phase2_sslam"])
    last = ("phase2", "phase1", "10 updates fewer")
    assert claims(tmp_path) == [
        *(("phase1", "random", ""), ("phase2", "random", "")),
        last,
    ]
    note = "Against phase 1, which had fewer updates, a difference is not yet"
    assert note in write_report(tmp_path)
    write_arms(tmp_path, ARMS)
    assert claims(tmp_path)[2:] == [
        ("phase1_more", "phase1", "10 updates fewer"),
        ("phase2:mixed", "phase1_more", ""),
        ("phase2", "phase1_more", ""),
    ]
    text = write_report(tmp_path)
    assert note not in text
    table = text.split("Settings of phase 2 as in table 2")[1].split("\n\n")[1]
    rows = [line.split(" | ")[:3] for line in table.splitlines()[2:]]
    assert rows == [
        ["| phase1_more", "MB-UA", "100.0 (one seed)"],
        ["| phase2:mixed", "MB-PMA", "100.0 (one seed)"],
        ["| phase2:both", "MB-UA-PMA", "not run"],
        ["| phase2", "SSLAM", "100.0 (one seed)"],
    ]


def test_another_phase_2_has_the_control_of_equal_cost_or_none(tmp_path):
    write_dump(tmp_path / "dump")
    write_arms(tmp_path, [*ARMS, "phase2_sslam", "phase2_clip"])
    equal = {(model, other) for model, other, _ in claims(tmp_path)}
    assert {("phase2 (clip)", "phase1_more"), ("phase2 (sslam)", "phase1_more")} < equal
    run = tmp_path / "exp/pretrain/phase2_clip_seed1"
    conf = {"clone_batch": 4, "mixture": True}  # twice the rows
    write_history(run, [3.0], batch_size=8, model_conf=conf)
    other = {(model, other) for model, other, _ in claims(tmp_path)}
    assert ("phase2 (clip)", "phase1") in other


def test_a_phase_2_of_other_weights_is_compared_with_no_phase_1_but_its_own(tmp_path):
    write_dump(tmp_path / "dump")
    write_arms(tmp_path, [*ARMS, "phase2_sslam", "phase2_sslam_from_tiny"])
    other = "phase2 (sslam_from_tiny)"
    assert [claim for claim in claims(tmp_path) if claim[0] == other] == [
        (other, "random", "")
    ]
    write_arms(tmp_path, ["phase1_tiny"])
    assert (other, "phase1 (tiny)", "10 updates fewer") in claims(tmp_path)


def test_what_a_configuration_leaves_out_is_the_models_default():
    defaults = inspect.signature(SSLAMPretrainModel).parameters
    assert {name: defaults[name].default for name in UNSAID} == UNSAID


def test_every_tag_seed_and_pre_training_on_the_disk_is_shown(tmp_path):
    write_dump(tmp_path / "dump")
    write_arms(tmp_path, ["phase1_eat", "phase2_sslam"])
    write_arms(tmp_path, ["phase2_long_from_eat"], tag="other")
    # as folders were called before: what they are made from is in their configuration
    old = tmp_path / "exp/linear/phase2_seed2"
    write_run_scores(old / "mini", tmp_path / "dump/mini/test", BAD)
    start = f"{tmp_path}/exp/pretrain/phase2_sslam_seed2/latest.pth:encoder:encoder"
    write_history(old / "mini", [1.0], init_param=[start])
    write_arms(tmp_path, ["phase2_sslam"], tag="gone")
    shutil.rmtree(tmp_path / "exp/gone/phase2_sslam_seed1/mini/last")
    text = write_report(tmp_path, expected=["linear/phase1_eat_seed7"])
    rows = table_rows(text, "mini: linear")
    assert [row[0] for row in rows[2:]] == ["phase1", "phase2 (sslam)"]
    mean = 50 * (MAP["good"] + MAP["bad"])
    assert rows[3][1].startswith(f"{mean:.1f} ± ")
    assert rows[2][1] == "100.0 (one seed) (1 of 2)"
    assert table_rows(text, "mini: other")[2][0] == "phase2 (long_from_eat)"
    missing = text.split("Not scored")[1]
    assert "- linear/phase1_eat_seed7, mini: test last, test best" in missing
    assert "- gone/phase2_sslam_seed1, mini: test last\n" in missing
    with open(tmp_path / "results/scores.csv") as file:
        rows = {
            (r["tag"], r["model"], r["pretraining"], r["seed"])
            for r in csv.DictReader(file)
        }
    assert rows == {
        ("gone", "phase2", "sslam", "1"),
        ("linear", "phase1", "eat", "1"),
        ("linear", "phase2", "sslam", "1"),
        ("linear", "phase2", "sslam", "2"),
        ("other", "phase2", "long_from_eat", "1"),
    }


def test_a_table_by_number_of_labels_is_made_from_what_is_on_the_disk(tmp_path):
    test, rng = tmp_path / "dump/as20k/test", np.random.default_rng(0)
    line = "as20k multi_label as20k/train as20k/test as20k/test"
    write_dump(tmp_path / "dump", [line])
    classes = [f"c{i:02d}" for i in range(16)]
    counts = [1] * 30 + [2] * 15 + [3] * 15 + [9] * 25 + [14] * 20 + [16] * 5 + [5] * 19
    labels = {f"clip{i:03d}": rng.choice(16, n, False) for i, n in enumerate(counts)}
    (test.parent / "classes.txt").write_text("\n".join(classes))
    lines = [" ".join([k, *(classes[i] for i in v)]) for k, v in labels.items()]
    (test / "text").write_text("\n".join(lines) + "\n")
    run = tmp_path / "exp/linear/phase2_sslam_seed1/as20k"
    write_history(run, [1.0])
    scores = rng.random((len(counts), 16)).astype(np.float32)
    arrays = {"ids": list(labels), "scores": scores, "classes": classes}
    for name in "last", "best":
        folder = run / name / "test"
        folder.mkdir(parents=True)
        np.savez(folder / "predictions.npz", **arrays)
        files = folder / "predictions.npz", test / "text", test.parent / "classes.txt"
        score_files(*files, "multi_label", folder, resamples=0)
    text = write_report(tmp_path)
    rows = table_rows(text, "as20k test by number of labels: linear")
    # the 19 clips with 5 labels are too few for a level of their own
    names = ["1 (30 clips)", "2-3 (30 clips)", "8-9 (25 clips)", "14+ (25 clips)"]
    assert rows[0] == ["labels", *names]
    level = [i for i, n in enumerate(counts) if n in (2, 3)]
    targets = np.array([[i in v for i in range(16)] for v in labels.values()])[level]
    own = [
        average_precision_score(t, s)
        for t, s in zip(targets.T, scores[level].T, strict=True)
        if t.any()
    ]
    assert rows[2][2] == f"{100 * np.mean(own):.1f}"
    assert rows[3][2] == f"{100 * targets.mean(0)[targets.any(0)].mean():.1f}"
    quoted = table_rows(text, "Degrees of polyphony in the paper")
    assert ["8-9", "linear", "53.5", "58.7"] in quoted
    numbers = (tmp_path / "results/series_linear_as20k_test_labels.csv").read_text()
    assert numbers.splitlines()[0] == "model,labels,mAP,spread,seeds,chance,clips"


def test_the_papers_settings_of_phase_2_stand_beside_ours_as_it_printed_them(tmp_path):
    write_benchmark(tmp_path, "urbansed", {"phase2_sslam": GOOD})
    text = write_report(tmp_path / "urbansed")
    table = text.split("Settings of phase 2 as in table 2")[1].split("\n\n")[1]
    assert [row.split(" | ")[-1] for row in table.splitlines()[2:]] == [
        *("90.9 |", "90.9 |", "90.9 |", "90.9 |")
    ]
    assert "| phase2:mixed | MB-PMA | not run | 90.9 |" in table


def test_clips_that_a_training_skipped_are_listed(three_seeds):
    assert "could not be read" not in write_report(three_seeds)
    path = three_seeds / "exp/pretrain/phase2_tiny_seed2/checkpoint.pth"
    states = torch.load(path, weights_only=False)
    clip = {"file": "a|b.wav", "reason": "gone", "skipped": 3, "bad": True}
    states["bad_clips"] = {f"clip{number:02d}": clip for number in range(25)}
    states["bad_clips"]["clip01"] = {**clip, "skipped": 1, "bad": False}
    torch.save(states, path)
    text = write_report(three_seeds)
    rows = table_rows(text.replace("a\\|b", "a b"), "Clips that could not be read")
    assert "`pretrain/phase2_tiny_seed2`: 25, the first 20" in text
    assert rows[2] == ["clip00", "3 times", "a b.wav", "gone"]
    assert rows[3][1] == "1 times, later read again" and len(rows) == 22
