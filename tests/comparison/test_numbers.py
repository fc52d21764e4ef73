"""Numbers of a comparison against the same worked out by hand or by Python's own statistics."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

import numpy as np
import pytest
from made_up import evaluated, make_run

from ntm.commands.configuration import ConfigurationError
from ntm.comparison.grouping import Comparison, band
from ntm.comparison.grouping import compare as compare_all
from ntm.comparison.numbers import (
    bootstrap,
    curve_rows,
    difference_rows,
    group_rows,
    kind_rows,
    point_rows,
    quantile,
    run_rows,
    wilson,
)
from ntm.comparison.reading import find_runs


def compare(*roots: Path, by: list[str] | None = None) -> Comparison:
    """Of runs of one task."""
    (comparison,) = compare_all(roots, by)
    return comparison


def by_group(rows: list[dict]) -> dict[str, dict]:
    return {row["group"]: row for row in rows}


def group(comparison: Comparison, label: str):
    return next(g for g in comparison.groups if g.label == label)


def labels(comparison: Comparison) -> list[str]:
    return [group.label for group in comparison.groups]


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
            config={"model": {"name": "lstm"}},
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


def test_left_to_itself_it_groups_by_all_that_differs_but_the_seed(tmp_path):
    for rate in (0.0001, 0.001):
        for seed in (0, 1):
            for name, config in (
                ("ntm", {"optimizer": {"lr": rate, "algorithm": {"lr": rate}}}),
                ("lstm", {"optimizer": {"lr": rate, "algorithm": {"lr": rate}}}),
            ):
                folder = tmp_path / f"copy_{rate}" / name / f"seed_{seed}"
                made = {"model": {"name": name}, "name": f"copy_{rate}", **config}
                make_run(folder, {100: 1.0}, config=made)
    comparison = compare(tmp_path)
    assert labels(comparison) == [
        "lstm, lr=0.0001",
        "lstm, lr=0.001",
        "ntm, lr=0.0001",
        "ntm, lr=0.001",
    ]
    assert all([run.config.seed for run in g.runs] == [0, 1] for g in comparison.groups)
    folders = [tmp_path / "copy_0.0001", tmp_path / "copy_0.001"]
    assert labels(compare(*folders)) == labels(comparison)
    assert labels(compare(folders[0])) == ["lstm", "ntm"]


def test_any_keys_group_and_a_key_that_a_model_lacks_is_left_out_of_its_name(tmp_path):
    for seed, size in ((0, 64), (1, 64), (2, 128)):
        config = {"model": {"name": "ntm", "network": {"memory_size": size}}}
        make_run(tmp_path / "ntm" / f"seed_{seed}", {100: float(size)}, config=config)
    make_run(tmp_path / "lstm" / "seed_0", {100: 1.0}, config={"model": {"name": "lstm"}})
    own = compare(tmp_path)
    assert labels(own) == ["lstm", "ntm, memory_size=64", "ntm, memory_size=128"]
    assert band(own.groups[1], "val/wrong_bits_per_sequence").runs.tolist() == [2]
    assert labels(compare(tmp_path, by=["model"])) == ["lstm", "ntm"]
    assert (
        "ntm: its runs differ in model.network.memory_size" in compare(tmp_path, by=["model"]).notes
    )
    sizes = compare(tmp_path, by=["model.network.memory_size"])
    assert [len(g.runs) for g in sizes.groups] == [2, 1, 1]
    assert labels(compare(tmp_path, by=["seed"])) == ["seed=0", "seed=1", "seed=2"]
    assert [g.runs[0].path.parent.name for g in compare(tmp_path, by=["seed"]).groups] == [
        "lstm",
        "ntm",
        "ntm",
    ]


def test_two_names_of_one_configuration_are_two_groups(tmp_path):
    for name in ("first", "again"):
        made = {"name": name, "init_from": f"outputs/{name[0]}/seed_3"}
        make_run(tmp_path / name / "ntm" / "seed_3", {100: 1.0}, config={**made, "init_from": None})
    assert labels(compare(tmp_path)) == ["again", "first"]


def test_starting_from_a_run_of_the_same_seed_is_one_setting(tmp_path):
    for seed in (3, 4):
        made = {"init_from": f"outputs/short/ntm/seed_{seed}"}
        make_run(tmp_path / "ntm" / f"seed_{seed}", {100: 1.0}, config=made)
    assert labels(compare(tmp_path)) == ["ntm"]


def test_each_task_is_a_comparison(tmp_path):
    make_run(tmp_path / "a" / "ntm" / "seed_0", {100: 1.0})
    make_run(tmp_path / "b" / "ntm" / "seed_0", {100: 1.0}, config={"task": {"name": "recall"}})
    found = compare_all(tmp_path)
    assert [(c.task, labels(c)) for c in found] == [("copy", ["ntm"]), ("recall", ["ntm"])]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("optimizer.l", ["optimizer.l", "did you mean optimizer.lr"]),
        ("optimizer", ["a group of keys", "optimizer.lr"]),
        ("colour", ["colour", "model"]),
        ("lr", ["optimizer.lr"]),
    ],
)
def test_a_key_that_no_run_has_is_refused(given, words, tmp_path):
    make_run(tmp_path / "ntm" / "seed_0", {100: 1.0}, config={"optimizer": {"lr": 0.1}})
    with pytest.raises(ConfigurationError, match=r"^by") as refusal:
        compare(tmp_path, by=["model", given])
    for word in words:
        assert word in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_points_of_two_numbers_and_parts_of_the_answer(tmp_path):
    for seed, data in ((0, 1.0), (1, 3.0)):
        folder = make_run(tmp_path / "ntm" / f"seed_{seed}", {100: 1.0})
        (folder / "eval").mkdir()
        (folder / "eval" / "results.csv").write_text(
            "length,repeats,kind,memory_size,checkpoint,sequences,wrong_bits_per_sequence,"
            "wrong_bits_sd,bits_per_sequence,bits_above_optimum,accuracy,exact,wrong_data_bits\n"
            f"20,10,drawn,128,best,100,{data + 1},0,9,,0.5,0.25,{data}\n"
            f"20,10,zeros,128,best,100,99,0,9,,0.5,0.25,99\n"
        )
    (row,) = point_rows(compare(tmp_path))
    assert (row["length"], row["repeats"], row["runs"]) == (20, 10, 2)
    assert (row["wrong_bits_mean"], row["wrong_data_bits_mean"]) == (3.0, 2.0)
    assert row["above_optimum_mean"] is None


def test_a_task_is_judged_by_the_metric_that_solves_it(tmp_path):
    goal = {"metric": "bits_above_optimum", "below": 1.0}
    for name, above in (("ntm", 0.5), ("lstm", 2.5)):
        folder = make_run(
            tmp_path / name / "seed_0",
            {100: 30.0},
            config={"model": {"name": name}},
            solved_when=goal,
            bits_above_optimum=above,
        )
        path = folder / "metrics.csv"
        header, row = path.read_text().splitlines()
        path.write_text(f"{header},val/bits_above_optimum\n{row},{above}\n")
    comparison = compare(tmp_path)
    assert comparison.solved_when == ("bits_above_optimum", 1.0)
    assert comparison.curves == ["val/bits_above_optimum", "train/loss", "val/loss"]
    rows = {row["quantity"]: row["difference"] for row in difference_rows(comparison)}
    assert rows["bits above optimum, test set"] == -2.0


def test_wilsons_interval_against_its_equation():
    """Its ends are the shares that are one quantile of the normal law away from what was seen."""
    quantile = statistics.NormalDist().inv_cdf(0.975)
    for solved, runs in ((3, 5), (1, 3), (7, 10), (40, 50)):
        for end in wilson(solved, runs):
            away = abs(solved / runs - end) / math.sqrt(end * (1 - end) / runs)
            assert away == pytest.approx(quantile, rel=1e-9)
    # Newcombe 1998, table I, method 3: 0 of 20 and 1 of 29.
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)
    assert wilson(5, 5) == pytest.approx((0.5655, 1.0), abs=5e-5)
    assert all(map(math.isnan, wilson(0, 0)))


def test_quantiles_with_runs_that_never_solve():
    values = np.array([300.0, math.inf, 100.0, 200.0])
    assert quantile(values, 0.5) == 250.0
    assert quantile(values, 0.25) == np.percentile([100, 200, 300, 1e9], 25)
    assert quantile(values, 1.0) == math.inf
    assert quantile(np.array([math.inf] * 2), 0.5) == math.inf
    assert math.isnan(quantile(np.array([]), 0.5))


def test_a_band_against_plain_statistics(root):
    over = band(group(compare(root), "ntm"), "val/wrong_bits_per_sequence")
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
    rows = [r for r in curve_rows(compare(root)) if r["group"] == "lstm" and r["sequences"] == 100]
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
    over = band(comparison.groups[0], "val/wrong_bits_per_sequence")
    assert over.sequences.tolist() == [1000]
    assert over.mean.tolist() == [0.5]
    assert any(
        "validated at different points" in note and "1 of 6" in note for note in comparison.notes
    )


def test_a_single_seed_has_a_mean_and_no_spread(tmp_path):
    make_run(tmp_path / "ntm" / "seed_3", {100: 2.0}, [evaluated(10, 3.0, 0.5)])
    comparison = compare(tmp_path)
    over = band(comparison.groups[0], "val/loss")
    assert over.mean.tolist() == [0.2]
    assert math.isnan(over.sd[0])
    (row,) = group_rows(comparison)
    assert (row["wrong_bits_mean"], row["wrong_bits_sd"]) == (1.0, None)
    (length,) = point_rows(comparison)
    assert (length["wrong_bits_mean"], length["wrong_bits_sd"]) == (3.0, None)
    assert any("a single run" in note for note in comparison.notes)


def test_what_the_seeds_of_a_model_came_to(root):
    row = by_group(group_rows(compare(root)))["ntm"]
    assert row == {
        "group": "ntm",
        "runs": 4,
        "finished": 2,
        "failed": 1,
        "unfinished": 1,
        "solved": 2,
        "solved_share_low": pytest.approx(0.20765, abs=1e-5),
        "solved_share_high": pytest.approx(0.93850, abs=1e-5),
        # 200, 300 and never, for the failed one.
        "sequences_to_solve_lower_quartile": 250.0,
        "sequences_to_solve_median": 300.0,
        "sequences_to_solve_upper_quartile": None,
        "sequences_to_solve_worst": None,
        "wrong_bits_mean": pytest.approx(0.5),
        "wrong_bits_sd": pytest.approx(statistics.stdev([0.25, 0.75])),
        "bits_mean": pytest.approx(2.0),
        "bits_sd": pytest.approx(statistics.stdev([1.0, 3.0])),
        "above_optimum_mean": None,
        "above_optimum_sd": None,
        "seconds_mean": pytest.approx(35.0),
        "seconds_sd": pytest.approx(statistics.stdev([30.0, 40.0])),
        "sequences_per_second_mean": pytest.approx(20.0),
        "parameters": 1234,
        "engine": None,
        "accelerator": None,
        "threads": None,
    }


def test_every_run_has_its_row(root):
    rows = [row for row in run_rows(compare(root)) if row["group"] == "ntm"]
    assert [(row["run"], row["status"], row["sequences"]) for row in rows] == [
        ("ntm/seed_0", "finished", 300),
        ("ntm/seed_2", "finished", 300),
        ("ntm/seed_10", "interrupted", 200),
        ("ntm/seed_11", "failed", 100),
    ]
    assert rows[0]["sequences_to_solve"] == 300


def test_lengths_and_memory_sizes_are_kept_apart(root):
    rows = [row for row in point_rows(compare(root)) if row["group"] == "ntm"]
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
    over = band(group(comparison, "ntm"), "val/loss")
    left = 3 if name in ("metrics.csv", "config.yaml") else 4
    assert over.runs[0] == left
    assert group_rows(comparison)[0]["runs"] == 2  # lstm is as it was


def test_a_last_line_cut_short_costs_that_line_alone(root):
    path = root / "lstm" / "seed_0" / "metrics.csv"
    path.write_text(path.read_text() + "400,40.0,4")
    over = band(group(compare(root), "lstm"), "val/loss")
    assert over.sequences.tolist() == [100, 200, 300]


def test_what_a_reader_should_know_is_noted(root, tmp_path):
    lstm = {"model": {"name": "lstm"}, "sequences": 7}
    make_run(tmp_path / "lstm" / "seed_5", {100: 1.0}, config=lstm)
    notes = compare(root, by=["model"]).notes
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
    assert by_group(group_rows(comparison))["ntm"]["unfinished"] == 2


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


def test_what_was_asked_of_a_finished_run_makes_no_group(tmp_path):
    for seed, kinds in ((0, ["drawn"]), (1, ["drawn", "zeros"])):
        config = {"evaluation": {"kinds": kinds}}
        make_run(tmp_path / "ntm" / f"seed_{seed}", {100: 1.0}, config=config)
    assert labels(compare(tmp_path)) == ["ntm"]


class TestKinds:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        """Two seeds, of which one fails on zeros at 20."""
        for seed, wrong in ((0, 0.0), (1, 6.0)):
            make_run(
                tmp_path / "ntm" / f"seed_{seed}",
                {100: 1.0},
                kinds={
                    "drawn": [evaluated(10, 0.0, 1.0), evaluated(20, 0.0, 1.0)],
                    "zeros": [evaluated(10, 0.0, 1.0), evaluated(20, wrong, 1 - wrong / 10)],
                },
            )
        return tmp_path

    def test_one_row_a_kind_and_point(self, root):
        rows = {(row["kind"], row["length"]): row for row in kind_rows(compare(root))}
        kinds = ("drawn", "zeros", "every kind")
        assert list(rows) == [(kind, length) for kind in kinds for length in (10, 20)]
        worst = rows["zeros", 20]
        assert (worst["wrong_bits_mean"], worst["wrong_bits_worst"]) == (3.0, 6.0)
        assert (worst["exact_mean"], worst["runs_without_error"], worst["runs"]) == (0.7, 1, 2)
        assert rows["zeros", 10]["runs_without_error"] == 2
        every = rows["every kind", 20]
        assert (every["wrong_bits_mean"], every["wrong_bits_worst"]) == (1.5, 3.0)
        assert (every["exact_mean"], every["runs_without_error"], every["runs"]) == (0.85, 1, 2)

    def test_a_run_that_errs_on_any_kind_does_not_count_as_right_on_every(self, tmp_path):
        """One run fails on each of two kinds; of each kind one of two is right, of both none."""
        for seed, wrong in ((0, (0.0, 6.0)), (1, (6.0, 0.0))):
            kinds = {
                kind: [evaluated(20, w, 1 - w / 10)]
                for kind, w in zip(("drawn", "zeros"), wrong, strict=True)
            }
            make_run(tmp_path / "ntm" / f"seed_{seed}", {100: 1.0}, kinds=kinds)
        rows = {row["kind"]: row["runs_without_error"] for row in kind_rows(compare(tmp_path))}
        assert rows == {"drawn": 1, "zeros": 1, "every kind": 0}

    def test_only_sequences_as_drawn_are_points(self, root):
        assert [row["length"] for row in point_rows(compare(root))] == [10, 20]
        assert all(row["wrong_bits_worst"] == 0 for row in point_rows(compare(root)))

    def test_runs_of_drawn_sequences_alone_have_none(self, tmp_path):
        make_run(tmp_path / "ntm" / "seed_0", {100: 1.0}, [evaluated(10, 0.0, 1.0)])
        assert kind_rows(compare(tmp_path)) == []
