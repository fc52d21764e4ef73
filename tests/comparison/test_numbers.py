"""Numbers of a comparison against the same worked out by hand or by Python's own statistics."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

import numpy as np
import pytest
from made_up import evaluated, make_run

from ntm.commands.configuration import ConfigurationError
from ntm.comparison.numbers import (
    Comparison,
    band,
    bootstrap,
    compare,
    curve_rows,
    difference_rows,
    find_runs,
    length_rows,
    model_rows,
    run_rows,
)


def by_model(rows: list[dict]) -> dict[str, dict]:
    return {row["model"]: row for row in rows}


def model(comparison: Comparison, label: str):
    return next(m for m in comparison.models if m.label == label)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four seeds of ntm, one of them interrupted, one failed; two of lstm."""
    ntm = tmp_path / "ntm"
    make_run(
        ntm / "seed_0",
        {100: 9.0, 200: 4.0, 300: 0.0},
        [
            evaluated(10, 0.0, 1.0),
            evaluated(50, 4.0, 0.5),
            evaluated(500, 8.0, 0.25, 600),
            (10, 128, "last", 100, 77.0, 0.5, 77.0, 0.5, 0.0),
        ],
        sequences_to_solve=300,
        wrong_bits_per_sequence=0.25,
        bits_per_sequence=1.0,
        seconds=30.0,
        sequences_per_second=10.0,
    )
    make_run(
        ntm / "seed_2",
        {100: 5.0, 200: 1.0, 300: 0.5},
        [evaluated(10, 2.0, 0.5), evaluated(50, 8.0, 0.25)],
        sequences_to_solve=200,
        wrong_bits_per_sequence=0.75,
        bits_per_sequence=3.0,
        seconds=40.0,
        sequences_per_second=30.0,
    )
    make_run(
        ntm / "seed_10",
        {100: 4.0, 200: 1.0},
        status="interrupted",
        reason="SIGTERM",
        wrong_bits_per_sequence=None,
    )
    make_run(ntm / "seed_11", {100: 6.0}, status="failed", reason="Diverged: loss is nan")
    for seed, wrong in ((0, 20.0), (1, 30.0)):
        make_run(
            tmp_path / "lstm" / f"seed_{seed}",
            {100: wrong, 200: wrong, 300: wrong},
            [evaluated(10, wrong, 0.0, "")],
            parameters=99,
            wrong_bits_per_sequence=wrong,
            bits_per_sequence=wrong,
        )
    return tmp_path


def test_runs_are_found_by_model_in_the_order_of_their_seeds(root):
    found = [str(path.relative_to(root)) for path in find_runs(root)]
    assert found == [
        "lstm/seed_0",
        "lstm/seed_1",
        "ntm/seed_0",
        "ntm/seed_2",
        "ntm/seed_10",
        "ntm/seed_11",
    ]


def test_summaries_and_what_lies_in_a_run_are_no_runs(root):
    before = find_runs(root)
    (root / "ntm" / "mean").mkdir()
    (root / "ntm" / "mean" / "events.out.tfevents.1.mean").write_bytes(b"x")
    (root / "comparison").mkdir()
    nested = root / "ntm" / "seed_0" / "wandb"
    nested.mkdir()
    (nested / "config.yaml").write_text("seed: 1")
    assert find_runs(root) == before


def test_several_names_below_one_folder(root, tmp_path_factory):
    above = tmp_path_factory.mktemp("outputs")
    root.rename(above / "copy")
    make_run(above / "other" / "ntm" / "seed_0", {100: 1.0})
    assert [m.label for m in compare(above).models] == ["copy/lstm", "copy/ntm", "other/ntm"]
    assert [m.label for m in compare(above / "copy" / "ntm").models] == ["ntm"]


def test_a_band_against_plain_statistics(root):
    over = band(model(compare(root), "ntm"), "val/wrong_bits_per_sequence")
    there = {100: [9.0, 5.0, 4.0, 6.0], 200: [4.0, 1.0, 1.0], 300: [0.0, 0.5]}
    assert over.sequences.tolist() == list(there)
    for place, values in enumerate(there.values()):
        assert over.runs[place] == len(values)
        assert over.mean[place] == pytest.approx(statistics.mean(values))
        assert over.sd[place] == pytest.approx(statistics.stdev(values))
        assert over.median[place] == pytest.approx(statistics.median(values))
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
        assert over.lower_quartile[place] == pytest.approx(low)
        assert over.upper_quartile[place] == pytest.approx(high)


def test_the_four_curves_are_not_mistaken_for_one_another(root):
    rows = [r for r in curve_rows(compare(root)) if r["model"] == "lstm" and r["sequences"] == 100]
    assert {row["metric"]: row["mean"] for row in rows} == {
        "train/wrong_bits_per_sequence": 50.0,
        "val/wrong_bits_per_sequence": 25.0,
        "train/loss": 5.0,
        "val/loss": 2.5,
    }


def test_a_mean_stands_only_where_every_run_that_got_so_far_was_validated(tmp_path):
    make_run(tmp_path / "ntm" / "seed_0", {200: 8.0, 400: 6.0, 600: 4.0, 800: 2.0, 1000: 0.0})
    make_run(tmp_path / "ntm" / "seed_1", {500: 3.0, 1000: 1.0})
    make_run(tmp_path / "ntm" / "seed_2", {200: 1.0, 400: 1.0})
    comparison = compare(tmp_path)
    over = band(comparison.models[0], "val/wrong_bits_per_sequence")
    assert over.sequences.tolist() == [1000]
    assert over.mean.tolist() == [0.5]
    assert any(
        "validated at different points" in note and "1 of 6" in note for note in comparison.notes
    )


def test_a_single_seed_has_a_mean_and_no_spread(tmp_path):
    make_run(tmp_path / "ntm" / "seed_3", {100: 2.0}, [evaluated(10, 3.0, 0.5)])
    comparison = compare(tmp_path)
    over = band(comparison.models[0], "val/loss")
    assert over.mean.tolist() == [0.2]
    assert math.isnan(over.sd[0])
    (row,) = model_rows(comparison)
    assert (row["wrong_bits_mean"], row["wrong_bits_sd"]) == (1.0, None)
    (length,) = length_rows(comparison)
    assert (length["wrong_bits_mean"], length["wrong_bits_sd"]) == (3.0, None)
    assert any("a single run" in note for note in comparison.notes)


def test_what_the_seeds_of_a_model_came_to(root):
    row = by_model(model_rows(compare(root)))["ntm"]
    assert row == {
        "model": "ntm",
        "runs": 4,
        "finished": 2,
        "failed": 1,
        "unfinished": 1,
        "solved": 2,
        # 200, 300 and never, for the failed one.
        "sequences_to_solve_median": 300.0,
        "sequences_to_solve_worst": None,
        "wrong_bits_mean": pytest.approx(0.5),
        "wrong_bits_sd": pytest.approx(statistics.stdev([0.25, 0.75])),
        "bits_mean": pytest.approx(2.0),
        "bits_sd": pytest.approx(statistics.stdev([1.0, 3.0])),
        "seconds_mean": pytest.approx(35.0),
        "seconds_sd": pytest.approx(statistics.stdev([30.0, 40.0])),
        "sequences_per_second_mean": pytest.approx(20.0),
        "parameters": 1234,
        "engine": None,
        "accelerator": None,
        "threads": None,
    }


def test_every_run_has_its_row(root):
    rows = [row for row in run_rows(compare(root)) if row["model"] == "ntm"]
    assert [(row["run"], row["status"], row["sequences"]) for row in rows] == [
        ("seed_0", "finished", 300),
        ("seed_2", "finished", 300),
        ("seed_10", "interrupted", 200),
        ("seed_11", "failed", 100),
    ]
    assert rows[0]["sequences_to_solve"] == 300


def test_lengths_and_memory_sizes_are_kept_apart(root):
    rows = [row for row in length_rows(compare(root)) if row["model"] == "ntm"]
    kept = [(row["memory_size"], row["length"], row["runs"]) for row in rows]
    assert kept == [(128, 10, 2), (128, 50, 2), (600, 500, 1)]
    ten = rows[0]
    assert ten["wrong_bits_mean"] == 1.0
    assert ten["wrong_bits_sd"] == pytest.approx(statistics.stdev([0.0, 2.0]))
    assert (ten["wrong_bits_median"], ten["wrong_bits_worst"]) == (1.0, 2.0)
    assert ten["exact_mean"] == 0.75
    assert ten["runs_without_error"] == 1
    assert ten["sequences_each"] == 100


def test_differences_are_second_minus_first(root):
    rows = {row["quantity"]: row for row in difference_rows(compare(root))}
    wrong = rows["wrong bits per sequence, test set"]
    assert (wrong["first"], wrong["second"]) == ("lstm", "ntm")
    assert wrong["difference"] == pytest.approx(0.5 - 25.0)
    assert (wrong["first_runs"], wrong["second_runs"]) == (2, 2)
    # Resampling two seeds, the extremes are both the best or both the worst of each.
    assert wrong["low"] == pytest.approx(0.25 - 30.0)
    assert wrong["high"] == pytest.approx(0.75 - 20.0)
    assert rows["share of runs solved"]["difference"] == pytest.approx(2 / 3)
    assert "sequences to solve" not in rows  # no mean where one never does
    assert rows["wrong bits, length 10, memory 128"]["difference"] == pytest.approx(1.0 - 25.0)
    assert not any("length 50" in quantity for quantity in rows)  # lstm was not evaluated there


def test_the_bootstrap_against_every_resample_there_is():
    """All 27 × 4 resamples of three and two values, each as likely as the next."""
    one, other = np.array([1.0, 4.0, 10.0]), np.array([0.0, 3.0])
    means = [np.mean([a, b, c]) for a in one for b in one for c in one]
    exact = [np.mean([a, b]) - m for a in other for b in other for m in means]
    low, high = bootstrap(one, other)
    assert low == pytest.approx(np.percentile(exact, 2.5), abs=0.35)
    assert high == pytest.approx(np.percentile(exact, 97.5), abs=0.35)
    assert all(map(math.isnan, bootstrap(one[:1], other)))


def test_the_bootstrap_of_many_values_is_that_of_the_normal_law():
    rng = np.random.default_rng(5)
    one, other = rng.normal(0, 3, 400), rng.normal(1, 4, 300)
    low, high = bootstrap(one, other)
    error = math.sqrt(one.var() / 400 + other.var() / 300)
    centre = other.mean() - one.mean()
    assert low == pytest.approx(centre - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(centre + 1.96 * error, abs=0.1 * error)
    assert bootstrap(one, other) == (low, high)


DAMAGE = {
    "metrics.csv": [
        (b"\x00\xff\xfe garbage\n", "no curve"),
        (b"sequences,val/loss\n1,2\n", "no column"),
        (b"not even a line", "no whole line"),
    ],
    "result.json": [(b'{"status": "fin', "no results"), (b"[1, 2]", "no results")],
    "eval/lengths.csv": [(b"length,wrong\n1,2\n", "no evaluations")],
    "eval/results.csv": [(b"length,wrong\n1,2\n", "no evaluations")],
    "config.yaml": [(b"{: [", "left out"), (b"a: 1\n", "not that of a run")],
}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [(name, *harm) for name, harms in DAMAGE.items() for harm in harms],
    ids=lambda value: str(value)[:24],
)
def test_a_damaged_file_is_said_and_the_others_go_on(root, name, content, said):
    (root / "ntm" / "seed_2" / name).write_bytes(content)
    comparison = compare(root)
    assert any(note.startswith("ntm/seed_2: ") and said in note for note in comparison.notes)
    over = band(model(comparison, "ntm"), "val/loss")
    left = 3 if name in ("metrics.csv", "config.yaml") else 4
    assert over.runs[0] == left
    assert model_rows(comparison)[0]["runs"] == 2  # lstm is as it was


def test_a_last_line_cut_short_costs_that_line_alone(root):
    path = root / "lstm" / "seed_0" / "metrics.csv"
    path.write_text(path.read_text() + "400,40.0,4")
    over = band(model(compare(root), "lstm"), "val/loss")
    assert over.sequences.tolist() == [100, 200, 300]


def test_what_a_reader_should_know_is_noted(root, tmp_path):
    make_run(tmp_path / "lstm" / "seed_5", {100: 1.0}, config={"sequences": 7})
    notes = compare(root).notes
    assert "ntm/seed_10: interrupted (SIGTERM), 200 sequences so far" in notes
    assert "ntm/seed_11: failed (Diverged: loss is nan), 100 sequences so far" in notes
    assert "lstm/seed_5: no evaluation of best.ckpt" in notes
    assert "lstm: its runs differ in sequences" in notes


def test_a_run_that_has_just_begun_is_no_hindrance(root):
    folder = make_run(root / "ntm" / "seed_12", {})
    (folder / "result.json").unlink()
    (folder / "metrics.csv").unlink()
    comparison = compare(root)
    assert "ntm/seed_12: no result, 0 sequences so far" in comparison.notes
    assert by_model(model_rows(comparison))["ntm"]["unfinished"] == 2


@pytest.mark.parametrize("what", ["nowhere", "a file", "empty", "a run", "unreadable"])
def test_no_run_to_read_is_refused(what, root, tmp_path):
    path = tmp_path / "other"
    if what == "a file":
        path.write_text("")
    elif what == "empty":
        path.mkdir()
    elif what == "a run":
        path = root / "ntm" / "seed_0"
    elif what == "unreadable":
        make_run(path / "ntm" / "seed_0", {})
        (path / "ntm" / "seed_0" / "config.yaml").write_bytes(b"\xff")
    with pytest.raises(ConfigurationError, match=r"^runs must ") as refusal:
        compare(path)
    assert "\n" not in str(refusal.value)
