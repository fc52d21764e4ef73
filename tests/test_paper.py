"""The paper's results section: what its script runs, and its page against numbers by hand."""

from __future__ import annotations

import csv
import importlib
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from runners import ROOT, run_script

run = partial(run_script, "reproduce_paper.sh")


@pytest.fixture
def paper(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    monkeypatch.chdir(tmp_path)
    return importlib.import_module("paper")


@pytest.mark.soak
def test_all_of_it_is_five_tasks_three_models_and_five_seeds_of_the_machine(tmp_path):
    status, out, err = run(tmp_path, "--dry-run")
    assert status == 0, err
    runs = [line.split()[-1] for line in out.splitlines() if line.startswith("start")]
    assert len(runs) == len(set(runs)) == 5 * (5 + 3 + 3) + 3
    machine = [path for path in runs if "/ntm/" in path]
    assert {path.split("_")[-1] for path in machine} == {"200", "201", "202", "203", "204"}
    assert sum("paper_copy_long/lstm" in path for path in runs) == 3
    assert not list(tmp_path.iterdir())


def test_an_unknown_task_is_refused_before_anything_starts(tmp_path):
    status, _, err = run(tmp_path, TASKS="copy recall")
    assert status == 2
    assert err == "TASKS must be of those in configs/task, got recall\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_part_of_it_is_run_evaluated_compared_and_written(tmp_path):
    small = ["model.network.hidden_size=8", "sequences=64", "validate_every=32", "batch_size=32"]
    chosen = {"TASKS": "associative_recall", "MODELS": "lstm", "SEEDS": "0,1"}
    status, _, err = run(tmp_path, *small, "callbacks.pictures_every=null", **chosen)
    assert status == 0, err
    with open(tmp_path / "docs" / "results" / "paper" / "points.csv", newline="") as file:
        points = list(csv.DictReader(file))
    judged = {(row["seed"], row["items"]) for row in points if row["sequences"] == "1000"}
    assert judged == {(seed, items) for seed in "01" for items in ("15", "20")}
    page = (tmp_path / "docs" / "results" / "paper.md").read_text()
    assert "| LSTM | 2 (seeds 0, 1) | 64 | 0 of 2 (0–66 %) | never / never |" in page
    assert page.count("Not run yet.") == 5
    assert (tmp_path / "docs" / "results" / "paper" / "associative_recall.png").is_file()
    assert (tmp_path / "outputs" / "comparison" / "report.html").is_file() or (
        tmp_path / "outputs" / "paper_associative_recall" / "comparison" / "report.html"
    ).is_file()


def test_rows_of_runs_that_are_here_take_the_place_of_theirs_alone(paper):
    path = Path("runs.csv")
    key = {"task": "copy", "model": "ntm"}
    paper.merge(path, [key | {"seed": 201, "bits": 1}, key | {"seed": 3, "bits": 2}])
    paper.merge(path, [key | {"seed": 201, "bits": 9}, key | {"seed": 30, "bits": 4}])
    with open(path, newline="") as file:
        assert [(row["seed"], row["bits"]) for row in csv.DictReader(file)] == [
            ("3", "2"),
            ("30", "4"),
            ("201", "9"),
        ]


def test_a_table_by_another_key_keeps_its_runs_apart(paper):
    path = Path("runs.csv")
    rows = [{"row": row, "model": "ntm", "seed": 5} for row in ("wide", "narrow")]
    paper.merge(path, rows, by="row")
    paper.merge(path, rows[:1], by="row")
    with open(path, newline="") as file:
        assert [row["row"] for row in csv.DictReader(file)] == ["narrow", "wide"]


def test_nothing_finished_leaves_the_table_as_it_is(paper):
    path = Path("runs.csv")
    paper.merge(path, [{"task": "copy", "model": "ntm", "seed": 1, "bits": 2}])
    before = path.read_bytes()
    paper.merge(path, [])
    assert path.read_bytes() == before


def test_the_page_is_of_best_on_sequences_as_drawn(paper, tmp_path):
    from ntm.folders.runs import RunFolder

    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "results.csv").write_text(
        "items,kind,memory_size,checkpoint,sequences,wrong_bits_per_sequence\n"
        "6,drawn,128,best,100,1\n"
        "6,zeros,128,best,100,2\n"
        "6,drawn,128,last,100,3\n"
        "15,drawn,,best,1000,4\n"
    )
    rows = paper.point_rows(RunFolder(tmp_path))
    assert [(row["items"], row["wrong_bits_per_sequence"]) for row in rows] == [
        ("6", "1"),
        ("15", "4"),
    ]
    assert rows[0]["length"] == ""


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("length_120", True),
        ("inside_length_20", True),
        ("length_20_repeats_10", True),
        ("length_3_last", False),
        ("length_20_zeros", False),
        ("kinds", False),
    ],
)
def test_pictures_are_of_a_point_as_drawn(paper, name, kept):
    assert bool(paper.OF_A_POINT.fullmatch(name)) == kept


def test_where_chance_decides_bits_the_optimum_is_what_counts(paper):
    row = {"model": "ntm", "steps": "200", "memory_size": "128", "sequences": "9"}
    row |= dict.fromkeys(("length", "repeats", "items", "wrong_data_bits"), "")
    row |= {"wrong_bits_per_sequence": "48", "bits_per_sequence": "134"}
    above = paper.by_point([row | {"bits_above_optimum": "1.5"}])
    assert above[0].endswith("| wrong bits | bits | above the optimum |")
    assert above[2].endswith("| 48 | 134 | 1.5 |")
    without = paper.by_point([row | {"bits_above_optimum": "", "wrong_bits_per_sequence": "0.5"}])
    assert without[0].endswith("| bits | runs without a wrong bit | below one |")
    assert without[2].endswith("| 0 of 1 | 1 of 1 |")
    curve = {"model": "ntm", "seed": "1", "sequences": "5", "val/bits_per_sequence": "134"}
    run = {"metric": "bits_above_optimum", "below": "1.0"}
    drawn = paper.learning_curves([curve | {"val/bits_above_optimum": "1.5"}], run, "")
    right = drawn.axes[1]
    assert right.get_title() == "bits above optimum"
    assert [list(line.get_ydata()) for line in right.lines] == [[1.5], [1.0, 1.0]]


def test_how_many_solve_and_when(paper):
    rows = [{"sequences_to_solve": at} for at in ("3000", "", "1000", "2000", "9000")]
    assert paper.solved(rows) == "4 of 5 (38–96 %)"
    assert paper.when(rows) == "3,000 / never"
    assert paper.when(rows[2:]) == "2,000 / 9,000"
    assert paper.when(rows[1:2]) == "never / never"


def test_wrong_data_bits_are_a_share_of_the_data(paper):
    rows = [{"length": "10", "repeats": "20", "wrong_data_bits": wrong} for wrong in ("12", "36")]
    assert paper.data_share(rows) == "2 ± 1.41"


def test_a_machine_with_1000_steps_to_show_keeps_its_last_validation(paper, tmp_path):
    from ntm.folders.runs import RunFolder

    text = "sequences,val/bits_per_sequence,val/wrong_bits_per_sequence\n"
    text += "".join(f"{1000 * k},{k},{k}\n" for k in range(1, 201))
    (tmp_path / "metrics.csv").write_text(text)
    kept = paper.curve_rows(RunFolder(tmp_path))
    assert len(kept) <= 61
    assert kept[-1]["sequences"] == "200000"
