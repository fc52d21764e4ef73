"""The recipe's robustness: what its script runs, and its page against numbers by hand."""

from __future__ import annotations

import csv
import importlib
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from runners import ROOT, run_script

run = partial(run_script, "robustness.sh")


@pytest.fixture
def robustness(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    monkeypatch.chdir(tmp_path)
    made = importlib.import_module("robustness")
    monkeypatch.setattr(made, "NOTES", tmp_path / "notes.md")
    return made


def test_an_unknown_row_is_refused_before_anything_starts(tmp_path):
    status, _, err = run(tmp_path, ROWS="default shifts")
    assert status == 2
    assert err == "ROWS must be of those that --help lists, got shifts\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("names", "seeds"),
    [
        pytest.param("feedforward", "0", marks=pytest.mark.slow),
        pytest.param("default feedforward", "0,1", marks=pytest.mark.soak),
    ],
)
def test_rows_are_run_and_written(names, seeds, tmp_path):
    small = ["model.network.memory_size=16", "sequences=64", "validate_every=32", "batch_size=32"]
    asked = [*small, "task.max_length=3", "evaluation.at=[20,120]", "evaluation.sequences=2"]
    status, _, err = run(tmp_path, *asked, ROWS=names, SEEDS=seeds)
    assert "must say why there is a seed without success" in err
    assert status == 1
    with open(tmp_path / "docs" / "results" / "robustness" / "runs.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    expected = [(name, seed) for name in names.split() for seed in seeds.split(",")]
    assert [(row["row"], row["seed"]) for row in rows] == expected
    assert {row["kinds"] for row in rows} == {"9"}
    assert (tmp_path / "outputs" / "robustness_feedforward" / "ntm_feedforward").is_dir()


RUN = {
    "row": "wide",
    "sequences": "30000",
    "wrong_bits_per_sequence": "0.5",
    "kinds_exact_at_20": "9",
    "kinds": "9",
    "exact_at_120": "1.0",
}


def write_runs(robustness: Any, *runs: dict[str, str]) -> None:
    robustness.DATA.mkdir(parents=True)
    rows = [RUN | {"seed": str(seed)} | run for seed, run in enumerate(runs)]
    with open(robustness.DATA / "runs.csv", "w", newline="") as file:
        table = csv.DictWriter(file, fieldnames=[*rows[0]])
        table.writeheader()
        table.writerows(rows)


def test_a_row_has_the_numbers_of_its_seeds(robustness):
    robustness.NOTES.write_text("# Title\n")
    write_runs(
        robustness,
        {"sequences_to_solve": "5000", "kinds_exact_at_20": "8"},
        {"sequences_to_solve": "9000", "wrong_bits_per_sequence": "0"},
        {"sequences_to_solve": "6000", "exact_at_120": "0.99", "wrong_bits_per_sequence": "0.25"},
    )
    page = robustness.page({"wide": "model.network.word_size=40", "narrow": "task.bits=4"})
    assert "| `model.network.word_size=40` | 0, 1, 2 | 30,000 | 3 of 3 | 6,000 / 9,000 |" in page
    assert "| 6,000 / 9,000 | 0.25 | 2 of 3 | 2 of 3 |  |" in page
    assert "| `task.bits=4` | not run yet |" in page


def test_a_row_that_is_not_solved_must_say_why(robustness):
    robustness.NOTES.write_text("# Title\n")
    write_runs(robustness, {"sequences_to_solve": "5000"}, {"sequences_to_solve": ""})
    with pytest.raises(ValueError, match="wide"):
        robustness.page({"wide": "task.bits=16"})
    robustness.NOTES.write_text("# Title\n\n## wide\n\nToo short,\nby far.\n")
    page = robustness.page({"wide": "task.bits=16"})
    assert "| **1 of 2** |" in page
    assert "| Too short, by far. |" in page
