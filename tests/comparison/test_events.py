"""The real TensorBoard over real runs, asked what it would show."""

from __future__ import annotations

import csv
import importlib
import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_up import make_run
from runners import ROOT, run_here

from ntm.comparison.events import means_folder, points, write_means
from ntm.comparison.grouping import Comparison
from ntm.comparison.grouping import compare as compare_all

MODELS, SEEDS = ("lstm", "ntm"), (0, 1)
RUNS = {f"{model}/seed_{seed}" for model in MODELS for seed in SEEDS}
MEANS = {f"{model}/mean" for model in MODELS}


def compare(root: Path) -> Comparison:
    (comparison,) = compare_all(root)
    return comparison


@pytest.fixture(scope="module")
def script() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts"))
        return importlib.import_module("screenshot_tensorboard")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of two models, trained and compared."""
    folder = tmp_path_factory.mktemp("runs")
    quick = ["callbacks.pictures_every=null", "callbacks.figures=false"]
    sizes = ["task.max_length=3", "batch_size=16", "validate_every=16", "sequences=48"]
    short = ["evaluation.at=[3]", "evaluation.sequences=4"]
    sweep = ["-m", "model=ntm,lstm", "seed=0,1"]
    with pytest.MonkeyPatch.context() as patch:
        assert run_here(patch, folder, "run_train", *sweep, *sizes, *short, *quick) == 0
        assert run_here(patch, folder, "run_compare", "runs=outputs/copy") == 0
    return folder / "outputs" / "copy"


@pytest.fixture(scope="module")
def address(root: Path, script: Any) -> Iterator[str]:
    with script.serving(root) as address:
        script.wait_for_runs(address, RUNS | MEANS)
        yield address


TENSORBOARD = pytest.mark.xdist_group("tensorboard")
"""What one worker runs, so that the runs are trained once."""
AT_THE_END = ("test/", "_hparams_/", "evaluation/")
"""Beginnings of the tags that have one value."""


def metrics(root: Path, run: str) -> list[dict[str, str]]:
    with open(root / run / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
@TENSORBOARD
def test_every_seed_and_every_mean_is_shown(address, script):
    assert set(script.ask(address, "runs")) == RUNS | MEANS


@pytest.mark.slow
@TENSORBOARD
def test_tags_are_equal_so_that_runs_overlay(address, script):
    tags = script.ask(address, "plugin/scalars/tags")
    seeds = {frozenset(tags[run]) for run in RUNS}
    assert len(seeds) == 1
    means = {frozenset(tags[run]) for run in MEANS}
    assert len(means) == 1
    of_seeds = {
        tag
        for tag in next(iter(seeds))
        if not tag.startswith(("test/", "_hparams_/", "evaluation/"))
    }
    assert {"val/wrong_bits_per_sequence", "train/loss"} <= of_seeds
    bands = {tag for tag in next(iter(means)) if tag.startswith("with_sd/")}
    assert next(iter(means)) - bands == of_seeds
    assert len(bands) == 8


@pytest.mark.slow
@TENSORBOARD
def test_values_are_finite_and_steps_are_sequences(address, script):
    tags = script.ask(address, "plugin/scalars/tags")
    for run in RUNS | MEANS:
        for tag in tags[run]:
            if tag.startswith(AT_THE_END):
                continue
            shown = script.ask(address, "plugin/scalars/scalars", run=run, tag=tag)
            assert [step for _, step, _ in shown] == [16, 32, 48]
            assert all(math.isfinite(value) for *_, value in shown)


@pytest.mark.slow
@TENSORBOARD
def test_means_are_those_of_the_seeds(address, script, root):
    for model in MODELS:
        for column in ("val/loss", "train/wrong_bits_per_sequence"):
            seeds = zip(*(metrics(root, f"{model}/seed_{seed}") for seed in SEEDS), strict=True)
            values = [[float(row[column]) for row in rows] for rows in seeds]
            means = [statistics.mean(pair) for pair in values]
            spread = [statistics.stdev(pair) for pair in values]
            expected = {
                column: means,
                f"with_sd/minus/{column}": [m - s for m, s in zip(means, spread, strict=True)],
                f"with_sd/plus/{column}": [m + s for m, s in zip(means, spread, strict=True)],
            }
            for tag, wanted in expected.items():
                run = f"{model}/mean"
                shown = script.ask(address, "plugin/scalars/scalars", run=run, tag=tag)
                assert [value for *_, value in shown] == pytest.approx(wanted, rel=1e-5, abs=1e-6)


@pytest.mark.slow
@TENSORBOARD
def test_the_layout_has_a_margin_chart_a_metric_that_both_means_fill(address, script):
    layout = script.ask(address, "plugin/custom_scalars/layout")
    charts = [chart for category in layout["category"] for chart in category["chart"]]
    assert [category["title"] for category in layout["category"]] == [
        "wrong bits per sequence",
        "loss",
    ]
    assert len(charts) == 4
    for chart in charts:
        (series,) = chart["margin"]["series"]
        for run in MEANS:
            for tag in series.values():
                question = {"run": run, "tag": f"^{tag}$"}
                answer = script.ask(address, "plugin/custom_scalars/scalars", **question)
                assert len(answer["tag_to_events"][tag]) == 3


@pytest.mark.slow
@TENSORBOARD
def test_the_script_checks_what_it_photographs(address, script, root):
    assert script.run_names(root) == RUNS | MEANS
    script.check(address, RUNS | MEANS)
    with pytest.raises(RuntimeError, match="ntm/seed_7"):
        script.wait_for_runs(address, {"ntm/seed_7"}, timeout=0)


def test_the_script_says_what_to_do_first(script, tmp_path):
    make_run(tmp_path / "ntm" / "seed_0", {100: 2.0})
    with pytest.raises(RuntimeError, match=r"ntm/mean is not there yet: python run_compare\.py"):
        script.run_names(tmp_path)


@pytest.mark.slow
@TENSORBOARD
def test_summaries_are_never_read_as_runs(root):
    assert {run.label for run in compare(root).runs} == RUNS


@pytest.mark.slow
@TENSORBOARD
def test_an_open_tensorboard_sees_a_new_comparison(root):
    """The file is another one each time, and there is always exactly one."""
    (before,) = (root / "ntm" / "mean").iterdir()
    write_means(compare(root))
    (after,) = (root / "ntm" / "mean").iterdir()
    assert after.name > before.name


def test_a_single_seed_has_a_band_of_no_width(tmp_path):
    make_run(tmp_path / "ntm" / "seed_0", {100: 2.0, 200: 1.0})
    comparison = compare(tmp_path)
    tags = points(comparison.groups[0], comparison.curves)
    column = "val/wrong_bits_per_sequence"
    assert tags[column] == tags[f"with_sd/minus/{column}"] == [(100, 2.0), (200, 1.0)]


def test_what_is_not_finite_is_left_out(tmp_path):
    folder = make_run(tmp_path / "ntm" / "seed_0", {100: 2.0, 200: 1.0})
    path = folder / "metrics.csv"
    path.write_text(path.read_text().replace("1.0,0.001", "nan,0.001"))
    comparison = compare(tmp_path)
    tags = points(comparison.groups[0], comparison.curves)
    assert tags["val/wrong_bits_per_sequence"] == [(100, 2.0)]


def test_a_group_that_fills_no_folder_has_its_mean_with_the_comparison(tmp_path):
    for seed, rate in enumerate((0.1, 0.1, 0.2)):
        config = {"optimizer": {"lr": rate}}
        make_run(tmp_path / "ntm" / f"seed_{seed}", {100: 2.0}, config=config)
    make_run(tmp_path / "lstm" / "seed_0", {100: 2.0}, config={"model": {"name": "lstm"}})
    comparison = compare(tmp_path)
    write_means(comparison)
    found = [means_folder(comparison, group) for group in comparison.groups]
    assert [str(path.relative_to(tmp_path)) for path in found] == [
        "lstm/mean",
        "comparison/means/copy,_ntm,_lr=0.1",
        "comparison/means/copy,_ntm,_lr=0.2",
    ]
    assert all(len(list(path.iterdir())) == 1 for path in found)
