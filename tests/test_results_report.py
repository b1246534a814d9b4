"""Tables and sentences against numbers computed by hand; runs that are not right."""

import csv
import json
import re

import numpy as np
import pytest

from espnet2_sslam.bin import sslam_results
from espnet2_sslam.results import (
    Cell,
    Record,
    Split,
    collect,
    compare,
    findings,
    paper,
    plots,
    write_all,
)
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


def test_the_table_shows_mean_and_spread_computed_by_hand(tmp_path):
    exp, dump = three_seeds(tmp_path)
    write_all(collect(exp, dump), tmp_path / "RESULTS.md")
    text = (tmp_path / "RESULTS.md").read_text()
    rows = table_rows(text, "mini: linear_tiny")
    assert rows[0] == ["model", "test, mAP, last", "test, mAP, best"]
    bad, swapped = 100 * MAP["bad"], 100 * MAP["swapped"]
    mean = (2 * bad + swapped) / 3
    spread = ((2 * (bad - mean) ** 2 + (swapped - mean) ** 2) / 2) ** 0.5
    assert rows[2][1:] == [f"{mean:.1f} ± {spread:.1f}"] * 2
    assert [row[0] for row in rows[2:]] == ["random", "phase1", "phase2"]
    assert rows[4][1] == "100.0 ± 0.0"
    assert "All expected runs are there" in text
    assert "torch 2" in text and re.search(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", text)


def test_every_plot_and_table_that_is_named_exists(tmp_path):
    exp, dump = three_seeds(tmp_path)
    write_all(collect(exp, dump), tmp_path / "RESULTS.md")
    named = re.findall(r"\]\((\S+)\)", (tmp_path / "RESULTS.md").read_text())
    assert "results/pretraining.png" in named
    for name in named:
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    with open(tmp_path / "results/per_class_ap_linear_tiny_mini_test_last.csv") as f:
        rows = {row["class"]: row for row in csv.DictReader(f)}
    assert float(rows["bell"]["phase1_AP"]) == pytest.approx((2 + 7 / 12) / 3, abs=1e-6)
    assert rows["rain"]["phase1_AP"] == ""


def test_classes_have_their_names_in_tables_and_plots(tmp_path, monkeypatch):
    exp, dump = three_seeds(tmp_path)
    (dump / "mini/label_names.tsv").write_text("bell\tBell, church\ndog\tDog\n")
    drawn = []
    monkeypatch.setattr(plots, "save", lambda figure, path: drawn.append(figure))
    record = collect(exp, dump)
    write_all(record, tmp_path / "RESULTS.md")
    with open(tmp_path / "results/per_class_ap_linear_tiny_mini_test_last.csv") as f:
        names = {row["class"]: row["name"] for row in csv.DictReader(f)}
    assert names == {"bell": "Bell, church", "dog": "Dog", "rain": "rain"}
    ticks = [tick.get_text() for tick in drawn[-1].axes[0].get_yticklabels()]
    assert sorted(ticks) == ["Bell, church", "Dog"]


def test_of_very_many_classes_the_lowest_and_highest_are_plotted(tmp_path, monkeypatch):
    classes = {f"c{n:03d}": Cell((1,), (n / 100,), ()) for n in range(100)}
    drawn = []
    monkeypatch.setattr(Record, "per_class", lambda *_: {"phase1": classes})
    monkeypatch.setattr(Record, "label_names", lambda *_: {})
    monkeypatch.setattr(plots, "save", lambda figure, path: drawn.append(figure))
    split = Split("tag", "as20k", "eval", "last")
    plots.plot_per_class(Record(None, tmp_path), split, tmp_path / "x.png")
    [axis] = drawn[0].axes
    shown = [tick.get_text() for tick in axis.get_yticklabels()]
    numbers = [*range(30), *range(70, 100)]
    assert shown == [f"c{number:03d}" for number in numbers]
    assert "the 30 lowest and highest of 100 classes" in axis.get_title()


def test_writing_again_gives_the_same_tables(tmp_path):
    exp, dump = three_seeds(tmp_path)
    contents = []
    for _ in range(2):
        write_all(collect(exp, dump), tmp_path / "RESULTS.md")
        text = (tmp_path / "RESULTS.md").read_text()
        contents.append(text.split("## What the numbers say")[1])
        contents.append((tmp_path / "results/scores.csv").read_text())
    assert contents[:2] == contents[2:]
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_missing_run_is_listed_and_in_no_average(tmp_path, capsys):
    exp, dump = three_seeds(tmp_path)
    folder = exp / "linear_tiny/phase1_seed2/mini/last/test"
    (folder / "metrics.json").unlink()
    arguments = ["--expdir", exp, "--dump", dump, "--output", tmp_path / "RESULTS.md"]
    sslam_results.main([str(argument) for argument in arguments])
    assert "17 scores, 1 missing" in capsys.readouterr().out
    text = (tmp_path / "RESULTS.md").read_text()
    rows = table_rows(text, "mini: linear_tiny")
    assert rows[3][1] == "100.0 ± 0.0 (2 of 3)"
    assert "- linear_tiny/phase1_seed2, mini: test last\n" in text


def test_a_seed_that_lacks_a_fold_is_left_out(tmp_path):
    lines = [f"esc50/fold{n} multi_label a/b c/d esc50/fold{n}/test" for n in (1, 2)]
    write_dump(tmp_path / "dump", lines)
    for seed, fold, ranking in ((1, 1, GOOD), (1, 2, BAD), (2, 1, BAD)):
        run = tmp_path / f"exp/linear/random_seed{seed}/esc50_fold{fold}"
        write_history(run, [1.0])
        for checkpoint in ("last", "best"):
            test = tmp_path / f"dump/esc50/fold{fold}/test"
            write_scores(run / checkpoint / "test", test, ranking)
    record = collect(tmp_path / "exp", tmp_path / "dump", models=("random",))
    assert [key.fold for key in record.scores.missing] == ["fold2", "fold2"]
    write_all(record, tmp_path / "RESULTS.md")
    rows = table_rows((tmp_path / "RESULTS.md").read_text(), "esc50: linear")
    expected = 100 * (MAP["good"] + MAP["bad"]) / 2
    assert rows[2][1] == f"{expected:.1f} (one seed) (1 of 2)"


def test_unfinished_training_is_listed(tmp_path):
    exp, dump = three_seeds(tmp_path)
    write_history(exp / "linear_tiny/random_seed1/mini", [3.0], max_epoch=5)
    (exp / "pretrain/phase2_tiny_seed2/checkpoint.pth").unlink()
    record = collect(exp, dump)
    assert any("1 of 5 epochs" in line for line in record.unfinished)
    assert any("phase2_tiny_seed2" in line for line in record.unfinished)


def test_scores_of_other_predictions_are_refused(tmp_path):
    exp, dump = three_seeds(tmp_path)
    last, best = (
        exp / f"linear_tiny/random_seed1/mini/{c}/test" for c in ("last", "best")
    )
    stale = (last / "metrics.json").read_text()
    write_scores(last, dump / "mini/test", GOOD)
    (last / "metrics.json").write_text(stale)
    with pytest.raises(ValueError, match="changed since it was scored; run stage 7"):
        collect(exp, dump)
    assert best.exists()


def test_scores_of_other_labels_are_refused(tmp_path):
    exp, dump = three_seeds(tmp_path)
    text = dump / "mini/test/text"
    text.write_text(text.read_text().replace("a bell", "a dog"))
    with pytest.raises(ValueError, match="text has changed since it was scored"):
        collect(exp, dump)


def test_predictions_of_other_clips_are_refused(tmp_path):
    exp, dump = three_seeds(tmp_path)
    with open(dump / "mini/test/text", "a") as text:
        text.write("e rain\n")
    with pytest.raises(ValueError, match=r"its clips are not those of .* e\)"):
        collect(exp, dump)


def test_a_damaged_metrics_file_is_named(tmp_path):
    exp, dump = three_seeds(tmp_path)
    path = exp / "linear_tiny/phase2_seed3/mini/best/test/metrics.json"
    path.write_text(path.read_text()[:40])
    with pytest.raises(ValueError, match="metrics.json is not a complete") as error:
        collect(exp, dump)
    assert "\n" not in str(error.value)


def test_nothing_scored_says_what_to_run(tmp_path):
    write_dump(tmp_path / "dump")
    with pytest.raises(ValueError, match="run stages 6 and 7 first"):
        collect(tmp_path / "exp", tmp_path / "dump")
    with pytest.raises(ValueError, match="downstream.txt is missing"):
        collect(tmp_path / "exp", tmp_path / "elsewhere")


def test_a_set_without_labels_gives_a_report_of_pretraining_alone(tmp_path):
    (tmp_path / "dump").mkdir()
    (tmp_path / "dump/downstream.txt").write_text("")
    write_history(tmp_path / "exp/pretrain/phase1_tiny_seed1", [2.0, 1.0])
    write_all(collect(tmp_path / "exp", tmp_path / "dump"), tmp_path / "RESULTS.md")
    text = (tmp_path / "RESULTS.md").read_text()
    assert table_rows(text, "Pre-training runs")[2][:5] == "phase1 tiny 1 2 20".split()


def cell(*values):
    """Return a cell with seeds 1, 2, ..."""
    return Cell(tuple(range(1, len(values) + 1)), values, ())


@pytest.mark.parametrize(
    "ours, other, words",
    [
        (
            cell(0.8, 0.82),
            cell(0.5, 0.52),
            "30.0 points above random.*more than both.*weak",
        ),
        (cell(0.5, 0.52), cell(0.8, 0.82), "30.0 points below random.*more than both"),
        (cell(0.50, 0.60), cell(0.49, 0.59), "1.0 points above.*no clear difference"),
        (cell(0.8), cell(0.5), "one seed nothing can be said"),
        (cell(0.8, 0.9), cell(), "cannot be compared"),
    ],
)
def test_sentences_are_no_stronger_than_the_numbers(ours, other, words):
    assert re.search(words, compare("phase1", ours, "random", other, "here"))


def test_findings_compare_last_checkpoints(tmp_path):
    exp, dump = three_seeds(tmp_path)
    lines = findings(collect(exp, dump))
    assert len(lines) == 3
    assert re.search("phase1 is 38.9 points above random.*3 of 3 seeds", lines[0])
    assert re.search("What phase 2 adds:.*no clear difference", lines[2])


def test_published_numbers_stand_beside_the_row_they_belong_to():
    assert paper.numbers("esc50", "accuracy", "finetune", "phase1") == "95.9 (table1)"
    both = paper.numbers("esc50", "accuracy", "finetune", "phase2")
    assert both == "96.2 (table1), 98.21 (bat)"
    assert paper.numbers("esc50", "accuracy", "linear", "phase2") == "-"
    assert paper.numbers("spass_market", "mAP", "linear", "phase2") == (
        "68.5 (table2), 68.5 last, 68.5 best (log)"
    )
    assert paper.numbers("mini", "mAP", "linear", "random") == "-"


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
    right = [CLASSES[p] == labels[c][0] for c, p in zip(LABELS, predicted)]
    assert rows[2][1] == f"{100 * np.mean(right):.1f} (one seed)"
    assert scores["accuracy"] == np.mean(right)
    ours = 100 * np.mean(right)
    apart = f"{ours:.1f} (one seed): {96.2 - ours:.1f} below 96.2 (table1)"
    assert f"- phase2, test, {apart}" in report
    assert "there is no data report (stage 3): the clips are not compared" in report
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
